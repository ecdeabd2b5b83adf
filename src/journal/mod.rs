//! jbd2: append, commit, checkpoint, recover, segments, and who still needs the tail. Big-endian on disk.
//!
//! Owns the journal file inside the volume: its superblock and its circular log, which is the volume's crash journal and
//! the mirrors' buffer in one. Never looks into an image, never decides when to checkpoint or to whom to send, and owns no
//! thread, clock or socket.
//!
//! What holds:
//! - A transaction is durable when `append` returns: its blocks, a flush, its commit block, a flush. A group of
//!   transactions shares the two flushes.
//! - Log space is written again only behind the durable checkpoint tail (`s_start`, what jbd2's replay needs) and behind
//!   the saved mirror tail (what consumers need).
//! - Home blocks get the newest published image, never one of a transaction that is not committed and published, and
//!   never over bytes that a consumer still has to read there.
//! - A block that is freed, or written home by its transaction, has a revoke in that transaction when the log holds an
//!   image of it that replay would still bring back.
//! - jbd2's tid is the log's own sequence, without gaps inside a segment, because replay demands that. The 64-bit txid in
//!   the payload is the truth for replication: gaps in it are free. On a master the tid is the txid's low half (unless
//!   the log's sequence is already past that, after a promotion).
//! - No tid that the log may still hold is used again: a segment begins above every one it can contain.
//! - An I/O error of the log or of a checkpoint aborts the journal: commits fail with the first cause, reading goes on.
//!
//! Lock order: `commit` (one writer of the log), `checkpoint` (one writer of home blocks and of the tail), `superblock`,
//! `state`, `in_flight`. `commit` and `checkpoint` are held across I/O, that is their purpose; `superblock` across the
//! write of that one block; `state` and `in_flight` never. The keeper is called with `commit` held.

mod append;
mod checkpoint;
mod error;
pub mod format;
mod log;
mod overlay;
pub mod payload;
mod read;
mod recover;
mod refs;
mod resume;
mod scan;
mod state;
pub mod superblock;
mod tails;
mod transaction;

#[cfg(test)]
mod tests;

pub use append::{Prepared, PreparedTxn};
pub use checkpoint::CheckpointStep;
pub use error::{CorruptKind, JournalError, Refused};
pub use log::LogMap;
pub use recover::Recovery;
pub use resume::ResumeEnd;
pub use state::TxnInfo;
pub use tails::TailKeeper;
pub use transaction::{Hint, Image, Reference, Transaction, chain_hash};

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::units::{BlockNo, BlockRange, Generation, LogBlock, Txid};
use crate::volume::Volume;
use log::Log;
use overlay::{Overlay, RESIDENT_BYTES};
use refs::RefMap;
use state::{State, Tail};
use superblock::{SUPERBLOCK_SIZE, Superblock};

/// The journal of one open volume. Shared as `Arc<Journal>`; every method may be called from many threads.
pub struct Journal {
    volume: Arc<Volume>,
    log: Log,
    /// Widens the tids of transactions that carry no payload.
    base: Txid,
    /// Held by the one who writes the log.
    commit: Mutex<()>,
    /// Held by the one who writes home blocks and moves the checkpoint tail.
    checkpoint: Mutex<()>,
    superblock: Mutex<Superblock>,
    state: RwLock<State>,
    /// Home blocks that a checkpoint is writing at this moment; `landed` tells when they are done.
    in_flight: Mutex<BTreeSet<BlockNo>>,
    landed: Condvar,
    keeper: RwLock<Option<Arc<dyn TailKeeper>>>,
    aborted: RwLock<Option<Arc<JournalError>>>,
    /// The transaction whose blocks are in the log and whose commit is not durable yet, for those who send it meanwhile.
    prepared: Mutex<Option<Arc<PreparedTxn>>>,
    on_prepared: RwLock<Option<Box<dyn Fn() + Send + Sync>>>,
    flushes: AtomicU64,
    /// What this transaction and older ones freed may be in use again, and have been written over, uncommitted.
    let_go: AtomicU64,
    /// s_errno as found at load.
    found_errno: i32,
}

/// Figures of the log, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStats {
    /// Blocks of the circle.
    pub size_blocks: u64,
    /// Blocks that may not be written again yet, for whichever reason.
    pub used_blocks: u64,
    /// Blocks from the oldest transaction that a consumer still needs to the head.
    pub used_by_mirrors: u64,
    /// Blocks from the checkpoint tail to the head: what a crash would replay.
    pub used_by_replay: u64,
    /// The oldest transaction that a crash would replay; behind the last when there is none.
    pub checkpoint_tail: Txid,
    /// The oldest transaction that a consumer still needs; behind the last when there is none.
    pub mirror_tail: Txid,
    /// Committed images that are not home.
    pub overlay_blocks: u64,
    /// Flushes since the volume was opened.
    pub flushes: u64,
    /// Log blocks written since the volume was opened.
    pub blocks_written: u64,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("log_blocks", &self.log.capacity())
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// Opens the journal file at `map`: reads and checks its superblock, writes nothing. `base` is a transaction id near
    /// the last one, by which 32-bit tids without a payload are widened.
    pub fn load(volume: Arc<Volume>, map: LogMap, base: Txid) -> Result<Journal, JournalError> {
        let first = map.0.first().filter(|r| r.len > 0).ok_or_else(|| {
            JournalError::corrupt(
                LogBlock(0),
                CorruptKind::Length,
                "a journal file with blocks",
                0,
            )
        })?;
        if let Some(bad) = map.0.iter().find(|r| {
            r.start
                .0
                .checked_add(r.len)
                .is_none_or(|end| end > volume.blocks_count())
        }) {
            return Err(JournalError::corrupt(
                LogBlock(0),
                CorruptKind::Field("journal file's extents"),
                format!("blocks below {}", volume.blocks_count()),
                format!("{}+{}", bad.start, bad.len),
            ));
        }
        let mut raw = [0; SUPERBLOCK_SIZE];
        volume
            .read_bytes(first.start.0 * u64::from(volume.block_size()), &mut raw)
            .map_err(JournalError::io("reading the journal superblock"))?;
        let sb = Superblock::decode(&raw, volume.block_size(), map.len_blocks())?;
        // A fast-commit area of a clean log is empty; the first commit here turns the feature off and uses it.
        let log = Log::new(volume.clone(), map, sb.s_first(), sb.s_maxlen());
        let lap = log.capacity();
        let head = sb
            .s_head()
            .and_then(|head| log.pos_from(head, lap))
            .unwrap_or(lap);
        let mut next_tid = sb.s_sequence();
        if sb.s_head().is_none() && next_tid > 1 {
            // Something else replayed the log (e2fsck), and it does not look for what a cut group left behind the end.
            next_tid = next_tid.wrapping_add(append::MAX_GROUP);
        }
        let tail = Tail {
            pos: head,
            tid: next_tid,
        };
        let state = State {
            format: sb.format(),
            txns: VecDeque::new(),
            overlay: Overlay::new(RESIDENT_BYTES),
            refs: RefMap::default(),
            logged: BTreeMap::new(),
            consumers: BTreeMap::new(),
            segments: Vec::new(),
            generation: Generation::default(),
            open: false,
            recovered: false,
            live: sb.s_start().0 != 0,
            head,
            next_tid,
            last: base,
            chain: 0,
            published: base,
            published_chain: 0,
            home_limit: Txid(u64::MAX),
            kept_after: base,
            tail,
            durable_tail: tail,
            saved: None,
        };
        let found_errno = sb.s_errno();
        if found_errno != 0 {
            tracing::warn!(
                errno = found_errno,
                "the journal was aborted when it was last open"
            );
        }
        Ok(Journal {
            volume,
            log,
            base,
            commit: Mutex::new(()),
            checkpoint: Mutex::new(()),
            superblock: Mutex::new(sb),
            state: RwLock::new(state),
            in_flight: Mutex::new(BTreeSet::new()),
            landed: Condvar::new(),
            keeper: RwLock::new(None),
            aborted: RwLock::new(None),
            prepared: Mutex::new(None),
            on_prepared: RwLock::new(None),
            flushes: AtomicU64::new(0),
            let_go: AtomicU64::default(),
            found_errno,
        })
    }

    /// Whether the log was left with transactions that may not be home: s_start is not 0, and not by this opening.
    pub fn needs_recovery(&self) -> bool {
        let start = self.superblock.lock().s_start();
        let state = self.state.read();
        start.0 != 0 && !state.open && !state.recovered
    }

    /// s_head: where a log that was marked clean here ends; `None` if it never was, or something else has written it since.
    pub fn clean_end(&self) -> Option<LogBlock> {
        self.superblock.lock().s_head()
    }

    /// s_errno as it was found: not 0 when the journal was aborted while last open, and the volume wants a check. The recovery
    /// clears it on the disk.
    pub fn found_errno(&self) -> i32 {
        self.found_errno
    }

    /// s_sequence as last written: what changes when something else runs the journal.
    pub fn s_sequence(&self) -> u32 {
        self.superblock.lock().s_sequence()
    }

    /// The volume that it is the journal of.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// The journal's blocks, in the file's order.
    pub fn map(&self) -> &LogMap {
        self.log.map()
    }

    /// The last transaction that is durable in this log, published or not.
    pub fn last_committed(&self) -> Txid {
        self.state.read().last
    }

    /// The id that the next transaction may have at least: above every committed one, and not below the segment's first.
    pub fn next_txid(&self) -> Txid {
        let state = self.state.read();
        let first = state.segments.last().map_or(Txid(0), |(s, _)| s.first_txid);
        state.last.next().max(first)
    }

    /// The last transaction that reading sees.
    pub fn last_published(&self) -> Txid {
        self.state.read().published
    }

    /// Chain hash at the last committed transaction.
    pub fn chain(&self) -> u64 {
        self.state.read().chain
    }

    /// Sets the chain hash that the next commit continues: after an opening, from the facts.
    pub fn set_chain(&self, chain: u64) {
        let mut state = self.state.write();
        state.chain = chain;
        if state.published == state.last {
            state.published_chain = chain;
        }
    }

    /// Sets the chain hash at the last transaction that reading sees, where a recovery that kept later ones back did not find
    /// it in the log: from the facts.
    pub fn set_published_chain(&self, chain: u64) {
        let mut state = self.state.write();
        state.published_chain = chain;
        if state.published == state.last {
            state.chain = chain;
        }
    }

    /// How many images one transaction should hold at most: a quarter of the log or 16 MiB.
    pub fn max_transaction_blocks(&self) -> usize {
        let quarter = self.log.capacity() as usize / 4;
        quarter.min((16 << 20) / self.log.block_size())
    }

    /// Whether replay would write an image of the block: one since the checkpoint tail that was not revoked.
    pub fn has_logged(&self, block: BlockNo) -> bool {
        self.state
            .read()
            .logged
            .get(&block)
            .is_some_and(|newest| !newest.revoked)
    }

    /// As `has_logged`, for any block of a range.
    pub fn has_logged_in(&self, range: BlockRange) -> bool {
        self.state
            .read()
            .logged
            .range(range.start..range.end())
            .any(|(_, newest)| !newest.revoked)
    }

    /// Figures for status.
    pub fn stats(&self) -> LogStats {
        let keeper = self.keeper.read().is_some();
        let state = self.state.read();
        let (needed, mirror_tail, _) = state.needed();
        let tail = state.checkpoint_tail();
        let at = state.txns.partition_point(|t| t.start < tail.pos);
        LogStats {
            size_blocks: self.log.capacity(),
            used_blocks: state.head - state.durable_tail.pos.min(state.mirror_limit(keeper)),
            used_by_mirrors: state.head - needed,
            used_by_replay: state.head - tail.pos,
            checkpoint_tail: state.txns.get(at).map_or(state.last.next(), |t| t.txid),
            mirror_tail,
            overlay_blocks: state.overlay.len() as u64,
            flushes: self.flushes.load(Ordering::Relaxed),
            blocks_written: self.log.blocks_written(),
        }
    }

    /// Ends this journal's life: every later commit and checkpoint fails with the first cause; reading goes on. The
    /// superblock gets an errno if it can still be written, so that the next check looks at the volume.
    pub fn abort(&self, why: JournalError) {
        self.abort_with(why);
    }

    /// The first cause of an abort.
    pub fn aborted(&self) -> Option<Arc<JournalError>> {
        self.aborted.read().clone()
    }

    fn abort_with(&self, why: JournalError) -> JournalError {
        /// -EIO
        const ERRNO: i32 = -5;
        let first = {
            let mut aborted = self.aborted.write();
            if let Some(first) = &*aborted {
                return JournalError::Aborted(first.clone());
            }
            aborted.insert(Arc::new(why)).clone()
        };
        tracing::error!(cause = %first, "the journal is aborted");
        let mut sb = self.superblock.lock();
        sb.set_errno(ERRNO);
        if let Err(error) = self.log.write_superblock(sb.encode()) {
            tracing::warn!(%error, "the abort could not be recorded");
        }
        JournalError::Aborted(first)
    }

    fn check_alive(&self) -> Result<(), JournalError> {
        match &*self.aborted.read() {
            Some(first) => Err(JournalError::Aborted(first.clone())),
            None => Ok(()),
        }
    }

    /// Flushes the volume. A checkpoint tail whose superblock was written before is durable then.
    fn flush(&self) -> Result<(), JournalError> {
        let tail = self.state.read().tail;
        self.volume
            .flush()
            .map_err(JournalError::io("flushing the volume"))?;
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.state.write().tail_is_durable(tail);
        Ok(())
    }

    /// Changes the superblock and writes it; not flushed.
    fn write_superblock(&self, change: impl FnOnce(&mut Superblock)) -> Result<(), JournalError> {
        let mut sb = self.superblock.lock();
        change(&mut sb);
        self.log.write_superblock(sb.encode())
    }
}
