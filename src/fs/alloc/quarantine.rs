//! Freed blocks that must not be used again yet. Owns which they are, by transaction and by group; knows nothing of bitmaps on
//! disk. A block enters when it is freed and leaves when every mirror is past the freeing transaction.

use std::collections::BTreeMap;

use super::bits::{self, View};
use crate::fs::running::subtract;
use crate::units::{BlockRange, Txid};

#[derive(Debug, Default)]
struct Held {
    /// Bit set: in quarantine. Empty when no bit is.
    bits: Box<[u8]>,
    count: u32,
}

#[derive(Debug)]
pub(super) struct Quarantine {
    by_txid: BTreeMap<Txid, Vec<BlockRange>>,
    groups: Vec<Held>,
    total: u64,
}

impl Quarantine {
    pub(super) fn new(groups: usize) -> Quarantine {
        Quarantine {
            by_txid: BTreeMap::new(),
            groups: (0..groups).map(|_| Held::default()).collect(),
            total: 0,
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Blocks that were added for `txid`.
    pub(super) fn of(&self, txid: Txid) -> u64 {
        let ranges = self.by_txid.get(&txid);
        ranges.map_or(0, |ranges| ranges.iter().map(|r| r.len).sum())
    }

    pub(super) fn in_group(&self, group: usize) -> u32 {
        self.groups[group].count
    }

    /// The group's blocks in quarantine, as a bitmap of a block's size; `None` when there are none.
    pub(super) fn mask(&self, group: usize) -> Option<&[u8]> {
        let held = &self.groups[group];
        (held.count > 0).then_some(&*held.bits)
    }

    /// Adds `range`, which is bits `start..` of a group's bitmap of `block_size` bytes, and not in it yet.
    pub(super) fn add(
        &mut self,
        txid: Txid,
        range: BlockRange,
        group: usize,
        start: u32,
        block_size: u32,
    ) {
        let held = &mut self.groups[group];
        if held.bits.is_empty() {
            held.bits = vec![0; block_size as usize].into();
        }
        bits::fill(&mut held.bits, start, range.len as u32, true);
        held.count += range.len as u32;
        self.total += range.len;
        let ranges = self.by_txid.entry(txid).or_default();
        match ranges.last_mut() {
            Some(last) if last.end() == range.start => last.len += range.len,
            _ => ranges.push(range),
        }
    }

    /// Takes out what was freed in transactions up to `through`; `remove` must follow for each range.
    pub(super) fn take(&mut self, through: Txid) -> Vec<BlockRange> {
        let later = self.by_txid.split_off(&Txid(through.0.saturating_add(1)));
        let released = std::mem::replace(&mut self.by_txid, later);
        released.into_values().flatten().collect()
    }

    /// Takes a range out of what was added for `txid`; `remove` must follow for it.
    pub(super) fn withdraw(&mut self, txid: Txid, range: BlockRange) {
        if let Some(ranges) = self.by_txid.get_mut(&txid) {
            subtract(ranges, range);
            if ranges.is_empty() {
                self.by_txid.remove(&txid);
            }
        }
    }

    /// Completes [`Quarantine::take`] for a part of a range.
    pub(super) fn remove(&mut self, group: usize, start: u32, len: u32) {
        let held = &mut self.groups[group];
        bits::fill(&mut held.bits, start, len, false);
        held.count -= len;
        self.total -= u64::from(len);
        if held.count == 0 {
            held.bits = Box::default();
        }
    }

    /// Whether a block of the group's `start..start + len` is in quarantine; the group has `bits` blocks.
    pub(super) fn holds(&self, group: usize, start: u32, len: u32, bits: u32) -> bool {
        self.mask(group)
            .is_some_and(|mask| !View::new(mask, None, bits).is_free(start, len))
    }
}
