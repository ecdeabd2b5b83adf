//! The running transaction: what has changed since the last commit was started, and how much log it will take. Owns the
//! collected changes; never does I/O, never decides when to commit.
//!
//! Invariants: an image is of a block that this transaction has not freed; a zeroed range holds no block that was given
//! contents later in the same transaction.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use crate::journal::{Hint, Image, Reference, Transaction};
use crate::units::{BlockNo, BlockRange, Ino, Txid, coalesce};

/// Names are sent as hints up to this many bytes in one transaction; beyond it, one hint says that everything changed.
const MAX_NAME_BYTES: usize = 256 << 10;

/// Changes that are not yet being committed.
pub(crate) struct Running {
    /// The id it will have.
    pub txid: Txid,
    /// The newest contents of every changed block.
    pub images: BTreeMap<BlockNo, Image>,
    /// Those of `images` that are data of files.
    pub data: HashSet<BlockNo>,
    /// Fresh data that is at home.
    pub refs: Vec<Reference>,
    /// Blocks that were allocated and zeroed at home.
    pub zeroed: Vec<BlockRange>,
    /// Blocks that were freed.
    pub freed: Vec<BlockRange>,
    freed_blocks: u64,
    inodes: BTreeSet<Ino>,
    names: HashSet<(Ino, Box<[u8]>)>,
    name_bytes: usize,
    /// Monotonic time of the first change.
    pub since: Option<Duration>,
}

impl Running {
    /// An empty transaction.
    pub fn new(txid: Txid) -> Running {
        Running {
            txid,
            images: BTreeMap::new(),
            data: HashSet::new(),
            refs: Vec::new(),
            zeroed: Vec::new(),
            freed: Vec::new(),
            freed_blocks: 0,
            inodes: BTreeSet::new(),
            names: HashSet::new(),
            name_bytes: 0,
            since: None,
        }
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.since.is_none()
    }

    /// Whether it gives `block` other contents, or another use.
    pub fn changes(&self, block: BlockNo) -> bool {
        let refs = self.refs.iter().map(|reference| &reference.range);
        let mut ranges = refs.chain(&self.zeroed).chain(&self.freed);
        self.images.contains_key(&block) || ranges.any(|range| range.contains(block))
    }

    /// Blocks it will take in a log with blocks of `block_size` bytes, estimated from above.
    pub fn log_blocks(&self, block_size: usize) -> usize {
        let payload = self.refs.len() * 24
            + (self.zeroed.len() + self.freed.len()) * 16
            + self.inodes.len() * 8
            + self.names.len() * 16
            + self.name_bytes;
        // A revoke is written only for freed blocks that are in the log; 8 bytes each.
        let revokes = self.freed_blocks as usize * 8;
        let records = payload.saturating_add(revokes) / (block_size - 64) + 3;
        // The superblock joins at the end; a descriptor holds at least block_size / 32 tags.
        self.images.len() + 1 + self.images.len() / (block_size / 32) + records + 2
    }

    /// Takes over what one operation has collected.
    pub fn absorb(&mut self, op: Collected, now: Duration) {
        self.since.get_or_insert(now);
        self.refs.extend(op.refs);
        for range in op.given_contents {
            subtract(&mut self.zeroed, range);
        }
        self.zeroed.extend(op.zeroed);
        self.freed_blocks += op.freed.iter().map(|r| r.len).sum::<u64>();
        self.freed.extend(op.freed);
        self.inodes.extend(op.inodes.keys());
        for (parent, name) in op.names {
            if self.name_bytes < MAX_NAME_BYTES {
                let len = name.len();
                if self.names.insert((parent, name)) {
                    self.name_bytes += len;
                }
            }
        }
    }

    /// The transaction as the journal takes it.
    pub fn into_transaction(self) -> Transaction {
        let mut hints: Vec<Hint> = self.inodes.into_iter().map(Hint::Inode).collect();
        if self.name_bytes >= MAX_NAME_BYTES {
            hints.push(Hint::EverythingChanged);
        } else {
            let names = self.names.into_iter();
            hints.extend(names.map(|(parent, name)| Hint::Entry {
                parent,
                name: name.into_vec(),
            }));
        }
        Transaction {
            txid: self.txid,
            images: self.images,
            refs: self.refs,
            zeroed: coalesce(self.zeroed),
            freed: coalesce(self.freed),
            hints,
            chain: 0,
        }
    }
}

/// What one operation adds to the running transaction beside images.
#[derive(Default)]
pub(crate) struct Collected {
    /// Fresh data at home.
    pub refs: Vec<Reference>,
    /// Allocated and zeroed at home.
    pub zeroed: Vec<BlockRange>,
    /// Given contents, by value or by reference: no longer just zeros.
    pub given_contents: Vec<BlockRange>,
    /// Freed.
    pub freed: Vec<BlockRange>,
    /// Inodes changed; whether in a way that fdatasync must make durable.
    pub inodes: BTreeMap<Ino, bool>,
    /// Names touched, by directory.
    pub names: Vec<(Ino, Box<[u8]>)>,
}

impl Collected {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.refs.is_empty()
            && self.zeroed.is_empty()
            && self.freed.is_empty()
            && self.inodes.is_empty()
            && self.names.is_empty()
    }
}

/// Takes the blocks of `cut` out of `ranges`.
pub(crate) fn subtract(ranges: &mut Vec<BlockRange>, cut: BlockRange) {
    if !ranges.iter().any(|r| r.overlaps(&cut)) {
        return;
    }
    let mut rest = Vec::with_capacity(ranges.len() + 1);
    for range in ranges.drain(..) {
        if !range.overlaps(&cut) {
            rest.push(range);
            continue;
        }
        if range.start < cut.start {
            rest.push(BlockRange::new(range.start, cut.start.0 - range.start.0));
        }
        if cut.end() < range.end() {
            rest.push(BlockRange::new(cut.end(), range.end().0 - cut.end().0));
        }
    }
    *ranges = rest;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtract_cuts_heads_tails_and_middles() {
        let r = |s, l| BlockRange::new(BlockNo(s), l);
        let mut ranges = vec![r(10, 10), r(30, 5), r(50, 1)];
        subtract(&mut ranges, r(12, 2));
        assert_eq!(ranges, vec![r(10, 2), r(14, 6), r(30, 5), r(50, 1)]);
        subtract(&mut ranges, r(18, 14));
        assert_eq!(ranges, vec![r(10, 2), r(14, 4), r(32, 3), r(50, 1)]);
        subtract(&mut ranges, r(0, 100));
        assert!(ranges.is_empty());
    }
}
