//! The world: nodes, volumes and the network between them, in one thread.
//!
//! Owns time and the order in which everything happens. The product's objects are driven with inputs, and their outputs
//! are carried out, as the daemon does. Nothing of the product is replaced but the devices. Invariant: the same script
//! gives the same run, whatever machine it runs on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lockstepfs::fs::{Durability, FsError};
use lockstepfs::io::sim::{SimClock, SimDisk, SimRandom, Survivors};
use lockstepfs::io::{Clock, Timespec};
use lockstepfs::mirror::MirrorError;
use lockstepfs::mirror::follower::{Env, Follower};
use lockstepfs::mirror::lost::LostStore;
use lockstepfs::mirror::master::Mirror;
use lockstepfs::mirror::open::{MapStore, MasterOptions, open_master};
use lockstepfs::mirror::rate::Rate;
use lockstepfs::mirror::roles::Listed;
use lockstepfs::mirror::staging::StagingStore;
use lockstepfs::mirror::stamps;
use lockstepfs::units::Txid;
use lockstepfs::volume::Volume;
use lockstepfs::volume::facts::{Copy, FactStore, Facts, Role};
use states::State;

use super::device::{Home, Power};
use super::drive;
use super::files;
use super::image;
use super::lines::Lines;
use super::net::{End, Net};
use super::node::{Driver, Host, MasterHost, MirrorHost, Node};
use super::policy::Door;
use super::roles::Letter;
use super::script::{Script, VolumeShape};
use super::sync::listen;
use super::tally::Tally;

const CACHE: usize = 4 << 20;
const TRACE: usize = 60;

/// One replicated volume, as somebody sees it who knows everything.
pub struct VolumeState {
    pub name: String,
    pub shape: VolumeShape,
    /// What its masters had, one history for each node that was made the master.
    pub lines: Lines,
    /// Per mirror: the last transaction of which an acknowledgement left it.
    pub durable: BTreeMap<usize, Txid>,
    /// Per mirror: the last transaction that an application was told to be there.
    pub promised: BTreeMap<usize, Txid>,
    /// Mirrors that have had all of it since they were created.
    pub complete: BTreeSet<usize>,
    /// Mirrors to which something happened that leads to a comparison or another copy.
    pub excused: BTreeSet<usize>,
    /// Nodes on which a failing disk cut the last opening short: it may have dropped what the facts know of.
    pub torn: BTreeSet<usize>,
    /// Per node: the transaction up to which its copy was made or repaired last. Of what was changed before it, the node
    /// keeps nothing for others.
    pub made_up_to: BTreeMap<usize, Txid>,
    /// Mirrors, by master, that were not in sync since they were made there: of what their copies had before, whoever made
    /// them, that master knows nothing.
    pub new_to: BTreeSet<(usize, usize)>,
    /// Nodes whose copies were told to be the master's though they are no state of any: what the next opening finds begins a
    /// history.
    pub forced: BTreeSet<usize>,
    /// Bytes that files may take, because of what nobody knows that is on the volume.
    pub room_left: u64,
    /// Mirrors, by a node that kept for them only what they had not acknowledged: an operator had them give up more.
    pub went_back: BTreeSet<(usize, usize)>,
}

impl VolumeState {
    /// Bytes that files may take.
    pub fn room(&self) -> u64 {
        let bytes: u64 = self.shape.parts.iter().sum();
        self.room_left
            .min((bytes - (self.shape.buffer_mib << 20)) * 4 / 10)
    }
}

pub struct World {
    /// The luck of the present step.
    pub random: SimRandom,
    pub nodes: Vec<Node>,
    pub volumes: Vec<VolumeState>,
    pub net: Net,
    pub now: Duration,
    pub tally: Tally,
    /// Questions about roles, and answers, under way.
    pub letters: Vec<Letter>,
    /// What happened last, for a failing run.
    pub trace: VecDeque<String>,
}

impl World {
    pub fn new(script: &Script) -> World {
        let random = SimRandom::new(script.seed);
        let nodes = (0..script.nodes).map(|n| {
            let clock = SimClock::new(Timespec {
                secs: 1_800_000_000 + n as i64,
                nanos: 0,
            });
            Node {
                name: format!("n{n}"),
                power: Arc::new(Power::new(random.next_u64())),
                clock: Arc::new(clock),
                homes: BTreeMap::new(),
                hosts: Some(BTreeMap::new()),
                busy_until: Duration::ZERO,
                faulty: false,
                cut_at_switch: None,
            }
        });
        let mut world = World {
            nodes: nodes.collect(),
            volumes: Vec::new(),
            net: Net::default(),
            now: Duration::ZERO,
            tally: Tally::default(),
            letters: Vec::new(),
            trace: VecDeque::new(),
            random,
        };
        world.net.jitter_ms = world.random.below(20);
        for (v, shape) in script.volumes.iter().enumerate() {
            world.make_volume(v, shape);
        }
        world
    }

    fn make_volume(&mut self, v: usize, shape: &VolumeShape) {
        self.volumes.push(VolumeState {
            name: format!("v{v}"),
            shape: shape.clone(),
            lines: Lines::new(shape),
            durable: BTreeMap::new(),
            promised: BTreeMap::new(),
            complete: BTreeSet::new(),
            excused: BTreeSet::new(),
            torn: BTreeSet::new(),
            made_up_to: BTreeMap::new(),
            new_to: BTreeSet::new(),
            went_back: BTreeSet::new(),
            forced: BTreeSet::new(),
            room_left: u64::MAX,
        });
        for n in 0..self.nodes.len() {
            let parts = match n == shape.master {
                true => image::fresh(shape),
                false => shape
                    .parts
                    .iter()
                    .map(|len| Arc::new(SimDisk::named(format!("n{n}"), *len)))
                    .collect(),
            };
            let power = Arc::clone(&self.nodes[n].power);
            let home = Home::new(parts, shape.block_size, &power);
            if n == shape.master {
                let facts = Facts {
                    copy: Copy::Complete,
                    ..Facts::blank(0x1000 + v as u128, format!("v{v}"), Role::Master)
                };
                home.facts.save(&facts).expect("the power is on");
            }
            self.nodes[n].homes.insert(v, home);
        }
        self.list(shape.master, v, Listed::Master);
        self.open_host(shape.master, v);
        if let Some(Host::Master(host)) = self.host(shape.master, v) {
            let fs = Arc::clone(&host.open.shared.fs);
            files::prepare(&fs).expect("a fresh volume has room for three directories");
        }
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if self.trace.len() >= TRACE {
            self.trace.pop_front();
        }
        let line = format!("{:>9.3} {}", self.now.as_secs_f64(), what());
        if std::env::var_os("LOCKSTEP_SIM_TRACE").is_some() {
            eprintln!("{line}");
        }
        self.trace.push_back(line);
    }

    pub fn host(&mut self, n: usize, v: usize) -> Option<&mut Host> {
        self.nodes[n].hosts.as_mut()?.get_mut(&v)
    }

    pub fn take_host(&mut self, n: usize, v: usize) -> Option<Host> {
        self.nodes[n].hosts.as_mut()?.remove(&v)
    }

    /// Puts a host back, unless the node has died meanwhile.
    pub fn put_host(&mut self, n: usize, v: usize, host: Host) {
        if let Some(hosts) = &mut self.nodes[n].hosts {
            hosts.insert(v, host);
        }
    }

    /// A node that is the volume's master and up, with the volume open: one of them, if it was disputed.
    pub fn master_of(&self, v: usize) -> Option<usize> {
        let masters = self.masters(v);
        match masters.len() {
            0 | 1 => masters.first().copied(),
            several => Some(masters[self.random.below(several as u64) as usize]),
        }
    }

    // ---- power ----

    /// Whether the power of a node went a moment ago; then the node is dead.
    pub fn noticed_dark(&mut self, n: usize) -> bool {
        if self.nodes[n].power.is_on() {
            return false;
        }
        if self.nodes[n].is_up() {
            self.note(|| format!("n{n}: the power is gone"));
            self.power_cut(n);
        }
        true
    }

    /// The power of a node goes now.
    pub fn power_cut(&mut self, n: usize) {
        if !self.nodes[n].is_up() {
            // What it had was on its disks.
            return;
        }
        self.nodes[n].hosts = None;
        for home in self.nodes[n].homes.values() {
            home.crash(Survivors::Random(&self.random));
        }
        self.nodes[n].power.back();
        self.net.power_cut(n, &self.random);
    }

    /// The node's process is killed: what it wrote is in the kernel's hands, and the kernel hangs up.
    pub fn kill(&mut self, n: usize) {
        if !self.nodes[n].is_up() {
            return;
        }
        self.hang_up(n);
        self.nodes[n].hosts = None;
        for home in self.nodes[n].homes.values() {
            home.crash(Survivors::All);
        }
        self.nodes[n].power.back();
    }

    fn hang_up(&mut self, n: usize) {
        for id in self.net.ids() {
            let Some(conn) = self.net.get(id) else {
                continue;
            };
            let (master, mirror) = (conn.master, conn.mirror);
            if master == n {
                self.net.close(id, End::Master);
            }
            if mirror == n {
                self.net.close(id, End::Mirror);
            }
        }
    }

    /// Starts a node: opens all that it has.
    pub fn boot(&mut self, n: usize) {
        if self.nodes[n].is_up() {
            return;
        }
        self.note(|| format!("n{n}: starts"));
        self.nodes[n].hosts = Some(BTreeMap::new());
        self.nodes[n].busy_until = Duration::ZERO;
        self.net.booted(n, self.now);
        let volumes: Vec<usize> = self.nodes[n].homes.keys().copied().collect();
        for v in volumes {
            if self.nodes[n].homes[&v].facts.stored().is_some() {
                self.start_volume(n, v);
            }
            if self.noticed_dark(n) {
                return;
            }
        }
    }

    /// Stops a node in order: all that can be closed is closed.
    pub fn stop(&mut self, n: usize) {
        let Some(hosts) = self.nodes[n].hosts.take() else {
            return;
        };
        self.note(|| format!("n{n}: stops"));
        let mut unclean = false;
        for (v, host) in hosts {
            let closed = match host {
                Host::Master(host) => self.close_master(v, &host),
                Host::Mirror(mut host) => host.follower.close().map(drop),
                Host::Closed(_) | Host::Asking(_) => Ok(()),
            };
            if let Err(error) = closed {
                unclean = true;
                self.error(n, &format!("closing v{v}: {error}"));
            }
        }
        self.hang_up(n);
        if !self.nodes[n].power.is_on() || unclean {
            self.nodes[n].hosts = Some(BTreeMap::new());
        }
        if !self.nodes[n].power.is_on() {
            self.power_cut(n);
        } else if unclean {
            self.kill(n);
        } else {
            self.nodes[n].power.back();
        }
    }

    /// As the daemon: mirrors that are away are waited for no more, and who still waits hears nothing.
    pub fn close_master(&mut self, v: usize, host: &MasterHost) -> Result<(), MirrorError> {
        host.syncs.lock().stopping = true;
        host.open.shared.gate.stop();
        self.answered(v, host, None);
        host.open.shared.journal.on_prepared(None);
        host.open.close()
    }

    /// Something failed on a node: no surprise after what was done to it, a violation otherwise.
    pub fn error(&mut self, n: usize, what: &str) {
        let excused = self.nodes[n].faulty || !self.nodes[n].power.is_on();
        assert!(
            excused,
            "I7: n{n} failed although nothing was done to it: {what}"
        );
        self.note(|| format!("n{n}: {what}"));
    }

    // ---- opening ----

    pub fn open_host(&mut self, n: usize, v: usize) {
        let Some(facts) = self.nodes[n].homes[&v].facts.stored() else {
            return;
        };
        if let Some(handing) = &facts.handing_over {
            // Another one may be the master: nothing is written here before that one says.
            let faulty = self.nodes[n].faulty;
            return self.ask_after(n, v, handing, faulty);
        }
        let opened = match facts.role {
            Role::Master => self.open_master(n, v, facts),
            Role::Mirror => self.open_mirror(n, v, Some(facts)),
        };
        match opened {
            Ok(host) => self.put_host(n, v, host),
            Err(error) => {
                self.error(n, &format!("opening v{v}: {error}"));
                self.put_host(n, v, Host::Closed(error));
            }
        }
    }

    pub fn open_master(&mut self, n: usize, v: usize, facts: Facts) -> Result<Host, String> {
        let node = &self.nodes[n];
        let home = &node.homes[&v];
        let options = MasterOptions {
            node: node.name.clone(),
            facts: Arc::clone(&home.facts) as Arc<dyn FactStore>,
            maps: Arc::clone(&home.maps) as Arc<dyn MapStore>,
            clock: Arc::clone(&node.clock) as Arc<dyn Clock>,
            random: Arc::new(self.random.fork()),
            cache_bytes: CACHE,
            commit_interval: Duration::from_secs(1),
        };
        let volume = home.volume();
        if !self.volumes[v].forced.contains(&n) && !self.volumes[v].torn.contains(&n) {
            self.nobody_else_wrote(n, v, &facts, &volume);
        }
        if self.nodes[n].faulty {
            self.volumes[v].torn.insert(n);
        }
        let highest = facts.high_txid;
        let open = open_master(volume, facts, &options).map_err(|e| e.to_string())?;
        self.volumes[v].torn.remove(&n);
        let records = open.shared.facts.lock().peers.clone();
        self.recovered(v, n, &open, highest)?;
        let golden = Arc::clone(&self.volumes[v].lines.of(n).golden);
        let journal = Arc::downgrade(&open.shared.journal);
        open.shared.fs.on_commit(Box::new(move |txid| {
            if let Some(journal) = journal.upgrade() {
                golden.lock().committed(&journal, txid);
            }
        }));
        let gate = Arc::clone(&open.shared.gate);
        open.shared.members.lock().clone_from(&self.members(v));
        let mut host = MasterHost {
            told: open.shared.journal.last_committed(),
            open,
            drivers: BTreeMap::new(),
            commit_at: self.now,
            tick_at: Duration::ZERO,
            committing: false,
            syncs: Arc::default(),
            door: Arc::new(Door::new(Arc::clone(&gate))),
            writing: None,
        };
        let door: Arc<dyn Durability> = host.door.clone();
        host.open.shared.fs.set_durability(Some(door));
        for slot in host.open.slots.all() {
            let Some(peer) = self.nodes.iter().position(|node| node.name == slot.peer) else {
                continue;
            };
            let record = records
                .get(&slot.peer)
                .map(|known| known.record.clone())
                .unwrap_or_default();
            let rate = Rate::new(record.rate);
            let mirror = Mirror::new(
                host.open.shared.clone(),
                slot.peer.clone(),
                slot,
                record,
                rate,
            );
            self.add_driver(&mut host, n, v, peer, mirror);
        }
        listen(&host.open);
        Ok(Host::Master(Box::new(host)))
    }

    /// A master was opened: what was acknowledged is there, and what is there is a state that it had.
    fn recovered(
        &mut self,
        v: usize,
        n: usize,
        open: &lockstepfs::mirror::open::OpenMaster,
        highest: Txid,
    ) -> Result<(), String> {
        let faulty = self.nodes[n].faulty;
        let shared = &open.shared;
        let volume = &mut self.volumes[v];
        let promoted = volume.lines.opened(n, shared);
        if volume.forced.contains(&n) {
            return self.begins_anew(v, n, open);
        }
        let line = volume.lines.of_mut(n);
        if faulty {
            // Its disk may have lost what it had been told to flush: from here on nobody can say what each block was.
            line.acked = line.acked.min(shared.fork);
            for promised in volume.promised.values_mut() {
                *promised = shared.fork.min(*promised);
            }
            let mut golden = line.golden.lock();
            golden.end();
            golden.blind = true;
        }
        if line.golden.lock().since.is_none() {
            // Nobody asks for the name of a state that no mirror has; what it contains is looked at below.
            line.acked = line.acked.min(shared.fork);
        }
        assert!(
            shared.fork >= line.acked,
            "I3: transaction {} of v{v} was acknowledged, its master n{n} came back with {}",
            line.acked,
            shared.fork
        );
        let mut golden = line.golden.lock();
        let fresh = golden.last == Txid(0);
        // A mirror's highest is that of its last transaction.
        golden.reopened(shared, Some(highest).filter(|_| !promoted));
        let exact = golden.since.is_some();
        if shared.facts.lock().peers.is_empty() {
            // Its last mirror was deleted as power went: from here on what is overwritten goes straight home.
            golden.end();
        }
        if fresh {
            return Ok(());
        }
        // The files are those of that transaction; where an operation was cut short, those that are there.
        let mut expected = match golden.snapshots.get(&shared.fork) {
            Some(snapshot) => snapshot.clone(),
            None => golden.files().clone(),
        };
        drop(golden);
        let names: Vec<String> = match exact {
            true => expected.unsure.iter().cloned().collect(),
            // Without a mirror overwrites go straight home: they may be there before their transaction is.
            false => files::all_names(),
        };
        for name in names {
            match files::read(&shared.fs, &name).map_err(|e| e.to_string())? {
                Some(bytes) => expected.files.insert(name.clone(), Arc::new(bytes)),
                None => expected.files.remove(&name),
            };
            expected.unsure.remove(&name);
        }
        files::compare(&shared.fs, &expected, "I3", &format!("the master n{n}"))?;
        drive::sound(&shared.journal, &format!("the master n{n} of v{v}"));
        self.tally.check("files of a master that was opened", 1);
        let mut golden = self.volumes[v].lines.of(n).golden.lock();
        *golden.files() = expected;
        if promoted && golden.since.is_none() {
            // A copy of which too little is known: what it has is what counts from here on.
            golden.begin(&shared.journal, shared.volume.blocks_count(), &shared.log);
        }
        Ok(())
    }

    /// In this world only the product writes to parts: a copy that has a history is never taken for changed by somebody else.
    pub fn nobody_else_wrote(&self, n: usize, v: usize, facts: &Facts, volume: &Volume) {
        let outside = stamps::outside(facts, volume).ok().flatten();
        let excused = self.nodes[n].faulty || !self.nodes[n].power.is_on();
        if let Some(what) = outside.filter(|_| !excused) {
            panic!("stamps: n{n}'s copy of v{v} is taken for changed from outside: {what}");
        }
    }

    pub fn add_driver(
        &mut self,
        host: &mut MasterHost,
        n: usize,
        v: usize,
        peer: usize,
        mirror: Mirror,
    ) {
        let mut driver = Driver {
            state: State::New,
            mirror,
            conn: None,
            dial_at: None,
            stint: None,
            verifying: false,
            was_insync: false,
        };
        let actions = driver.mirror.start(self.now);
        self.act(n, v, peer, &mut driver, actions);
        host.drivers.insert(peer, driver);
    }

    pub fn open_mirror(
        &mut self,
        n: usize,
        v: usize,
        facts: Option<Facts>,
    ) -> Result<Host, String> {
        let node = &self.nodes[n];
        let home = &node.homes[&v];
        let env = Env {
            node: node.name.clone(),
            parts: home.part_store(),
            facts: Arc::clone(&home.facts) as Arc<dyn FactStore>,
            maps: Arc::clone(&home.maps) as Arc<dyn MapStore>,
            staging: Arc::clone(&home.staging) as Arc<dyn StagingStore>,
            lost: Arc::clone(&home.lost) as Arc<dyn LostStore>,
            clock: Arc::clone(&node.clock) as Arc<dyn Clock>,
            random: Arc::new(self.random.fork()),
            cache_bytes: CACHE,
        };
        let volume = facts.as_ref().map(|_| home.volume());
        let name = self.volumes[v].name.clone();
        let tainted = facts.as_ref().is_some_and(|facts| facts.tainted);
        let (follower, outputs) =
            Follower::open(env, name, facts, volume).map_err(|e| e.to_string())?;
        assert!(
            tainted || self.nodes[n].faulty || !follower.facts().tainted,
            "stamps: n{n}'s copy of v{v} is taken for changed from outside, or for one whose log is damaged"
        );
        // A promotion by force that came to nothing.
        self.volumes[v].forced.remove(&n);
        self.follows(n, v, &follower.facts().generations);
        self.keeps_promises(n, v, &follower);
        let mut host = MirrorHost {
            follower,
            call: None,
            copying: false,
            commit_at: self.now,
            tick_at: self.now,
            seen: None,
        };
        self.put_out(n, v, &mut host, outputs);
        self.check_mirror(n, v, &mut host, true);
        Ok(Host::Mirror(Box::new(host)))
    }

    /// An operation of an application failed: only a node whose disk fails, or has no power, may do that.
    pub fn operation_failed(&mut self, n: usize, error: &FsError) {
        match error {
            // A name that is not there, because an earlier operation was cut short.
            FsError::Refused(_) if self.nodes[n].faulty => {}
            error => self.error(n, &format!("an operation failed: {error}")),
        }
    }
}
