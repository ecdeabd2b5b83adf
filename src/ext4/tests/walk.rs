//! Goes through a whole image with nothing but this layer: every checksum of every structure, every count, and a round
//! trip of every inode.

use std::collections::BTreeMap;

use super::image::Image;
use crate::ext4::extent::Entries;
use crate::ext4::inode::reserved;
use crate::ext4::{
    Acl, DirLayout, DxBlock, ExtentNode, FileType, Hasher, Inode, Mmp, Superblock, XattrSet, acl,
    bitmap, extent, htree, indirect, orphan_file, xattr,
};
use crate::units::{BlockNo, FileBlock, GroupNo, Ino};

#[derive(Debug, Default)]
pub struct Walked {
    pub inodes: u32,
    pub names: u32,
    pub extent_blocks: u32,
    pub index_blocks: u32,
    pub attribute_blocks: u32,
    pub synthesised: u32,
}

/// Reads an inode through its group's descriptor.
pub fn inode(image: &Image, sb: &Superblock, ino: Ino) -> Inode {
    let bytes = inode_bytes(image, sb, ino).1;
    Inode::decode(sb, ino, &bytes)
        .unwrap_or_else(|e| panic!("{}, inode {ino}: {e}", image.variant.name))
}

/// Where an inode is (byte of the image), and its bytes.
pub fn inode_bytes(image: &Image, sb: &Superblock, ino: Ino) -> (u64, Vec<u8>) {
    let geometry = sb.geometry();
    let (group, index) = geometry.inode_location(ino).unwrap();
    let (block, offset) = geometry.inode_place(image.desc(sb, group).bg_inode_table(), index);
    let at = block.0 * u64::from(sb.block_size()) + offset as u64;
    (at, image.read(at, sb.inode_size().into()))
}

/// The first block of attributes that an inode in use has.
pub fn attribute_block(image: &Image, sb: &Superblock) -> Option<BlockNo> {
    let geometry = sb.geometry();
    geometry.groups().find_map(|group| {
        let (_, inodes, _) = bitmaps(image, sb, group);
        let used =
            bitmap::used_runs(&inodes, 0, sb.s_inodes_per_group()).flat_map(|(s, l)| s..s + l);
        used.map(|bit| geometry.ino(group, bit))
            .filter(|ino| ino.0 >= sb.first_ino())
            .find_map(|ino| inode(image, sb, ino).i_file_acl(sb))
    })
}

/// Both bitmaps of a group: verified, or synthesised.
pub fn bitmaps(image: &Image, sb: &Superblock, group: GroupNo) -> (Vec<u8>, Vec<u8>, u32) {
    let name = image.variant.name;
    let geometry = sb.geometry();
    let desc = image.desc(sb, group);
    let mut synthesised = 0;
    let blocks = if desc.block_uninit(sb) {
        synthesised += 1;
        let flex: Vec<_> = geometry
            .flex_group(group)
            .map(|g| image.desc(sb, GroupNo(g)))
            .collect();
        // Neither mke2fs nor the kernel flags a group that holds another's metadata.
        let own = bitmap::synthesise_blocks(&geometry, group, [&desc]);
        let all = bitmap::synthesise_blocks(&geometry, group, &flex);
        assert_eq!(own, all, "{name}, group {group}");
        all
    } else {
        let map = image.block(sb, desc.bg_block_bitmap());
        bitmap::verify(sb, &desc, bitmap::Kind::Blocks, &map)
            .unwrap_or_else(|e| panic!("{name}, group {group}: {e}"));
        map
    };
    let inodes = if desc.inode_uninit(sb) {
        synthesised += 1;
        bitmap::synthesise_inodes(&geometry)
    } else {
        let map = image.block(sb, desc.bg_inode_bitmap());
        bitmap::verify(sb, &desc, bitmap::Kind::Inodes, &map)
            .unwrap_or_else(|e| panic!("{name}, group {group}: {e}"));
        map
    };
    (blocks, inodes, synthesised)
}

/// Every mapped block of a file, and how many blocks the map itself takes.
pub fn map(
    image: &Image,
    sb: &Superblock,
    ino: Ino,
    inode: &Inode,
) -> (BTreeMap<u32, BlockNo>, u32) {
    let mut blocks = BTreeMap::new();
    let mut meta = 0;
    if inode.has_extents() {
        let root = ExtentNode::decode(&inode.i_block(), sb.s_blocks_count()).unwrap();
        // Slots that are not in use keep what they held.
        let mut again = inode.i_block();
        root.encode(&mut again);
        assert_eq!(again, inode.i_block());
        let mut stack = vec![root];
        while let Some(node) = stack.pop() {
            match node.entries {
                Entries::Leaf(extents) => {
                    for e in extents {
                        for i in 0..u32::from(e.len_blocks) {
                            let at = FileBlock(e.ee_block.0 + i);
                            blocks.insert(at.0, e.map(at).unwrap());
                        }
                    }
                }
                Entries::Index(indexes) => {
                    for index in indexes {
                        let bytes = image.block(sb, index.leaf);
                        if sb.has_metadata_csum() {
                            extent::verify_block(inode.seed(sb, ino), &bytes).unwrap();
                        }
                        meta += 1;
                        let child = ExtentNode::decode(&bytes, sb.s_blocks_count()).unwrap();
                        assert_eq!(child.eh_depth + 1, node.eh_depth);
                        assert_eq!(child.eh_max, extent::block_max(sb.block_size()));
                        assert_eq!(child.first_block(), Some(index.ei_block));
                        stack.push(child);
                    }
                }
            }
        }
    } else {
        let size = inode.i_size(sb).div_ceil(sb.block_size().into()) as u32;
        let mut maps = std::collections::BTreeSet::new();
        for block in 0..size {
            let path = indirect::path(sb.block_size(), FileBlock(block)).unwrap();
            let mut bytes = inode.i_block().to_vec();
            for (level, &slot) in path.slots.iter().enumerate() {
                let Some(next) = indirect::pointer(&bytes, slot, sb.s_blocks_count()).unwrap()
                else {
                    break;
                };
                if level + 1 == path.slots.len() {
                    blocks.insert(block, next);
                } else {
                    maps.insert(next);
                    bytes = image.block(sb, next);
                }
            }
        }
        meta = maps.len() as u32;
    }
    (blocks, meta)
}

fn check_attributes(image: &Image, sb: &Superblock, inode: &Inode, walked: &mut Walked) {
    let in_inode = XattrSet::from_ibody(inode.ibody()).unwrap();
    let mut again = inode.ibody().to_vec();
    in_inode.encode_ibody(&mut again).unwrap();
    assert_eq!(XattrSet::from_ibody(&again).unwrap(), in_inode);
    let mut all: Vec<xattr::Xattr> = in_inode.iter().cloned().collect();
    if let Some(at) = inode.i_file_acl(sb) {
        walked.attribute_blocks += 1;
        let block = image.block(sb, at);
        xattr::verify_block(sb, at, &block).unwrap();
        let set = XattrSet::from_block(&block).unwrap();
        for entry in xattr::block_entries(&block).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.e_hash, xattr::entry_hash(entry.name, entry.value));
        }
        // Rewritten, only the places of values may differ: same header, same hash.
        let mut again = block.clone();
        set.encode_block(&mut again, xattr::h_refcount(&block).unwrap())
            .unwrap();
        xattr::update_block(sb, at, &mut again).unwrap();
        assert_eq!(again[..16], block[..16]);
        xattr::verify_block(sb, at, &again).unwrap();
        all.extend(set.iter().cloned());
    }
    for a in all {
        if matches!(
            a.index,
            xattr::index::POSIX_ACL_ACCESS | xattr::index::POSIX_ACL_DEFAULT
        ) {
            let list: acl::Acl = Acl::from_disk(&a.value).unwrap();
            assert_eq!(list.to_disk(), a.value);
        }
    }
}

/// Every name of a directory; checks every block of it.
fn check_directory(
    image: &Image,
    sb: &Superblock,
    ino: Ino,
    inode: &Inode,
    blocks: &BTreeMap<u32, BlockNo>,
    walked: &mut Walked,
) -> Vec<(Vec<u8>, Ino, FileType)> {
    let layout = DirLayout::new(sb);
    let seed = inode.seed(sb, ino);
    let name = image.variant.name;
    let read = |block: FileBlock| image.block(sb, blocks[&block.0]);
    let mut names = Vec::new();
    let mut index = std::collections::BTreeSet::new();
    if inode.has_flag(crate::ext4::inode::flags::INDEX) {
        let root = DxBlock::decode_root(&layout, sb.has_large_dir(), &read(FileBlock(0))).unwrap();
        let info = root.info.unwrap();
        let hasher = Hasher::new(sb, info.hash_version);
        // (block, level, least hash, limit of hashes)
        let mut stack = vec![(FileBlock(0), info.indirect_levels + 1, 0u32, u64::MAX)];
        while let Some((at, level, least, most)) = stack.pop() {
            let bytes = read(at);
            if level == 0 {
                for entry in layout.entries(&bytes) {
                    let entry = entry.unwrap();
                    if entry.ino.is_some() {
                        let hash = hasher.hash(entry.name).major;
                        assert!(
                            hash >= least & !1 && u64::from(hash) <= most,
                            "{name}: {entry:?}"
                        );
                    }
                }
                continue;
            }
            index.insert(at);
            walked.index_blocks += 1;
            htree::verify(&layout, seed, &bytes).unwrap();
            assert!(htree::is_index_block(&bytes));
            let block = if at == FileBlock(0) {
                root.clone()
            } else {
                DxBlock::decode_node(&layout, &bytes).unwrap()
            };
            let mut again = bytes.clone();
            block.encode(&mut again);
            assert_eq!(again, bytes, "{name}");
            for (i, entry) in block.entries.iter().enumerate() {
                let next = block.entries.get(i + 1).map_or(most, |e| u64::from(e.hash));
                let hash = if i == 0 { least } else { entry.hash };
                stack.push((entry.block, level - 1, hash, next));
            }
        }
    }
    for block in (0..inode.i_size(sb) / u64::from(sb.block_size())).map(|b| FileBlock(b as u32)) {
        let bytes = read(block);
        if !index.contains(&block) {
            layout
                .check(&bytes)
                .unwrap_or_else(|e| panic!("{name}, directory {ino}: {e}"));
            layout
                .verify(seed, &bytes)
                .unwrap_or_else(|e| panic!("{name}, directory {ino}: {e}"));
            let mut again = bytes.clone();
            layout.update(seed, &mut again).unwrap();
            assert_eq!(again, bytes);
        }
        for entry in layout.entries(&bytes) {
            let entry = entry.unwrap();
            if let Some(ino) = entry.ino {
                let found = layout.find(&bytes, entry.name).unwrap().unwrap();
                assert_eq!(found.ino, Some(ino));
                names.push((entry.name.to_vec(), ino, entry.file_type));
            }
        }
    }
    names
}

/// Everything, from the superblock down.
pub fn check_everything(image: &Image) -> Walked {
    let name = image.variant.name;
    let mut walked = Walked::default();
    let sb = image.sb();
    let geometry = sb.geometry();
    assert_eq!(sb.clone().encode(), sb.as_bytes());
    assert_eq!(Superblock::decode(sb.as_bytes()).unwrap(), sb);

    let mut used = BTreeMap::new(); // inode -> names seen
    for group in geometry.groups() {
        let mut desc = image.desc(&sb, group);
        let before = desc;
        desc.encode(&sb, group);
        assert_eq!(desc, before, "{name}, group {group}");
        if let Some(copy) = geometry.base_meta(group).superblock
            && group.0 > 0
        {
            let copy = Superblock::decode(&image.block(&sb, copy)).unwrap();
            assert_eq!(u32::from(copy.s_block_group_nr()), group.0, "{name}");
        }
        let (blocks, inodes, synthesised) = bitmaps(image, &sb, group);
        walked.synthesised += synthesised;
        let len = geometry.blocks_in_group(group);
        assert_eq!(
            bitmap::count_free(&blocks, len),
            desc.bg_free_blocks_count(),
            "{name}, group {group}"
        );
        assert_eq!(
            bitmap::count_free(&inodes, sb.s_inodes_per_group()),
            desc.bg_free_inodes_count(),
            "{name}, group {group}"
        );
        for (map, bits) in [(&blocks, len), (&inodes, sb.s_inodes_per_group())] {
            let mut padded = map.clone();
            bitmap::pad(&mut padded, bits);
            assert_eq!(&padded, map, "{name}, group {group}: padding");
        }
        for bit in (0..sb.s_inodes_per_group()).filter(|&bit| bitmap::test(&inodes, bit)) {
            used.insert(geometry.ino(group, bit), 0u32);
        }
    }

    let mut links: BTreeMap<Ino, u32> = BTreeMap::new();
    for &ino in used.keys() {
        let (_, bytes) = inode_bytes(image, &sb, ino);
        if bytes.iter().all(|&b| b == 0) {
            assert!(
                ino.0 < sb.first_ino(),
                "{name}: inode {ino} is used but zeros"
            );
            continue;
        }
        let node = inode(image, &sb, ino);
        walked.inodes += 1;
        assert_eq!(node.clone().encode(&sb, ino), bytes, "{name}, inode {ino}");
        check_setters(&sb, ino, &node);
        check_attributes(image, &sb, &node, &mut walked);
        let kind = node.file_type();
        if matches!(kind, FileType::Regular | FileType::Directory)
            || (kind == FileType::Symlink && !node.is_fast_symlink(&sb))
        {
            let (blocks, meta) = map(image, &sb, ino, &node);
            walked.extent_blocks += if node.has_extents() { meta } else { 0 };
            let attributes = u64::from(node.i_file_acl(&sb).is_some());
            let total = blocks.len() as u64 + u64::from(meta) + attributes;
            // The resize inode's blocks are reserved descriptors, counted on top.
            if ino != reserved::RESIZE {
                assert_eq!(
                    node.i_blocks(&sb),
                    total * u64::from(sb.block_size() / 512),
                    "{name}, inode {ino}"
                );
            }
            for block in blocks.values() {
                let (group, bit) = geometry.locate(*block).unwrap();
                assert_eq!(
                    geometry.group_first_block(group).0 + u64::from(bit),
                    block.0
                );
            }
            if kind == FileType::Directory {
                for (_, target, _) in check_directory(image, &sb, ino, &node, &blocks, &mut walked)
                {
                    walked.names += 1;
                    *links.entry(target).or_default() += 1;
                }
            }
            if sb.has_orphan_file() && ino.0 == sb.s_orphan_file_inum() {
                for &at in blocks.values() {
                    let bytes = image.block(&sb, at);
                    orphan_file::verify(&sb, node.seed(&sb, ino), at, &bytes).unwrap();
                    assert_eq!(orphan_file::orphans(&bytes).count(), 0);
                    let mut again = bytes.clone();
                    orphan_file::update(&sb, node.seed(&sb, ino), at, &mut again);
                    assert_eq!(again, bytes);
                }
            }
        }
    }
    for (ino, count) in links {
        if ino.0 >= sb.first_ino() {
            assert_eq!(
                inode(image, &sb, ino).i_links_count(),
                count as u16,
                "{name}, inode {ino}"
            );
        }
    }
    if sb.has_mmp() {
        let bytes = image.block(&sb, BlockNo(sb.s_mmp_block()));
        let mut mmp = Mmp::decode(&sb, &bytes).unwrap();
        assert!(mmp.is_clean());
        assert_eq!(mmp.encode(&sb)[..], bytes[..1024]);
    }
    walked
}

/// What the accessors say, the setters write back without a difference.
fn check_setters(sb: &Superblock, ino: Ino, inode: &Inode) {
    let mut again = inode.clone();
    again.set_i_uid(inode.i_uid());
    again.set_i_gid(inode.i_gid());
    again.set_i_blocks(sb, inode.i_blocks(sb)).unwrap();
    again.set_i_file_acl(inode.i_file_acl(sb));
    again.set_i_version(inode.i_version());
    again.set_i_projid(inode.i_projid());
    again.set_i_atime(inode.i_atime());
    again.set_i_mtime(inode.i_mtime());
    again.set_i_ctime(inode.i_ctime());
    if let Some(time) = inode.i_crtime() {
        again.set_i_crtime(time);
    }
    if matches!(
        inode.file_type(),
        FileType::CharDevice | FileType::BlockDevice
    ) {
        let (major, minor) = inode.rdev();
        again.set_rdev(major, minor);
    }
    if inode.is_reg() {
        again.set_i_size(inode.i_size(sb));
    }
    assert_eq!(again.encode(sb, ino), inode.as_bytes(), "inode {ino}");
}
