//! Which transaction's referenced bytes a home block holds: the newest reference of each block, for every transaction
//! that is still in the log, and which of them were overwritten at home since. In memory only, bounded by the log.

use std::collections::BTreeMap;

use crate::units::{BlockNo, BlockRange, Txid};

/// Referenced ranges, disjoint; the newest reference owns a block.
#[derive(Debug, Default)]
pub struct RefMap {
    /// By first block: length and owner.
    ranges: BTreeMap<u64, (u64, Txid)>,
    /// By transaction with an overwritten reference: the newest transaction that did it.
    overwritten: BTreeMap<Txid, Txid>,
}

impl RefMap {
    /// The newest transaction that refers to the block.
    pub fn owner(&self, block: BlockNo) -> Option<Txid> {
        let (start, (len, owner)) = self.ranges.range(..=block.0).next_back()?;
        (block.0 < start + len).then_some(*owner)
    }

    /// Pieces that overlap `range`: (start, length, owner).
    fn overlaps(&self, range: BlockRange) -> Vec<(u64, u64, Txid)> {
        let end = range.end().0;
        let first = self
            .ranges
            .range(..=range.start.0)
            .next_back()
            .filter(|(start, (len, _))| *start + len > range.start.0)
            .map_or(range.start.0, |(start, _)| *start);
        self.ranges
            .range(first..end)
            .map(|(start, (len, owner))| (*start, *len, *owner))
            .collect()
    }

    /// The home blocks of `range` get the bytes of transaction `by`: older references to them no longer find theirs.
    pub fn written_home(&mut self, range: BlockRange, by: Txid) {
        for (_, _, owner) in self.overlaps(range) {
            if owner < by {
                let newest = self.overwritten.entry(owner).or_insert(by);
                *newest = (*newest).max(by);
            }
        }
    }

    /// `owner`, newer than all before, refers to `range`.
    pub fn insert(&mut self, range: BlockRange, owner: Txid) {
        self.written_home(range, owner);
        self.cut(range, |_| true);
        self.ranges.insert(range.start.0, (range.len, owner));
    }

    /// `owner` is forgotten: its pieces of `range` go.
    pub fn remove(&mut self, range: BlockRange, owner: Txid) {
        self.cut(range, |other| other == owner);
    }

    /// Forgets what overwrote `owner`.
    pub fn forget(&mut self, owner: Txid) {
        self.overwritten.remove(&owner);
    }

    /// Forgets every owner, not what was overwritten.
    pub fn clear_owners(&mut self) {
        self.ranges.clear();
    }

    fn cut(&mut self, range: BlockRange, which: impl Fn(Txid) -> bool) {
        for (start, len, owner) in self.overlaps(range) {
            if !which(owner) {
                continue;
            }
            self.ranges.remove(&start);
            if start < range.start.0 {
                self.ranges.insert(start, (range.start.0 - start, owner));
            }
            let (end, range_end) = (start + len, range.end().0);
            if end > range_end {
                self.ranges.insert(range_end, (end - range_end, owner));
            }
        }
    }

    /// The newest transaction that has to be merged with `txid` so that no reference of the merged range finds other
    /// bytes than its own; `None` when all of `txid`'s are untouched.
    pub fn overwritten_by(&self, txid: Txid) -> Option<Txid> {
        let mut end = *self.overwritten.get(&txid)?;
        let mut from = txid.next();
        while from <= end {
            let reach = self
                .overwritten
                .range(from..=end)
                .map(|(_, by)| *by)
                .max()
                .unwrap_or(end);
            from = end.next();
            end = end.max(reach);
        }
        Some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(start: u64, len: u64) -> BlockRange {
        BlockRange::new(BlockNo(start), len)
    }

    #[test]
    fn a_newer_reference_splits_an_older_one() {
        let mut map = RefMap::default();
        map.insert(r(10, 10), Txid(1));
        map.insert(r(13, 2), Txid(2));
        assert_eq!(map.owner(BlockNo(12)), Some(Txid(1)));
        assert_eq!(map.owner(BlockNo(13)), Some(Txid(2)));
        assert_eq!(map.owner(BlockNo(15)), Some(Txid(1)));
        assert_eq!(map.owner(BlockNo(20)), None);
        assert_eq!(map.overwritten_by(Txid(1)), Some(Txid(2)));
        map.remove(r(10, 10), Txid(1));
        assert_eq!(map.owner(BlockNo(12)), None);
        assert_eq!(map.owner(BlockNo(14)), Some(Txid(2)));
    }

    #[test]
    fn what_overwrote_the_overwriter_counts_too() {
        let mut map = RefMap::default();
        map.insert(r(10, 1), Txid(1));
        map.insert(r(10, 1), Txid(4));
        map.insert(r(50, 1), Txid(2));
        map.written_home(r(10, 1), Txid(6));
        map.written_home(r(50, 1), Txid(9));
        assert_eq!(map.overwritten_by(Txid(4)), Some(Txid(6)));
        assert_eq!(map.overwritten_by(Txid(1)), Some(Txid(9)));
        assert_eq!(map.overwritten_by(Txid(3)), None);
    }
}
