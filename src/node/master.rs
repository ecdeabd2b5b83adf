//! A volume of which this node is the master, open: engine, commit timer, one driver for each mirror.
//!
//! Owns the order of opening, draining and closing. Never mounts: it offers the engine to `mounts`.

use super::driver::{Committed, Driver, Remote, time_of_day};
use super::history::NewEvent;
use super::mounts::Offer;
use super::protocol::Condition;
use super::refusal::{Code, Refusal};
use super::registry::{Host, Node};
use super::roles;
use super::stores::MapFiles;
use super::timer::Timer;
use super::volumes::chain;
use crate::ext4::features::{self, Access};
use crate::fs::{Durability, Fs, FsOptions, FsRole, How, open_volume, read_superblock};
use crate::mirror::MirrorError;
use crate::mirror::master::{MasterVolume, Mirror};
use crate::mirror::open::{MasterOptions, OpenMaster, open_master};
use crate::mirror::policy::Wishes;
use crate::mirror::rate::Rate;
use crate::mirror::slot::Slot;
use crate::units::Txid;
use crate::volume::Volume;
use crate::volume::facts::{FactFile, FactStore, Facts};
use crate::volume::mkfs::default_buffer_bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often a drain looks whether mirrors have everything.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// An open master.
pub struct Master {
    open: OpenMaster,
    timer: Option<Timer>,
    drivers: BTreeMap<String, Driver>,
    commits: watch::Receiver<Committed>,
    /// Wakes the drivers.
    wake: Arc<watch::Sender<Committed>>,
}

impl std::fmt::Debug for Master {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Master({})", self.open.shared.name)
    }
}

/// A volume that can only be read.
#[derive(Debug)]
pub struct ReadOnly {
    fs: Arc<Fs>,
}

fn failed(error: &MirrorError) -> Refusal {
    let remedy = "lockstep volume check NAME; see the daemon's log";
    Refusal::new(Code::Unusable, chain(error), remedy)
}

/// Whether the volume's features let this program write it.
pub fn can_write(volume: &Volume) -> Result<Access, Refusal> {
    let superblock = read_superblock(volume).map_err(|e| failed(&e.into()))?;
    Ok(features::access(&superblock))
}

impl ReadOnly {
    /// Opens for reading: nothing is written, not even a replay.
    pub fn open(
        node: &Arc<Node>,
        host: &Arc<Host>,
        volume: Arc<Volume>,
        why: &[String],
    ) -> Result<ReadOnly, Refusal> {
        let opened = open_volume(volume, Txid(0), How::ReadOnly).map_err(|e| failed(&e.into()))?;
        let options = FsOptions {
            role: FsRole::ReadOnly,
            clock: node.clock.clone(),
            random: node.random.clone(),
            cache_bytes: node.cache_bytes(),
            commit_interval: node.config.commit_interval(),
        };
        let fs = Arc::new(Fs::open(opened, options).map_err(|e| failed(&e.into()))?);
        let warning = format!("it can only be read, because of {}", why.join(", "));
        node.publish(host, |view| view.warnings = vec![warning]);
        host.mounts.offer(Offer {
            fs: Arc::clone(&fs),
            writable: false,
            mirror: false,
        });
        Ok(ReadOnly { fs })
    }

    /// Closes it.
    pub fn close(self, host: &Host) -> Result<(), Refusal> {
        host.mounts.withdraw();
        self.fs.close().map(drop).map_err(|e| failed(&e.into()))
    }
}

impl Master {
    /// Opens read-write, starts the timer and the drivers, offers the mount.
    pub fn open(
        node: &Arc<Node>,
        host: &Arc<Host>,
        volume: Arc<Volume>,
    ) -> Result<Master, Refusal> {
        let name = host.name();
        let dir = node.state.create_volume(name);
        let dir = dir.map_err(|e| Refusal::io("no place for the volume's facts", e))?;
        let store: Arc<dyn FactStore> = Arc::new(FactFile::new(dir.join("facts")));
        let facts = store.load().map_err(|e| {
            let remedy = format!(
                "put {} back from a backup; without it: lockstep volume delete {name} --keep-parts, then adopt the parts",
                dir.join("facts").display()
            );
            Refusal::new(Code::Unusable, chain(&e), remedy)
        })?;
        Master::open_with(node, host, volume, facts, store)
    }

    /// The same with facts that are not saved yet: a mirror's, made ready for a promotion. They are saved together with
    /// the generation of this opening, or not at all.
    pub fn open_with(
        node: &Arc<Node>,
        host: &Arc<Host>,
        volume: Arc<Volume>,
        facts: Facts,
        store: Arc<dyn FactStore>,
    ) -> Result<Master, Refusal> {
        let dir = node.state.volume(host.name());
        let options = MasterOptions {
            node: node.config.name.clone(),
            facts: store,
            maps: Arc::new(MapFiles::new(&dir)),
            clock: node.clock.clone(),
            random: node.random.clone(),
            cache_bytes: node.cache_bytes(),
            commit_interval: node.config.commit_interval(),
        };
        let open = open_master(volume, facts, &options).map_err(|e| failed(&e))?;
        let fs = Arc::clone(&open.shared.fs);
        let last = open.shared.journal.last_committed();
        let (committed, commits) = watch::channel((last, time_of_day()));
        let wake = Arc::new(committed);
        let committed = Arc::clone(&wake);
        fs.on_commit(Box::new(move |txid| {
            committed.send_replace((txid, time_of_day()));
        }));
        let gate: Arc<dyn Durability> = open.shared.gate.clone();
        fs.set_durability(Some(gate));
        let timer = start_timer(node, host, &open)?;
        let mut master = Master {
            open,
            timer: Some(timer),
            drivers: BTreeMap::new(),
            commits,
            wake,
        };
        let peers: Vec<String> = {
            let facts = master.open.shared.facts.lock();
            facts.peers.keys().cloned().collect()
        };
        master.told_members(node, peers);
        let warnings = master.warnings();
        let (stats, block) = (
            master.open.shared.journal.stats(),
            u64::from(master.open.shared.volume.block_size()),
        );
        node.publish(host, |view| {
            view.warnings = warnings;
            // Before the timer says so: whoever opened it, or tuned it, shows the size.
            view.buffer_size = stats.size_blocks * block;
            view.buffer_used = stats.used_blocks * block;
        });
        for slot in master.open.slots.all() {
            let record = {
                let facts = master.open.shared.facts.lock();
                let known = facts.peers.get(&slot.peer);
                known.map(|k| k.record.clone()).unwrap_or_default()
            };
            let rate = Rate::new(record.rate);
            let shared = master.open.shared.clone();
            let mut mirror = Mirror::new(shared, slot.peer.clone(), slot, record, rate);
            mirror.set_defaults(node.config.mirror.clone());
            master.drive(node, host, mirror)?;
        }
        master.listen();
        host.mounts.offer(Offer {
            fs,
            writable: true,
            mirror: false,
        });
        Ok(master)
    }

    /// The last transaction before this opening.
    pub fn fork(&self) -> Txid {
        self.open.shared.fork
    }

    /// What the volume's mirrors share.
    pub fn shared(&self) -> MasterVolume {
        self.open.shared.clone()
    }

    /// The mirrors' places at the log.
    pub fn slots(&self) -> Vec<Arc<Slot>> {
        self.open.slots.all()
    }

    /// Ends the session with a mirror; its place at the log stays.
    pub fn stop_driver(&mut self, peer: &str) {
        if let Some(driver) = self.drivers.remove(peer) {
            driver.stop();
        }
    }

    /// Begins a session again with a mirror that has its place.
    pub fn drive_again(
        &mut self,
        node: &Arc<Node>,
        host: &Arc<Host>,
        peer: &str,
    ) -> Result<(), Refusal> {
        let slot = self.slots().into_iter().find(|slot| slot.peer == peer);
        let slot = slot.ok_or_else(|| Refusal::no_mirror(host.name(), peer))?;
        let record = {
            let facts = self.open.shared.facts.lock();
            let known = facts.peers.get(peer);
            known.map(|k| k.record.clone()).unwrap_or_default()
        };
        let rate = Rate::new(record.rate);
        let shared = self.open.shared.clone();
        let mut mirror = Mirror::new(shared, peer.to_owned(), slot, record, rate);
        mirror.set_defaults(node.config.mirror.clone());
        self.drive(node, host, mirror)?;
        self.listen();
        Ok(())
    }

    /// The last transaction committed.
    pub fn committed(&self) -> Txid {
        self.open.shared.journal.last_committed()
    }

    /// The nodes that have a part in the volume are these mirrors and this one: mirrors are told.
    pub fn told_members(&self, node: &Node, mirrors: impl IntoIterator<Item = String>) {
        *self.open.shared.members.lock() = roles::members(node, mirrors);
    }

    /// Mirrors in sync mode are woken while a transaction is being committed; without one nobody is.
    pub fn listen(&self) {
        let wake = Arc::clone(&self.wake);
        let any = self.open.shared.gate.any_sync();
        let listener: Option<Box<dyn Fn() + Send + Sync>> = match any {
            true => Some(Box::new(move || wake.send_modify(|_| {}))),
            false => None,
        };
        self.open.shared.journal.on_prepared(listener);
    }

    fn warnings(&self) -> Vec<String> {
        let stats = self.open.shared.journal.stats();
        let block_size = self.open.shared.volume.block_size();
        let bytes = stats.size_blocks * u64::from(block_size);
        let usual = default_buffer_bytes(self.open.shared.volume.len(), block_size);
        let mut warnings = Vec::new();
        let name = &self.open.shared.name;
        if self.open.shared.journal.found_errno() != 0 {
            warnings.push(format!(
                "its disk failed when it was last open; once it is not mounted: lockstep volume check {name}"
            ));
        }
        if bytes < usual / 2 {
            let mib = bytes >> 20;
            warnings.push(format!(
                "the buffer of {mib} MiB is small: mirrors crack early; lockstep volume tune {name} --buffer SIZE"
            ));
        }
        warnings
    }

    fn drive(&mut self, node: &Arc<Node>, host: &Arc<Host>, mirror: Mirror) -> Result<(), Refusal> {
        let peer = mirror.peer().to_owned();
        let driver = Driver::start(node, host, self.open.clone(), mirror, self.commits.clone());
        let driver = driver.map_err(|e| Refusal::io("no thread for a mirror", e))?;
        self.drivers.insert(peer, driver);
        Ok(())
    }

    /// Adds a mirror. It is in the catalogue already.
    pub fn add_mirror(
        &mut self,
        node: &Arc<Node>,
        host: &Arc<Host>,
        peer: &str,
        rate: Option<u64>,
        wishes: Wishes,
    ) -> Result<(), Refusal> {
        let slot = self.open.add_mirror(peer, rate).map_err(|e| failed(&e))?;
        let record = {
            let facts = self.open.shared.facts.lock();
            let known = facts.peers.get(peer);
            known.map(|k| k.record.clone()).unwrap_or_default()
        };
        let mut peers = self.peers();
        peers.push(peer.to_owned());
        self.told_members(node, peers);
        let shared = self.open.shared.clone();
        let mut mirror = Mirror::new(shared, peer.to_owned(), slot, record, Rate::new(rate));
        mirror.set_defaults(node.config.mirror.clone());
        mirror.set_wishes(wishes);
        self.drive(node, host, mirror)?;
        self.listen();
        Ok(())
    }

    /// The engine.
    pub fn fs(&self) -> Arc<Fs> {
        Arc::clone(&self.open.shared.fs)
    }

    /// The driver of a mirror, to be asked something.
    pub fn driver(&mut self, peer: &str) -> Option<Remote> {
        // One whose mirror was deleted has ended by itself.
        self.drivers.retain(|_, driver| !driver.is_finished());
        self.drivers.get(peer).map(Driver::remote)
    }

    /// The peers that have a driver.
    pub fn peers(&mut self) -> Vec<String> {
        self.drivers.retain(|_, driver| !driver.is_finished());
        self.drivers.keys().cloned().collect()
    }

    /// Waits until every mirror that is in sync has everything, for at most `limit`.
    fn drain(&self, host: &Host, limit: Duration) {
        if let Err(error) = self.open.shared.fs.sync() {
            // What was committed before is all the more wanted on a mirror.
            tracing::error!(volume = host.name(), %error, "the last changes were not committed");
        }
        let committed = self.open.shared.journal.last_committed();
        let until = Instant::now() + limit;
        let insync = states::State::InSync.word();
        loop {
            let view = host.view();
            let behind =
                |m: &super::protocol::MirrorStatus| m.state == insync && m.txid_acked < committed.0;
            if !view.mirrors.iter().any(behind) {
                return;
            }
            if Instant::now() >= until {
                tracing::warn!(
                    volume = host.name(),
                    "closed before every mirror had everything; it stays in the log"
                );
                return;
            }
            std::thread::sleep(DRAIN_LOOK);
        }
    }

    /// Withdraws the mount, lets mirrors have what they lack within `drain`, brings everything home, lets the parts go.
    pub fn close(
        mut self,
        node: &Arc<Node>,
        host: &Arc<Host>,
        drain: Duration,
    ) -> Result<(), Refusal> {
        self.open.shared.gate.stop();
        host.mounts.withdraw();
        self.drain(host, drain);
        self.open.shared.gate.close();
        self.open.shared.journal.on_prepared(None);
        for (_, driver) in std::mem::take(&mut self.drivers) {
            driver.stop();
        }
        drop(self.timer.take());
        let closed = self.open.close().map_err(|e| failed(&e));
        node.publish(host, |view| {
            view.buffer_used = 0;
            for mirror in &mut view.mirrors {
                states::State::LinkDown.word().clone_into(&mut mirror.state);
                "the volume is closed here".clone_into(&mut mirror.reason);
            }
        });
        closed
    }
}

/// What to do about a volume whose disk failed: what is acknowledged is in its journal, and on its mirrors.
pub fn given_up(name: &str) -> String {
    format!(
        "mend the disk and restart the daemon; or stop the daemon, and on a mirror: lockstep promote {name}"
    )
}

fn start_timer(node: &Arc<Node>, host: &Arc<Host>, open: &OpenMaster) -> Result<Timer, Refusal> {
    let each = {
        let open = open.clone();
        move || {
            if let Err(error) = open.tick() {
                tracing::error!(volume = open.shared.name, %error, "the reserve of transaction ids");
            }
        }
    };
    let failed = {
        let (node, host) = (Arc::clone(node), Arc::clone(host));
        let fs = Arc::clone(&open.shared.fs);
        move |error: &crate::fs::FsError| {
            let mut text = format!("changes can not be committed: {}", chain(error));
            let over = fs.failure().is_some();
            if over {
                let refusal = Refusal::new(Code::Io, text, given_up(host.name()));
                text = refusal.to_string();
            }
            node.publish(&host, |view| {
                view.reason.clone_from(&text);
                if over {
                    view.condition = Condition::Failed;
                    view.read_only = true;
                }
            });
            node.record(NewEvent::volume("commit-failed", host.name(), text));
        }
    };
    let fs = Arc::clone(&open.shared.fs);
    let timer = Timer::start(fs, node.clock.clone(), each, failed);
    timer.map_err(|e| Refusal::io("no thread for commits", e))
}
