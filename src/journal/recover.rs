//! Recovery: what a crash left in the log goes home, in one pass over the log's headers and one over the images that are
//! the newest of their block and not revoked. Replays journals that the kernel left as well. Invariants: nothing is written
//! home before every image that will be has passed its checksum; s_start becomes 0 only after what was replayed is
//! flushed; damage inside a committed transaction is an error, never a shorter log.

use super::append::{GROUP_BYTES, MAX_GROUP};
use super::format::Header;
use super::log::Pos;
use super::overlay::Entry;
use super::scan::{Found, Logged, Replay, Scanned, Scanner, read_images};
use super::state::{Pending, Tail, Txn, gone, ref_ranges};
use super::{CorruptKind, Image, Journal, JournalError};
use crate::units::{BlockNo, Txid};

/// What recovery did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Transactions replayed.
    pub transactions: u64,
    /// The last of them: its payload's id, or the id nearest to `base` with its tid; `None` when there was none.
    pub last: Option<Txid>,
    /// Chain hash at the last, if it had a payload.
    pub chain: Option<u64>,
    /// Blocks written home (or laid over home).
    pub blocks_replayed: u64,
    /// Blocks left out because they were revoked.
    pub revoked: u64,
    /// Transactions that stay in the log, because it is not known that the master committed them.
    pub unconfirmed: u64,
}

/// Images that are read and written home at a time.
const BATCH_BLOCKS: usize = 4096;

/// The log as recovery found it.
struct Survey {
    recovery: Recovery,
    images: Vec<Logged>,
    end: Pos,
    next_tid: u32,
    /// Transactions after the limit: left in the log.
    unconfirmed: Vec<Scanned>,
    /// The last transaction that the limit, or the log itself, says is confirmed.
    confirmed: Txid,
}

impl Journal {
    /// Brings home what the log holds and marks it clean, durably. Does nothing to a clean log.
    pub fn recover(&self) -> Result<Recovery, JournalError> {
        self.recover_noting(None, &mut |_| Ok(()))
    }

    /// As `recover`, but transactions after `confirmed` stay in the log as if they had just been appended: durable, not
    /// visible, not home. A mirror in sync mode opens so, because the master may not have committed them; then it
    /// publishes or discards them, and begins a segment. What the log itself says of confirmation counts as well.
    pub fn recover_confirmed(&self, confirmed: Txid) -> Result<Recovery, JournalError> {
        self.recover_noting(Some(confirmed), &mut |_| Ok(()))
    }

    /// As `recover`, or with a limit as `recover_confirmed`. `note` is told what will be replayed, once the log durably holds
    /// it and before a block of it goes home: if it fails, so does the recovery, and the next one finds the same. A log that
    /// was emptied can not say any more of which transaction the state at home is; and a recovery that was cut half-way has
    /// to be gone on with as far as it was begun, whatever limit the next one has.
    pub fn recover_noting(
        &self,
        limit: Option<Txid>,
        note: &mut dyn FnMut(&Recovery) -> Result<(), JournalError>,
    ) -> Result<Recovery, JournalError> {
        let _commit = self.commit.lock();
        let _checkpoint = self.checkpoint.lock();
        self.check_alive()?;
        if !self.needs_recovery() {
            return Ok(Recovery::default());
        }
        let survey = self.survey(limit)?;
        let format = self.state.read().format;
        read_images(&self.log, &format, &survey.images, |_, _| Ok(()))?;
        // What a process wrote that was killed is there, and durable only now.
        self.flush()?;
        note(&survey.recovery)?;
        self.replay(&survey)?;
        let left_behind = self.left_behind(survey.end, survey.next_tid)?;
        {
            let mut state = self.state.write();
            if limit.is_some() {
                state.home_limit = survey.confirmed;
            }
            state.head = survey.end;
            // The tid after the last is skipped: its blocks may be there, torn.
            state.next_tid = left_behind.wrapping_add(1);
            // What comes before the first that is kept back is the last that was confirmed when that one was appended.
            let before = survey.unconfirmed.first().and_then(|t| t.payload.as_ref());
            let before = before.map(|p| p.confirmed.min(Txid(p.txid.0.saturating_sub(1))));
            if let Some(last) = survey.recovery.last.or(before) {
                state.last = last;
                state.published = last;
                state.kept_after = last;
            }
            if let Some(chain) = survey.recovery.chain {
                state.chain = chain;
                state.published_chain = chain;
            }
        }
        if survey.unconfirmed.is_empty() {
            self.mark_clean()?;
        } else {
            self.keep_unconfirmed(&survey)?;
        }
        tracing::info!(
            unconfirmed = survey.unconfirmed.len(),
            transactions = survey.recovery.transactions,
            blocks = survey.recovery.blocks_replayed,
            revoked = survey.recovery.revoked,
            "the journal was replayed"
        );
        Ok(survey.recovery)
    }

    /// As `recover`, for an opening that must not write: what would go home is laid over it in memory.
    pub fn recover_overlay(&self) -> Result<Recovery, JournalError> {
        let _commit = self.commit.lock();
        self.check_alive()?;
        if !self.needs_recovery() {
            return Ok(Recovery::default());
        }
        let survey = self.survey(None)?;
        let format = self.state.read().format;
        read_images(&self.log, &format, &survey.images, |_, _| Ok(()))?;
        let mut state = self.state.write();
        if let Some(last) = survey.recovery.last {
            state.last = last;
            state.published = last;
            state.kept_after = last;
        }
        if let Some(chain) = survey.recovery.chain {
            state.chain = chain;
            state.published_chain = chain;
        }
        let txid = state.last;
        for logged in survey.images {
            state.overlay.insert(Entry {
                txid,
                logged,
                image: None,
            });
        }
        Ok(survey.recovery)
    }

    /// Indexes the transactions behind the limit as appended, and moves the tail to the first of them.
    fn keep_unconfirmed(&self, survey: &Survey) -> Result<(), JournalError> {
        let format = self.state.read().format;
        let mut txns = Vec::with_capacity(survey.unconfirmed.len());
        for scanned in &survey.unconfirmed {
            let payload = scanned
                .payload
                .as_ref()
                .expect("only transactions with a payload are kept back");
            let mut images: Vec<(Logged, Image)> = Vec::with_capacity(scanned.images.len());
            read_images(&self.log, &format, &scanned.images, |i, bytes| {
                images.push((scanned.images[i], Image::from(&*bytes)));
                Ok(())
            })?;
            let refs = ref_ranges(payload);
            let txn = Txn {
                txid: payload.txid,
                tid: scanned.tid,
                generation: payload.generation,
                chain: payload.chain,
                start: scanned.start,
                end: scanned.end,
                images: images.len() as u64,
                blocks: scanned.images.iter().map(|i| i.block).collect(),
                revoked: scanned.revoked.clone(),
                outstanding: images.len(),
                pending: Some(Pending {
                    images,
                    gone: gone(&payload.freed, &refs, &payload.zeroed),
                }),
                refs,
            };
            txns.push((txn, payload.zeroed.clone()));
        }
        let first = &survey.unconfirmed[0];
        let tail = Tail {
            pos: first.start,
            tid: first.tid,
        };
        let block = self.log.block_at(tail.pos);
        self.flush()?;
        self.write_superblock(|sb| sb.set_tail(block, tail.tid))?;
        self.flush()?;
        let mut state = self.state.write();
        let next_tid = state.next_tid;
        state.tail = tail;
        state.durable_tail = tail;
        state.live = true;
        state.recovered = true;
        for (txn, zeroed) in txns {
            state.push(txn, &zeroed);
        }
        state.next_tid = next_tid;
        Ok(())
    }

    fn survey(&self, limit: Option<Txid>) -> Result<Survey, JournalError> {
        let (start, tid) = {
            let sb = self.superblock.lock();
            sb.refuse_replay()?;
            (sb.s_start(), sb.s_sequence())
        };
        let format = self.state.read().format;
        let lap = self.log.capacity();
        let pos = self.log.pos_from(start, lap).ok_or_else(|| {
            JournalError::corrupt(
                crate::units::LogBlock(0),
                CorruptKind::Field("s_start"),
                "a block of the log",
                start,
            )
        })?;
        let blocks = self.volume.blocks_count();
        let mut scanner = Scanner::new(&self.log, format, pos, tid, pos + lap);
        let mut replay = Replay::default();
        let mut recovery = Recovery::default();
        let mut previous = self.base;
        let mut unconfirmed: Vec<Scanned> = Vec::new();
        let mut confirmed = limit.unwrap_or_default();
        while let Found::Transaction(txn) = scanner.next()? {
            if let Some(bad) = txn.images.iter().find(|i| i.block.0 >= blocks) {
                return Err(JournalError::corrupt(
                    self.log.block_at(txn.start),
                    CorruptKind::Field("t_blocknr"),
                    format!("below {blocks}"),
                    bad.block,
                ));
            }
            let txid = match &txn.payload {
                Some(payload) => payload.txid,
                None => previous.nearest(txn.tid),
            };
            previous = txid;
            let mut take = |txn: &Scanned, txid: Txid| {
                recovery.transactions += 1;
                recovery.last = Some(txid);
                recovery.chain = txn.payload.as_ref().map(|p| p.chain);
                replay.add(txn);
            };
            let Some(payload) = txn.payload.as_ref().filter(|_| limit.is_some()) else {
                for txn in unconfirmed.drain(..) {
                    let txid = txn.payload.as_ref().map_or(txid, |p| p.txid);
                    take(&txn, txid);
                }
                take(&txn, txid);
                continue;
            };
            confirmed = confirmed.max(payload.confirmed);
            unconfirmed.push(*txn);
            // A later transaction may say that earlier ones were confirmed.
            let known = unconfirmed
                .partition_point(|t| t.payload.as_ref().is_some_and(|p| p.txid <= confirmed));
            for txn in unconfirmed.drain(..known) {
                let txid = txn.payload.as_ref().map_or(txid, |p| p.txid);
                take(&txn, txid);
            }
        }
        recovery.unconfirmed = unconfirmed.len() as u64;
        let (images, revoked) = replay.finish();
        recovery.blocks_replayed = images.len() as u64;
        recovery.revoked = revoked;
        Ok(Survey {
            recovery,
            images,
            end: scanner.pos,
            next_tid: scanner.tid,
            unconfirmed,
            confirmed,
        })
    }

    /// Writes home what passed its checksum.
    fn replay(&self, survey: &Survey) -> Result<(), JournalError> {
        let format = self.state.read().format;
        let mut in_log_order = survey.images.clone();
        in_log_order.sort_unstable_by_key(|i| i.pos);
        for batch in in_log_order.chunks(BATCH_BLOCKS) {
            let mut blocks: Vec<(BlockNo, Image)> = Vec::with_capacity(batch.len());
            read_images(&self.log, &format, batch, |i, bytes| {
                blocks.push((batch[i].block, Image::from(&*bytes)));
                Ok(())
            })?;
            blocks.sort_unstable_by_key(|(block, _)| *block);
            self.write_sorted(blocks.iter().map(|(block, image)| (*block, &image[..])))?;
        }
        Ok(())
    }

    /// The highest tid that a crash may have left behind the end of the log: `tid` itself, or, when a group was being
    /// written, one of the tids after it.
    fn left_behind(&self, end: Pos, tid: u32) -> Result<u32, JournalError> {
        const PIECE: u64 = 256;
        let size = self.log.block_size();
        let limit = end + (GROUP_BYTES / size as u64).min(self.log.capacity() / 4) + 1;
        let mut furthest = 0;
        let mut buf = Vec::new();
        let mut pos = end;
        while pos < limit {
            let count = PIECE.min(limit - pos);
            buf.resize(count as usize * size, 0);
            self.log.read(pos, &mut buf)?;
            for block in buf.chunks_exact(size) {
                if let Some(header) = Header::decode(block) {
                    let ahead = header.tid.wrapping_sub(tid);
                    if ahead < MAX_GROUP {
                        furthest = furthest.max(ahead);
                    }
                }
            }
            pos += count;
        }
        Ok(tid.wrapping_add(furthest))
    }
}
