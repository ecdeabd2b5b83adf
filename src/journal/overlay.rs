//! The committed, published images that are not home yet: the newest per block. What reading sees instead of home. In
//! memory; beyond a limit only the place in the log is kept and the bytes are read from there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::scan::Logged;
use super::transaction::Image;
use crate::units::{BlockNo, BlockRange, Txid};

/// Bytes of images that are kept in memory; beyond it they are read from the log.
pub const RESIDENT_BYTES: usize = 64 << 20;

/// The newest published image of one block.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Whose.
    pub txid: Txid,
    /// Where in the log.
    pub logged: Logged,
    /// Its bytes, while they are kept.
    pub image: Option<Image>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Overlay {
    entries: BTreeMap<BlockNo, Entry>,
    /// What checkpointing may write, oldest transaction first.
    waiting: BTreeSet<(Txid, BlockNo)>,
    /// What it may not write now, because the home block is pinned.
    parked: BTreeSet<(Txid, BlockNo)>,
    /// Blocks whose bytes are kept, oldest first; may name entries that are gone.
    resident: VecDeque<(Txid, BlockNo)>,
    resident_bytes: usize,
    limit_bytes: usize,
}

impl Overlay {
    /// An empty overlay that keeps at most `limit_bytes` of images.
    pub fn new(limit_bytes: usize) -> Overlay {
        Overlay {
            limit_bytes,
            ..Overlay::default()
        }
    }

    /// The entry of a block.
    pub fn get(&self, block: BlockNo) -> Option<&Entry> {
        self.entries.get(&block)
    }

    /// Entries of a range, by block.
    pub fn range(&self, range: BlockRange) -> impl Iterator<Item = (&BlockNo, &Entry)> {
        self.entries.range(range.start..range.end())
    }

    /// Blocks of a range that have an entry.
    pub fn blocks_in(&self, range: BlockRange) -> Vec<BlockNo> {
        self.range(range).map(|(block, _)| *block).collect()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether checkpointing has nothing that it may write.
    pub fn nothing_waits(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether an entry is kept from going home by a pin.
    pub fn is_held_by_pins(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Takes a newer image; returns whose it replaced.
    pub fn insert(&mut self, entry: Entry) -> Option<Txid> {
        let block = entry.logged.block;
        let replaced = self.remove(block);
        if let Some(image) = &entry.image {
            self.resident_bytes += image.len();
            self.resident.push_back((entry.txid, block));
        }
        self.waiting.insert((entry.txid, block));
        self.entries.insert(block, entry);
        self.trim();
        replaced
    }

    /// Drops a block's entry; returns whose it was.
    pub fn remove(&mut self, block: BlockNo) -> Option<Txid> {
        let entry = self.entries.remove(&block)?;
        if let Some(image) = &entry.image {
            self.resident_bytes -= image.len();
        }
        if !self.waiting.remove(&(entry.txid, block)) {
            self.parked.remove(&(entry.txid, block));
        }
        Some(entry.txid)
    }

    /// Forgets bytes, the longest kept first, until the limit is held.
    fn trim(&mut self) {
        while self.resident_bytes > self.limit_bytes {
            let Some((txid, block)) = self.resident.pop_front() else {
                return;
            };
            if let Some(entry) = self.entries.get_mut(&block)
                && entry.txid == txid
                && let Some(image) = entry.image.take()
            {
                self.resident_bytes -= image.len();
            }
        }
        // Names of entries that are gone must not pile up.
        if self.resident.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            self.resident.retain(|(txid, block)| {
                entries
                    .get(block)
                    .is_some_and(|e| e.txid == *txid && e.image.is_some())
            });
        }
    }

    /// The next entries to write home, oldest transactions first; pinned ones are parked, or taken too with `all`.
    pub fn select(
        &mut self,
        max: usize,
        all: bool,
        pinned: impl Fn(BlockNo) -> bool,
    ) -> Vec<Entry> {
        if all {
            self.unpark();
        }
        let mut chosen = Vec::new();
        let mut park = Vec::new();
        for key in &self.waiting {
            if chosen.len() >= max {
                break;
            }
            if !all && pinned(key.1) {
                park.push(*key);
            } else if let Some(entry) = self.entries.get(&key.1) {
                chosen.push(entry.clone());
            }
        }
        for key in park {
            self.waiting.remove(&key);
            self.parked.insert(key);
        }
        chosen
    }

    /// Pins fell: what was parked may be tried again.
    pub fn unpark(&mut self) {
        self.waiting.append(&mut self.parked);
    }
}
