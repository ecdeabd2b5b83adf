//! Blocks that are spoken for but in no transaction: a write takes them, brings its data home, and only then allocates them
//! together with the extents that point at them. Also the undoing of frees. Both live in the quarantine: free on disk, not
//! to be handed out.

use super::{AllocError, Allocator, BlockRequest, MetaBlocks};
use crate::units::{BlockNo, BlockRange, GroupNo, Txid};

/// Reserved blocks wait under this id, which no release reaches.
pub(super) const RESERVED: Txid = Txid(u64::MAX);

impl Allocator {
    /// Chooses blocks as `alloc_blocks` does and keeps them from being chosen again; nothing is written.
    pub fn reserve<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &M,
        request: &BlockRequest,
    ) -> Result<BlockRange, AllocError> {
        let (group, run) = self.choose(meta, request)?;
        let first = self.geometry.group_first_block(GroupNo(group as u32)).0;
        let start = BlockNo(first + u64::from(run.start));
        let range = BlockRange::new(start, u64::from(run.len));
        self.hold(range);
        Ok(range)
    }

    /// Keeps a reserved range that was taken, but whose taking was undone, reserved.
    pub fn hold(&mut self, range: BlockRange) {
        let size = self.geometry.block_size;
        self.spoken_for += range.len;
        for piece in self.pieces(range).unwrap_or_default() {
            self.quarantine
                .add(RESERVED, piece.range, piece.group, piece.start, size);
            self.bound(piece.group);
        }
    }

    /// Gives a reserved range up.
    pub fn unreserve(&mut self, range: BlockRange) {
        self.spoken_for -= range.len;
        self.unquarantine(range, RESERVED);
    }

    /// Allocates a reserved range in the running transaction.
    pub fn take_reserved<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &mut M,
        range: BlockRange,
    ) -> Result<(), AllocError> {
        self.unreserve(range);
        for piece in self.pieces(range)? {
            self.take(meta, piece.group, piece.run())?;
        }
        Ok(())
    }

    /// Takes a range that was freed in `txid` out of quarantine: the freeing was undone.
    pub fn unquarantine(&mut self, range: BlockRange, txid: Txid) {
        self.quarantine.withdraw(txid, range);
        for piece in self.pieces(range).unwrap_or_default() {
            let run = piece.run();
            self.quarantine.remove(piece.group, run.start, run.len);
            self.largest[piece.group] = self.usable(piece.group);
        }
    }
}
