//! Where what only one side had is kept: `lost/VOLUME/ID.blocks` and `ID.json` in the state directory.
//!
//! Owns the files' names and the order in which they become durable. It outlasts the volume: `volume delete` leaves it.

use crate::io::file::sync_parent;
use crate::mirror::lost::{LostIndex, LostStore, LostWriter};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The directory `lost` of a node.
#[derive(Clone, Debug)]
pub struct LostFiles {
    dir: PathBuf,
}

impl LostFiles {
    /// Below the state directory `state`.
    pub fn new(state: &Path) -> LostFiles {
        LostFiles {
            dir: state.join("lost"),
        }
    }
}

struct Files {
    blocks: File,
    path: PathBuf,
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

impl LostStore for LostFiles {
    fn begin(&self, volume: &str, id: &str) -> io::Result<Box<dyn LostWriter>> {
        let dir = self.dir.join(volume);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        sync_parent(&dir)?;
        sync_parent(&self.dir)?;
        let path = dir.join(format!("{id}.json"));
        // What was kept under this name before, by an attempt that was cut off, does not count any more.
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        Ok(Box::new(Files {
            blocks: create(&path.with_extension("blocks"))?,
            path,
        }))
    }
}

impl LostWriter for Files {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.blocks.write_all(bytes)
    }

    fn finish(self: Box<Self>, index: &LostIndex) -> io::Result<()> {
        self.blocks.sync_all()?;
        let temporary = self.path.with_extension("new");
        let mut file = create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(index).map_err(io::Error::other)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.path)?;
        sync_parent(&self.path)
    }
}
