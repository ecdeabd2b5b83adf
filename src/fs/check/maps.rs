//! What the check remembers: one bit for each block of the volume, eight bytes for each inode of the used parts of the inode
//! tables, and for each directory its number and where its blocks are.

use crate::ext4::{FileType, Geometry};
use crate::units::{BlockNo, BlockRange, GroupNo, Ino};

/// Which blocks something has claimed.
pub(super) struct BlockMap {
    first: u64,
    end: u64,
    bits: Vec<u8>,
}

impl BlockMap {
    pub fn new(geometry: &Geometry) -> BlockMap {
        let first = u64::from(geometry.first_data_block);
        let groups = u64::from(geometry.groups_count) * u64::from(geometry.blocks_per_group);
        BlockMap {
            first,
            end: geometry.blocks_count,
            bits: vec![0; groups.div_ceil(8) as usize],
        }
    }

    /// Claims a range; the first block of it that was claimed before. Blocks outside the volume are left out.
    pub fn claim(&mut self, range: BlockRange) -> Option<BlockNo> {
        let start = range.start.0.max(self.first);
        let end = range.end().0.min(self.end);
        let (mut bit, stop) = (
            start - self.first,
            end.saturating_sub(self.first).max(start - self.first),
        );
        let mut taken = None;
        while bit < stop {
            let low = bit % 8;
            let n = (8 - low).min(stop - bit);
            let mask = (((1u16 << n) - 1) << low) as u8;
            let byte = &mut self.bits[(bit / 8) as usize];
            if taken.is_none() && *byte & mask != 0 {
                let first = (*byte & mask).trailing_zeros();
                taken = Some(BlockNo(self.first + bit - low + u64::from(first)));
            }
            *byte |= mask;
            bit += n;
        }
        taken
    }

    /// The bytes of a group's bitmap (whose number of blocks is a multiple of eight).
    pub fn group(&self, geometry: &Geometry, group: GroupNo) -> &[u8] {
        let bytes = geometry.blocks_per_group as usize / 8;
        let at = group.0 as usize * bytes;
        &self.bits[at..(at + bytes).min(self.bits.len())]
    }

    pub fn count(&self) -> u64 {
        self.bits.iter().map(|b| u64::from(b.count_ones())).sum()
    }
}

/// What is known of an inode.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    /// Entries that name it.
    pub found: u32,
    /// `i_links_count`.
    pub links: u16,
    /// Its type, a code of [`FileType`].
    kind: u8,
    pub used: bool,
}

impl Facts {
    pub fn new(kind: FileType, links: u16) -> Facts {
        Facts {
            found: 0,
            links,
            kind: kind.code(),
            used: true,
        }
    }

    pub fn kind(&self) -> FileType {
        FileType::from_code(self.kind)
    }
}

/// The inodes of the used parts of the tables.
pub(super) struct InodeMap {
    per_group: u32,
    groups: Vec<Vec<Facts>>,
}

impl InodeMap {
    pub fn new(geometry: &Geometry) -> InodeMap {
        InodeMap {
            per_group: geometry.inodes_per_group,
            groups: vec![Vec::new(); geometry.groups_count as usize],
        }
    }

    /// Makes room for the first `inodes` of a group.
    pub fn open(&mut self, group: GroupNo, inodes: u32) {
        if let Some(of) = self.groups.get_mut(group.0 as usize) {
            of.resize(inodes as usize, Facts::default());
        }
    }

    fn at(&self, ino: Ino) -> Option<(usize, usize)> {
        let index = ino.0.checked_sub(1)?;
        Some((
            (index / self.per_group) as usize,
            (index % self.per_group) as usize,
        ))
    }

    pub fn get_mut(&mut self, ino: Ino) -> Option<&mut Facts> {
        let (group, index) = self.at(ino)?;
        self.groups
            .get_mut(group)?
            .get_mut(index)
            .filter(|facts| facts.used)
    }

    pub fn set(&mut self, ino: Ino, facts: Facts) {
        if let Some((group, index)) = self.at(ino)
            && let Some(place) = self.groups.get_mut(group).and_then(|g| g.get_mut(index))
        {
            *place = facts;
        }
    }

    /// The inodes of a group, from its first on.
    pub fn group(&self, group: GroupNo) -> &[Facts] {
        self.groups.get(group.0 as usize).map_or(&[], |g| &g[..])
    }
}

/// A run of a directory's blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// First block in the directory.
    pub at: u32,
    pub blocks: BlockRange,
}

/// A directory, and what its entries and those of others say of it.
#[derive(Debug)]
pub(super) struct Directory {
    pub ino: Ino,
    /// Seed of its blocks' checksums.
    pub seed: u32,
    pub indexed: bool,
    /// The directory that names it; 0: none has yet.
    pub parent: u32,
    /// What its ".." says; 0: there is none.
    pub dotdot: u32,
    pub runs: Runs,
}

/// A directory's blocks, sorted.
#[derive(Debug, Default)]
pub(super) struct Runs(pub Vec<Run>);

impl Runs {
    /// Blocks, holes among them included.
    pub fn len(&self) -> u32 {
        self.0.last().map_or(0, |run| {
            u32::try_from(u64::from(run.at) + run.blocks.len).unwrap_or(u32::MAX)
        })
    }

    /// Where a block of it is.
    pub fn block(&self, at: u32) -> Option<BlockNo> {
        let i = self.0.partition_point(|run| run.at <= at).checked_sub(1)?;
        let run = &self.0[i];
        let offset = u64::from(at - run.at);
        (offset < run.blocks.len).then(|| BlockNo(run.blocks.start.0 + offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_block_claimed_twice_is_named() {
        let mut map = BlockMap {
            first: 1,
            end: 100,
            bits: vec![0; 13],
        };
        let claim =
            |map: &mut BlockMap, start, len| map.claim(BlockRange::new(BlockNo(start), len));
        assert_eq!(claim(&mut map, 3, 20), None);
        assert_eq!(claim(&mut map, 23, 5), None);
        assert_eq!(claim(&mut map, 1, 2), None);
        assert_eq!(claim(&mut map, 22, 9), Some(BlockNo(22)));
        assert_eq!(claim(&mut map, 40, 1000), None);
        assert_eq!(claim(&mut map, 0, 2), Some(BlockNo(1)));
        assert_eq!(claim(&mut map, 500, 3), None);
        assert_eq!(map.count(), 30 + 60);
    }

    #[test]
    fn blocks_of_a_directory_with_a_hole() {
        let run = |at, start, len| Run {
            at,
            blocks: BlockRange::new(BlockNo(start), len),
        };
        let dir = Runs(vec![run(0, 50, 2), run(3, 70, 4)]);
        assert_eq!(dir.len(), 7);
        let at: Vec<_> = (0..8).map(|n| dir.block(n).map(|b| b.0)).collect();
        assert_eq!(
            at,
            [
                Some(50),
                Some(51),
                None,
                Some(70),
                Some(71),
                Some(72),
                Some(73),
                None
            ]
        );
    }
}
