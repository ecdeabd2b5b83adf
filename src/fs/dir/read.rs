//! Listing a directory in pieces, with cookies that stay good while names come and go.
//!
//! A cookie says where to go on. It is `0` at first; after that what came with the last entry taken. Names that are in
//! the directory throughout are listed exactly once, whatever happens to others between two calls.
//!
//! * A directory that has an index, or that would get one when it grows (one block, dir_index on), is listed by hash:
//!   splits move names between blocks, but never past each other. The cookie is `1 << 62 | hash >> 1 << 31 | tie << 8 |
//!   rank`: `tie` is 23 bits of another hash of the name, and `rank` counts names that agree in all that (which takes
//!   chance 2^-54 for a pair, or intent: only names of more than one such kind, removed or added between two calls,
//!   could disturb each other). `.` and `..` come first, with cookies of their own.
//! * Any other directory is listed by place, as the kernel does; names never move in it. The cookie is the byte offset
//!   in the directory to go on from, and removed entries may have grown over it.
//!
//! Memory: the names of one block, or `BATCH` of them where several blocks must be sorted together.

use std::collections::BTreeMap;

use super::{DirFile, Layout, verify_any};
use crate::ext4::FileType;
use crate::fs::{FsError, htree};
use crate::units::{FileBlock, Ino};

/// One name of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadEntry<'a> {
    /// The inode it names.
    pub ino: Ino,
    /// What the entry says it is; `Unknown` where the volume does not record it.
    pub file_type: FileType,
    /// The name.
    pub name: &'a [u8],
    /// The cookie with which to go on behind this entry.
    pub next_cookie: u64,
}

/// Marks a cookie that is a hash.
const BY_HASH: u64 = 1 << 62;
/// The cookies behind `.` and `..` in a directory listed by hash: before every hash, and no byte offset.
const AFTER_DOT: u64 = (1 << 61) | 1;
const AFTER_DOTDOT: u64 = (1 << 61) | 2;
/// Most names kept at once, when more than a block of them must be sorted together.
const BATCH: usize = 4096;
/// Names that agree in hash and tie.
const MAX_RANK: u64 = 0xff;

/// Lists names from `cookie` on, until the end or until `each` returns false (that entry then counts as not taken).
pub fn read(
    dir: &impl DirFile,
    cookie: u64,
    each: &mut dyn FnMut(&ReadEntry<'_>) -> bool,
) -> Result<(), FsError> {
    let layout = Layout::of(dir);
    if layout.blocks == 0 {
        return Ok(());
    }
    let one_block = layout.dir_index && layout.blocks == 1;
    if layout.indexed {
        if let Some(tree) = htree::Tree::open(dir, &layout)? {
            return by_hash(dir, &layout, Some(&tree), cookie, each);
        }
    } else if one_block || cookie >= AFTER_DOT {
        return by_hash(dir, &layout, None, cookie, each);
    }
    by_place(dir, &layout, cookie, each)
}

fn by_place(
    dir: &impl DirFile,
    layout: &Layout,
    cookie: u64,
    each: &mut dyn FnMut(&ReadEntry<'_>) -> bool,
) -> Result<(), FsError> {
    let block_size = layout.block_size as u64;
    let first = cookie / block_size;
    if first >= u64::from(layout.blocks) {
        return Ok(());
    }
    for number in first as u32..layout.blocks {
        let block = FileBlock(number);
        let image = dir.get(block)?;
        verify_any(layout, block, &image)?;
        let base = u64::from(number) * block_size;
        let usable = layout.dirs.usable(layout.block_size);
        for entry in layout.dirs.entries(&image) {
            let entry = entry.map_err(|why| layout.corrupt(block, why))?;
            if base + (entry.offset as u64) < cookie {
                continue;
            }
            let Some(found) = layout.found(block, &entry)? else {
                continue;
            };
            let end = entry.offset + entry.rec_len;
            // Behind the last entry is the next block, not the checksum.
            let end = if end >= usable {
                layout.block_size
            } else {
                end
            };
            let taken = each(&ReadEntry {
                ino: found.ino,
                file_type: found.file_type,
                name: entry.name,
                next_cookie: base + end as u64,
            });
            if !taken {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The place of a name among all: its hash and its tie; the cookie is this and the rank.
fn place(hash: u32, name: &[u8]) -> u64 {
    let tie = xxhash_rust::xxh3::xxh3_64(name) >> (64 - 23);
    BY_HASH | (u64::from(hash >> 1) << 31) | (tie << 8)
}

fn by_hash(
    dir: &impl DirFile,
    layout: &Layout,
    tree: Option<&htree::Tree>,
    mut cookie: u64,
    each: &mut dyn FnMut(&ReadEntry<'_>) -> bool,
) -> Result<(), FsError> {
    for (name, after) in [(&b"."[..], AFTER_DOT), (b"..", AFTER_DOTDOT)] {
        if cookie >= after {
            continue;
        }
        if let Some(found) = super::scan(dir, layout, name)? {
            let taken = each(&ReadEntry {
                ino: found.ino,
                file_type: found.file_type,
                name,
                next_cookie: after,
            });
            if !taken {
                return Ok(());
            }
        }
        cookie = after;
    }
    let mut listing = Listing {
        after: cookie,
        names: BTreeMap::new(),
        overflowed: false,
    };
    let Some(tree) = tree else {
        let hasher = htree::NameHash::default_of(dir);
        let run: Vec<Piece> = (0..layout.blocks)
            .map(|number| Piece {
                block: FileBlock(number),
                low: 0,
                high: None,
            })
            .collect();
        listing.list(dir, layout, &run, &|name| hasher.of(name), each)?;
        return Ok(());
    };
    let start = if cookie & BY_HASH != 0 {
        ((cookie & !BY_HASH) >> 31 << 1) as u32
    } else {
        0
    };
    let mut path = tree.probe(dir, layout, start)?;
    loop {
        // One block of entries, and those that go on with its last hash: sorted together.
        let mut run = vec![Piece::of(tree, &path)];
        let next = loop {
            let next = tree.advance(dir, layout, &mut path)?;
            match next {
                Some(bound) if bound & 1 != 0 => run.push(Piece::of(tree, &path)),
                _ => break next,
            }
        };
        if !listing.list(dir, layout, &run, &|name| tree.hash(name), each)? || next.is_none() {
            return Ok(());
        }
    }
}

/// A block of entries and the hashes that may be in it: from `low` (its low bit aside) to below `high`.
struct Piece {
    block: FileBlock,
    low: u32,
    high: Option<u32>,
}

impl Piece {
    fn of(tree: &htree::Tree, path: &htree::Path) -> Piece {
        Piece {
            block: path.leaf(),
            low: path.bound(),
            high: tree.next_bound(path),
        }
    }
}

/// Lists names by place.
struct Listing {
    /// The cookie of the last name taken.
    after: u64,
    /// Names to list, sorted by place, then by name.
    names: BTreeMap<(u64, Vec<u8>), (Ino, FileType)>,
    /// Names were left out of `names`.
    overflowed: bool,
}

impl Listing {
    /// Lists the names of these blocks that are behind the cookie; `false` when the reader has enough.
    fn list(
        &mut self,
        dir: &impl DirFile,
        layout: &Layout,
        run: &[Piece],
        hash: &dyn Fn(&[u8]) -> u32,
        each: &mut dyn FnMut(&ReadEntry<'_>) -> bool,
    ) -> Result<bool, FsError> {
        // Each round lists the first `BATCH` names that are left, so it gets on; without overflow, one round.
        loop {
            self.names.clear();
            self.overflowed = false;
            for piece in run {
                self.add(dir, layout, piece, hash)?;
            }
            if !self.deliver(each) {
                return Ok(false);
            }
            if !self.overflowed {
                return Ok(true);
            }
        }
    }

    fn add(
        &mut self,
        dir: &impl DirFile,
        layout: &Layout,
        piece: &Piece,
        hash: &dyn Fn(&[u8]) -> u32,
    ) -> Result<(), FsError> {
        let block = piece.block;
        let image = dir.get(block)?;
        verify_any(layout, block, &image)?;
        for entry in layout.dirs.entries(&image) {
            let entry = entry.map_err(|why| layout.corrupt(block, why))?;
            let Some(found) = layout.found(block, &entry)? else {
                continue;
            };
            if entry.name == b"." || entry.name == b".." {
                continue;
            }
            let hash = hash(entry.name);
            if hash < piece.low & !1 || piece.high.is_some_and(|high| hash >= high) {
                return Err(layout.corrupt(
                    block,
                    format_args!(
                        "the hash {hash:#010x} of the name at byte {} does not belong there",
                        entry.offset
                    ),
                ));
            }
            let place = place(hash, entry.name);
            // Names of the place where the cookie stands are needed for their ranks, until the last rank is done.
            if place | MAX_RANK <= self.after {
                continue;
            }
            self.names
                .insert((place, entry.name.to_vec()), (found.ino, found.file_type));
            if self.names.len() > BATCH {
                self.names.pop_last();
                self.overflowed = true;
            }
        }
        Ok(())
    }

    fn deliver(&mut self, each: &mut dyn FnMut(&ReadEntry<'_>) -> bool) -> bool {
        let before = self.after;
        let mut rank = 0;
        let mut last_place = None;
        for ((place, name), (ino, file_type)) in &self.names {
            rank = if last_place == Some(*place) {
                rank + 1
            } else {
                0
            };
            last_place = Some(*place);
            let cookie = place | rank.min(MAX_RANK);
            if cookie <= before {
                continue;
            }
            let taken = each(&ReadEntry {
                ino: *ino,
                file_type: *file_type,
                name,
                next_cookie: cookie,
            });
            if !taken {
                return false;
            }
            self.after = cookie;
        }
        true
    }
}
