//! Opening a volume as its master, and closing it: lineage, the log's tail, the mirrors' places at the log.
//!
//! Owns the order of steps that makes a power cut at any of them harmless: a generation is durable before its first
//! commit; what mirrors still need is claimed before the log may be written; the log is empty before the facts say so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::fs::{Fs, FsOptions, FsRole, How, claim_volume, open_volume_noting, read_superblock};
use crate::io::{Clock, Disk, Random};
use crate::journal::{JournalError, ResumeEnd};
use crate::mirror::MirrorError;
use crate::mirror::committed::chain_at;
use crate::mirror::dirty::DirtyMap;
use crate::mirror::gate::Gate;
use crate::mirror::keeper::{MasterKeeper, note_promotion, note_recovery};
use crate::mirror::master::MasterVolume;
use crate::mirror::roles::is_whole;
use crate::mirror::slot::{Slot, SlotState, Slots};
use crate::mirror::stamps;
use crate::units::{Generation, Txid};
use crate::volume::Volume;
use crate::volume::facts::{FactStore, Facts, Lineage, MapKnows, PeerFacts, Role};

/// Transaction ids that an opening reserves at once: ids up to `Facts::high_txid` are never issued again, whatever was
/// lost with the power.
const RESERVE: u64 = 1 << 20;
/// Generations that are remembered: a mirror that was away for longer is compared as if it were unrelated.
const MAX_LINEAGE: usize = 1024;

/// Where the dirty maps of a volume's mirrors are.
pub trait MapStore: Send + Sync + std::fmt::Debug {
    /// The file of `peer`'s map, `len` bytes long; created, empty, if it is not there (`true`).
    fn open(&self, peer: &str, len: u64) -> std::io::Result<(Arc<dyn Disk>, bool)>;
}

/// What opening a volume as its master needs.
#[derive(Clone, Debug)]
pub struct MasterOptions {
    /// The node's name.
    pub node: String,
    /// Where the facts are kept.
    pub facts: Arc<dyn FactStore>,
    /// Where the maps are kept.
    pub maps: Arc<dyn MapStore>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub random: Arc<dyn Random>,
    /// Bytes of cache.
    pub cache_bytes: usize,
    /// How long a change may wait for its commit.
    pub commit_interval: Duration,
}

/// A volume that is open as its master.
#[derive(Clone)]
pub struct OpenMaster {
    /// What its mirrors share.
    pub shared: MasterVolume,
    /// The mirrors' places at the log.
    pub slots: Arc<Slots>,
    maps: Arc<dyn MapStore>,
}

/// Opens `volume` read-write. `facts` are what its fact file says.
pub fn open_master(
    volume: Arc<Volume>,
    mut facts: Facts,
    options: &MasterOptions,
) -> Result<OpenMaster, MirrorError> {
    let changed = stamps::outside(&facts, &volume)?;
    // The log, if it was not closed, may have been replayed by somebody else.
    let taken = changed.is_some() && facts.stamps.is_some() && facts.head.is_none();
    let mut stored = options.facts.load();
    if let (None, Ok(stored)) = (&changed, &mut stored)
        && stamps::are_of_closed(stored)
        && read_superblock(&volume)?.has_mmp()
    {
        // The claim moves the parts' times: cut after it, nobody else wrote.
        stored.set_stamps(Some(stamps::read_open(&volume)?));
        options.facts.save(stored)?;
    }
    // Before anything is written, the journal's recovery included.
    let claim = claim_volume(&volume, &*options.clock, &*options.random)?;
    let base = facts.high_txid;
    let generation = Generation(options.random.u128());
    let promoted = stored.ok().filter(|stored| stored.role == Role::Mirror);
    let whole = promoted.as_ref().is_none_or(is_whole);
    let opening = |last: Txid| Lineage::opening(generation, last, whole);
    let mut minted = false;
    let mut opened = open_volume_noting(Arc::clone(&volume), base, How::ReadWrite, &mut |found| {
        let noted = match promoted {
            Some(_) => note_promotion(&mut facts, &*options.facts, found, &opening)
                .map(|noted| minted = noted),
            None => note_recovery(&mut facts, &*options.facts, found),
        };
        noted.map_err(|error| JournalError::Keeper(error.to_string()))
    })?;
    opened.claim = claim;
    let journal = Arc::clone(&opened.journal);
    if let Some(what) = &changed {
        tracing::warn!(volume = %facts.name, %what,
            "the volume was changed from outside: its mirrors will be compared by checksums");
        facts
            .peers
            .values_mut()
            .for_each(|peer| peer.record.changed_outside = true);
    }
    // What the log held is not known, only that no later id was issued: mirrors have nothing that is not of this history.
    let mut unknown = taken;
    let mut kept = Vec::new();
    let mut floor = Txid(0);
    if let (None, Some(tail)) = (&changed, &facts.tail) {
        let end = match facts.head {
            Some(head) => ResumeEnd::Clean(head),
            None => ResumeEnd::Recovered,
        };
        match journal.resume(&facts.segments, tail, end) {
            Ok(infos) => {
                kept = infos;
                // The saved tail never passed what a mirror lacked: each had, or its map covers, what is before it.
                floor = Txid(tail.txid.0.saturating_sub(1));
            }
            Err(error) => {
                unknown |= facts.head.is_none();
                tracing::warn!(volume = %facts.name, %error,
                    "the mirror buffer can not be resumed: mirrors that lack something will be compared");
            }
        }
    }
    let recovered = opened
        .recovered
        .as_ref()
        .filter(|found| found.last.is_some());
    let newest = [
        kept.last().map(|info| (info.txid, info.chain)),
        recovered.map(|found| (found.last.unwrap_or_default(), found.chain.unwrap_or(0))),
        facts.head.map(|head| (head.txid, head.chain)),
        Some((facts.applied, facts.chain)),
        (unknown && recovered.is_none()).then_some((facts.high_txid, 0)),
    ];
    let mut newest = newest.into_iter().flatten();
    let first = newest.next().unwrap_or_default();
    // Where two name the same transaction, the first that does is believed: the log before the facts.
    let (last, chain) = newest.fold(
        first,
        |best, next| if next.0 > best.0 { next } else { best },
    );
    journal.set_last(last, chain);

    if minted {
        facts.generations.pop();
    }
    facts.generations.push(opening(last));
    let surplus = facts.generations.len().saturating_sub(MAX_LINEAGE);
    facts.generations.drain(..surplus);
    let first = Txid(facts.high_txid.max(last).0 + 2);
    facts.high_txid = Txid(first.0 + RESERVE);
    facts.applied = last;
    facts.chain = chain;
    facts.head = None;
    if changed.is_some() {
        // No earlier state's name says what this one contains: not to a copy either that is made a mirror again later.
        facts.logged_since = first;
    }
    note_lost_maps(&mut facts, &*options.maps, volume.blocks_count())?;
    // The engine is about to count this mount in the superblock. Cut before it has, or after, nobody else wrote.
    let mounted_at = options.clock.now().secs;
    let (before, after) = stamps::of_opening(&volume, mounted_at)?;
    facts.set_stamps(Some(after));
    facts.other_stamps.push(before);
    options.facts.save(&facts)?;
    opened.mounted_at = Some(mounted_at);

    let opened_at = journal.last_committed().max(last);
    let slots = Arc::new(Slots::default());
    let block_count = volume.blocks_count();
    for (index, (peer, known)) in facts.peers.iter().enumerate() {
        let id = index as u32 + 1;
        let state = open_slot(&*options.maps, facts.volume_id, block_count, peer, known)?;
        let slot = Slot {
            id,
            peer: peer.clone(),
            state: Mutex::new(state),
        };
        {
            let mut state = slot.state.lock();
            state.position = state.position.max(floor.min(last));
            if state.position >= last {
                // It lacks nothing: no id between the two was issued.
                state.position = opened_at;
            } else if !journal.covers(state.position) {
                tracing::warn!(volume = %facts.name, %peer, position = %state.position,
                    "the log no longer holds what this mirror lacks");
                state.map_lost = true;
                state.cracked = true;
                state.position = opened_at;
            }
        }
        slots.add(&journal, Arc::new(slot));
    }
    let has_mirrors = !facts.peers.is_empty();
    let name = facts.name.clone();
    let facts = Arc::new(Mutex::new(facts));
    journal.set_keeper(Arc::new(MasterKeeper::new(
        Arc::clone(&facts),
        Arc::clone(&options.facts),
        Arc::downgrade(&journal),
        Arc::clone(&slots),
        generation,
    )));
    journal.begin_segment(generation, first)?;
    let log = journal.map().0.clone();
    let fs = Arc::new(Fs::open(
        opened,
        FsOptions {
            role: FsRole::Master,
            clock: Arc::clone(&options.clock),
            random: Arc::clone(&options.random),
            cache_bytes: options.cache_bytes,
            commit_interval: options.commit_interval,
        },
    )?);
    fs.set_mirrored(has_mirrors)?;
    {
        let (slots, journal) = (Arc::clone(&slots), Arc::downgrade(&journal));
        fs.set_low_space_hook(Box::new(move || {
            // A local write comes first.
            if let Some(journal) = journal.upgrade()
                && let Err(error) = slots.release_pins(&journal, generation)
            {
                tracing::error!(%error, "making room for writers");
            }
        }));
    }
    let unnamed = facts.lock().logged_since > opened_at;
    if unnamed {
        fs.commit_anew()?;
    }
    {
        let mut facts = facts.lock();
        // From here on this state has the name `opened_at`, to mirrors too: a power cut before the first commit must not take it
        // back behind what they were told.
        facts.applied = facts.applied.max(opened_at);
        facts.set_stamps(Some(stamps::read_open(&volume)?));
        options.facts.save(&facts)?;
    }
    let gate = Arc::new(Gate::new(Arc::clone(&options.clock)));
    gate.watch(&journal);
    Ok(OpenMaster {
        shared: MasterVolume {
            name,
            node: options.node.clone(),
            volume,
            journal,
            fs,
            generation,
            slots: Arc::clone(&slots),
            gate,
            facts,
            store: Arc::clone(&options.facts),
            maps: Arc::clone(&options.maps),
            log,
            fork: last,
            opened_at,
            members: Arc::default(),
        },
        slots,
        maps: Arc::clone(&options.maps),
    })
}

/// Maps that are damaged, or not there although order had been given up, are lost: the facts say so before another one
/// takes the place, or the next opening would find that one and nothing wrong with it. They are to be saved.
fn note_lost_maps(
    facts: &mut Facts,
    maps: &dyn MapStore,
    blocks_count: u64,
) -> Result<(), MirrorError> {
    for (peer, known) in &mut facts.peers {
        let (disk, created) = open_map(maps, blocks_count, peer)?;
        let lost = match created {
            true if known.cracked => true,
            true => {
                DirtyMap::create(disk, facts.volume_id, blocks_count)?;
                false
            }
            false => DirtyMap::open(disk, facts.volume_id, blocks_count).is_err(),
        };
        known.record.changed_outside |= lost;
    }
    Ok(())
}

fn open_slot(
    maps: &dyn MapStore,
    volume_id: u128,
    blocks_count: u64,
    peer: &str,
    known: &PeerFacts,
) -> Result<SlotState, MirrorError> {
    let (disk, _) = open_map(maps, blocks_count, peer)?;
    let opened = DirtyMap::open(Arc::clone(&disk), volume_id, blocks_count);
    let (map, map_lost) = match opened {
        Ok(map) => (map, false),
        Err(error) => {
            tracing::error!(%peer, %error, "the dirty map is lost");
            (DirtyMap::create(disk, volume_id, blocks_count)?, true)
        }
    };
    let through = map
        .coverage()
        .map_or(Txid(0), |covered| covered.through_txid);
    Ok(SlotState {
        cracked: known.cracked || map.count() > 0,
        map,
        position: known.acked.max(through),
        acked: known.acked,
        cracks: 0,
        map_lost,
        todo: None,
        staged_at: None,
        under_way: VecDeque::new(),
    })
}

pub(crate) fn open_map(
    maps: &dyn MapStore,
    blocks_count: u64,
    peer: &str,
) -> Result<(Arc<dyn Disk>, bool), MirrorError> {
    maps.open(peer, DirtyMap::file_len(blocks_count))
        .map_err(|source| {
            MirrorError::Dirty(crate::mirror::dirty::DirtyError::Io {
                name: format!("of {peer}"),
                source,
            })
        })
}

impl OpenMaster {
    /// Claims a place at the log for a new mirror: from now on nothing that it lacks is lost without being recorded.
    /// Overwrites go through the log before this returns.
    pub fn add_mirror(&self, peer: &str, rate: Option<u64>) -> Result<Arc<Slot>, MirrorError> {
        // A deletion that could not be saved left its place.
        let former = self.slots.all().into_iter().find(|s| s.peer == peer);
        if let Some(former) = former {
            self.remove_mirror(&former)?;
        }
        let alone = self.shared.facts.lock().peers.is_empty();
        self.shared.fs.set_mirrored(true)?;
        let logged_since = match alone {
            // A copy that is left from before may bear the name of the present state, and lack what was overwritten since.
            true => Some(self.shared.fs.commit_anew()?),
            false => None,
        };
        let blocks_count = self.shared.volume.blocks_count();
        let (disk, _) = open_map(&*self.maps, blocks_count, peer)?;
        let volume_id = self.shared.facts.lock().volume_id;
        let map = DirtyMap::create(disk, volume_id, blocks_count)?;
        let committed = self.shared.journal.last_committed();
        let used: Vec<u32> = self.slots.all().iter().map(|slot| slot.id).collect();
        let id = (1..).find(|id| !used.contains(id)).unwrap_or(u32::MAX);
        let slot = Arc::new(Slot {
            id,
            peer: peer.to_string(),
            state: Mutex::new(SlotState {
                map,
                position: committed,
                acked: Txid(0),
                cracked: false,
                cracks: 0,
                map_lost: false,
                todo: None,
                staged_at: None,
                under_way: VecDeque::new(),
            }),
        });
        self.slots.add(&self.shared.journal, Arc::clone(&slot));
        let mut facts = self.shared.facts.lock();
        let mut known = PeerFacts {
            acked: committed,
            ..PeerFacts::default()
        };
        known.record.rate = rate;
        known.record.map_knows = MapKnows::Nothing;
        facts.logged_since = logged_since.unwrap_or(facts.logged_since);
        facts.peers.insert(peer.to_string(), known);
        if let Err(error) = self.shared.store.save(&facts) {
            // It was not made: nothing of it may hold the log.
            facts.peers.remove(peer);
            let left = facts.peers.len();
            drop(facts);
            self.slots.remove(&self.shared.journal, slot.id);
            self.shared.fs.set_mirrored(left > 0)?;
            return Err(error.into());
        }
        Ok(slot)
    }

    /// Gives up the place of a mirror.
    pub fn remove_mirror(&self, slot: &Slot) -> Result<(), MirrorError> {
        // If it can not be saved it is a mirror still, and the log holds what it lacks: the next opening would replay it.
        let left = {
            let mut known = self.shared.facts.lock();
            let mut facts = known.clone();
            facts.peers.remove(&slot.peer);
            // Without mirrors the log keeps nothing, and after a crash it may not know what there was: a copy that is kept, and
            // made a mirror again, must find its transaction in this history.
            let journal = &self.shared.journal;
            let last = journal.last_committed();
            if let Some(chain) = chain_at(journal, last).filter(|_| facts.applied < last) {
                facts.applied = last;
                facts.chain = chain;
            }
            self.shared.store.save(&facts)?;
            *known = facts;
            known.peers.len()
        };
        self.slots.remove(&self.shared.journal, slot.id);
        Ok(self.shared.fs.set_mirrored(left > 0)?)
    }

    /// Now and then: keeps the reserve of transaction ids ahead of what is issued.
    pub fn tick(&self) -> Result<(), MirrorError> {
        let last = self.shared.journal.last_committed();
        let mut facts = self.shared.facts.lock();
        if last.0 + RESERVE / 2 > facts.high_txid.0 {
            facts.high_txid = Txid(last.0 + RESERVE);
            self.shared.store.save(&facts)?;
        }
        Ok(())
    }

    /// Closes the volume: everything home, the log empty, the facts saved. What mirrors lack stays in the log.
    pub fn close(&self) -> Result<(), MirrorError> {
        for slot in self.slots.all() {
            let mut state = slot.state.lock();
            state.settle(&self.shared.journal, slot.id, self.shared.generation)?;
            state.map.flush()?;
        }
        let report = self.shared.fs.close()?;
        let mut facts = self.shared.facts.lock();
        for slot in self.slots.all() {
            let state = slot.state.lock();
            let known = facts.peers.entry(slot.peer.clone()).or_default();
            known.acked = state.position;
            known.cracked = state.cracked;
        }
        if let Some(head) = report.head {
            facts.applied = head.txid;
            facts.chain = head.chain;
        }
        facts.head = report.head;
        facts.set_stamps(Some(stamps::read(&self.shared.volume)?));
        self.shared.store.save(&facts)?;
        Ok(())
    }
}
