//! What is sent of one transaction, or of several merged into one.
//!
//! A merge is made when a transaction can no longer be sent as it was: the home of a block that it carries by reference
//! has been overwritten by a checkpoint (after a crash, or because its pin had to fall). The newest contents win, and
//! the mirror commits the merge as one transaction, under the last one's id: what it shows is still a state that the
//! master had. Never reads anything itself but the blocks that a merge has to turn from references into values.

use std::collections::BTreeMap;

use crate::journal::{Hint, Image, Reference, Transaction};
use crate::mirror::ranges::RangeSet;
use crate::units::{BlockNo, BlockRange, Txid};

/// One transaction as it goes over the wire.
#[derive(Debug, Default)]
pub struct Shipment {
    /// First transaction in it.
    pub first: Txid,
    /// Last transaction in it, and its id at the mirror.
    pub last: Txid,
    /// Chain hash at `last`.
    pub chain: u64,
    /// Blocks by value: their newest contents.
    pub images: BTreeMap<BlockNo, Image>,
    /// Fresh data, to be read from home.
    pub fresh: RangeSet,
    /// Ranges that are to read as zeros.
    pub zeroed: RangeSet,
    /// Ranges that became free at some point in it.
    pub freed: RangeSet,
    /// What a mount must forget.
    pub hints: Vec<Hint>,
    /// References that are still whole, for the check of what was read from home.
    pub checks: Vec<Reference>,
}

impl Shipment {
    /// An empty shipment that begins with `first`.
    pub fn new(first: Txid) -> Shipment {
        Shipment {
            first,
            last: first,
            ..Shipment::default()
        }
    }

    /// Appends the next transaction.
    pub fn push(&mut self, txn: Transaction) {
        self.last = txn.txid;
        self.chain = txn.chain;
        for range in &txn.zeroed {
            self.forget_contents(*range);
            self.zeroed.insert(*range);
        }
        for reference in txn.refs {
            self.forget_contents(reference.range);
            self.fresh.insert(reference.range);
            self.checks.push(reference);
        }
        // What a transaction frees it does not use again: a block that it filled and then freed is free.
        for range in &txn.freed {
            self.forget_contents(*range);
            self.freed.insert(*range);
        }
        for (block, image) in txn.images {
            self.forget_contents(BlockRange::new(block, 1));
            self.images.insert(block, image);
        }
        self.hints.extend(txn.hints);
    }

    /// Drops whatever older contents of `range` were to be sent.
    fn forget_contents(&mut self, range: BlockRange) {
        let gone: Vec<BlockNo> = self
            .images
            .range(range.start..range.end())
            .map(|(block, _)| *block)
            .collect();
        for block in gone {
            self.images.remove(&block);
        }
        self.zeroed.remove(range);
        self.fresh.remove(range);
        self.checks.retain(|check| !check.range.overlaps(&range));
    }

    /// Fresh data and zeros in blocks that the mirror's present state still uses (freed within this very merge) can not
    /// go home before the commit: makes them values. `read` gives what is at home: the log may have newer contents, of a
    /// transaction that is not part of this.
    pub fn settle<E>(
        &mut self,
        block_size: usize,
        mut read: impl FnMut(BlockRange) -> Result<Vec<u8>, E>,
    ) -> Result<(), E> {
        let in_use: Vec<BlockRange> = self.freed.iter().collect();
        for range in in_use {
            for hit in self.fresh.within(range) {
                let bytes = read(hit)?;
                for (block, bytes) in hit.blocks().zip(bytes.chunks_exact(block_size)) {
                    self.images.insert(block, Image::from(bytes));
                }
                self.fresh.remove(hit);
                self.checks.retain(|check| !check.range.overlaps(&hit));
            }
            for hit in self.zeroed.within(range) {
                let zeros = Image::from(vec![0; block_size]);
                for block in hit.blocks() {
                    self.images.insert(block, zeros.clone());
                }
                self.zeroed.remove(hit);
            }
        }
        Ok(())
    }

    /// Splits off what lies at or behind `cursor`, where the bulk replicator will still pass: it is not sent. Returns
    /// the blocks split off.
    pub fn cut(&mut self, cursor: BlockNo) -> RangeSet {
        let mut beyond = RangeSet::default();
        for block in self.images.split_off(&cursor).into_keys() {
            beyond.insert(BlockRange::new(block, 1));
        }
        let rest = BlockRange::new(cursor, u64::MAX - cursor.0);
        for set in [&mut self.fresh, &mut self.zeroed, &mut self.freed] {
            for range in set.within(rest) {
                beyond.insert(range);
            }
            set.remove(rest);
        }
        self.checks.retain(|check| check.range.end() <= cursor);
        beyond
    }

    /// Bytes of payload that this will take on the wire, for blocks of `block_size`.
    pub fn payload_bytes(&self, block_size: u64) -> u64 {
        (self.images.len() as u64 + self.fresh.count()) * block_size
    }
}

/// Every block whose contents, or whose use, a transaction changes.
pub fn touched(txn: &Transaction) -> impl Iterator<Item = BlockRange> + '_ {
    let images = txn.images.keys().map(|block| BlockRange::new(*block, 1));
    let refs = txn.refs.iter().map(|reference| reference.range);
    images.chain(refs).chain(txn.zeroed.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(byte: u8) -> Image {
        Image::from(vec![byte; 4])
    }

    fn range(start: u64, len: u64) -> BlockRange {
        BlockRange::new(BlockNo(start), len)
    }

    fn txn(id: u64) -> Transaction {
        Transaction {
            txid: Txid(id),
            ..Transaction::default()
        }
    }

    #[test]
    fn the_newest_contents_win() {
        let mut shipment = Shipment::new(Txid(1));
        let mut one = txn(1);
        one.images.insert(BlockNo(5), image(1));
        one.refs.push(Reference {
            range: range(10, 4),
            xxh3: 7,
        });
        let mut two = txn(2);
        two.images.insert(BlockNo(5), image(2));
        two.images.insert(BlockNo(11), image(3));
        shipment.push(one);
        shipment.push(two);
        assert_eq!(shipment.last, Txid(2));
        assert_eq!(shipment.images[&BlockNo(5)], image(2));
        assert_eq!(shipment.images[&BlockNo(11)], image(3));
        let fresh: Vec<_> = shipment.fresh.iter().collect();
        assert_eq!(fresh, [range(10, 1), range(12, 2)]);
        assert!(
            shipment.checks.is_empty(),
            "a clipped reference can not be checked"
        );
    }

    #[test]
    fn blocks_freed_and_used_again_within_a_merge_go_by_value() {
        let mut shipment = Shipment::new(Txid(1));
        let mut one = txn(1);
        one.freed.push(range(20, 2));
        let mut two = txn(2);
        two.refs.push(Reference {
            range: range(20, 1),
            xxh3: 0,
        });
        two.zeroed.push(range(21, 1));
        shipment.push(one);
        shipment.push(two);
        shipment
            .settle(4, |hit| Ok::<_, ()>(vec![9; 4 * hit.len as usize]))
            .unwrap();
        assert_eq!(shipment.images[&BlockNo(20)], image(9));
        assert_eq!(shipment.images[&BlockNo(21)], image(0));
        assert!(shipment.fresh.is_empty() && shipment.zeroed.is_empty());
    }

    #[test]
    fn a_block_filled_and_freed_by_one_transaction_is_free() {
        let mut shipment = Shipment::new(Txid(1));
        let mut one = txn(1);
        one.freed.push(range(20, 1));
        one.refs.push(Reference {
            range: range(20, 2),
            xxh3: 0,
        });
        shipment.push(one);
        shipment
            .settle(4, |hit| Ok::<_, ()>(vec![9; 4 * hit.len as usize]))
            .unwrap();
        assert!(shipment.images.is_empty());
        assert_eq!(shipment.fresh.iter().collect::<Vec<_>>(), [range(21, 1)]);
    }

    #[test]
    fn nothing_beyond_the_cursor_is_sent() {
        let mut shipment = Shipment::new(Txid(1));
        let mut one = txn(1);
        one.images.insert(BlockNo(5), image(1));
        one.images.insert(BlockNo(50), image(1));
        one.refs.push(Reference {
            range: range(28, 4),
            xxh3: 7,
        });
        shipment.push(one);
        let beyond: Vec<_> = shipment.cut(BlockNo(30)).iter().collect();
        assert_eq!(beyond, [range(30, 2), range(50, 1)]);
        assert_eq!(shipment.fresh.iter().collect::<Vec<_>>(), [range(28, 2)]);
        assert_eq!(shipment.payload_bytes(4), 12);
    }
}
