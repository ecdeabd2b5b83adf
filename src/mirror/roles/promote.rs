//! A mirror becomes the master: what speaks against it, and what changes in its facts. `open_master` mints the generation
//! and saves both at once, so that a node is never a master without a history of its own.

use std::collections::BTreeMap;

use super::{Doubt, Refused};
use crate::mirror::dirty::DirtyMap;
use crate::mirror::floor;
use crate::mirror::open::{MapStore, open_map};
use crate::mirror::ranges::RangeSet;
use crate::mirror::{MirrorError, guard};
use crate::units::{Generation, Txid};
use crate::volume::Volume;
use crate::volume::facts::{Copy, FactStore, Facts, PeerFacts, PeerRecord, Role};

/// How a copy stands that is to be the master's, as far as its facts do not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its master is there.
    pub linked: bool,
    /// What the master said last of the bytes that it lacks.
    pub bytes_to_go: u64,
}

/// Whether the copy is a state that its master had.
pub fn is_whole(facts: &Facts) -> bool {
    facts.copy == Copy::Complete && facts.applied >= facts.consistent_at
}

/// What speaks against the promotion of a mirror of `master`: refused unless forced, and then said.
pub fn doubts(
    master: &str,
    facts: &Facts,
    copy: Standing,
    force: bool,
) -> Result<Vec<Doubt>, Refused> {
    let master = master.to_owned();
    if facts.copy == Copy::Blank {
        return Err(Refused::NoCopy { master });
    }
    let mut doubts = Vec::new();
    if copy.linked {
        if !force {
            return Err(Refused::Linked { master });
        }
        let master = master.clone();
        doubts.push(Doubt::Linked { master });
    }
    let total = facts.description.as_ref().map_or(0, |d| {
        d.parts.iter().sum::<u64>() / u64::from(d.block_size.max(1))
    });
    if let Copy::Partial { cursor, .. } = facts.copy {
        doubts.push(Doubt::Partial { cursor, total });
    } else if !is_whole(facts) {
        let bytes_to_go = copy.bytes_to_go;
        doubts.push(Doubt::Inconsistent { bytes_to_go });
    }
    if facts.tainted {
        doubts.push(Doubt::Tainted);
    }
    match force || doubts.is_empty() {
        true => Ok(doubts),
        false => Err(Refused::Doubtful { master, doubts }),
    }
}

/// A master that is told to be it: it gives up what it told another node, if it did and is forced. Whether the facts
/// changed, which are to be saved.
pub fn stay_master(facts: &mut Facts, force: bool) -> Result<bool, Refused> {
    match facts.handing_over.take() {
        None => Ok(false),
        Some(_) if force => Ok(true),
        Some(handing) => {
            let to = handing.to.clone();
            facts.handing_over = Some(handing);
            Err(Refused::HandingOver { to })
        }
    }
}

/// What is known of one of the volume's other nodes at a change of roles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heir {
    /// It has everything up to this transaction, ...
    pub position: Txid,
    /// ... and differs in these blocks from the state at `through`.
    pub dirty: RangeSet,
    /// The map accounts for everything between `position` and this.
    pub through: Txid,
    /// There is no such account: it is to be compared.
    pub lost: bool,
}

/// The facts of a mirror that is about to be opened as the master. `peers` are the other nodes of the volume, by the
/// names that this one has for them, and what the old master said of each; for those of which it said nothing, what this
/// mirror kept for the others is made ready. Their dirty maps are made here, durably.
pub fn master_facts(
    volume: &Volume,
    facts: &Facts,
    maps: &dyn MapStore,
    peers: &BTreeMap<String, Option<Heir>>,
) -> Result<Facts, MirrorError> {
    let mut next = Facts {
        role: Role::Master,
        copy: Copy::Complete,
        consistent_at: Txid(0),
        reach: Txid(0),
        own_dirty: false,
        master: String::new(),
        sender: String::new(),
        handing_over: None,
        peers: BTreeMap::new(),
        ..facts.clone()
    };
    let blocks = volume.blocks_count();
    let (told, unknown): (Vec<_>, Vec<_>) = peers.iter().partition(|(_, heir)| heir.is_some());
    let unknown: Vec<String> = unknown.into_iter().map(|(peer, _)| peer.clone()).collect();
    floor::seed(maps, &mut next, blocks, &unknown)?;
    let generation = facts
        .generations
        .last()
        .map_or(Generation(0), |lineage| lineage.generation);
    for (peer, heir) in told {
        let Some(heir) = heir else { continue };
        let (disk, _) = open_map(maps, blocks, peer)?;
        // What an earlier time as the master left there is of another history.
        let mut map = DirtyMap::create(disk, facts.volume_id, blocks)?;
        let given_up = !heir.lost && heir.through > heir.position;
        if given_up {
            for range in heir.dirty.iter() {
                map.set(range)?;
            }
            map.cover(generation, heir.position, heir.through);
            map.flush()?;
        }
        next.peers.insert(
            peer.clone(),
            PeerFacts {
                acked: heir.position,
                cracked: given_up,
                record: PeerRecord {
                    secured: true,
                    changed_outside: heir.lost,
                    ..PeerRecord::default()
                },
            },
        );
    }
    // A copy that something else wrote to, or that is no state of any master, is no base for anybody's differences, whatever it
    // is named; it is this volume's content from now on.
    if facts.tainted || !is_whole(facts) {
        next.set_stamps(None);
    }
    next.tainted = false;
    Ok(next)
}

/// A copy that is not whole is about to be made a file system by e2fsck, which needs the guard down. Durably, before that: should
/// it not be promoted after all, nobody knows any more where it differs.
pub fn before_repair(
    volume: &Volume,
    facts: &mut Facts,
    store: &dyn FactStore,
) -> Result<(), MirrorError> {
    facts.tainted = true;
    store.save(facts)?;
    guard::lower_if_raised(volume)
}
