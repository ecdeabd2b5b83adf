//! What is in the log, in memory: its transactions, the newest image of each block, who still needs what, and the tails.
//! Pure bookkeeping, never does I/O; one lock (`Journal::state`) guards all of it.
//!
//! Invariants: transactions are in the order of the log, their positions and txids increase; a transaction's
//! `outstanding` counts its images that are published, newest of their block and not home; the checkpoint tail never
//! passes a transaction that is not published or has outstanding images.

use std::collections::{BTreeMap, VecDeque};

use super::log::{Log, Pos};
use super::overlay::{Entry, Overlay};
use super::payload::Payload;
use super::refs::RefMap;
use super::scan::Logged;
use super::superblock::LogFormat;
use super::transaction::Image;
use crate::units::{BlockNo, BlockRange, Generation, LogBlock, Txid, coalesce};
use crate::volume::facts::{MirrorTail, Segment};

/// One transaction in the log, without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnInfo {
    /// Its id.
    pub txid: Txid,
    /// Who committed it.
    pub generation: Generation,
    /// Chain hash up to and with it.
    pub chain: u64,
    /// Blocks by value.
    pub blocks: u64,
    /// Where it begins in the log.
    pub log_start: LogBlock,
    /// Blocks by reference.
    pub refs_blocks: u64,
}

/// A transaction of the index.
#[derive(Debug)]
pub(super) struct Txn {
    pub txid: Txid,
    pub tid: u32,
    pub generation: Generation,
    pub chain: u64,
    pub start: Pos,
    pub end: Pos,
    /// Blocks by value.
    pub images: u64,
    /// Home blocks of its images; forgotten when the durable checkpoint tail passed it.
    pub blocks: Vec<BlockNo>,
    /// Blocks it revoked; forgotten likewise.
    pub revoked: Vec<BlockNo>,
    /// Referenced ranges, coalesced.
    pub refs: Vec<BlockRange>,
    pub outstanding: usize,
    /// What publishing does; `None` once published.
    pub pending: Option<Pending>,
}

/// What becomes visible when a transaction is published.
#[derive(Debug)]
pub(super) struct Pending {
    pub images: Vec<(Logged, Image)>,
    /// Ranges whose older images are void: freed, referenced or zeroed.
    pub gone: Vec<BlockRange>,
}

impl Txn {
    pub fn info(&self, log: &Log) -> TxnInfo {
        TxnInfo {
            txid: self.txid,
            generation: self.generation,
            chain: self.chain,
            blocks: self.images,
            log_start: log.block_at(self.start),
            refs_blocks: self.refs.iter().map(|r| r.len).sum(),
        }
    }
}

/// Where jbd2's replay starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    pub pos: Pos,
    pub tid: u32,
}

/// The newest that the log says of a block, from the durable checkpoint tail on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newest {
    pub txid: Txid,
    /// The image was revoked since: replay leaves it out already.
    pub revoked: bool,
}

#[derive(Debug)]
pub(super) struct State {
    pub format: LogFormat,
    pub txns: VecDeque<Txn>,
    pub overlay: Overlay,
    pub refs: RefMap,
    pub logged: BTreeMap<BlockNo, Newest>,
    pub consumers: BTreeMap<u32, Txid>,
    /// With their positions; the first holds the saved mirror tail.
    pub segments: Vec<(Segment, Pos)>,
    pub generation: Generation,
    /// `begin_segment` was called and `close` was not.
    pub open: bool,
    /// What the last opening left was replayed, up to what is indexed as appended.
    pub recovered: bool,
    /// The superblock on disk has s_start != 0.
    pub live: bool,
    pub head: Pos,
    pub next_tid: u32,
    /// The last transaction that is durable here.
    pub last: Txid,
    pub chain: u64,
    /// The last transaction that reading sees, and the chain hash at it.
    pub published: Txid,
    pub published_chain: u64,
    /// Nothing later than this goes home, nor does the checkpoint tail move while something later is published: a crash
    /// would show less than was shown, over homes that are newer. No limit on a master.
    pub home_limit: Txid,
    /// The index holds every transaction after this one.
    pub kept_after: Txid,
    /// The checkpoint tail as last written to the superblock, and as known to be durable.
    pub tail: Tail,
    pub durable_tail: Tail,
    /// The mirror tail as last saved by the keeper.
    pub saved: Option<Pos>,
}

impl State {
    /// Index of a transaction.
    pub fn find(&self, txid: Txid) -> Option<usize> {
        let at = self.txns.partition_point(|t| t.txid < txid);
        (self.txns.get(at)?.txid == txid).then_some(at)
    }

    /// The lowest position of all consumers.
    pub fn lowest_consumer(&self) -> Option<Txid> {
        self.consumers.values().min().copied()
    }

    /// Whether some consumer has not passed the newest reference to the block.
    pub fn is_pinned(&self, block: BlockNo) -> bool {
        self.lowest_consumer()
            .is_some_and(|low| self.refs.owner(block).is_some_and(|owner| owner > low))
    }

    /// The id behind the transaction before the one at `index`: no other was issued between the two. Somebody who has that
    /// transaction lacks nothing that the log does not hold, and must be able to tell so after a restart.
    fn not_before(&self, index: usize) -> Txid {
        match index.checked_sub(1) {
            Some(before) => self.txns[before].txid.next(),
            None => self.kept_after.next(),
        }
    }

    /// The first transaction that a consumer still needs: position, id (or a lower bound of it), generation. Behind the last
    /// when there is none.
    pub fn needed(&self) -> (Pos, Txid, Generation) {
        let behind = (self.head, self.last.next(), self.generation);
        let Some(low) = self.lowest_consumer() else {
            return behind;
        };
        let at = self.txns.partition_point(|t| t.txid <= low);
        match self.txns.get(at) {
            Some(t) => (t.start, self.not_before(at), t.generation),
            None => behind,
        }
    }

    /// The position before which consumers let the log be reused.
    pub fn mirror_limit(&self, keeper: bool) -> Pos {
        if keeper {
            // Nothing saved: the file keeps nothing, the consumers in memory may.
            self.saved.unwrap_or_else(|| self.needed().0)
        } else {
            self.needed().0
        }
    }

    /// Where the checkpoint tail may be now.
    pub fn checkpoint_tail(&self) -> Tail {
        let from = self.txns.partition_point(|t| t.start < self.tail.pos);
        self.txns
            .range(from..)
            .find(|t| t.pending.is_some() || t.outstanding > 0)
            .map_or(
                Tail {
                    pos: self.head,
                    tid: self.next_tid,
                },
                |t| Tail {
                    pos: t.start,
                    tid: t.tid,
                },
            )
    }

    /// The superblock with this tail is durable: what the log says of blocks before it no longer matters to replay.
    pub fn tail_is_durable(&mut self, tail: Tail) {
        if tail.pos <= self.durable_tail.pos {
            return;
        }
        let from = self
            .txns
            .partition_point(|t| t.start < self.durable_tail.pos);
        let to = self.txns.partition_point(|t| t.start < tail.pos);
        for txn in self.txns.range_mut(from..to) {
            txn.revoked = Vec::new();
            for block in std::mem::take(&mut txn.blocks) {
                if self.logged.get(&block).is_some_and(|n| n.txid == txn.txid) {
                    self.logged.remove(&block);
                }
            }
        }
        self.durable_tail = tail;
    }

    /// A transaction became durable. Its images, if any, are outstanding until published and home.
    pub fn push(&mut self, txn: Txn, zeroed: &[BlockRange]) {
        for range in zeroed {
            self.refs.written_home(*range, txn.txid);
        }
        for range in &txn.refs {
            self.refs.insert(*range, txn.txid);
        }
        self.note_logged(txn.txid, &txn.blocks, &txn.revoked);
        self.last = txn.txid;
        self.chain = txn.chain;
        self.head = txn.end;
        self.next_tid = txn.tid.wrapping_add(1);
        self.txns.push_back(txn);
    }

    fn note_logged(&mut self, txid: Txid, blocks: &[BlockNo], revoked: &[BlockNo]) {
        for block in revoked {
            if let Some(newest) = self.logged.get_mut(block) {
                newest.revoked = true;
            }
        }
        for block in blocks {
            self.logged.insert(
                *block,
                Newest {
                    txid,
                    revoked: false,
                },
            );
        }
    }

    /// Makes every transaction up to `through` visible; the ranges whose older images are void are returned.
    pub fn publish(&mut self, through: Txid) -> Vec<BlockRange> {
        let mut void = Vec::new();
        let mut at = self.txns.partition_point(|t| t.pending.is_none());
        while at < self.txns.len() && self.txns[at].txid <= through {
            void.append(&mut self.publish_at(at));
            at += 1;
        }
        void
    }

    /// Makes the transaction at `index` visible; the ranges whose older images are void are returned.
    fn publish_at(&mut self, index: usize) -> Vec<BlockRange> {
        let txn = &mut self.txns[index];
        let (txid, chain) = (txn.txid, txn.chain);
        let Some(pending) = txn.pending.take() else {
            return Vec::new();
        };
        txn.outstanding = pending.images.len();
        for range in &pending.gone {
            for block in self.overlay.blocks_in(*range) {
                if let Some(owner) = self.overlay.remove(block) {
                    self.settle(owner);
                }
            }
        }
        for (logged, image) in pending.images {
            let replaced = self.overlay.insert(Entry {
                txid,
                logged,
                image: Some(image),
            });
            if let Some(owner) = replaced {
                self.settle(owner);
            }
        }
        self.published = txid;
        self.published_chain = chain;
        pending.gone
    }

    /// One image of `owner` is home, superseded or void.
    pub fn settle(&mut self, owner: Txid) {
        if let Some(at) = self.find(owner) {
            let txn = &mut self.txns[at];
            txn.outstanding = txn.outstanding.saturating_sub(1);
        }
    }

    /// Forgets transactions of which blocks before `pos` are about to be overwritten.
    pub fn forget_before(&mut self, pos: Pos) {
        while let Some(txn) = self.txns.front()
            && txn.start < pos
        {
            let txn = self.txns.pop_front().expect("there is a front");
            assert!(
                txn.pending.is_none() && txn.outstanding == 0,
                "log space is reused behind the checkpoint tail only"
            );
            for range in &txn.refs {
                self.refs.remove(*range, txn.txid);
            }
            self.refs.forget(txn.txid);
            self.kept_after = txn.txid;
        }
    }

    /// Takes the transactions after the last published one out of the index, oldest first.
    pub fn take_unpublished(&mut self) -> Vec<Txn> {
        let from = self.txns.partition_point(|t| t.pending.is_none());
        let dropped: Vec<Txn> = self.txns.drain(from..).collect();
        if let Some(first) = dropped.first() {
            self.head = first.start;
            if self.open {
                self.next_tid = first.tid;
            }
            self.last = self.published;
            self.chain = self.published_chain;
            self.refs.clear_owners();
            self.logged.clear();
            let txns = std::mem::take(&mut self.txns);
            for txn in &txns {
                for range in &txn.refs {
                    self.refs.insert(*range, txn.txid);
                }
                self.note_logged(txn.txid, &txn.blocks, &txn.revoked);
            }
            self.txns = txns;
        }
        dropped
    }

    /// The mirror tail that could be saved now, or with `advance` false the one that is, with the segments from it on.
    pub fn saveable(&self, log: &Log, advance: bool) -> (MirrorTail, Pos, Vec<(Segment, Pos)>) {
        let (pos, txid, generation) = match self.saved {
            Some(saved) if !advance => {
                let at = self.txns.partition_point(|t| t.start < saved);
                self.txns
                    .get(at)
                    .map_or((self.head, self.last.next(), self.generation), |t| {
                        (t.start, self.not_before(at), t.generation)
                    })
            }
            _ => self.needed(),
        };
        let tail = MirrorTail {
            log_block: log.block_at(pos),
            txid,
            generation,
        };
        let segments = self
            .segments
            .iter()
            .enumerate()
            .filter(|(i, _)| self.segments.get(i + 1).is_none_or(|next| next.1 > pos))
            .map(|(_, s)| *s)
            .collect();
        (tail, pos, segments)
    }
}

/// The void ranges of a transaction: what it freed, and what it wrote home itself.
pub(super) fn gone(
    freed: &[BlockRange],
    refs: &[BlockRange],
    zeroed: &[BlockRange],
) -> Vec<BlockRange> {
    coalesce([freed, refs, zeroed].concat())
}

/// The referenced ranges of a payload, joined.
pub(super) fn ref_ranges(payload: &Payload) -> Vec<BlockRange> {
    coalesce(payload.refs.iter().map(|r| r.range).collect())
}
