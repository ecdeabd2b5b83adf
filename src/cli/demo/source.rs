//! A real tree to begin with: documentation or sources that are on this machine anyway.
//!
//! Owns where to look, how a tree is copied and how two are compared. Never writes outside the destination, never follows
//! a symbolic link.

use super::super::Failed;
use super::interrupt::Interrupt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A copy is shown to be alive this often.
const SHOW_EVERY: Duration = Duration::from_millis(100);

/// Files that are enough, however small they are.
pub const MOST_FILES: u64 = 6000;

/// What was copied or compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Regular files.
    pub files: u64,
    /// Directories and symbolic links.
    pub others: u64,
    /// Bytes of regular files.
    pub bytes: u64,
}

/// Directories that may be there, the most ordinary first.
pub fn candidates() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/usr/share/doc")];
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let toolchains = home.iter().map(|h| h.join(".rustup/toolchains"));
    for toolchain in toolchains
        .filter_map(|t| std::fs::read_dir(t).ok())
        .flatten()
    {
        let Ok(toolchain) = toolchain else { continue };
        found.push(toolchain.path().join("lib/rustlib/src"));
        found.push(toolchain.path().join("share/doc"));
    }
    found.extend(home.iter().map(|h| h.join(".cargo/registry/src")));
    found.extend(["/usr/include", "/usr/share", "/usr/lib"].map(PathBuf::from));
    found.retain(|dir| dir.is_dir());
    found
}

/// Where a copy goes to. Paths are relative to its top.
pub trait Sink {
    /// Makes a directory.
    fn dir(&mut self, path: &Path) -> Result<(), Failed>;
    /// Makes a symbolic link.
    fn link(&mut self, path: &Path, target: &Path) -> Result<(), Failed>;
    /// Makes a file; its bytes.
    fn file(&mut self, path: &Path, source: &mut File, meta: &Metadata) -> Result<u64, Failed>;
}

/// A directory to copy into.
#[derive(Debug)]
pub struct Dir(pub PathBuf);

impl Sink for Dir {
    fn dir(&mut self, path: &Path) -> Result<(), Failed> {
        let path = self.0.join(path);
        std::fs::create_dir(&path).map_err(|e| Failed::here(path.display(), e))
    }

    fn link(&mut self, path: &Path, target: &Path) -> Result<(), Failed> {
        let path = self.0.join(path);
        let made = std::os::unix::fs::symlink(target, &path);
        made.map_err(|e| Failed::here(path.display(), e))
    }

    fn file(&mut self, path: &Path, source: &mut File, meta: &Metadata) -> Result<u64, Failed> {
        let path = self.0.join(path);
        let failed = |e: io::Error| Failed::here(path.display(), e);
        let mut target = File::create_new(&path).map_err(failed)?;
        let bytes = io::copy(source, &mut target).map_err(failed)?;
        // Readable for whoever runs this, so that it can be compared; no set-user-id in a temporary directory.
        let mode = meta.mode() & 0o777 | 0o600;
        let permissions = std::fs::Permissions::from_mode(mode);
        target.set_permissions(permissions).map_err(failed)?;
        if let Ok(modified) = meta.modified() {
            target.set_modified(modified).map_err(failed)?;
        }
        Ok(bytes)
    }
}

/// Copies trees, one after the other, each into a directory of its own in `to`, until there are `limit` bytes or `most`
/// files. What can not be read is left out. The trees that were used, and how much there is.
pub fn copy(
    trees: &[PathBuf],
    to: &mut dyn Sink,
    limit: u64,
    most: u64,
    interrupt: &Interrupt,
    mut shown: impl FnMut(&Extent),
) -> Result<(Vec<PathBuf>, Extent), Failed> {
    let mut copying = Copying {
        to,
        limit,
        most,
        interrupt,
        shown: &mut shown,
        at: Instant::now(),
        extent: Extent::default(),
    };
    let mut used = Vec::new();
    for (n, tree) in trees.iter().enumerate() {
        // The rest of a few blocks is not worth another tree.
        if copying.is_full() || limit - copying.extent.bytes < limit / 16 {
            break;
        }
        let name = tree.file_name().unwrap_or_default().to_string_lossy();
        // Two of one name are told apart.
        let dir = PathBuf::from(format!("{name}{}", "+".repeat(n)));
        copying.to.dir(&dir)?;
        let before = copying.extent;
        copying.dir(tree, &dir, 0)?;
        if copying.extent != before {
            used.push(tree.clone());
        }
    }
    Ok((used, copying.extent))
}

struct Copying<'a> {
    to: &'a mut dyn Sink,
    limit: u64,
    most: u64,
    interrupt: &'a Interrupt,
    shown: &'a mut dyn FnMut(&Extent),
    at: Instant,
    extent: Extent,
}

impl Copying<'_> {
    fn is_full(&self) -> bool {
        self.extent.bytes >= self.limit || self.extent.files >= self.most
    }

    fn dir(&mut self, from: &Path, to: &Path, depth: u32) -> Result<(), Failed> {
        for name in names(from).unwrap_or_default() {
            if self.is_full() || depth > 64 {
                break;
            }
            self.interrupt.check()?;
            let (source, target) = (from.join(&name), to.join(&name));
            let Ok(meta) = std::fs::symlink_metadata(&source) else {
                continue;
            };
            if meta.is_dir() {
                self.to.dir(&target)?;
                self.extent.others += 1;
                self.dir(&source, &target, depth + 1)?;
            } else if meta.is_symlink() {
                if let Ok(link) = std::fs::read_link(&source) {
                    self.to.link(&target, &link)?;
                    self.extent.others += 1;
                }
            } else if meta.is_file()
                && self.extent.bytes + meta.len() <= self.limit
                && let Ok(mut file) = File::open(&source)
            {
                self.extent.bytes += self.to.file(&target, &mut file, &meta)?;
                self.extent.files += 1;
            }
            if self.at.elapsed() > SHOW_EVERY {
                self.at = Instant::now();
                (self.shown)(&self.extent);
            }
        }
        Ok(())
    }
}

fn names(dir: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.push(entry?.file_name());
    }
    names.sort();
    Ok(names)
}

/// Compares two trees: names, kinds, modes, owners, times, links, contents. The first difference as a sentence.
pub fn compare(
    one: &Path,
    other: &Path,
    interrupt: &Interrupt,
) -> Result<Result<Extent, String>, Failed> {
    let mut extent = Extent::default();
    let found = compare_dirs(one, other, interrupt, &mut extent)?;
    Ok(found.map_or(Ok(extent), Err))
}

fn compare_dirs(
    one: &Path,
    other: &Path,
    interrupt: &Interrupt,
    extent: &mut Extent,
) -> Result<Option<String>, Failed> {
    let refused = |list: &io::Result<_>| {
        let error = list.as_ref().err();
        error.is_some_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
    };
    let (ours, theirs) = (names(one), names(other));
    // lost+found is root's, and whoever runs this need not be: then its attributes have to do.
    if refused(&ours) && refused(&theirs) {
        return Ok(None);
    }
    let ours = ours.map_err(|e| Failed::here(one.display(), e))?;
    let theirs = theirs.map_err(|e| Failed::here(other.display(), e))?;
    if ours != theirs {
        return Ok(Some(format!("{} has other names there", one.display())));
    }
    for name in ours {
        interrupt.check()?;
        let (a, b) = (one.join(&name), other.join(&name));
        let stat = |path: &Path| {
            std::fs::symlink_metadata(path).map_err(|e| Failed::here(path.display(), e))
        };
        let (meta, mirrored) = (stat(&a)?, stat(&b)?);
        let key = |m: &Metadata| {
            let time = (m.mtime(), m.mtime_nsec());
            // A directory's size and links are the file system's own affair, and equal as well.
            (m.mode(), m.uid(), m.gid(), m.size(), m.nlink(), time)
        };
        if key(&meta) != key(&mirrored) {
            return Ok(Some(format!("{} has other attributes there", a.display())));
        }
        let same = if meta.is_dir() {
            extent.others += 1;
            match compare_dirs(&a, &b, interrupt, extent)? {
                None => true,
                found => return Ok(found),
            }
        } else if meta.is_symlink() {
            extent.others += 1;
            std::fs::read_link(&a).ok() == std::fs::read_link(&b).ok()
        } else {
            extent.files += 1;
            extent.bytes += meta.len();
            same_contents(&a, &b)?
        };
        if !same {
            return Ok(Some(format!("{} has other contents there", a.display())));
        }
    }
    Ok(None)
}

fn same_contents(one: &Path, other: &Path) -> Result<bool, Failed> {
    let open = |path: &Path| File::open(path).map_err(|e| Failed::here(path.display(), e));
    let (mut a, mut b) = (open(one)?, open(other)?);
    let (mut left, mut right) = (vec![0; 256 << 10], Vec::new());
    loop {
        let n = a.read(&mut left);
        let n = n.map_err(|e| Failed::here(one.display(), e))?;
        right.resize(n.max(1), 0);
        let read = match n {
            0 => b.read(&mut right).map(|n| n == 0),
            _ => b.read_exact(&mut right).map(|()| right == left[..n]),
        };
        match read {
            Ok(true) if n == 0 => return Ok(true),
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(e) => return Err(Failed::here(other.display(), e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_equal_until_something_changes_and_keeps_its_limits() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("deep/er")).unwrap();
        std::fs::create_dir(&to).unwrap();
        for (name, len) in [("a", 10), ("deep/b", 300_000), ("deep/er/c", 0)] {
            std::fs::write(from.join(name), vec![b'x'; len]).unwrap();
        }
        std::os::unix::fs::symlink("a", from.join("link")).unwrap();
        let none = Interrupt::default();
        let trees = [from.clone()];
        let (used, extent) =
            copy(&trees, &mut Dir(to.clone()), 1 << 20, 100, &none, |_| {}).unwrap();
        assert_eq!(used, trees);
        let expected = Extent {
            files: 3,
            others: 3,
            bytes: 300_010,
        };
        assert_eq!(extent, expected);
        // The times of directories and links are those of the copy.
        let again = dir.path().join("again");
        let cp = std::process::Command::new("cp")
            .args(["-a"])
            .args([&to, &again])
            .status();
        assert!(cp.unwrap().success());
        assert_eq!(
            compare(&to, &again, &none).unwrap(),
            Ok(expected_with_top())
        );
        std::fs::write(again.join("from/deep/b"), vec![b'y'; 300_000]).unwrap();
        assert!(compare(&to, &again, &none).unwrap().is_err());

        let small = dir.path().join("small");
        std::fs::create_dir(&small).unwrap();
        let (_, extent) = copy(&trees, &mut Dir(small), 1000, 1, &none, |_| {}).unwrap();
        assert_eq!((extent.files, extent.bytes), (1, 10));
    }

    /// What is copied and the directory it is copied into.
    fn expected_with_top() -> Extent {
        Extent {
            files: 3,
            others: 4,
            bytes: 300_010,
        }
    }
}
