//! What one transaction is: the images, the references, what it freed and zeroed, and the hash that chains it to the
//! one before. Never does I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::units::{BlockNo, BlockRange, Ino, Txid};

/// The bytes of one block.
pub type Image = Arc<[u8]>;

/// Fresh data that a transaction publishes without carrying it: the bytes are at home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Where; at most 256 blocks.
    pub range: BlockRange,
    /// xxh3 of the range's bytes.
    pub xxh3: u64,
}

/// What a transaction touched, for those who keep caches above the blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Attributes or data of an inode.
    Inode(Ino),
    /// A directory entry came, went or changed.
    Entry {
        /// The directory.
        parent: Ino,
        /// At most 255 bytes in ext4; up to 65535 are representable.
        name: Vec<u8>,
    },
    /// More than is worth listing.
    EverythingChanged,
}

/// One transaction, before its commit or as read back from the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Its id. Ids in one log increase; gaps are legal.
    pub txid: Txid,
    /// Blocks by value; each image has the block's size.
    pub images: BTreeMap<BlockNo, Image>,
    /// Blocks by reference, written home before the commit.
    pub refs: Vec<Reference>,
    /// Allocated as unwritten: to be zeroed on both sides.
    pub zeroed: Vec<BlockRange>,
    /// Freed.
    pub freed: Vec<BlockRange>,
    /// For caches.
    pub hints: Vec<Hint>,
    /// `chain_hash` of the chain before it and its contents. `Journal::commit` fills it; a mirror appends what the
    /// master gave.
    pub chain: u64,
}

/// Contents of a transaction as a hash over all transactions before it: two logs with equal hashes at one txid have had
/// the same transactions. Over images, references, zeroed and freed ranges; hints do not count.
pub fn chain_hash(previous: u64, txn: &Transaction) -> u64 {
    let mut hash = Xxh3::new();
    let mut add = |value: u64| hash.update(&value.to_be_bytes());
    add(previous);
    add(txn.txid.0);
    add(txn.images.len() as u64);
    for (block, image) in &txn.images {
        add(block.0);
        add(xxh3_64(image));
    }
    add(txn.refs.len() as u64);
    for r in &txn.refs {
        add(r.range.start.0);
        add(r.range.len);
        add(r.xxh3);
    }
    for ranges in [&txn.zeroed, &txn.freed] {
        add(ranges.len() as u64);
        for range in ranges {
            add(range.start.0);
            add(range.len);
        }
    }
    hash.digest()
}
