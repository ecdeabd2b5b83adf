//! Two nodes in one thread: a master and a mirror, each on simulated disks, and a link that can be cut.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lockstepfs::fs::New;
use lockstepfs::fs::check::{self, Options};
use lockstepfs::io::sim::{SimClock, SimDisk, SimRandom, Survivors};
use lockstepfs::io::{Clock, Disk, Timespec};
use lockstepfs::journal::Journal;
use lockstepfs::mirror::MirrorError;
use lockstepfs::mirror::follower::{Env, Follower, Output, PartStore, failure};
use lockstepfs::mirror::lost::{LostIndex, LostStore, LostWriter};
use lockstepfs::mirror::master::{Action, Mirror, Request};
use lockstepfs::mirror::open::{MapStore, MasterOptions, OpenMaster, open_master};
use lockstepfs::mirror::rate::Rate;
use lockstepfs::mirror::staging::StagingStore;
use lockstepfs::units::{BlockNo, BlockRange, Ino};
use lockstepfs::volume::Volume;
use lockstepfs::volume::facts::{Copy, FactStore, Facts, MemoryFacts, Role};
use lockstepfs::volume::mkfs::{self, Buffer, MkfsOptions};
use lockstepfs::wire::message::Message;
use parking_lot::Mutex;
use states::{Cause, State};

pub const BLOCK: u32 = 4096;
pub const SIZE: u64 = 96 << 20;

/// Dirty maps on simulated disks.
#[derive(Debug, Default)]
pub struct Maps {
    disks: Mutex<HashMap<String, Arc<SimDisk>>>,
}

impl MapStore for Maps {
    fn open(&self, peer: &str, len: u64) -> std::io::Result<(Arc<dyn Disk>, bool)> {
        let mut disks = self.disks.lock();
        if let Some(disk) = disks.get(peer) {
            return Ok((Arc::clone(disk) as Arc<dyn Disk>, false));
        }
        let disk = Arc::new(SimDisk::new(len));
        disks.insert(peer.to_string(), Arc::clone(&disk));
        Ok((disk, true))
    }
}

impl Maps {
    /// The map of `peer` is lost: its file, or what is in it.
    pub fn lose(&self, peer: &str, file: bool) {
        let mut disks = self.disks.lock();
        match file {
            true => drop(disks.remove(peer).expect("there is one")),
            false => disks[peer].write_at(&[0x5a; 8192], 0).unwrap(),
        }
    }

    /// Where the map of `peer` is.
    pub fn of(&self, peer: &str) -> Arc<SimDisk> {
        Arc::clone(&self.disks.lock()[peer])
    }

    fn crash(&self, random: &SimRandom) {
        for disk in self.disks.lock().values() {
            disk.crash(Survivors::Random(random));
        }
    }
}

/// A staging log on a simulated disk.
#[derive(Debug)]
pub struct Staging {
    pub room: AtomicU64,
    disk: Mutex<Option<Arc<SimDisk>>>,
}

impl StagingStore for Staging {
    fn room(&self) -> u64 {
        self.room.load(Ordering::Relaxed)
    }
    fn create(&self, len: u64) -> std::io::Result<Arc<dyn Disk>> {
        let disk = Arc::new(SimDisk::named("staging", len));
        *self.disk.lock() = Some(Arc::clone(&disk));
        Ok(disk)
    }
    fn open(&self) -> std::io::Result<Option<Arc<dyn Disk>>> {
        Ok(self.disk.lock().clone().map(|disk| disk as Arc<dyn Disk>))
    }
    fn remove(&self) -> std::io::Result<()> {
        *self.disk.lock() = None;
        Ok(())
    }
}

/// What was kept aside: the index, and the bytes.
type Kept = Arc<Mutex<HashMap<String, (LostIndex, Vec<u8>)>>>;

/// Where what is given up is kept. As long as there is one master, nothing is.
#[derive(Debug, Default)]
pub struct Lost {
    pub kept: Kept,
    pub expected: AtomicBool,
}

struct Keeping {
    id: String,
    bytes: Vec<u8>,
    kept: Kept,
}

impl LostStore for Lost {
    fn begin(&self, volume: &str, id: &str) -> std::io::Result<Box<dyn LostWriter>> {
        let expected = self.expected.load(Ordering::Relaxed);
        assert!(expected, "{id} of {volume} would be given up");
        Ok(Box::new(Keeping {
            id: id.to_string(),
            bytes: Vec::new(),
            kept: Arc::clone(&self.kept),
        }))
    }
}

impl LostWriter for Keeping {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
    fn finish(self: Box<Self>, index: &LostIndex) -> std::io::Result<()> {
        let kept = (index.clone(), self.bytes);
        self.kept.lock().insert(self.id, kept);
        Ok(())
    }
}

/// A disk that says "flushed" and has not: what a mirror that acknowledges before its flush would be.
#[derive(Debug)]
struct LyingDisk(Arc<SimDisk>);

impl Disk for LyingDisk {
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> std::io::Result<()> {
        self.0.write_at(data, offset)
    }
    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn zero(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.0.zero(offset, len)
    }
    fn preallocate(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.0.preallocate(offset, len)
    }
    fn is_hole(&self, offset: u64, len: u64) -> bool {
        self.0.is_hole(offset, len)
    }
    fn name(&self) -> String {
        self.0.name()
    }
    fn changed_at(&self) -> Option<i128> {
        self.0.changed_at()
    }
}

/// The mirror's parts: one simulated disk, made on demand.
#[derive(Debug)]
pub struct Parts {
    pub disk: Arc<SimDisk>,
    lying: AtomicBool,
}

impl Parts {
    fn device(&self) -> Arc<dyn Disk> {
        match self.lying.load(Ordering::Relaxed) {
            true => Arc::new(LyingDisk(Arc::clone(&self.disk))),
            false => Arc::clone(&self.disk) as Arc<dyn Disk>,
        }
    }
}

impl PartStore for Parts {
    fn make(
        &self,
        _volume: &str,
        _volume_id: u128,
        block_size: u32,
        parts: &[u64],
    ) -> Result<Arc<Volume>, (Cause, String)> {
        assert_eq!(parts, [self.disk.len()]);
        Volume::new(vec![self.device()], block_size)
            .map(Arc::new)
            .map_err(|error| (Cause::PartsRefused, error.to_string()))
    }
}

/// A frame under way.
type Frame = (Message, Vec<u8>);

pub struct World {
    pub random: Arc<SimRandom>,
    pub clock: Arc<SimClock>,
    pub master_disk: Arc<SimDisk>,
    pub master_facts: Arc<MemoryFacts>,
    pub maps: Arc<Maps>,
    pub mirror_parts: Arc<Parts>,
    pub mirror_facts: Arc<MemoryFacts>,
    pub mirror_maps: Arc<Maps>,
    pub staging: Arc<Staging>,
    pub lost: Arc<Lost>,
    /// The name of the master's node.
    pub node: String,
    pub master: Option<OpenMaster>,
    pub mirror: Option<Mirror>,
    pub follower: Option<Follower>,
    to_mirror: VecDeque<Frame>,
    to_master: VecDeque<Frame>,
    pub cut: bool,
    connected: bool,
    pub withdrawn: u32,
    /// A commit is half done: no other may begin.
    pub committing: bool,
    /// What the mirror says does not arrive, though the link stands.
    pub mute: bool,
    /// The last transaction of which an acknowledgement left the mirror: durable there for good.
    pub acknowledged: u64,
    /// The mirror's disk forgets flushes, as if the mirror acknowledged before them.
    lying: bool,
    pub trace: Vec<(State, State, String)>,
}

impl World {
    /// A fresh volume on the master, nothing on the mirror.
    pub fn new(seed: u64, buffer: u64) -> World {
        World::sized(seed, SIZE, buffer)
    }

    /// The same, of `size` bytes.
    pub fn sized(seed: u64, size: u64, buffer: u64) -> World {
        let random = Arc::new(SimRandom::new(seed));
        let master_disk = Arc::new(SimDisk::named("master", size));
        let volume = Volume::new(vec![Arc::clone(&master_disk) as Arc<dyn Disk>], BLOCK).unwrap();
        let options = MkfsOptions {
            buffer: Buffer::Bytes(buffer),
            scratch: Some(std::env::temp_dir()),
            ..MkfsOptions::new(7)
        };
        mkfs::make(&volume, &options).unwrap();
        volume.flush().unwrap();
        let master_facts = Arc::new(MemoryFacts::new());
        let facts = Facts {
            copy: Copy::Complete,
            ..Facts::blank(4711, "data", Role::Master)
        };
        master_facts.save(&facts).unwrap();
        let mut world = World {
            clock: Arc::new(SimClock::new(Timespec {
                secs: 1_800_000_000,
                nanos: 0,
            })),
            master_disk,
            master_facts,
            maps: Arc::new(Maps::default()),
            mirror_parts: Arc::new(Parts {
                disk: Arc::new(SimDisk::named("mirror", size)),
                lying: AtomicBool::new(false),
            }),
            mirror_facts: Arc::new(MemoryFacts::new()),
            mirror_maps: Arc::new(Maps::default()),
            staging: Arc::new(Staging {
                room: AtomicU64::new(u64::MAX),
                disk: Mutex::new(None),
            }),
            lost: Arc::default(),
            node: "a".to_string(),
            master: None,
            mirror: None,
            follower: None,
            to_mirror: VecDeque::new(),
            to_master: VecDeque::new(),
            cut: false,
            connected: false,
            withdrawn: 0,
            committing: false,
            mute: false,
            acknowledged: 0,
            lying: false,
            trace: Vec::new(),
            random,
        };
        world.start_master();
        world.start_mirror();
        world
    }

    pub fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    pub fn fs(&self) -> &lockstepfs::fs::Fs {
        &self.master.as_ref().unwrap().shared.fs
    }

    /// A new file in the root, not committed.
    pub fn file(&self, name: &str, bytes: &[u8]) -> Ino {
        let new = New {
            mode: 0o100644,
            ..New::default()
        };
        let ino = self.fs().create(Ino(2), name.as_bytes(), &new).unwrap().ino;
        self.fs().write(ino, 0, bytes).unwrap();
        ino
    }

    pub fn start_master(&mut self) {
        self.try_start_master().unwrap();
    }

    /// Starts the master, if its disks let it.
    pub fn try_start_master(&mut self) -> Result<(), MirrorError> {
        let disk = Arc::clone(&self.master_disk) as Arc<dyn Disk>;
        let volume = Arc::new(Volume::new(vec![disk], BLOCK).unwrap());
        let options = MasterOptions {
            node: self.node.clone(),
            facts: Arc::clone(&self.master_facts) as Arc<dyn FactStore>,
            maps: Arc::clone(&self.maps) as Arc<dyn MapStore>,
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            random: Arc::new(self.random.fork()),
            cache_bytes: 8 << 20,
            commit_interval: Duration::from_secs(1),
        };
        let facts = self.master_facts.load().unwrap();
        let master = open_master(volume, facts, &options)?;
        // What the opening found out is among it.
        let records = master.shared.facts.lock().peers.clone();
        for slot in master.slots.all() {
            let record = records[&slot.peer].record.clone();
            let rate = Rate::new(record.rate);
            self.mirror = Some(Mirror::new(
                master.shared.clone(),
                slot.peer.clone(),
                slot,
                record,
                rate,
            ));
        }
        self.master = Some(master);
        if self.mirror.is_some() {
            let now = self.now();
            let actions = self.mirror.as_mut().unwrap().start(now);
            self.act(actions);
        }
        Ok(())
    }

    pub fn start_mirror(&mut self) {
        self.try_start_mirror().unwrap();
    }

    /// Starts the mirror, if its disks let it.
    pub fn try_start_mirror(&mut self) -> Result<(), MirrorError> {
        let env = Env {
            node: "b".to_string(),
            parts: Arc::clone(&self.mirror_parts) as Arc<dyn PartStore>,
            facts: Arc::clone(&self.mirror_facts) as Arc<dyn FactStore>,
            maps: Arc::clone(&self.mirror_maps) as Arc<dyn MapStore>,
            staging: Arc::clone(&self.staging) as Arc<dyn StagingStore>,
            lost: Arc::clone(&self.lost) as Arc<dyn LostStore>,
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            random: Arc::new(self.random.fork()),
            cache_bytes: 8 << 20,
        };
        let facts = self.mirror_facts.load().ok();
        let volume = facts
            .as_ref()
            .map(|_| Arc::new(Volume::new(vec![self.mirror_parts.device()], BLOCK).unwrap()));
        let (follower, outputs) = Follower::open(env, "data".to_string(), facts, volume)?;
        assert!(
            follower.durable().0 >= self.acknowledged || !follower.is_consistent(),
            "transaction {} was acknowledged, the mirror has {}",
            self.acknowledged,
            follower.durable()
        );
        self.follower = Some(follower);
        self.put_out(outputs);
        Ok(())
    }

    pub fn create_mirror(&mut self) {
        let master = self.master.clone().unwrap();
        let slot = master.add_mirror("b", None).unwrap();
        let record = master.shared.facts.lock().peers["b"].record.clone();
        let mut mirror = Mirror::new(
            master.shared.clone(),
            "b".to_string(),
            slot,
            record,
            Rate::new(None),
        );
        let actions = mirror.start(self.now());
        self.mirror = Some(mirror);
        self.act(actions);
    }

    pub fn request(&mut self, request: Request) {
        let now = self.now();
        let actions = self.mirror.as_mut().unwrap().request(request, now).unwrap();
        self.act(actions);
    }

    /// The mirror is made no more, and its copy kept.
    pub fn delete_mirror(&mut self) -> Result<(), MirrorError> {
        self.cut_link();
        self.request(Request::Delete);
        let slot = Arc::clone(self.mirror.take().unwrap().slot());
        self.master.as_ref().unwrap().remove_mirror(&slot)
    }

    /// Power fails on the master: what was not flushed may be lost.
    pub fn crash_master(&mut self) {
        // What was only being committed may be lost here, and is given up there.
        if let Some(master) = &self.master {
            let committed = master.shared.journal.last_committed().0;
            self.acknowledged = self.acknowledged.min(committed);
        }
        self.committing = false;
        self.lose_link();
        self.mirror = None;
        self.master = None;
        self.master_disk.crash(Survivors::Random(&self.random));
        self.maps.crash(&self.random);
    }

    /// Another node has the volume as `disk` and `facts` say, and is made its master.
    pub fn take_over(&mut self, node: &str, disk: SimDisk, facts: &Facts) {
        self.crash_master();
        self.lost.expected.store(true, Ordering::Relaxed);
        node.clone_into(&mut self.node);
        self.master_disk = Arc::new(disk);
        self.master_facts.save(facts).unwrap();
        // What was acknowledged may be given up from here on.
        self.acknowledged = 0;
        self.start_master();
    }

    /// Power fails on the mirror.
    pub fn crash_mirror(&mut self) {
        self.follower = None;
        self.lose_link();
        self.mirror_parts
            .disk
            .crash(Survivors::Random(&self.random));
        if let Some(disk) = &*self.staging.disk.lock() {
            disk.crash(Survivors::Random(&self.random));
        }
    }

    fn lose_link(&mut self) {
        self.to_mirror.clear();
        self.to_master.clear();
        if self.connected {
            self.connected = false;
            if let Some(mut mirror) = self.mirror.take() {
                let actions = mirror.link_lost("the link was cut", None, self.now());
                self.mirror = Some(mirror);
                self.act(actions);
            }
            if let Some(follower) = &mut self.follower {
                let outputs = follower.disconnected().unwrap();
                self.put_out(outputs);
            }
        }
    }

    /// An orderly stop and start of the master.
    pub fn restart_master(&mut self) {
        self.lose_link();
        self.mirror = None;
        self.master.take().unwrap().close().unwrap();
        self.start_master();
    }

    /// An orderly stop and start of the mirror.
    pub fn restart_mirror(&mut self) {
        if let Some(mut follower) = self.follower.take() {
            self.lose_link();
            follower.close().unwrap();
        }
        self.start_mirror();
    }

    pub fn set_lying_mirror(&mut self, lying: bool) {
        self.lying = lying;
        self.mirror_parts.lying.store(lying, Ordering::Relaxed);
    }

    /// What a promotion would open is a sound volume, and so is what the master has committed.
    pub fn check_now(&self) {
        let exact = Options {
            exact_superblock: true,
            ..Options::default()
        };
        let judge = |name: &str, journal: &Journal| {
            let report = check::run(journal, &exact);
            assert!(
                report.is_clean(),
                "the {name} is damaged: {:#?}",
                report.findings
            );
        };
        if let Some(master) = &self.master {
            judge("master", &master.shared.journal);
        }
        if let Some(follower) = &self.follower
            && follower.is_consistent()
            && let Some(fs) = follower.fs()
        {
            judge("mirror", fs.journal());
        }
    }

    /// Stops both nodes; our own check finds nothing wrong with either copy, nor does e2fsck where it is asked.
    pub fn check_parts(&mut self, ask_e2fsck: bool) {
        self.lose_link();
        self.mirror = None;
        self.master.take().unwrap().close().unwrap();
        self.follower.take().unwrap().close().unwrap();
        for (name, disk) in [
            ("master", &self.master_disk),
            ("mirror", &self.mirror_parts.disk),
        ] {
            let parts = vec![Arc::clone(disk) as Arc<dyn Disk>];
            let volume = Arc::new(Volume::new(parts, BLOCK).unwrap());
            let report = check::volume(&volume, &Options::default());
            assert!(
                report.is_clean(),
                "the {name} is damaged: {:#?}",
                report.findings
            );
            if ask_e2fsck {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join(name);
                disk.save(&path).unwrap();
                let output = std::process::Command::new("e2fsck")
                    .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
                    .args(["-fn"])
                    .arg(&path)
                    .output()
                    .expect("e2fsck (package e2fsprogs)");
                assert!(
                    output.status.success(),
                    "e2fsck of the {name}: {}",
                    String::from_utf8_lossy(&output.stdout)
                );
            }
        }
    }

    pub fn cut_link(&mut self) {
        self.cut = true;
        self.lose_link();
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Connect => {
                    let now = self.now();
                    let up = !self.cut && self.follower.is_some();
                    self.connected = up;
                    let mirror = self.mirror.as_mut().unwrap();
                    let more = match up {
                        true => mirror.connected(now),
                        false => mirror.link_lost("no route", None, now),
                    };
                    self.act(more);
                }
                Action::Close => {
                    self.to_mirror.clear();
                    self.to_master.clear();
                    self.connected = false;
                    if let Some(follower) = &mut self.follower {
                        let outputs = follower.disconnected().unwrap();
                        self.put_out(outputs);
                    }
                    self.to_master.clear();
                }
                Action::Send(message, payload) => self.to_mirror.push_back((message, payload)),
                Action::Event { from, to, why } => self.trace.push((from, to, why)),
                Action::Noted { .. } | Action::Forgotten => {}
            }
        }
    }

    fn put_out(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send(message, payload) => {
                    if let Message::Ack {
                        txid,
                        consistent: true,
                        ..
                    } = message
                    {
                        self.acknowledged = txid;
                    }
                    self.to_master.push_back((message, payload));
                }
                Output::Withdraw => self.withdrawn += 1,
                Output::Invalidate(_)
                | Output::Opened(_)
                | Output::Status(_)
                | Output::KeptAside(..)
                | Output::Close(_) => {}
            }
        }
    }

    /// One round: time, frames both ways, the stream. Whether anything moved.
    pub fn step(&mut self) -> bool {
        self.clock.advance(Duration::from_millis(10));
        let now = self.now();
        let mut moved = false;
        if let Some(master) = &self.master
            && !self.committing
        {
            master.shared.fs.commit_step(now).unwrap();
        }
        if let Some(mut mirror) = self.mirror.take() {
            let actions = mirror.tick(now);
            let (more, frame, _) = mirror.next_frame(now);
            self.mirror = Some(mirror);
            moved |= !actions.is_empty() || frame.is_some();
            self.act(actions);
            self.act(more);
            if let Some(frame) = frame
                && self.connected
            {
                self.to_mirror.push_back(frame);
            }
        }
        for _ in 0..4 {
            if let (Some((message, payload)), Some(follower)) =
                (self.to_mirror.pop_front(), &mut self.follower)
            {
                moved = true;
                let handled = follower.frame(message, payload);
                self.handled(handled);
            }
        }
        if self.to_mirror.is_empty()
            && let Some(follower) = &mut self.follower
        {
            let handled = follower.idle();
            self.handled(handled);
        }
        if self.random.chance(2)
            && let Some(follower) = &mut self.follower
        {
            follower.tick().unwrap();
        }
        if !self.mute {
            moved |= self.hear();
        }
        moved
    }

    /// The log gives up the mirror: what it lacks is in its map.
    pub fn crack(&self) {
        let slot = Arc::clone(self.mirror.as_ref().unwrap().slot());
        let shared = &self.master.as_ref().unwrap().shared;
        let last = shared.journal.last_committed();
        let mut state = slot.state.lock();
        state
            .crack(&shared.journal, slot.id, shared.generation, last)
            .unwrap();
    }

    /// The master takes one frame of the mirror, if there is one.
    pub fn hear(&mut self) -> bool {
        let now = self.now();
        if let Some((message, payload)) = self.to_master.pop_front()
            && let Some(mirror) = &mut self.mirror
        {
            let actions = mirror.frame(message, payload, now);
            self.act(actions);
            return true;
        }
        false
    }

    /// What a follower did, or that it can not go on: it says why, and hangs up.
    fn handled(&mut self, handled: Result<Vec<Output>, MirrorError>) {
        match handled {
            Ok(outputs) => self.put_out(outputs),
            Err(error) => {
                self.to_mirror.clear();
                self.to_master.push_back((failure(&error), Vec::new()));
                // What is left of the session may fail in the same way.
                let _ = self.follower.as_mut().map(Follower::disconnected);
            }
        }
    }

    pub fn state(&self) -> State {
        self.mirror.as_ref().unwrap().state()
    }

    /// Steps until the mirror is in `state`, in bounded simulated time.
    pub fn until(&mut self, state: State) {
        for _ in 0..200_000 {
            if self.state() == state {
                return;
            }
            self.step();
        }
        panic!(
            "still {} after a long time: {:#?}",
            self.state(),
            self.trace
        );
    }

    /// In sync, and everything committed is acknowledged.
    pub fn settle(&mut self) {
        self.fs().sync().unwrap();
        self.until(State::InSync);
        for _ in 0..200_000 {
            let status = self.mirror.as_ref().unwrap().status(self.now());
            let shown = self.follower.as_ref().map(|follower| follower.applied());
            let at = status.txid_committed;
            if status.state == State::InSync && status.txid_acked == at && shown == Some(at) {
                return;
            }
            self.step();
        }
        panic!(
            "never settled: {:#?}",
            self.mirror.as_ref().unwrap().status(self.now())
        );
    }

    /// Every allocated block outside the journal is the same, as read through each side's log.
    pub fn assert_equal(&self) {
        let shared = &self.master.as_ref().unwrap().shared;
        let theirs = self
            .follower
            .as_ref()
            .unwrap()
            .fs()
            .expect("the copy is open");
        let committed = lockstepfs::mirror::committed::Committed::load(
            Arc::clone(&shared.journal),
            BLOCK as usize,
        )
        .unwrap();
        let all = BlockRange::new(BlockNo(0), shared.volume.blocks_count());
        let mut differing = Vec::new();
        for range in committed.allocated(all).unwrap() {
            for block in range.blocks() {
                if block.0 == 0 || shared.log.iter().any(|log| log.contains(block)) {
                    continue;
                }
                let (mut a, mut b) = (vec![0; BLOCK as usize], vec![0; BLOCK as usize]);
                shared.journal.read(block, &mut a).unwrap();
                theirs.journal().read(block, &mut b).unwrap();
                if a != b {
                    differing.push(block);
                }
            }
        }
        if !differing.is_empty() {
            for block in differing.iter().take(3) {
                let (mut a, mut b) = (vec![0; BLOCK as usize], vec![0; BLOCK as usize]);
                let (mut c, mut d) = (vec![0; BLOCK as usize], vec![0; BLOCK as usize]);
                shared.journal.read(*block, &mut a).unwrap();
                theirs.journal().read(*block, &mut b).unwrap();
                shared.volume.read(*block, &mut c).unwrap();
                theirs.volume().read(*block, &mut d).unwrap();
                eprintln!(
                    "{block}: master {:?} mirror {:?} home {:?} {:?}",
                    &a[..8],
                    &b[..8],
                    &c[..8],
                    &d[..8]
                );
            }
            let tail = self.trace.len().saturating_sub(12);
            panic!(
                "these blocks differ: {differing:?}; {:#?}",
                &self.trace[tail..]
            );
        }
    }
}
