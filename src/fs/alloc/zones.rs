//! The volume's own blocks: superblock copies, descriptors and their reserve, bitmaps, inode tables. Owns the sorted list of
//! these ranges, and from it the block bitmap of a group that was never written. Never changes after it was made: the
//! layout of a volume is fixed while it is open. About one range per group, or per flex group.

use super::bits;
use crate::ext4::{Geometry, GroupDesc, Superblock};
use crate::fs::FsError;
use crate::journal::Image;
use crate::units::{BlockNo, BlockRange, GroupNo, coalesce};

/// Where the volume's own blocks are.
#[derive(Clone, Debug)]
pub(crate) struct Zones {
    /// Sorted, not touching.
    ranges: Vec<BlockRange>,
}

/// `FsError::Corrupt` for a block group.
pub(crate) fn corrupt_group(group: GroupNo, block: BlockNo, detail: String) -> FsError {
    FsError::Corrupt {
        what: "block group",
        ino: None,
        block: Some(block),
        detail: format!("group {group}: {detail}"),
    }
}

/// Reads every group's descriptor, in order. `get` reads one block.
pub(crate) fn descriptors(
    sb: &Superblock,
    get: &mut dyn FnMut(BlockNo) -> Result<Image, FsError>,
    each: &mut dyn FnMut(GroupNo, GroupDesc),
) -> Result<(), FsError> {
    let geometry = sb.geometry();
    let mut current: Option<(BlockNo, Image)> = None;
    for group in geometry.groups() {
        let (block, offset) = geometry.desc_location(group);
        let image = match current.take() {
            Some((at, image)) if at == block => image,
            _ => get(block)?,
        };
        let bytes = image.get(offset..).unwrap_or_default();
        let desc = GroupDesc::decode(sb, group, bytes)
            .map_err(|e| corrupt_group(group, block, e.to_string()))?;
        each(group, desc);
        current = Some((block, image));
    }
    Ok(())
}

impl Zones {
    /// From all descriptors.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] when the blocks of two groups, or a group's and the superblock's or descriptors', overlap.
    pub(crate) fn new(
        geometry: &Geometry,
        descs: impl Iterator<Item = GroupDesc>,
    ) -> Result<Zones, FsError> {
        let mut all = Vec::new();
        for (group, desc) in geometry.groups().zip(descs) {
            let base = u64::from(geometry.base_meta_blocks(group));
            if base > 0 {
                all.push(BlockRange::new(geometry.group_first_block(group), base));
            }
            all.extend(desc.metadata(geometry));
        }
        all.sort_unstable();
        for pair in all.windows(2) {
            if pair[0].overlaps(&pair[1]) {
                let group = geometry
                    .locate(pair[1].start)
                    .map_or(GroupNo(0), |(group, _)| group);
                let detail = format!("metadata at {} and at {} overlap", pair[0], pair[1]);
                return Err(corrupt_group(group, pair[1].start, detail));
            }
        }
        Ok(Zones {
            ranges: coalesce(all),
        })
    }

    /// Whether the range holds a block of the volume's own.
    pub(crate) fn overlaps(&self, range: &BlockRange) -> bool {
        let i = self.ranges.partition_point(|z| z.end() <= range.start);
        self.ranges.get(i).is_some_and(|z| z.overlaps(range))
    }

    /// The volume's own blocks within `range`, in order.
    pub(crate) fn within(&self, range: BlockRange) -> impl Iterator<Item = BlockRange> + use<'_> {
        let i = self.ranges.partition_point(|z| z.end() <= range.start);
        self.ranges[i..]
            .iter()
            .take_while(move |z| z.start < range.end())
            .map(move |z| {
                let start = z.start.max(range.start);
                let end = z.end().min(range.end());
                BlockRange::new(start, end.0 - start.0)
            })
    }

    /// Number of the volume's own blocks.
    pub(crate) fn count(&self) -> u64 {
        self.ranges.iter().map(|r| r.len).sum()
    }

    /// Marks the volume's own blocks of a group as in use.
    pub(crate) fn mark(&self, geometry: &Geometry, group: GroupNo, bitmap: &mut [u8]) {
        let blocks = geometry.group_blocks(group);
        for zone in self.within(blocks) {
            let start = (zone.start.0 - blocks.start.0) as u32;
            bits::fill(bitmap, start, zone.len as u32, true);
        }
    }

    /// The bitmap of a group in which nothing but the volume's own blocks is in use; the bits behind the group's last block
    /// are set.
    pub(crate) fn synthesise(&self, geometry: &Geometry, group: GroupNo) -> Vec<u8> {
        let mut bitmap = vec![0; geometry.block_size as usize];
        self.mark(geometry, group, &mut bitmap);
        let blocks = geometry.blocks_in_group(group);
        let bits = (bitmap.len() * 8) as u32;
        bits::fill(&mut bitmap, blocks, bits.saturating_sub(blocks), true);
        bitmap
    }
}
