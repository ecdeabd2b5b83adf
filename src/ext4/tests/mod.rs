//! The whole layer against images that nobody here wrote: made by mke2fs with many feature sets, filled by mke2fs and by
//! the kernel, compared with dumpe2fs, debugfs, the kernel's stat, and (what we wrote) e2fsck.

mod fill;
mod image;
mod walk;
mod write;

use image::{Image, VARIANTS};

use crate::ext4::features::access;
use crate::ext4::{Access, GroupDesc, Inode, Mmp, Superblock, bitmap, orphan_file, xattr};
use crate::units::{BlockNo, GroupNo, Ino};

#[test]
fn what_mke2fs_makes() {
    for variant in VARIANTS {
        let Some(image) = Image::make(variant, None) else {
            return;
        };
        walk::check_everything(&image);
        image.check_against_dumpe2fs();
    }
}

#[test]
fn what_mke2fs_fills_and_e2fsck_indexes() {
    let source = tempfile::tempdir().unwrap();
    fill::fill(source.path(), 0);
    for variant in VARIANTS {
        let Some(image) = Image::make(variant, Some(source.path())) else {
            return;
        };
        image.e2fsck(&["-fyD"]);
        let walked = walk::check_everything(&image);
        image.check_against_dumpe2fs();
        assert!(walked.names > 3000, "{}: {walked:?}", variant.name);
        if variant.indexed {
            assert!(walked.index_blocks > 0, "{}: {walked:?}", variant.name);
        }
    }
}

#[test]
fn what_the_kernel_writes() {
    for variant in VARIANTS {
        let Some(image) = Image::make(variant, None) else {
            return;
        };
        let Some(facts) = image.with_mount(|root| {
            fill::fill(root, 1);
            fill::facts(root)
        }) else {
            return;
        };
        let walked = walk::check_everything(&image);
        image.check_against_dumpe2fs();
        fill::compare(&image, &facts, variant);
        if variant.indexed {
            assert!(walked.index_blocks > 1, "{}: {walked:?}", variant.name);
        }
        if variant.extents {
            assert!(walked.extent_blocks > 1, "{}: {walked:?}", variant.name);
        }
        assert!(walked.attribute_blocks > 0, "{}: {walked:?}", variant.name);
    }
}

#[test]
fn what_we_write() {
    for variant in VARIANTS {
        let Some(image) = Image::make(variant, None) else {
            return;
        };
        write::change_by_hand(&image);
        image.e2fsck(&["-fn"]);
        walk::check_everything(&image);
        write::read_back(&image);
    }
}

#[test]
fn bigalloc_can_be_read() {
    let options = &["-b", "4096", "-O", "bigalloc", "-C", "16384"];
    let Some(image) = Image::make(&image::variant("bigalloc", 200 << 10, options), None) else {
        return;
    };
    let sb = image.sb();
    assert!(matches!(access(&sb), Access::ReadOnly(why) if why.len() == 1));
    let geometry = sb.geometry();
    for group in geometry.groups() {
        let (blocks, _, _) = walk::bitmaps(&image, &sb, group);
        let clusters = geometry.blocks_in_group(group).div_ceil(sb.cluster_ratio());
        let free = image.desc(&sb, group).bg_free_blocks_count();
        assert_eq!(bitmap::count_free(&blocks, clusters), free, "group {group}");
    }
}

#[test]
fn a_flipped_bit_is_seen() {
    let variant = VARIANTS
        .iter()
        .find(|v| v.name.contains("orphan file"))
        .unwrap();
    let Some(image) = Image::make(variant, None) else {
        return;
    };
    write::change_by_hand(&image);
    let sb = image.sb();
    let ino = Ino(sb.s_orphan_file_inum());
    let (_, inode) = walk::inode_bytes(&image, &sb, ino);
    let node = walk::inode(&image, &sb, ino);
    let (orphans, _) = walk::map(&image, &sb, ino, &node);
    let group = GroupNo(sb.groups_count() - 1);
    let desc = image.desc(&sb, group);
    let acl = walk::attribute_block(&image, &sb).unwrap();
    let (mmp, orphan) = (BlockNo(sb.s_mmp_block()), orphans[&0]);
    let seed = node.seed(&sb, ino);

    type Check<'a> = Box<dyn Fn(&[u8]) -> bool + 'a>;
    let cases: Vec<(&str, Vec<u8>, Check<'_>)> = vec![
        (
            "superblock",
            sb.as_bytes().to_vec(),
            Box::new(|b| Superblock::decode(b).is_ok()),
        ),
        (
            "descriptor",
            desc.as_bytes().to_vec(),
            Box::new(|b| GroupDesc::decode(&sb, group, b).is_ok()),
        ),
        (
            "block bitmap",
            image.block(&sb, desc.bg_block_bitmap()),
            Box::new(|b| bitmap::verify(&sb, &desc, bitmap::Kind::Blocks, b).is_ok()),
        ),
        (
            "inode",
            inode,
            Box::new(|b| Inode::decode(&sb, ino, b).is_ok()),
        ),
        (
            "attributes",
            image.block(&sb, acl),
            Box::new(|b| xattr::verify_block(&sb, acl, b).is_ok()),
        ),
        (
            "orphans",
            image.block(&sb, orphan),
            Box::new(|b| orphan_file::verify(&sb, seed, orphan, b).is_ok()),
        ),
        (
            "mmp",
            image.block(&sb, mmp),
            Box::new(|b| Mmp::decode(&sb, b).is_ok()),
        ),
    ];
    for (what, bytes, is_ok) in cases {
        assert!(is_ok(&bytes), "{what}");
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            assert!(!is_ok(&flipped), "{what}, byte {at}");
        }
    }
}
