//! Comparing two copies by hashes: for `verify`, and for a resync whose map was lost.
//!
//! Owns the questions that are open and, while `verify` runs, its cursor and its findings. Knows nothing of where the
//! bytes come from.

use std::collections::VecDeque;

use xxhash_rust::xxh3::xxh3_64;

use crate::mirror::MirrorError;
use crate::mirror::ranges::RangeSet;
use crate::mirror::rate::Rate;
use crate::units::{BlockNo, BlockRange, Txid};
use crate::wire::message::Message;

/// Questions open at once.
const MAX_OPEN: usize = 8;

#[derive(Debug)]
struct Question {
    id: u64,
    ranges: Vec<BlockRange>,
    hashes: Vec<u64>,
}

/// What `verify` found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Blocks compared.
    pub blocks: u64,
    /// Blocks that differ.
    pub differing: Vec<BlockRange>,
    /// The first and the last transaction as of which blocks were compared; equal on a quiet volume.
    pub txids: Option<(Txid, Txid)>,
}

#[derive(Debug)]
struct Verify {
    cursor: BlockNo,
    blocks: u64,
    differing: RangeSet,
    txids: Option<(Txid, Txid)>,
    asked_all: bool,
}

/// The questions that are open.
#[derive(Debug)]
pub struct Questions {
    block_size: u64,
    next_id: u64,
    open: VecDeque<Question>,
    verify: Option<Verify>,
    /// Cap on what `verify` reads.
    pub rate: Rate,
}

/// What of the superblock each side has for itself, offset and length in bytes, kernel names: mount times and counts, the
/// checksum that covers them. `RECOVER` is cleared apart from these.
const OWN_FIELDS: [(usize, usize); 7] = [
    (0x2c, 4),  // s_mtime
    (0x30, 4),  // s_wtime
    (0x34, 2),  // s_mnt_count
    (0x40, 4),  // s_lastcheck
    (0xc8, 4),  // s_algorithm_usage_bitmap, retired: balances the checksum
    (0x274, 3), // s_wtime_hi, s_mtime_hi, s_mkfs_time_hi
    (0x3fc, 4), // s_checksum
];
/// `s_feature_incompat`, and the byte and bit of `RECOVER` in it.
const INCOMPAT_RECOVER: (usize, u8) = (0x60, 0x04);
/// Where the superblock is on a volume, bytes.
const SUPERBLOCK: u64 = 1024;

/// Clears what is exempt from being equal in `bytes`, which are the volume's from block `at` on.
fn clear_own_fields(at: BlockNo, block_size: u64, bytes: &mut [u8]) {
    let Some(offset) = SUPERBLOCK.checked_sub(at.0.saturating_mul(block_size)) else {
        return;
    };
    let Some(superblock) = bytes.get_mut(offset as usize..offset as usize + 1024) else {
        return;
    };
    for (start, len) in OWN_FIELDS {
        superblock[start..start + len].fill(0);
    }
    superblock[INCOMPAT_RECOVER.0] &= !INCOMPAT_RECOVER.1;
}

/// One hash a block of `ranges`, as they are read. What each side has for itself is left out.
pub fn hash_blocks<E>(
    ranges: &[BlockRange],
    block_size: u64,
    mut read: impl FnMut(BlockNo, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<u64>, E> {
    let mut hashes = Vec::new();
    for range in ranges {
        let mut at = range.start;
        while at < range.end() {
            let len = (range.end().0 - at.0).min((1 << 20) / block_size);
            let mut bytes = vec![0; (len * block_size) as usize];
            read(at, &mut bytes)?;
            clear_own_fields(at, block_size, &mut bytes);
            hashes.extend(bytes.chunks_exact(block_size as usize).map(xxh3_64));
            at = BlockNo(at.0 + len);
        }
    }
    Ok(hashes)
}

impl Questions {
    /// None, for blocks of `block_size` bytes.
    pub fn new(block_size: u64) -> Questions {
        Questions {
            block_size,
            next_id: 1,
            open: VecDeque::new(),
            verify: None,
            rate: Rate::default(),
        }
    }

    /// Drops what is open: the stream began anew. A running `verify` begins anew too.
    pub fn clear(&mut self) {
        self.open.clear();
        if self.verify.is_some() {
            self.begin_verify();
        }
    }

    /// Whether as many are open as may be.
    pub fn full(&self) -> bool {
        self.open.len() >= MAX_OPEN
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Opens a question about `ranges`.
    pub fn ask<E>(
        &mut self,
        ranges: Vec<BlockRange>,
        read: impl FnMut(BlockNo, &mut [u8]) -> Result<(), E>,
    ) -> Result<(Message, Vec<u8>), E> {
        let hashes = hash_blocks(&ranges, self.block_size, read)?;
        let id = self.next_id;
        self.next_id += 1;
        let question = Message::Hash {
            id,
            ranges: ranges.iter().map(|range| (*range).into()).collect(),
        };
        self.open.push_back(Question { id, ranges, hashes });
        Ok((question, Vec::new()))
    }

    /// The question just opened is not asked after all.
    pub fn forget_last(&mut self) {
        self.open.pop_back();
    }

    /// Closes a question: the blocks whose hashes differ.
    pub fn answered(&mut self, id: u64, payload: &[u8]) -> Result<Vec<BlockRange>, MirrorError> {
        let Some(at) = self.open.iter().position(|question| question.id == id) else {
            // Asked before the stream began anew.
            return Ok(Vec::new());
        };
        let question = self.open.remove(at).expect("just found");
        if payload.len() != question.hashes.len() * 8 {
            return Err(MirrorError::Protocol(format!(
                "{} bytes of hashes for {} blocks",
                payload.len(),
                question.hashes.len()
            )));
        }
        let theirs = payload
            .chunks_exact(8)
            .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("chunks of eight")));
        let blocks = question.ranges.iter().flat_map(|range| range.blocks());
        let differing: RangeSet = blocks
            .zip(question.hashes.iter().zip(theirs))
            .filter(|(_, (ours, theirs))| **ours != *theirs)
            .map(|(block, _)| BlockRange::new(block, 1))
            .collect();
        if let Some(verify) = &mut self.verify {
            verify.blocks += question.hashes.len() as u64;
        }
        Ok(differing.iter().collect())
    }

    /// Starts a `verify` from the first block, which reads no faster than `rate`.
    pub fn start_verify(&mut self, rate: Rate) {
        self.rate = rate;
        self.begin_verify();
    }

    fn begin_verify(&mut self) {
        self.verify = Some(Verify {
            cursor: BlockNo(0),
            blocks: 0,
            differing: RangeSet::default(),
            txids: None,
            asked_all: false,
        });
    }

    /// Ends a `verify`, finished or not.
    pub fn stop_verify(&mut self) {
        self.verify = None;
    }

    /// Whether a `verify` runs, or its result was not taken yet.
    pub fn is_verifying(&self) -> bool {
        self.verify.is_some()
    }

    /// Where a running `verify` is, as long as it has questions to ask.
    pub fn verifying(&self) -> Option<BlockNo> {
        let verify = self.verify.as_ref()?;
        (!verify.asked_all).then_some(verify.cursor)
    }

    /// How far a `verify` is that is not finished: the last answers may be on their way still.
    pub fn verify_cursor(&self) -> Option<BlockNo> {
        self.verify.as_ref().map(|verify| verify.cursor)
    }

    /// `verify` asked about everything before `cursor`, as of `txid`.
    pub fn verified_to(&mut self, cursor: BlockNo, txid: Txid) {
        if let Some(verify) = &mut self.verify {
            verify.cursor = cursor;
            let first = verify.txids.map_or(txid, |(first, _)| first);
            verify.txids = Some((first, txid));
        }
    }

    /// `verify` has asked everything.
    pub fn pass_ended(&mut self, txid: Txid) {
        if let Some(verify) = &mut self.verify {
            verify.asked_all = true;
            verify.txids.get_or_insert((txid, txid));
        }
    }

    /// These blocks differ.
    pub fn report(&mut self, differing: Vec<BlockRange>) {
        if let Some(verify) = &mut self.verify {
            for range in differing {
                verify.differing.insert(range);
            }
        }
    }

    /// The result of a `verify` that has all its answers; given once.
    pub fn verdict(&mut self) -> Option<Verdict> {
        let done = self
            .verify
            .as_ref()
            .is_some_and(|verify| verify.asked_all && self.open.is_empty());
        let verify = self.verify.take_if(|_| done)?;
        Some(Verdict {
            blocks: verify.blocks,
            differing: verify.differing.iter().collect(),
            txids: verify.txids,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hashes of a volume of 4 KiB whose superblock has one byte changed.
    fn changed(block_size: u64, at: Option<usize>) -> Vec<u64> {
        let mut volume = vec![7; 4096];
        if let Some(at) = at {
            volume[1024 + at] ^= 0x04;
        }
        let whole = BlockRange::new(BlockNo(0), 4096 / block_size);
        let read = |start: BlockNo, buf: &mut [u8]| {
            let from = (start.0 * block_size) as usize;
            buf.copy_from_slice(&volume[from..from + buf.len()]);
            Ok::<(), ()>(())
        };
        hash_blocks(&[whole], block_size, read).unwrap()
    }

    #[test]
    fn mounts_and_recovery_are_no_difference_and_everything_else_is() {
        for block_size in [1024, 2048, 4096] {
            let base = changed(block_size, None);
            for own in [0x2c, 0x33, 0x34, 0x60, 0x3ff] {
                assert_eq!(
                    changed(block_size, Some(own)),
                    base,
                    "{block_size} {own:#x}"
                );
            }
            for shared in [0x04, 0x64, 0x2b] {
                assert_ne!(
                    changed(block_size, Some(shared)),
                    base,
                    "{block_size} {shared:#x}"
                );
            }
        }
    }
}
