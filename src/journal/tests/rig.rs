//! A bare jbd2 log on a simulated disk, without a file system around it, and transactions over made-up blocks.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::io::Disk;
use crate::io::sim::SimDisk;
use crate::journal::format::put_be32;
use crate::journal::{Image, Journal, LogMap, Transaction};
use crate::units::{BlockNo, BlockRange, Generation, Txid};
use crate::volume::Volume;

pub const BLOCK: usize = 1024;
/// Where the log lies; home blocks are those below.
pub const LOG_START: u64 = 4096;
pub const LOG_BLOCKS: u32 = 1024;
pub const GENERATION: Generation = Generation(0xabcd);

/// A disk with a fresh journal as mke2fs leaves it: version 2, no features. In two pieces, so that runs break.
pub fn fresh_disk() -> Arc<SimDisk> {
    let disk = SimDisk::new((LOG_START + u64::from(LOG_BLOCKS) + 16) * BLOCK as u64);
    let mut sb = [0; 1024];
    put_be32(&mut sb, 0, 0xc03b_3998);
    put_be32(&mut sb, 4, 4);
    put_be32(&mut sb, 0x0c, BLOCK as u32);
    put_be32(&mut sb, 0x10, LOG_BLOCKS);
    put_be32(&mut sb, 0x14, 1);
    put_be32(&mut sb, 0x18, 1);
    sb[0x30..0x40].copy_from_slice(&[7; 16]);
    put_be32(&mut sb, 0x40, 1);
    disk.write_at(&sb, (LOG_START + 8) * BLOCK as u64).unwrap();
    disk.flush().unwrap();
    Arc::new(disk)
}

pub fn map() -> LogMap {
    LogMap(vec![
        BlockRange::new(BlockNo(LOG_START + 8), 300),
        BlockRange::new(BlockNo(LOG_START + 310), u64::from(LOG_BLOCKS) - 300),
    ])
}

pub fn volume_of(disk: Arc<dyn Disk>) -> Arc<Volume> {
    Arc::new(Volume::new(vec![disk], BLOCK as u32).unwrap())
}

pub fn load(disk: &Arc<SimDisk>, base: u64) -> Journal {
    load_on(volume_of(disk.clone()), base)
}

pub fn load_on(volume: Arc<Volume>, base: u64) -> Journal {
    Journal::load(volume, map(), Txid(base)).unwrap()
}

/// A fresh journal with an open segment whose first transaction is 1.
pub fn fresh() -> (Arc<SimDisk>, Journal) {
    let disk = fresh_disk();
    let journal = load(&disk, 0);
    journal.begin_segment(GENERATION, Txid(1)).unwrap();
    (disk, journal)
}

/// A block filled with a value; some begin with jbd2's magic, so that escaping is in play.
pub fn image(value: u64) -> Image {
    let mut bytes = vec![0; BLOCK];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&value.to_be_bytes());
    }
    if value % 7 == 3 {
        bytes[..4].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
    }
    bytes.into()
}

pub fn txn(txid: u64, images: &[(u64, u64)]) -> Transaction {
    Transaction {
        txid: Txid(txid),
        images: images
            .iter()
            .map(|(block, value)| (BlockNo(*block), image(*value)))
            .collect::<BTreeMap<_, _>>(),
        ..Transaction::default()
    }
}

pub fn range(start: u64, len: u64) -> BlockRange {
    BlockRange::new(BlockNo(start), len)
}

pub fn commit(journal: &Journal, txid: u64, images: &[(u64, u64)]) {
    journal.commit(&mut txn(txid, images)).unwrap();
}

pub fn read(journal: &Journal, block: u64) -> Vec<u8> {
    let mut buf = vec![0; BLOCK];
    journal.read(BlockNo(block), &mut buf).unwrap();
    buf
}

pub fn home(disk: &SimDisk, block: u64) -> Vec<u8> {
    let mut buf = vec![0; BLOCK];
    disk.read_at(&mut buf, block * BLOCK as u64).unwrap();
    buf
}

pub fn write_home(journal: &Journal, block: u64, value: u64) {
    journal.volume.write(BlockNo(block), &image(value)).unwrap();
}

/// Checkpoints until nothing more can go home.
pub fn checkpoint_all(journal: &Journal) {
    while !journal.checkpoint(64).unwrap().done {}
}
