//! Where what only one side had is kept: `lost/VOLUME/ID.blocks` and `ID.json` in the state directory.
//!
//! Owns the files' names and the order in which they become durable. It outlasts the volume: `volume delete` leaves it.

use super::refusal::{Code, Refusal, check_name};
use crate::io::file::sync_parent;
use crate::mirror::lost::{LostIndex, LostRun, LostStore, LostWriter};
use serde_json::{Value, json};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

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

fn no_such(name: &str, id: &str) -> Refusal {
    Refusal::new(
        Code::NotFound,
        format!("nothing of {name} was kept aside here as {id}"),
        format!("lockstep lost list {name}"),
    )
}

impl LostFiles {
    fn index(&self, name: &str, id: &str) -> Result<(LostIndex, PathBuf), Refusal> {
        check_name("volume", name)?;
        check_name("record", id)?;
        let path = self.dir.join(name).join(format!("{id}.json"));
        let text = std::fs::read(&path).map_err(|_| no_such(name, id))?;
        let index = serde_json::from_slice(&text)
            .map_err(|e| Refusal::io(path.display(), format!("damaged: {e}")))?;
        Ok((index, path.with_extension("blocks")))
    }

    /// `lost list`: what was kept, of one volume or of all.
    pub fn list(&self, name: Option<&str>) -> Result<Value, Refusal> {
        let entries = |dir: &Path| -> Vec<String> {
            let read = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let mut names: Vec<String> = read
                .filter_map(|e| e.file_name().into_string().ok())
                .collect();
            names.sort();
            names
        };
        let volumes = match name {
            Some(name) => vec![name.to_owned()],
            None => entries(&self.dir),
        };
        let mut all = Vec::new();
        for volume in volumes {
            check_name("volume", &volume)?;
            for file in entries(&self.dir.join(&volume)) {
                let Some(id) = file.strip_suffix(".json") else {
                    continue;
                };
                let (index, _) = self.index(&volume, id)?;
                let files: std::collections::BTreeSet<&str> = index
                    .runs
                    .iter()
                    .filter_map(|r| r.path.as_deref())
                    .collect();
                all.push(json!({
                    "volume": volume,
                    "id": id,
                    "master": index.master,
                    "first": index.shared + 1,
                    "last": index.last,
                    "bytes": index.blocks() * u64::from(index.block_size),
                    "files": files.len(),
                    "complete": index.complete,
                }));
            }
        }
        Ok(Value::from(all))
    }

    /// `lost show`: files and byte ranges.
    pub fn show(&self, name: &str, id: &str) -> Result<Value, Refusal> {
        let (index, _) = self.index(name, id)?;
        serde_json::to_value(index).map_err(|e| Refusal::io("the index", e))
    }

    /// `lost extract`: every file of which contents were kept, with holes where none were, below `dir`.
    pub fn extract(&self, name: &str, id: &str, dir: &Path) -> Result<String, Refusal> {
        let (index, blocks) = self.index(name, id)?;
        let io = |what: &Path, e: io::Error| Refusal::io(what.display(), e);
        let kept = File::open(&blocks).map_err(|e| io(&blocks, e))?;
        verify(&kept, &index).map_err(|e| io(&blocks, e))?;
        let size = u64::from(index.block_size);
        let (mut files, mut bytes) = (std::collections::BTreeSet::new(), 0);
        for run in &index.runs {
            let Some((path, from, to)) = target(run, dir) else {
                continue;
            };
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(|e| io(parent, e))?;
            }
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false);
            // What somebody has put there is not written over.
            if files.insert(path.clone()) {
                options.create(false).create_new(true);
            }
            let out = options.open(&path).map_err(|e| io(&path, e))?;
            let mut at = from;
            let mut chunk = vec![0; CHUNK];
            while at < to {
                let n = ((to - at) as usize).min(CHUNK);
                let block = run.block + (at - from) / size;
                let place = place(&index, block).ok_or_else(|| no_such(name, id))?;
                let n = n.min((place.1 * size) as usize);
                kept.read_exact_at(&mut chunk[..n], place.0 * size)
                    .and_then(|()| out.write_all_at(&chunk[..n], at))
                    .map_err(|e| io(&path, e))?;
                at += n as u64;
                bytes += n as u64;
            }
        }
        Ok(format!(
            "{} files, {bytes} bytes, are in {}; where they have holes, nothing was changed",
            files.len(),
            dir.display()
        ))
    }
}

/// Where the contents of a run go: the file, its first byte and the one behind its last.
fn target(run: &LostRun, dir: &Path) -> Option<(PathBuf, u64, u64)> {
    let (from, to) = run.bytes?;
    let mut path = dir.to_owned();
    for part in Path::new(run.path.as_ref()?).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::RootDir => {}
            // A name that leads out of the directory is nobody's.
            _ => return None,
        }
    }
    (path != dir && from < to).then_some((path, from, to))
}

/// Which kept block `block` is, and how many follow it.
fn place(index: &LostIndex, block: u64) -> Option<(u64, u64)> {
    let mut before = 0;
    for (start, len) in &index.ranges {
        if (*start..start + len).contains(&block) {
            return Some((before + block - start, start + len - block));
        }
        before += len;
    }
    None
}

/// Whether the bytes are those that were kept.
fn verify(kept: &File, index: &LostIndex) -> io::Result<()> {
    let mut hash = Xxh3::new();
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let n = kept.read_at(&mut chunk, at)?;
        if n == 0 {
            break;
        }
        hash.update(&chunk[..n]);
        at += n as u64;
    }
    match hash.digest() == index.xxh3 {
        true => Ok(()),
        false => Err(io::Error::other("its checksum is wrong")),
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
