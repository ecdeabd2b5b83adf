//! Who still needs the log: consumers (mirrors), their positions, the transactions they have yet to get, and the space
//! that this holds. Owns the saving of the mirror tail; never frees space that a saved tail still covers.

use super::format::Header;
use super::log::Pos;
use super::scan::{Found, Scanner, read_images};
use super::{Image, Journal, JournalError, Refused, Transaction, TxnInfo};
use crate::units::{BlockNo, Txid, planted};
use crate::volume::facts::{MirrorTail, Segment};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Who keeps the mirror tail durable and decides about mirrors that hold up the log.
pub trait TailKeeper: Send + Sync {
    /// Saves the tail and the segments durably. Only when this has returned is the space before the tail used again.
    fn save_tail(&self, tail: Option<MirrorTail>, segments: &[Segment])
    -> Result<(), JournalError>;
    /// The log is full of what consumers need, from `oldest` to `last`: move consumers, or remove them after recording
    /// what they lack. Called by the committer; must not commit, append, close or begin a segment.
    fn make_room(&self, oldest: Txid, last: Txid) -> Result<(), JournalError>;
    /// On a mirror: remembers durably that the master has confirmed everything up to `through`. Called by whoever brings
    /// images home, before any that the log does not say this of.
    fn confirm(&self, _through: Txid) -> Result<(), JournalError> {
        Ok(())
    }
    /// The log is about to be emptied, everything up to `last` being home: the last chance to remember of which transaction,
    /// with which chain hash, the state at home is. If this fails, the log stays as it is.
    fn emptying(&self, _last: Txid, _chain: u64) -> Result<(), JournalError> {
        Ok(())
    }
}

impl Journal {
    /// Sets who saves the tail.
    pub fn set_keeper(&self, keeper: Arc<dyn TailKeeper>) {
        *self.keeper.write() = Some(keeper);
    }

    /// Consumer `id` needs every transaction after `position`, and the referenced bytes of those at home.
    pub fn set_consumer(&self, id: u32, position: Txid) {
        let mut state = self.state.write();
        let before = state.lowest_consumer();
        state.consumers.insert(id, position);
        if state.lowest_consumer() != before {
            state.overlay.unpark();
        }
    }

    /// Consumer `id` needs nothing any more.
    pub fn remove_consumer(&self, id: u32) {
        let mut state = self.state.write();
        state.consumers.remove(&id);
        state.overlay.unpark();
    }

    /// On a mirror: from now on only what is durably known to be confirmed goes home. `confirmed` is what the facts say.
    pub fn limit_home(&self, confirmed: Txid) {
        self.state.write().home_limit = confirmed;
    }

    /// It is durable that the master has confirmed everything up to `through`.
    pub fn confirmed_durably(&self, through: Txid) {
        let mut state = self.state.write();
        state.home_limit = state.home_limit.max(through);
    }

    /// Whether a power cut leaves it known that the master has confirmed `txid`.
    pub fn is_confirmed_durably(&self, txid: Txid) -> bool {
        self.state.read().home_limit >= txid
    }

    /// What is published may go home, or the keeper makes that so. `false`: not now.
    pub(super) fn confirm_published(&self) -> Result<bool, JournalError> {
        let through = {
            let state = self.state.read();
            if state.published <= state.home_limit {
                return Ok(true);
            }
            state.published
        };
        let Some(keeper) = self.keeper.read().clone() else {
            return Ok(false);
        };
        keeper.confirm(through)?;
        self.confirmed_durably(through);
        Ok(true)
    }

    /// Every consumer is past this transaction, and it is committed here: what it and older ones freed may be reused from now
    /// on, whoever comes back behind it.
    pub fn released(&self) -> Txid {
        let state = self.state.read();
        if planted::is("reuse-pinned") {
            return state.last;
        }
        let released = state
            .lowest_consumer()
            .map_or(state.last, |low| low.min(state.last));
        self.let_go.fetch_max(released.0, Ordering::Relaxed);
        released
    }

    /// Whether a consumer still needs the block's bytes at home.
    pub fn is_pinned(&self, block: BlockNo) -> bool {
        self.state.read().is_pinned(block)
    }

    /// How many transactions after `after` the log holds, and the blocks from the first of them to the head.
    pub fn backlog(&self, after: Txid) -> (u64, u64) {
        let state = self.state.read();
        let from = state.txns.partition_point(|t| t.txid <= after);
        match state.txns.get(from) {
            Some(first) => ((state.txns.len() - from) as u64, state.head - first.start),
            None => (0, 0),
        }
    }

    /// Whether the log holds every transaction after `after`.
    pub fn covers(&self, after: Txid) -> bool {
        let state = self.state.read();
        after >= state.kept_after && after <= state.last
    }

    /// The transactions after `after`, oldest first; `None` when the log no longer holds them all.
    pub fn info_after(&self, after: Txid) -> Option<Vec<TxnInfo>> {
        let state = self.state.read();
        if after < state.kept_after || after > state.last {
            return None;
        }
        let from = state.txns.partition_point(|t| t.txid <= after);
        Some(
            state
                .txns
                .range(from..)
                .map(|t| t.info(&self.log))
                .collect(),
        )
    }

    /// The newest transaction with which `txid` has to be merged, because references of it, or of one in between, were
    /// overwritten at home: by a checkpoint after it was released, by a recovery or by a close. Or they may be at any moment,
    /// by a change that is not committed, for what freed them was released; with that they are references no more.
    pub fn overwritten_by(&self, txid: Txid) -> Option<Txid> {
        let state = self.state.read();
        let let_go = Txid(self.let_go.load(Ordering::Relaxed));
        let reused = (txid < let_go).then_some(let_go);
        state.refs.overwritten_by(txid).max(reused)
    }

    /// Reads a transaction back from the log, verifying every checksum.
    pub fn load_transaction(&self, txid: Txid) -> Result<Transaction, JournalError> {
        let not_in_log = || JournalError::from(Refused::NotInLog(txid));
        let (format, start, end, tid) = {
            let state = self.state.read();
            let txn = &state.txns[state.find(txid).ok_or_else(not_in_log)?];
            (state.format, txn.start, txn.end, txn.tid)
        };
        let loaded = (|| {
            let mut scanner = Scanner::new(&self.log, format, start, tid, end);
            let Found::Transaction(scanned) = scanner.next()? else {
                return Err(self.damaged_at(start, tid)?);
            };
            let Some(payload) = scanned.payload else {
                return Err(self.damaged_at(start, tid)?);
            };
            if payload.txid != txid {
                return Err(self.damaged_at(start, tid)?);
            }
            let mut images = std::collections::BTreeMap::<BlockNo, Image>::new();
            read_images(&self.log, &format, &scanned.images, |i, bytes| {
                images.insert(scanned.images[i].block, Image::from(&*bytes));
                Ok(())
            })?;
            Ok(Transaction {
                txid,
                images,
                refs: payload.refs,
                zeroed: payload.zeroed,
                freed: payload.freed,
                hints: payload.hints,
                chain: payload.chain,
            })
        })();
        // Its space may have been written again while it was read.
        if self.state.read().find(txid).is_none() {
            return Err(not_in_log());
        }
        loaded
    }

    /// The error for a transaction that is indexed but is not where it was.
    fn damaged_at(&self, pos: Pos, tid: u32) -> Result<JournalError, JournalError> {
        let mut block = vec![0; self.log.block_size()];
        self.log.read(pos, &mut block)?;
        Ok(JournalError::corrupt(
            self.log.block_at(pos),
            super::CorruptKind::Sequence,
            format!("transaction {tid}"),
            match Header::decode(&block) {
                Some(header) => format!("{header:?}"),
                None => "no header".into(),
            },
        ))
    }

    /// Saves the mirror tail and the segments: at what consumers need now, or, without `advance`, where it was saved
    /// last. With `commit` held.
    pub(super) fn save_tail(&self, advance: bool) -> Result<(), JournalError> {
        let Some(keeper) = self.keeper.read().clone() else {
            return Ok(());
        };
        let (tail, pos, segments) = self.state.read().saveable(&self.log, advance);
        let plain: Vec<Segment> = segments.iter().map(|(s, _)| *s).collect();
        keeper.save_tail(Some(tail), &plain)?;
        let mut state = self.state.write();
        state.saved = Some(pos);
        state.segments = segments;
        Ok(())
    }

    /// Calls the keeper to move consumers. `false` when there is nobody to ask.
    pub(super) fn make_room(&self) -> Result<bool, JournalError> {
        let Some(keeper) = self.keeper.read().clone() else {
            return Ok(false);
        };
        let (oldest, last) = {
            let state = self.state.read();
            if state.consumers.is_empty() {
                return Ok(false);
            }
            // The transaction itself, not the lower bound of its id that a tail is saved with: whoever has everything up to an
            // id between the two, which was never issued, needs it.
            let low = state.lowest_consumer().unwrap_or(state.last);
            let at = state.txns.partition_point(|t| t.txid <= low);
            let oldest = state.txns.get(at).map_or(state.last.next(), |t| t.txid);
            (oldest, state.last)
        };
        keeper.make_room(oldest, last)?;
        Ok(true)
    }
}
