//! Literal bytes (of mke2fs 1.47.0, in tests/data), the classification of features, and superblocks that lie.

use proptest::prelude::*;

use super::*;
use crate::ext4::features::{Access, GUARD_MESSAGE, access};
use crate::ext4::group_desc::EXT4_BG_BLOCK_UNINIT;
use crate::ext4::layout::{get, put};
use crate::ext4::{GroupDesc, Inode, LOCKSTEP_INCOMPAT_GUARD, Mmp, bitmap};
use crate::units::{BlockNo, BlockRange, GroupNo, Ino};

const BYTES: &[u8; 1024] = include_bytes!("../../../tests/data/superblock-1.47.0.bin");
const DESCS: &[u8; 192] = include_bytes!("../../../tests/data/descriptors-1.47.0.bin");
const ROOT: &[u8; 256] = include_bytes!("../../../tests/data/root-inode-1.47.0.bin");

fn known() -> Superblock {
    Superblock::decode(BYTES).unwrap()
}

/// The known superblock with other bytes; checksummed if that still makes sense.
fn changed(change: impl FnOnce(&mut [u8; 1024])) -> Result<Superblock, Corrupt> {
    let mut bytes = *BYTES;
    change(&mut bytes);
    let sum = crc32c_raw(!0, &bytes[..0x3FC]);
    put(&mut bytes, 0x3FC, sum);
    Superblock::decode(&bytes)
}

#[test]
fn a_superblock_as_dumpe2fs_prints_it() {
    let sb = known();
    assert_eq!(sb.s_inodes_count(), 2040);
    assert_eq!(sb.s_blocks_count(), 20480);
    assert_eq!(sb.s_free_blocks_count(), 18603);
    assert_eq!(sb.s_free_inodes_count(), 2029);
    assert_eq!(sb.s_reserved_gdt_blocks(), 159);
    assert_eq!(
        (
            sb.block_size(),
            sb.groups_count(),
            sb.inode_size(),
            sb.desc_size()
        ),
        (1024, 3, 256, 64)
    );
    assert_eq!(sb.s_checksum(), 0x0a32_5c4d);
    assert_eq!(sb.s_mkfs_time(), 1_700_000_000);
    assert_eq!(&sb.s_volume_name()[..8], b"fixture\0");
    assert_eq!(sb.s_uuid()[..4], [0x11, 0x22, 0x33, 0x44]);
    assert_eq!(sb.s_hash_seed()[0], 0x3322_1100);
    assert_eq!(sb.csum_seed(), crc32c_raw(!0, &sb.s_uuid()));
    assert_eq!(access(&sb), Access::ReadWrite);
    assert!(sb.has_metadata_csum() && sb.has_64bit() && sb.has_flex_bg() && !sb.has_recover());
}

#[test]
fn descriptors_and_an_inode_as_dumpe2fs_and_debugfs_print_them() {
    let sb = known();
    let desc = |n: usize| GroupDesc::decode(&sb, GroupNo(n as u32), &DESCS[n * 64..]).unwrap();
    let first = desc(0);
    assert_eq!(first.bg_block_bitmap(), BlockNo(162));
    assert_eq!(first.bg_inode_table(), BlockNo(168));
    assert_eq!(first.bg_block_bitmap_csum(), 0xe616_22c8);
    assert_eq!(first.bg_inode_bitmap_csum(), 0x72a3_d8d3);
    assert_eq!(
        (first.bg_free_blocks_count(), first.bg_free_inodes_count()),
        (7501, 669)
    );
    assert_eq!(
        (first.bg_used_dirs_count(), first.bg_itable_unused()),
        (2, 669)
    );
    assert_eq!(first.bg_checksum(), 0xb0ec);
    assert!(desc(1).inode_uninit(&sb) && !desc(1).block_uninit(&sb) && desc(1).inode_zeroed());
    // A descriptor of another group has another checksum.
    assert!(GroupDesc::decode(&sb, GroupNo(0), &DESCS[64..]).is_err());

    let root = Inode::decode(&sb, Ino(2), ROOT).unwrap();
    assert_eq!(
        (root.i_mode(), root.i_links_count(), root.i_blocks(&sb)),
        (0o40755, 3, 2)
    );
    assert_eq!(root.i_mtime(), (1_700_000_000, 0));
    assert_eq!(root.i_extra_isize(), 32);
    assert_eq!(root.checksum(sb.csum_seed(), Ino(2)), 0xdf59_d250);
    assert!(Inode::decode(&sb, Ino(3), ROOT).is_err());
}

#[test]
fn an_uninitialised_group_has_its_own_metadata_and_padding() {
    let sb = known();
    let geometry = sb.geometry();
    let mut descs: Vec<GroupDesc> = (0..3)
        .map(|n: usize| GroupDesc::decode(&sb, GroupNo(n as u32), &DESCS[n * 64..]).unwrap())
        .collect();
    // Group 2 is short (4095 blocks) and has no superblock; pretend that its own bitmap lies in it.
    let map = bitmap::synthesise_blocks(&geometry, GroupNo(2), &descs);
    assert_eq!(
        bitmap::used_runs(&map, 0, 8192).collect::<Vec<_>>(),
        [(4095, 4097)]
    );
    let mut raw = DESCS[128..].to_vec();
    put(&mut raw, 0, 16385u32 + 10);
    descs[2] = GroupDesc::decode_unverified(&sb, &raw).unwrap();
    descs[2].set_bg_flags(EXT4_BG_BLOCK_UNINIT);
    let map = bitmap::synthesise_blocks(&geometry, GroupNo(2), &descs);
    assert_eq!(bitmap::used_runs(&map, 0, 8192).next(), Some((10, 1)));
    // Group 1 has copies of superblock and descriptors, and room for more.
    let map = bitmap::synthesise_blocks(&geometry, GroupNo(1), &descs);
    assert_eq!(
        bitmap::used_runs(&map, 0, 8192).collect::<Vec<_>>(),
        [(0, 161)]
    );
    let inodes = bitmap::synthesise_inodes(&geometry);
    assert_eq!(
        bitmap::used_runs(&inodes, 0, 8192).collect::<Vec<_>>(),
        [(680, 7512)]
    );
    assert_eq!(
        geometry.base_meta(GroupNo(1)).reserved,
        BlockRange::new(BlockNo(8195), 159)
    );
}

fn with_features(compat: u32, incompat: u32, ro_compat: u32) -> Access {
    let sb = changed(|bytes| {
        for (at, more) in [(0x5C, compat), (0x60, incompat), (0x64, ro_compat)] {
            let word: u32 = get(bytes, at);
            put(bytes, at, word | more);
        }
    });
    access(&sb.unwrap())
}

#[test]
fn features_and_what_they_allow() {
    for (bit, name) in [
        (0x1, "compression"),
        (0x8, "journal_dev"),
        (0x400, "ea_inode"),
        (0x1000, "dirdata"),
        (0x8000, "inline_data"),
        (0x1_0000, "encrypt"),
        (0x2_0000, "casefold"),
        (0x80_0000, "incompat feature 0x800000"),
        (LOCKSTEP_INCOMPAT_GUARD, GUARD_MESSAGE),
    ] {
        let Access::Refused(why) = with_features(0, bit, 0) else {
            panic!("{name}")
        };
        assert!(why.len() == 1 && why[0].contains(name), "{why:?}");
    }
    for bit in [0x4, 0x100, 0x4000] {
        assert_eq!(with_features(0, bit, 0), Access::ReadWrite, "{bit:#x}");
    }
    for (bit, name) in [
        (0x8000, "verity"),
        (0x100, "quota"),
        (0x2_0000, "ro_compat feature 0x20000"),
    ] {
        let Access::ReadOnly(why) = with_features(0, 0, bit) else {
            panic!("{name}")
        };
        assert!(why.len() == 1 && why[0].contains(name), "{why:?}");
    }
    assert_eq!(with_features(0, 0, 0x2000 | 0x1_0000), Access::ReadWrite);
    assert_eq!(
        with_features(0x1000 | 0x800 | 0x400, 0, 0),
        Access::ReadWrite
    );
    assert!(matches!(with_features(0x400, 0x4, 0), Access::ReadOnly(_)));
    // Refusal is stronger.
    assert!(matches!(with_features(0, 0x1, 0x8000), Access::Refused(_)));
    let no_journal = changed(|bytes| bytes[0x5C] &= !4).unwrap();
    assert!(matches!(access(&no_journal), Access::ReadOnly(_)));
}

#[test]
fn live_features_can_be_set_and_layout_can_not() {
    let mut sb = known();
    sb.set_incompat(incompat::RECOVER | LOCKSTEP_INCOMPAT_GUARD, true)
        .unwrap();
    assert!(sb.has_recover() && sb.has_guard());
    let again = Superblock::decode(sb.encode()).unwrap();
    sb.set_incompat(LOCKSTEP_INCOMPAT_GUARD, false).unwrap();
    assert!(again.has_guard() && !sb.has_guard() && sb.has_recover());
    assert!(sb.set_incompat(incompat::SIXTY_FOUR_BIT, false).is_err());
    assert!(sb.set_ro_compat(ro_compat::BIGALLOC, true).is_err());
    sb.set_ro_compat(ro_compat::ORPHAN_PRESENT, true).unwrap();
    sb.set_mtime(5_000_000_000);
    sb.set_s_free_blocks_count(1 << 33);
    assert_eq!(
        (sb.mtime(), sb.s_free_blocks_count()),
        (5_000_000_000, 1 << 33)
    );
    assert_eq!(Superblock::decode(sb.encode()).unwrap(), sb);
}

#[test]
fn a_change_leaves_the_second_sector_as_it_was() {
    let mut sb = known();
    assert!(sb.has_metadata_csum());
    let before = *sb.as_bytes();
    for round in 0..50 {
        sb.set_incompat(incompat::RECOVER, round % 2 == 0).unwrap();
        sb.set_s_free_blocks_count(round * 0x1234_5678);
        sb.set_s_last_orphan(round as u32);
        sb.set_wtime(1_700_000_000 + round as i64);
        let bytes = *sb.encode();
        assert_eq!(bytes[512..], before[512..]);
        assert_eq!(Superblock::decode(&bytes).unwrap(), sb);
    }
}

#[test]
fn lies_are_named() {
    let field = |at: usize, value: u32| match changed(|bytes| put(bytes, at, value)) {
        Err(Corrupt::Field { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(0x18, 7), "s_log_block_size");
    assert_eq!(field(0x20, 0), "s_blocks_per_group");
    assert_eq!(field(0x20, 8193), "s_blocks_per_group");
    assert_eq!(field(0x28, 0), "s_inodes_per_group");
    assert_eq!(field(0x14, 0), "s_first_data_block");
    assert_eq!(field(0x04, 1), "s_blocks_count");
    assert_eq!(field(0x04, u32::MAX), "s_inodes_count");
    assert_eq!(field(0x38, 0), "s_magic");
    let mut bytes = *BYTES;
    bytes[0x78] ^= 1;
    assert!(matches!(
        Superblock::decode(&bytes),
        Err(Corrupt::Checksum { .. })
    ));
    assert!(matches!(
        Superblock::decode(&bytes[..1000]),
        Err(Corrupt::Short { .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever passes `decode` is safe to compute with.
    #[test]
    fn a_superblock_that_lies_is_refused_or_harmless(
        words in prop::collection::vec((0usize..64, prop_oneof![any::<u32>(), 0u32..70_000, (0u32..32).prop_map(|n| 1 << n)]), 0..6),
        hi in prop_oneof![3 => Just(0u32), 1 => any::<u32>()],
        log_block in 0u32..8, sparse in 0u32..4, meta: bool, flex in 0u8..33, follow: bool,
        descriptor in prop::collection::vec(any::<u8>(), 64), group: u32, ino: u32, block: u64,
    ) {
        let sb = changed(|bytes| {
            put(bytes, 0x18, log_block);
            put(bytes, 0x150, hi);
            put(bytes, 0x14, u32::from(log_block == 0));
            for &(n, value) in &words {
                put(bytes, [0, 4, 0x1C, 0x20, 0x24, 0x28, 0x54, 0x58, 0x5C, 0x60, 0x64, 0xCC, 0x104, 0x24C][n % 14], value);
            }
            bytes[0x174] = flex;
            let incompat: u32 = get(bytes, 0x60);
            put(bytes, 0x60, if meta { incompat | 0x10 } else { incompat });
            let ro: u32 = get(bytes, 0x64);
            put(bytes, 0x64, ro & !1 | sparse & 1);
            // Follow with the inode count, so that more than the first check is reached.
            if follow {
                let lo: u32 = get(bytes, 4);
                let per_group: u32 = get(bytes, 0x20);
                let inodes: u32 = get(bytes, 0x28);
                if per_group > 0 && hi == 0 {
                    let groups = lo.saturating_sub(u32::from(log_block == 0)).div_ceil(per_group);
                    put(bytes, 0, groups.wrapping_mul(inodes));
                }
            }
        });
        let Ok(mut sb) = sb else { return Ok(()) };
        let _ = access(&sb);
        let geometry = sb.geometry();
        let group = GroupNo(group % geometry.groups_count);
        for group in [GroupNo(0), group, GroupNo(geometry.groups_count - 1)] {
            prop_assert!(geometry.base_meta_blocks(group) <= geometry.blocks_in_group(group));
            let (at, offset) = geometry.desc_location(group);
            prop_assert!(at.0 > 0 && offset + usize::from(geometry.desc_size) <= sb.block_size() as usize);
            prop_assert!(geometry.flex_group(group).contains(&group.0));
            let bytes = [&descriptor[..], &descriptor].concat().repeat(8);
            let _ = GroupDesc::decode(&sb, group, &bytes);
            let mut desc = GroupDesc::decode_unverified(&sb, &bytes).unwrap();
            let map = bitmap::synthesise_blocks(&geometry, group, [&desc]);
            bitmap::update(&sb, &mut desc, bitmap::Kind::Blocks, &map);
            desc.update_checksum(&sb, group);
            desc.verify(&sb, group).unwrap();
            bitmap::verify(&sb, &desc, bitmap::Kind::Blocks, &map).unwrap();
            bitmap::synthesise_inodes(&geometry);
        }
        if let Some((group, index)) = geometry.inode_location(Ino(ino)) {
            prop_assert_eq!(geometry.ino(group, index), Ino(ino));
            geometry.inode_place(BlockNo(block), index);
        }
        if let Some((group, bit)) = geometry.locate(BlockNo(block % sb.s_blocks_count())) {
            prop_assert!(bit < geometry.blocks_in_group(group));
        }
        let inode = Inode::new(&sb);
        prop_assert_eq!(inode.as_bytes().len(), usize::from(sb.inode_size()));
        sb.encode();
        sb.verify().unwrap();
    }

    #[test]
    fn any_inode(bytes in prop::collection::vec(any::<u8>(), 0..300), small: bool, extra in 0u8..140, huge: bool, kind in 0u16..16) {
        let sb = changed(|sb| {
            if small { put(sb, 0x58, 128u16); }
            if !huge { sb[0x64] &= !8; }
        }).unwrap();
        let mut bytes = bytes;
        if bytes.len() > 0x82 {
            bytes[0x80] = extra;
            bytes[0x81] = 0;
            put(&mut bytes, 0, kind << 12 | 0o644);
        }
        let _ = Inode::decode(&sb, Ino(12), &bytes);
        if let Ok(mut inode) = Inode::decode_unverified(&sb, &bytes) {
            let _ = (inode.i_blocks(&sb), inode.i_size(&sb), inode.i_crtime(), inode.i_atime(), inode.rdev());
            let _ = (inode.symlink_target(&sb).is_ok(), inode.i_projid(), inode.i_version(), inode.ibody().len());
            prop_assert_eq!(inode.as_bytes(), &bytes[..usize::from(sb.inode_size())]);
            inode.set_i_mtime((-7, 8));
            inode.set_i_crtime((7, 8));
            let _ = inode.set_i_blocks(&sb, u64::MAX);
            inode.encode(&sb, Ino(12));
            inode.verify(&sb, Ino(12)).unwrap();
        }
    }

    #[test]
    fn any_mmp(bytes in prop::collection::vec(any::<u8>(), 1000..1100), magic: bool) {
        let sb = known();
        let mut bytes = bytes;
        if magic { put(&mut bytes, 0, crate::ext4::mmp::EXT4_MMP_MAGIC); }
        if magic && bytes.len() >= 1024 {
            let sum = crc32c_raw(sb.csum_seed(), &bytes[..0x3FC]);
            put(&mut bytes, 0x3FC, sum);
        }
        if let Ok(mut mmp) = Mmp::decode(&sb, &bytes) {
            let _ = mmp.nodename();
            prop_assert_eq!(&mmp.encode(&sb)[..], &bytes[..1024]);
        }
    }
}
