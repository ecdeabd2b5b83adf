//! Extended attributes on disk, until `ext4` has them.

use crate::ext4::Superblock;
use crate::ext4::checksum::crc32c_raw;
use crate::units::BlockNo;

const MAGIC: u32 = 0xEA02_0000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    pub index: u8,
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

pub struct Header {
    pub h_refcount: u32,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}
fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
fn entry_size(name: usize) -> usize {
    (16 + name + 3) & !3
}

/// Entries from `start`; value offsets count from `base`.
fn decode(bytes: &[u8], start: usize, base: usize) -> Result<Vec<Attribute>, String> {
    let mut all = Vec::new();
    let mut at = start;
    let mut names_end = start;
    loop {
        if at + 4 > bytes.len() {
            return Err("entries without an end".into());
        }
        if word(bytes, at) == 0 {
            break;
        }
        let name_len = usize::from(bytes[at]);
        if at + entry_size(name_len) + 4 > bytes.len() {
            return Err(format!("entry at {at} runs over the end"));
        }
        names_end = at + entry_size(name_len) + 4;
        at += entry_size(name_len);
    }
    let mut at = start;
    while word(bytes, at) != 0 {
        let name_len = usize::from(bytes[at]);
        let offset = base + usize::from(half(bytes, at + 2));
        let size = word(bytes, at + 8) as usize;
        if word(bytes, at + 4) != 0 {
            return Err(format!("entry at {at}: e_value_inum"));
        }
        let end = offset.checked_add(size).ok_or("overflow")?;
        if size > 0 && (offset < names_end || end > bytes.len()) {
            return Err(format!("entry at {at}: value out of bounds"));
        }
        all.push(Attribute {
            index: bytes[at + 1],
            name: bytes[at + 16..at + 16 + name_len].to_vec(),
            value: if size > 0 {
                bytes[offset..end].to_vec()
            } else {
                Vec::new()
            },
        });
        at += entry_size(name_len);
    }
    Ok(all)
}

fn need(all: &[Attribute]) -> usize {
    4 + all
        .iter()
        .map(|a| entry_size(a.name.len()) + ((a.value.len() + 3) & !3))
        .sum::<usize>()
}

fn entry_hash(a: &Attribute) -> u32 {
    let mut hash = 0u32;
    for &b in &a.name {
        hash = hash.rotate_left(5) ^ u32::from(b);
    }
    for chunk in a.value.chunks(4) {
        let mut w = [0; 4];
        w[..chunk.len()].copy_from_slice(chunk);
        hash = hash.rotate_left(16) ^ u32::from_le_bytes(w);
    }
    hash
}

fn encode(bytes: &mut [u8], start: usize, base: usize, all: &[Attribute], hashes: bool) {
    bytes[start..].fill(0);
    let mut at = start;
    let mut end = bytes.len();
    for a in all {
        bytes[at] = a.name.len() as u8;
        bytes[at + 1] = a.index;
        if !a.value.is_empty() {
            end -= (a.value.len() + 3) & !3;
            bytes[end..end + a.value.len()].copy_from_slice(&a.value);
            bytes[at + 2..at + 4].copy_from_slice(&((end - base) as u16).to_le_bytes());
        }
        put(bytes, at + 8, a.value.len() as u32);
        if hashes {
            put(bytes, at + 12, entry_hash(a));
        }
        bytes[at + 16..at + 16 + a.name.len()].copy_from_slice(&a.name);
        at += entry_size(a.name.len());
    }
}

pub fn decode_ibody(bytes: &[u8]) -> Result<Vec<Attribute>, String> {
    if bytes.len() < 8 || word(bytes, 0) != MAGIC {
        return Ok(Vec::new());
    }
    decode(bytes, 4, 4)
}

pub fn fits_ibody(bytes: &[u8], all: &[Attribute]) -> bool {
    bytes.len() >= 8 && need(all) + 4 <= bytes.len()
}

pub fn encode_ibody(bytes: &mut [u8], all: &[Attribute]) -> Result<(), String> {
    if !fits_ibody(bytes, all) {
        return Err("no room".into());
    }
    encode(bytes, 4, 4, all, false);
    put(bytes, 0, if all.is_empty() { 0 } else { MAGIC });
    Ok(())
}

fn checksum(sb: &Superblock, at: BlockNo, block: &[u8]) -> u32 {
    let sum = crc32c_raw(sb.csum_seed(), &at.0.to_le_bytes());
    let sum = crc32c_raw(sum, &block[..16]);
    let sum = crc32c_raw(sum, &[0; 4]);
    crc32c_raw(sum, &block[20..])
}

fn seal(sb: &Superblock, at: BlockNo, block: &mut [u8]) {
    if sb.has_metadata_csum() {
        let sum = checksum(sb, at, block);
        put(block, 16, sum);
    }
}

pub fn decode_block(
    sb: &Superblock,
    at: BlockNo,
    block: &[u8],
) -> Result<(Header, Vec<Attribute>), String> {
    if word(block, 0) != MAGIC || word(block, 8) != 1 {
        return Err("no block of attributes".into());
    }
    if sb.has_metadata_csum() && checksum(sb, at, block) != word(block, 16) {
        return Err("checksum".into());
    }
    let h_refcount = word(block, 4);
    Ok((Header { h_refcount }, decode(block, 32, 0)?))
}

pub fn fits_block(sb: &Superblock, all: &[Attribute]) -> bool {
    need(all) + 32 <= sb.block_size() as usize
}

/// With a count of one.
pub fn encode_block(
    sb: &Superblock,
    at: BlockNo,
    block: &mut [u8],
    all: &[Attribute],
) -> Result<(), String> {
    if !fits_block(sb, all) {
        return Err("no room".into());
    }
    let mut sorted = all.to_vec();
    sorted.sort_by(|a, b| (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name)));
    block[..32].fill(0);
    encode(block, 32, 0, &sorted, true);
    put(block, 0, MAGIC);
    put(block, 4, 1);
    put(block, 8, 1);
    let mut hash = 0u32;
    for a in &sorted {
        let one = entry_hash(a);
        if one == 0 {
            hash = 0;
            break;
        }
        hash = hash.rotate_left(16) ^ one;
    }
    put(block, 12, hash);
    seal(sb, at, block);
    Ok(())
}

pub fn set_refcount(
    sb: &Superblock,
    at: BlockNo,
    block: &mut [u8],
    refcount: u32,
) -> Result<(), String> {
    put(block, 4, refcount);
    seal(sb, at, block);
    Ok(())
}
