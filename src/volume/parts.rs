//! Making and validating the parts of a volume.
//!
//! Owns the description by which two sides compare their parts, and the rules for what may become a part. Never overwrites a
//! store that holds something unless told that it is ours. Invariant: when opening fails, files that it created are gone again.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Volume;
use crate::io::Disk;
use crate::io::file::{FileDisk, OpenError, OpenMode, sync_parent};

/// What has to be equal on all nodes of a volume: block size, number and sizes of the parts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Description {
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes of each part, in order.
    pub parts: Vec<u64>,
}

/// How two descriptions differ.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Differs {
    /// The blocks.
    #[error("the block has {found} bytes, not {expected}")]
    BlockSize {
        /// Bytes of a block, as wanted.
        expected: u32,
        /// Bytes of a block.
        found: u32,
    },
    /// The number of parts.
    #[error("there are {found} parts, not {expected}")]
    Count {
        /// Parts, as wanted.
        expected: usize,
        /// Parts.
        found: usize,
    },
    /// The size of a part.
    #[error("part {} has {found} bytes, not {expected}", part + 1)]
    Size {
        /// The first part that differs, from 0.
        part: usize,
        /// Bytes, as wanted.
        expected: u64,
        /// Bytes.
        found: u64,
    },
}

impl Description {
    /// The description of an open volume.
    pub fn of(volume: &Volume) -> Description {
        Description {
            block_size: volume.block_size(),
            parts: volume.parts().iter().map(|p| p.len()).collect(),
        }
    }

    /// Bytes of all parts together; `None` beyond 64 bits (a description may come from another node).
    pub fn total(&self) -> Option<u64> {
        self.parts
            .iter()
            .try_fold(0_u64, |sum, n| sum.checked_add(*n))
    }

    /// Whether it describes a volume at all: a supported block, at least one part, whole blocks.
    pub fn check(&self) -> Result<(), PartsError> {
        if !super::BLOCK_SIZES.contains(&self.block_size) {
            return Err(PartsError::BlockSize {
                found: self.block_size,
            });
        }
        if self.parts.is_empty() || self.total().is_none() {
            return Err(PartsError::Count {
                found: self.parts.len(),
            });
        }
        for (part, len) in self.parts.iter().enumerate() {
            check_len(part, *len, self.block_size)?;
        }
        Ok(())
    }

    /// The first difference of `found` from this one.
    pub fn compare(&self, found: &Description) -> Result<(), Differs> {
        if self.block_size != found.block_size {
            return Err(Differs::BlockSize {
                expected: self.block_size,
                found: found.block_size,
            });
        }
        if self.parts.len() != found.parts.len() {
            return Err(Differs::Count {
                expected: self.parts.len(),
                found: found.parts.len(),
            });
        }
        for (part, (expected, found)) in self.parts.iter().zip(&found.parts).enumerate() {
            if expected != found {
                return Err(Differs::Size {
                    part,
                    expected: *expected,
                    found: *found,
                });
            }
        }
        Ok(())
    }
}

fn check_len(part: usize, len: u64, block_size: u32) -> Result<(), PartsError> {
    if len == 0 || !len.is_multiple_of(u64::from(block_size)) {
        return Err(PartsError::NotWholeBlocks {
            part,
            len,
            block_size,
        });
    }
    Ok(())
}

/// One part to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartSpec {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Bytes it must have; `None` takes an existing store as it is.
    pub len: Option<u64>,
}

/// What is expected to be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing: files are created; a store that holds something is refused. An empty file, one that is all hole, and a
    /// device with zeros at both ends hold nothing.
    Fresh,
    /// Our own from earlier, perhaps incompletely made: what is missing is created, what exists is used.
    Ours,
    /// The stores, with something in them: the volume is adopted, or opened again. Nothing is created.
    Present,
    /// As `Present`, and opened for reading only.
    ReadOnly,
}

/// Why the parts could not be made or opened. Parts count from 0 here; messages count them from 1.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// Unsupported: ext4's other block sizes.
    #[error("blocks of {found} bytes are not supported; 1024, 2048 and 4096 are")]
    BlockSize {
        /// Bytes of a block.
        found: u32,
    },
    /// Refused: no parts, or more than 64 bits of bytes in them.
    #[error("{found} parts do not make a volume")]
    Count {
        /// Parts.
        found: usize,
    },
    /// Refused: the size of a part.
    #[error("part {} would have {len} bytes, which is no positive multiple of the block ({block_size} bytes)", part + 1)]
    NotWholeBlocks {
        /// Which part.
        part: usize,
        /// Bytes.
        len: u64,
        /// Bytes of a block.
        block_size: u32,
    },
    /// Refused: a part to be created, and no size for it.
    #[error("part {} ({}) does not exist, and no size is given for it", part + 1, path.display())]
    NoSize {
        /// Which part.
        part: usize,
        /// Where.
        path: PathBuf,
    },
    /// Refused: something is in the store that is not known to be ours.
    #[error("part {} ({}) is not empty", part + 1, path.display())]
    Occupied {
        /// Which part.
        part: usize,
        /// Where.
        path: PathBuf,
    },
    /// Refused: the file systems that the parts are on do not have the room.
    #[error("{needed} bytes are needed for the parts, and {available} are available")]
    NoRoom {
        /// Bytes that the parts will take.
        needed: u64,
        /// Bytes that are free, and those the parts take already.
        available: u64,
    },
    /// The store.
    #[error("part {}: {source}", part + 1)]
    Open {
        /// Which part.
        part: usize,
        /// What is wrong.
        source: OpenError,
    },
    /// The system refused.
    #[error("cannot {action} part {} ({})", part + 1, path.display())]
    Io {
        /// Which part.
        part: usize,
        /// Where.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// Removes created files unless told that all went well.
struct Created {
    paths: Vec<PathBuf>,
    keep: bool,
}

impl Drop for Created {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        for path in &self.paths {
            // What can not be removed stays as an empty file, which the next attempt accepts.
            let _ = std::fs::remove_file(path);
            let _ = sync_parent(path);
        }
    }
}

/// Makes and opens the parts, in order, each locked. `needed` is how many bytes will be written to them at least: asked
/// of the file systems of the parts that are files, if given.
pub fn open_parts(
    specs: &[PartSpec],
    block_size: u32,
    expect: Expect,
    needed: Option<u64>,
) -> Result<Vec<Arc<dyn Disk>>, PartsError> {
    if !super::BLOCK_SIZES.contains(&block_size) {
        return Err(PartsError::BlockSize { found: block_size });
    }
    if specs.is_empty() {
        return Err(PartsError::Count { found: 0 });
    }
    for (part, spec) in specs.iter().enumerate() {
        if let Some(len) = spec.len {
            check_len(part, len, block_size)?;
        }
    }
    // Dropped after the disks in `parts`, which are declared later.
    let mut created = Created {
        paths: Vec::new(),
        keep: false,
    };
    let mut parts: Vec<Arc<dyn Disk>> = Vec::with_capacity(specs.len());
    for (part, spec) in specs.iter().enumerate() {
        let disk = open_part(part, spec, expect, &mut created)?;
        check_len(part, disk.len(), block_size)?;
        parts.push(Arc::new(disk));
    }
    if let Some(needed) = needed {
        check_room(specs, needed)?;
    }
    created.keep = true;
    Ok(parts)
}

fn open_part(
    part: usize,
    spec: &PartSpec,
    expect: Expect,
    created: &mut Created,
) -> Result<FileDisk, PartsError> {
    let creates = matches!(expect, Expect::Fresh | Expect::Ours);
    let missing = !spec.path.exists();
    let read_only = expect == Expect::ReadOnly;
    let mut create_len = spec.len;
    if missing && creates {
        if spec.len.is_none() {
            return Err(PartsError::NoSize {
                part,
                path: spec.path.clone(),
            });
        }
        created.paths.push(spec.path.clone());
    } else if !creates {
        // An empty file is then a wrong size, not a part to be made.
        create_len = None;
    }
    let mode = OpenMode {
        create_len,
        read_only,
    };
    let opened = FileDisk::open(&spec.path, mode);
    if missing && creates && matches!(opened, Err(OpenError::InUse { .. })) {
        // Somebody else was faster: it is not ours to remove.
        created.paths.pop();
    }
    let disk = opened.map_err(|source| PartsError::Open { part, source })?;
    if let Some(expected) = spec.len
        && disk.len() != expected
    {
        return Err(PartsError::Open {
            part,
            source: OpenError::SizeDiffers {
                path: spec.path.clone(),
                expected,
                found: disk.len(),
            },
        });
    }
    if expect == Expect::Fresh && !missing {
        let empty = holds_nothing(&disk).map_err(|source| PartsError::Io {
            part,
            path: spec.path.clone(),
            action: "look into",
            source,
        })?;
        if !empty {
            return Err(PartsError::Occupied {
                part,
                path: spec.path.clone(),
            });
        }
    }
    Ok(disk)
}

/// Whether a store holds nothing that anybody could miss, as far as can be told cheaply.
fn holds_nothing(disk: &FileDisk) -> io::Result<bool> {
    /// Bytes at both ends of a device that are looked at: labels, superblocks and partition tables are there.
    const END: u64 = 1 << 20;
    if !disk.is_device() {
        return Ok(disk.is_hole(0, disk.len()));
    }
    let mut buf = vec![0; END.min(disk.len()) as usize];
    for offset in [0, disk.len() - buf.len() as u64] {
        disk.read_at(&mut buf, offset)?;
        if buf.iter().any(|b| *b != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Compares what is needed with what the file systems under the parts have left, each counted once. Devices bring
/// their own room.
fn check_room(specs: &[PartSpec], needed: u64) -> Result<(), PartsError> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let mut free: BTreeMap<u64, u64> = BTreeMap::new();
    let mut taken = 0_u64;
    for (part, spec) in specs.iter().enumerate() {
        let failed = |source: io::Error| PartsError::Io {
            part,
            path: spec.path.clone(),
            action: "ask for the free space of",
            source,
        };
        let found = std::fs::metadata(&spec.path).map_err(failed)?;
        if found.file_type().is_block_device() {
            taken = taken.saturating_add(spec.len.unwrap_or(u64::MAX));
            continue;
        }
        taken = taken.saturating_add(found.blocks().saturating_mul(512));
        let room = available(&spec.path).map_err(failed)?;
        free.insert(found.dev(), room);
    }
    let available = free
        .values()
        .fold(taken, |sum, room| sum.saturating_add(*room));
    if available < needed {
        return Err(PartsError::NoRoom { needed, available });
    }
    Ok(())
}

/// Bytes that an ordinary user may still take on the file system of `path`.
fn available(path: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests;
