//! Opening images with the engine, and listing what it sees in the form in which a mounted tree is listed.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lockstepfs::fs::{
    Attr, FileKind, Fs, FsError, FsOptions, FsRole, How, Opened, Whence, open_volume,
};
use lockstepfs::io::file::{FileDisk, OpenMode, SystemClock, SystemRandom};
use lockstepfs::io::sim::{SimClock, SimRandom};
use lockstepfs::io::{Disk, Timespec};
use lockstepfs::units::{Generation, Ino, Txid};
use lockstepfs::volume::Volume;
use xxhash_rust::xxh3::Xxh3;

use crate::testkit::tree::{Entry, Tree};

pub const ROOT: Ino = Ino(2);

/// The options of most tests.
pub fn options(role: FsRole) -> FsOptions {
    FsOptions {
        role,
        clock: Arc::new(SystemClock::new()),
        random: Arc::new(SystemRandom),
        cache_bytes: 8 << 20,
        commit_interval: Duration::from_secs(5),
    }
}

/// Options of a master in a world that runs the same way each time: a clock that stands still, numbers from a seed.
pub fn simulated(seed: u64) -> FsOptions {
    let start = Timespec {
        secs: 1_700_000_000,
        nanos: 5,
    };
    FsOptions {
        clock: Arc::new(SimClock::new(start)),
        random: Arc::new(SimRandom::new(seed)),
        ..options(FsRole::Master)
    }
}

/// One volume over disks.
pub fn volume(disks: Vec<Arc<dyn Disk>>, block_size: u32) -> Arc<Volume> {
    Arc::new(Volume::new(disks, block_size).expect("the parts make a volume"))
}

/// A file as a disk.
pub fn file_disk(path: &Path, read_only: bool) -> Arc<dyn Disk> {
    let mode = OpenMode {
        create_len: None,
        read_only,
    };
    Arc::new(FileDisk::open(path, mode).expect("the image can be opened"))
}

/// Opens an image that nothing is to be written to.
pub fn open_read_only(path: &Path, block_size: u32) -> Fs {
    let volume = volume(vec![file_disk(path, true)], block_size);
    let opened = open_volume(volume, Txid(0), How::ReadOnly).expect("the image opens");
    Fs::open(opened, options(FsRole::ReadOnly)).expect("the engine opens")
}

/// Opens a volume as a master.
pub fn open_master(volume: Arc<Volume>) -> Result<Fs, FsError> {
    open_master_with(volume, options(FsRole::Master))
}

/// Opens a volume as a master, with options.
pub fn open_master_with(volume: Arc<Volume>, options: FsOptions) -> Result<Fs, FsError> {
    let opened: Opened = open_volume(volume, Txid(0), How::ReadWrite)?;
    let first = opened.journal.last_committed().next();
    let generation = Generation(options.random.u128());
    opened.journal.begin_segment(generation, first)?;
    Fs::open(opened, options)
}

/// Opens an image as a master.
pub fn open_image(path: &Path, block_size: u32) -> Fs {
    open_master(volume(vec![file_disk(path, false)], block_size)).expect("the engine opens")
}

/// The inode at a path, "/" separated, from the root.
pub fn at(fs: &Fs, path: &str) -> Result<Attr, FsError> {
    let mut attr = fs.getattr(ROOT)?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        attr = fs.lookup(attr.ino, name.as_bytes())?;
    }
    Ok(attr)
}

/// The whole of a file.
pub fn contents(fs: &Fs, attr: &Attr) -> Result<Vec<u8>, FsError> {
    let mut bytes = vec![0; attr.size as usize];
    let mut done = 0;
    while done < bytes.len() {
        let to = (done + (1 << 20)).min(bytes.len());
        let n = fs.read(attr.ino, attr.generation, done as u64, &mut bytes[done..to])?;
        if n == 0 {
            break;
        }
        done += n;
    }
    bytes.truncate(done);
    Ok(bytes)
}

/// Everything the engine sees.
pub fn tree(fs: &Fs) -> Result<Tree, FsError> {
    let mut tree = BTreeMap::new();
    let mut inodes: HashMap<Ino, Vec<Vec<u8>>> = HashMap::new();
    let mut todo = vec![(Vec::new(), ROOT)];
    while let Some((path, ino)) = todo.pop() {
        let attr = fs.getattr(ino)?;
        if attr.kind() == FileKind::Directory {
            // In small helpings, so that cookies are used.
            let mut cookie = 0;
            loop {
                let mut taken = 0;
                let mut names: Vec<(Vec<u8>, Ino)> = Vec::new();
                fs.readdir(ino, cookie, &mut |entry| {
                    if taken == 7 {
                        return false;
                    }
                    taken += 1;
                    cookie = entry.next_cookie;
                    if entry.name != b"." && entry.name != b".." {
                        names.push((entry.name.to_vec(), entry.ino));
                    }
                    true
                })?;
                for (name, child) in names {
                    assert_eq!(fs.lookup(ino, &name)?.ino, child, "listed and looked up");
                    let mut below = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend(name);
                    todo.push((below, child));
                }
                if taken < 7 {
                    break;
                }
            }
        }
        inodes.entry(ino).or_default().push(path.clone());
        tree.insert(path, entry(fs, &attr)?);
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

fn entry(fs: &Fs, attr: &Attr) -> Result<Entry, FsError> {
    let kind = match attr.kind() {
        FileKind::Regular => "file",
        FileKind::Directory => "dir",
        FileKind::Symlink => "link",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "char",
        _ => "block",
    };
    let time = |t: Timespec| (t.secs, i64::from(t.nanos));
    let mut xattrs = BTreeMap::new();
    for name in fs.listxattr(attr.ino)? {
        let value = fs.getxattr(attr.ino, &name)?;
        xattrs.insert(name, value);
    }
    let mut entry = Entry {
        kind,
        mode: attr.mode & 0o7777,
        uid: attr.uid,
        gid: attr.gid,
        size: attr.size,
        nlink: u64::from(attr.nlink),
        rdev: u64::from(attr.rdev),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        same_as: Vec::new(),
        target: Vec::new(),
        xattrs,
        content: 0,
        data: Vec::new(),
        blocks: attr.blocks,
    };
    if kind == "link" {
        entry.target = fs.readlink(attr.ino)?;
    }
    if kind == "file" {
        entry.content = content(fs, attr)?;
        entry.data = data(fs, attr)?;
    }
    Ok(entry)
}

fn content(fs: &Fs, attr: &Attr) -> Result<u128, FsError> {
    let mut hash = Xxh3::new();
    // Not a multiple of any block.
    let mut buf = vec![0; (1 << 17) + 333];
    let mut done = 0;
    while done < attr.size {
        let n = fs.read(attr.ino, attr.generation, done, &mut buf)?;
        assert!(n > 0, "the file goes on");
        hash.update(&buf[..n]);
        done += n as u64;
    }
    Ok(hash.digest128())
}

fn data(fs: &Fs, attr: &Attr) -> Result<Vec<(u64, u64)>, FsError> {
    let (mut runs, mut from) = (Vec::new(), 0);
    while let Ok(start) = fs.seek(attr.ino, from, Whence::Data) {
        let end = fs.seek(attr.ino, start, Whence::Hole)?;
        runs.push((start, end));
        from = end;
    }
    Ok(runs)
}
