//! What applications do to a volume, and what they may expect of it.
//!
//! Owns the operations and the comparison of a volume's files with what they should be. Every change is announced
//! before it begins and recorded when it is done, so that what a commit in between takes along is known. Files are named by
//! their path: in the root, or in one of a few directories. What is used stays below half of the volume: a write is
//! never refused for want of space.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lockstepfs::fs::{FallocMode, Fs, FsError, New, RenameFlags, SetAttr};
use lockstepfs::io::sim::SimRandom;
use lockstepfs::units::{Ino, Txid};
use parking_lot::Mutex;

use super::golden::{Files, Golden, Snapshot};
use super::policy::Door;

const ROOT: Ino = Ino(2);
const DIRS: u64 = 3;
const NAMES: u64 = 24;
/// Directories and symbolic links that come and go.
const PASSING: u64 = 16;
/// The longest overwrite, in bytes.
pub const OVERWRITE: u64 = 60_000;

fn new_file() -> New {
    New {
        mode: 0o100644,
        ..New::default()
    }
}

fn bytes_of(random: &SimRandom, len: u64) -> Vec<u8> {
    let start = random.next_u64();
    (0..len)
        .map(|i| (start.wrapping_add(i.wrapping_mul(0x9e37_79b9)) >> 7) as u8)
        .collect()
}

pub fn parent(fs: &Fs, path: &str) -> Result<(Ino, Vec<u8>), FsError> {
    match path.split_once('/') {
        Some((dir, name)) => Ok((
            fs.lookup(ROOT, dir.as_bytes())?.ino,
            name.as_bytes().to_vec(),
        )),
        None => Ok((ROOT, path.as_bytes().to_vec())),
    }
}

fn find(fs: &Fs, path: &str) -> Result<Ino, FsError> {
    let (dir, name) = parent(fs, path)?;
    Ok(fs.lookup(dir, &name)?.ino)
}

/// Makes the directories.
pub fn prepare(fs: &Fs) -> Result<(), FsError> {
    for dir in all_dirs() {
        make_dir(fs, &dir)?;
    }
    fs.sync().map(drop)
}

pub fn make_dir(fs: &Fs, name: &str) -> Result<(), FsError> {
    let new = New {
        mode: 0o040755,
        ..New::default()
    };
    fs.create(ROOT, name.as_bytes(), &new).map(drop)
}

/// The directories.
pub fn all_dirs() -> Vec<String> {
    (0..DIRS).map(|n| format!("d{n}")).collect()
}

fn some_path(random: &SimRandom) -> String {
    let n = random.below(NAMES);
    match random.below(3) {
        0 => format!("d{}/f{n}", random.below(DIRS)),
        _ => format!("f{n}"),
    }
}

/// Bytes in use, counting whole blocks.
fn used(files: &Files, block_size: u64) -> u64 {
    files
        .values()
        .map(|bytes| (bytes.len() as u64).div_ceil(block_size) * block_size)
        .sum()
}

/// Who works on a volume.
pub struct Work<'a> {
    pub fs: &'a Fs,
    pub golden: &'a Mutex<Golden>,
    pub random: &'a SimRandom,
    /// Bytes that may be in use.
    pub room: u64,
    pub door: &'a Door,
    pub now: Duration,
}

/// A change that has begun and has not been let in: who throttles says when it goes on.
#[derive(Debug)]
pub struct Writing {
    path: String,
    ino: Ino,
    /// What is still to be written, and where; or what is to be done with a range.
    at: u64,
    left: Vec<u8>,
    range: Option<(FallocMode, u64)>,
    contents: Arc<Vec<u8>>,
    /// It has been held back since then.
    pub since: Option<Duration>,
}

impl Work<'_> {
    fn contents(&self, path: &str) -> Option<Arc<Vec<u8>>> {
        self.golden.lock().files().files.get(path).cloned()
    }

    /// One operation on `paths`. While it runs they are unsure, and stay so after an error.
    fn change(
        &self,
        paths: &[&str],
        operation: impl FnOnce() -> Result<(), FsError>,
        result: impl FnOnce(&mut Files),
    ) -> Result<(), FsError> {
        {
            let mut golden = self.golden.lock();
            let unsure = &mut golden.files().unsure;
            unsure.extend(paths.iter().map(|path| path.to_string()));
        }
        operation()?;
        let mut golden = self.golden.lock();
        let now = golden.files();
        result(&mut now.files);
        for path in paths {
            now.unsure.remove(*path);
        }
        Ok(())
    }

    /// Goes on with a change, as far as it is let in. What is left of it, if anything is.
    pub fn go_on(&self, mut writing: Writing) -> Result<Option<Writing>, FsError> {
        loop {
            let len = writing.left.len() as u64;
            let waited = writing.since.map(|since| self.now - since);
            if !self.door.asks(self.fs, len, waited) {
                writing.since.get_or_insert(self.now);
                return Ok(Some(writing));
            }
            writing.since = None;
            let (ino, at) = (writing.ino, writing.at);
            let done = match writing.range {
                Some((mode, len)) => self.fs.fallocate(ino, mode, at, len).map(|()| 0),
                None => self.fs.write(ino, at, &writing.left),
            };
            self.door.leaves();
            let n = done?;
            assert!(n > 0 || len == 0, "a write of nothing");
            writing.at += n as u64;
            writing.left.drain(..n);
            if writing.left.is_empty() {
                break;
            }
        }
        let mut golden = self.golden.lock();
        let now = golden.files();
        now.unsure.remove(&writing.path);
        now.files.insert(writing.path, writing.contents);
        Ok(None)
    }

    /// Begins a change of one file, which `open` finds or makes.
    fn begin(
        &self,
        path: &str,
        open: impl FnOnce() -> Result<Ino, FsError>,
        (at, left): (u64, Vec<u8>),
        range: Option<(FallocMode, u64)>,
        contents: Vec<u8>,
    ) -> Result<Option<Writing>, FsError> {
        self.golden.lock().files().unsure.insert(path.to_string());
        self.go_on(Writing {
            path: path.to_string(),
            ino: open()?,
            at,
            left,
            range,
            contents: Arc::new(contents),
            since: None,
        })
    }

    /// One random operation; what is left of it when it is held back.
    pub fn step(&self) -> Result<Option<Writing>, FsError> {
        let path = some_path(self.random);
        if self.golden.lock().files().unsure.contains(&path) {
            return Ok(None);
        }
        let old = self.contents(&path);
        match (self.random.below(14), old) {
            (12..=13, _) => self.come_and_go().map(|()| None),
            (0..=4, old) => self.rewrite(&path, old.is_some()),
            (5..=7, Some(old)) => self.overwrite(&path, &old),
            (8, Some(_)) => self.unlink(&path).map(|()| None),
            (9, Some(old)) => self.rename(&path, &old).map(|()| None),
            (10, Some(old)) => self.fallocate(&path, &old),
            (11, Some(old)) => self.truncate(&path, &old).map(|()| None),
            (_, _) => self.rewrite(&path, false),
        }
    }

    /// Overwrites something in one of the files that are there.
    pub fn overwrite_one(&self) -> Result<Option<Writing>, FsError> {
        let found = {
            let mut golden = self.golden.lock();
            let now = golden.files();
            let sure = now
                .files
                .iter()
                .filter(|(path, _)| !now.unsure.contains(*path));
            let sure: Vec<_> = sure.collect();
            let at = self.random.below(sure.len() as u64) as usize;
            sure.get(at)
                .map(|(path, old)| (path.to_string(), Arc::clone(old)))
        };
        match found {
            Some((path, old)) => self.overwrite(&path, &old),
            None => self.step(),
        }
    }

    fn room_for(&self, bytes: u64) -> bool {
        let block_size = u64::from(self.fs.volume().block_size());
        used(&self.golden.lock().files().files, block_size) + bytes <= self.room
    }

    fn rewrite(&self, path: &str, exists: bool) -> Result<Option<Writing>, FsError> {
        let random = self.random;
        let most = self.room / 4;
        let len = match random.below(4) {
            0 => random.below(600) + 1,
            1 => random.below(6000) + 1,
            2 => random.below(120_000) + 1,
            _ => random.below(600_000) + 1,
        }
        .min(most);
        if !self.room_for(len) {
            if exists {
                self.unlink(path)?;
            }
            return Ok(None);
        }
        let contents = bytes_of(random, len);
        let (dir, name) = parent(self.fs, path)?;
        let open = || match exists {
            true => {
                let ino = self.fs.lookup(dir, &name)?.ino;
                let empty = SetAttr {
                    size: Some(0),
                    ..SetAttr::default()
                };
                self.fs.setattr(ino, &empty)?;
                Ok(ino)
            }
            false => Ok(self.fs.create(dir, &name, &new_file())?.ino),
        };
        self.begin(path, open, (0, contents.clone()), None, contents)
    }

    fn overwrite(&self, path: &str, old: &[u8]) -> Result<Option<Writing>, FsError> {
        let at = self.random.below(old.len() as u64 + 1);
        let bytes = bytes_of(self.random, self.random.below(OVERWRITE) + 1);
        if !self.room_for(bytes.len() as u64) {
            return Ok(None);
        }
        let ino = find(self.fs, path)?;
        let mut contents = old.to_vec();
        let end = at as usize + bytes.len();
        contents.resize(contents.len().max(end), 0);
        contents[at as usize..end].copy_from_slice(&bytes);
        self.begin(path, || Ok(ino), (at, bytes), None, contents)
    }

    fn unlink(&self, path: &str) -> Result<(), FsError> {
        let (dir, name) = parent(self.fs, path)?;
        self.change(
            &[path],
            || self.fs.unlink(dir, &name),
            |files| {
                files.remove(path);
            },
        )
    }

    /// Makes a directory or a long symbolic link, or removes it: its block is logged, freed, and somebody's data next.
    /// Nobody keeps account of them: only the blocks are compared.
    fn come_and_go(&self) -> Result<(), FsError> {
        let n = self.random.below(PASSING);
        let name = format!("{n}");
        match self.fs.lookup(ROOT, name.as_bytes()) {
            Ok(attr) if attr.mode & libc::S_IFMT == libc::S_IFDIR => {
                self.fs.rmdir(ROOT, name.as_bytes())
            }
            Ok(_) => self.fs.unlink(ROOT, name.as_bytes()),
            Err(FsError::Refused(libc::ENOENT)) if n.is_multiple_of(2) => make_dir(self.fs, &name),
            Err(FsError::Refused(libc::ENOENT)) => {
                let target = [b't'; 100];
                let made = self.fs.symlink(ROOT, name.as_bytes(), &target, 0, 0);
                made.map(drop)
            }
            Err(error) => Err(error),
        }
    }

    fn rename(&self, path: &str, old: &Arc<Vec<u8>>) -> Result<(), FsError> {
        let to = some_path(self.random);
        if to == path || self.golden.lock().files().unsure.contains(&to) {
            return Ok(());
        }
        let ((dir, name), (to_dir, to_name)) = (parent(self.fs, path)?, parent(self.fs, &to)?);
        let flags = RenameFlags::default();
        self.change(
            &[path, &to],
            || self.fs.rename(dir, &name, to_dir, &to_name, flags),
            |files| {
                files.remove(path);
                files.insert(to.clone(), Arc::clone(old));
            },
        )
    }

    fn fallocate(&self, path: &str, old: &[u8]) -> Result<Option<Writing>, FsError> {
        let random = self.random;
        let (at, len) = (random.below(old.len() as u64 + 1), random.below(90_000) + 1);
        let (mode, grows) = match random.below(3) {
            0 => (FallocMode::PunchHole, false),
            1 => (FallocMode::ZeroRange { keep_size: false }, true),
            _ => (FallocMode::Allocate { keep_size: false }, true),
        };
        if !self.room_for(len) {
            return Ok(None);
        }
        let ino = find(self.fs, path)?;
        let mut contents = old.to_vec();
        let end = (at + len) as usize;
        if grows {
            contents.resize(contents.len().max(end), 0);
        }
        if !matches!(mode, FallocMode::Allocate { .. }) {
            let end = end.min(contents.len());
            contents[at as usize..end].fill(0);
        }
        let range = Some((mode, len));
        self.begin(path, || Ok(ino), (at, Vec::new()), range, contents)
    }

    fn truncate(&self, path: &str, old: &[u8]) -> Result<(), FsError> {
        let size = self.random.below(old.len() as u64 + 5000);
        if !self.room_for(5000) {
            return Ok(());
        }
        let ino = find(self.fs, path)?;
        let mut contents = old.to_vec();
        contents.resize(size as usize, 0);
        let change = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        let operation = || self.fs.setattr(ino, &change).map(drop);
        self.change(&[path], operation, |files| {
            files.insert(path.to_string(), Arc::new(contents));
        })
    }
}

/// fsync of one file, or a sync of everything: what was there before is acknowledged with the transaction that is
/// returned.
pub fn sync(fs: &Fs, golden: &Mutex<Golden>, random: &SimRandom) -> Result<Txid, FsError> {
    let path = {
        let mut golden = golden.lock();
        let files = &golden.files().files;
        let at = random.below(files.len() as u64 * 2 + 1) as usize;
        files.keys().nth(at).cloned()
    };
    match path.and_then(|path| find(fs, &path).ok()) {
        Some(ino) => fs.fsync(ino, random.chance(50)),
        None => fs.sync(),
    }
}

/// The contents of one file; none when it is not there.
pub fn read(fs: &Fs, path: &str) -> Result<Option<Vec<u8>>, FsError> {
    let (dir, name) = match parent(fs, path) {
        Ok(found) => found,
        Err(FsError::Refused(libc::ENOENT)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let attr = match fs.lookup(dir, &name) {
        Ok(attr) => attr,
        Err(FsError::Refused(libc::ENOENT)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; attr.size as usize + 1];
    let mut len = 0;
    loop {
        let n = fs.read(attr.ino, attr.generation, len as u64, &mut bytes[len..])?;
        len += n;
        if n == 0 || len == bytes.len() {
            break;
        }
    }
    bytes.truncate(len);
    Ok(Some(bytes))
}

fn list(fs: &Fs, dir: Ino, prefix: &str, out: &mut BTreeSet<String>) -> Result<(), FsError> {
    fs.readdir(dir, 0, &mut |entry| {
        let name = String::from_utf8_lossy(entry.name);
        if name.contains('f') && name != "lost+found" {
            out.insert(format!("{prefix}{name}"));
        }
        true
    })
}

/// Every name that there may be.
pub fn all_names() -> Vec<String> {
    let files = || (0..NAMES).map(|n| format!("f{n}"));
    let inside = (0..DIRS).flat_map(|n| files().map(move |name| format!("d{n}/{name}")));
    files().chain(inside).collect()
}

/// The files of `fs` are those of `expected`, names and contents, but for what is unsure. An error is one of reading.
/// `rule` is the invariant that is broken when they are not.
pub fn compare(fs: &Fs, expected: &Snapshot, rule: &str, who: &str) -> Result<(), String> {
    let names = (|| {
        let mut names = BTreeSet::new();
        list(fs, ROOT, "", &mut names)?;
        for n in 0..DIRS {
            let dir = format!("d{n}");
            match fs.lookup(ROOT, dir.as_bytes()) {
                Ok(attr) => list(fs, attr.ino, &format!("{dir}/"), &mut names)?,
                Err(FsError::Refused(libc::ENOENT)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok::<_, FsError>(names)
    })();
    let names = names.map_err(|error| format!("listing {who}: {error}"))?;
    for name in names.iter().chain(expected.files.keys()) {
        if expected.unsure.contains(name) {
            continue;
        }
        let found = read(fs, name).map_err(|error| format!("reading {name} of {who}: {error}"))?;
        let wanted = expected.files.get(name);
        assert!(
            found.as_ref() == wanted.map(|bytes| &**bytes),
            "{rule}: {who} has {name} with {} bytes, expected {}{}",
            found.as_ref().map_or(-1, |b| b.len() as i64),
            wanted.map_or(-1, |b| b.len() as i64),
            first_difference(found.as_deref(), wanted.map(|b| &b[..]))
        );
    }
    Ok(())
}

fn first_difference(a: Option<&[u8]>, b: Option<&[u8]>) -> String {
    let (Some(a), Some(b)) = (a, b) else {
        return String::new();
    };
    match a.iter().zip(b).position(|(a, b)| a != b) {
        Some(at) => format!(", different from byte {at} on"),
        None => String::new(),
    }
}
