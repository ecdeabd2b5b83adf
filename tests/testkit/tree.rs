//! A directory tree as a comparable listing.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use xxhash_rust::xxh3::Xxh3;

/// What is known of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `file`, `dir`, `link`, `fifo`, `socket`, `char` or `block`.
    pub kind: &'static str,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Names of the inode.
    pub nlink: u64,
    /// Device number.
    pub rdev: u64,
    /// Modified: seconds, nanoseconds.
    pub mtime: (i64, i64),
    /// Changed: seconds, nanoseconds.
    pub ctime: (i64, i64),
    /// The first name (in order) of the same inode.
    pub same_as: Vec<u8>,
    /// Where a symbolic link leads.
    pub target: Vec<u8>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// xxh3 of a file's contents.
    pub content: u128,
    /// A file's runs of data: first byte, byte after the last.
    pub data: Vec<(u64, u64)>,
    /// Sectors taken.
    pub blocks: u64,
}

/// What counts when two trees are compared; kinds, owners, modes, links, contents and attributes always do.
#[derive(Clone, Copy, Debug)]
pub struct Compare {
    /// Modification times.
    pub mtime: bool,
    /// Change times.
    pub ctime: bool,
    /// Sizes of directories: equal on one image, not on two that were filled in another order.
    pub dir_size: bool,
    /// Where files have holes.
    pub holes: bool,
    /// Sectors taken.
    pub blocks: bool,
}

impl Compare {
    /// All of it: two mounts of the same blocks.
    pub const ALL: Compare = Compare {
        mtime: true,
        ctime: true,
        dir_size: true,
        holes: true,
        blocks: true,
    };
    /// What a person would see: two trees that were made in the same way.
    pub const VISIBLE: Compare = Compare {
        mtime: true,
        ctime: false,
        dir_size: false,
        holes: false,
        blocks: false,
    };
}

/// The listing: path relative to the top -> what is there. The top itself has the empty path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<Vec<u8>, Entry>);

impl Tree {
    /// What differs from `other`, one line each.
    pub fn differences(&self, other: &Tree, compare: Compare) -> Vec<String> {
        let mut lines = Vec::new();
        let paths: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        for path in paths {
            let name = String::from_utf8_lossy(path);
            match (self.0.get(path), other.0.get(path)) {
                (Some(one), Some(two)) => {
                    for what in one.differences(two, compare) {
                        lines.push(format!("{name}: {what}"));
                    }
                }
                (Some(_), None) => lines.push(format!("{name}: only in the first")),
                _ => lines.push(format!("{name}: only in the second")),
            }
        }
        lines
    }

    /// Fails the test, showing what differs, unless the trees are the same.
    #[track_caller]
    pub fn assert_same(&self, other: &Tree, compare: Compare) {
        let lines = self.differences(other, compare);
        let shown = lines
            .iter()
            .take(40)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n");
        assert!(lines.is_empty(), "{} differences:\n{shown}", lines.len());
    }
}

impl Entry {
    fn differences(&self, other: &Entry, compare: Compare) -> Vec<String> {
        let mut lines = Vec::new();
        macro_rules! check {
            ($when:expr, $($field:ident),+) => {$(
                if $when && self.$field != other.$field {
                    let name = stringify!($field);
                    lines.push(format!("{name} {:?}, then {:?}", self.$field, other.$field));
                }
            )+};
        }
        check!(
            true, kind, mode, uid, gid, nlink, rdev, same_as, target, xattrs, content
        );
        check!(self.kind != "dir" || compare.dir_size, size);
        check!(compare.mtime, mtime);
        check!(compare.ctime, ctime);
        check!(compare.holes, data);
        check!(compare.blocks, blocks);
        lines
    }
}

/// Lists everything below `dir`, not crossing into other mounts' contents, and reads every file.
pub fn tree_digest(dir: &Path) -> io::Result<Tree> {
    let mut tree = BTreeMap::new();
    let mut inodes: HashMap<u64, Vec<Vec<u8>>> = HashMap::new();
    let mut todo = vec![PathBuf::new()];
    let device = std::fs::symlink_metadata(dir)?.dev();
    while let Some(relative) = todo.pop() {
        let path = dir.join(&relative);
        let found = std::fs::symlink_metadata(&path).map_err(|e| at(&path, e))?;
        let name = relative.as_os_str().as_bytes().to_vec();
        if found.is_dir() && found.dev() == device {
            for entry in std::fs::read_dir(&path).map_err(|e| at(&path, e))? {
                todo.push(relative.join(entry.map_err(|e| at(&path, e))?.file_name()));
            }
        }
        inodes.entry(found.ino()).or_default().push(name.clone());
        let entry = look(&path, &found).map_err(|e| at(&path, e))?;
        tree.insert(name, entry);
    }
    for names in inodes.values() {
        let first = names.iter().min().expect("an inode was found by a name");
        for name in names {
            let entry = tree.get_mut(name).expect("every name was listed");
            entry.same_as.clone_from(first);
        }
    }
    Ok(Tree(tree))
}

fn at(path: &Path, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

fn look(path: &Path, found: &Metadata) -> io::Result<Entry> {
    let kind = found.file_type();
    let kind = match kind {
        k if k.is_file() => "file",
        k if k.is_dir() => "dir",
        k if k.is_symlink() => "link",
        k if k.is_fifo() => "fifo",
        k if k.is_socket() => "socket",
        k if k.is_char_device() => "char",
        _ => "block",
    };
    let mut entry = Entry {
        kind,
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        size: found.size(),
        nlink: found.nlink(),
        rdev: found.rdev(),
        mtime: (found.mtime(), found.mtime_nsec()),
        ctime: (found.ctime(), found.ctime_nsec()),
        same_as: Vec::new(),
        target: Vec::new(),
        xattrs: xattrs(path)?,
        content: 0,
        data: Vec::new(),
        blocks: found.blocks(),
    };
    if kind == "link" {
        entry.target = std::fs::read_link(path)?
            .into_os_string()
            .as_bytes()
            .to_vec();
    }
    if kind == "file" {
        let file = File::open(path)?;
        // In this order: what was read of blocks that are allocated and unwritten counts as data from then on.
        entry.data = data(&file, found.size());
        entry.content = content(&file, found.size())?;
    }
    Ok(entry)
}

fn content(file: &File, size: u64) -> io::Result<u128> {
    let mut hash = Xxh3::new();
    let mut buf = vec![0; 1 << 17];
    let mut done = 0;
    while done < size {
        let n = (size - done).min(buf.len() as u64) as usize;
        file.read_exact_at(&mut buf[..n], done)?;
        hash.update(&buf[..n]);
        done += n as u64;
    }
    Ok(hash.digest128())
}

fn data(file: &File, size: u64) -> Vec<(u64, u64)> {
    let (mut runs, mut from) = (Vec::new(), 0);
    while let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(from)) {
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(size);
        runs.push((start, end));
        if end <= start {
            break;
        }
        from = end;
    }
    runs
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0_u8; 1 << 16];
    let n = match rustix::fs::llistxattr(path, names.as_mut_slice()) {
        Ok(n) => n,
        Err(rustix::io::Errno::NOTSUP) => return Ok(BTreeMap::new()),
        Err(e) => return Err(e.into()),
    };
    let mut found = BTreeMap::new();
    for name in names[..n]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0_u8; 1 << 16];
        let n = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), value.as_mut_slice())?;
        value.truncate(n);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}
