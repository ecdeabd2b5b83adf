//! What a node knows of its peers, volumes, mirrors and mounts.
//!
//! Owns the catalogue, in two copies: the `catalogue` text file and a tree in sled. sled is known to lose its file
//! after an abrupt stop, so each copy carries a serial number and a checksum, start-up takes the newer valid one and
//! rebuilds the other, and the text is durable before a change counts. Never holds what replication's safety hangs on
//! (generations, positions, dirty maps): those are in each volume's facts file.
//!
//! The text's first line is `lockstep-catalogue 1 SERIAL XXH3 LEN`; JSON of LEN bytes follows.

use super::keys::Fingerprint;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;

/// First word of the text.
const MAGIC: &str = "lockstep-catalogue";
/// Version of the text and of its JSON.
const VERSION: u32 = 1;
/// The catalogue's tree in sled and its one key: a catalogue is small, and one value changes as a whole.
const TREE: &str = "catalogue";
const KEY: &str = "current";

/// Why a catalogue can not be used.
#[derive(Debug, Error)]
pub enum CatalogueError {
    /// The text can not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The text file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither copy can be read, though there is one.
    #[error("{path} is damaged ({text}) and the copy in sled can not be used ({sled})")]
    Damaged {
        /// The text file.
        path: PathBuf,
        /// What is wrong with the text.
        text: String,
        /// What is wrong with the other copy.
        sled: String,
    },
    /// Written by a later version.
    #[error("{path} has version {found}, this program reads version {VERSION}")]
    Version {
        /// The text file.
        path: PathBuf,
        /// The version in its first line.
        found: u32,
    },
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// HOST:PORT.
    pub address: String,
    /// The pinned key.
    pub fingerprint: Fingerprint,
}

/// Which role this node has for a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "role")]
pub enum Role {
    /// It writes.
    Master,
    /// It follows the named peer.
    Mirror {
        /// The peer that is the master.
        master: String,
    },
}

/// One part of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// A file or a block device.
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    /// Whether lockstep created it, and `volume delete` may remove it without being asked twice.
    #[serde(default)]
    pub created: bool,
}

/// A mount that is to be there whenever the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// Absolute path of the directory.
    pub dir: PathBuf,
    /// Asked for with --read-only.
    pub read_only: bool,
}

/// A volume on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Master, or mirror of which node.
    #[serde(flatten)]
    pub role: Role,
    /// Parts, in order.
    pub parts: Vec<Part>,
    /// ext4 block, bytes.
    pub block_size: u32,
    /// Where it is mounted, or waits to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<MountPoint>,
    /// On a master: the peers that have a mirror. What is known of each is in the volume's facts.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub mirrors: BTreeSet<String>,
}

/// Everything, at one serial number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalogue {
    /// By name.
    pub peers: BTreeMap<String, Peer>,
    /// By name.
    pub volumes: BTreeMap<String, Volume>,
}

impl Catalogue {
    /// The peer with this key.
    pub fn peer_of(&self, fingerprint: &Fingerprint) -> Option<&str> {
        let mut peers = self.peers.iter();
        let found = peers.find(|(_, p)| p.fingerprint == *fingerprint)?;
        Some(found.0)
    }
}

/// Why one of the two copies was not taken.
#[derive(Debug, PartialEq, Eq)]
enum Bad {
    Missing,
    Version(u32),
    Damaged(String),
}

impl Bad {
    fn text(&self) -> String {
        match self {
            Bad::Missing => "missing".to_owned(),
            Bad::Version(v) => format!("version {v}"),
            Bad::Damaged(why) => why.clone(),
        }
    }
}

/// Covers the serial number too: a flipped digit must not make an old copy the newer.
fn checksum(serial: u64, body: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&VERSION.to_le_bytes());
    hash.update(&serial.to_le_bytes());
    hash.update(body);
    hash.digest()
}

fn encode(serial: u64, catalogue: &Catalogue) -> Vec<u8> {
    let body = serde_json::to_vec_pretty(catalogue).expect("maps with string keys, no floats");
    let hash = checksum(serial, &body);
    let mut out = format!("{MAGIC} {VERSION} {serial} {hash:016x} {}\n", body.len()).into_bytes();
    out.extend_from_slice(&body);
    out.push(b'\n');
    out
}

fn decode(bytes: &[u8]) -> Result<(u64, Catalogue), Bad> {
    let damaged = |why: &str| Bad::Damaged(why.to_owned());
    let end = bytes
        .iter()
        .position(|b| *b == b'\n')
        .ok_or_else(|| damaged("no first line"))?;
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| damaged("first line"))?;
    let words: Vec<&str> = head.split(' ').collect();
    let [magic, version, serial, hash, len] = words[..] else {
        return Err(damaged("first line"));
    };
    if magic != MAGIC {
        return Err(damaged("first word"));
    }
    let version: u32 = version.parse().map_err(|_| damaged("version"))?;
    if version != VERSION {
        return Err(Bad::Version(version));
    }
    let serial: u64 = serial.parse().map_err(|_| damaged("serial number"))?;
    let hash = u64::from_str_radix(hash, 16).map_err(|_| damaged("checksum"))?;
    let len: usize = len.parse().map_err(|_| damaged("length"))?;
    let body = bytes[end + 1..]
        .get(..len)
        .ok_or_else(|| damaged("it is cut short"))?;
    if checksum(serial, body) != hash {
        return Err(damaged("the checksum does not agree"));
    }
    let catalogue: Catalogue =
        serde_json::from_slice(body).map_err(|e| Bad::Damaged(e.to_string()))?;
    Ok((serial, catalogue))
}

/// The catalogue of a running node.
pub struct Store {
    path: PathBuf,
    tree: Option<sled::Tree>,
    /// Lock order: nothing else is taken while it is held; held across the write of the text, which is small, so that
    /// changes are written in their order.
    current: Mutex<(u64, Arc<Catalogue>)>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "catalogue::Store({})", self.path.display())
    }
}

impl Store {
    /// Takes the newer valid copy and rebuilds the other. With neither copy there, an empty catalogue; with a copy
    /// that is there and none that is valid, an error. `database` is `None` where only the text is wanted.
    pub fn open(path: &Path, database: Option<&sled::Db>) -> Result<Store, CatalogueError> {
        let text = match std::fs::read(path) {
            Ok(bytes) => decode(&bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Bad::Missing),
            Err(source) => {
                return Err(CatalogueError::Io {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        if let Err(Bad::Version(found)) = text {
            let path = path.to_owned();
            return Err(CatalogueError::Version { path, found });
        }
        let tree = database.and_then(|db| match db.open_tree(TREE) {
            Ok(tree) => Some(tree),
            Err(e) => {
                tracing::error!("the catalogue's copy in sled can not be opened: {e}");
                None
            }
        });
        let sled = match &tree {
            None => Err(Bad::Missing),
            Some(tree) => match tree.get(KEY) {
                Ok(Some(bytes)) => decode(&bytes),
                Ok(None) => Err(Bad::Missing),
                Err(e) => Err(Bad::Damaged(e.to_string())),
            },
        };
        let (serial, catalogue) = match (&text, &sled) {
            (Ok(t), Ok(s)) => if t.0 >= s.0 { t } else { s }.clone(),
            (Ok(good), Err(_)) | (Err(_), Ok(good)) => good.clone(),
            (Err(Bad::Missing), Err(Bad::Missing)) => (0, Catalogue::default()),
            (Err(t), Err(s)) => {
                return Err(CatalogueError::Damaged {
                    path: path.to_owned(),
                    text: t.text(),
                    sled: s.text(),
                });
            }
        };
        for (name, copy) in [("text", &text), ("copy in sled", &sled)] {
            match copy {
                Err(Bad::Damaged(why)) => {
                    tracing::warn!("the catalogue's {name} was damaged ({why}): rebuilt");
                }
                Ok(old) if old.0 < serial => {
                    tracing::warn!(
                        old = old.0,
                        serial,
                        "the catalogue's {name} was older: rebuilt"
                    );
                }
                _ => {}
            }
        }
        let store = Store {
            path: path.to_owned(),
            tree,
            current: Mutex::new((serial, Arc::new(catalogue))),
        };
        let bytes = {
            let current = store.current.lock();
            encode(current.0, &current.1)
        };
        if text.as_ref().map(|t| t.0).ok() != Some(serial) {
            store.write_text(&bytes)?;
        }
        if sled.as_ref().map(|s| s.0).ok() != Some(serial) {
            store.write_sled(&bytes);
        }
        Ok(store)
    }

    /// The catalogue as it is now. Never waits for a change under way for longer than it takes to write a small file.
    pub fn get(&self) -> Arc<Catalogue> {
        Arc::clone(&self.current.lock().1)
    }

    /// Changes the catalogue: durable when this returns `Ok(Ok(..))`. When `change` refuses, nothing is written.
    pub fn update<T, E>(
        &self,
        change: impl FnOnce(&mut Catalogue) -> Result<T, E>,
    ) -> Result<Result<T, E>, CatalogueError> {
        let mut current = self.current.lock();
        let mut next = Catalogue::clone(&current.1);
        let value = match change(&mut next) {
            Ok(value) => value,
            Err(refused) => return Ok(Err(refused)),
        };
        if next != *current.1 {
            let serial = current.0 + 1;
            let bytes = encode(serial, &next);
            self.write_text(&bytes)?;
            self.write_sled(&bytes);
            *current = (serial, Arc::new(next));
        }
        Ok(Ok(value))
    }

    fn write_text(&self, bytes: &[u8]) -> Result<(), CatalogueError> {
        let written = || -> io::Result<()> {
            let temporary = self.path.with_extension("new");
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)?;
            match self.path.parent() {
                Some(dir) => File::open(dir)?.sync_all(),
                None => Ok(()),
            }
        };
        written().map_err(|source| CatalogueError::Io {
            path: self.path.clone(),
            source,
        })
    }

    /// The second copy: a failure is logged and the text goes on alone.
    fn write_sled(&self, bytes: &[u8]) {
        let Some(tree) = &self.tree else { return };
        let written = tree.insert(KEY, bytes).and_then(|_| tree.flush());
        if let Err(e) = written {
            tracing::error!("the catalogue's copy in sled can not be written: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::history::open_database;
    use std::convert::Infallible;

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Place {
            let dir = tempfile::tempdir().unwrap();
            Place { dir }
        }

        fn text(&self) -> PathBuf {
            self.dir.path().join("catalogue")
        }

        fn with<T>(&self, f: impl FnOnce(Result<Store, CatalogueError>) -> T) -> T {
            let db = open_database(&self.dir.path().join("sled")).unwrap();
            f(Store::open(&self.text(), Some(&db)))
        }

        fn damage_sled(&self) {
            let db = open_database(&self.dir.path().join("sled")).unwrap();
            let tree = db.open_tree(TREE).unwrap();
            let mut bytes = tree.get(KEY).unwrap().unwrap().to_vec();
            let at = bytes.len() - 4;
            bytes[at] ^= 1;
            tree.insert(KEY, bytes).unwrap();
            db.flush().unwrap();
        }
    }

    fn add(store: &Store, name: &str) {
        let peer = Peer {
            address: "h:1".to_owned(),
            fingerprint: Fingerprint::of_public_key(name.as_bytes()),
        };
        store
            .update(|c| {
                c.peers.insert(name.to_owned(), peer);
                Ok::<(), Infallible>(())
            })
            .unwrap()
            .unwrap();
    }

    fn names(store: &Store) -> Vec<String> {
        store.get().peers.keys().cloned().collect()
    }

    #[test]
    fn either_copy_alone_is_enough() {
        let place = Place::new();
        place.with(|s| {
            let s = s.unwrap();
            add(&s, "a");
            add(&s, "b");
        });
        std::fs::remove_file(place.text()).unwrap();
        place.with(|s| assert_eq!(names(&s.unwrap()), ["a", "b"]));
        assert!(place.text().exists(), "the text is rebuilt");
        std::fs::remove_dir_all(place.dir.path().join("sled")).unwrap();
        place.with(|s| assert_eq!(names(&s.unwrap()), ["a", "b"]));
    }

    #[test]
    fn a_damaged_copy_is_not_taken_and_is_rebuilt() {
        let place = Place::new();
        place.with(|s| add(&s.unwrap(), "a"));
        let good = std::fs::read(place.text()).unwrap();
        // The last byte is the line's end behind the JSON.
        for at in 0..good.len() - 1 {
            let mut bad = good.clone();
            bad[at] ^= 0x02;
            assert!(decode(&bad).is_err(), "byte {at} is not covered");
        }
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        std::fs::write(place.text(), &bad).unwrap();
        place.with(|s| assert_eq!(names(&s.unwrap()), ["a"]));
        assert_eq!(std::fs::read(place.text()).unwrap(), good);
        place.damage_sled();
        place.with(|s| assert_eq!(names(&s.unwrap()), ["a"]));
        std::fs::remove_file(place.text()).unwrap();
        place.with(|s| assert_eq!(names(&s.unwrap()), ["a"]));
    }

    #[test]
    fn the_newer_copy_wins() {
        let place = Place::new();
        place.with(|s| add(&s.unwrap(), "a"));
        let old = std::fs::read(place.text()).unwrap();
        place.with(|s| add(&s.unwrap(), "b"));
        std::fs::write(place.text(), &old).unwrap();
        place.with(|s| assert_eq!(names(&s.unwrap()), ["a", "b"]));
        let only_text = Store::open(&place.text(), None).unwrap();
        add(&only_text, "c");
        place.with(|s| assert_eq!(names(&s.unwrap()), ["a", "b", "c"]));
    }

    #[test]
    fn two_damaged_copies_are_an_error_and_no_empty_catalogue() {
        let place = Place::new();
        place.with(|s| add(&s.unwrap(), "a"));
        place.damage_sled();
        std::fs::write(place.text(), "lockstep-catalogue 1 9").unwrap();
        place.with(|s| assert!(matches!(s, Err(CatalogueError::Damaged { .. }))));
        std::fs::write(place.text(), "lockstep-catalogue 7 1 0 0\n").unwrap();
        place.with(|s| assert!(matches!(s, Err(CatalogueError::Version { found: 7, .. }))));
    }

    #[test]
    fn a_refused_change_writes_nothing() {
        let place = Place::new();
        place.with(|s| {
            let s = s.unwrap();
            add(&s, "a");
            let before = std::fs::read(place.text()).unwrap();
            let refused = s.update(|c| {
                c.peers.clear();
                Err::<(), _>("no")
            });
            assert_eq!(refused.unwrap(), Err("no"));
            assert_eq!(std::fs::read(place.text()).unwrap(), before);
            assert_eq!(names(&s), ["a"]);
        });
    }
}
