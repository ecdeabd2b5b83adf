//! Bitmaps of blocks and inodes: one block a group, a set bit is in use, the first bit is the lowest of byte 0.
//!
//! Owns bit operations, padding, checksums, and the bitmaps that were never written (BLOCK_UNINIT, INODE_UNINIT) and
//! have to be synthesised. Bits behind the group's end are padding and set to 1, so that no search ever finds them.

use crate::ext4::checksum::crc32c_raw;
use crate::ext4::{Corrupt, Geometry, GroupDesc, Superblock};
use crate::units::{BlockRange, GroupNo};

/// Whether a bit is set. Bits behind the end of `bitmap` are in use.
pub fn test(bitmap: &[u8], bit: u32) -> bool {
    bitmap
        .get(bit as usize / 8)
        .is_none_or(|byte| byte >> (bit % 8) & 1 != 0)
}

/// Sets a bit; returns whether it was set before. The bit must exist.
pub fn set(bitmap: &mut [u8], bit: u32) -> bool {
    let byte = &mut bitmap[bit as usize / 8];
    let mask = 1 << (bit % 8);
    let before = *byte & mask != 0;
    *byte |= mask;
    before
}

/// Clears a bit; returns whether it was set before. The bit must exist.
pub fn clear(bitmap: &mut [u8], bit: u32) -> bool {
    let byte = &mut bitmap[bit as usize / 8];
    let mask = 1 << (bit % 8);
    let before = *byte & mask != 0;
    *byte &= !mask;
    before
}

/// Sets `len` bits from `start` on; returns how many of them were clear. The bits must exist.
pub fn set_range(bitmap: &mut [u8], start: u32, len: u32) -> u32 {
    let mut changed = 0;
    for_each_byte(start, len, |at, mask| {
        changed += (!bitmap[at] & mask).count_ones();
        bitmap[at] |= mask;
    });
    changed
}

/// Clears `len` bits from `start` on; returns how many of them were set. The bits must exist.
pub fn clear_range(bitmap: &mut [u8], start: u32, len: u32) -> u32 {
    let mut changed = 0;
    for_each_byte(start, len, |at, mask| {
        changed += (bitmap[at] & mask).count_ones();
        bitmap[at] &= !mask;
    });
    changed
}

/// Number of set bits among `len` bits from `start` on. The bits must exist.
pub fn count_ones(bitmap: &[u8], start: u32, len: u32) -> u32 {
    let mut ones = 0;
    for_each_byte(start, len, |at, mask| {
        ones += (bitmap[at] & mask).count_ones()
    });
    ones
}

/// Number of clear bits among the first `bits`, which must exist.
pub fn count_free(bitmap: &[u8], bits: u32) -> u32 {
    bits - count_ones(bitmap, 0, bits)
}

/// Calls `each` with every byte that the bits touch, and which of its bits.
fn for_each_byte(start: u32, len: u32, mut each: impl FnMut(usize, u8)) {
    let (mut bit, end) = (u64::from(start), u64::from(start) + u64::from(len));
    while bit < end {
        let low = bit % 8;
        let n = (8 - low).min(end - bit);
        each((bit / 8) as usize, (((1u16 << n) - 1) << low) as u8);
        bit += n;
    }
}

/// First bit in `from..end` that is `value`. Bits behind the bitmap's end do not count.
fn next(bitmap: &[u8], from: u32, end: u32, value: bool) -> Option<u32> {
    let end = u64::from(end).min(bitmap.len() as u64 * 8);
    let mut bit = u64::from(from);
    while bit < end {
        let at = (bit / 8) as usize;
        // Eight bytes at once where they are there and aligned to a byte, else one.
        let (word, width) = match bitmap.get(at..at + 8) {
            Some(bytes) if bit.is_multiple_of(8) => (crate::ext4::layout::get::<u64>(bytes, 0), 64),
            _ => (u64::from(bitmap[at]) >> (bit % 8), 8 - bit % 8),
        };
        let word = if value { word } else { !word };
        let skip = u64::from(word.trailing_zeros());
        if skip < width {
            let found = bit + skip;
            return (found < end).then_some(found as u32);
        }
        bit += width;
    }
    None
}

/// First clear bit in `from..end`.
pub fn next_zero(bitmap: &[u8], from: u32, end: u32) -> Option<u32> {
    next(bitmap, from, end, false)
}

/// First set bit in `from..end`.
pub fn next_one(bitmap: &[u8], from: u32, end: u32) -> Option<u32> {
    next(bitmap, from, end, true)
}

/// The runs of clear bits in `from..end`: (start, length), in order.
pub fn free_runs(bitmap: &[u8], from: u32, end: u32) -> impl Iterator<Item = (u32, u32)> {
    runs(bitmap, from, end, false)
}

/// The runs of set bits in `from..end`: (start, length), in order.
pub fn used_runs(bitmap: &[u8], from: u32, end: u32) -> impl Iterator<Item = (u32, u32)> {
    runs(bitmap, from, end, true)
}

fn runs(bitmap: &[u8], from: u32, end: u32, value: bool) -> impl Iterator<Item = (u32, u32)> {
    let end = u64::from(end).min(bitmap.len() as u64 * 8) as u32;
    let mut from = from;
    std::iter::from_fn(move || {
        let start = next(bitmap, from, end, value)?;
        let stop = next(bitmap, start, end, !value).unwrap_or(end);
        from = stop;
        Some((start, stop - start))
    })
}

/// The first run of at least `min` clear bits in `from..end`, cut to `max`.
pub fn find_run(bitmap: &[u8], from: u32, end: u32, min: u32, max: u32) -> Option<(u32, u32)> {
    free_runs(bitmap, from, end)
        .find(|run| run.1 >= min)
        .map(|(start, len)| (start, len.min(max)))
}

/// Sets every bit from `bits` on (kernel: `ext4_mark_bitmap_end`).
pub fn pad(bitmap: &mut [u8], bits: u32) {
    let all = (bitmap.len() * 8) as u32;
    set_range(bitmap, bits.min(all), all.saturating_sub(bits));
}

/// A group's block bitmap as it is before anybody wrote it (kernel: `ext4_init_block_bitmap`): set are the group's
/// copies of superblock and descriptors, whatever bitmaps and inode tables lie in the group, and the padding.
///
/// `descs` are this group's descriptor and those of other groups that may have metadata here: its flex group
/// ([`Geometry::flex_group`]). The kernel looks at the group's own only, since it never flags a group that holds
/// another's metadata; a foreign tool's mistake there must not make us hand out an inode table.
pub fn synthesise_blocks<'a>(
    geometry: &Geometry,
    group: GroupNo,
    descs: impl IntoIterator<Item = &'a GroupDesc>,
) -> Vec<u8> {
    let mut bitmap = vec![0; geometry.block_size as usize];
    let all = (bitmap.len() * 8) as u32;
    let ratio = geometry.cluster_ratio;
    let blocks = geometry.group_blocks(group);
    let clusters = geometry.blocks_in_group(group).div_ceil(ratio);
    let base = geometry.base_meta_blocks(group).div_ceil(ratio);
    set_range(&mut bitmap, 0, base.min(all));
    for desc in descs {
        for range in desc.metadata(geometry) {
            if let Some((start, len)) = clip(range, blocks) {
                let first = start / ratio;
                let last = (start + len - 1) / ratio;
                set_range(&mut bitmap, first, last - first + 1);
            }
        }
    }
    pad(&mut bitmap, clusters);
    bitmap
}

/// The part of `range` inside `group`, as (index in the group, length).
fn clip(range: BlockRange, group: BlockRange) -> Option<(u32, u32)> {
    let start = range.start.0.max(group.start.0);
    let end = range.start.0.checked_add(range.len)?.min(group.end().0);
    (start < end).then(|| ((start - group.start.0) as u32, (end - start) as u32))
}

/// A group's inode bitmap as it is before anybody wrote it: nothing but padding.
pub fn synthesise_inodes(geometry: &Geometry) -> Vec<u8> {
    let mut bitmap = vec![0; geometry.block_size as usize];
    pad(&mut bitmap, geometry.inodes_per_group);
    bitmap
}

/// Which of a group's two bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of blocks (clusters).
    Blocks,
    /// Of inodes.
    Inodes,
}

/// crc32c of a bitmap; over whole bytes of the bits that a full group uses. `None` without metadata_csum.
pub fn checksum(sb: &Superblock, kind: Kind, bitmap: &[u8]) -> Option<u32> {
    if !sb.has_metadata_csum() {
        return None;
    }
    let bits = match kind {
        Kind::Blocks => sb.s_blocks_per_group() / sb.cluster_ratio(),
        Kind::Inodes => sb.s_inodes_per_group(),
    };
    let bytes = (bits as usize / 8).min(bitmap.len());
    Some(crc32c_raw(sb.csum_seed(), &bitmap[..bytes]))
}

/// Compares a bitmap with the checksum in the descriptor (of which there is only the low half in 32 bytes).
pub fn verify(sb: &Superblock, desc: &GroupDesc, kind: Kind, bitmap: &[u8]) -> Result<(), Corrupt> {
    let Some(mut computed) = checksum(sb, kind, bitmap) else {
        return Ok(());
    };
    let (what, found) = match kind {
        Kind::Blocks => ("block bitmap", desc.bg_block_bitmap_csum()),
        Kind::Inodes => ("inode bitmap", desc.bg_inode_bitmap_csum()),
    };
    if sb.desc_size() < 64 {
        computed &= 0xffff;
    }
    Corrupt::checksum(what, computed, found)
}

/// Stores the checksum of a bitmap in the descriptor; the descriptor's own is to be updated afterwards.
pub fn update(sb: &Superblock, desc: &mut GroupDesc, kind: Kind, bitmap: &[u8]) {
    if let Some(sum) = checksum(sb, kind, bitmap) {
        match kind {
            Kind::Blocks => desc.set_bg_block_bitmap_csum(sum),
            Kind::Inodes => desc.set_bg_inode_bitmap_csum(sum),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bits_are_lowest_first() {
        let mut map = [0u8; 4];
        assert!(!set(&mut map, 9));
        assert_eq!(map, [0, 2, 0, 0]);
        assert!(test(&map, 9) && !test(&map, 8) && test(&map, 32));
        assert!(clear(&mut map, 9));
        assert_eq!(set_range(&mut map, 6, 12), 12);
        assert_eq!(map, [0xC0, 0xFF, 0x03, 0]);
        assert_eq!(clear_range(&mut map, 0, 8), 2);
        pad(&mut map, 30);
        assert_eq!(map, [0, 0xFF, 0x03, 0xC0]);
        assert_eq!(find_run(&map, 0, 32, 9, 5), Some((18, 5)));
        assert_eq!(count_free(&map, 32), 20);
    }

    proptest! {
        #[test]
        fn searches_agree_with_a_bit_at_a_time(
            map in prop::collection::vec(prop_oneof![Just(0u8), Just(255u8), any::<u8>()], 0..40),
            from in 0u32..340, end in 0u32..340,
        ) {
            let within = |v: bool| (from..end.min(map.len() as u32 * 8)).filter(|&b| test(&map, b) == v).collect::<Vec<_>>();
            let (free, used) = (within(false), within(true));
            prop_assert_eq!(next_zero(&map, from, end), free.first().copied());
            prop_assert_eq!(next_one(&map, from, end), used.first().copied());
            let flat = |runs: Vec<(u32, u32)>| runs.into_iter().flat_map(|(s, l)| s..s + l).collect::<Vec<_>>();
            prop_assert_eq!(flat(free_runs(&map, from, end).collect()), free);
            prop_assert_eq!(flat(used_runs(&map, from, end).collect()), used);
        }

        #[test]
        fn ranges_agree_with_a_bit_at_a_time(map in prop::collection::vec(any::<u8>(), 30), start in 0u32..200, len in 0u32..40) {
            let (mut a, mut b) = (map.clone(), map.clone());
            let n = (start..start + len).filter(|&bit| !set(&mut b, bit)).count() as u32;
            prop_assert_eq!(set_range(&mut a, start, len), n);
            prop_assert_eq!(&a, &b);
            prop_assert_eq!(count_ones(&map, start, len), len - n);
            let n = (start..start + len).filter(|&bit| clear(&mut b, bit)).count() as u32;
            prop_assert_eq!(clear_range(&mut a, start, len), n);
            prop_assert_eq!(a, b);
        }
    }
}
