//! What a step does: applications at work, faults, and operators.
//!
//! Owns the choice of the victim, from the step's own luck. A step that finds nothing to do does nothing.

use std::sync::Arc;

use lockstepfs::ext4::Superblock;
use lockstepfs::fs::{FsError, New};
use lockstepfs::io::Disk;
use lockstepfs::io::sim::{Fault, SimRandom};
use lockstepfs::mirror::master::{Mirror, Request};
use lockstepfs::mirror::rate::Rate;
use lockstepfs::mirror::slot::Slot;
use lockstepfs::units::Ino;
use lockstepfs::volume::facts::{Copy, Role};
use states::State;

use super::files;
use super::image;
use super::node::Host;
use super::script::{Kind, Step};
use super::sync::listen;
use super::world::World;

impl World {
    /// Does one step, and lets a little time pass.
    pub fn perform(&mut self, step: &Step) {
        self.random = SimRandom::new(step.seed);
        let done = match step.kind {
            Kind::Work => self.work(),
            Kind::Flood => self.flood(),
            Kind::Sync => self.sync(),
            Kind::SyncCut => self.sync_cut(),
            Kind::Set => self.set(),
            Kind::Run => self.rounds(40, 10),
            Kind::Wait => self.rounds(60, 1000),
            Kind::Partition => self.partition(true),
            Kind::OneWay => self.partition(false),
            Kind::Heal => {
                self.net.unblock_all();
                true
            }
            Kind::Break => self.break_one(),
            Kind::Jitter => {
                self.net.jitter_ms = [0, 5, 50, 400][self.random.below(4) as usize];
                true
            }
            Kind::PowerCut => self.some_up().is_some_and(|n| {
                self.note(|| format!("n{n}: power cut"));
                self.power_cut(n);
                true
            }),
            Kind::PowerLater => self.some_up().is_some_and(|n| {
                let requests = self.random.below(60);
                self.nodes[n].power.cut_after(requests);
                true
            }),
            Kind::SwitchCut => self.some_up().is_some_and(|n| {
                let most = [4, 15, 60][self.random.below(3) as usize];
                self.nodes[n].cut_at_switch = Some(self.random.below(most));
                true
            }),
            Kind::Kill => self.some_up().is_some_and(|n| {
                self.note(|| format!("n{n}: killed"));
                self.kill(n);
                true
            }),
            Kind::Boot => self.boot_some(),
            Kind::Stop => self.some_up().is_some_and(|n| {
                self.stop(n);
                true
            }),
            Kind::BothDown => {
                self.note(|| "all power is gone".to_string());
                (0..self.nodes.len()).for_each(|n| self.power_cut(n));
                true
            }
            Kind::DiskFails | Kind::DiskFull | Kind::FactsFail => self.break_disk(step.kind),
            Kind::DiskSlow => self.some_up().is_some_and(|n| {
                self.nodes[n]
                    .power
                    .slow([20, 300, 4000][self.random.below(3) as usize]);
                true
            }),
            Kind::Mend => self.mend_some(),
            Kind::ClockJump => {
                let n = self.random.below(self.nodes.len() as u64) as usize;
                let secs = self.random.below(200_000) as i64 - 100_000;
                self.nodes[n].clock.jump(secs);
                true
            }
            Kind::LoseMap => self.lose_map(),
            Kind::Pause => self.request(Request::Pause),
            Kind::Continue => self.request(Request::Continue),
            Kind::Restart => self.request(Request::Restart),
            Kind::Delete => self.request(Request::Delete),
            Kind::Create => {
                let v = self.random.below(self.volumes.len() as u64) as usize;
                self.create(v)
            }
            Kind::Promote => self.promote_some(),
            Kind::Force => self.force_some(),
            Kind::Rejoin => self.rejoin_some(),
            Kind::Switchover => self.switchover_some(),
            Kind::Verify => self.verify(),
            Kind::WriteMirror => self.write_mirror(),
            Kind::CrashImage => self.crash_image(),
        };
        if done {
            self.tally.inject(step.kind.name());
        }
        for n in 0..self.nodes.len() {
            self.noticed_dark(n);
        }
        let rounds = self.random.below(8);
        self.rounds(rounds, 15);
    }

    pub fn rounds(&mut self, rounds: u64, most_ms: u64) -> bool {
        for _ in 0..rounds {
            let ms = self.random.below(most_ms) + 1;
            self.round(ms);
        }
        true
    }

    fn some_up(&self) -> Option<usize> {
        let n = self.random.below(self.nodes.len() as u64) as usize;
        self.nodes[n].is_up().then_some(n)
    }

    // ---- applications ----

    pub fn some_volume(&self) -> usize {
        self.random.below(self.volumes.len() as u64) as usize
    }

    fn work(&mut self) -> bool {
        let v = self.some_volume();
        let Some(n) = self.master_of(v) else {
            return false;
        };
        let many = if self.random.chance(8) { 60 } else { 6 };
        for _ in 0..self.random.below(many) + 1 {
            let done = self.change(n, v, |work| work.step());
            self.tally.check("operation of an application", 1);
            if let Err(error) = done {
                self.cut_short(n, v, &error);
            }
            if self.noticed_dark(n) {
                return true;
            }
        }
        true
    }

    /// Files are overwritten until a mirror cracks, or everything was overwritten twice.
    fn flood(&mut self) -> bool {
        let v = self.some_volume();
        let Some(n) = self.master_of(v) else {
            return false;
        };
        let mut left = self.volumes[v].shape.buffer_mib << 21;
        while left > 0 {
            let Some(Host::Master(host)) = self.host(n, v) else {
                return true;
            };
            if host.writing.is_some() || host.open.slots.all().is_empty() {
                return true;
            }
            let cracked = |slot: &Arc<Slot>| slot.state.lock().cracked;
            if host.open.slots.all().iter().any(cracked) {
                return true;
            }
            if let Err(error) = self.change(n, v, |work| work.overwrite_one()) {
                self.cut_short(n, v, &error);
            }
            if self.noticed_dark(n) || self.nodes[n].faulty {
                return true;
            }
            left = left.saturating_sub(files::OVERWRITE / 2);
        }
        true
    }

    /// How far an operation came that the disk cut short is not known by name.
    pub fn cut_short(&mut self, n: usize, v: usize, error: &FsError) {
        self.operation_failed(n, error);
        let mut golden = self.volumes[v].lines.of(n).golden.lock();
        golden.files().unsure.extend(files::all_names());
    }

    /// Commits everything; whether there was nothing to commit.
    pub fn sync_all(&mut self, v: usize) -> bool {
        let Some(n) = self.master_of(v) else {
            return false;
        };
        let Some(Host::Master(host)) = self.host(n, v) else {
            return false;
        };
        let fs = Arc::clone(&host.open.shared.fs);
        let before = fs.committed();
        if let Err(error) = fs.sync() {
            self.operation_failed(n, &error);
        }
        fs.committed() == before
    }

    // ---- the network ----

    fn partition(&mut self, both: bool) -> bool {
        let nodes = self.nodes.len() as u64;
        let alone = self.random.below(nodes) as usize;
        for other in 0..self.nodes.len() {
            if other == alone || self.random.chance(30) {
                continue;
            }
            let out = self.random.chance(50);
            if both || out {
                self.net.block((alone, other));
            }
            if both || !out {
                self.net.block((other, alone));
            }
        }
        self.note(|| format!("n{alone}: partition, both ways: {both}"));
        true
    }

    fn break_one(&mut self) -> bool {
        let ids = self.net.ids();
        let at = self.random.below(ids.len() as u64) as usize;
        let Some(id) = ids.get(at) else { return false };
        self.net.cut(*id, self.now, &self.random);
        true
    }

    // ---- nodes and disks ----

    fn boot_some(&mut self) -> bool {
        let down: Vec<usize> = (0..self.nodes.len())
            .filter(|n| !self.nodes[*n].is_up())
            .collect();
        let at = self.random.below(down.len() as u64) as usize;
        let Some(n) = down.get(at).copied() else {
            return false;
        };
        if self.random.chance(15) {
            // The power goes again while it recovers.
            self.nodes[n].power.cut_after(self.random.below(40));
            self.tally.inject("power cut while starting");
        }
        self.boot(n);
        true
    }

    /// Whatever has to do with this node may have to be compared or copied again.
    pub fn excuse(&mut self, n: usize) {
        for v in 0..self.volumes.len() {
            let others = self.others(n, v);
            let volume = &mut self.volumes[v];
            volume.excused.insert(n);
            if volume.lines.is_master(n) {
                volume.excused.extend(others);
            }
        }
    }

    fn break_disk(&mut self, kind: Kind) -> bool {
        let Some(n) = self.some_up() else {
            return false;
        };
        let v = self.some_volume();
        self.note(|| format!("n{n}: {kind} under v{v}"));
        self.nodes[n].faulty = true;
        self.excuse(n);
        let some = |most| self.random.below(most);
        let home = &self.nodes[n].homes[&v];
        match kind {
            Kind::DiskFull if self.random.chance(40) => home.staging.set_room(some(2 << 20)),
            Kind::DiskFull => home.inject(Fault::FullAfter(some(40)), &self.random),
            Kind::FactsFail => home.facts.fail(true),
            _ => {
                let fault = match some(3) {
                    0 => Fault::WritesAfter(some(30)),
                    1 => Fault::FlushesAfter(some(6)),
                    _ => Fault::Gone,
                };
                home.inject(fault, &self.random);
            }
        }
        true
    }

    fn mend_some(&mut self) -> bool {
        let faulty: Vec<usize> = (0..self.nodes.len())
            .filter(|n| self.nodes[*n].faulty)
            .collect();
        let at = self.random.below(faulty.len() as u64) as usize;
        let Some(n) = faulty.get(at).copied() else {
            return false;
        };
        let restart = self.random.chance(50);
        self.mend(n, restart);
        true
    }

    /// The disks of a node work again; with a restart of the node, or so that `mirror restart` has to do.
    pub fn mend(&mut self, n: usize, restart: bool) {
        self.note(|| format!("n{n}: mended, restart: {restart}"));
        self.nodes[n].homes.values().for_each(|home| home.heal());
        if restart {
            self.kill(n);
            self.boot(n);
            self.nodes[n].faulty = false;
        }
    }

    fn lose_map(&mut self) -> bool {
        let v = self.some_volume();
        let n = self.random.below(self.nodes.len() as u64) as usize;
        if self.nodes[n].is_up() || !self.nodes[n].homes[&v].maps.lose_one(&self.random) {
            return false;
        }
        self.excuse(n);
        true
    }

    // ---- operators ----

    fn request(&mut self, request: Request) -> bool {
        let v = self.some_volume();
        let Some(n) = self.master_of(v) else {
            return false;
        };
        let Some(Host::Master(host)) = self.host(n, v) else {
            return false;
        };
        let peers: Vec<usize> = host.drivers.keys().copied().collect();
        let at = self.random.below(peers.len() as u64) as usize;
        peers
            .get(at)
            .is_some_and(|peer| self.request_for(n, v, *peer, request))
    }

    pub fn request_for(&mut self, n: usize, v: usize, peer: usize, request: Request) -> bool {
        let Some(Host::Master(mut host)) = self.take_host(n, v) else {
            return false;
        };
        let mut done = false;
        if let Some(mut driver) = host.drivers.remove(&peer) {
            self.note(|| format!("v{v} n{n}->n{peer}: {request:?}"));
            match driver.mirror.request(request, self.now) {
                Ok(actions) => {
                    done = true;
                    if self.act(n, v, peer, &mut driver, actions) {
                        self.answered(v, &host, Some((peer, &driver)));
                        host.drivers.insert(peer, driver);
                    } else {
                        self.answered(v, &host, None);
                        self.volumes[v].complete.remove(&peer);
                        self.forgotten(n, v, &mut host, driver);
                    }
                }
                // Refused: every refusal says why, and changes nothing.
                Err(_) => {
                    host.drivers.insert(peer, driver);
                }
            }
        }
        self.put_host(n, v, Host::Master(host));
        done
    }

    pub fn create(&mut self, v: usize) -> bool {
        let Some(n) = self.master_of(v) else {
            return false;
        };
        let Some(Host::Master(mut host)) = self.take_host(n, v) else {
            return false;
        };
        let others = self.others(n, v).into_iter();
        let lacking = { others }.find(|peer| !host.drivers.contains_key(peer));
        if let Some(peer) = lacking {
            let name = self.nodes[peer].name.clone();
            // A slow copy is one into which more can break.
            let rate = [None, Some(1 << 20), Some(4 << 20)][self.random.below(3) as usize];
            match host.open.add_mirror(&name, rate) {
                Ok(slot) => {
                    let shared = &host.open.shared;
                    let mut golden = self.volumes[v].lines.of(n).golden.lock();
                    let first = host.drivers.is_empty() && !self.nodes[n].faulty;
                    if golden.since.is_none() && first {
                        golden.begin(&shared.journal, shared.volume.blocks_count(), &shared.log);
                    }
                    drop(golden);
                    let record = {
                        let facts = shared.facts.lock();
                        facts.peers[&name].record.clone()
                    };
                    let rate = Rate::new(record.rate);
                    let mut mirror = Mirror::new(shared.clone(), name, slot, record, rate);
                    let wishes = self.some_wishes();
                    self.note(|| format!("v{v} n{n}->n{peer}: created with {wishes:?}"));
                    mirror.set_wishes(wishes);
                    self.volumes[v].complete.remove(&peer);
                    self.volumes[v].new_to.insert((n, peer));
                    if self.volumes[v].lines.is_master(peer) {
                        // What it gives up for this master says nothing of the time before the mirror was made.
                        self.volumes[v].excused.insert(peer);
                    }
                    self.note(|| format!("v{v} n{n}->n{peer}: mirror create"));
                    self.add_driver(&mut host, n, v, peer, mirror);
                    listen(&host.open);
                }
                Err(error) => self.error(n, &format!("mirror create: {error}")),
            }
        }
        self.put_host(n, v, Host::Master(host));
        lacking.is_some()
    }

    fn verify(&mut self) -> bool {
        let v = self.some_volume();
        let Some(n) = self.master_of(v) else {
            return false;
        };
        let Some(Host::Master(host)) = self.host(n, v) else {
            return false;
        };
        let mut started = false;
        for driver in host.drivers.values_mut() {
            if !driver.verifying && driver.mirror.start_verify(Rate::new(None)) {
                driver.verifying = true;
                started = true;
            }
        }
        started
    }

    fn write_mirror(&mut self) -> bool {
        let v = self.some_volume();
        let n = self.random.below(self.nodes.len() as u64) as usize;
        let Some(Host::Mirror(host)) = self.host(n, v) else {
            return false;
        };
        let Some(fs) = host.follower.fs() else {
            return false;
        };
        let new = New {
            mode: 0o100644,
            ..New::default()
        };
        let created = fs.create(Ino(2), b"not-here", &new).map(drop);
        assert!(
            matches!(created, Err(FsError::ReadOnly)),
            "I9: creating a file on a mirror gave {created:?}"
        );
        self.tally.check("write refused by a mirror", 1);
        true
    }

    /// Were the power to go now: e2fsck finds nothing wrong, or refuses to look at a half-made copy.
    fn crash_image(&mut self) -> bool {
        let v = self.some_volume();
        let n = self.random.below(self.nodes.len() as u64) as usize;
        let home = &self.nodes[n].homes[&v];
        let Some(facts) = home.facts.stored() else {
            return false;
        };
        // Between its repair and its opening a copy is told by nothing from one that nobody forced.
        let forced = self.volumes[v].forced.contains(&n);
        if facts.copy == Copy::Blank || self.nodes[n].faulty || forced {
            return false;
        }
        let parts = home.after_crash(&self.random);
        let mut raw = vec![0; 1024];
        if parts[0].read_at(&mut raw, 1024).is_err() {
            return false;
        }
        let guarded = Superblock::decode(&raw).is_ok_and(|superblock| superblock.has_guard());
        let whole = facts.copy == Copy::Complete
            && (facts.role == Role::Master || facts.applied >= facts.consistent_at);
        if guarded {
            // The facts say that it is whole before the guard goes: power that is lost between leaves both, until it is opened.
            let cut = !self.nodes[n].is_up();
            assert!(!whole || cut, "I10: n{n}'s whole copy of v{v} is guarded");
            return true;
        }
        if !whole && Superblock::decode(&raw).is_err() {
            return true;
        }
        // A copy that is not whole and has no guard has not been written to yet.
        if let Some(complaints) = image::complaints(&parts) {
            let rule = if whole { "I3" } else { "I10" };
            panic!("{rule}: e2fsck of n{n}'s copy of v{v} after a power cut:\n{complaints}");
        }
        self.tally.check("crash image by e2fsck", 1);
        true
    }

    /// A copy that is being made is one that neither the kernel nor e2fsck takes, were the power to go now.
    pub fn guarded(&mut self, n: usize, v: usize) {
        let home = &self.nodes[n].homes[&v];
        if self.nodes[n].faulty {
            return;
        }
        let parts = home.after_crash(&self.random);
        let mut raw = vec![0; 1024];
        let guarded = parts[0].read_at(&mut raw, 1024).is_ok()
            && Superblock::decode(&raw).is_ok_and(|superblock| superblock.has_guard());
        assert!(guarded, "I10: n{n}'s half-made copy of v{v} has no guard");
        self.tally.check("guard of a half-made copy", 1);
    }

    // ---- the end ----

    /// Faults stop, and operators do their part.
    pub fn calm(&mut self) {
        self.net.unblock_all();
        self.net.jitter_ms = 2;
        for n in 0..self.nodes.len() {
            self.nodes[n].power.back();
            self.nodes[n].cut_at_switch = None;
            if self.nodes[n].faulty {
                let restart = self.random.chance(50);
                self.mend(n, restart);
            }
            self.boot(n);
        }
        for v in 0..self.volumes.len() {
            for _ in 0..self.volumes[v].shape.mirrors.len() {
                self.create(v);
            }
        }
    }

    /// Restarts what has stopped, as an operator would who reads the status.
    pub fn operate(&mut self) {
        let disputed = (0..self.volumes.len()).any(|v| self.settle_disputes(v));
        if disputed {
            return;
        }
        for n in 0..self.nodes.len() {
            let hosts = self.nodes[n].hosts.as_ref();
            let stuck = hosts.is_some_and(|hosts| {
                hosts.values().any(|host| match host {
                    Host::Closed(_) => true,
                    Host::Master(host) => host.open.shared.fs.failure().is_some(),
                    Host::Mirror(_) | Host::Asking(_) => false,
                })
            });
            if stuck {
                self.mend(n, true);
            }
        }
        for v in 0..self.volumes.len() {
            self.create(v);
            let Some(n) = self.master_of(v) else { continue };
            let Some(Host::Master(host)) = self.host(n, v) else {
                continue;
            };
            let states: Vec<(usize, State)> = host
                .drivers
                .iter()
                .map(|(peer, driver)| (*peer, driver.mirror.state()))
                .collect();
            for (peer, state) in states {
                match state {
                    State::Idle => self.request_for(n, v, peer, Request::Continue),
                    State::Error => self.request_for(n, v, peer, Request::Restart),
                    _ => false,
                };
            }
        }
    }
}
