//! Where a volume's log and its mirrors meet: who needs which transactions, and what happens when the log is full.
//!
//! Owns, per mirror, the position in the log and the dirty map. Invariant (the rule "given up for"): a mirror's position
//! moves past a transaction only when the mirror acknowledged it, or its dirty map, flushed, covers it. Lock order: the
//! list of slots, then one slot, then the journal's own locks; nothing here is held while a mirror is waited for.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::journal::{Journal, JournalError};
use crate::mirror::MirrorError;
use crate::mirror::dirty::DirtyMap;
use crate::mirror::ranges::RangeSet;
use crate::mirror::shipment::touched;
use crate::units::{BlockNo, BlockRange, Generation, Txid, planted};

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
    /// While a resync is staged: what of `map` is still to be sent. The mirror drops what was staged when the link is lost,
    /// so `map` keeps everything until the switch.
    pub todo: Option<DirtyMap>,
    /// A staged resync was sent whole, up to this transaction; whether the mirror has switched is not known.
    pub staged_at: Option<Txid>,
    /// Marked blocks that are on their way, by the number of their frame. What is marked again meanwhile is not among them:
    /// it is sent again.
    pub under_way: VecDeque<(u64, RangeSet)>,
}

impl SlotState {
    /// Moves the position to what was acknowledged. The map's bits for it are made durable first.
    pub fn settle(
        &mut self,
        journal: &Journal,
        id: u32,
        generation: Generation,
    ) -> Result<(), MirrorError> {
        // A sync mirror may have what is only being committed here.
        let txid = self.acked.min(journal.last_committed());
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

    /// The mirror has everything up to `acked`: what it lacks is its claim on the log from now on, but for what its map knows.
    /// A mirror that is made again with a copy which was kept is behind the place that its slot was given; a crack would
    /// record only what comes after that.
    pub fn claim(&mut self, journal: &Journal, id: u32, acked: Txid) {
        self.acked = acked;
        let known = self.map.coverage().is_some_and(|c| c.from_txid <= acked);
        if acked >= self.position || known {
            return;
        }
        journal.set_consumer(id, acked);
        match journal.covers(acked) {
            true => self.position = acked,
            false => journal.set_consumer(id, self.position),
        }
    }

    /// From where the transactions go beside a copy by the map to a mirror that has everything up to `acked`. Never from before
    /// the position: the older contents of a block would follow the newer ones that the copy brought, and a crack, which
    /// records what comes after the position, would leave them there.
    pub fn beside_copy(&self, acked: Txid, log_covers: bool) -> Txid {
        match log_covers {
            true => acked.max(self.position),
            false => self.position,
        }
    }

    /// Records that the mirror's copy may differ in `range`, which is to be sent.
    pub fn mark(&mut self, range: BlockRange) -> Result<(), MirrorError> {
        self.staged_at = None;
        self.under_way
            .iter_mut()
            .for_each(|(_, blocks)| blocks.remove(range));
        if let Some(todo) = &mut self.todo {
            todo.set(range)?;
        }
        Ok(self.map.set(range)?)
    }

    /// The mirror has every frame up to `seq` durably: at home, or in its staging log.
    pub fn arrived(&mut self, seq: u64) -> Result<(), MirrorError> {
        let first =
            |queue: &VecDeque<(u64, _)>| queue.front().is_some_and(|(frame, _)| *frame <= seq);
        while first(&self.under_way)
            && let Some((_, blocks)) = self.under_way.pop_front()
        {
            let map = self.todo.as_mut().unwrap_or(&mut self.map);
            for range in blocks.iter() {
                map.clear(range)?;
            }
        }
        Ok(())
    }

    /// While a resync is staged, what is sent with a transaction is in the staging log only.
    pub fn staged(&mut self, range: BlockRange) -> Result<(), MirrorError> {
        match self.todo {
            Some(_) => Ok(self.map.set(range)?),
            None => Ok(()),
        }
    }

    /// Blocks that are still to be sent.
    pub fn left(&self) -> u64 {
        self.todo.as_ref().unwrap_or(&self.map).count()
    }

    /// Up to `max` blocks to be sent, at or after `from`, which go under way with the frame `seq`; and where the next ones are
    /// to be looked for, if there are any.
    pub fn send_marked(
        &mut self,
        from: BlockNo,
        max: u64,
        seq: u64,
    ) -> Result<(RangeSet, Option<BlockNo>), MirrorError> {
        let map = self.todo.as_mut().unwrap_or(&mut self.map);
        let mut chosen = RangeSet::default();
        let mut count = 0;
        let mut at = Some(from);
        while count < max
            && let Some(begin) = at
        {
            let Some(range) = map.next_set(begin, max - count)? else {
                at = None;
                break;
            };
            at = Some(range.end());
            count += range.len;
            chosen.insert(range);
            for (_, blocks) in &self.under_way {
                for sent in blocks.within(range) {
                    chosen.remove(sent);
                    count -= sent.len;
                }
            }
        }
        if !chosen.is_empty() {
            self.under_way.push_back((seq, chosen.clone()));
        }
        Ok((chosen, at))
    }

    /// The frame `seq` was not sent after all.
    pub fn not_sent(&mut self, seq: u64) {
        self.under_way.retain(|(frame, _)| *frame < seq);
    }

    /// Blocks that are to be sent, and are not under way.
    pub fn unsent(&self) -> u64 {
        let under_way: u64 = self
            .under_way
            .iter()
            .map(|(_, blocks)| blocks.count())
            .sum();
        self.left().saturating_sub(under_way)
    }

    /// A staged resync begins: everything in the map is to be sent. `todo` is an empty map.
    pub fn begin_staged(&mut self, mut todo: DirtyMap) -> Result<(), MirrorError> {
        let mut at = BlockNo(0);
        while let Some(range) = self.map.next_set(at, u64::MAX)? {
            todo.set(range)?;
            at = range.end();
        }
        self.todo = Some(todo);
        self.staged_at = None;
        Ok(())
    }

    /// The mirror has switched to what was staged, if it was: the map is of no use any more.
    pub fn staging_ended(&mut self) -> Result<(), MirrorError> {
        if self.todo.take().is_some() || self.staged_at.is_some() {
            self.map.clear(BlockRange::new(BlockNo(0), u64::MAX))?;
        }
        self.staged_at = None;
        Ok(())
    }

    /// The mirror has switched to what was staged, and more was marked meanwhile: that is all that is left.
    pub fn switched(&mut self) -> Result<(), MirrorError> {
        self.staged_at = None;
        let Some(mut todo) = self.todo.take() else {
            return Ok(());
        };
        self.map.clear(BlockRange::new(BlockNo(0), u64::MAX))?;
        let mut at = BlockNo(0);
        while let Some(range) = todo.next_set(at, u64::MAX)? {
            self.map.set(range)?;
            at = range.end();
        }
        Ok(self.map.flush()?)
    }

    /// The mirror says that its copy became whole at `consistent_at`: where that is the staged resync of which nothing
    /// more was heard, it has switched.
    pub fn heard(&mut self, consistent_at: Txid) -> Result<(), MirrorError> {
        self.todo = None;
        if self.staged_at == Some(consistent_at) {
            self.staging_ended()?;
            self.map.retire();
            self.map.flush()?;
            self.cracked = false;
        }
        self.staged_at = None;
        Ok(())
    }

    /// A copy begins anew at `from`: what the map knew is of no use.
    pub fn reset(&mut self, journal: &Journal, id: u32, from: Txid) -> Result<(), MirrorError> {
        self.cracked = false;
        self.map_lost = false;
        self.todo = None;
        self.staged_at = None;
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
            // What was freed, too: its space may be used again by what is never committed, and a master that comes back
            // as a mirror gives these blocks up by this map. What is not allocated is not sent.
            for range in touched(&txn).chain(txn.freed.iter().copied()) {
                if planted::is("drop-dirty-bit") && range.start.0 % 5 == 3 {
                    continue;
                }
                self.mark(range)?;
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
