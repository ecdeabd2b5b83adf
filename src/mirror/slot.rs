//! Where a volume's log and its mirrors meet: who needs which transactions, and what happens when the log is full.
//!
//! Owns, per mirror, the position in the log and the dirty map. Invariant (the rule "given up for"): a mirror's position
//! moves past a transaction only when the mirror acknowledged it, or its dirty map, flushed, covers it. Lock order: the
//! list of slots, then one slot, then the journal's own locks; nothing here is held while a mirror is waited for.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::journal::{Journal, JournalError};
use crate::mirror::MirrorError;
use crate::mirror::dirty::DirtyMap;
use crate::mirror::shipment::touched;
use crate::units::{BlockNo, BlockRange, Generation, Txid};

/// One mirror's place at the log.
#[derive(Debug)]
pub struct Slot {
    /// Names the mirror to the journal.
    pub id: u32,
    /// The peer's name.
    pub peer: String,
    /// What changes.
    pub state: Mutex<SlotState>,
}

/// What changes of a slot.
#[derive(Debug)]
pub struct SlotState {
    /// Blocks in which the mirror may differ beyond what the log holds.
    pub map: DirtyMap,
    /// Every transaction up to this one is acknowledged or given up for the map.
    pub position: Txid,
    /// The last transaction that the mirror acknowledged.
    pub acked: Txid,
    /// Whether transactions were given up since the mirror was last in sync.
    pub cracked: bool,
    /// How often it cracked: a stream that began before the last time is void.
    pub cracks: u64,
    /// Whether `map` must not be trusted: it was damaged, or could not be written.
    pub map_lost: bool,
}

impl SlotState {
    /// Moves the position to what was acknowledged. The map's bits for it are made durable first.
    pub fn settle(
        &mut self,
        journal: &Journal,
        id: u32,
        generation: Generation,
    ) -> Result<(), MirrorError> {
        let txid = self.acked;
        if txid <= self.position {
            return Ok(());
        }
        if self.map.coverage().is_some() {
            self.map.cover(generation, self.position, txid);
            self.map.flush()?;
        }
        self.position = txid;
        journal.set_consumer(id, txid);
        Ok(())
    }

    /// A copy begins anew at `from`: what the map knew is of no use.
    pub fn reset(&mut self, journal: &Journal, id: u32, from: Txid) -> Result<(), MirrorError> {
        self.cracked = false;
        self.map_lost = false;
        self.acked = from;
        self.position = from;
        journal.set_consumer(id, from);
        self.map.clear(BlockRange::new(BlockNo(0), u64::MAX))?;
        self.map.retire();
        Ok(self.map.flush()?)
    }

    /// Gives up sequence for this mirror: everything after its position, up to `through`, is recorded in the map.
    pub fn crack(
        &mut self,
        journal: &Journal,
        id: u32,
        generation: Generation,
        through: Txid,
    ) -> Result<(), MirrorError> {
        self.cracked = true;
        self.cracks += 1;
        if let Err(error) = self.record(journal, generation, through) {
            tracing::error!(%error, "the dirty map can not be written: the next resync compares checksums");
            self.map_lost = true;
        }
        self.position = through;
        journal.set_consumer(id, through);
        Ok(())
    }

    fn record(
        &mut self,
        journal: &Journal,
        generation: Generation,
        through: Txid,
    ) -> Result<(), MirrorError> {
        let infos = journal
            .info_after(self.position)
            .ok_or(MirrorError::LogLost(self.position))?;
        for info in infos.iter().take_while(|info| info.txid <= through) {
            let txn = journal.load_transaction(info.txid)?;
            for range in touched(&txn) {
                self.map.set(range)?;
            }
        }
        self.map.cover(generation, self.position, through);
        self.map.flush()?;
        Ok(())
    }
}

/// All mirrors of one volume, as the journal sees them.
#[derive(Debug, Default)]
pub struct Slots {
    list: Mutex<Vec<Arc<Slot>>>,
}

impl Slots {
    /// Adds a mirror: from now on the log keeps everything after its position.
    pub fn add(&self, journal: &Journal, slot: Arc<Slot>) {
        journal.set_consumer(slot.id, slot.state.lock().position);
        self.list.lock().push(slot);
    }

    /// Removes a mirror: the log keeps nothing for it any more.
    pub fn remove(&self, journal: &Journal, id: u32) {
        self.list.lock().retain(|slot| slot.id != id);
        journal.remove_consumer(id);
    }

    /// Every mirror.
    pub fn all(&self) -> Vec<Arc<Slot>> {
        self.list.lock().clone()
    }

    /// The last free blocks are those that mirrors still need as they are: those furthest behind crack.
    pub fn release_pins(
        &self,
        journal: &Journal,
        generation: Generation,
    ) -> Result<(), JournalError> {
        let last = journal.last_committed();
        let positions = self.all();
        match positions
            .iter()
            .map(|slot| slot.state.lock().position)
            .min()
        {
            Some(slowest) if slowest < last => {
                self.make_room(journal, generation, slowest.next(), last)
            }
            _ => Ok(()),
        }
    }

    /// The log is full of what mirrors need: those that need `oldest` crack.
    pub fn make_room(
        &self,
        journal: &Journal,
        generation: Generation,
        oldest: Txid,
        last: Txid,
    ) -> Result<(), JournalError> {
        for slot in self.all() {
            let mut state = slot.state.lock();
            if let Err(error) = state.settle(journal, slot.id, generation) {
                tracing::error!(%error, peer = %slot.peer, "the dirty map can not be written");
                state.map_lost = true;
            }
            if state.position < oldest {
                tracing::warn!(peer = %slot.peer, position = %state.position, through = %last,
                    "the mirror buffer is full: this mirror cracks and will be resynchronised from its dirty map");
                if let Err(error) = state.crack(journal, slot.id, generation, last) {
                    tracing::error!(%error, peer = %slot.peer, "crack");
                }
            }
        }
        Ok(())
    }
}
