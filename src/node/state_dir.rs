//! The state directory: where everything of one node is, and that only one daemon uses it.
//!
//! Owns the names of the files in it and the lock. Never reads what is in them; `config`, `keys`, `catalogue`,
//! `history` and `control` do.
//!
//! ```text
//! lockstep.toml        configuration, edited by people
//! node.key             the private key, 0600
//! catalogue            peers, volumes, mirrors, mounts: text with a checksum
//! sled/                the same, and the history of events
//! lock                 held by the daemon
//! control.sock         the daemon's socket, 0600
//! volumes/NAME/        facts and dirty maps of one volume
//! lost/NAME/           what this node had to give up of one volume
//! ```

use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Where a node's state is unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/lockstep";

/// Why a state directory can not be used.
#[derive(Debug, Error)]
pub enum StateDirError {
    /// The system said no.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another daemon has it.
    #[error("{path} is in use by the daemon with process id {pid}")]
    InUse {
        /// The directory.
        path: PathBuf,
        /// As the other daemon wrote it; empty when it could not be read.
        pid: String,
    },
}

/// A node's state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir(PathBuf);

/// Held by the daemon for as long as it runs; released by the kernel however it ends.
#[derive(Debug)]
pub struct NodeLock {
    _file: File,
}

impl StateDir {
    /// The directory at `path`; nothing is created or checked.
    pub fn at(path: impl Into<PathBuf>) -> StateDir {
        StateDir(path.into())
    }

    /// Creates the directory with mode 0700, its parents as usual; an existing one stays as it is.
    pub fn create(&self) -> Result<(), StateDirError> {
        self.make(&self.0)?;
        self.make(&self.0.join("volumes"))
    }

    fn make(&self, dir: &Path) -> Result<(), StateDirError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|source| StateDirError::Io {
            path: dir.to_owned(),
            source,
        })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `lockstep.toml`.
    pub fn config(&self) -> PathBuf {
        self.0.join("lockstep.toml")
    }

    /// The private key.
    pub fn key(&self) -> PathBuf {
        self.0.join("node.key")
    }

    /// The catalogue's text.
    pub fn catalogue(&self) -> PathBuf {
        self.0.join("catalogue")
    }

    /// The database of catalogue and history.
    pub fn sled(&self) -> PathBuf {
        self.0.join("sled")
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// Where facts and maps of a volume are. `name` has been checked by `check_name`.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.0.join("volumes").join(name)
    }

    /// Makes the directory of a volume's facts.
    pub fn create_volume(&self, name: &str) -> Result<PathBuf, StateDirError> {
        let dir = self.volume(name);
        self.make(&dir)?;
        Ok(dir)
    }

    /// Takes the node's lock, or names the process that has it.
    pub fn lock(&self) -> Result<NodeLock, StateDirError> {
        let path = self.0.join("lock");
        let io = |source| StateDirError::Io {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Who has it is help for the reader; not knowing it changes nothing.
                let _ = file.take(32).read_to_string(&mut pid);
                return Err(StateDirError::InUse {
                    path: self.0.clone(),
                    pid: pid.trim().to_owned(),
                });
            }
            Err(e) => return Err(io(e.into())),
        }
        file.set_len(0).map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(NodeLock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_has_the_directory_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path().join("deep/state"));
        state.create().unwrap();
        let held = state.lock().unwrap();
        match state.lock() {
            Err(StateDirError::InUse { pid, .. }) => {
                assert_eq!(pid, std::process::id().to_string());
            }
            other => panic!("{other:?}"),
        }
        drop(held);
        state.lock().unwrap();
    }
}
