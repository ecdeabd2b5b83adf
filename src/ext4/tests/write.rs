//! Changes made with nothing but this layer, for e2fsck to judge: a hard link, attributes in an inode and in a block, an
//! allocated block with everything that counts it.

use super::image::Image;
use super::walk;
use crate::ext4::inode::reserved;
use crate::ext4::{Acl, DirLayout, FileType, Inode, XattrSet, bitmap, xattr};
use crate::units::{BlockNo, GroupNo, Ino};

const SMALL: &str = "user.small";
const LARGE: &str = "user.large";

fn lost_and_found(image: &Image) -> Ino {
    let sb = image.sb();
    let root = walk::inode(image, &sb, reserved::ROOT);
    let (blocks, _) = walk::map(image, &sb, reserved::ROOT, &root);
    let block = image.block(&sb, blocks[&0]);
    let found = DirLayout::new(&sb).find(&block, b"lost+found").unwrap();
    found.and_then(|e| e.ino).expect("mke2fs makes it")
}

/// Allocates one block in the last group that has a free one; leaves an uninitialised group initialised.
fn allocate(image: &Image) -> BlockNo {
    let mut sb = image.sb();
    let geometry = sb.geometry();
    let group = geometry
        .groups()
        .rev()
        .find(|&g| image.desc(&sb, g).bg_free_blocks_count() > 0)
        .unwrap();
    let mut desc = image.desc(&sb, group);
    let (mut blocks, _, _) = walk::bitmaps(image, &sb, group);
    let bit = bitmap::next_zero(&blocks, 0, geometry.blocks_in_group(group)).unwrap();
    assert!(!bitmap::set(&mut blocks, bit));
    desc.set_bg_flags(desc.bg_flags() & !crate::ext4::group_desc::EXT4_BG_BLOCK_UNINIT);
    desc.set_bg_free_blocks_count(desc.bg_free_blocks_count() - 1);
    bitmap::update(&sb, &mut desc, bitmap::Kind::Blocks, &blocks);
    image.write_block(&sb, desc.bg_block_bitmap(), &blocks);
    image.write_desc(&sb, group, &mut desc);
    sb.set_s_free_blocks_count(sb.s_free_blocks_count() - 1);
    image.write(1024, sb.encode());
    BlockNo(geometry.group_first_block(group).0 + u64::from(bit))
}

/// Allocates an inode in the last group; leaves an uninitialised group initialised.
fn allocate_inode(image: &Image) -> Ino {
    let mut sb = image.sb();
    let geometry = sb.geometry();
    let group = GroupNo(geometry.groups_count - 1);
    let mut desc = image.desc(&sb, group);
    let (_, mut inodes, _) = walk::bitmaps(image, &sb, group);
    let bit = bitmap::next_zero(&inodes, 0, geometry.inodes_per_group).unwrap();
    bitmap::set(&mut inodes, bit);
    desc.set_bg_flags(desc.bg_flags() & !crate::ext4::group_desc::EXT4_BG_INODE_UNINIT);
    desc.set_bg_free_inodes_count(desc.bg_free_inodes_count() - 1);
    if sb.has_group_desc_csum() {
        let unused = geometry.inodes_per_group - bit - 1;
        desc.set_bg_itable_unused(desc.bg_itable_unused().min(unused));
    }
    bitmap::update(&sb, &mut desc, bitmap::Kind::Inodes, &inodes);
    image.write_block(&sb, desc.bg_inode_bitmap(), &inodes);
    image.write_desc(&sb, group, &mut desc);
    sb.set_s_free_inodes_count(sb.s_free_inodes_count() - 1);
    sb.set_compat(crate::ext4::features::compat::EXT_ATTR, true)
        .unwrap();
    image.write(1024, sb.encode());
    geometry.ino(group, bit)
}

/// A new fifo with two names in lost+found and attributes in every place.
pub fn change_by_hand(image: &Image) {
    let ino = allocate_inode(image);
    let at = allocate(image);
    let sb = image.sb();

    let mut inode = Inode::new(&sb);
    inode.set_i_generation(0x1234_5678);
    inode.set_i_mode(FileType::Fifo.mode() | 0o640);
    inode.set_i_links_count(2);
    inode.set_i_uid(100_000);
    inode.set_i_mtime((-5, 7));
    inode.set_i_crtime((5_000_000_000, 7));
    inode.set_i_file_acl(Some(at));
    inode
        .set_i_blocks(&sb, u64::from(sb.block_size() / 512))
        .unwrap();

    let mut small = XattrSet::default();
    let (index, name) = xattr::split_name(SMALL.as_bytes()).unwrap();
    small.set(index, name, b"value").unwrap();
    let mut large = XattrSet::default();
    if small.fits_ibody(inode.ibody().len()) {
        small.encode_ibody(inode.ibody_mut()).unwrap();
    } else {
        large = small;
    }
    let (index, name) = xattr::split_name(LARGE.as_bytes()).unwrap();
    large.set(index, name, &[b'L'; 501]).unwrap();
    large.set(xattr::index::SECURITY, b"x", b"").unwrap();
    large.set(xattr::index::TRUSTED, b"yyy", b"1").unwrap();
    large.set(xattr::index::TRUSTED, b"zz", b"2").unwrap();
    let list = Acl::from_mode(0o640).to_disk();
    large
        .set(xattr::index::POSIX_ACL_ACCESS, b"", &list)
        .unwrap();
    let mut block = vec![0; sb.block_size() as usize];
    large.encode_block(&mut block, 1).unwrap();
    xattr::update_block(&sb, at, &mut block).unwrap();
    image.write_block(&sb, at, &block);

    let (place, _) = walk::inode_bytes(image, &sb, ino);
    image.write(place, inode.encode(&sb, ino));

    let layout = DirLayout::new(&sb);
    let dir = lost_and_found(image);
    let dir_inode = walk::inode(image, &sb, dir);
    let seed = dir_inode.seed(&sb, dir);
    let (blocks, _) = walk::map(image, &sb, dir, &dir_inode);
    // The first block has "." and "..", the last is empty.
    for (block, name) in [
        (blocks.values().next(), "first"),
        (blocks.values().last(), "second"),
    ] {
        let mut bytes = image.block(&sb, *block.unwrap());
        layout
            .insert(&mut bytes, b"gone again", ino, FileType::Fifo)
            .unwrap();
        layout
            .insert(&mut bytes, name.as_bytes(), ino, FileType::Fifo)
            .unwrap();
        layout.remove(&mut bytes, b"gone again").unwrap();
        layout.update(seed, &mut bytes).unwrap();
        image.write_block(&sb, *block.unwrap(), &bytes);
    }
}

/// debugfs sees what was written.
pub fn read_back(image: &Image) {
    let name = image.variant.name;
    for link in ["/lost+found/first", "/lost+found/second"] {
        let stat = image.debugfs(&format!("stat {link}"));
        for part in [
            "Type: FIFO",
            "Generation: 305419896",
            "User: 100000",
            "Links: 2",
            "Mode:  0640",
        ] {
            assert!(stat.contains(part), "{name}: {part} in {stat}");
        }
    }
    let list = image.debugfs("ea_list /lost+found/first");
    for part in [
        SMALL,
        LARGE,
        "security.x",
        "trusted.yyy",
        "trusted.zz",
        "system.posix_acl_access",
    ] {
        assert!(list.contains(part), "{name}: {part} in {list}");
    }
    let value = image.debugfs(&format!("ea_get -V /lost+found/first {LARGE}"));
    assert!(value.contains(&"L".repeat(501)), "{name}: {value}");
}
