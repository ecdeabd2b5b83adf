//! Files of a pair by their paths: written on the master's side, read on either.

use super::{Pair, PairError};
use crate::fs::{Attr, FileKind, Fs, FsError, New};
use crate::units::Ino;

/// The inode of every ext4's top directory.
const ROOT: Ino = Ino(2);
/// Bytes read at once.
const CHUNK: usize = 256 << 10;
/// Directories in each other, so that a damaged tree ends, too.
const MAX_DEPTH: usize = 256;

/// How much a tree is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Regular files.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
}

fn walk(fs: &Fs, path: &str) -> Result<Attr, FsError> {
    let mut attr = fs.getattr(ROOT)?;
    for name in path.split('/').filter(|n| !n.is_empty()) {
        attr = fs.lookup(attr.ino, name.as_bytes())?;
    }
    Ok(attr)
}

fn split(path: &str) -> (&str, &[u8]) {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    (dir, name.as_bytes())
}

fn contents(fs: &Fs, attr: &Attr) -> Result<Vec<u8>, FsError> {
    let mut all = Vec::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = fs.read(attr.ino, attr.generation, all.len() as u64, &mut chunk)?;
        if n == 0 {
            return Ok(all);
        }
        all.extend_from_slice(&chunk[..n]);
    }
}

fn new(mode: u32) -> New {
    New {
        mode,
        umask: 0,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
    }
}

impl Pair {
    fn master_fs(&self) -> &Fs {
        &self.master.shared.fs
    }

    /// Makes a directory on the master. Paths are relative to the volume's top.
    pub fn make_dir(&self, path: &str) -> Result<(), PairError> {
        let (dir, name) = split(path);
        let fs = self.master_fs();
        fs.create(walk(fs, dir)?.ino, name, &new(libc::S_IFDIR | 0o755))?;
        Ok(())
    }

    /// Makes a symbolic link on the master.
    pub fn make_link(&self, path: &str, target: &[u8]) -> Result<(), PairError> {
        let (dir, name) = split(path);
        let (fs, owner) = (self.master_fs(), new(0));
        fs.symlink(walk(fs, dir)?.ino, name, target, owner.uid, owner.gid)?;
        Ok(())
    }

    /// Writes a file on the master from `offset` on; it is made if it is not there.
    pub fn write(&self, path: &str, offset: u64, bytes: &[u8]) -> Result<(), PairError> {
        let (dir, name) = split(path);
        let fs = self.master_fs();
        let parent = walk(fs, dir)?.ino;
        let attr = match fs.lookup(parent, name) {
            Err(FsError::Refused(libc::ENOENT)) => {
                fs.create(parent, name, &new(libc::S_IFREG | 0o644))?
            }
            found => found?,
        };
        let mut done = 0;
        while done < bytes.len() {
            done += fs.write(attr.ino, offset + done as u64, &bytes[done..])?;
        }
        Ok(())
    }

    /// Makes everything written so far durable.
    pub fn sync(&self) -> Result<(), PairError> {
        self.master_fs().sync()?;
        Ok(())
    }

    /// What a file on the mirror has in it; `None` when it has no such file.
    pub fn read_mirror(&self, path: &str) -> Result<Option<Vec<u8>>, PairError> {
        let fs = self.follower.fs();
        let fs = fs.ok_or(PairError::Missing("consistent copy on the mirror"))?;
        match walk(&fs, path) {
            Ok(attr) => Ok(Some(contents(&fs, &attr)?)),
            Err(FsError::Refused(libc::ENOENT)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Compares both trees as their engines show them: names, attributes, contents. How much there is.
    pub fn compare(&self) -> Result<Extent, PairError> {
        let theirs = self.follower.fs();
        let theirs = theirs.ok_or(PairError::Missing("consistent copy on the mirror"))?;
        let mut extent = Extent::default();
        compare(self.master_fs(), &theirs, ROOT, "", 0, &mut extent)?;
        Ok(extent)
    }
}

fn names(fs: &Fs, dir: Ino) -> Result<Vec<(Vec<u8>, Ino)>, FsError> {
    let mut names = Vec::new();
    fs.readdir(dir, 0, &mut |entry| {
        if entry.name != b"." && entry.name != b".." {
            names.push((entry.name.to_vec(), entry.ino));
        }
        true
    })?;
    names.sort();
    Ok(names)
}

/// The mirror's inodes have the master's numbers: it is the same file system.
fn compare(
    ours: &Fs,
    theirs: &Fs,
    dir: Ino,
    path: &str,
    depth: usize,
    extent: &mut Extent,
) -> Result<(), PairError> {
    let list = names(ours, dir)?;
    if list != names(theirs, dir)? || depth > MAX_DEPTH {
        return Err(PairError::Differs(format!("list of names in /{path}")));
    }
    for (name, ino) in list {
        let path = format!("{path}/{}", String::from_utf8_lossy(&name));
        let (attr, mirrored) = (ours.getattr(ino)?, theirs.getattr(ino)?);
        if attr != mirrored {
            return Err(PairError::Differs(format!("set of attributes of {path}")));
        }
        let same = match attr.kind() {
            FileKind::Directory => {
                compare(ours, theirs, ino, &path, depth + 1, extent)?;
                true
            }
            FileKind::Regular => {
                extent.files += 1;
                extent.bytes += attr.size;
                contents(ours, &attr)? == contents(theirs, &mirrored)?
            }
            FileKind::Symlink => ours.readlink(ino)? == theirs.readlink(ino)?,
            _ => true,
        };
        if !same {
            return Err(PairError::Differs(format!("content of {path}")));
        }
    }
    Ok(())
}
