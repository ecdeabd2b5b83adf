//! Making varied trees from a seed, and changing them.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// Numbers from a seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True `percent` times of a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// One of `items`, which are not none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

/// Makes about `n` things below `dir`: small, large and sparse files, hard links, symbolic links short and long, extended
/// attributes, FIFOs, device nodes and other owners when root, deep directories, one large one, long names, old and far times.
/// About 40 KiB a thing. The same seed makes the same tree, but for change times.
pub fn populate_tree(dir: &Path, seed: u64, n: usize) -> io::Result<()> {
    let mut rng = Rng(seed);
    let root = super::is_root();
    let mut dirs = vec![dir.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    let crowd = dir.join("crowd");
    std::fs::create_dir(&crowd)?;
    let mut deep = dir.to_owned();
    for level in 0..12 {
        deep = deep.join(format!("level{level}"));
        std::fs::create_dir(&deep)?;
        dirs.push(deep.clone());
    }
    for i in 0..n {
        let parent = if rng.chance(25) {
            crowd.clone()
        } else {
            rng.pick(&dirs).clone()
        };
        let path = parent.join(name(&mut rng, i));
        match rng.below(100) {
            0..=9 => {
                std::fs::create_dir(&path)?;
                dirs.push(path.clone());
            }
            10..=17 => symlink(&mut rng, &path)?,
            18..=24 if !files.is_empty() => {
                std::fs::hard_link(rng.pick(&files), &path)?;
                continue;
            }
            25..=27 => node(&path, FileType::Fifo, 0)?,
            28 => node(&path, FileType::Socket, 0)?,
            29..=30 if root => {
                let device = rustix::fs::makedev(rng.below(200) as u32, rng.below(1 << 20) as u32);
                node(&path, FileType::CharacterDevice, device)?;
            }
            31 if root => node(&path, FileType::BlockDevice, rustix::fs::makedev(7, 300))?,
            _ => {
                file(&mut rng, &path)?;
                files.push(path.clone());
            }
        }
        attributes(&mut rng, &path, root)?;
    }
    Ok(())
}

/// Makes about `n` changes below `dir`, as [`populate_tree`] left it: files made, overwritten, extended, cut, punched, linked,
/// renamed (also over others) and removed; attributes changed.
pub fn mutate_tree(dir: &Path, seed: u64, n: usize) -> io::Result<()> {
    let mut rng = Rng(seed ^ 0x6d75_7461_7465);
    let root = super::is_root();
    let (mut files, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    list(dir, &mut files, &mut dirs)?;
    for i in 0..n {
        let mut made = format!("m{seed}-{}", name(&mut rng, i));
        while made.len() > 255 {
            made.pop();
        }
        let new = rng.pick(&dirs).join(made);
        if files.is_empty() || rng.chance(25) {
            file(&mut rng, &new)?;
            files.push(new);
            continue;
        }
        let which = rng.below(files.len() as u64) as usize;
        let old = files[which].clone();
        match rng.below(100) {
            0..=29 => {
                let open = File::options().read(true).write(true).open(&old)?;
                let len = open.metadata()?.len();
                let data = {
                    let n = rng.below(40_000) as usize + 1;
                    rng.bytes(n)
                };
                let at = rng.below(len + 1);
                open.write_all_at(&data, at)?;
            }
            30..=44 => {
                let open = File::options().write(true).open(&old)?;
                let len = open.metadata()?.len();
                open.set_len(rng.below(len + 20_000))?;
            }
            45..=54 => {
                std::fs::hard_link(&old, &new)?;
                files.push(new);
            }
            55..=64 => {
                std::fs::rename(&old, &new)?;
                files[which] = new;
            }
            65..=69 => {
                let other = rng.below(files.len() as u64) as usize;
                if other != which {
                    std::fs::rename(&old, &files[other])?;
                    // Two names of one inode: rename does nothing, and both stay.
                    if !old.exists() {
                        files.swap_remove(which);
                    }
                }
            }
            70..=84 => {
                std::fs::remove_file(&old)?;
                files.swap_remove(which);
            }
            _ => attributes(&mut rng, &old, root)?,
        }
    }
    Ok(())
}

/// Regular files and directories below `dir`, in an order that the file system has no say in.
fn list(dir: &Path, files: &mut Vec<PathBuf>, dirs: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        let kind = entry.file_type()?;
        if kind.is_file() {
            files.push(entry.path());
        } else if kind.is_dir() && entry.file_name() != "lost+found" {
            dirs.push(entry.path());
            list(&entry.path(), files, dirs)?;
        }
    }
    Ok(())
}

fn name(rng: &mut Rng, i: usize) -> String {
    let mut name = format!("n{i}");
    match rng.below(20) {
        0 => {
            name.push('-');
            while name.len() < 255 {
                name.push(char::from(b'a' + rng.below(26) as u8));
            }
        }
        1 => name.push_str(" ä\u{1f600}\n\\x"),
        2..=5 => name.push_str(&"-longer".repeat(rng.below(8) as usize)),
        _ => {}
    }
    name
}

fn file(rng: &mut Rng, path: &Path) -> io::Result<()> {
    let file = File::create(path)?;
    match rng.below(20) {
        0 => {}
        1 => {
            // Sparse: a few pieces far from each other, and a hole at the end.
            for _ in 0..rng.below(6) {
                let data = {
                    let n = rng.below(9000) as usize + 1;
                    rng.bytes(n)
                };
                let at = rng.below(1 << 26);
                file.write_all_at(&data, at)?;
            }
            let end = file.metadata()?.len() + rng.below(1 << 20);
            file.set_len(end)?;
        }
        2 => {
            let data = {
                let n = rng.below(1 << 20) as usize;
                rng.bytes(n)
            };
            file.write_all_at(&data, 0)?;
        }
        3..=5 => {
            // Written backwards: extents in the wrong order, to be merged.
            let pieces = rng.below(12);
            for piece in (0..pieces).rev() {
                file.write_all_at(&rng.bytes(4096), piece * 4096)?;
            }
        }
        _ => {
            let data = {
                let n = rng.below(12_000) as usize;
                rng.bytes(n)
            };
            file.write_all_at(&data, 0)?;
        }
    }
    Ok(())
}

fn symlink(rng: &mut Rng, path: &Path) -> io::Result<()> {
    // 59 bytes fit into the inode, 60 do not; 4,000 need more than a block of 1 or 2 KiB, which is ENAMETOOLONG there.
    let len = *rng.pick(&[1, 20, 59, 60, 61, 200, 1000]);
    let target: String = (0..len)
        .map(|_| char::from(b'a' + rng.below(26) as u8))
        .collect();
    std::os::unix::fs::symlink(target, path)
}

fn node(path: &Path, kind: FileType, device: u64) -> io::Result<()> {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device).map_err(Into::into)
}

fn attributes(rng: &mut Rng, path: &Path, root: bool) -> io::Result<()> {
    let kind = std::fs::symlink_metadata(path)?.file_type();
    if root && rng.chance(30) {
        let (uid, gid) = (rng.below(1 << 17) as u32, rng.below(1 << 17) as u32);
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
    }
    if !kind.is_symlink() && rng.chance(40) {
        let mode = rng.below(0o10000) as u32 | 0o600 | if kind.is_dir() { 0o100 } else { 0 };
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
    }
    if (kind.is_file() || kind.is_dir()) && rng.chance(25) {
        for i in 0..=rng.below(4) {
            let len = *rng.pick(&[0, 1, 20, 300, 700]);
            let space = if root && rng.chance(20) {
                "trusted"
            } else {
                "user"
            };
            let value = rng.bytes(len);
            match rustix::fs::setxattr(
                path,
                format!("{space}.name{i}"),
                &value,
                XattrFlags::empty(),
            ) {
                // A full attribute block, or a file system without them.
                Ok(()) | Err(rustix::io::Errno::NOSPC | rustix::io::Errno::NOTSUP) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    if kind.is_symlink() || rng.chance(70) {
        // From 1901 to 2446 with inodes of 256 bytes; those of 128 end in 2038, without nanoseconds.
        let secs = *rng.pick(&[-2_000_000_000, -1, 0, 1_234_567_890, 2_147_483_647]);
        let time = Timespec {
            tv_sec: secs,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
