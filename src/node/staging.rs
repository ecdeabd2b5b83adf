//! Where this node keeps the staging log of a mirror: a file in the volume's own directory of the state directory, or in
//! the directory that `staging` in `lockstep.toml` names.
//!
//! Owns the path and how much of the file system it may take. A master never names one.

use super::registry::Node;
use crate::io::Disk;
use crate::io::file::{FileDisk, OpenMode};
use crate::mirror::staging::StagingStore;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of the file system that staging leaves free: the state directory holds what a node can not live without.
const LEAVE_FREE: u64 = 256 << 20;

/// A staging log as a file.
#[derive(Debug)]
pub struct StagingFile(PathBuf);

impl StagingFile {
    /// At `path`.
    pub fn at(path: PathBuf) -> StagingFile {
        StagingFile(path)
    }

    /// Where `node` is told to keep that of `volume`.
    pub fn of(node: &Node, volume: &str) -> StagingFile {
        StagingFile(match &node.config.staging {
            Some(dir) => dir.join(format!("{volume}.staging")),
            None => node.state.volume(volume).join("staging"),
        })
    }
}

impl StagingStore for StagingFile {
    fn room(&self) -> u64 {
        let Some(dir) = self.0.parent() else { return 0 };
        match rustix::fs::statvfs(dir) {
            Ok(found) => found
                .f_bavail
                .saturating_mul(found.f_frsize)
                .saturating_sub(LEAVE_FREE),
            Err(error) => {
                tracing::warn!(%error, "{}: nothing can be staged there", dir.display());
                0
            }
        }
    }

    fn create(&self, len: u64) -> io::Result<Arc<dyn Disk>> {
        self.remove()?;
        let mode = OpenMode {
            create_len: Some(len),
            read_only: false,
        };
        let disk = FileDisk::open(&self.0, mode).map_err(io::Error::other)?;
        Ok(Arc::new(disk))
    }

    fn open(&self) -> io::Result<Option<Arc<dyn Disk>>> {
        if !self.0.try_exists()? {
            return Ok(None);
        }
        let mode = OpenMode {
            create_len: None,
            read_only: true,
        };
        let disk = FileDisk::open(&self.0, mode).map_err(io::Error::other)?;
        Ok(Some(Arc::new(disk)))
    }

    fn remove(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
