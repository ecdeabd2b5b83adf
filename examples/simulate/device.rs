//! What a node stands on: its power, and the disks, fact stores and dirty maps that go dark with it.
//!
//! Owns the faults that reach more than one disk at once: a power cut at any one request of the whole node, a disk that is
//! slow. Never touches what the product wrote. Invariant: after the cut every request fails, until the power is back.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use lockstepfs::io::Disk;
use lockstepfs::io::sim::{Fault, SimDisk, SimRandom, Survivors};
use lockstepfs::mirror::follower::PartStore;
use lockstepfs::mirror::lost::{LostIndex, LostStore, LostWriter};
use lockstepfs::mirror::open::MapStore;
use lockstepfs::mirror::roles::Listed;
use lockstepfs::mirror::staging::StagingStore;
use lockstepfs::volume::Volume;
use lockstepfs::volume::facts::{FactStore, Facts, FactsError};
use parking_lot::Mutex;
use states::Cause;

/// What a request finds.
enum Current {
    Flows,
    /// The power goes in the middle of this request.
    Goes,
    Gone,
}

#[derive(Debug)]
struct Supply {
    on: bool,
    /// Requests until the power goes.
    left: Option<u64>,
    /// What every flush takes, in ms.
    slow_ms: u64,
    /// Time that requests took and the node has still to spend.
    debt_ms: u64,
    random: SimRandom,
}

/// The power of one node.
#[derive(Debug)]
pub struct Power(Mutex<Supply>);

impl Power {
    pub fn new(seed: u64) -> Power {
        Power(Mutex::new(Supply {
            on: true,
            left: None,
            slow_ms: 0,
            debt_ms: 0,
            random: SimRandom::new(seed),
        }))
    }

    /// The power goes after this many further requests, of any kind, to any disk of the node.
    pub fn cut_after(&self, requests: u64) {
        self.0.lock().left = Some(requests);
    }

    pub fn is_on(&self) -> bool {
        self.0.lock().on
    }

    pub fn back(&self) {
        let mut supply = self.0.lock();
        supply.on = true;
        supply.left = None;
        supply.slow_ms = 0;
        supply.debt_ms = 0;
    }

    /// Every flush takes this long from now on.
    pub fn slow(&self, ms: u64) {
        self.0.lock().slow_ms = ms;
    }

    /// Time that requests took since this was asked last, in ms.
    pub fn take_debt_ms(&self) -> u64 {
        std::mem::take(&mut self.0.lock().debt_ms)
    }

    fn request(&self) -> Current {
        let mut supply = self.0.lock();
        if !supply.on {
            return Current::Gone;
        }
        match supply.left {
            None => Current::Flows,
            Some(0) => {
                supply.on = false;
                Current::Goes
            }
            Some(left) => {
                supply.left = Some(left - 1);
                Current::Flows
            }
        }
    }

    fn flushed(&self) {
        let mut supply = self.0.lock();
        supply.debt_ms += supply.slow_ms;
    }

    fn coin(&self) -> bool {
        self.0.lock().random.chance(50)
    }
}

fn dark() -> io::Error {
    io::Error::other("simulated: the power is gone")
}

/// A disk of a node.
pub struct NodeDisk {
    disk: Arc<SimDisk>,
    power: Arc<Power>,
}

impl fmt::Debug for NodeDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.disk.name())
    }
}

impl NodeDisk {
    pub fn of(disk: Arc<SimDisk>, power: &Arc<Power>) -> Arc<dyn Disk> {
        Arc::new(NodeDisk {
            disk,
            power: Arc::clone(power),
        })
    }

    /// A request that changes something: when the power goes, it may have begun.
    fn change(&self, request: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self.power.request() {
            Current::Flows => request(),
            Current::Goes => {
                // What of it reached the disk is decided with the rest of what was not flushed.
                let _ = request();
                Err(dark())
            }
            Current::Gone => Err(dark()),
        }
    }
}

impl Disk for NodeDisk {
    fn len(&self) -> u64 {
        self.disk.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self.power.is_on() {
            true => self.disk.read_at(buf, offset),
            false => Err(dark()),
        }
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.change(|| self.disk.write_at(data, offset))
    }
    fn flush(&self) -> io::Result<()> {
        match self.power.request() {
            Current::Flows => {
                self.power.flushed();
                self.disk.flush()
            }
            Current::Goes if self.power.coin() => {
                // It was done, and nobody learnt of it.
                let _ = self.disk.flush();
                Err(dark())
            }
            Current::Goes | Current::Gone => Err(dark()),
        }
    }
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(|| self.disk.zero(offset, len))
    }
    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(|| self.disk.preallocate(offset, len))
    }
    fn is_hole(&self, offset: u64, len: u64) -> bool {
        self.disk.is_hole(offset, len)
    }
    fn name(&self) -> String {
        self.disk.name()
    }
    fn changed_at(&self) -> Option<i128> {
        self.disk.changed_at()
    }
}

/// Facts, each save being atomic and durable, as that of the file is.
#[derive(Debug)]
pub struct NodeFacts {
    stored: Mutex<Option<Facts>>,
    failing: Mutex<bool>,
    power: Arc<Power>,
}

impl NodeFacts {
    pub fn new(power: &Arc<Power>) -> NodeFacts {
        NodeFacts {
            stored: Mutex::new(None),
            failing: Mutex::new(false),
            power: Arc::clone(power),
        }
    }

    /// The disk of the state directory is full.
    pub fn fail(&self, failing: bool) {
        *self.failing.lock() = failing;
    }

    /// What a restart would find.
    pub fn stored(&self) -> Option<Facts> {
        self.stored.lock().clone()
    }

    fn error(source: io::Error) -> FactsError {
        FactsError::Io {
            place: "simulated".to_string(),
            action: "save",
            source: Arc::new(source),
        }
    }
}

impl FactStore for NodeFacts {
    fn load(&self) -> Result<Facts, FactsError> {
        self.stored().ok_or_else(|| FactsError::Missing {
            place: "simulated".to_string(),
        })
    }

    fn save(&self, facts: &Facts) -> Result<(), FactsError> {
        match self.power.request() {
            Current::Gone => return Err(NodeFacts::error(dark())),
            Current::Goes => {
                if self.power.coin() {
                    *self.stored.lock() = Some(facts.clone());
                }
                return Err(NodeFacts::error(dark()));
            }
            Current::Flows => self.power.flushed(),
        }
        if *self.failing.lock() {
            let full = io::Error::new(io::ErrorKind::StorageFull, "simulated: no space left");
            return Err(NodeFacts::error(full));
        }
        *self.stored.lock() = Some(facts.clone());
        Ok(())
    }
}

/// The dirty maps of one volume's mirrors, on the master's node.
#[derive(Debug)]
pub struct NodeMaps {
    disks: Mutex<BTreeMap<String, Arc<SimDisk>>>,
    power: Arc<Power>,
}

impl NodeMaps {
    fn new(power: &Arc<Power>) -> NodeMaps {
        NodeMaps {
            disks: Mutex::new(BTreeMap::new()),
            power: Arc::clone(power),
        }
    }

    /// Removes a map file.
    pub fn remove(&self, peer: &str) {
        self.disks.lock().remove(peer);
    }

    /// Somebody lost a file.
    pub fn lose_one(&self, random: &SimRandom) -> bool {
        let mut disks = self.disks.lock();
        let at = random.below(disks.len() as u64) as usize;
        let Some(peer) = disks.keys().nth(at).cloned() else {
            return false;
        };
        disks.remove(&peer);
        true
    }
}

impl MapStore for NodeMaps {
    fn open(&self, peer: &str, len: u64) -> io::Result<(Arc<dyn Disk>, bool)> {
        if !self.power.is_on() {
            return Err(dark());
        }
        let mut disks = self.disks.lock();
        let created = !disks.contains_key(peer);
        let disk = disks
            .entry(peer.to_string())
            .or_insert_with(|| Arc::new(SimDisk::named(format!("map of {peer}"), len)));
        Ok((NodeDisk::of(Arc::clone(disk), &self.power), created))
    }
}

/// Where a resync stages what it brings: one file.
#[derive(Debug)]
pub struct NodeStaging {
    disk: Mutex<Option<Arc<SimDisk>>>,
    room: Mutex<u64>,
    power: Arc<Power>,
}

impl NodeStaging {
    fn new(power: &Arc<Power>) -> NodeStaging {
        NodeStaging {
            disk: Mutex::new(None),
            room: Mutex::new(256 << 20),
            power: Arc::clone(power),
        }
    }

    /// Room for this many bytes from now on.
    pub fn set_room(&self, bytes: u64) {
        *self.room.lock() = bytes;
    }
}

impl StagingStore for NodeStaging {
    fn room(&self) -> u64 {
        *self.room.lock()
    }

    fn create(&self, len: u64) -> io::Result<Arc<dyn Disk>> {
        if !self.power.is_on() {
            return Err(dark());
        }
        let disk = Arc::new(SimDisk::named("staging", len));
        *self.disk.lock() = Some(Arc::clone(&disk));
        Ok(NodeDisk::of(disk, &self.power))
    }

    fn open(&self) -> io::Result<Option<Arc<dyn Disk>>> {
        let disk = self.disk.lock();
        Ok(disk
            .as_ref()
            .map(|disk| NodeDisk::of(Arc::clone(disk), &self.power)))
    }

    fn remove(&self) -> io::Result<()> {
        if !self.power.is_on() {
            return Err(dark());
        }
        *self.disk.lock() = None;
        Ok(())
    }
}

/// What was kept aside under one name.
#[derive(Clone, Debug)]
pub struct Kept {
    pub index: LostIndex,
    pub bytes: Arc<Vec<u8>>,
}

impl Kept {
    /// What was kept of a block.
    pub fn block(&self, block: u64) -> Option<&[u8]> {
        let size = self.index.block_size as usize;
        let mut before = 0;
        for (start, len) in &self.index.ranges {
            if (*start..start + len).contains(&block) {
                let at = (before + block - start) as usize * size;
                return self.bytes.get(at..at + size);
            }
            before += len;
        }
        None
    }
}

/// What is given up, and kept aside first.
#[derive(Debug)]
pub struct NodeLost {
    kept: Arc<Mutex<BTreeMap<String, Kept>>>,
    power: Arc<Power>,
}

impl NodeLost {
    /// What was kept under a name.
    pub fn get(&self, id: &str) -> Option<Kept> {
        self.kept.lock().get(id).cloned()
    }

    /// All that was kept.
    pub fn all(&self) -> Vec<Kept> {
        self.kept.lock().values().cloned().collect()
    }
}

struct Keeping {
    id: String,
    bytes: Vec<u8>,
    kept: Arc<Mutex<BTreeMap<String, Kept>>>,
    power: Arc<Power>,
}

impl LostStore for NodeLost {
    fn begin(&self, _volume: &str, id: &str) -> io::Result<Box<dyn LostWriter>> {
        Ok(Box::new(Keeping {
            id: id.to_string(),
            bytes: Vec::new(),
            kept: Arc::clone(&self.kept),
            power: Arc::clone(&self.power),
        }))
    }
}

impl LostWriter for Keeping {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.power.request() {
            Current::Flows => {
                self.bytes.extend_from_slice(bytes);
                Ok(())
            }
            Current::Goes | Current::Gone => Err(dark()),
        }
    }

    fn finish(self: Box<Self>, index: &LostIndex) -> io::Result<()> {
        match self.power.request() {
            Current::Flows => {
                let kept = Kept {
                    index: index.clone(),
                    bytes: Arc::new(self.bytes),
                };
                self.kept.lock().insert(self.id, kept);
                Ok(())
            }
            Current::Goes | Current::Gone => Err(dark()),
        }
    }
}

/// What the node's list of volumes says, each change being atomic and durable.
#[derive(Debug)]
pub struct NodeList {
    listed: Mutex<Option<Listed>>,
    power: Arc<Power>,
}

impl NodeList {
    /// None: the volume is not in it.
    pub fn get(&self) -> Option<Listed> {
        self.listed.lock().clone()
    }

    pub fn set(&self, listed: Listed) -> io::Result<()> {
        match self.power.request() {
            Current::Flows => {
                *self.listed.lock() = Some(listed);
                Ok(())
            }
            Current::Goes | Current::Gone => Err(dark()),
        }
    }
}

/// Everything that one node keeps of one volume: it outlasts the node's process.
pub struct Home {
    pub parts: Vec<Arc<SimDisk>>,
    pub facts: Arc<NodeFacts>,
    pub maps: Arc<NodeMaps>,
    pub staging: Arc<NodeStaging>,
    pub lost: Arc<NodeLost>,
    pub list: NodeList,
    pub block_size: u32,
    power: Arc<Power>,
}

impl Home {
    pub fn new(parts: Vec<Arc<SimDisk>>, block_size: u32, power: &Arc<Power>) -> Home {
        Home {
            parts,
            facts: Arc::new(NodeFacts::new(power)),
            maps: Arc::new(NodeMaps::new(power)),
            staging: Arc::new(NodeStaging::new(power)),
            lost: Arc::new(NodeLost {
                kept: Arc::default(),
                power: Arc::clone(power),
            }),
            list: NodeList {
                listed: Mutex::new(None),
                power: Arc::clone(power),
            },
            block_size,
            power: Arc::clone(power),
        }
    }

    /// The parts, opened anew.
    pub fn volume(&self) -> Arc<Volume> {
        let parts = self
            .parts
            .iter()
            .map(|disk| NodeDisk::of(Arc::clone(disk), &self.power))
            .collect();
        Arc::new(Volume::new(parts, self.block_size).expect("parts are made of whole blocks"))
    }

    /// A part store that hands these parts out.
    pub fn part_store(&self) -> Arc<dyn PartStore> {
        Arc::new(NodeParts {
            parts: self.parts.clone(),
            power: Arc::clone(&self.power),
        })
    }

    /// What was not flushed is lost, in part, as chance has it.
    pub fn crash(&self, survivors: Survivors<'_>) {
        for disk in &self.parts {
            disk.crash(survivors);
        }
        for disk in self.maps.disks.lock().values() {
            disk.crash(survivors);
        }
        if let Some(disk) = &*self.staging.disk.lock() {
            disk.crash(survivors);
        }
    }

    /// Something goes wrong with one of the parts.
    pub fn inject(&self, fault: Fault, random: &SimRandom) {
        let at = random.below(self.parts.len() as u64) as usize;
        self.parts[at].inject(fault);
    }

    /// The disks work again.
    pub fn heal(&self) {
        self.parts.iter().for_each(|disk| disk.heal());
        self.facts.fail(false);
        self.staging.set_room(256 << 20);
    }

    /// The parts as a power cut now would leave them, behind one another.
    pub fn after_crash(&self, random: &SimRandom) -> Vec<SimDisk> {
        self.parts
            .iter()
            .map(|disk| disk.after_crash(Survivors::Random(random)))
            .collect()
    }
}

#[derive(Debug)]
struct NodeParts {
    parts: Vec<Arc<SimDisk>>,
    power: Arc<Power>,
}

impl PartStore for NodeParts {
    fn make(
        &self,
        _volume: &str,
        _volume_id: u128,
        block_size: u32,
        parts: &[u64],
    ) -> Result<Arc<Volume>, (Cause, String)> {
        let ours: Vec<u64> = self.parts.iter().map(|part| part.len()).collect();
        assert_eq!(parts, ours, "the master's parts");
        let disks = self
            .parts
            .iter()
            .map(|disk| NodeDisk::of(Arc::clone(disk), &self.power))
            .collect();
        Volume::new(disks, block_size)
            .map(Arc::new)
            .map_err(|error| (Cause::PartsRefused, error.to_string()))
    }
}
