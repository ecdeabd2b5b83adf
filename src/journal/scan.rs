//! Reads one transaction of the log at a known place: its tags, revokes, payload and commit block. Used by recovery, by
//! the re-indexing after an opening and when a transaction is sent. Writes nothing.
//!
//! Invariants: no walk is longer than the log; bytes that do not carry the expected tid end the log, bytes that do and
//! are damaged are an error. What a torn, never committed transaction leaves behind is the end of the log, because its
//! commit block is missing.

use std::collections::BTreeMap;

use super::format::{BlockType, Header, crc32_be, unescape};
use super::log::{Log, Pos};
use super::payload::{Parts, Payload};
use super::superblock::{Checksums, LogFormat};
use super::{CorruptKind, JournalError};
use crate::units::BlockNo;

/// One image in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Its home.
    pub block: BlockNo,
    /// Where its bytes are.
    pub pos: Pos,
    /// Whether the magic was taken out of it.
    pub escaped: bool,
    /// The tag's checksum.
    pub checksum: u32,
    /// The tid that is mixed into the checksum.
    pub tid: u32,
}

/// One committed transaction, as its blocks describe it. The images' own checksums are not verified yet.
#[derive(Clone, Debug)]
pub struct Scanned {
    /// The tid of its blocks.
    pub tid: u32,
    /// Its first block.
    pub start: Pos,
    /// The block after its commit block.
    pub end: Pos,
    /// Its images, in the log's order.
    pub images: Vec<Logged>,
    /// Blocks whose images up to here must not be replayed.
    pub revoked: Vec<BlockNo>,
    /// What Lockstep added; `None` when the kernel made the transaction.
    pub payload: Option<Payload>,
}

/// What is at a place of the log.
#[derive(Debug)]
pub enum Found {
    /// A whole transaction.
    Transaction(Box<Scanned>),
    /// Something else: the log ends here.
    End,
}

/// Blocks that are read at once when headers are looked for.
const WINDOW_BLOCKS: u64 = 32;

/// Reads single blocks through a window, since the blocks of small transactions are neighbours.
struct Window<'a> {
    log: &'a Log,
    start: Pos,
    bytes: Vec<u8>,
}

impl Window<'_> {
    fn block(&mut self, pos: Pos, limit: Pos) -> Result<&[u8], JournalError> {
        let size = self.log.block_size();
        let held = (self.bytes.len() / size) as u64;
        if pos < self.start || pos >= self.start + held {
            let count = WINDOW_BLOCKS.min(limit.saturating_sub(pos)).max(1);
            self.bytes.resize(count as usize * size, 0);
            self.start = pos;
            self.log.read(pos, &mut self.bytes)?;
        }
        let at = (pos - self.start) as usize * size;
        Ok(&self.bytes[at..at + size])
    }
}

/// Walks transactions that follow each other.
pub struct Scanner<'a> {
    log: &'a Log,
    format: LogFormat,
    window: Window<'a>,
    /// Where the next transaction has to begin.
    pub pos: Pos,
    /// The tid it has to have.
    pub tid: u32,
    /// Not to be read past: one lap behind the start, or the known head.
    limit: Pos,
    previous_time: (u64, u32),
}

impl<'a> Scanner<'a> {
    /// A scanner at `pos`, where `tid` is expected; nothing from `limit` on is read.
    pub fn new(log: &'a Log, format: LogFormat, pos: Pos, tid: u32, limit: Pos) -> Scanner<'a> {
        Scanner {
            log,
            format,
            window: Window {
                log,
                start: 0,
                bytes: Vec::new(),
            },
            pos,
            tid,
            limit,
            previous_time: (0, 0),
        }
    }

    /// The tid in the header at the current place, if there is one: the first of a segment.
    pub fn peek_tid(&mut self) -> Result<Option<u32>, JournalError> {
        if self.pos >= self.limit {
            return Ok(None);
        }
        let block = self.window.block(self.pos, self.limit)?;
        Ok(Header::decode(block).map(|h| h.tid))
    }

    /// Reads the transaction at the current place and moves behind it.
    pub fn next(&mut self) -> Result<Found, JournalError> {
        let (start, tid, format) = (self.pos, self.tid, self.format);
        let mut at = start;
        let mut images = Vec::new();
        let mut revoked = Vec::new();
        let mut parts = Parts::default();
        let mut crc = !0;
        // The first thing that is wrong: it counts only when a commit block shows that all had been written.
        let mut damage: Option<JournalError> = None;
        loop {
            if at >= self.limit {
                return Ok(Found::End);
            }
            let log_block = self.log.block_at(at);
            let block = self.window.block(at, self.limit)?;
            let Some(header) = Header::decode(block) else {
                return Ok(Found::End);
            };
            if header.tid != tid {
                return Ok(Found::End);
            }
            match header.block_type {
                BlockType::DESCRIPTOR => {
                    if let Err((expected, found)) = format.check_seal(block) {
                        damage.get_or_insert_with(|| {
                            JournalError::corrupt(
                                log_block,
                                CorruptKind::Checksum,
                                format!("{expected:#010x}"),
                                format!("{found:#010x}"),
                            )
                        });
                    }
                    let tags = format.decode_tags(block);
                    let v1 = format.checksums == Checksums::V1;
                    if v1 {
                        crc = crc32_be(crc, block);
                    }
                    for (i, tag) in tags.iter().enumerate() {
                        images.push(Logged {
                            block: tag.block,
                            pos: at + 1 + i as u64,
                            escaped: tag.escaped,
                            checksum: tag.checksum,
                            tid,
                        });
                    }
                    at += 1 + tags.len() as u64;
                    if v1 && at <= self.limit {
                        for pos in at - tags.len() as u64..at {
                            crc = crc32_be(crc, self.window.block(pos, self.limit)?);
                        }
                    }
                }
                BlockType::REVOKE => {
                    if let Err((expected, found)) = format.check_seal(block) {
                        damage.get_or_insert_with(|| {
                            JournalError::corrupt(
                                log_block,
                                CorruptKind::Checksum,
                                format!("{expected:#010x}"),
                                format!("{found:#010x}"),
                            )
                        });
                    } else {
                        match format.decode_revoke(block) {
                            Ok((records, rest)) => {
                                revoked.extend(records);
                                if let Err(what) = parts.push(rest) {
                                    damage.get_or_insert_with(|| payload_damage(log_block, what));
                                }
                            }
                            Err(count) => {
                                damage.get_or_insert_with(|| {
                                    JournalError::corrupt(
                                        log_block,
                                        CorruptKind::Field("r_count"),
                                        format!("16..{}", format.content_end()),
                                        count,
                                    )
                                });
                            }
                        }
                    }
                    at += 1;
                }
                BlockType::COMMIT => {
                    let commit = format.decode_commit(block, crc);
                    let time = (commit.secs, commit.nanos);
                    if !commit.valid {
                        damage.get_or_insert_with(|| {
                            JournalError::corrupt(
                                log_block,
                                CorruptKind::Checksum,
                                "the commit block's",
                                format!("{:#010x}", commit.found),
                            )
                        });
                    }
                    if let Some(damage) = damage {
                        // Older than the transaction before it: a leftover of an earlier life of the log.
                        return if time < self.previous_time {
                            Ok(Found::End)
                        } else {
                            Err(damage)
                        };
                    }
                    let payload = parts
                        .finish()
                        .map_err(|what| payload_damage(log_block, what))?;
                    self.previous_time = time;
                    self.pos = at + 1;
                    self.tid = tid.wrapping_add(1);
                    return Ok(Found::Transaction(Box::new(Scanned {
                        tid,
                        start,
                        end: at + 1,
                        images,
                        revoked,
                        payload,
                    })));
                }
                // Unknown types end the log for the kernel too.
                _ => return Ok(Found::End),
            }
        }
    }
}

fn payload_damage(block: crate::units::LogBlock, what: &'static str) -> JournalError {
    JournalError::corrupt(block, CorruptKind::Field(what), "a whole payload", "damage")
}

/// Reads images from the log, neighbours at once, verifies their checksums and puts the magic back. Calls `each` with the
/// index in `images` and the bytes, in the order of the log. `images` may be in any order.
pub fn read_images(
    log: &Log,
    format: &LogFormat,
    images: &[Logged],
    mut each: impl FnMut(usize, &mut [u8]) -> Result<(), JournalError>,
) -> Result<(), JournalError> {
    /// Blocks that are read at once.
    const PIECE: usize = 256;
    let size = log.block_size();
    let mut order: Vec<usize> = (0..images.len()).collect();
    order.sort_unstable_by_key(|&i| images[i].pos);
    let mut buf = Vec::new();
    let mut at = 0;
    while at < order.len() {
        let first = images[order[at]].pos;
        let mut count = 1;
        while count < PIECE
            && at + count < order.len()
            && images[order[at + count]].pos == first + count as u64
        {
            count += 1;
        }
        buf.resize(count * size, 0);
        log.read(first, &mut buf)?;
        for (i, bytes) in order[at..at + count].iter().zip(buf.chunks_exact_mut(size)) {
            let image = &images[*i];
            let expected = format.tag_checksum(image.tid, bytes);
            if expected != image.checksum {
                return Err(JournalError::corrupt(
                    log.block_at(image.pos),
                    CorruptKind::Checksum,
                    format!("{:#010x} (image of block {})", image.checksum, image.block),
                    format!("{expected:#010x}"),
                ));
            }
            if image.escaped {
                unescape(bytes);
            }
            each(*i, bytes)?;
        }
        at += count;
    }
    Ok(())
}

/// The images that replaying transactions in order leaves: the newest of each block, unless revoked at or after it.
#[derive(Debug, Default)]
pub struct Replay {
    newest: BTreeMap<BlockNo, (u64, Logged)>,
    revoked: BTreeMap<BlockNo, u64>,
    count: u64,
}

impl Replay {
    /// Takes the next transaction.
    pub fn add(&mut self, txn: &Scanned) {
        for image in &txn.images {
            self.newest.insert(image.block, (self.count, *image));
        }
        for block in &txn.revoked {
            self.revoked.insert(*block, self.count);
        }
        self.count += 1;
    }

    /// What has to go home, by block, and how many blocks were left out as revoked.
    pub fn finish(self) -> (Vec<Logged>, u64) {
        let mut left_out = 0;
        let images = self
            .newest
            .into_iter()
            .filter(|(block, (order, _))| {
                let keep = self
                    .revoked
                    .get(block)
                    .is_none_or(|revoked| revoked < order);
                left_out += u64::from(!keep);
                keep
            })
            .map(|(_, (_, image))| image)
            .collect();
        (images, left_out)
    }
}
