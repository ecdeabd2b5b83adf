//! The bulk replicator: a cursor over the block space, beside live transactions, and the comparisons that use it too.

use std::sync::Arc;
use std::time::Duration;

use super::{BULK_BYTES, Frame, Phase, SPAN_BLOCKS, SPANS_A_STEP, Stream};
use crate::mirror::MirrorError;
use crate::mirror::shipment::touched;
use crate::units::{BlockNo, BlockRange, planted};
use crate::wire::message::{Message, Range};

impl Stream {
    pub(super) fn bulk(&mut self, now: Duration) -> Result<Option<Frame>, MirrorError> {
        match self.phase {
            Phase::Copy { cursor, first } => {
                let frame = self.copy_step(cursor, first, now);
                if frame.is_err() {
                    self.slot.state.lock().not_sent(self.seq + 1);
                }
                frame.map(Some)
            }
            Phase::Compare { cursor } => self.compare_step(cursor),
            Phase::Sequencing => self.verify_step(now),
            Phase::Draining { .. } | Phase::Ending { .. } => Ok(None),
        }
    }

    pub(super) fn copy_step(
        &mut self,
        cursor: BlockNo,
        first: bool,
        now: Duration,
    ) -> Result<Frame, MirrorError> {
        let block_size = self.block_size();
        let room = (BULK_BYTES / block_size).max(1);
        let (blocks, end) = match first {
            true => self.allocated_from(cursor, room)?,
            false => self.marked_from(cursor, room)?,
        };
        // The cursor passes the chunk here, before it is read.
        self.phase = Phase::Copy { cursor: end, first };
        let mut data: Vec<Range> = Vec::new();
        let mut zero: Vec<Range> = Vec::new();
        let mut payload = Vec::new();
        for range in &blocks {
            self.passed_blocks += range.len;
            // The journal first: what goes home between the two questions is no hole when the second is asked.
            if first && !self.journal_has(*range)? && self.volume.is_hole(*range) {
                zero.push((*range).into());
                continue;
            }
            let at = payload.len();
            payload.resize(at + (range.len * block_size) as usize, 0);
            self.journal.read(range.start, &mut payload[at..])?;
            self.counters.bytes_read += range.len * block_size;
            if payload[at..].iter().all(|byte| *byte == 0) {
                payload.truncate(at);
                zero.push((*range).into());
            } else {
                data.push((*range).into());
            }
        }
        let bytes = payload.len() as u64;
        self.counters.bytes_bulk += bytes;
        self.rate.spend(now, bytes);
        let seq = self.next_seq(bytes);
        if planted::is("clear-on-send") {
            self.slot.state.lock().arrived(seq)?;
        }
        let bulk = Message::Bulk {
            seq,
            data,
            zero,
            cursor: end.0,
            reach: self.journal.last_committed().0,
        };
        if end.0 >= self.volume.blocks_count() {
            self.pass_ended();
        }
        Ok((bulk, payload))
    }

    /// The journal's overlay has newer contents than a hole at home.
    pub(super) fn journal_has(&self, range: BlockRange) -> Result<bool, MirrorError> {
        for block in range.blocks() {
            if self.journal.image(block)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A pass is over: another one when the map has bits that are not under way, else the copy ends.
    pub(super) fn pass_ended(&mut self) {
        self.phase = match self.slot.state.lock().unsent() > 0 {
            true => Phase::Copy {
                cursor: BlockNo(0),
                first: false,
            },
            false => Phase::Draining {
                until: self.journal.last_committed(),
            },
        };
    }

    /// Up to `room` allocated blocks from `cursor` on, and where the cursor is behind them.
    pub(super) fn allocated_from(
        &self,
        cursor: BlockNo,
        room: u64,
    ) -> Result<(Vec<BlockRange>, BlockNo), MirrorError> {
        let total = self.volume.blocks_count();
        let mut at = cursor.0;
        for _ in 0..SPANS_A_STEP {
            if at >= total {
                break;
            }
            let span = BlockRange::new(BlockNo(at), SPAN_BLOCKS.min(total - at));
            let chunk = self.allocated_in(span)?;
            if chunk.is_empty() {
                at = span.end().0;
                continue;
            }
            return Ok(take_blocks(chunk, room, span.end()));
        }
        Ok((Vec::new(), BlockNo(at)))
    }

    /// The allocated blocks of `span` by the newest committed bitmaps, without the journal's own.
    pub(super) fn allocated_in(&self, span: BlockRange) -> Result<Vec<BlockRange>, MirrorError> {
        let mut set: crate::mirror::ranges::RangeSet =
            self.committed()?.allocated(span)?.into_iter().collect();
        for range in &self.log {
            set.remove(*range);
        }
        Ok(set.iter().collect())
    }

    /// Those of up to `room` marked blocks from `cursor` on that are allocated, and where the cursor is behind them. They go
    /// under way with the next frame.
    fn marked_from(
        &self,
        cursor: BlockNo,
        room: u64,
    ) -> Result<(Vec<BlockRange>, BlockNo), MirrorError> {
        let (marked, next) = {
            let mut state = self.slot.state.lock();
            state.send_marked(cursor, room, self.seq + 1)?
        };
        let mut wanted = Vec::new();
        for range in marked.iter() {
            let mut from = range.start;
            while from < range.end() {
                let span = BlockRange::new(from, SPAN_BLOCKS.min(range.end().0 - from.0));
                wanted.extend(self.allocated_in(span)?);
                from = span.end();
            }
        }
        Ok((wanted, next.unwrap_or(BlockNo(self.volume.blocks_count()))))
    }

    pub(super) fn compare_step(&mut self, cursor: BlockNo) -> Result<Option<Frame>, MirrorError> {
        if self.questions.full() {
            return Ok(None);
        }
        if cursor.0 >= self.volume.blocks_count() {
            if self.questions.is_empty() {
                self.phase = Phase::Copy {
                    cursor: BlockNo(0),
                    first: false,
                };
            }
            return Ok(None);
        }
        let room = (4 * BULK_BYTES / self.block_size()).max(1);
        let (chunk, end) = self.allocated_from(cursor, room)?;
        self.phase = Phase::Compare { cursor: end };
        if chunk.is_empty() {
            return Ok(None);
        }
        let journal = Arc::clone(&self.journal);
        let frame = self
            .questions
            .ask(chunk, |start, buf| journal.read(start, buf))?;
        Ok(Some(frame))
    }

    /// Compares the next chunk, if `verify` is running and the mirror has been sent everything.
    pub(super) fn verify_step(&mut self, now: Duration) -> Result<Option<Frame>, MirrorError> {
        let Some(cursor) = self.questions.verifying() else {
            return Ok(None);
        };
        let committed = self.journal.last_committed();
        if self.questions.full()
            || committed != self.sent
            || self.confirmed < self.sent
            || self.questions.rate.ready(now).is_err()
        {
            return Ok(None);
        }
        if cursor.0 >= self.volume.blocks_count() {
            self.questions.pass_ended(self.sent);
            return Ok(None);
        }
        let room = (4 * BULK_BYTES / self.block_size()).max(1);
        let (chunk, end) = self.allocated_from(cursor, room)?;
        let journal = Arc::clone(&self.journal);
        let chunk: crate::mirror::ranges::RangeSet = chunk.into_iter().collect();
        let bytes = chunk.count() * self.block_size();
        self.questions.rate.spend(now, bytes);
        let frame = self.questions.ask(chunk.iter().collect(), |start, buf| {
            journal.read(start, buf)
        })?;
        // Whatever was committed while we read must not have touched what we read.
        let Some(infos) = self.journal.info_after(committed) else {
            self.questions.forget_last();
            return Ok(None);
        };
        for info in infos {
            let same = self.logged(info.txid)?.is_some_and(|txn| {
                let mut changed = touched(&txn).chain(txn.freed.iter().copied());
                !changed.any(|range| chunk.overlaps(range))
            });
            if !same {
                self.questions.forget_last();
                return Ok(None);
            }
        }
        self.questions.verified_to(end, committed);
        Ok(match chunk.is_empty() {
            true => {
                self.questions.forget_last();
                None
            }
            false => Some(frame),
        })
    }
}

/// The first `room` blocks of `ranges`, and where the cursor is behind them (`end` when they all fit).
fn take_blocks(ranges: Vec<BlockRange>, room: u64, end: BlockNo) -> (Vec<BlockRange>, BlockNo) {
    let mut taken = Vec::new();
    let mut left = room;
    for range in ranges {
        let len = range.len.min(left);
        taken.push(BlockRange::new(range.start, len));
        left -= len;
        if left == 0 {
            return (taken, BlockNo(range.start.0 + len));
        }
    }
    (taken, end)
}
