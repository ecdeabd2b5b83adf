//! Which blocks of a volume are allocated, from committed bitmaps: what the bulk replicator copies and verification compares.
//!
//! Owns nothing that changes: it reads descriptors and bitmaps through [`Committed`] (the log's overlay over home) and answers for
//! one group at a time, so that memory does not grow with the volume (but for one range per group or flex group: where the
//! volume's own blocks are). Never looks at the running transaction, never writes.
//!
//! The answer is a superset that is safe to copy: superblock copies, descriptors and their reserve, bitmaps and inode tables
//! are always in it, initialised or not, and so is the boot block before the first group. The journal's blocks are in it too
//! (the caller leaves them out).

use crate::ext4::{Geometry, GroupDesc, Superblock};
use crate::fs::FsError;
use crate::fs::alloc::bits::{Run, View};
use crate::fs::alloc::check_block_bitmap;
use crate::fs::alloc::zones::{Zones, corrupt_group, descriptors};
use crate::journal::Image;
use crate::units::{BlockNo, BlockRange, GroupNo, coalesce};

/// Descriptor and bitmap are read one after the other: a commit in between makes them disagree. That often it is tried again.
const ATTEMPTS: u32 = 8;

/// Reading the newest committed contents of blocks.
pub trait Committed {
    /// One block.
    fn read_block(&self, block: BlockNo) -> Result<Image, FsError>;
}

impl<F: Fn(BlockNo) -> Result<Image, FsError>> Committed for F {
    fn read_block(&self, block: BlockNo) -> Result<Image, FsError> {
        self(block)
    }
}

/// Lists the allocated blocks of a volume.
#[derive(Clone, Debug)]
pub struct Allocation {
    sb: Superblock,
    geometry: Geometry,
    zones: Zones,
}

impl Allocation {
    /// Reads every descriptor once. The layout does not change afterwards; bitmaps and counts may.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] when a descriptor is damaged or two groups claim the same block; whatever reading returns.
    pub fn load(sb: &Superblock, committed: &dyn Committed) -> Result<Allocation, FsError> {
        let mut descs = Vec::new();
        let mut get = |block| committed.read_block(block);
        descriptors(sb, &mut get, &mut |_, desc| descs.push(desc))?;
        let geometry = sb.geometry();
        Ok(Allocation {
            sb: sb.clone(),
            geometry,
            zones: Zones::new(&geometry, descs.into_iter())?,
        })
    }

    /// The allocated blocks of a group, in order, as few ranges as can be.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] when the descriptor or the bitmap is damaged, or they disagree.
    pub fn group(
        &self,
        committed: &dyn Committed,
        group: GroupNo,
    ) -> Result<Vec<BlockRange>, FsError> {
        let mut attempt = 1;
        loop {
            match self.try_group(committed, group) {
                Err(FsError::Corrupt { .. }) if attempt < ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }

    fn try_group(
        &self,
        committed: &dyn Committed,
        group: GroupNo,
    ) -> Result<Vec<BlockRange>, FsError> {
        if group.0 >= self.geometry.groups_count {
            return Ok(Vec::new());
        }
        let (block, offset) = self.geometry.desc_location(group);
        let image = committed.read_block(block)?;
        let bytes = image.get(offset..).unwrap_or_default();
        let desc = GroupDesc::decode(&self.sb, group, bytes)
            .map_err(|e| corrupt_group(group, block, e.to_string()))?;
        let blocks = self.geometry.group_blocks(group);
        if desc.block_uninit(&self.sb) {
            let ranges: Vec<_> = self.zones.within(blocks).collect();
            let used: u64 = ranges.iter().map(|r| r.len).sum();
            let free = u64::from(desc.bg_free_blocks_count());
            if used + free != blocks.len {
                let detail = format!(
                    "uninitialised with {used} of {} blocks in use, the descriptor says {free} are free",
                    blocks.len
                );
                return Err(corrupt_group(group, block, detail));
            }
            return Ok(ranges);
        }
        let place = desc.bg_block_bitmap();
        if !self.zones.overlaps(&BlockRange::new(place, 1)) {
            return Err(corrupt_group(group, block, "the block bitmap moved".into()));
        }
        let bitmap = committed.read_block(place)?;
        check_block_bitmap(&self.sb, &self.zones, group, &desc, &bitmap)?;
        // Free runs of the complement are the runs in use.
        let used: Vec<u8> = bitmap.iter().map(|byte| !byte).collect();
        let ranges = View::new(&used, None, blocks.len as u32)
            .runs()
            .map(|Run { start, len }| {
                BlockRange::new(BlockNo(blocks.start.0 + u64::from(start)), len.into())
            })
            .collect();
        Ok(ranges)
    }

    /// The allocated blocks within `range`, one group after the other, each read when the iterator gets there. Ranges are in
    /// order and do not overlap; those of different groups are not joined. Ends after the first error.
    pub fn ranges<'a>(
        &'a self,
        committed: &'a dyn Committed,
        range: BlockRange,
    ) -> impl Iterator<Item = Result<BlockRange, FsError>> + use<'a> {
        let first_block = u64::from(self.geometry.first_data_block);
        let end = range.end().0.min(self.geometry.blocks_count);
        let clip = move |r: BlockRange| {
            let start = r.start.0.max(range.start.0);
            let stop = r.end().0.min(end);
            (start < stop).then(|| BlockRange::new(BlockNo(start), stop - start))
        };
        let boot = BlockRange::new(BlockNo(0), first_block);
        let groups = if range.start.0 >= end || end <= first_block {
            0..0
        } else {
            let group = |block: u64| {
                let located = self.geometry.locate(BlockNo(block));
                located.map_or(0, |(group, _)| group.0)
            };
            group(range.start.0)..group(end - 1) + 1
        };
        let of_groups = groups
            .map(move |g| self.group(committed, GroupNo(g)))
            .flat_map(|result| {
                let (ranges, error) = match result {
                    Ok(ranges) => (ranges, None),
                    Err(error) => (Vec::new(), Some(error)),
                };
                ranges.into_iter().map(Ok).chain(error.map(Err))
            });
        let mut failed = false;
        std::iter::once(Ok(boot))
            .chain(of_groups)
            .take_while(move |item| !std::mem::replace(&mut failed, item.is_err()))
            .filter_map(move |item| match item {
                Ok(found) => clip(found).map(Ok),
                Err(error) => Some(Err(error)),
            })
    }

    /// As [`Allocation::ranges`], all at once and joined.
    ///
    /// # Errors
    /// As [`Allocation::group`].
    pub fn allocated(
        &self,
        committed: &dyn Committed,
        range: BlockRange,
    ) -> Result<Vec<BlockRange>, FsError> {
        let ranges: Result<Vec<_>, _> = self.ranges(committed, range).collect();
        Ok(coalesce(ranges?))
    }

    /// The volume's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }
}
