//! Making the file system of a new volume.
//!
//! Owns the default size of the buffer and the call of mke2fs: on a sparse scratch file as large as the volume, whose
//! contents are then copied into the parts, so that any number of parts of any kind is served alike. Never writes a file system
//! structure of its own. Invariant: the superblock reaches the parts last, after everything else is durable.

pub(crate) mod tools;

pub use tools::uuid_text;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom};

use super::{Volume, VolumeError};
use crate::units::{BlockNo, BlockRange};

/// Bytes of a block unless something else is asked for.
pub const DEFAULT_BLOCK_SIZE: u32 = 4096;
/// mke2fs's lower bound of a journal, in blocks.
pub const MIN_BUFFER_BLOCKS: u64 = 1024;
/// mke2fs's upper bound of a journal, in blocks.
pub const MAX_BUFFER_BLOCKS: u64 = 10_240_000;
/// Blocks below which mke2fs finds no room for the smallest journal beside its own structures.
pub const MIN_BLOCKS: u64 = 4096;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The size of the buffer, which is the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Buffer {
    /// By the rule of [`default_buffer_bytes`].
    #[default]
    Default,
    /// This many bytes, rounded up to whole MiB.
    Bytes(u64),
}

/// How the file system is made.
#[derive(Clone, Debug)]
pub struct MkfsOptions {
    /// The file system's UUID.
    pub uuid: u128,
    /// Its label, at most 16 bytes.
    pub label: Option<String>,
    /// The size of its journal.
    pub buffer: Buffer,
    /// Owner and group of the root directory; `None` is root.
    pub root_owner: Option<(u32, u32)>,
    /// Features to add or to take away, as for `mke2fs -O`.
    pub features: Option<String>,
    /// Where the scratch file is made: a sparse file as large as the volume. `None`: beside the first part that is a
    /// file, else in the directory for temporary files (which may be memory).
    pub scratch: Option<PathBuf>,
}

impl MkfsOptions {
    /// The defaults, the root directory belonging to whoever calls.
    pub fn new(uuid: u128) -> MkfsOptions {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        MkfsOptions {
            uuid,
            label: None,
            buffer: Buffer::Default,
            root_owner: (!uid.is_root()).then(|| (uid.as_raw(), gid.as_raw())),
            features: None,
            scratch: None,
        }
    }
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The journal's blocks, in no particular order. Preallocated in the parts that can.
    pub journal: Vec<BlockRange>,
    /// Bytes of the journal.
    pub buffer_bytes: u64,
}

/// Why no file system was made.
#[derive(Debug, thiserror::Error)]
pub enum MkfsError {
    /// A program of e2fsprogs is not installed.
    #[error("{tool} is not installed; it is in the package e2fsprogs")]
    ToolMissing {
        /// The program.
        tool: &'static str,
    },
    /// A program of e2fsprogs failed.
    #[error("{tool} failed: {message}")]
    Tool {
        /// The program.
        tool: &'static str,
        /// What it said.
        message: String,
    },
    /// A program of e2fsprogs said something that is not understood.
    #[error("{tool} does not say where {what} is")]
    Answer {
        /// The program.
        tool: &'static str,
        /// What was asked for.
        what: &'static str,
    },
    /// Refused: the volume's size.
    #[error("{found} blocks are too few for a file system with a journal; {MIN_BLOCKS} are needed")]
    TooSmall {
        /// Blocks of the volume.
        found: u64,
    },
    /// Refused: the buffer's size.
    #[error("a buffer of {found} bytes is out of bounds: from {least} to {most} bytes here")]
    Buffer {
        /// Bytes asked for.
        found: u64,
        /// Least bytes.
        least: u64,
        /// Most bytes.
        most: u64,
    },
    /// Refused: the label.
    #[error("the label {found:?} is longer than 16 bytes, or has a zero in it")]
    Label {
        /// The label.
        found: String,
    },
    /// The scratch file.
    #[error("cannot {action} the scratch file {}", path.display())]
    Scratch {
        /// Where it is.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The parts.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// The buffer of a volume of this many bytes when none is asked for: a tenth, at least 100 MiB from 1 GiB upwards and in
/// proportion below, at most 4 GiB; within mke2fs's bounds; whole MiB.
pub fn default_buffer_bytes(volume_bytes: u64, block_size: u32) -> u64 {
    let tenth = volume_bytes / 10;
    let wanted = if volume_bytes >= GIB {
        tenth.clamp(100 * MIB, 4 * GIB)
    } else {
        tenth
    };
    let (least, most) = bounds(block_size);
    (wanted / MIB * MIB).clamp(least, most)
}

/// The journal's size in MiB, which is what mke2fs counts in.
pub fn buffer_mib(buffer: Buffer, volume_bytes: u64, block_size: u32) -> Result<u64, MkfsError> {
    let (least, most) = bounds(block_size);
    // Half of the volume is mke2fs's own bound.
    let most = most.min(volume_bytes / 2 / MIB * MIB);
    match buffer {
        Buffer::Default => Ok(default_buffer_bytes(volume_bytes, block_size) / MIB),
        Buffer::Bytes(found) if found < least || found > most => {
            Err(MkfsError::Buffer { found, least, most })
        }
        Buffer::Bytes(found) => Ok(found.div_ceil(MIB)),
    }
}

/// Least and most bytes of a journal; both are whole MiB for every block size.
fn bounds(block_size: u32) -> (u64, u64) {
    let block = u64::from(block_size);
    (MIN_BUFFER_BLOCKS * block, MAX_BUFFER_BLOCKS * block)
}

/// Makes an ext4 file system in the parts of `volume`. What they held is gone; what the file system does not use is a
/// hole in files, and left as it is on devices.
pub fn make(volume: &Volume, options: &MkfsOptions) -> Result<Made, MkfsError> {
    let block_size = volume.block_size();
    if volume.blocks_count() < MIN_BLOCKS {
        return Err(MkfsError::TooSmall {
            found: volume.blocks_count(),
        });
    }
    if let Some(label) = &options.label
        && (label.len() > 16 || label.contains('\0'))
    {
        return Err(MkfsError::Label {
            found: label.clone(),
        });
    }
    let mib = buffer_mib(options.buffer, volume.len(), block_size)?;
    let directory = match &options.scratch {
        Some(directory) => directory.clone(),
        None => beside(volume).unwrap_or_else(std::env::temp_dir),
    };
    let scratch = Scratch::create(&directory, volume.len())?;
    tools::mke2fs(&scratch.path, volume, options, mib)?;
    let journal = tools::journal_ranges(&scratch.path)?;
    // mke2fs preallocates the journal; the part's own is about to be, perhaps on the same file system.
    scratch.trim(&journal, u64::from(block_size))?;
    let devices = volume.parts().iter().any(|p| p.changed_at().is_none());
    let tables = if devices {
        tools::table_ranges(&scratch.path)?
    } else {
        Vec::new()
    };
    blank(volume, &journal, &tables)?;
    for range in &journal {
        match volume.preallocate(*range) {
            // Some file systems can not; the journal is then as safe from a full disk as any other file there.
            Err(e) if e.is_unsupported() => {}
            other => other?,
        }
    }
    copy(&scratch, volume)?;
    Ok(Made {
        journal,
        buffer_bytes: mib * MIB,
    })
}

/// The directory of the first part that is a regular file.
fn beside(volume: &Volume) -> Option<PathBuf> {
    let name = volume
        .parts()
        .iter()
        .map(|p| PathBuf::from(p.name()))
        .find(|p| p.is_absolute() && p.is_file())?;
    name.parent().map(Path::to_owned)
}

/// Makes sure that what the scratch file has as holes reads as zeros where it matters: everywhere in files, which costs nothing,
/// and in the journal and the inode tables on devices. The old superblock goes first.
fn blank(volume: &Volume, journal: &[BlockRange], tables: &[BlockRange]) -> Result<(), MkfsError> {
    let size = u64::from(volume.block_size());
    volume.zero(BlockRange::new(BlockNo(0), HEAD / size))?;
    volume.flush()?;
    let mut start = 0;
    for part in volume.parts() {
        let whole = BlockRange::new(BlockNo(start), part.len() / size);
        start += whole.len;
        if part.changed_at().is_some() {
            volume.zero(whole)?;
            continue;
        }
        for range in journal.iter().chain(tables) {
            let from = range.start.max(whole.start);
            let to = range.end().min(whole.end());
            if from < to {
                volume.zero(BlockRange::new(from, to.0 - from.0))?;
            }
        }
    }
    Ok(())
}

/// Bytes at the start that are written last; they hold the superblock, and are whole blocks of every size.
const HEAD: u64 = 4096;

fn copy(scratch: &Scratch, volume: &Volume) -> Result<(), MkfsError> {
    let failed = |source: io::Error| scratch.failed("read", source);
    let mut buf = vec![0; MIB as usize];
    let mut at = HEAD;
    while let Some((from, to)) = data_after(&scratch.file, at).map_err(failed)? {
        let from = from.max(HEAD);
        let to = to.min(volume.len());
        let mut done = from;
        while done < to {
            let n = (to - done).min(MIB) as usize;
            scratch
                .file
                .read_exact_at(&mut buf[..n], done)
                .map_err(failed)?;
            volume.write_bytes(done, &buf[..n])?;
            done += n as u64;
        }
        at = to;
    }
    volume.flush()?;
    let head = &mut buf[..HEAD as usize];
    scratch.file.read_exact_at(head, 0).map_err(failed)?;
    volume.write_bytes(0, head)?;
    volume.flush()?;
    Ok(())
}

/// The next run of data at or after `at`: first byte, byte after the last.
fn data_after(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    let from = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(from) => from,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let to = rustix::fs::seek(file, SeekFrom::Hole(from))?;
    Ok((from < to).then_some((from, to)))
}

/// A sparse file that goes away with this value.
#[derive(Debug)]
struct Scratch {
    path: PathBuf,
    file: File,
}

impl Scratch {
    fn create(directory: &Path, len: u64) -> Result<Scratch, MkfsError> {
        // No two processes share a number, and a left-over of a dead one is passed over.
        for n in 0..1000 {
            let name = format!(".lockstep-mkfs-{}-{n}", std::process::id());
            let path = directory.join(name);
            let made = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path);
            match made {
                Ok(file) => {
                    let scratch = Scratch { path, file };
                    return match scratch.file.set_len(len) {
                        Ok(()) => Ok(scratch),
                        Err(e) => Err(scratch.failed("set the size of", e)),
                    };
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => {
                    return Err(MkfsError::Scratch {
                        path,
                        action: "create",
                        source,
                    });
                }
            }
        }
        Err(MkfsError::Scratch {
            path: directory.to_owned(),
            action: "find a name for",
            source: io::ErrorKind::AlreadyExists.into(),
        })
    }

    /// Gives back space that is reserved in `ranges` and holds nothing.
    fn trim(&self, ranges: &[BlockRange], block_size: u64) -> Result<(), MkfsError> {
        for range in ranges {
            let (mut at, end) = (range.start.0 * block_size, range.end().0 * block_size);
            while at < end {
                let (from, to) = data_after(&self.file, at)
                    .map_err(|e| self.failed("read", e))?
                    .unwrap_or((end, end));
                if from > at {
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    // Only space is at stake: a file system that can not punch does not preallocate either.
                    let _ = rustix::fs::fallocate(&self.file, flags, at, from.min(end) - at);
                }
                at = to;
            }
        }
        Ok(())
    }

    fn failed(&self, action: &'static str, source: io::Error) -> MkfsError {
        MkfsError::Scratch {
            path: self.path.clone(),
            action,
            source,
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests;
