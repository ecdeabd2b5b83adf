//! Where this node keeps what replication needs on disk: dirty maps beside a volume's facts, parts of mirrors in the
//! store or on devices that its administrator offered.
//!
//! Owns the paths. A master never names one: it says how many parts and how large, and this side decides or refuses.

use super::catalogue::{self, Part, Role};
use super::history::NewEvent;
use super::registry::Node;
use super::volumes::chain;
use crate::io::Disk;
use crate::io::file::{FileDisk, OpenError, OpenMode};
use crate::mirror::follower::PartStore;
use crate::mirror::open::MapStore;
use crate::volume::Volume;
use crate::volume::parts::{Expect, PartSpec, PartsError, open_parts};
use states::Cause;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long a mount that was withdrawn may take to let go of a copy's parts, and how often that is looked at.
const RELEASED_WITHIN: Duration = Duration::from_secs(5);
const RELEASE_LOOK: Duration = Duration::from_millis(10);

/// Dirty maps as `map.PEER` in a volume's directory.
#[derive(Debug)]
pub struct MapFiles {
    dir: PathBuf,
}

impl MapFiles {
    /// Maps in `dir`.
    pub fn new(dir: &Path) -> MapFiles {
        MapFiles {
            dir: dir.to_owned(),
        }
    }

    fn path(&self, peer: &str) -> PathBuf {
        self.dir.join(format!("map.{peer}"))
    }

    /// Removes the map of a mirror that is no more.
    pub fn remove(&self, peer: &str) {
        for path in [self.path(peer), self.path(&format!("~todo.{peer}"))] {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!("{}: {e}", path.display());
                }
                _ => {}
            }
        }
    }
}

impl MapStore for MapFiles {
    fn open(&self, peer: &str, len: u64) -> io::Result<(Arc<dyn Disk>, bool)> {
        let path = self.path(peer);
        // A map of another length belongs to an earlier volume of this name, or was cut short: of no use.
        let usable = std::fs::metadata(&path).is_ok_and(|m| m.len() == len);
        if !usable && path.exists() {
            std::fs::remove_file(&path)?;
        }
        let mode = OpenMode {
            create_len: Some(len),
            read_only: false,
        };
        let disk = FileDisk::open(&path, mode).map_err(io::Error::other)?;
        // The node's own lock guards the directory. A detached mount that somebody still uses keeps a closed volume in
        // memory, and its maps with it, when the volume is opened again in another role.
        disk.unlock();
        Ok((Arc::new(disk), !usable))
    }
}

/// The parts of one mirror.
#[derive(Debug)]
pub struct MirrorParts {
    node: Weak<Node>,
    master: String,
}

impl MirrorParts {
    /// Parts for a mirror of a volume of the peer `master`.
    pub fn new(node: &Arc<Node>, master: &str) -> MirrorParts {
        MirrorParts {
            node: Arc::downgrade(node),
            master: master.to_owned(),
        }
    }
}

fn cause(error: &PartsError) -> Cause {
    match error {
        PartsError::NoRoom { .. } => Cause::TooLittleSpace,
        PartsError::Occupied { .. } => Cause::NameTaken,
        PartsError::Open { source, .. } => match source {
            OpenError::InUse { .. } => Cause::PartsInUse,
            _ if source.is_not_found() => Cause::PartsMissing,
            OpenError::Io { .. } => Cause::MirrorDiskFailing,
            _ => Cause::PartsRefused,
        },
        PartsError::Io { source, .. } => match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Cause::TooLittleSpace,
            _ => Cause::MirrorDiskFailing,
        },
        _ => Cause::PartsRefused,
    }
}

impl PartStore for MirrorParts {
    fn make(
        &self,
        volume: &str,
        volume_id: u128,
        block_size: u32,
        parts: &[u64],
    ) -> Result<Arc<Volume>, (Cause, String)> {
        let refused = |detail: String| (Cause::PartsRefused, detail);
        let node = self.node.upgrade();
        let node = node.ok_or_else(|| refused("the node is stopping".to_owned()))?;
        let (paths, created) = place(&node, volume, parts.len()).map_err(refused)?;
        let specs: Vec<PartSpec> = paths
            .iter()
            .zip(parts)
            .map(|(path, len)| PartSpec {
                path: path.clone(),
                len: Some(*len),
            })
            .collect();
        // Every block of the master may come to be used: room for all of it, so that the copy never stops half-way.
        let mut needed = Some(parts.iter().sum());
        let ours = marker(&node, volume);
        let expect = match std::fs::read_to_string(&ours) {
            Ok(id) if id.trim() == format!("{volume_id:032x}") => Expect::Ours,
            _ => Expect::Fresh,
        };
        if expect == Expect::Ours {
            needed = None;
        }
        wait_for_release(&node, volume);
        let made = open_parts(&specs, block_size, expect, needed);
        let disks = made.map_err(|e| (cause(&e), chain(&e)))?;
        let open = Volume::new(disks, block_size).map_err(|e| refused(chain(&e)))?;
        // Until the catalogue has them, this says that these parts are ours: an interruption here is no name clash.
        let written = node
            .state
            .create_volume(volume)
            .map_err(|e| e.to_string())
            .and_then(|_| {
                std::fs::write(&ours, format!("{volume_id:032x}\n")).map_err(|e| e.to_string())
            });
        written.map_err(|detail| (Cause::MirrorDiskFailing, detail))?;
        let entry = catalogue::Volume {
            role: Role::Mirror {
                master: self.master.clone(),
            },
            parts: specs
                .iter()
                .zip(parts)
                .map(|(spec, bytes)| Part {
                    path: spec.path.clone(),
                    bytes: *bytes,
                    created,
                })
                .collect(),
            block_size,
            mount: node.host(volume).ok().and_then(|h| h.mounts.wanted()),
            mirrors: BTreeSet::new(),
        };
        let entered = node.change(|c| {
            c.volumes.insert(volume.to_owned(), entry);
            Ok(())
        });
        entered.map_err(|e| (Cause::MirrorDiskFailing, e.message))?;
        let open = Arc::new(open);
        if let Ok(host) = node.host(volume) {
            *host.parts.lock() = Arc::downgrade(&open);
            node.publish(&host, |view| {
                view.size = parts.iter().sum();
                view.block_size = block_size;
            });
        }
        node.record(
            NewEvent::mirror("parts-made", volume, &self.master, "parts made")
                .with("parts", parts.len())
                .with("bytes", parts.iter().sum::<u64>()),
        );
        Ok(open)
    }
}

/// After a failure the parts are opened anew; whoever still reads the copy as it was, in this process, is about to let go
/// of it, and of the locks of its parts.
fn wait_for_release(node: &Node, volume: &str) {
    let Ok(host) = node.host(volume) else { return };
    let until = Instant::now() + RELEASED_WITHIN;
    while host.parts.lock().strong_count() > 0 && Instant::now() < until {
        std::thread::sleep(RELEASE_LOOK);
    }
}

fn marker(node: &Node, volume: &str) -> PathBuf {
    node.state.volume(volume).join("parts-of")
}

/// The paths of a mirror's parts, and whether they are lockstep's own files.
fn place(node: &Node, volume: &str, count: usize) -> Result<(Vec<PathBuf>, bool), String> {
    let name = &node.config.name;
    if let Some(devices) = node.config.devices.get(volume) {
        if devices.len() != count {
            return Err(format!(
                "{name} offers {} devices for {volume}, its master has {count} parts",
                devices.len()
            ));
        }
        return Ok((devices.clone(), false));
    }
    let Some(store) = &node.config.store else {
        return Err(format!(
            "{name} has neither a store nor devices for {volume} in its lockstep.toml"
        ));
    };
    let dir = store.join(volume);
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let parts = (0..count).map(|i| dir.join(format!("part{i}")));
    Ok((parts.collect(), true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_another_length_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let maps = MapFiles::new(dir.path());
        let (disk, new) = maps.open("beta", 8192).unwrap();
        assert!(new);
        disk.write_at(b"bits", 0).unwrap();
        drop(disk);
        let (disk, new) = maps.open("beta", 8192).unwrap();
        let mut bits = [0; 4];
        disk.read_at(&mut bits, 0).unwrap();
        assert!(!new && bits == *b"bits");
        drop(disk);
        assert!(maps.open("beta", 4096).unwrap().1);
        maps.remove("beta");
        assert!(!dir.path().join("map.beta").exists());
    }
}
