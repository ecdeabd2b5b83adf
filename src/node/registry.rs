//! Everything the running node has: configuration, key, catalogue, history, volumes.
//!
//! Owns the list of volumes and the signal that something in their views changed. Never does an operator's work: that
//! is `requests` and `volumes`.

use super::catalogue::{self, Catalogue, MountPoint};
use super::config::Config;
use super::engine::Engine;
use super::history::{History, NewEvent};
use super::host::VolumeHost;
use super::keys::Identity;
use super::link::{Limits, Link};
use super::mounts::{Mounts, Settings};
use super::protocol::{Status, VERSION, VolumeStatus};
use super::refusal::{Code, Refusal};
use super::state_dir::StateDir;
use super::trunks::Trunks;
use super::{mirrors, roles, tls, trunk, volumes};
use crate::io::file::{SystemClock, SystemRandom};
use crate::io::{Clock, Random};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// How long a stop waits for an operation that is under way on a volume.
const CLOSE_WITHIN: Duration = Duration::from_secs(60);

/// How often mounts and figures are looked after.
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// One volume of this node.
pub type Host = VolumeHost<Engine>;

/// A running node.
#[derive(Debug)]
pub struct Node {
    /// Its directory.
    pub state: StateDir,
    /// Its configuration, as it was at the start.
    pub config: Config,
    /// Its key.
    pub identity: Arc<Identity>,
    /// The connections to other nodes.
    pub trunks: Arc<Trunks>,
    /// Peers, volumes, mounts.
    pub catalogue: catalogue::Store,
    /// What happened.
    pub history: History,
    /// For tasks that other threads start.
    pub runtime: Handle,
    /// Time, for every engine.
    pub clock: Arc<dyn Clock>,
    /// Chance, for every engine.
    pub random: Arc<dyn Random>,
    /// Lock order: held for moments, to look up or change the list; never while a host is worked on.
    volumes: RwLock<BTreeMap<String, Arc<Host>>>,
    /// Hand-overs to this node that were given up before they were carried out. Taken alone, for moments.
    revoked: Mutex<BTreeSet<u64>>,
    changes: watch::Sender<u64>,
    stopping: AtomicBool,
}

impl Node {
    /// A node with no volume open yet.
    pub fn new(
        state: StateDir,
        config: Config,
        identity: Identity,
        catalogue: catalogue::Store,
        history: History,
        runtime: Handle,
    ) -> Arc<Node> {
        let identity = Arc::new(identity);
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let limits = Limits {
            dead_after: config.peer_timeout(),
            ..Limits::default()
        };
        Arc::new_cyclic(|node| Node {
            trunks: connections(node, &identity, limits, &random),
            state,
            config,
            identity,
            catalogue,
            history,
            runtime,
            clock: Arc::new(SystemClock::new()),
            random,
            volumes: RwLock::new(BTreeMap::new()),
            revoked: Mutex::default(),
            changes: watch::Sender::new(0),
            stopping: AtomicBool::new(false),
        })
    }

    /// A hand-over is not to be carried out any more.
    pub fn revoke(&self, token: u64) {
        self.revoked.lock().insert(token);
    }

    /// Whether it was given up.
    pub fn is_revoked(&self, token: u64) -> bool {
        self.revoked.lock().contains(&token)
    }

    /// The volume of that name.
    pub fn host(&self, name: &str) -> Result<Arc<Host>, Refusal> {
        let volumes = self.volumes.read();
        volumes
            .get(name)
            .cloned()
            .ok_or_else(|| Refusal::no_volume(name))
    }

    /// Every volume, by name.
    pub fn hosts(&self) -> Vec<Arc<Host>> {
        self.volumes.read().values().cloned().collect()
    }

    /// Adds a volume, closed; `None` when the name is taken. A wanted mount comes when the volume is open.
    pub fn new_host(
        &self,
        name: &str,
        view: VolumeStatus,
        wanted: Option<MountPoint>,
    ) -> Option<Arc<Host>> {
        let settings = Settings {
            threads: self.config.fuse_threads as usize,
            allow_other: self
                .config
                .allow_other
                .unwrap_or(rustix::process::geteuid().is_root()),
        };
        let mounts = Mounts::new(name, settings, wanted);
        let mut volumes = self.volumes.write();
        if volumes.contains_key(name) {
            return None;
        }
        let host = Arc::new(VolumeHost::new(Engine::Closed, view, mounts));
        volumes.insert(name.to_owned(), Arc::clone(&host));
        drop(volumes);
        self.changed();
        Some(host)
    }

    /// Takes a volume out of the list.
    pub fn remove_host(&self, name: &str) {
        self.volumes.write().remove(name);
        self.changed();
    }

    /// What `status` shows: views only, so that it answers whatever the volumes are busy with.
    pub fn status(&self, only: Option<&str>) -> Result<Status, Refusal> {
        let volumes = match only {
            Some(name) => vec![self.host(name)?.view()],
            None => self.hosts().iter().map(|h| h.view()).collect(),
        };
        Ok(Status {
            version: VERSION,
            node: self.config.name.clone(),
            volumes,
        })
    }

    /// Something in a view changed: whoever waits looks again.
    pub fn changed(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Changes what `status` shows of a volume, and wakes whoever waits for a change.
    pub fn publish(&self, host: &Host, change: impl FnOnce(&mut VolumeStatus)) {
        if host.publish(change) {
            self.changed();
        }
    }

    /// Hears of changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Changes the catalogue, durably.
    pub fn change<T>(
        &self,
        change: impl FnOnce(&mut Catalogue) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let changed = self.catalogue.update(change);
        changed.map_err(|e| Refusal::io("the catalogue was not changed", e))?
    }

    /// Records an event.
    pub fn record(&self, event: NewEvent) {
        self.history.record(event);
    }

    /// No operator's request is begun from here on.
    pub fn begin_stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.changed();
    }

    /// Whether the daemon is on its way down.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Refuses when the daemon is on its way down.
    pub fn check_running(&self) -> Result<(), Refusal> {
        if !self.is_stopping() {
            return Ok(());
        }
        Err(Refusal::new(
            Code::Stopping,
            "the daemon is stopping",
            "lockstep node run",
        ))
    }

    /// Lists every volume of the catalogue, closed: each is shown from the start, also while another is recovered.
    pub fn list_all(&self) {
        for name in self.catalogue.get().volumes.keys() {
            if let Err(e) = volumes::add(self, name) {
                tracing::error!("{e}");
            }
        }
    }

    /// Opens every volume, one after the other; a failure stops none of the others.
    pub fn open_all(self: &Arc<Node>) {
        // Side by side: an unreachable peer costs one wait, not one for each volume.
        let mut answers = roles::ask_for_all(self);
        for host in self.hosts() {
            if self.is_stopping() {
                return;
            }
            host.mounts.clear_stale();
            match host.hold("opening") {
                // What went wrong is in the view and in the history.
                Ok(mut held) => {
                    drop(held.open_asked(self, &host, answers.remove(host.name())));
                }
                Err(busy) => tracing::warn!("{busy}"),
            }
        }
    }

    /// Closes every volume; the names of those that could not be closed in order.
    pub fn close_all(self: &Arc<Node>) -> Vec<String> {
        let drain = self.config.drain_timeout();
        let closers: Vec<_> = self
            .hosts()
            .into_iter()
            .map(|host| {
                let node = Arc::clone(self);
                // Side by side: each has its own mirrors to wait for.
                std::thread::spawn(move || {
                    let name = host.name().to_owned();
                    let closed = host
                        .hold_within("closing", CLOSE_WITHIN)
                        .and_then(|mut held| held.close(&node, &host, drain));
                    closed
                        .map_err(|e| tracing::error!(volume = name, "{e}"))
                        .map_err(|()| name)
                })
            })
            .collect();
        let ended = closers.into_iter().map(std::thread::JoinHandle::join);
        ended
            .filter_map(|closed| match closed {
                Ok(Ok(())) => None,
                Ok(Err(name)) => Some(name),
                Err(_) => Some("a volume whose thread failed".to_owned()),
            })
            .collect()
    }

    /// Looks after mounts and the figures of open volumes until the node stops. Waits for nobody.
    pub fn watch_volumes(&self) {
        while !self.is_stopping() {
            for host in self.hosts() {
                mirrors::show(self, &host);
                if let Some(fs) = host.mounts.engine() {
                    let stats = fs.journal().stats();
                    self.publish(&host, |view| {
                        let block = u64::from(view.block_size);
                        view.buffer_used = stats.used_blocks * block;
                        view.buffer_size = stats.size_blocks * block;
                    });
                }
            }
            std::thread::sleep(WATCH_EVERY);
        }
    }

    /// A link of a known peer arrived.
    pub fn incoming(self: &Arc<Node>, link: Link) {
        self.runtime
            .spawn(mirrors::incoming(Arc::clone(self), link));
    }

    /// Monotonic time, as every volume of this node counts it.
    pub fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Bytes of cache for each volume.
    pub fn cache_bytes(&self) -> usize {
        (self.config.cache_mib as usize) << 20
    }
}

/// The connections of a node that is being made.
fn connections(
    node: &Weak<Node>,
    identity: &Arc<Identity>,
    limits: Limits,
    random: &Arc<dyn Random>,
) -> Arc<Trunks> {
    let known: tls::Known = {
        let node = Weak::clone(node);
        Arc::new(move |key| {
            let node = node.upgrade()?;
            node.catalogue.get().peer_of(key).map(str::to_owned)
        })
    };
    let handler: trunk::Handler = {
        let node = Weak::clone(node);
        Arc::new(move |link| {
            if let Some(node) = node.upgrade() {
                node.incoming(link);
            }
        })
    };
    let identity = Arc::clone(identity);
    Trunks::new(identity, known, limits, Arc::clone(random), handler)
}
