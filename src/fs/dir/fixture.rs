//! For tests: a directory in memory that is moved into a real image and out of it with debugfs, and mounted by the kernel.

mod volume;

pub(crate) use volume::TestVolume;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use super::{DirFile, DirFileMut};
use crate::ext4::inode::flags::{EXTENTS, INDEX};
use crate::ext4::{FileType, Superblock};
use crate::fs::FsError;
use crate::journal::Image;
use crate::units::{FileBlock, Ino};

/// A directory in memory.
pub(crate) struct MemDir {
    pub sb: Superblock,
    pub ino: Ino,
    pub generation: u32,
    pub flags: u32,
    pub blocks: Vec<Image>,
    /// `append` fails at so many blocks.
    pub most_blocks: usize,
}

impl DirFile for MemDir {
    fn sb(&self) -> &Superblock {
        &self.sb
    }
    fn ino(&self) -> Ino {
        self.ino
    }
    fn generation(&self) -> u32 {
        self.generation
    }
    fn flags(&self) -> u32 {
        self.flags
    }
    fn blocks_count(&self) -> u32 {
        self.blocks.len() as u32
    }
    fn get(&self, block: FileBlock) -> Result<Image, FsError> {
        Ok(self.blocks[block.0 as usize].clone())
    }
}

impl DirFileMut for MemDir {
    fn modify(&mut self, block: FileBlock) -> Result<&mut [u8], FsError> {
        Ok(Arc::make_mut(&mut self.blocks[block.0 as usize]))
    }
    fn append(&mut self) -> Result<FileBlock, FsError> {
        if self.blocks.len() >= self.most_blocks {
            return Err(FsError::NoSpace);
        }
        self.blocks
            .push(vec![0; self.sb.block_size() as usize].into());
        Ok(FileBlock(self.blocks.len() as u32 - 1))
    }
    fn set_flags(&mut self, flags: u32) -> Result<(), FsError> {
        self.flags = flags;
        Ok(())
    }
}

/// An image of a file system, in a directory that goes away with it.
pub(crate) struct TestImage {
    pub temp: tempfile::TempDir,
    pub path: PathBuf,
}

/// The first file made in a new image.
pub(crate) const FIRST_INO: u32 = 12;

pub(crate) fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap_or_else(|why| panic!("{program}: {why}"))
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

impl TestImage {
    /// mke2fs with these features and block size.
    pub fn new(features: &str, block_size: u32, size: &str) -> TestImage {
        TestImage::new_with(features, block_size, size, 256)
    }

    /// The same with another inode size.
    pub fn new_with(features: &str, block_size: u32, size: &str, inode_size: u32) -> TestImage {
        let inode_size = inode_size.to_string();
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("image");
        let block_size = block_size.to_string();
        let output = run(
            "mke2fs",
            &[
                "-q",
                "-F",
                "-t",
                "ext4",
                "-O",
                features,
                "-b",
                &block_size,
                "-N",
                "2048",
                "-I",
                &inode_size,
                "-E",
                "hash_seed=6b1b0f3c-13a5-4e22-9d6c-58a7f3a6d001",
                path.to_str().unwrap(),
                size,
            ],
        );
        assert!(output.status.success(), "{}", text(&output));
        TestImage { temp, path }
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    pub fn sb(&self) -> Superblock {
        let bytes = fs::read(&self.path).unwrap();
        Superblock::decode(&bytes[1024..2048]).unwrap()
    }

    /// Runs debugfs commands for writing and returns what it said.
    pub fn debugfs(&self, commands: &str) -> String {
        let script = self.temp.path().join("script");
        fs::File::create(&script)
            .unwrap()
            .write_all(commands.as_bytes())
            .unwrap();
        let output = run(
            "debugfs",
            &["-w", "-f", script.to_str().unwrap(), self.path()],
        );
        text(&output)
    }

    /// Fails unless `e2fsck -fn` finds nothing.
    pub fn check(&self) {
        let output = run("timeout", &["120", "e2fsck", "-fn", self.path()]);
        let said = text(&output);
        assert!(
            output.status.code() == Some(0) && !said.contains("WARNING"),
            "{}",
            &said[..said.len().min(3000)]
        );
    }

    /// A directory for `files` files of link count `links` each, which are inodes 12 and on.
    pub fn new_dir(&self, files: u32) -> MemDir {
        let mut dir = MemDir {
            sb: self.sb(),
            ino: Ino(FIRST_INO + files),
            generation: 77,
            flags: if self.sb().has_incompat(0x40) {
                EXTENTS
            } else {
                0
            },
            blocks: Vec::new(),
            most_blocks: usize::MAX,
        };
        super::init(&mut dir, Ino(2)).unwrap();
        dir
    }

    /// Puts the directory, made by `new_dir`, into the image as `/d`; the files get names `/f0` and so on, and as many
    /// links as `links` says.
    pub fn import(&self, dir: &MemDir, links: &[u32]) {
        let empty = self.temp.path().join("empty");
        fs::write(&empty, b"").unwrap();
        let data = self.temp.path().join("data");
        fs::write(&data, dir.blocks.concat()).unwrap();
        let mut script = String::new();
        for (i, links) in links.iter().enumerate() {
            let ino = FIRST_INO + i as u32;
            script += &format!("write {} f{i}\n", empty.display());
            script += &format!("sif <{ino}> links_count {}\n", links + 1);
        }
        let ino = dir.ino;
        script += &format!(
            "write {} d\nsif <{ino}> mode 040755\nsif <{ino}> links_count 2\nsif <{ino}> flags {:#x}\n\
             sif <{ino}> generation {}\nunlink d\nln <{ino}> d\nsif <2> links_count 4\n\
             set_bg 0 used_dirs_count 3\nset_bg 0 checksum calc\n",
            data.display(),
            dir.flags,
            dir.generation,
        );
        self.debugfs(&script);
    }

    /// Takes a directory out of the image.
    pub fn export(&self, name: &str) -> MemDir {
        let said = self.debugfs(&format!("stat {name}\n"));
        let number = |before: &str| -> String {
            let at = said.find(before).unwrap_or_else(|| panic!("{said}")) + before.len();
            said[at..]
                .trim_start()
                .chars()
                .take_while(char::is_ascii_alphanumeric)
                .collect()
        };
        let ino = Ino(number("Inode:").parse().unwrap());
        let flags = u32::from_str_radix(number("Flags:").trim_start_matches("0x"), 16).unwrap();
        let generation = number("Generation:").parse().unwrap();
        let data = self.temp.path().join("exported");
        let output = run(
            "debugfs",
            &[
                "-R",
                &format!("dump {name} {}", data.display()),
                self.path(),
            ],
        );
        let sb = self.sb();
        let bytes = fs::read(&data).unwrap_or_else(|_| panic!("{}", text(&output)));
        let blocks = bytes
            .chunks(sb.block_size() as usize)
            .map(Image::from)
            .collect();
        MemDir {
            sb,
            ino,
            generation,
            flags,
            blocks,
            most_blocks: usize::MAX,
        }
    }

    /// Has the kernel mount it; `None`, said loudly, where that can not be.
    pub fn mount(&self) -> Option<Mounted> {
        let dir = self.temp.path().join("mnt");
        fs::create_dir_all(&dir).unwrap();
        let why = if !rustix::process::geteuid().is_root() {
            "not root".to_owned()
        } else {
            let output = run("mount", &["-o", "loop", self.path(), dir.to_str().unwrap()]);
            if output.status.success() {
                return Some(Mounted { dir });
            }
            text(&output)
        };
        assert!(
            std::env::var_os("LOCKSTEP_NO_SKIP").is_none(),
            "can not mount: {why}"
        );
        eprintln!("SKIPPED: can not mount an image with the kernel: {why}");
        None
    }
}

/// A mount by the kernel.
pub(crate) struct Mounted {
    dir: PathBuf,
}

impl Mounted {
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let output = run("umount", &[self.dir.to_str().unwrap()]);
        if !output.status.success() {
            eprintln!("{}", text(&output));
            run("umount", &["-l", self.dir.to_str().unwrap()]);
        }
    }
}

/// All names, as listed in calls that take `at_once` entries each.
pub(crate) fn names(dir: &MemDir, at_once: usize) -> Vec<(Vec<u8>, Ino, FileType)> {
    let mut all = Vec::new();
    let mut cookie = 0;
    loop {
        let (some, next) = take(dir, cookie, at_once);
        if some.is_empty() {
            return all;
        }
        all.extend(some);
        cookie = next;
    }
}

/// At most `at_once` entries from a cookie on, and the next cookie.
pub(crate) fn take(
    dir: &MemDir,
    mut cookie: u64,
    at_once: usize,
) -> (Vec<(Vec<u8>, Ino, FileType)>, u64) {
    let mut some = Vec::new();
    super::read(dir, cookie, &mut |entry| {
        if some.len() == at_once {
            return false;
        }
        some.push((entry.name.to_vec(), entry.ino, entry.file_type));
        cookie = entry.next_cookie;
        true
    })
    .unwrap();
    (some, cookie)
}

/// Whether the directory has an index.
pub(crate) fn is_indexed(dir: &MemDir) -> bool {
    dir.flags & INDEX != 0
}
