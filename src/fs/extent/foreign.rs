//! Trees and pointer maps that somebody else wrote: mke2fs copies sparse files into an image, debugfs says where their blocks
//! are.

// A failed unwrap is a failed test.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;
use crate::ext4::Inode;
use crate::fs::alloc::MetaBlocks;
use crate::fs::alloc::image::{TestFs, tool};
use crate::fs::{allocation::Allocation, indirect};

/// Bytes of a block.
const KIB: u64 = 1024;

fn sparse(path: &Path, blocks: impl Iterator<Item = u64>, end: u64) {
    let file = std::fs::File::create(path).unwrap();
    for block in blocks {
        // The source file system has blocks of 4 KiB: its holes are no smaller.
        file.write_all_at(&[7; 4096], block * KIB).unwrap();
    }
    file.set_len(end * KIB).unwrap();
}

fn inode(fs: &TestFs, ino: Ino) -> Inode {
    let (block, offset) = fs.allocator.inode_place(ino).unwrap();
    let image = fs.meta.get(block).unwrap();
    Inode::decode(fs.meta.sb(), ino, &image[offset..]).unwrap()
}

/// What debugfs says of file blocks `at`.
fn bmap(fs: &mut TestFs, ino: Ino, at: &[u32]) -> Vec<u64> {
    let commands: String = at.iter().map(|b| format!("bmap <{ino}> {b}\n")).collect();
    let out = fs.debugfs(&commands);
    out.lines()
        .filter(|line| !line.contains("bmap"))
        .filter_map(|line| line.trim().parse().ok())
        .collect()
}

fn check(args: &[&str], indirect: bool) {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("scattered");
    sparse(&path, (0..8000).step_by(8), 9000);
    let far = source.path().join("far");
    let places = [0, 8, 16, 264, 272, 60_000, 65_800, 65_808, 70_000, 140_000];
    sparse(&far, places.into_iter(), 150_000);
    let mut all = vec!["-b", "1024", "-d", source.path().to_str().unwrap()];
    all.extend(args);
    let mut fs = TestFs::make(64, &all);
    for (name, end) in [("scattered", 8010), ("far", 140_010)] {
        let out = fs.debugfs(&format!("stat /{name}\n"));
        let number = out.split("Inode: ").nth(1).unwrap();
        let ino = Ino(number.split_whitespace().next().unwrap().parse().unwrap());
        let node = inode(&fs, ino);
        assert_eq!(node.has_extents(), !indirect);
        let owner = Owner {
            ino,
            generation: node.i_generation(),
        };
        let root = node.i_block();
        let mut found = Vec::new();
        let mut at = 0;
        while at < end {
            let mapping = match indirect {
                true => indirect::map(&fs, ino, &root, FileBlock(at), 1 << 16),
                false => map(&fs, owner, &root, FileBlock(at), 1 << 16),
            };
            match mapping.unwrap() {
                Mapping::Hole(len) => at += len,
                Mapping::Mapped { block, len, .. } => {
                    found.extend((0..len).map(|i| (at + i, block.0 + u64::from(i))));
                    at += len;
                }
            }
        }
        let blocks: Vec<u32> = found.iter().map(|f| f.0).collect();
        let expected = if name == "far" {
            places.len() * 4
        } else {
            4000
        };
        assert_eq!(blocks.len(), expected, "{name}");
        let places: Vec<u64> = found.iter().map(|f| f.1).collect();
        assert_eq!(bmap(&mut fs, ino, &blocks), places, "{name}");
        if !indirect {
            assert!(metadata_blocks(&fs, owner, &root).unwrap().len() > usize::from(name != "far"));
        }
    }
}

#[test]
fn extents_that_mke2fs_wrote() {
    check(&[], false);
}

#[test]
fn pointers_that_mke2fs_wrote() {
    check(&["-O", "^extent,^64bit,^flex_bg"], true);
}

#[test]
fn a_pointer_out_of_the_volume_or_into_metadata_is_corrupt() {
    let fs = TestFs::make(16, &["-b", "1024"]);
    for bad in [1u32, 2, 16 * 1024, u32::MAX] {
        for (word, at) in [(0usize, 0u32), (12, 12), (13, 300), (14, 70_000)] {
            let mut root = [0; 60];
            root[word * 4..word * 4 + 4].copy_from_slice(&bad.to_le_bytes());
            let found = indirect::map(&fs, Ino(12), &root, FileBlock(at), 10);
            assert!(matches!(found, Err(FsError::Corrupt { .. })), "{found:?}");
        }
    }
    let beyond = indirect::map(&fs, Ino(12), &[0; 60], FileBlock(u32::MAX), 1);
    assert!(matches!(beyond, Err(FsError::Refused(libc::EFBIG))));
}

#[test]
fn a_resized_volume_is_understood() {
    let fs = TestFs::make(16, &["-b", "1024", "-g", "1024"]);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&fs.meta.path)
        .unwrap();
    file.set_len(200 << 20).unwrap();
    let out = tool("resize2fs").arg("-f").arg(&fs.meta.path).output();
    assert!(out.unwrap().status.success());
    let mut fs = fs.reopen();
    let free = fs.dumpe2fs_free();
    assert_eq!(fs.allocator.free_blocks(), free.len() as u64);
    let read = |block| fs.meta.get(block);
    let allocation = Allocation::load(fs.meta.sb(), &read).unwrap();
    let whole = BlockRange::new(BlockNo(0), fs.meta.sb().s_blocks_count());
    let used = allocation.allocated(&read, whole).unwrap();
    let used: u64 = used.iter().map(|r| r.len).sum();
    assert_eq!(used + free.len() as u64, whole.len);
}
