//! The cache of metadata blocks: images of the newest *committed* contents, bounded by bytes. Blocks of the running and
//! of the committing transaction are never here (they live in the transaction, from which nothing is evicted), and data
//! of files is not either (the kernel caches it). Never does I/O.
//!
//! Invariant: an image here equals what the journal (overlay, else home) gives for its block. It is replaced or removed
//! only under the exclusive metadata lock; whoever fills it after a miss holds that lock shared.
//!
//! Lock order: a shard's lock is a leaf; it is held for a map operation, never across I/O.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::journal::Image;
use crate::units::BlockNo;

/// A power of two, so that a shard is chosen by a mask; more than the threads that serve one volume.
const SHARDS: usize = 16;

/// What one entry costs beside its bytes: map entry, slot and the Arc's header, in bytes (an estimate, from above).
const ENTRY_OVERHEAD_BYTES: usize = 96;

/// A bounded map from block to image with second-chance (clock) eviction.
pub(crate) struct Cache {
    shards: Vec<Mutex<Shard>>,
    slots_per_shard: usize,
}

#[derive(Default)]
struct Shard {
    index: HashMap<BlockNo, usize>,
    slots: Vec<Slot>,
    vacant: Vec<usize>,
    hand: usize,
}

struct Slot {
    block: BlockNo,
    /// `None`: vacant.
    image: Option<Image>,
    used: bool,
}

impl Cache {
    /// A cache of at most about `limit_bytes`, for blocks of `block_size` bytes.
    pub fn new(limit_bytes: usize, block_size: usize) -> Cache {
        let slots = limit_bytes / (block_size + ENTRY_OVERHEAD_BYTES);
        Cache {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            slots_per_shard: (slots / SHARDS).max(4),
        }
    }

    fn shard(&self, block: BlockNo) -> &Mutex<Shard> {
        // Fibonacci hashing: neighbouring blocks, and blocks a group apart, go to different shards.
        let hash = block.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        &self.shards[hash as usize & (SHARDS - 1)]
    }

    /// The image of `block`, if it is cached.
    pub fn get(&self, block: BlockNo) -> Option<Image> {
        let mut shard = self.shard(block).lock();
        let slot = *shard.index.get(&block)?;
        let slot = &mut shard.slots[slot];
        slot.used = true;
        slot.image.clone()
    }

    /// Puts `image` in, in place of what was there; may evict another block.
    pub fn insert(&self, block: BlockNo, image: Image) {
        let mut shard = self.shard(block).lock();
        let shard = &mut *shard;
        if let Some(&slot) = shard.index.get(&block) {
            shard.slots[slot].image = Some(image);
            shard.slots[slot].used = true;
            return;
        }
        let slot = match shard.vacant.pop() {
            Some(slot) => slot,
            None if shard.slots.len() < self.slots_per_shard => {
                shard.slots.push(Slot {
                    block,
                    image: None,
                    used: false,
                });
                shard.slots.len() - 1
            }
            None => shard.evict(),
        };
        shard.slots[slot] = Slot {
            block,
            image: Some(image),
            used: false,
        };
        shard.index.insert(block, slot);
    }

    /// Forgets `block`.
    pub fn remove(&self, block: BlockNo) {
        let mut shard = self.shard(block).lock();
        if let Some(slot) = shard.index.remove(&block) {
            shard.slots[slot].image = None;
            shard.vacant.push(slot);
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for shard in &self.shards {
            *shard.lock() = Shard::default();
        }
    }

    /// Bytes of block images held.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.shards
            .iter()
            .map(|s| {
                let shard = s.lock();
                let images = shard.slots.iter().filter_map(|slot| slot.image.as_ref());
                images.map(|image| image.len()).sum::<usize>()
            })
            .sum()
    }
}

impl Shard {
    /// Frees the first slot behind the hand that was not used since the hand last passed. Ends after two rounds at most,
    /// because it clears every mark that it passes.
    fn evict(&mut self) -> usize {
        loop {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[at];
            if slot.used {
                slot.used = false;
                continue;
            }
            slot.image = None;
            self.index.remove(&slot.block);
            return at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(byte: u8) -> Image {
        vec![byte; 1024].into()
    }

    #[test]
    fn what_is_put_in_comes_out_until_removed() {
        let cache = Cache::new(1 << 20, 1024);
        cache.insert(BlockNo(7), image(1));
        cache.insert(BlockNo(7), image(2));
        assert_eq!(cache.get(BlockNo(7)).expect("cached")[0], 2);
        cache.remove(BlockNo(7));
        assert!(cache.get(BlockNo(7)).is_none());
    }

    #[test]
    fn memory_stays_below_the_limit_and_used_blocks_survive() {
        let limit = 1 << 20;
        let cache = Cache::new(limit, 1024);
        cache.insert(BlockNo(1), image(1));
        for block in 2..50_000 {
            cache.insert(BlockNo(block), image(0));
            assert!(cache.get(BlockNo(1)).is_some(), "evicted at {block}");
        }
        assert!(cache.bytes() <= limit);
        assert!(cache.bytes() > limit / 2);
    }
}
