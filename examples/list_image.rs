//! Opens an ext4 image read-only and lists what is in it. Nothing is written, not even by recovery: a journal that was left
//! dirty is replayed in memory.
//!
//!     cargo run --example list_image -- IMAGE [PART ...]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use lockstepfs::fs::{FileKind, Fs, FsOptions, FsRole, How, block_size_of, open_volume};
use lockstepfs::io::Disk;
use lockstepfs::io::file::{FileDisk, OpenMode, SystemClock, SystemRandom};
use lockstepfs::units::{Ino, Txid};
use lockstepfs::volume::Volume;

/// The inode of every ext4's top directory.
const ROOT: Ino = Ino(2);

fn main() -> Result<(), Box<dyn Error>> {
    let mut parts: Vec<Arc<dyn Disk>> = Vec::new();
    for path in std::env::args().skip(1) {
        let mode = OpenMode {
            create_len: None,
            read_only: true,
        };
        parts.push(Arc::new(FileDisk::open(path, mode)?));
    }
    let Some(first) = parts.first() else {
        return Err("usage: list_image IMAGE [PART ...]".into());
    };
    let block_size = block_size_of(first.as_ref())?;
    let volume = Arc::new(Volume::new(parts, block_size)?);
    let opened = open_volume(volume, Txid(0), How::ReadOnly)?;
    let options = FsOptions {
        role: FsRole::ReadOnly,
        clock: Arc::new(SystemClock::new()),
        random: Arc::new(SystemRandom),
        cache_bytes: 16 << 20,
        commit_interval: Duration::from_secs(1),
    };
    let fs = Fs::open(opened, options)?;
    list(&fs, ROOT, "")
}

/// Prints a directory and what is below it. The way back up is not followed, so this ends on any volume whose directories
/// form a tree; on one that is damaged otherwise, the depth of the path ends it.
fn list(fs: &Fs, dir: Ino, path: &str) -> Result<(), Box<dyn Error>> {
    if path.len() > 4096 {
        return Err(format!("{path}: too deep").into());
    }
    let mut names = Vec::new();
    fs.readdir(dir, 0, &mut |entry| {
        if entry.name != b"." && entry.name != b".." {
            names.push((String::from_utf8_lossy(entry.name).into_owned(), entry.ino));
        }
        true
    })?;
    names.sort();
    for (name, ino) in names {
        let attr = fs.getattr(ino)?;
        let path = format!("{path}/{name}");
        println!(
            "{:>6o} {:>3} {:>6} {:>6} {:>12} {path}",
            attr.mode, attr.nlink, attr.uid, attr.gid, attr.size
        );
        if attr.kind() == FileKind::Directory {
            list(fs, ino, &path)?;
        }
    }
    Ok(())
}
