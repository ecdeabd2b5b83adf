//! What the journal asks of replication: to remember its tail, and to make room. One keeper for a master (mirrors crack),
//! one for a mirror (its own fact file catches up).

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::journal::{Journal, JournalError, Recovery, TailKeeper};
use crate::mirror::committed::chain_at;
use crate::mirror::floor::Heir;
use crate::mirror::slot::Slots;
use crate::units::{Generation, Txid, planted};
use crate::volume::facts::{FactStore, Facts, FactsError, Lineage, MirrorTail, Segment};

fn save(store: &dyn FactStore, facts: &Facts) -> Result<(), JournalError> {
    store
        .save(facts)
        .map_err(|error| JournalError::Keeper(error.to_string()))
}

/// The log is about to lose what says that the state is that of `last`.
fn remember(facts: &mut Facts, last: Txid, chain: u64) {
    if facts.applied <= last {
        facts.applied = last;
        facts.chain = chain;
    }
}

/// Notes what a recovery is about to bring home, before the log forgets it: a volume whose log is empty and whose facts do
/// not know of its last transactions would come back under the name of an older state. All of it counts as confirmed from
/// here on: if this is cut, a mirror must not keep back what may be home in part.
pub fn note_recovery(
    facts: &mut Facts,
    store: &dyn FactStore,
    recovery: &Recovery,
) -> Result<(), FactsError> {
    let stale = planted::is("stale-facts");
    let Some(last) = recovery.last.filter(|last| *last > facts.applied && !stale) else {
        return Ok(());
    };
    remember(facts, last, recovery.chain.unwrap_or(0));
    facts.confirmed = facts.confirmed.max(last);
    facts.high_txid = facts.high_txid.max(last);
    store.save(facts)
}

/// As `note_recovery`, for a mirror that is promoted and is to have these `facts`. What it kept back goes home now, so from
/// here on it is the master, with the history that begins with `opening`: as a mirror it would show what no master ever
/// confirmed. `true` if it was noted.
pub fn note_promotion(
    facts: &mut Facts,
    store: &dyn FactStore,
    recovery: &Recovery,
    opening: &dyn Fn(Txid) -> Lineage,
) -> Result<bool, FactsError> {
    let Some(last) = recovery.last.filter(|last| *last > facts.applied) else {
        return Ok(false);
    };
    facts.generations.push(opening(last));
    note_recovery(facts, store, recovery)?;
    Ok(true)
}

/// The keeper of a master's journal.
pub struct MasterKeeper {
    facts: Arc<Mutex<Facts>>,
    store: Arc<dyn FactStore>,
    journal: Weak<Journal>,
    slots: Arc<Slots>,
    generation: Generation,
}

impl MasterKeeper {
    /// Keeps `journal`, of which `generation` is the running one.
    pub fn new(
        facts: Arc<Mutex<Facts>>,
        store: Arc<dyn FactStore>,
        journal: Weak<Journal>,
        slots: Arc<Slots>,
        generation: Generation,
    ) -> MasterKeeper {
        MasterKeeper {
            facts,
            store,
            journal,
            slots,
            generation,
        }
    }
}

impl TailKeeper for MasterKeeper {
    fn save_tail(
        &self,
        tail: Option<MirrorTail>,
        segments: &[Segment],
    ) -> Result<(), JournalError> {
        let positions: Vec<(String, Txid, bool)> = self
            .slots
            .all()
            .iter()
            .map(|slot| {
                let state = slot.state.lock();
                (slot.peer.clone(), state.position, state.cracked)
            })
            .collect();
        let mut facts = self.facts.lock();
        if let Some(journal) = self.journal.upgrade() {
            // A crash now may find a log in which there is nothing: then only the facts can say what there was.
            remember(&mut facts, journal.last_committed(), journal.chain());
        }
        facts.tail = tail;
        facts.segments = segments.to_vec();
        for (peer, position, cracked) in positions {
            let entry = facts.peers.entry(peer).or_default();
            entry.acked = position;
            entry.cracked = cracked;
        }
        save(&*self.store, &facts)
    }

    fn make_room(&self, oldest: Txid, last: Txid) -> Result<(), JournalError> {
        match self.journal.upgrade() {
            Some(journal) => self
                .slots
                .make_room(&journal, self.generation, oldest, last),
            None => Ok(()),
        }
    }

    fn emptying(&self, last: Txid, chain: u64) -> Result<(), JournalError> {
        let mut facts = self.facts.lock();
        remember(&mut facts, last, chain);
        save(&*self.store, &facts)
    }
}

/// The keeper of a mirror's journal.
pub struct FollowerKeeper {
    facts: Arc<Mutex<Facts>>,
    store: Arc<dyn FactStore>,
    journal: Weak<Journal>,
    consumer: u32,
    heir: Arc<Heir>,
}

impl FollowerKeeper {
    /// Keeps `journal`, in which the fact file is the consumer `consumer`, and `heir` keeps what others may need.
    pub fn new(
        facts: Arc<Mutex<Facts>>,
        store: Arc<dyn FactStore>,
        journal: Weak<Journal>,
        consumer: u32,
        heir: Arc<Heir>,
    ) -> FollowerKeeper {
        FollowerKeeper {
            facts,
            store,
            journal,
            consumer,
            heir,
        }
    }
}

impl TailKeeper for FollowerKeeper {
    fn save_tail(
        &self,
        tail: Option<MirrorTail>,
        segments: &[Segment],
    ) -> Result<(), JournalError> {
        let mut facts = self.facts.lock();
        facts.tail = tail;
        facts.segments = segments.to_vec();
        save(&*self.store, &facts)
    }

    fn make_room(&self, oldest: Txid, _last: Txid) -> Result<(), JournalError> {
        let Some(journal) = self.journal.upgrade() else {
            return Ok(());
        };
        let applied = journal.last_published();
        let generation = {
            let mut facts = self.facts.lock();
            facts.applied = applied;
            facts.confirmed = facts.confirmed.max(applied);
            if let Some(chain) = chain_at(&journal, applied) {
                facts.chain = chain;
            }
            facts.high_txid = facts.high_txid.max(applied);
            save(&*self.store, &facts)?;
            let lineage = facts.generations.last();
            lineage.map_or(Generation(0), |lineage| lineage.generation)
        };
        journal.confirmed_durably(applied);
        journal.set_consumer(self.consumer, applied);
        self.heir.make_room(&journal, generation, oldest, applied);
        Ok(())
    }

    fn emptying(&self, last: Txid, chain: u64) -> Result<(), JournalError> {
        let mut facts = self.facts.lock();
        remember(&mut facts, last, chain);
        facts.confirmed = facts.confirmed.max(last);
        facts.high_txid = facts.high_txid.max(last);
        save(&*self.store, &facts)
    }

    fn confirm(&self, through: Txid) -> Result<(), JournalError> {
        // Whatever these facts say already: their last save may have failed.
        let mut facts = self.facts.lock();
        facts.confirmed = facts.confirmed.max(through);
        save(&*self.store, &facts)
    }
}
