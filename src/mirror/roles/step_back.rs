//! An old master, or a mirror that was ahead, gives up what only it has and becomes a mirror at the fork.
//!
//! Owns the order that makes a power cut at any step harmless: the blocks are kept aside first, then recorded as
//! different, then the facts change, in one save; only then the guard goes up. Done again after a cut, it comes to the
//! same. Never guesses: where it is not known which blocks differ, it refuses, unless the operator gave the copy up; then
//! all of it is compared.

use std::fmt;
use std::sync::Arc;

use states::Cause;
use states::reconnect::Fate;

use super::{Relation, fate, is_whole, relation, shared_lineage};
use crate::fs::{How, open_volume_noting};
use crate::journal::{Journal, JournalError, ResumeEnd, TxnInfo};
use crate::mirror::dirty::{DirtyError, DirtyMap};
use crate::mirror::floor::HEIR;
use crate::mirror::keeper::note_recovery;
use crate::mirror::lost::{Gone, LostStore, Unshown, keep_aside};
use crate::mirror::open::MapStore;
use crate::mirror::ranges::RangeSet;
use crate::mirror::shipment::touched;
use crate::mirror::{MirrorError, guard, stamps};
use crate::units::{BlockNo, BlockRange, Generation, Txid, planted};
use crate::volume::Volume;
use crate::volume::facts::{Copy, FactStore, Facts, Lineage, NOTHING, Role};

/// Names this side's own dirty map in the map store; no peer can have this name.
pub const OWN_MAP: &str = "=own";

/// What stepping back needs. The volume is closed.
pub struct StepBack<'a> {
    /// The parts.
    pub volume: &'a Arc<Volume>,
    /// Keeps facts.
    pub facts: &'a dyn FactStore,
    /// Keeps maps.
    pub maps: &'a dyn MapStore,
    /// Keeps aside what is given up.
    pub lost: &'a dyn LostStore,
    /// This node's name.
    pub node: &'a str,
    /// The new master's name.
    pub master: &'a str,
    /// The new master's history.
    pub theirs: &'a [Lineage],
    /// The operator has given up what only this side has, whatever it is.
    pub discard: bool,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stepped {
    /// The last transaction that both have.
    pub shared: Txid,
    /// The last transaction that this side had.
    pub last: Txid,
    /// Blocks recorded as different.
    pub dirty_blocks: u64,
    /// The copy is to be compared: it is not known where it differs.
    pub compare: bool,
    /// Under which names what only this side had was kept aside, if there was anything: what no master had confirmed by
    /// itself.
    pub kept: Vec<String>,
}

impl fmt::Display for Stepped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.last <= self.shared {
            write!(f, "nothing of this copy is given up")?;
        } else {
            write!(
                f,
                "transactions {} to {} of this copy are given up",
                self.shared.next(),
                self.last
            )?;
        }
        match self.kept.is_empty() {
            false => write!(f, " and kept aside as {}", self.kept.join(" and "))?,
            true if self.last > self.shared => {
                write!(f, "; no block of them could be kept aside")?;
            }
            true => {}
        }
        match self.compare {
            true => write!(f, "; the copy will be compared by checksums"),
            false => Ok(()),
        }
    }
}

/// What a closed volume has.
struct Survey {
    journal: Arc<Journal>,
    /// What the log holds; `None` when it can not be told.
    infos: Option<Vec<TxnInfo>>,
    last: Txid,
    chain: u64,
    changed: Option<String>,
    /// A mirror's last transaction that no master confirmed, if it may have been acknowledged: it is dropped by now, and was
    /// kept aside as this.
    dropped: Option<(Txid, String)>,
}

impl StepBack<'_> {
    fn survey(&self, facts: &mut Facts) -> Result<Survey, MirrorError> {
        let (volume, store) = (self.volume, self.facts);
        let base = facts.high_txid.max(facts.applied);
        let how = match facts.role {
            Role::Master => How::ReadWrite,
            // It was not shown, and does not go home: cut here, this is a mirror still.
            Role::Mirror => How::Confirmed(facts.confirmed),
        };
        let opened = open_volume_noting(Arc::clone(volume), base, how, &mut |found| {
            note_recovery(facts, store, found)
                .map_err(|error| JournalError::Keeper(error.to_string()))
        })?;
        let journal = opened.journal;
        let dropped = self.drop_unconfirmed(facts, &journal)?;
        let changed = stamps::outside(facts, volume)?;
        let (mut last, mut chain) = (facts.applied, facts.chain);
        if let Some(head) = facts.head.filter(|head| head.txid > last) {
            (last, chain) = (head.txid, head.chain);
        }
        if let Some(recovery) = &opened.recovered
            && let Some(txid) = recovery.last.filter(|txid| *txid > last)
        {
            (last, chain) = (txid, recovery.chain.unwrap_or(0));
        }
        let mut infos = None;
        if let (None, Some(tail)) = (&changed, &facts.tail) {
            let end = match facts.head {
                Some(head) => ResumeEnd::Clean(head),
                None => ResumeEnd::Recovered,
            };
            match journal.resume(&facts.segments, tail, end) {
                Ok(found) => {
                    if let Some(info) = found.last().filter(|info| info.txid >= last) {
                        (last, chain) = (info.txid, info.chain);
                    }
                    infos = Some(found);
                }
                Err(error) => tracing::warn!(%error, "the log can not be resumed"),
            }
        }
        Ok(Survey {
            journal,
            infos,
            last,
            chain,
            changed,
            dropped,
        })
    }

    /// What a mirror's log holds and no master has confirmed is kept aside, unless it is known that nobody was told of it, and
    /// erased.
    fn drop_unconfirmed(
        &self,
        facts: &Facts,
        journal: &Arc<Journal>,
    ) -> Result<Option<(Txid, String)>, MirrorError> {
        let shown = journal.last_published();
        let last = journal.last_committed();
        if facts.role == Role::Master || last <= shown {
            return Ok(None);
        }
        let mut unshown = Vec::new();
        for info in journal.info_after(shown).unwrap_or_default() {
            unshown.push(journal.load_transaction(info.txid)?);
        }
        let mut kept = None;
        if fate(facts, self.theirs, self.master) == Fate::KeptAside {
            let reader = Arc::new(Unshown::new(Arc::clone(journal), &unshown));
            let gone = self.gone(facts, shown.max(facts.applied), last);
            let log = &journal.map().0;
            kept = Some(keep_aside(
                self.lost,
                reader.clone(),
                &gone,
                reader.changed(),
                log,
            )?);
        }
        journal.discard_unpublished()?;
        journal.close()?;
        Ok(kept.map(|kept| (last, kept)))
    }

    /// What is given up, by its name.
    fn gone<'a>(&'a self, facts: &'a Facts, shared: Txid, last: Txid) -> Gone<'a> {
        Gone {
            name: &facts.name,
            volume_id: facts.volume_id,
            node: self.node,
            master: self.master,
            shared,
            last,
            generation: facts
                .generations
                .last()
                .map_or(Generation(0), |lineage| lineage.generation),
        }
    }

    fn refused(&self, detail: String) -> MirrorError {
        MirrorError::Refused {
            cause: Cause::Diverged,
            detail,
        }
    }

    fn half_made(&self) -> MirrorError {
        self.refused(format!(
            "the copy of {} was half made when it was promoted, and takes over nothing of what {} has",
            self.master, self.node
        ))
    }

    /// `rejoin`, of a master or of a mirror, which is only pointed at another master: what a mirror has is looked at when
    /// that one calls, unless the operator has given it up. `facts` as for `carry_out`.
    pub fn rejoin(&self, facts: &mut Facts) -> Result<Stepped, MirrorError> {
        let unfinished = !is_whole(facts);
        if facts.role == Role::Master || (self.discard && !unfinished) {
            return self.carry_out(facts);
        }
        match (relation(&facts.generations, self.theirs), facts.copy) {
            // A copy that is being made, or repaired, has no log to go back in. It is no state of anybody's.
            (Relation::Unrelated, _) | (_, Copy::Partial { .. } | Copy::Blank) if self.discard => {
                facts.copy = Copy::Blank;
                facts.generations.clear();
                self.is_at(facts, Txid(0));
            }
            (related, Copy::Complete) if self.discard => {
                let shared = match related {
                    Relation::Behind { fork: shared } | Relation::Diverged { shared } => shared,
                    _ => match relation(self.theirs, &facts.generations) {
                        Relation::Behind { fork } => fork,
                        _ => facts.applied,
                    },
                };
                facts.tainted = true;
                facts.generations = shared_lineage(&facts.generations, self.theirs);
                self.is_at(facts, shared);
            }
            (Relation::Behind { fork: NOTHING }, copy) if copy != Copy::Blank => {
                return Err(self.half_made());
            }
            (Relation::Equal | Relation::Behind { .. }, _) => {}
            _ => {
                return Err(self.refused(format!(
                    "the history of {} does not go on from this one",
                    self.master
                )));
            }
        }
        facts.master = self.master.to_string();
        self.facts.save(facts)?;
        Ok(Stepped {
            shared: facts.applied,
            last: facts.applied,
            dirty_blocks: 0,
            compare: facts.tainted,
            kept: Vec::new(),
        })
    }

    /// Of a copy that is given up unfinished, nothing counts beyond `shared`: not what was confirmed of it, either.
    fn is_at(&self, facts: &mut Facts, shared: Txid) {
        facts.applied = facts.applied.min(shared);
        facts.confirmed = facts.confirmed.min(shared);
        facts.floor = facts.floor.min(shared);
        facts.high_txid = facts.applied;
        facts.chain = 0;
    }

    /// Steps back; `facts` are what the fact file says, and what it says afterwards.
    pub fn carry_out(&self, facts: &mut Facts) -> Result<Stepped, MirrorError> {
        let block_size = self.volume.block_size();
        if facts.switching.is_some() {
            return Err(self.refused("a staged resync is being brought home".to_string()));
        }
        let ours = facts.generations.clone();
        let related = relation(&ours, self.theirs);
        if related == (Relation::Behind { fork: NOTHING }) && !self.discard {
            return Err(self.half_made());
        }
        let found = self.survey(facts)?;
        let shared = match related {
            Relation::Behind { fork } => Some(fork.min(found.last)),
            Relation::Equal => Some(found.last),
            Relation::Diverged { shared } if self.discard => Some(shared.min(found.last)),
            Relation::Diverged { .. } => {
                return Err(self.refused(format!(
                    "{} and {} have each been opened alone",
                    self.node, self.master
                )));
            }
            Relation::Ahead | Relation::Unrelated if self.discard => None,
            Relation::Ahead | Relation::Unrelated => {
                return Err(self.refused(format!(
                    "the history of {} does not go on from this one",
                    self.master
                )));
            }
        };
        if let Some(what) = found.changed.as_ref().filter(|_| !self.discard) {
            return Err(self.refused(format!("it was changed from outside: {what}")));
        }
        let dirty = match shared {
            Some(shared) if found.changed.is_none() => self.beyond(&found, facts, shared)?,
            _ => None,
        };
        let shared = shared.unwrap_or_default();
        if dirty.is_none() && !self.discard {
            return Err(self.refused(format!(
                "which blocks were changed after transaction {shared} is not recorded any more"
            )));
        }
        let kept = match &dirty {
            Some(dirty) => self.keep_aside(facts, &found, shared, dirty)?,
            None => None,
        };
        if found.changed.is_none() && stamps::are_of_closed(facts) {
            // The parts are written to from here on: cut, nobody else did.
            facts.set_stamps(Some(stamps::read_open(self.volume)?));
            self.facts.save(facts)?;
        }
        let (dropped_last, kept_before) = found.dropped.clone().unzip();
        // A mirror of which nothing is beyond the other history by name is given up for what its transactions contain.
        let named = facts.role == Role::Mirror && found.last <= shared;
        let compare = dirty.is_none() || (self.discard && named);
        let dirty = dirty.unwrap_or_default();
        let generations = shared_lineage(&ours, self.theirs);
        if !dirty.is_empty() {
            let generation = generations
                .last()
                .map_or(Generation(0), |lineage| lineage.generation);
            let mut map = create_own(self.volume, facts.volume_id, self.maps)?;
            for range in dirty.iter() {
                map.set(range)?;
            }
            map.cover(generation, shared, shared);
            map.flush()?;
        }
        let equal = dirty.is_empty() && !compare;
        facts.role = Role::Mirror;
        facts.master = self.master.to_string();
        facts.sender.clear();
        facts.copy = Copy::Complete;
        facts.chain = match equal {
            true => found.chain,
            // Known only while the log has it, and not compared before the copy is whole again.
            false => 0,
        };
        facts.applied = shared;
        facts.confirmed = shared;
        facts.floor = facts.floor.min(shared);
        // The new master issues its own ids from the fork on.
        facts.high_txid = shared;
        if !equal {
            facts.consistent_at = Txid(u64::MAX);
        }
        facts.tainted = compare;
        facts.own_dirty = !dirty.is_empty();
        facts.generations = generations;
        facts.segments.clear();
        facts.tail = None;
        facts.head = None;
        facts.peers.clear();
        facts.handing_over = None;
        found.journal.close()?;
        guard::clear_recover(self.volume)?;
        facts.set_stamps(Some(match equal {
            true => stamps::read(self.volume)?,
            // The guard is a change of our own.
            false => stamps::read_open(self.volume)?,
        }));
        self.facts.save(facts)?;
        if !equal {
            guard::raise(self.volume)?;
            facts.set_stamps(Some(stamps::read(self.volume)?));
            self.facts.save(facts)?;
        }
        tracing::info!(volume = %facts.name, %block_size, %shared, last = %found.last,
            dirty = dirty.count(), compare, "stepped back");
        Ok(Stepped {
            shared,
            last: dropped_last.unwrap_or(found.last),
            dirty_blocks: dirty.count(),
            compare,
            kept: kept.into_iter().chain(kept_before).collect(),
        })
    }

    /// Every block that may differ from the state at `shared`: what was changed after it, and what was freed, for its
    /// space may have been used by what was never committed. `None` when that is not known.
    fn beyond(
        &self,
        found: &Survey,
        facts: &Facts,
        shared: Txid,
    ) -> Result<Option<RangeSet>, MirrorError> {
        let unlogged = facts.peers.is_empty() || shared < facts.logged_since;
        if facts.role == Role::Master && unlogged {
            return Ok(None);
        }
        let mut dirty = RangeSet::default();
        if facts.own_dirty {
            // It has stepped back before, and was not made whole since.
            match own_dirty(self.volume, facts, self.maps) {
                Ok(own) => own.iter().for_each(|range| dirty.insert(range)),
                Err(_) => return Ok(None),
            }
        }
        if shared >= found.last {
            return Ok(Some(dirty));
        }
        let covers = |after: Txid| found.infos.is_some() && found.journal.covers(after);
        let mut after = shared;
        if !covers(after) {
            let Some(map) = self.covering_map(facts, shared, &covers)? else {
                return Ok(None);
            };
            let (bits, through) = map;
            bits.iter().for_each(|range| dirty.insert(range));
            after = through;
        }
        for info in found.journal.info_after(after).unwrap_or_default() {
            let txn = found.journal.load_transaction(info.txid)?;
            for range in touched(&txn).chain(txn.freed.iter().copied()) {
                dirty.insert(range);
            }
        }
        // The superblock is written home at every opening.
        dirty.insert(BlockRange::new(
            BlockNo(1024 / u64::from(self.volume.block_size())),
            1,
        ));
        Ok(Some(dirty))
    }

    /// The bits of a map that reaches from `shared` to where the log goes on, and to where it does: of the new master's, if it
    /// was our mirror, for from another one's the bits are gone of what that one has got meanwhile; of the heir's, if we were one.
    fn covering_map(
        &self,
        facts: &Facts,
        shared: Txid,
        covers: &dyn Fn(Txid) -> bool,
    ) -> Result<Option<(RangeSet, Txid)>, MirrorError> {
        let known = facts.peers.contains_key(self.master);
        for peer in known.then_some(self.master).into_iter().chain([HEIR]) {
            let Ok(mut map) = open(self.volume, facts.volume_id, self.maps, peer) else {
                continue;
            };
            let Some(coverage) = map.coverage() else {
                continue;
            };
            if coverage.from_txid <= shared && covers(coverage.through_txid) {
                return Ok(Some((bits(&mut map)?, coverage.through_txid)));
            }
        }
        Ok(None)
    }

    /// Keeps the contents of `dirty` that are in use here. `None` when there is nothing that only this side has.
    fn keep_aside(
        &self,
        facts: &Facts,
        found: &Survey,
        shared: Txid,
        dirty: &RangeSet,
    ) -> Result<Option<String>, MirrorError> {
        if found.last <= shared || planted::is("drop-without-keeping") {
            return Ok(None);
        }
        let gone = self.gone(facts, shared, found.last);
        let log = &found.journal.map().0;
        let id = keep_aside(self.lost, found.journal.clone(), &gone, dirty, log)?;
        Ok(Some(id))
    }
}

fn open_disk(
    volume: &Volume,
    maps: &dyn MapStore,
    name: &str,
) -> Result<(Arc<dyn crate::io::Disk>, bool), DirtyError> {
    maps.open(name, DirtyMap::file_len(volume.blocks_count()))
        .map_err(|source| DirtyError::Io {
            name: format!("of {name}"),
            source,
        })
}

fn create_own(
    volume: &Volume,
    volume_id: u128,
    maps: &dyn MapStore,
) -> Result<DirtyMap, DirtyError> {
    let (disk, _) = open_disk(volume, maps, OWN_MAP)?;
    DirtyMap::create(disk, volume_id, volume.blocks_count())
}

fn open(
    volume: &Volume,
    volume_id: u128,
    maps: &dyn MapStore,
    name: &str,
) -> Result<DirtyMap, DirtyError> {
    let (disk, _) = open_disk(volume, maps, name)?;
    DirtyMap::open(disk, volume_id, volume.blocks_count())
}

fn bits(map: &mut DirtyMap) -> Result<RangeSet, DirtyError> {
    let mut set = RangeSet::default();
    let mut at = BlockNo(0);
    while let Some(range) = map.next_set(at, u64::MAX)? {
        set.insert(range);
        at = range.end();
    }
    Ok(set)
}

/// The blocks in which this side differs from the state that its facts name, by its own map.
pub fn own_dirty(
    volume: &Volume,
    facts: &Facts,
    maps: &dyn MapStore,
) -> Result<RangeSet, MirrorError> {
    let mut map = open(volume, facts.volume_id, maps, OWN_MAP)?;
    if map.coverage().is_none() {
        return Err(DirtyError::Corrupt {
            name: OWN_MAP.to_string(),
            what: "it covers nothing".to_string(),
        }
        .into());
    }
    Ok(bits(&mut map)?)
}
