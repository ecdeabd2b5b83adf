//! What goes with a volume that is handed over: where every other node stands, what the new master makes of it, and what
//! each side takes the other's answers for.
//!
//! Owns the decisions of both sides; never sends, waits or opens. Invariant: a master that does not know whether the
//! other one is it by now is told so, as `Ended::Unknown`, and by nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Answer, Heir, Relation, lineage, relation};
use crate::mirror::MirrorError;
use crate::mirror::master::MasterVolume;
use crate::mirror::ranges::RangeSet;
use crate::mirror::shipment::touched;
use crate::mirror::slot::Slot;
use crate::units::{BlockNo, Txid};
use crate::volume::facts::{Facts, Lineage};
use crate::wire::message::{Member, Message, Place, Standing};

/// Runs of blocks that are told of one mirror; beyond it, it is compared.
pub const MOST_RANGES: usize = 1 << 18;

/// How a hand-over ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The peer is the master, with this history.
    Taken(Vec<Lineage>),
    /// The peer is not, and will not be.
    Refused(String),
    /// Nobody knows.
    Unknown(String),
}

/// What the answer to a hand-over says.
pub fn handed_over(token: u64, answer: Message) -> Ended {
    match answer {
        Message::HandedOver {
            token: t,
            refusal,
            generations,
        } if t == token => match refusal.is_empty() {
            true => Ended::Taken(lineage(&generations)),
            false => Ended::Refused(refusal),
        },
        _ => Ended::Unknown("it gave another answer".to_owned()),
    }
}

/// What a peer says of a hand-over when it is asked for its role, and to forget the hand-over: one that says that it is a
/// mirror has forgotten it by then.
pub fn asked_after(ours: &[Lineage], answer: Option<Answer>) -> Ended {
    match answer {
        Some(a) if matches!(a.standing, Standing::Master | Standing::Undecided) => {
            match relation(ours, &a.generations) {
                Relation::Behind { .. } => Ended::Taken(a.generations),
                _ => Ended::Unknown("it has another history".to_owned()),
            }
        }
        Some(a) if a.standing == Standing::Mirror => {
            Ended::Refused("it is still a mirror".to_owned())
        }
        _ => Ended::Unknown("it can not say yet".to_owned()),
    }
}

/// Where every node but the heir `peer` stands, and in which blocks it differs, by its index. `ourselves` is this node, and
/// `member` says who a mirror is.
pub fn places(
    shared: &MasterVolume,
    slots: &[Arc<Slot>],
    peer: &str,
    txid: Txid,
    ourselves: Member,
    member: impl Fn(&str) -> Member,
) -> (Vec<Place>, Vec<(u32, RangeSet)>) {
    let mut places = vec![Place {
        member: ourselves,
        position: txid.0,
        through: txid.0,
        lost: false,
    }];
    let mut maps = Vec::new();
    for slot in slots.iter().filter(|slot| slot.peer != peer) {
        let told = differs(shared, slot, txid);
        let (position, dirty) = match told {
            Ok(Some((position, dirty))) if dirty.len() <= MOST_RANGES => (position, Some(dirty)),
            Ok(_) => (txid, None),
            Err(error) => {
                tracing::warn!(peer = slot.peer, %error, "what this mirror lacks is not handed over");
                (txid, None)
            }
        };
        let index = places.len() as u32;
        places.push(Place {
            member: member(&slot.peer),
            position: position.0,
            through: txid.0,
            lost: dirty.is_none(),
        });
        if let Some(dirty) = dirty {
            maps.push((index, dirty));
        }
    }
    (places, maps)
}

/// From which transaction on a mirror lacks something, and the blocks; `None` when that is not known.
fn differs(
    shared: &MasterVolume,
    slot: &Slot,
    txid: Txid,
) -> Result<Option<(Txid, RangeSet)>, MirrorError> {
    let mut dirty = RangeSet::default();
    let known = shared.facts.lock().peers.get(&slot.peer).cloned();
    if known.is_none_or(|known| known.record.changed_outside) {
        // Not compared yet with what something else wrote here.
        return Ok(None);
    }
    let mut state = slot.state.lock();
    if state.map_lost || state.acked.0 == 0 {
        return Ok(None);
    }
    let mut at = BlockNo(0);
    while let Some(range) = state.map.next_set(at, u64::MAX)? {
        dirty.insert(range);
        at = range.end();
    }
    let covered = state.map.coverage();
    let has = state.position.max(state.acked);
    let position = covered.map_or(has, |covered| covered.from_txid);
    let after = covered.map_or(has, |covered| covered.through_txid.max(has));
    drop(state);
    let Some(infos) = shared.journal.info_after(shared.log_position(after)) else {
        return Ok(None);
    };
    for info in infos.iter().filter(|info| info.txid <= txid) {
        let txn = shared.journal.load_transaction(info.txid)?;
        touched(&txn).for_each(|range| dirty.insert(range));
    }
    Ok(Some((position, dirty)))
}

// ---- the other side ----

/// How this copy stands, which its master wants to hand the volume over to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// It is a state that a master had.
    pub consistent: bool,
    /// The last transaction that it shows.
    pub applied: Txid,
}

/// Whether the copy has everything up to `txid` and can be the master: `false` when a moment may bring what it lacks.
pub fn is_ready(facts: &Facts, copy: Candidate, txid: Txid) -> Result<bool, String> {
    if !copy.consistent || facts.tainted {
        return Err("its copy is not consistent".to_owned());
    }
    // Acknowledged, and not confirmed yet.
    Ok(copy.applied == txid)
}

/// What the new master knows of the volume's other nodes; `facts` are its own, its copy closed. `at` is the transaction that
/// it has to have, and its chain hash; `known_as` says by which name it knows a node.
pub fn heirs(
    facts: &Facts,
    at: (Txid, u64),
    master: &str,
    places: &[Place],
    mut maps: BTreeMap<u32, RangeSet>,
    known_as: impl Fn(&Member) -> Option<String>,
) -> Result<BTreeMap<String, Option<Heir>>, String> {
    if (facts.applied, facts.chain) != at {
        return Err(format!(
            "it has transaction {} with another content than the master's {}",
            facts.applied, at.0
        ));
    }
    let mut peers: BTreeMap<String, Option<Heir>> = BTreeMap::new();
    for (index, place) in places.iter().enumerate() {
        let Some(known) = known_as(&place.member) else {
            continue;
        };
        let heir = Heir {
            position: Txid(place.position),
            through: Txid(place.through),
            dirty: maps.remove(&(index as u32)).unwrap_or_default(),
            lost: place.lost,
        };
        peers.insert(known, Some(heir));
    }
    peers.entry(master.to_owned()).or_insert(None);
    Ok(peers)
}
