//! A set of blocks, kept as disjoint ranges. Memory is in proportion to the ranges, not to the blocks.

use std::collections::BTreeMap;

use crate::units::{BlockNo, BlockRange};

/// Disjoint, non-adjacent ranges in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Start -> end (exclusive).
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Whether there is no block in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Number of blocks.
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = BlockRange> + '_ {
        self.ranges
            .iter()
            .map(|(start, end)| BlockRange::new(BlockNo(*start), end - start))
    }

    /// Adds the blocks of `range`.
    pub fn insert(&mut self, range: BlockRange) {
        if range.len == 0 {
            return;
        }
        let (mut start, mut end) = (range.start.0, range.end().0);
        let joined: Vec<u64> = self
            .ranges
            .range(..=end)
            .rev()
            .take_while(|(_, e)| **e >= start)
            .map(|(s, _)| *s)
            .collect();
        for s in joined {
            let e = self.ranges.remove(&s).expect("found above");
            start = start.min(s);
            end = end.max(e);
        }
        self.ranges.insert(start, end);
    }

    /// Takes the blocks of `range` out.
    pub fn remove(&mut self, range: BlockRange) {
        for hit in self.within(range) {
            let (start, end) = self
                .ranges
                .range(..=hit.start.0)
                .next_back()
                .map(|(s, e)| (*s, *e))
                .expect("a hit lies in a range");
            self.ranges.remove(&start);
            if start < hit.start.0 {
                self.ranges.insert(start, hit.start.0);
            }
            if hit.end().0 < end {
                self.ranges.insert(hit.end().0, end);
            }
        }
    }

    /// The parts of the set that lie in `range`.
    pub fn within(&self, range: BlockRange) -> Vec<BlockRange> {
        if range.len == 0 {
            return Vec::new();
        }
        let mut hits: Vec<BlockRange> = self
            .ranges
            .range(..range.end().0)
            .rev()
            .take_while(|(_, end)| **end > range.start.0)
            .map(|(s, e)| {
                let start = (*s).max(range.start.0);
                BlockRange::new(BlockNo(start), (*e).min(range.end().0) - start)
            })
            .collect();
        hits.reverse();
        hits
    }

    /// Whether a block of `range` is in the set.
    pub fn overlaps(&self, range: BlockRange) -> bool {
        range.len > 0
            && self
                .ranges
                .range(..range.end().0)
                .next_back()
                .is_some_and(|(_, end)| *end > range.start.0)
    }
}

impl FromIterator<BlockRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = BlockRange>>(ranges: I) -> RangeSet {
        let mut set = RangeSet::default();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_set_of_blocks(steps in proptest::collection::vec((any::<bool>(), 0u64..64, 0u64..12), 1..60)) {
            let mut set = RangeSet::default();
            let mut model = BTreeSet::new();
            for (add, start, len) in steps {
                let range = BlockRange::new(BlockNo(start), len);
                prop_assert_eq!(set.overlaps(range), range.blocks().any(|b| model.contains(&b)));
                if add {
                    set.insert(range);
                    model.extend(range.blocks());
                } else {
                    set.remove(range);
                    for block in range.blocks() {
                        model.remove(&block);
                    }
                }
                let flat: Vec<BlockNo> = set.iter().flat_map(|r| r.blocks()).collect();
                prop_assert_eq!(&flat, &model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.count(), model.len() as u64);
                let ranges: Vec<BlockRange> = set.iter().collect();
                prop_assert!(ranges.windows(2).all(|w| w[0].end() < w[1].start));
            }
        }
    }
}
