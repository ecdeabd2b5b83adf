//! Making the file system of a new volume.
//!
//! Owns the default size of the buffer and the call of mke2fs: on a sparse scratch file as large as the volume, whose
//! contents are then copied into the parts, so that any number of parts of any kind is served alike. Never writes a file system
//! structure of its own. Invariant: the superblock reaches the parts last, after everything else is durable.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FallocateFlags, SeekFrom};

use super::{Volume, VolumeError};
use crate::units::{BlockNo, BlockRange, coalesce};

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
    mke2fs(&scratch.path, volume, options, mib)?;
    let journal = journal_ranges(&scratch.path)?;
    // mke2fs preallocates the journal; the part's own is about to be, perhaps on the same file system.
    scratch.trim(&journal, u64::from(block_size))?;
    let devices = volume.parts().iter().any(|p| p.changed_at().is_none());
    let tables = if devices {
        table_ranges(&scratch.path)?
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

fn mke2fs(
    scratch: &Path,
    volume: &Volume,
    options: &MkfsOptions,
    mib: u64,
) -> Result<(), MkfsError> {
    let mut extended = String::from("nodiscard");
    if let Some((uid, gid)) = options.root_owner {
        extended.push_str(&format!(",root_owner={uid}:{gid}"));
    }
    let mut command = tool("mke2fs")?;
    command.args(["-q", "-F", "-t", "ext4", "-E", &extended]);
    command.args(["-b", &volume.block_size().to_string()]);
    command.args(["-J", &format!("size={mib}")]);
    command.args(["-U", &uuid_text(options.uuid)]);
    if let Some(label) = &options.label {
        command.args(["-L", label]);
    }
    if let Some(features) = &options.features {
        command.args(["-O", features]);
    }
    command.arg(scratch).arg(volume.blocks_count().to_string());
    run("mke2fs", command).map(drop)
}

/// A UUID as it is written: 8-4-4-4-12 hexadecimal digits.
pub fn uuid_text(uuid: u128) -> String {
    let hex = format!("{uuid:032x}");
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

/// Where the journal (inode 8) is, as debugfs shows its extents.
fn journal_ranges(scratch: &Path) -> Result<Vec<BlockRange>, MkfsError> {
    let mut command = tool("debugfs")?;
    command.args(["-R", "ex <8>"]).arg(scratch);
    let text = run("debugfs", command)?;
    let ranges = coalesce(text.lines().filter_map(leaf_extent).collect());
    if ranges.is_empty() {
        return Err(MkfsError::Answer {
            tool: "debugfs",
            what: "the journal",
        });
    }
    Ok(ranges)
}

/// The physical range of a line such as ` 1/ 1   1/  4     0 - 32767   1050 - 33817  32768`; lines of inner nodes have
/// no second dash.
fn leaf_extent(line: &str) -> Option<BlockRange> {
    let mut halves = line.split(" - ");
    let (_, middle, tail) = (halves.next()?, halves.next()?, halves.next()?);
    let start: u64 = middle.split_whitespace().nth(1)?.parse().ok()?;
    let end: u64 = tail.split_whitespace().next()?.parse().ok()?;
    (start > 0 && end >= start).then(|| BlockRange::new(BlockNo(start), end - start + 1))
}

/// Where the inode tables are, as dumpe2fs lists them.
fn table_ranges(scratch: &Path) -> Result<Vec<BlockRange>, MkfsError> {
    let mut command = tool("dumpe2fs")?;
    command.arg(scratch);
    let text = run("dumpe2fs", command)?;
    let ranges = coalesce(text.lines().filter_map(inode_table).collect());
    if ranges.is_empty() {
        return Err(MkfsError::Answer {
            tool: "dumpe2fs",
            what: "the inode tables",
        });
    }
    Ok(ranges)
}

/// The range of a line such as `  Inode table at 275-786 (+274)`.
fn inode_table(line: &str) -> Option<BlockRange> {
    let rest = line.trim_start().strip_prefix("Inode table at ")?;
    let (start, end) = rest.split_whitespace().next()?.split_once('-')?;
    let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
    (end >= start).then(|| BlockRange::new(BlockNo(start), end - start + 1))
}

/// A command for a program of e2fsprogs, by its whole path: an ordinary user's PATH often lacks sbin.
pub(crate) fn tool(name: &'static str) -> Result<Command, MkfsError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = find_tool(name, &path).ok_or(MkfsError::ToolMissing { tool: name })?;
    let mut command = Command::new(found);
    command.env("LC_ALL", "C").stdin(Stdio::null());
    Ok(command)
}

/// Where distributions put it when PATH does not say.
const SBIN: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

fn find_tool(name: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .chain(SBIN.iter().map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| {
            std::fs::metadata(file)
                .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
}

fn run(tool: &'static str, mut command: Command) -> Result<String, MkfsError> {
    let failed = |message: String| MkfsError::Tool { tool, message };
    let out = command.output().map_err(|e| failed(e.to_string()))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        let message = match said.trim() {
            "" => out.status.to_string(),
            said => said.to_owned(),
        };
        return Err(failed(message));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
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
