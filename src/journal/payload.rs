//! What Lockstep adds to a transaction, behind `r_count` of its revoke blocks: the kernel and e2fsck skip those bytes,
//! the block's checksum covers them. Big-endian. Never does I/O; no input makes it panic or allocate beyond its size.
//!
//! The payload's txid is the truth for replication. The tid in the blocks' headers is the log's own sequence, which jbd2
//! wants without gaps; on a master the two agree in their low 32 bits, on a mirror, where one transaction may stand for
//! a range of the master's, they need not.
//!
//! Each revoke block that carries a part has, right behind its records:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 4 | magic "LkPy" | a payload follows; a kernel's revoke block has zeros here |
//! | 4 | 1 | version | 2; 1 is read too and has no `confirmed`; guards against a later layout |
//! | 5 | 1 | flags | 0 |
//! | 6 | 2 | part | from 0 |
//! | 8 | 2 | parts | how many the transaction has; guards against a lost one |
//! | 10 | 2 | reserved | 0 |
//! | 12 | 4 | len | bytes of this part |
//! | 16 | 8 | txid | 64 bits |
//!
//! The parts, joined: generation 16, chain 8, confirmed 8, then four counts of 4 (refs, zeroed, freed, hints), then
//! refs (start 8, len 4, xxh3 8), zeroed and freed (start 8, len 8), hints (kind 1, then kind 1: inode 4; kind 2: parent
//! 4, length 2, name; kind 3: nothing).

use super::transaction::{Hint, Reference};
use crate::units::{BlockNo, BlockRange, Generation, Ino, Txid};

/// Bytes before each part.
pub const PART_HEADER_SIZE: usize = 24;

const PART_MAGIC: u32 = 0x4c6b_5079;
const VERSION: u8 = 2;
/// Without `confirmed`: whoever wrote it had committed it.
const VERSION_WITHOUT_CONFIRMED: u8 = 1;
const HINT_INODE: u8 = 1;
const HINT_ENTRY: u8 = 2;
const HINT_EVERYTHING: u8 = 3;
const REF_SIZE: usize = 20;
const RANGE_SIZE: usize = 16;

/// What travels inside a transaction beside its images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The transaction's id.
    pub txid: Txid,
    /// Who committed it.
    pub generation: Generation,
    /// Chain hash up to and with it.
    pub chain: u64,
    /// On a mirror, the last transaction that its master had confirmed when this one was appended; on a master, itself.
    pub confirmed: Txid,
    /// Blocks by reference.
    pub refs: Vec<Reference>,
    /// Allocated unwritten.
    pub zeroed: Vec<BlockRange>,
    /// Freed.
    pub freed: Vec<BlockRange>,
    /// For caches.
    pub hints: Vec<Hint>,
}

impl Payload {
    /// The joined parts' bytes, without the txid (it is in each part's header).
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(
            48 + REF_SIZE * self.refs.len()
                + RANGE_SIZE * (self.zeroed.len() + self.freed.len())
                + 16 * self.hints.len(),
        );
        out.extend(self.generation.0.to_be_bytes());
        out.extend(self.chain.to_be_bytes());
        out.extend(self.confirmed.0.to_be_bytes());
        for count in [
            self.refs.len(),
            self.zeroed.len(),
            self.freed.len(),
            self.hints.len(),
        ] {
            out.extend((count as u32).to_be_bytes());
        }
        for r in &self.refs {
            out.extend(r.range.start.0.to_be_bytes());
            out.extend((r.range.len as u32).to_be_bytes());
            out.extend(r.xxh3.to_be_bytes());
        }
        for range in self.zeroed.iter().chain(&self.freed) {
            out.extend(range.start.0.to_be_bytes());
            out.extend(range.len.to_be_bytes());
        }
        for hint in &self.hints {
            match hint {
                Hint::Inode(ino) => {
                    out.push(HINT_INODE);
                    out.extend(ino.0.to_be_bytes());
                }
                Hint::Entry { parent, name } => {
                    let name = &name[..name.len().min(usize::from(u16::MAX))];
                    out.push(HINT_ENTRY);
                    out.extend(parent.0.to_be_bytes());
                    out.extend((name.len() as u16).to_be_bytes());
                    out.extend(name);
                }
                Hint::EverythingChanged => out.push(HINT_EVERYTHING),
            }
        }
        out
    }

    /// Decodes joined parts; the error names the field.
    pub fn decode(txid: Txid, bytes: &[u8]) -> Result<Payload, &'static str> {
        Payload::decode_version(VERSION, txid, bytes)
    }

    fn decode_version(version: u8, txid: Txid, bytes: &[u8]) -> Result<Payload, &'static str> {
        let mut r = Reader(bytes);
        let generation = Generation(u128::from_be_bytes(r.array().ok_or("generation")?));
        let chain = r.u64().ok_or("chain")?;
        let confirmed = match version {
            VERSION_WITHOUT_CONFIRMED => txid,
            _ => Txid(r.u64().ok_or("confirmed")?),
        };
        let mut counts = [0usize; 4];
        for count in &mut counts {
            *count = r.u32().ok_or("counts")? as usize;
        }
        // Nothing is reserved from the counts: a wrong one must not allocate.
        let mut refs = Vec::new();
        for _ in 0..counts[0] {
            let start = r.u64().ok_or("refs")?;
            let len = u64::from(r.u32().ok_or("refs")?);
            refs.push(Reference {
                range: range(start, len).ok_or("refs")?,
                xxh3: r.u64().ok_or("refs")?,
            });
        }
        let mut ranges =
            |count: usize, what: &'static str| -> Result<Vec<BlockRange>, &'static str> {
                let mut out = Vec::new();
                for _ in 0..count {
                    let start = r.u64().ok_or(what)?;
                    let len = r.u64().ok_or(what)?;
                    out.push(range(start, len).ok_or(what)?);
                }
                Ok(out)
            };
        let zeroed = ranges(counts[1], "zeroed")?;
        let freed = ranges(counts[2], "freed")?;
        let mut hints = Vec::new();
        for _ in 0..counts[3] {
            hints.push(match r.array::<1>().ok_or("hints")?[0] {
                HINT_INODE => Hint::Inode(Ino(r.u32().ok_or("hints")?)),
                HINT_ENTRY => {
                    let parent = Ino(r.u32().ok_or("hints")?);
                    let len = u16::from_be_bytes(r.array().ok_or("hints")?);
                    let name = r.take(usize::from(len)).ok_or("hints")?.to_vec();
                    Hint::Entry { parent, name }
                }
                HINT_EVERYTHING => Hint::EverythingChanged,
                _ => return Err("hint kind"),
            });
        }
        if !r.0.is_empty() {
            return Err("length");
        }
        Ok(Payload {
            txid,
            generation,
            chain,
            confirmed,
            refs,
            zeroed,
            freed,
            hints,
        })
    }
}

/// A range that is not empty and does not wrap.
fn range(start: u64, len: u64) -> Option<BlockRange> {
    start.checked_add(len)?;
    (len > 0).then(|| BlockRange::new(BlockNo(start), len))
}

/// Builds one part: its header, then `bytes`.
pub fn encode_part(txid: Txid, part: u16, parts: u16, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(PART_HEADER_SIZE + bytes.len());
    out.extend(PART_MAGIC.to_be_bytes());
    out.extend([VERSION, 0]);
    out.extend(part.to_be_bytes());
    out.extend(parts.to_be_bytes());
    out.extend([0; 2]);
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend(txid.0.to_be_bytes());
    out.extend(bytes);
    out
}

/// Joins the parts of one transaction, in the order of its revoke blocks.
#[derive(Debug, Default)]
pub struct Parts {
    txid: Option<Txid>,
    version: u8,
    parts: u16,
    seen: u16,
    bytes: Vec<u8>,
}

impl Parts {
    /// Takes what stands behind the records of the next revoke block: nothing of ours, or a part.
    pub fn push(&mut self, rest: &[u8]) -> Result<(), &'static str> {
        let mut r = Reader(rest);
        if r.u32() != Some(PART_MAGIC) {
            return Ok(());
        }
        let [version, _flags] = r.array().ok_or("payload header")?;
        if ![VERSION, VERSION_WITHOUT_CONFIRMED].contains(&version)
            || (self.seen > 0 && version != self.version)
        {
            return Err("payload version");
        }
        let part = u16::from_be_bytes(r.array().ok_or("payload header")?);
        let parts = u16::from_be_bytes(r.array().ok_or("payload header")?);
        r.take(2).ok_or("payload header")?;
        let len = r.u32().ok_or("payload header")?;
        let txid = Txid(r.u64().ok_or("payload header")?);
        let bytes = r.take(len as usize).ok_or("payload length")?;
        if part != self.seen || part >= parts {
            return Err("payload part");
        }
        if *self.txid.get_or_insert(txid) != txid || (part > 0 && parts != self.parts) {
            return Err("payload part of another transaction");
        }
        self.version = version;
        self.parts = parts;
        self.seen += 1;
        self.bytes.extend(bytes);
        Ok(())
    }

    /// The payload; `None` when the transaction has none (the kernel made it).
    pub fn finish(self) -> Result<Option<Payload>, &'static str> {
        let Some(txid) = self.txid else {
            return Ok(None);
        };
        if self.seen != self.parts {
            return Err("payload parts");
        }
        Payload::decode_version(self.version, txid, &self.bytes).map(Some)
    }
}

/// Takes bytes from the front; `None` when there are too few.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}
