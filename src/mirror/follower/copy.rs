//! A copy in the making: blocks straight home, behind the guard, acknowledged after a flush.

use super::{Copying, FLUSH_BYTES, Follower, Output, Phase, protocol};
use crate::mirror::floor::Heir;
use crate::mirror::staging::End;
use crate::mirror::{MirrorError, guard};
use crate::units::{BlockNo, BlockRange, Txid};
use crate::volume::facts::{Copy, Lineage};
use crate::wire::message::{Message, Range};

/// Transactions between two notes of how far what comes reaches.
const REACH: u64 = 1024;

impl Follower {
    pub(super) fn copying(&mut self) -> Result<&mut Copying, MirrorError> {
        match (&mut self.phase, self.streaming) {
            (Phase::Copying(copying), true) => Ok(copying),
            _ => Err(protocol("a frame of a copy, but no copy is being made")),
        }
    }

    /// A range that lies in the volume.
    pub(super) fn checked(&self, range: Range) -> Result<BlockRange, MirrorError> {
        let blocks = self.volume()?.blocks_count();
        match range.start.checked_add(range.len) {
            Some(end) if range.len > 0 && end <= blocks => Ok(range.into()),
            _ => Err(protocol(&format!(
                "{} blocks from {} on do not lie in a volume of {blocks}",
                range.len, range.start
            ))),
        }
    }

    pub(super) fn write_home(
        &self,
        range: BlockRange,
        bytes: &mut [u8],
        guarded: bool,
    ) -> Result<(), MirrorError> {
        let volume = self.volume()?;
        let block_size = volume.block_size() as usize;
        let superblock = 1024 / block_size as u64;
        if range.contains(BlockNo(superblock)) {
            let at = (superblock - range.start.0) as usize * block_size;
            guard::fit_image(superblock, &mut bytes[at..at + block_size], guarded);
        }
        Ok(volume.write(range.start, bytes)?)
    }

    /// What comes next contains transactions up to `txid`, and goes home before it is acknowledged: that is durable first, for
    /// another master may go on from less.
    pub(super) fn reaches(&mut self, txid: Txid) -> Result<(), MirrorError> {
        let Phase::Copying(copying) = &mut self.phase else {
            return Ok(());
        };
        copying.reach = copying.reach.max(txid);
        let mut facts = self.facts.lock();
        if txid > facts.reach {
            // Not at every transaction: as it is known, it is noted when the link is gone.
            let before = facts.reach;
            facts.reach = Txid(txid.0.saturating_add(REACH));
            let saved = self.env.facts.save(&facts);
            if saved.is_err() {
                facts.reach = before;
            }
            saved?;
        }
        Ok(())
    }

    /// A stream is over: how far what came reaches is known.
    pub(super) fn note_reach(&mut self) -> Result<(), MirrorError> {
        let Phase::Copying(copying) = &self.phase else {
            return Ok(());
        };
        let mut facts = self.facts.lock();
        if facts.reach != copying.reach {
            facts.reach = copying.reach;
            self.env.facts.save(&facts)?;
        }
        Ok(())
    }

    pub(super) fn bulk(
        &mut self,
        seq: u64,
        data: &[Range],
        zero: &[Range],
        cursor: u64,
        payload: &[u8],
        out: &mut Vec<Output>,
    ) -> Result<(), MirrorError> {
        if matches!(self.phase, Phase::Staged(_)) && self.streaming {
            return self.stage_bulk(seq, data, zero, cursor, payload, out);
        }
        self.copying()?;
        let volume = self.volume()?;
        self.write_ranges(data, payload, true)?;
        for range in zero {
            volume.zero(self.checked(*range)?)?;
        }
        let copying = self.copying()?;
        copying.seq = seq;
        copying.cursor = BlockNo(cursor);
        copying.unflushed += payload.len() as u64 + 1;
        match copying.unflushed >= FLUSH_BYTES {
            true => self.flush_copy(out),
            false => Ok(()),
        }
    }

    /// Writes the blocks of `ranges`, whose bytes are `payload`.
    pub(super) fn write_ranges(
        &self,
        ranges: &[Range],
        payload: &[u8],
        guarded: bool,
    ) -> Result<(), MirrorError> {
        let block_size = u64::from(self.volume()?.block_size());
        let mut bytes = payload.to_vec();
        let mut rest: &mut [u8] = &mut bytes;
        for range in ranges {
            let range = self.checked(*range)?;
            let len = usize::try_from(range.len * block_size)
                .ok()
                .filter(|len| *len <= rest.len())
                .ok_or_else(|| protocol("ranges need more bytes than there are"))?;
            let (head, tail) = rest.split_at_mut(len);
            self.write_home(range, head, guarded)?;
            rest = tail;
        }
        match rest.is_empty() {
            true => Ok(()),
            false => Err(protocol("more bytes than the ranges need")),
        }
    }

    pub(super) fn flush_copy(&mut self, out: &mut Vec<Output>) -> Result<(), MirrorError> {
        let before = self.env.clock.monotonic();
        self.volume()?.flush()?;
        let flush_us = self.since(before);
        let Phase::Copying(copying) = &mut self.phase else {
            return Ok(());
        };
        copying.unflushed = 0;
        {
            let mut facts = self.facts.lock();
            facts.applied = copying.txid;
            if copying.first {
                facts.copy = Copy::Partial {
                    cursor: copying.cursor,
                    txid: copying.txid,
                };
            }
            self.env.facts.save(&facts)?;
        }
        out.push(Output::Send(
            Message::Ack {
                seq: copying.seq,
                txid: copying.txid.0,
                cursor: copying.cursor.0,
                consistent: false,
                flush_us,
            },
            Vec::new(),
        ));
        Ok(())
    }

    pub(super) fn copy_end(
        &mut self,
        seq: u64,
        consistent_at: Txid,
        chain: u64,
        log: &[Range],
        journal_superblock: &[u8],
        out: &mut Vec<Output>,
    ) -> Result<(), MirrorError> {
        let staged = match &self.phase {
            Phase::Staged(staged) if self.streaming => Some(staged.copying.txid),
            _ => None,
        };
        let txid = match staged {
            Some(txid) => txid,
            None => self.copying()?.txid,
        };
        if txid > consistent_at {
            return Err(protocol(
                "a copy that is consistent before what it has applied",
            ));
        }
        let volume = self.volume()?;
        let log = log
            .iter()
            .map(|range| self.checked(*range))
            .collect::<Result<Vec<_>, _>>()?;
        if log.is_empty() {
            return Err(protocol("a journal without blocks"));
        }
        if journal_superblock.len() != volume.block_size() as usize {
            return Err(protocol("a journal superblock that is not one block"));
        }
        if staged.is_some() {
            let end = End {
                consistent_at,
                log,
                journal_superblock: journal_superblock.to_vec(),
            };
            return self.switch(seq, &end, chain, out);
        }
        if self.copying()?.log != log {
            self.begin_log(&log, journal_superblock)?;
        }
        let before = self.env.clock.monotonic();
        volume.flush()?;
        let flush_us = self.since(before);
        self.became_complete(consistent_at, chain, None)?;
        self.phase = Phase::Idle;
        self.follow(out)?;
        if let Phase::Following(following) = &mut self.phase {
            following.seq = seq;
        }
        out.push(Output::Send(
            Message::Ack {
                seq,
                txid: consistent_at.0,
                cursor: volume.blocks_count(),
                consistent: true,
                flush_us,
            },
            Vec::new(),
        ));
        Ok(())
    }

    /// Lays an empty log over the blocks of `log`: no block of an earlier life of these parts may ever pass for one of its.
    pub(super) fn begin_log(
        &self,
        log: &[BlockRange],
        journal_superblock: &[u8],
    ) -> Result<(), MirrorError> {
        let volume = self.volume()?;
        for range in log {
            volume.zero(*range)?;
            match volume.preallocate(*range) {
                // A store without fallocate: the log's blocks come into being as they are written.
                Err(error) if error.is_unsupported() => {}
                other => other?,
            }
        }
        if let Some(first) = log.first() {
            volume.write(first.start, journal_superblock)?;
        }
        Ok(())
    }

    /// Everything is home and durable: the copy is the master's state as of `consistent_at`. The facts say so, then the
    /// guard goes. `generations`: the history that came with it, where the facts do not have it yet.
    pub(super) fn became_complete(
        &mut self,
        consistent_at: Txid,
        chain: u64,
        generations: Option<Vec<Lineage>>,
    ) -> Result<(), MirrorError> {
        let volume = self.volume()?;
        {
            let facts = self.facts.lock().clone();
            Heir::open(&*self.env.maps, &facts, volume.blocks_count())?.forget()?;
        }
        {
            let mut facts = self.facts.lock();
            if let Some(generations) = generations {
                facts.generations = generations;
                facts.set_stamps(None);
                facts.tail = None;
                facts.segments.clear();
                facts.head = None;
                facts.switching = None;
            }
            facts.copy = Copy::Complete;
            facts.own_dirty = false;
            facts.consistent_at = consistent_at;
            facts.applied = consistent_at;
            facts.high_txid = facts.high_txid.max(consistent_at);
            facts.chain = chain;
            facts.confirmed = consistent_at;
            facts.as_of = 0;
            facts.tainted = false;
            facts.reach = Txid(0);
            self.env.facts.save(&facts)?;
        }
        guard::lower(&volume)
    }
}
