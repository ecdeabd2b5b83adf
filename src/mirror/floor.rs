//! The floor: the lowest transaction that every mirror of a volume has, and what a mirror keeps from there on.
//!
//! Any mirror may be promoted, and should then serve the others without copying everything again. So each keeps, as a
//! master does, its log from the floor on; and when its log is too small for that, the blocks that changed since, in a
//! dirty map of the mirror "heir". Owns that slot, and what becomes of it at a promotion. Invariant: the heir knows of
//! every block that a transaction after its position, or after its map's `from_txid`, changed.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::journal::Journal;
use crate::mirror::MirrorError;
use crate::mirror::dirty::{DirtyError, DirtyMap};
use crate::mirror::open::{MapStore, open_map};
use crate::mirror::slot::{Slot, SlotState, Slots};
use crate::units::{BlockNo, BlockRange, Generation, Txid};
use crate::volume::facts::{Facts, MapKnows, PeerFacts, PeerRecord};

/// The heir's name among the maps; no peer can be called so.
pub const HEIR: &str = "~heir";
/// The heir's number among the consumers of a mirror's log; the fact file is 0.
const HEIR_ID: u32 = 1;

/// The floor as a master knows it: what every mirror that ever had a copy has, blocks that are still to be copied to it
/// not counted. 0 while there is none.
pub fn lowest(slots: &Slots) -> Txid {
    let has = |slot: &Slot| {
        let state = slot.state.lock();
        match state.map.coverage() {
            Some(covered) => state.acked.min(covered.from_txid),
            None => state.acked,
        }
    };
    let all = slots.all();
    let known = all.iter().map(|slot| has(slot)).filter(|txid| txid.0 > 0);
    known.min().unwrap_or_default()
}

/// What a mirror keeps for the others.
#[derive(Debug)]
pub struct Heir {
    slot: Slot,
}

impl Heir {
    /// Opens the heir's map of a volume; a damaged one is begun anew: nobody needs it yet.
    pub fn open(maps: &dyn MapStore, facts: &Facts, blocks: u64) -> Result<Heir, MirrorError> {
        let (disk, created) = open_map(maps, blocks, HEIR)?;
        let opened = match created {
            true => DirtyMap::create(disk.clone(), facts.volume_id, blocks),
            false => DirtyMap::open(disk.clone(), facts.volume_id, blocks),
        };
        let map = match opened {
            Err(DirtyError::Corrupt { name, what }) => {
                tracing::warn!(%name, %what, "what was kept for other mirrors is lost");
                DirtyMap::create(disk, facts.volume_id, blocks)?
            }
            other => other?,
        };
        Ok(Heir {
            slot: Slot {
                id: HEIR_ID,
                peer: HEIR.to_string(),
                state: Mutex::new(SlotState {
                    position: Txid(0),
                    acked: Txid(0),
                    cracked: map.count() > 0,
                    map,
                    cracks: 0,
                    map_lost: false,
                    todo: None,
                    staged_at: None,
                    under_way: VecDeque::new(),
                }),
            },
        })
    }

    /// Takes its place at a log that was opened with everything up to `applied` in it or at home; `kept` is the oldest
    /// transaction after which the log holds all.
    pub fn attach(&self, journal: &Journal, kept: Txid, floor: Txid, applied: Txid) {
        let mut state = self.slot.state.lock();
        let knows = state.map.coverage().map(|covered| covered.through_txid);
        let wants = knows.unwrap_or(floor.max(kept)).min(applied);
        match wants >= kept && journal.covers(wants) {
            true => {
                state.position = wants;
                journal.set_consumer(HEIR_ID, wants);
            }
            // A gap between map and log: what is known begins anew, with the log.
            false => {
                let from = if journal.covers(kept) { kept } else { applied };
                begin_anew(&mut state, journal, from.min(applied));
            }
        }
    }

    /// Every mirror has everything up to `floor`; this one has applied `applied`.
    pub fn advance(&self, journal: &Journal, generation: Generation, floor: Txid, applied: Txid) {
        let mut state = self.slot.state.lock();
        let floor = floor.min(applied);
        let obsolete = state
            .map
            .coverage()
            .is_some_and(|covered| covered.through_txid <= floor);
        if obsolete {
            begin_anew(&mut state, journal, floor);
            return;
        }
        state.acked = floor;
        if let Err(error) = state.settle(journal, HEIR_ID, generation) {
            tracing::warn!(%error, "what is kept for other mirrors can not be written");
            state.map_lost = true;
        }
        if std::mem::take(&mut state.map_lost) {
            begin_anew(&mut state, journal, applied);
        }
    }

    /// The log is full: from `oldest` on it is kept for others only. They get a map.
    pub fn make_room(
        &self,
        journal: &Journal,
        generation: Generation,
        oldest: Txid,
        applied: Txid,
    ) {
        let mut state = self.slot.state.lock();
        if state.position >= oldest || state.position >= applied {
            return;
        }
        tracing::debug!(position = %state.position, through = %applied,
            "the log is full: what other mirrors may lack goes into the heir's map");
        let cracked = state.crack(journal, HEIR_ID, generation, applied);
        if cracked.is_err() || std::mem::take(&mut state.map_lost) {
            begin_anew(&mut state, journal, applied);
        }
    }

    /// A copy was made, without the log: nothing is known of what came before.
    pub fn forget(&self) -> Result<(), MirrorError> {
        let mut state = self.slot.state.lock();
        state.map.clear(BlockRange::new(BlockNo(0), u64::MAX))?;
        state.map.retire();
        state.cracked = false;
        Ok(state.map.flush()?)
    }

    /// After which transaction it knows of every change.
    pub fn knows_after(&self) -> Txid {
        let state = self.slot.state.lock();
        let covered = state.map.coverage();
        covered.map_or(state.position, |covered| covered.from_txid)
    }

    /// Blocks in its map.
    pub fn marked_blocks(&self) -> u64 {
        self.slot.state.lock().map.count()
    }
}

/// Nothing is known of what comes before `at`.
fn begin_anew(state: &mut SlotState, journal: &Journal, at: Txid) {
    let flushed = (|| {
        state.map.clear(BlockRange::new(BlockNo(0), u64::MAX))?;
        state.map.retire();
        state.map.flush()
    })();
    if let Err(error) = flushed {
        tracing::warn!(%error, "what is kept for other mirrors can not be written");
    }
    state.cracked = false;
    state.position = at;
    state.acked = at;
    journal.set_consumer(HEIR_ID, at);
}

/// At a promotion: `peers`, which this node has never served, get the heir's position and its map, so that each is served
/// from the log or from the map, as far as these reach. `facts` are this node's, its copy closed (or dead); saving them is
/// the caller's, before the volume is opened as a master. The heir's map stays, for a promotion that was cut short.
pub fn seed(
    maps: &dyn MapStore,
    facts: &mut Facts,
    blocks: u64,
    peers: &[String],
) -> Result<(), MirrorError> {
    let mut heir = Heir::open(maps, facts, blocks)?.slot.state.into_inner();
    let tail = facts.tail.map(|tail| Txid(tail.txid.0.saturating_sub(1)));
    let covered = heir.map.coverage();
    let position = match covered {
        Some(covered) => covered.through_txid,
        None => tail.unwrap_or(facts.applied).max(facts.floor),
    };
    for peer in peers {
        let (disk, _) = open_map(maps, blocks, peer)?;
        let mut map = DirtyMap::create(disk, facts.volume_id, blocks)?;
        let mut at = BlockNo(0);
        while let Some(range) = heir.map.next_set(at, u64::MAX)? {
            map.set(range)?;
            at = range.end();
        }
        if let Some(covered) = covered {
            map.cover(covered.generation, covered.from_txid, covered.through_txid);
        }
        map.flush()?;
        let known = PeerFacts {
            acked: position,
            cracked: covered.is_some(),
            record: PeerRecord {
                secured: true,
                map_knows: MapKnows::Heir,
                ..PeerRecord::default()
            },
        };
        facts.peers.insert(peer.clone(), known);
    }
    Ok(())
}
