//! What of a volume is allocated, and what the log says, as of the newest committed transaction.

use std::sync::Arc;

use crate::ext4::Superblock;
use crate::fs::FsError;
use crate::fs::allocation::Allocation;
use crate::fs::check::Reader;
use crate::journal::superblock::Superblock as JournalSuperblock;
use crate::journal::{Image, Journal};
use crate::mirror::MirrorError;
use crate::mirror::guard;
use crate::units::{BlockNo, BlockRange, LogBlock, Txid};
use crate::volume::Volume;

/// The allocated blocks of a volume.
pub struct Committed {
    reader: Arc<dyn Reader + Send + Sync>,
    allocation: Allocation,
    block_size: usize,
}

impl std::fmt::Debug for Committed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committed").finish_non_exhaustive()
    }
}

fn read_block(reader: &dyn Reader, block_size: usize, block: BlockNo) -> Result<Image, FsError> {
    let mut bytes = vec![0; block_size];
    reader.read(block, &mut bytes)?;
    Ok(Image::from(bytes))
}

impl Committed {
    /// Of the volume whose journal this is, or of another state of it.
    pub fn load(
        reader: Arc<impl Reader + Send + Sync + 'static>,
        block_size: usize,
    ) -> Result<Committed, MirrorError> {
        let superblock = superblock(&*reader, block_size)?;
        let allocation = Allocation::load(&superblock, &|block| {
            read_block(&*reader, block_size, block)
        })?;
        Ok(Committed {
            reader,
            allocation,
            block_size,
        })
    }

    /// The allocated parts of `range` by the newest committed bitmaps, the journal's own blocks among them.
    pub fn allocated(&self, range: BlockRange) -> Result<Vec<BlockRange>, MirrorError> {
        let read = |block| read_block(&*self.reader, self.block_size, block);
        Ok(self.allocation.allocated(&read, range)?)
    }

    /// How many blocks are in use, by the superblock's counters.
    pub fn used_blocks(&self) -> Result<u64, MirrorError> {
        let superblock = superblock(&*self.reader, self.block_size)?;
        Ok(superblock
            .s_blocks_count()
            .saturating_sub(superblock.s_free_blocks_count()))
    }
}

/// The newest committed superblock.
fn superblock(reader: &dyn Reader, block_size: usize) -> Result<Superblock, MirrorError> {
    let block = 1024 / block_size as u64;
    let image = read_block(reader, block_size, BlockNo(block))?;
    let range = guard::superblock_in(block, block_size).expect("the block of byte 1024");
    Superblock::decode(&image[range]).map_err(|corrupt| {
        MirrorError::Fs(FsError::Corrupt {
            what: "superblock",
            ino: None,
            block: Some(BlockNo(block)),
            detail: corrupt.to_string(),
        })
    })
}

/// The jbd2 superblock of an empty log, for a mirror: one block.
pub fn empty_log(volume: &Volume, log: &[BlockRange]) -> Result<Vec<u8>, MirrorError> {
    let mut block = vec![0; volume.block_size() as usize];
    let first = log.first().map_or(BlockNo(0), |range| range.start);
    volume.read(first, &mut block)?;
    let blocks = log.iter().map(|range| range.len).sum();
    let mut superblock = JournalSuperblock::decode(&block, volume.block_size(), blocks)?;
    let sequence = superblock.s_sequence();
    superblock.set_tail(LogBlock(0), sequence);
    // Where its first transaction goes: a power cut before that one leaves a log that nobody else has used.
    superblock.set_head(LogBlock(superblock.s_first()));
    superblock.set_errno(0);
    let encoded = superblock.encode();
    block[..encoded.len()].copy_from_slice(encoded);
    Ok(block)
}

/// The transaction chain hash at `txid`, while the log knows it.
pub fn chain_at(journal: &Journal, txid: Txid) -> Option<u64> {
    if txid == journal.last_committed() {
        return Some(journal.chain());
    }
    let infos = journal.info_after(Txid(txid.0.checked_sub(1)?))?;
    infos
        .first()
        .filter(|info| info.txid == txid)
        .map(|info| info.chain)
}
