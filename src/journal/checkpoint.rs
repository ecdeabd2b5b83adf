//! Bringing images home and moving the checkpoint tail; closing the log. Owns the order: images home, a flush, the tail
//! in the superblock. The superblock's own durability comes with whatever flush follows; log space is reused only after it.
//! Never writes an image that is not published, nor one of which it is not durable that the master confirmed it, nor one
//! onto a pinned block (but for `close`).

use super::overlay::Entry;
use super::scan::{Logged, read_images};
use super::{Image, Journal, JournalError, Refused};
use crate::units::{BlockNo, BlockRange, Txid};
use crate::volume::facts::LogHead;

/// What one step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckpointStep {
    /// Blocks written home.
    pub written: usize,
    /// Whether the checkpoint tail moved.
    pub tail_moved: bool,
    /// Nothing more can be written now: all is home, pinned or not published.
    pub done: bool,
}

/// Blocks that a committer in need of space brings home at a time.
const BATCH_BLOCKS: usize = 4096;
/// Bytes that are written home at once.
const WRITE_PIECE: usize = 1 << 20;

impl Journal {
    /// Brings up to `max_blocks` images home, those of the oldest transactions first, flushes, and moves the tail. Meant
    /// to be called from one background thread; a committer that needs space calls it too.
    pub fn checkpoint(&self, max_blocks: usize) -> Result<CheckpointStep, JournalError> {
        let _checkpoint = self.checkpoint.lock();
        self.checkpoint_locked(max_blocks, false)
    }

    fn checkpoint_locked(
        &self,
        max_blocks: usize,
        ignore_pins: bool,
    ) -> Result<CheckpointStep, JournalError> {
        self.check_alive()?;
        self.checkpoint_step(max_blocks, ignore_pins)
            .map_err(|error| match error {
                // A damaged log block says nothing against the commits to come; the tail just stays.
                JournalError::Corrupt { .. } => error,
                error => self.abort_with(error),
            })
    }

    fn checkpoint_step(
        &self,
        max_blocks: usize,
        ignore_pins: bool,
    ) -> Result<CheckpointStep, JournalError> {
        let held = CheckpointStep {
            done: true,
            ..CheckpointStep::default()
        };
        if !self.confirm_published()? {
            return Ok(held);
        }
        let (entries, format) = {
            let mut state = self.state.write();
            if state.published > state.home_limit {
                // More was shown in between: the next step sees to it.
                return Ok(held);
            }
            let low = state.lowest_consumer();
            let state = &mut *state;
            let refs = &state.refs;
            let pinned = |block: BlockNo| {
                low.is_some_and(|low| refs.owner(block).is_some_and(|owner| owner > low))
            };
            let entries = state.overlay.select(max_blocks, ignore_pins, pinned);
            for entry in &entries {
                state
                    .refs
                    .written_home(BlockRange::new(entry.logged.block, 1), entry.txid);
            }
            let mut in_flight = self.in_flight.lock();
            in_flight.extend(entries.iter().map(|e| e.logged.block));
            (entries, state.format)
        };
        let written = self.write_home(&entries, &format);
        self.in_flight.lock().clear();
        self.landed.notify_all();
        written?;
        if !entries.is_empty() {
            self.flush()?;
            let mut state = self.state.write();
            for entry in &entries {
                let block = entry.logged.block;
                // A newer image or a free that came meanwhile has settled this one.
                if state
                    .overlay
                    .get(block)
                    .is_some_and(|e| e.txid == entry.txid)
                {
                    state.overlay.remove(block);
                    state.settle(entry.txid);
                }
            }
        }
        self.confirm_published()?;
        let (tail, moved, done) = {
            let state = self.state.read();
            let tail = state.checkpoint_tail();
            let may = state.published <= state.home_limit;
            (
                tail,
                may && state.live && tail.pos > state.tail.pos,
                state.overlay.nothing_waits(),
            )
        };
        if moved {
            let block = self.log.block_at(tail.pos);
            self.write_superblock(|sb| sb.set_tail(block, tail.tid))?;
            self.state.write().tail = tail;
        }
        Ok(CheckpointStep {
            written: entries.len(),
            tail_moved: moved,
            done,
        })
    }

    /// Writes images home in the order of their blocks, neighbours at once. Not flushed.
    fn write_home(
        &self,
        entries: &[Entry],
        format: &super::superblock::LogFormat,
    ) -> Result<(), JournalError> {
        let mut images: Vec<Option<Image>> = entries.iter().map(|e| e.image.clone()).collect();
        let evicted: Vec<usize> = (0..entries.len())
            .filter(|i| images[*i].is_none())
            .collect();
        let logged: Vec<Logged> = evicted.iter().map(|i| entries[*i].logged).collect();
        read_images(&self.log, format, &logged, |i, bytes| {
            images[evicted[i]] = Some(Image::from(&*bytes));
            Ok(())
        })?;
        let mut sorted: Vec<(BlockNo, Image)> = entries
            .iter()
            .zip(images)
            .map(|(e, image)| {
                (
                    e.logged.block,
                    image.expect("kept in memory, or just read from the log"),
                )
            })
            .collect();
        sorted.sort_unstable_by_key(|(block, _)| *block);
        self.write_sorted(sorted.iter().map(|(block, image)| (*block, &image[..])))
    }

    /// Writes blocks that come in ascending order, neighbours at once.
    pub(super) fn write_sorted<'a>(
        &self,
        blocks: impl Iterator<Item = (BlockNo, &'a [u8])>,
    ) -> Result<(), JournalError> {
        let size = self.log.block_size() as u64;
        let mut start = BlockNo(0);
        let mut buf: Vec<u8> = Vec::new();
        let write = |start: BlockNo, buf: &[u8]| {
            self.volume
                .write(start, buf)
                .map_err(JournalError::io("writing blocks home"))
        };
        for (block, bytes) in blocks {
            let next = BlockNo(start.0 + buf.len() as u64 / size);
            if !buf.is_empty() && (block != next || buf.len() >= WRITE_PIECE) {
                write(start, &buf)?;
                buf.clear();
            }
            if buf.is_empty() {
                start = block;
            }
            buf.extend_from_slice(bytes);
        }
        if !buf.is_empty() {
            write(start, &buf)?;
        }
        Ok(())
    }

    /// Checkpoints until the durable tail leaves `need` blocks free, or nothing more can be written home.
    pub(super) fn checkpoint_for(&self, need: u64) -> Result<(), JournalError> {
        let _checkpoint = self.checkpoint.lock();
        loop {
            let step = self.checkpoint_locked(BATCH_BLOCKS, false)?;
            let enough = {
                let state = self.state.read();
                self.log.capacity() - 1 - (state.head - state.tail.pos) >= need
            };
            if enough || step.done {
                break;
            }
        }
        let flush = {
            let state = self.state.read();
            state.tail != state.durable_tail
        };
        if flush {
            self.flush().map_err(|error| self.abort_with(error))?;
        }
        Ok(())
    }

    /// Brings everything home, pinned or not (the caller has merged or given up what mirrors lack), and marks the log
    /// clean: s_start is 0 durably, the bytes stay. The next commit needs `begin_segment`.
    pub fn close(&self) -> Result<LogHead, JournalError> {
        let _commit = self.commit.lock();
        self.empty_log()?;
        if std::mem::take(&mut self.state.write().open) {
            self.save_tail(true)?;
        }
        let state = self.state.read();
        Ok(LogHead {
            log_block: self.log.block_at(state.head),
            txid: state.last,
            chain: state.chain,
        })
    }

    /// Brings home everything that reading sees, pinned or not. What is not shown yet stays in the log.
    pub fn bring_home(&self) -> Result<(), JournalError> {
        let _commit = self.commit.lock();
        self.check_alive()?;
        let _checkpoint = self.checkpoint.lock();
        self.empty_overlay()
    }

    /// As `close`, without ending the segment. With `commit` held.
    pub(super) fn empty_log(&self) -> Result<(), JournalError> {
        self.check_alive()?;
        {
            let state = self.state.read();
            if state.published != state.last && state.txns.iter().any(|t| t.pending.is_some()) {
                return Err(Refused::Unpublished(state.published).into());
            }
        }
        let _checkpoint = self.checkpoint.lock();
        self.empty_overlay()?;
        if !self.state.read().live {
            return Ok(());
        }
        let keeper = self.keeper.read().clone();
        if let Some(keeper) = keeper {
            let (last, chain) = {
                let state = self.state.read();
                (state.last, state.chain)
            };
            keeper.emptying(last, chain)?;
        }
        self.mark_clean().map_err(|error| self.abort_with(error))
    }

    /// With `checkpoint` held.
    fn empty_overlay(&self) -> Result<(), JournalError> {
        if !self.confirm_published()? {
            return Err(Refused::NotConfirmed(self.state.read().published).into());
        }
        while !self.checkpoint_locked(BATCH_BLOCKS, true)?.done {}
        Ok(())
    }

    /// Everything is home and flushed: s_start becomes 0, durably. With `checkpoint` held.
    pub(super) fn mark_clean(&self) -> Result<(), JournalError> {
        let (head, tid) = {
            let state = self.state.read();
            (state.head, state.next_tid)
        };
        let block = self.log.block_at(head);
        // Homes written by others than the checkpoint (recovery) are flushed before the log forgets them.
        self.flush()?;
        self.write_superblock(|sb| {
            sb.set_tail(crate::units::LogBlock(0), tid);
            sb.set_head(block);
            // Why it was aborted before a recovery; `found_errno` says it until the volume is closed.
            sb.set_errno(0);
        })?;
        {
            let mut state = self.state.write();
            state.live = false;
            state.tail = super::state::Tail { pos: head, tid };
        }
        self.flush()
    }

    /// Takes back, durably, every appended transaction that was not published: a mirror drops what the master never
    /// confirmed. Returns the last transaction that is left.
    pub fn discard_unpublished(&self) -> Result<Txid, JournalError> {
        let _commit = self.commit.lock();
        self.check_alive()?;
        let _checkpoint = self.checkpoint.lock();
        let dropped = self.state.write().take_unpublished();
        let erase = || -> Result<(), JournalError> {
            let (Some(first), Some(last)) = (dropped.first(), dropped.last()) else {
                return Ok(());
            };
            // First the commit block of the first: from then on none of them is replayed. Then everything, since their
            // tids are used again.
            let zeros = vec![0; self.log.block_size()];
            self.log.write(first.end - 1, &zeros)?;
            self.flush()?;
            let mut writer = super::log::LogWriter::new(&self.log, first.start);
            for _ in first.start..last.end {
                writer.push(&zeros)?;
            }
            writer.finish()?;
            self.flush()
        };
        erase().map_err(|error| self.abort_with(error))?;
        Ok(self.state.read().last)
    }
}
