//! `mirror set`, at any moment: how a mirror is treated, and that it is treated so at once; and the door at which those
//! wait whom a throttled mirror holds back.
//!
//! Owns the choice of what an operator asks for. Invariant: nobody is held back for ever.

use std::sync::Arc;
use std::time::Duration;

use lockstepfs::fs::{Durability, Fs, FsError};
use lockstepfs::io::sim::SimRandom;
use lockstepfs::mirror::gate::Gate;
use lockstepfs::mirror::policy::{Compress, OnFull, Resync, SyncMode, Wishes};
use lockstepfs::units::Txid;
use parking_lot::Mutex;

use super::files::{Work, Writing};
use super::node::{Host, MasterHost};
use super::sync::{LONGEST, listen};
use super::world::World;

/// The engine's way to the gate: whoever makes a change has asked before, and would have to wait there no more.
#[derive(Debug)]
pub struct Door {
    gate: Arc<Gate>,
    /// Bytes that were let in, and did not come to the engine yet.
    asked: Mutex<Option<u64>>,
}

impl Door {
    pub fn new(gate: Arc<Gate>) -> Door {
        let asked = Mutex::new(None);
        Door { gate, asked }
    }

    /// Whether a change of `len` bytes may be made now.
    pub fn asks(&self, fs: &Fs, len: u64, waited: Option<Duration>) -> bool {
        let admitted = self.gate.try_admit(len, waited, &|| fs.uncommitted_bytes());
        *self.asked.lock() = admitted.then_some(len);
        admitted
    }

    /// The change is made, or never came to the engine.
    pub fn leaves(&self) {
        if let Some(len) = self.asked.lock().take() {
            self.gate.entered(len);
        }
    }
}

impl Durability for Door {
    fn when_durable(&self, txid: Txid, done: Box<dyn FnOnce() + Send>) {
        self.gate.when_durable(txid, done);
    }

    fn admit(&self, len: u64, _uncommitted: &dyn Fn() -> u64) {
        let asked = self.asked.lock().take();
        assert_eq!(asked, Some(len), "a change that did not ask");
    }

    fn entered(&self, len: u64) {
        self.gate.entered(len);
    }
}

fn pick<T: Copy>(random: &SimRandom, all: &[T]) -> T {
    all[random.below(all.len() as u64) as usize]
}

impl World {
    /// What an operator may ask for.
    pub fn some_wishes(&self) -> Wishes {
        let random = &self.random;
        let asked = |percent| random.chance(percent);
        let wishes = Wishes {
            mode: asked(70).then(|| pick(random, &[SyncMode::Async, SyncMode::Sync])),
            strict: asked(50).then(|| random.chance(40)),
            on_full: asked(50).then(|| pick(random, &[OnFull::Crack, OnFull::Throttle])),
            async_limit: asked(30).then(|| pick(random, &[1, 3, 20, 4096])),
            high_water: asked(30).then(|| pick(random, &[0, 40_000, 400_000, 2 << 20])),
            low_water: asked(30).then(|| pick(random, &[0, 10_000, 200_000])),
            timeout_ms: asked(30).then(|| pick(random, &[100, 1000, 6000, 60_000])),
            rate: asked(30).then(|| pick(random, &[0, 1 << 18, 1 << 20, 4 << 20])),
            compress: asked(30).then(|| {
                pick(
                    random,
                    &[Compress::Auto, Compress::Lz4, Compress::Zstd, Compress::Off],
                )
            }),
            resync: asked(30).then(|| pick(random, &[Resync::Direct, Resync::Staged])),
        };
        // What the command line refuses is not asked for.
        match wishes.check() {
            Ok(()) => wishes,
            Err(_) => Wishes::default(),
        }
    }

    /// Somebody changes a file, and is let in, or held back.
    pub fn change(
        &mut self,
        n: usize,
        v: usize,
        what: impl FnOnce(&Work<'_>) -> Result<Option<Writing>, FsError>,
    ) -> Result<(), FsError> {
        let Some(Host::Master(mut host)) = self.take_host(n, v) else {
            return Ok(());
        };
        let changed = match host.writing.is_some() {
            true => {
                self.tally.check("change that had to wait", 1);
                self.let_in(n, v, &mut host)
            }
            false => what(&self.work_on(n, v, &host)).map(|left| {
                host.writing = left;
            }),
        };
        self.put_host(n, v, Host::Master(host));
        changed
    }

    fn work_on<'a>(&'a self, n: usize, v: usize, host: &'a MasterHost) -> Work<'a> {
        Work {
            fs: &host.open.shared.fs,
            golden: &self.volumes[v].lines.of(n).golden,
            random: &self.random,
            room: self.volumes[v].room(),
            door: &host.door,
            now: self.now,
        }
    }

    /// Whoever was held back tries again.
    pub fn let_in(&mut self, n: usize, v: usize, host: &mut MasterHost) -> Result<(), FsError> {
        let Some(writing) = host.writing.take() else {
            return Ok(());
        };
        let since = writing.since.unwrap_or(self.now);
        host.writing = self.work_on(n, v, host).go_on(writing)?;
        if let Some(Writing { since: Some(_), .. }) = &host.writing {
            assert!(
                since + LONGEST > self.now,
                "I7: a change of v{v} is held back since {since:?}"
            );
        } else {
            self.tally.check("change that was let in again", 1);
        }
        Ok(())
    }

    /// `mirror set`, for one mirror of one volume.
    pub fn set(&mut self) -> bool {
        let v = self.some_volume();
        let Some(n) = self.master_of(v) else {
            return false;
        };
        let Some(Host::Master(mut host)) = self.take_host(n, v) else {
            return false;
        };
        let peers: Vec<usize> = host.drivers.keys().copied().collect();
        let at = self.random.below(peers.len() as u64) as usize;
        if let Some(peer) = peers.get(at) {
            let wishes = self.some_wishes();
            self.note(|| format!("v{v} n{n}->n{peer}: set {wishes:?}"));
            let driver = host.drivers.get_mut(peer).expect("one of its keys");
            driver.mirror.set_wishes(wishes);
            listen(&host.open);
            self.answered(v, &host, None);
        }
        self.put_host(n, v, Host::Master(host));
        !peers.is_empty()
    }
}
