//! Test support: a volume made by mke2fs whose metadata blocks are changed in memory and written back to be judged by e2fsck.

// A failed unwrap is a failed test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::ext4::inode::flags;
use crate::ext4::{Inode, Superblock};
use crate::fs::FsError;
use crate::fs::alloc::{
    AllocError, Allocator, BlockRequest, InodeRequest, InodeSlot, MetaBlocks, Reach,
};
use crate::fs::blocks::{Blocks, BlocksMut};
use crate::fs::extent::{self, Change, Owner};
use crate::journal::Image;
use crate::units::{BlockNo, BlockRange, Ino, Txid};

/// A tool of e2fsprogs.
pub(crate) fn tool(name: &str) -> Command {
    let sbin = format!("/usr/sbin/{name}");
    Command::new(if std::path::Path::new(&sbin).exists() {
        sbin
    } else {
        name.into()
    })
}

/// The blocks of an image.
pub(crate) struct Meta {
    _dir: tempfile::TempDir,
    pub path: PathBuf,
    file: File,
    sb: Superblock,
    dirty: BTreeMap<BlockNo, Image>,
    /// Blocks changed since somebody cleared this.
    pub touched: BTreeSet<BlockNo>,
    /// Calls of `get` so far.
    pub reads: std::cell::Cell<u32>,
}

impl Meta {
    pub fn sb_clone(&self) -> Superblock {
        self.sb.clone()
    }

    fn read(&self, block: BlockNo) -> Result<Image, FsError> {
        let size = self.sb.block_size() as usize;
        let mut bytes = vec![0; size];
        let at = block.0 * size as u64;
        self.file
            .read_exact_at(&mut bytes, at)
            .map_err(|source| FsError::Io {
                context: format!("reading block {block}"),
                source,
            })?;
        Ok(bytes.into())
    }
}

impl MetaBlocks for Meta {
    fn sb(&self) -> &Superblock {
        &self.sb
    }

    fn get(&self, block: BlockNo) -> Result<Image, FsError> {
        self.reads.set(self.reads.get() + 1);
        match self.dirty.get(&block) {
            Some(image) => Ok(image.clone()),
            None => self.read(block),
        }
    }

    fn modify(&mut self, block: BlockNo) -> Result<&mut [u8], FsError> {
        self.touched.insert(block);
        if !self.dirty.contains_key(&block) {
            let image = self.read(block)?;
            self.dirty.insert(block, image);
        }
        let image = self.dirty.get_mut(&block).unwrap();
        Ok(Arc::make_mut(image))
    }

    fn create(&mut self, block: BlockNo) -> Result<&mut [u8], FsError> {
        let zeros = vec![0; self.sb.block_size() as usize].into();
        self.dirty.insert(block, zeros);
        self.modify(block)
    }
}

/// An image with its allocator: what the running transaction is in the engine.
pub(crate) struct TestFs {
    pub meta: Meta,
    pub allocator: Allocator,
    pub txid: Txid,
}

impl TestFs {
    /// mke2fs with these arguments on a file full of garbage, `mib` MiB long.
    pub fn make(mib: u64, args: &[&str]) -> TestFs {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        let garbage = vec![0xA5; 1 << 20];
        for i in 0..mib {
            file.write_all_at(&garbage, i << 20).unwrap();
        }
        let out = tool("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-E"])
            .arg("nodiscard,lazy_itable_init=1,root_owner=0:0")
            .args(["-J", "size=4"])
            .args(args)
            .arg(&path)
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        TestFs::open(dir, path, file)
    }

    fn open(dir: tempfile::TempDir, path: PathBuf, file: File) -> TestFs {
        let mut bytes = [0; 1024];
        file.read_exact_at(&mut bytes, 1024).unwrap();
        let meta = Meta {
            _dir: dir,
            path,
            file,
            sb: Superblock::decode(&bytes).unwrap(),
            dirty: BTreeMap::new(),
            touched: BTreeSet::new(),
            reads: std::cell::Cell::new(0),
        };
        let allocator = Allocator::load(&meta).unwrap();
        TestFs {
            meta,
            allocator,
            txid: Txid(1),
        }
    }

    /// A copy of the image on disk, with its own changes from here on.
    pub fn copy(&self) -> TestFs {
        assert!(self.meta.dirty.is_empty());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::copy(&self.meta.path, &path).unwrap();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        TestFs::open(dir, path, file)
    }

    /// The image as it is on disk now, after another tool changed it.
    pub fn reopen(self) -> TestFs {
        TestFs::open(self.meta._dir, self.meta.path, self.meta.file)
    }

    pub fn write_back(&mut self) {
        let size = u64::from(self.meta.sb.block_size());
        for (block, image) in std::mem::take(&mut self.meta.dirty) {
            self.meta.file.write_all_at(&image, block.0 * size).unwrap();
        }
    }

    /// Runs debugfs with write access, one command a line.
    pub fn debugfs(&mut self, commands: &str) -> String {
        self.write_back();
        let mut child = tool("debugfs")
            .args(["-w", "-f", "-"])
            .arg(&self.meta.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(commands.as_bytes()).unwrap();
        drop(stdin);
        let out = child.wait_with_output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// e2fsck must find nothing.
    #[track_caller]
    pub fn fsck(&mut self) {
        self.write_back();
        let out = tool("e2fsck")
            .arg("-fn")
            .arg(&self.meta.path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{:?}\n{text}", out.status);
    }

    /// The free blocks that dumpe2fs lists.
    pub fn dumpe2fs_free(&mut self) -> BTreeSet<u64> {
        self.write_back();
        let out = tool("dumpe2fs").arg(&self.meta.path).output().unwrap();
        assert!(out.status.success());
        let mut free = BTreeSet::new();
        for line in String::from_utf8_lossy(&out.stdout).lines() {
            let Some(list) = line.strip_prefix("  Free blocks: ") else {
                continue;
            };
            for part in list.split(", ").filter(|p| !p.trim().is_empty()) {
                let (a, b) = part
                    .trim()
                    .split_once('-')
                    .unwrap_or((part.trim(), part.trim()));
                free.extend(a.parse::<u64>().unwrap()..=b.parse::<u64>().unwrap());
            }
        }
        free
    }

    pub fn alloc_now(&mut self, goal: u64, min: u32, max: u32) -> Result<BlockRange, AllocError> {
        let request = BlockRequest {
            goal: BlockNo(goal),
            min,
            max,
            reach: Reach::Tree,
        };
        self.allocator.alloc_blocks(&mut self.meta, &request)
    }

    /// Ends the transaction as if every mirror had it at once.
    pub fn commit(&mut self) {
        self.allocator.release(self.txid);
        self.txid = self.txid.next();
    }

    /// The block of the inode table, made zeros where it was never used.
    fn put_inode(&mut self, slot: &InodeSlot, inode: &mut Inode) {
        let bytes = inode.encode(&self.meta.sb, slot.ino).to_vec();
        let block = self.meta.modify(slot.block).unwrap();
        block[slot.offset..slot.offset + bytes.len()].copy_from_slice(&bytes);
    }
}

impl Blocks for TestFs {
    fn sb(&self) -> &Superblock {
        &self.meta.sb
    }

    fn get(&self, block: BlockNo) -> Result<Image, FsError> {
        self.meta.get(block)
    }

    fn is_system(&self, range: BlockRange) -> bool {
        self.allocator.is_system(range)
    }
}

impl BlocksMut for TestFs {
    fn modify(&mut self, block: BlockNo) -> Result<&mut [u8], FsError> {
        self.meta.modify(block)
    }

    fn create(&mut self, block: BlockNo) -> Result<&mut [u8], FsError> {
        self.meta.create(block)
    }

    fn alloc(&mut self, goal: BlockNo, min: u32, max: u32) -> Result<BlockRange, FsError> {
        Ok(self.alloc_now(goal.0, min, max)?)
    }

    fn free(&mut self, range: BlockRange) -> Result<(), FsError> {
        let txid = self.txid;
        self.meta.dirty.retain(|block, _| !range.contains(*block));
        Ok(self.allocator.free_blocks_in(&mut self.meta, range, txid)?)
    }

    fn now(&self) -> (i64, u32) {
        (0, 0)
    }
}

/// A file or directory of the image, its inode kept here until `store`.
pub(crate) struct TestFile {
    pub slot: InodeSlot,
    pub owner: Owner,
    pub root: [u8; 60],
    /// Data and node blocks.
    pub blocks: u64,
    pub end: u64,
    pub directory: bool,
}

impl TestFile {
    pub fn create(fs: &mut TestFs, directory: bool, seed: u32) -> TestFile {
        let request = InodeRequest {
            parent: Ino(2),
            directory,
            top_level: directory,
            seed,
        };
        let slot = fs.allocator.alloc_inode(&mut fs.meta, &request).unwrap();
        if slot.fresh_block {
            fs.meta.create(slot.block).unwrap();
        }
        let mut root = [0; 60];
        extent::init(&mut root);
        let owner = Owner {
            ino: slot.ino,
            generation: seed,
        };
        let mut file = TestFile {
            slot,
            owner,
            root,
            blocks: 0,
            end: 0,
            directory,
        };
        if directory {
            file.fill_directory(fs);
        }
        file
    }

    fn fill_directory(&mut self, fs: &mut TestFs) {
        let goal = fs.allocator.goal_of(self.slot.ino);
        let range = fs.alloc(goal, 1, 1).unwrap();
        self.insert(fs, 0, range, false).unwrap();
        let sb = fs.meta.sb.clone();
        let size = sb.block_size() as usize;
        let tail = if sb.has_metadata_csum() { 12 } else { 0 };
        let bytes = fs.meta.create(range.start).unwrap();
        bytes[0..4].copy_from_slice(&self.slot.ino.0.to_le_bytes());
        bytes[4..9].copy_from_slice(&[12, 0, 1, 2, b'.']);
        bytes[12..16].copy_from_slice(&2u32.to_le_bytes());
        bytes[16..18].copy_from_slice(&((size - 12 - tail) as u16).to_le_bytes());
        bytes[18..22].copy_from_slice(&[2, 2, b'.', b'.']);
        if tail > 0 {
            let at = size - tail;
            bytes[at + 4..at + 8].copy_from_slice(&[12, 0, 0, 0xDE]);
            let seed = crate::ext4::checksum::inode_seed(
                sb.csum_seed(),
                self.slot.ino,
                self.owner.generation,
            );
            let sum = crate::ext4::checksum::crc32c_raw(seed, &bytes[..at]);
            bytes[at + 8..].copy_from_slice(&sum.to_le_bytes());
        }
    }

    fn count(&mut self, change: Change) {
        self.blocks += u64::from(change.metadata_allocated);
        self.blocks -= u64::from(change.metadata_freed);
    }

    pub fn insert(
        &mut self,
        fs: &mut TestFs,
        at: u32,
        range: BlockRange,
        unwritten: bool,
    ) -> Result<(), FsError> {
        let at_block = crate::units::FileBlock(at);
        let change = extent::insert(fs, self.owner, &mut self.root, at_block, range, unwritten)?;
        self.count(change);
        self.blocks += range.len;
        self.end = self.end.max(u64::from(at) + range.len);
        Ok(())
    }

    pub fn convert(&mut self, fs: &mut TestFs, at: u32, len: u32) -> Result<(), FsError> {
        let at = crate::units::FileBlock(at);
        let change = extent::convert(fs, self.owner, &mut self.root, at, len)?;
        self.count(change);
        Ok(())
    }

    /// One step of a removal; frees the data. Returns where it stopped.
    pub fn remove(
        &mut self,
        fs: &mut TestFs,
        from: u32,
        to: u64,
        budget: usize,
    ) -> Result<Option<u32>, FsError> {
        let at = crate::units::FileBlock(from);
        let removed = extent::remove(fs, self.owner, &mut self.root, at, to, budget)?;
        self.count(removed.change);
        for e in &removed.data {
            fs.free(e.range)?;
            self.blocks -= e.range.len;
        }
        Ok(removed.stopped_at.map(|b| b.0))
    }

    pub fn remove_all(&mut self, fs: &mut TestFs) {
        assert_eq!(self.remove(fs, 0, 1 << 32, usize::MAX).unwrap(), None);
        assert_eq!(self.blocks, 0);
        assert_eq!(extent::depth(&self.root), 0);
    }

    /// Frees the inode of an empty file or of a directory.
    pub fn delete(mut self, fs: &mut TestFs) {
        self.remove_all(fs);
        let mut unused = Inode::new(&fs.meta.sb);
        fs.put_inode(&self.slot, &mut unused);
        let (ino, directory) = (self.slot.ino, self.directory);
        fs.allocator
            .free_inode(&mut fs.meta, ino, directory)
            .unwrap();
    }

    /// Writes the inode.
    pub fn store(&self, fs: &mut TestFs) {
        let sb = fs.meta.sb.clone();
        let mut inode = Inode::new(&sb);
        inode.set_i_mode(if self.directory { 0o040_755 } else { 0o100_644 });
        inode.set_i_links_count(if self.directory { 2 } else { 1 });
        inode.set_i_flags(flags::EXTENTS);
        inode.set_i_generation(self.owner.generation);
        let size = u64::from(sb.block_size());
        inode.set_i_size(self.end * size);
        inode.set_i_blocks(&sb, self.blocks * size / 512).unwrap();
        inode.set_i_block(self.root);
        fs.put_inode(&self.slot, &mut inode);
    }
}

/// Writes the files' inodes, links them into the root directory, and lets e2fsck judge.
#[track_caller]
pub(crate) fn store_and_check(fs: &mut TestFs, files: &[TestFile]) {
    let mut commands = String::new();
    let mut directories = 0;
    for file in files {
        file.store(fs);
        commands += &format!("link <{0}> f{0}\n", file.slot.ino);
        directories += u32::from(file.directory);
    }
    commands += &format!("set_inode_field / links_count {}\n", 3 + directories);
    fs.debugfs(&commands);
    fs.fsck();
}
