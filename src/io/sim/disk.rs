//! A disk in memory that can lose power.
//!
//! Owns two images that share their pages: what readers see, and what is durable; and the ordered list of writes
//! between the two. Invariants: `live` = `durable` + `pending`, in order; memory grows with what was written, not with
//! the size of the disk.
//!
//! What a power cut may leave: for every sector, any one of the contents it had since the last flush. That is what
//! keeping an arbitrary subset of the unflushed sectors' writes, applied in order, gives. An older write never lands on top
//! of a newer one to the same sector: neither the page cache nor a drive's cache does that.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::SimRandom;
use super::pages::{self, PAGE, Pages};
use crate::io::{Disk, check_range};

/// What a disk writes wholly or not at all, in bytes.
pub const SECTOR: u64 = 512;

/// Which of the unflushed writes are there after a power cut.
#[derive(Clone, Copy, Debug)]
pub enum Survivors<'a> {
    /// None: the disk held everything back.
    None,
    /// All, as after the crash of a process.
    All,
    /// The first `n`, as on a disk that never reorders.
    First(usize),
    /// Some of them, some of those torn at sector boundaries, as the seed has it.
    Random(&'a SimRandom),
}

/// What goes wrong, and when. Counts are of requests from the moment the fault is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every write and zeroing fails once this many have succeeded.
    WritesAfter(u64),
    /// Every flush fails once this many have succeeded; what was to be flushed stays pending.
    FlushesAfter(u64),
    /// Reads that touch these bytes fail, until the sectors are written again.
    Unreadable {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The store of this (sparse) file has room for this many more bytes, counted in pages: beyond it, a write to
    /// a hole that was not preallocated fails.
    FullAfter(u64),
    /// Every request fails: the disk was pulled.
    Gone,
}

#[derive(Clone, Debug)]
enum Pending {
    Write { offset: u64, data: Arc<[u8]> },
    Zero { offset: u64, len: u64 },
}

#[derive(Clone, Debug, Default)]
struct State {
    live: Pages,
    durable: Pages,
    pending: Vec<Pending>,
    /// Preallocated pages that hold nothing yet; first page -> page after the last.
    reserved: BTreeMap<u64, u64>,
    writes_left: Option<u64>,
    flushes_left: Option<u64>,
    pages_left: Option<u64>,
    /// Unreadable sectors, half-open ranges: first -> sector after the last.
    rotten: Vec<(u64, u64)>,
    gone: bool,
    changed: u64,
}

/// A simulated disk. Cheap to copy with [`SimDisk::snapshot`].
#[derive(Debug)]
pub struct SimDisk {
    name: String,
    len: u64,
    state: Mutex<State>,
}

impl SimDisk {
    /// An empty disk of `len` bytes.
    pub fn new(len: u64) -> SimDisk {
        SimDisk::named("sim", len)
    }

    /// An empty disk of `len` bytes with a name for messages.
    pub fn named(name: impl Into<String>, len: u64) -> SimDisk {
        SimDisk {
            name: name.into(),
            len,
            state: Mutex::new(State::default()),
        }
    }

    /// A disk with the contents of a file, all of it durable.
    pub fn load(path: impl AsRef<Path>) -> io::Result<SimDisk> {
        let path = path.as_ref();
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let disk = SimDisk::named(path.display().to_string(), len);
        let mut state = disk.state.lock();
        let mut at = 0;
        while at < len {
            // What the file says is a hole is not read; a file system that does not say has data everywhere.
            at = match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
                Ok(data) => data / PAGE * PAGE,
                Err(rustix::io::Errno::NXIO) => break,
                Err(_) => at,
            };
            let mut page = [0; PAGE as usize];
            let n = PAGE.min(len - at);
            file.read_exact_at(&mut page[..n as usize], at)?;
            if page != [0; PAGE as usize] {
                state.live.insert(at / PAGE, Arc::new(page));
            }
            at += n;
        }
        state.durable = state.live.clone();
        drop(state);
        Ok(disk)
    }

    /// Writes what readers see to a new, sparse file (for e2fsck and the kernel).
    pub fn save(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len(self.len)?;
        let pages = self.state.lock().live.clone();
        for (number, page) in pages {
            let at = number * PAGE;
            let n = PAGE.min(self.len - at);
            file.write_all_at(&page[..n as usize], at)?;
        }
        Ok(())
    }

    /// A second disk with what readers of this one see now, all of it durable, without faults.
    pub fn snapshot(&self) -> SimDisk {
        let live = self.state.lock().live.clone();
        self.with_pages(live)
    }

    /// The disk as a power cut now would leave it; this one is not changed.
    pub fn after_crash(&self, survivors: Survivors<'_>) -> SimDisk {
        let state = self.state.lock();
        let mut pages = state.durable.clone();
        apply_survivors(&mut pages, &state.pending, survivors);
        drop(state);
        self.with_pages(pages)
    }

    /// Cuts the power: of the unflushed writes the `survivors` are there when it comes back. Faults stay.
    pub fn crash(&self, survivors: Survivors<'_>) {
        let mut state = self.state.lock();
        let mut pages = std::mem::take(&mut state.durable);
        let pending = std::mem::take(&mut state.pending);
        apply_survivors(&mut pages, &pending, survivors);
        state.live = pages.clone();
        state.durable = pages;
        if !pending.is_empty() {
            state.changed += 1;
        }
    }

    /// Writes and zeroings since the last flush.
    pub fn pending(&self) -> usize {
        self.state.lock().pending.len()
    }

    /// Adds a fault; one of the same kind is replaced, except that unreadable ranges add up.
    pub fn inject(&self, fault: Fault) {
        let mut state = self.state.lock();
        match fault {
            Fault::WritesAfter(n) => state.writes_left = Some(n),
            Fault::FlushesAfter(n) => state.flushes_left = Some(n),
            Fault::Unreadable { offset, len } => {
                let end = offset.saturating_add(len).div_ceil(SECTOR);
                state.rotten.push((offset / SECTOR, end));
            }
            Fault::FullAfter(bytes) => state.pages_left = Some(bytes / PAGE),
            Fault::Gone => state.gone = true,
        }
    }

    /// Takes every fault away.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.writes_left = None;
        state.flushes_left = None;
        state.pages_left = None;
        state.rotten.clear();
        state.gone = false;
    }

    /// Memory that the contents take, in bytes, were no page shared.
    pub fn footprint(&self) -> u64 {
        self.state.lock().live.len() as u64 * PAGE
    }

    /// Whether two disks read the same.
    pub fn same_contents(&self, other: &SimDisk) -> bool {
        self.first_difference(other).is_none()
    }

    /// Offset of the first page (in bytes) that reads differently on the two disks.
    pub fn first_difference(&self, other: &SimDisk) -> Option<u64> {
        if self.len != other.len {
            return Some(self.len.min(other.len));
        }
        // Copies, which share their pages: the two locks are never held at once.
        let (one, two) = (
            self.state.lock().live.clone(),
            other.state.lock().live.clone(),
        );
        let zero = [0; PAGE as usize];
        one.keys()
            .chain(two.keys())
            .filter(|n| {
                let page = |pages: &Pages| pages.get(n).map_or(zero, |p| **p);
                page(&one) != page(&two)
            })
            .min()
            .map(|n| n * PAGE)
    }

    pub(super) fn from_pages(name: String, len: u64, pages: Pages) -> SimDisk {
        SimDisk {
            name,
            len,
            state: Mutex::new(State {
                live: pages.clone(),
                durable: pages,
                ..State::default()
            }),
        }
    }

    fn with_pages(&self, pages: Pages) -> SimDisk {
        SimDisk::from_pages(self.name.clone(), self.len, pages)
    }
}

impl State {
    fn alive(&self) -> io::Result<()> {
        if self.gone {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "simulated: the disk is gone",
            ));
        }
        Ok(())
    }

    fn spend_write(&mut self) -> io::Result<()> {
        spend(&mut self.writes_left, "write")
    }

    /// Takes room for the pages of the range that are holes and not reserved; nothing is taken on an error.
    fn take_room(&mut self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let (first, end) = (offset / PAGE, (offset + len).div_ceil(PAGE));
        if let Some(left) = self.pages_left {
            let missing = (first..end)
                .filter(|n| !self.live.contains_key(n) && !self.is_reserved(*n))
                .count() as u64;
            if missing > left {
                return Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    "simulated: no space for the file to grow",
                ));
            }
            self.pages_left = Some(left - missing);
        }
        Ok(())
    }

    fn is_reserved(&self, page: u64) -> bool {
        self.reserved
            .range(..=page)
            .next_back()
            .is_some_and(|(_, end)| page < *end)
    }

    fn reserve(&mut self, first: u64, end: u64) {
        self.unreserve(first, end);
        self.reserved.insert(first, end);
    }

    fn unreserve(&mut self, first: u64, end: u64) {
        let hit: Vec<(u64, u64)> = self
            .reserved
            .range(..end)
            .filter(|(_, e)| **e > first)
            .map(|(s, e)| (*s, *e))
            .collect();
        for (s, e) in hit {
            self.reserved.remove(&s);
            if s < first {
                self.reserved.insert(s, first);
            }
            if e > end {
                self.reserved.insert(end, e);
            }
        }
    }

    /// Written sectors are readable again: a drive maps them elsewhere.
    fn refresh(&mut self, offset: u64, len: u64) {
        if self.rotten.is_empty() || len == 0 {
            return;
        }
        let (first, end) = (offset.div_ceil(SECTOR), (offset + len) / SECTOR);
        let mut left = Vec::new();
        for (s, e) in self.rotten.drain(..) {
            if s < first.min(e) {
                left.push((s, first.min(e)));
            }
            if e > end.max(s) {
                left.push((end.max(s), e));
            }
        }
        self.rotten = left;
    }
}

fn spend(left: &mut Option<u64>, what: &str) -> io::Result<()> {
    match left {
        Some(0) => Err(io::Error::other(format!("simulated: {what} failed"))),
        Some(n) => {
            *n -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

impl Disk for SimDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let len = buf.len() as u64;
        check_range(self.len, offset, len)?;
        let state = self.state.lock();
        state.alive()?;
        if let Some((sector, _)) = state
            .rotten
            .iter()
            .find(|(s, e)| s * SECTOR < offset + len && offset < e * SECTOR)
        {
            return Err(io::Error::other(format!(
                "simulated: sector {sector} is unreadable"
            )));
        }
        pages::read(&state.live, buf, offset);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        check_range(self.len, offset, data.len() as u64)?;
        let mut state = self.state.lock();
        state.alive()?;
        state.spend_write()?;
        state.take_room(offset, data.len() as u64)?;
        pages::write(&mut state.live, data, offset);
        state.refresh(offset, data.len() as u64);
        state.pending.push(Pending::Write {
            offset,
            data: data.into(),
        });
        state.changed += 1;
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.alive()?;
        spend(&mut state.flushes_left, "flush")?;
        let State {
            live,
            durable,
            pending,
            ..
        } = &mut *state;
        // Everything pending becomes durable, so each page touched becomes the live one.
        for event in pending.drain(..) {
            let (offset, len) = event.range();
            if len == 0 {
                continue;
            }
            let (first, last) = (offset / PAGE, (offset + len - 1) / PAGE);
            if last - first > durable.len() as u64 + live.len() as u64 {
                durable.retain(|n, _| *n < first || *n > last);
                let kept = live.range(first..=last);
                durable.extend(kept.map(|(n, p)| (*n, p.clone())));
                continue;
            }
            for n in first..=last {
                match live.get(&n) {
                    Some(page) => durable.insert(n, page.clone()),
                    None => durable.remove(&n),
                };
            }
        }
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(self.len, offset, len)?;
        let mut state = self.state.lock();
        state.alive()?;
        state.spend_write()?;
        let before = state.live.len();
        pages::zero(&mut state.live, offset, len);
        let given_back = (before - state.live.len()) as u64;
        state.pages_left = state.pages_left.map(|n| n + given_back);
        state.unreserve(
            offset.div_ceil(PAGE),
            ((offset + len) / PAGE).max(offset.div_ceil(PAGE)),
        );
        state.refresh(offset, len);
        state.pending.push(Pending::Zero { offset, len });
        state.changed += 1;
        Ok(())
    }

    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(self.len, offset, len)?;
        let mut state = self.state.lock();
        state.alive()?;
        state.take_room(offset, len)?;
        if len > 0 {
            state.reserve(offset / PAGE, (offset + len).div_ceil(PAGE));
        }
        Ok(())
    }

    fn is_hole(&self, offset: u64, len: u64) -> bool {
        if len == 0 || check_range(self.len, offset, len).is_err() {
            return false;
        }
        let (first, last) = (offset / PAGE, (offset + len - 1) / PAGE);
        self.state.lock().live.range(first..=last).next().is_none()
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    /// The number of changes so far: a stamp that moves as a file's ctime does.
    fn changed_at(&self) -> Option<i128> {
        Some(i128::from(self.state.lock().changed))
    }
}

impl Pending {
    fn range(&self) -> (u64, u64) {
        match self {
            Pending::Write { offset, data } => (*offset, data.len() as u64),
            Pending::Zero { offset, len } => (*offset, *len),
        }
    }

    fn apply(&self, pages: &mut Pages) {
        let (offset, len) = self.range();
        self.apply_part(pages, offset, len);
    }

    /// Applies the bytes of the event that lie in `len` bytes from `offset` on.
    fn apply_part(&self, pages: &mut Pages, offset: u64, len: u64) {
        match self {
            Pending::Write { offset: o, data } => {
                let from = (offset - o) as usize;
                pages::write(pages, &data[from..from + len as usize], offset);
            }
            Pending::Zero { .. } => pages::zero(pages, offset, len),
        }
    }

    /// The event's sectors: parts of it that do not cross a sector boundary.
    fn sectors(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (offset, len) = self.range();
        let end = offset + len;
        let (first, last) = (offset / SECTOR, end.div_ceil(SECTOR));
        (first..last).map(move |s| {
            let from = (s * SECTOR).max(offset);
            (from, ((s + 1) * SECTOR).min(end) - from)
        })
    }
}

fn apply_survivors(pages: &mut Pages, pending: &[Pending], survivors: Survivors<'_>) {
    match survivors {
        Survivors::None => {}
        Survivors::All => pending.iter().for_each(|e| e.apply(pages)),
        Survivors::First(n) => pending.iter().take(n).for_each(|e| e.apply(pages)),
        Survivors::Random(random) => {
            // How eager this disk is: without this, long lists would always lose about the same share.
            let kept_percent = random.below(101);
            for event in pending {
                survive(pages, event, random, kept_percent);
            }
        }
    }
}

/// Applies what a seed lets survive of one event.
fn survive(pages: &mut Pages, event: &Pending, random: &SimRandom, kept_percent: u64) {
    let torn = random.chance(20);
    if !torn {
        if random.chance(kept_percent) {
            event.apply(pages);
        }
        return;
    }
    let count = event.sectors().count() as u64;
    if random.chance(50) {
        // The head went out, or the tail.
        let cut = random.below(count + 1);
        let head = random.chance(50);
        for (n, (offset, len)) in event.sectors().enumerate() {
            if ((n as u64) < cut) == head {
                event.apply_part(pages, offset, len);
            }
        }
    } else {
        for (offset, len) in event.sectors() {
            if random.chance(50) {
                event.apply_part(pages, offset, len);
            }
        }
    }
}
