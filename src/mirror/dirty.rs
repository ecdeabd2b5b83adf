//! The dirty map (the "intent log"): per mirror, the blocks in which its copy may differ from the master's.
//!
//! Owns one small file per mirror. Invariants: a bit is durable before the header says that its transaction is covered
//! (`through_txid`); a bit is cleared only after the mirror acknowledged the block durably, by the caller; a map that can
//! not be read is lost, never guessed. Memory is bounded by `MAX_PAGES` pages plus four bytes a page.
//!
//! Layout, little-endian, in units of 4096 bytes:
//!
//! | page | contents |
//! |---|---|
//! | 0, 1 | two header slots; the valid one with the higher serial counts (a torn header leaves the other) |
//! | 2.. | eight sectors of 512 bytes: 504 bytes of bits, then xxh3 of these; an all-zero sector is empty |
//!
//! A sector is the unit that a power cut leaves whole, so a torn page is a mixture of sectors, each old or new: both are
//! safe, because bits are set before they count and cleared after they are of no use.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::io::Disk;
use crate::units::{BlockNo, BlockRange, Generation, Txid};

const MAGIC: [u8; 8] = *b"LKSTDIRT";
const VERSION: u32 = 1;
const PAGE: usize = 4096;
const SECTOR: usize = 512;
const SECTOR_BITS: usize = SECTOR - 8;
const SECTORS: usize = PAGE / SECTOR;
const PAGE_WORDS: usize = SECTORS * SECTOR_BITS / 8;
const PAGE_BITS: u64 = (PAGE_WORDS * 64) as u64;
const HEADER_LEN: usize = 96;
/// Pages kept in memory: 4 MiB, which covers 126 GiB of 4 KiB blocks without a second read.
const MAX_PAGES: usize = 1024;

/// What can be wrong with a dirty map. Either way the caller treats the map as lost: a resync by comparison.
#[derive(Debug, thiserror::Error)]
pub enum DirtyError {
    /// The file can not be read or written.
    #[error("dirty map {name}: {source}")]
    Io {
        /// The file.
        name: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not a dirty map of this volume, or is damaged.
    #[error("dirty map {name}: {what}; the next resync compares checksums instead")]
    Corrupt {
        /// The file.
        name: String,
        /// What was expected and what was found.
        what: String,
    },
}

/// From where to where a map knows what changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// Generation of `through_txid`.
    pub generation: Generation,
    /// Changes after this transaction are recorded ...
    pub from_txid: Txid,
    /// ... up to and with this one.
    pub through_txid: Txid,
}

#[derive(Clone)]
struct Page {
    words: Box<[u64; PAGE_WORDS]>,
    changed: bool,
}

impl Page {
    fn empty() -> Page {
        Page {
            words: Box::new([0; PAGE_WORDS]),
            changed: false,
        }
    }

    fn count(&self) -> u32 {
        self.words.iter().map(|w| w.count_ones()).sum()
    }
}

/// A dirty map. One owner; the caller locks.
#[derive(Debug)]
pub struct DirtyMap {
    disk: Arc<dyn Disk>,
    volume_id: u128,
    blocks_count: u64,
    serial: u64,
    coverage: Option<Coverage>,
    header_changed: bool,
    pages: BTreeMap<u64, Page>,
    counts: Vec<u32>,
    bits_set: u64,
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Page({} bits)", self.count())
    }
}

impl DirtyMap {
    /// Bytes that the file of a map of `blocks_count` blocks has.
    pub fn file_len(blocks_count: u64) -> u64 {
        (2 + blocks_count.div_ceil(PAGE_BITS)) * PAGE as u64
    }

    /// A new, inactive, empty map on `disk`, whatever was there. Its space is taken now: a mirror that cracks while the disk
    /// of the maps is full needs it. Durable after the next `flush`.
    pub fn create(
        disk: Arc<dyn Disk>,
        volume_id: u128,
        blocks_count: u64,
    ) -> Result<DirtyMap, DirtyError> {
        let mut map = DirtyMap::bare(disk, volume_id, blocks_count)?;
        let len = map.disk.len();
        map.disk.zero(0, len).map_err(|source| map.io(source))?;
        match map.disk.preallocate(0, len) {
            Err(error) if error.kind() != io::ErrorKind::Unsupported => return Err(map.io(error)),
            _ => {}
        }
        map.header_changed = true;
        map.flush()?;
        Ok(map)
    }

    /// Opens the map on `disk`; every page is read and checked once.
    pub fn open(
        disk: Arc<dyn Disk>,
        volume_id: u128,
        blocks_count: u64,
    ) -> Result<DirtyMap, DirtyError> {
        let mut map = DirtyMap::bare(disk, volume_id, blocks_count)?;
        map.read_header()?;
        for number in 0..map.counts.len() as u64 {
            if map.disk.is_hole((2 + number) * PAGE as u64, PAGE as u64) {
                continue;
            }
            let count = map.read_page(number)?.count();
            map.counts[number as usize] = count;
            map.bits_set += u64::from(count);
        }
        Ok(map)
    }

    fn bare(
        disk: Arc<dyn Disk>,
        volume_id: u128,
        blocks_count: u64,
    ) -> Result<DirtyMap, DirtyError> {
        let need = DirtyMap::file_len(blocks_count);
        if disk.len() < need {
            return Err(DirtyError::Corrupt {
                name: disk.name(),
                what: format!("expected at least {need} bytes, found {}", disk.len()),
            });
        }
        Ok(DirtyMap {
            disk,
            volume_id,
            blocks_count,
            serial: 0,
            coverage: None,
            header_changed: false,
            pages: BTreeMap::new(),
            counts: vec![0; blocks_count.div_ceil(PAGE_BITS) as usize],
            bits_set: 0,
        })
    }

    /// What the map covers; `None` while the mirror has not cracked.
    pub fn coverage(&self) -> Option<Coverage> {
        self.coverage
    }

    /// Number of blocks recorded as dirty.
    pub fn count(&self) -> u64 {
        self.bits_set
    }

    /// Starts the coverage, or widens it, if it reaches to `from`: of what lies between, the map knows nothing. Counts after
    /// the next `flush`, which writes all bits first.
    pub fn cover(&mut self, generation: Generation, from: Txid, through: Txid) {
        let from_txid = self
            .coverage
            .filter(|covered| covered.through_txid >= from)
            .map_or(from, |covered| covered.from_txid.min(from));
        self.coverage = Some(Coverage {
            generation,
            from_txid,
            through_txid: through,
        });
        self.header_changed = true;
    }

    /// Ends the coverage: the mirror has everything. The map must be empty.
    pub fn retire(&mut self) {
        assert_eq!(self.bits_set, 0, "a map with dirty bits is still needed");
        self.coverage = None;
        self.header_changed = true;
    }

    /// Marks the part of `range` that lies in the volume.
    pub fn set(&mut self, range: BlockRange) -> Result<(), DirtyError> {
        self.change(range, true)
    }

    /// Unmarks `range`: the mirror has it durably.
    pub fn clear(&mut self, range: BlockRange) -> Result<(), DirtyError> {
        self.change(range, false)
    }

    fn change(&mut self, range: BlockRange, to: bool) -> Result<(), DirtyError> {
        let end = range
            .start
            .0
            .saturating_add(range.len)
            .min(self.blocks_count);
        let mut at = range.start.0;
        while at < end {
            let number = at / PAGE_BITS;
            let stop = end.min((number + 1) * PAGE_BITS);
            if !to && self.counts[number as usize] == 0 {
                at = stop;
                continue;
            }
            let base = number * PAGE_BITS;
            let page = self.page(number)?;
            let mut changed: i64 = 0;
            let mut bit = at - base;
            while bit < stop - base {
                let word = (bit / 64) as usize;
                let low = bit % 64;
                let width = (64 - low).min(stop - base - bit);
                let mask = (u64::MAX >> (64 - width)) << low;
                let old = page.words[word];
                let new = if to { old | mask } else { old & !mask };
                changed += i64::from(new.count_ones()) - i64::from(old.count_ones());
                page.words[word] = new;
                bit += width;
            }
            if changed != 0 {
                page.changed = true;
                let count = &mut self.counts[number as usize];
                *count = count.wrapping_add_signed(changed as i32);
                self.bits_set = self.bits_set.wrapping_add_signed(changed);
            }
            at = stop;
        }
        Ok(())
    }

    /// Whether `block` is marked.
    pub fn test(&mut self, block: BlockNo) -> Result<bool, DirtyError> {
        if block.0 >= self.blocks_count || self.counts[(block.0 / PAGE_BITS) as usize] == 0 {
            return Ok(false);
        }
        let page = self.page(block.0 / PAGE_BITS)?;
        let bit = block.0 % PAGE_BITS;
        Ok(page.words[(bit / 64) as usize] >> (bit % 64) & 1 == 1)
    }

    /// The first run of marked blocks at or after `from`, at most `max` blocks long.
    pub fn next_set(&mut self, from: BlockNo, max: u64) -> Result<Option<BlockRange>, DirtyError> {
        let mut at = from.0;
        while at < self.blocks_count {
            let number = at / PAGE_BITS;
            let base = number * PAGE_BITS;
            if self.counts[number as usize] == 0 {
                at = base + PAGE_BITS;
                continue;
            }
            let page = self.page(number)?;
            match find(&page.words, at - base, true) {
                None => at = base + PAGE_BITS,
                Some(first) => {
                    let end = find(&page.words, first, false).unwrap_or(PAGE_BITS);
                    return Ok(Some(BlockRange::new(
                        BlockNo(base + first),
                        (end - first).min(max),
                    )));
                }
            }
        }
        Ok(None)
    }

    fn page(&mut self, number: u64) -> Result<&mut Page, DirtyError> {
        if !self.pages.contains_key(&number) {
            if self.pages.len() >= MAX_PAGES {
                self.write_pages()?;
                self.pages.clear();
            }
            let page = match self.counts[number as usize] {
                0 => Page::empty(),
                _ => self.read_page(number)?,
            };
            self.pages.insert(number, page);
        }
        Ok(self.pages.get_mut(&number).expect("inserted above"))
    }

    fn read_page(&self, number: u64) -> Result<Page, DirtyError> {
        let mut raw = [0; PAGE];
        self.disk
            .read_at(&mut raw, (2 + number) * PAGE as u64)
            .map_err(|source| self.io(source))?;
        let mut page = Page::empty();
        for (index, sector) in raw.chunks_exact(SECTOR).enumerate() {
            let (bits, sum) = sector.split_at(SECTOR_BITS);
            let sum = u64::from_le_bytes(sum.try_into().expect("eight bytes are left"));
            if sum == 0 && bits.iter().all(|b| *b == 0) {
                continue;
            }
            if sum != xxh3_64(bits) {
                return Err(self.corrupt(format!(
                    "checksum of sector {index} of page {number} is wrong"
                )));
            }
            for (word, bytes) in bits.chunks_exact(8).enumerate() {
                page.words[index * SECTOR_BITS / 8 + word] =
                    u64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
            }
        }
        Ok(page)
    }

    fn write_pages(&mut self) -> Result<(), DirtyError> {
        for (number, page) in self.pages.iter_mut().filter(|(_, page)| page.changed) {
            let mut raw = [0; PAGE];
            for (index, sector) in raw.chunks_exact_mut(SECTOR).enumerate() {
                let (bits, sum) = sector.split_at_mut(SECTOR_BITS);
                for (word, bytes) in bits.chunks_exact_mut(8).enumerate() {
                    bytes
                        .copy_from_slice(&page.words[index * SECTOR_BITS / 8 + word].to_le_bytes());
                }
                if bits.iter().any(|b| *b != 0) {
                    sum.copy_from_slice(&xxh3_64(bits).to_le_bytes());
                }
            }
            self.disk
                .write_at(&raw, (2 + number) * PAGE as u64)
                .map_err(|source| DirtyError::Io {
                    name: self.disk.name(),
                    source,
                })?;
            page.changed = false;
        }
        Ok(())
    }

    /// Makes the bits durable, then the coverage. Does nothing when nothing changed.
    pub fn flush(&mut self) -> Result<(), DirtyError> {
        if !self.header_changed && self.pages.values().all(|page| !page.changed) {
            return Ok(());
        }
        self.write_pages()?;
        self.disk.flush().map_err(|source| self.io(source))?;
        if self.header_changed {
            self.serial += 1;
            let slot = self.serial % 2 * PAGE as u64;
            self.disk
                .write_at(&self.encode_header(), slot)
                .map_err(|source| self.io(source))?;
            self.disk.flush().map_err(|source| self.io(source))?;
            self.header_changed = false;
        }
        Ok(())
    }

    fn encode_header(&self) -> [u8; SECTOR] {
        let mut raw = [0; SECTOR];
        raw[0..8].copy_from_slice(&MAGIC);
        raw[8..12].copy_from_slice(&VERSION.to_le_bytes());
        raw[12..16].copy_from_slice(&u32::from(self.coverage.is_some()).to_le_bytes());
        raw[16..24].copy_from_slice(&self.serial.to_le_bytes());
        raw[24..40].copy_from_slice(&self.volume_id.to_le_bytes());
        raw[40..48].copy_from_slice(&self.blocks_count.to_le_bytes());
        if let Some(coverage) = self.coverage {
            raw[48..64].copy_from_slice(&coverage.generation.0.to_le_bytes());
            raw[64..72].copy_from_slice(&coverage.from_txid.0.to_le_bytes());
            raw[72..80].copy_from_slice(&coverage.through_txid.0.to_le_bytes());
        }
        let sum = xxh3_64(&raw[..HEADER_LEN - 8]);
        raw[HEADER_LEN - 8..HEADER_LEN].copy_from_slice(&sum.to_le_bytes());
        raw
    }

    fn read_header(&mut self) -> Result<(), DirtyError> {
        let mut found = false;
        for slot in 0..2 {
            let mut raw = [0; SECTOR];
            self.disk
                .read_at(&mut raw, slot * PAGE as u64)
                .map_err(|source| self.io(source))?;
            let u32_at =
                |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().expect("four bytes"));
            let u64_at =
                |at: usize| u64::from_le_bytes(raw[at..at + 8].try_into().expect("eight bytes"));
            let u128_at = |at: usize| {
                u128::from_le_bytes(raw[at..at + 16].try_into().expect("sixteen bytes"))
            };
            if raw[0..8] != MAGIC || u64_at(HEADER_LEN - 8) != xxh3_64(&raw[..HEADER_LEN - 8]) {
                continue;
            }
            if u32_at(8) != VERSION {
                return Err(
                    self.corrupt(format!("expected version {VERSION}, found {}", u32_at(8)))
                );
            }
            if u128_at(24) != self.volume_id || u64_at(40) != self.blocks_count {
                return Err(self.corrupt("it belongs to another volume".to_string()));
            }
            if found && u64_at(16) <= self.serial {
                continue;
            }
            found = true;
            self.serial = u64_at(16);
            self.coverage = (u32_at(12) != 0).then(|| Coverage {
                generation: Generation(u128_at(48)),
                from_txid: Txid(u64_at(64)),
                through_txid: Txid(u64_at(72)),
            });
        }
        match found {
            true => Ok(()),
            false => Err(self.corrupt("neither header is valid".to_string())),
        }
    }

    fn io(&self, source: std::io::Error) -> DirtyError {
        DirtyError::Io {
            name: self.disk.name(),
            source,
        }
    }

    fn corrupt(&self, what: String) -> DirtyError {
        DirtyError::Corrupt {
            name: self.disk.name(),
            what,
        }
    }
}

/// The first bit at or after `from` that has the value `value`.
fn find(words: &[u64; PAGE_WORDS], from: u64, value: bool) -> Option<u64> {
    let mut at = from;
    while at < PAGE_BITS {
        let word = words[(at / 64) as usize];
        let word = (if value { word } else { !word }) >> (at % 64);
        if word != 0 {
            return Some(at + u64::from(word.trailing_zeros()));
        }
        at = (at / 64 + 1) * 64;
    }
    None
}
