//! The staging redo log of a mirror: what a resync brings is kept outside the parts until all of it has come, so that
//! the copy stays a state that the master had, readable and promotable, until one atomic switch.
//!
//! Owns the file's format and its bounds. Never writes to the parts: `redo` hands out what belongs where, in order, as
//! often as it takes (every step is idempotent). Invariant: a log that `end` did not complete is of no use and is never
//! redone; whether a complete one is to be redone is said by the copy's facts, not by the log.
//!
//! Layout, little-endian: records one after the other from byte 0, each
//!
//! | bytes | contents |
//! |---|---|
//! | 0..8 | magic |
//! | 8..16 | xxh3 of everything of the record behind this field |
//! | 16..32 | the staging's random id: what an earlier one left behind is not of this log |
//! | 32..40 | number of the record, from 0 |
//! | 40..44, 44..48 | kind (1 data, 2 zeros, 3 end); number of ranges |
//! | 48..56, 56..64 | bytes of payload; for the end: the transaction of the switch |
//! | 64.. | ranges (start and length in blocks, 8 bytes each), then the payload |

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::io::Disk;
use crate::mirror::MirrorError;
use crate::units::{BlockNo, BlockRange, Txid, planted};

const MAGIC: [u8; 8] = *b"LKSTSTAG";
const HEADER: usize = 64;
const DATA: u32 = 1;
const ZERO: u32 = 2;
const END: u32 = 3;
/// The most ranges and bytes of one record: what one frame may carry, and some room.
const MAX_RANGES: u32 = 1 << 20;
const MAX_PAYLOAD: u64 = 8 << 20;

/// Where the staging log of one volume is kept. The node decides; never in the parts.
pub trait StagingStore: Send + Sync + std::fmt::Debug {
    /// Bytes that it may have now.
    fn room(&self) -> u64;
    /// A new, empty one of at most `len` bytes; an earlier one is gone.
    fn create(&self, len: u64) -> std::io::Result<Arc<dyn Disk>>;
    /// The one that is there.
    fn open(&self) -> std::io::Result<Option<Arc<dyn Disk>>>;
    /// Gives the space back. Nothing is done where there is none.
    fn remove(&self) -> std::io::Result<()>;
}

/// What makes a staging complete: the switch's transaction and the log that the copy goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// From this transaction on the copy is a state that the master had.
    pub consistent_at: Txid,
    /// The journal file's blocks, in order.
    pub log: Vec<BlockRange>,
    /// The jbd2 superblock of the empty log: one block.
    pub journal_superblock: Vec<u8>,
}

/// One step of the redo.
#[derive(Debug)]
pub enum Step<'a> {
    /// These blocks, with these bytes, one range after the other.
    Data(&'a [BlockRange], &'a mut [u8]),
    /// These blocks read as zeros.
    Zero(&'a [BlockRange]),
}

/// A staging log that is being written.
#[derive(Debug)]
pub struct Staging {
    disk: Arc<dyn Disk>,
    id: u128,
    at: u64,
    records: u64,
}

struct Header {
    sum: u64,
    kind: u32,
    ranges: u32,
    payload: u64,
    txid: u64,
}

impl Staging {
    /// An empty log on `disk`.
    pub fn create(disk: Arc<dyn Disk>, id: u128) -> Staging {
        Staging {
            disk,
            id,
            at: 0,
            records: 0,
        }
    }

    /// Names this staging in the facts.
    pub fn id(&self) -> u128 {
        self.id
    }

    /// Bytes in the log.
    pub fn len(&self) -> u64 {
        self.at
    }

    /// Whether nothing was staged yet.
    pub fn is_empty(&self) -> bool {
        self.at == 0
    }

    /// Whether a record of `payload` bytes in `ranges` ranges still has room.
    pub fn fits(&self, ranges: usize, payload: usize) -> bool {
        let len = HEADER as u64 + ranges as u64 * 16 + payload as u64;
        self.at.saturating_add(len) <= self.disk.len()
    }

    /// Stages the bytes of blocks. Durable after the next `flush`.
    pub fn data(&mut self, ranges: &[BlockRange], payload: &[u8]) -> Result<(), MirrorError> {
        self.append(DATA, ranges, payload, Txid(0))
    }

    /// Stages that blocks become zeros. Durable after the next `flush`.
    pub fn zero(&mut self, ranges: &[BlockRange]) -> Result<(), MirrorError> {
        self.append(ZERO, ranges, &[], Txid(0))
    }

    /// Completes the log, durably.
    pub fn end(&mut self, end: &End) -> Result<(), MirrorError> {
        self.append(END, &end.log, &end.journal_superblock, end.consistent_at)?;
        if planted::is("switch-early") {
            return Ok(());
        }
        self.flush()
    }

    /// Makes what was staged durable.
    pub fn flush(&self) -> Result<(), MirrorError> {
        self.disk.flush().map_err(|source| io(&*self.disk, source))
    }

    fn append(
        &mut self,
        kind: u32,
        ranges: &[BlockRange],
        payload: &[u8],
        txid: Txid,
    ) -> Result<(), MirrorError> {
        let mut record = Vec::with_capacity(HEADER + ranges.len() * 16);
        record.extend_from_slice(&MAGIC);
        record.extend_from_slice(&[0; 8]);
        record.extend_from_slice(&self.id.to_le_bytes());
        record.extend_from_slice(&self.records.to_le_bytes());
        record.extend_from_slice(&kind.to_le_bytes());
        record.extend_from_slice(&(ranges.len() as u32).to_le_bytes());
        record.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        record.extend_from_slice(&txid.0.to_le_bytes());
        for range in ranges {
            record.extend_from_slice(&range.start.0.to_le_bytes());
            record.extend_from_slice(&range.len.to_le_bytes());
        }
        let sum = sum_of(&record, payload);
        record[8..16].copy_from_slice(&sum.to_le_bytes());
        let write = |bytes: &[u8], at: u64| {
            self.disk
                .write_at(bytes, at)
                .map_err(|source| io(&*self.disk, source))
        };
        write(&record, self.at)?;
        write(payload, self.at + record.len() as u64)?;
        self.at += (record.len() + payload.len()) as u64;
        self.records += 1;
        Ok(())
    }
}

/// Hands out every step of the complete log `id` on `disk`, in order. An error where the log is damaged or incomplete.
pub fn redo(
    disk: &dyn Disk,
    id: u128,
    mut step: impl FnMut(Step<'_>) -> Result<(), MirrorError>,
) -> Result<End, MirrorError> {
    let mut at = 0;
    let mut number = 0;
    loop {
        let (header, ranges, mut payload) = read_record(disk, id, at, number)?;
        at += (HEADER + ranges.len() * 16 + payload.len()) as u64;
        number += 1;
        match header.kind {
            DATA => step(Step::Data(&ranges, &mut payload))?,
            ZERO => step(Step::Zero(&ranges))?,
            _ => {
                return Ok(End {
                    consistent_at: Txid(header.txid),
                    log: ranges,
                    journal_superblock: payload,
                });
            }
        }
    }
}

fn read_record(
    disk: &dyn Disk,
    id: u128,
    at: u64,
    number: u64,
) -> Result<(Header, Vec<BlockRange>, Vec<u8>), MirrorError> {
    let damaged = |what: &str| MirrorError::Staging {
        name: disk.name(),
        detail: format!("record {number} at byte {at}: {what}"),
    };
    let read = |buf: &mut [u8], at: u64| {
        disk.read_at(buf, at).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => damaged("it goes past the end of the log"),
            _ => io(disk, source),
        })
    };
    let mut raw = [0; HEADER];
    read(&mut raw, at)?;
    let u32_at = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().expect("four bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(raw[at..at + 8].try_into().expect("eight bytes"));
    if raw[..8] != MAGIC || raw[16..32] != id.to_le_bytes() || u64_at(32) != number {
        return Err(damaged("it is not of this staging"));
    }
    let header = Header {
        sum: u64_at(8),
        kind: u32_at(40),
        ranges: u32_at(44),
        payload: u64_at(48),
        txid: u64_at(56),
    };
    if !(DATA..=END).contains(&header.kind)
        || header.ranges > MAX_RANGES
        || header.payload > MAX_PAYLOAD
    {
        return Err(damaged("its header says what can not be"));
    }
    let mut list = vec![0; header.ranges as usize * 16];
    read(&mut list, at + HEADER as u64)?;
    let mut payload = vec![0; header.payload as usize];
    read(&mut payload, at + (HEADER + list.len()) as u64)?;
    let record: Vec<u8> = raw.iter().chain(&list).copied().collect();
    if sum_of(&record, &payload) != header.sum {
        return Err(damaged("its checksum is wrong"));
    }
    let ranges = list
        .chunks_exact(16)
        .map(|pair| {
            let word = |at: usize| {
                u64::from_le_bytes(pair[at..at + 8].try_into().expect("chunks of sixteen"))
            };
            BlockRange::new(BlockNo(word(0)), word(8))
        })
        .collect();
    Ok((header, ranges, payload))
}

/// xxh3 of a record without its magic and its checksum.
fn sum_of(record: &[u8], payload: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&record[16..]);
    hash.update(payload);
    hash.digest()
}

fn io(disk: &dyn Disk, source: std::io::Error) -> MirrorError {
    MirrorError::StagingIo {
        name: disk.name(),
        source,
    }
}

#[cfg(test)]
mod tests;
