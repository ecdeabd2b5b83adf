//! What directories hold: entries within their blocks, "." and "..", numbers and types of inodes, names once, names where the index
//! looks for them, checksums (e2fsck's pass 2).

use xxhash_rust::xxh3::xxh3_128;

use super::index::{Index, Slot};
use super::maps::Runs;
use super::{Check, Class};
use crate::ext4::dirent::TAIL_SIZE;
use crate::ext4::inode::reserved;
use crate::ext4::{DirLayout, FileType, htree};
use crate::units::{BlockNo, Ino};

/// Blocks of a directory that are read at a time.
const BATCH: u64 = 32;

/// A directory while its blocks are gone through.
struct Dir<'a> {
    /// In the list of directories.
    number: usize,
    ino: Ino,
    seed: u32,
    indexed: bool,
    index: Option<Index>,
    layout: DirLayout,
    names: &'a mut Vec<u128>,
}

impl Check<'_> {
    pub(super) fn directories(&mut self) {
        let mut names = Vec::new();
        let mut buf = Vec::new();
        for number in 0..self.dirs.len() {
            let dir = &mut self.dirs[number];
            let (ino, seed, indexed) = (dir.ino, dir.seed, dir.indexed);
            let runs = std::mem::take(&mut dir.runs);
            names.clear();
            // An index over nothing is found where the first block is missing.
            let index = match indexed && self.sb.has_dir_index() {
                true => self.index(ino, seed, &runs),
                false => None,
            };
            let mut dir = Dir {
                number,
                ino,
                seed,
                indexed,
                index,
                layout: DirLayout::new(&self.sb),
                names: &mut names,
            };
            if runs.block(0).is_none() {
                let place = format_args!("directory inode {ino}");
                self.sink
                    .add(Class::Directory, place, "a first block", "none");
            }
            self.blocks_of(&mut dir, &runs, &mut buf);
            names.sort_unstable();
            if let Some(at) = names.windows(2).position(|pair| pair[0] == pair[1]) {
                let _ = at;
                let place = format_args!("directory inode {ino}");
                self.sink.add(
                    Class::Directory,
                    place,
                    "each name once",
                    "a name that is there twice",
                );
            }
            self.dirs[number].runs = runs;
        }
    }

    fn blocks_of(&mut self, dir: &mut Dir<'_>, runs: &Runs, buf: &mut Vec<u8>) {
        let size = self.geometry.block_size as usize;
        for run in &runs.0 {
            let mut done = 0;
            while done < run.blocks.len {
                let n = (run.blocks.len - done).min(BATCH);
                buf.resize(n as usize * size, 0);
                let start = BlockNo(run.blocks.start.0 + done);
                let mut bytes = std::mem::take(buf);
                if self.blocks_at(start, &mut bytes) {
                    for (i, block) in bytes.chunks_exact(size).enumerate() {
                        self.directory_block(dir, run.at + done as u32 + i as u32, block);
                    }
                }
                *buf = bytes;
                done += n;
            }
        }
    }

    fn directory_block(&mut self, dir: &mut Dir<'_>, at: u32, block: &[u8]) {
        let slot = match &dir.index {
            Some(index) => index.slots.get(at as usize).copied(),
            // Without a root to start from: what looks like a part of an index is one.
            None if dir.indexed && htree::is_index_block(block) => Some(Slot::Node),
            None => None,
        };
        let leaf = slot != Some(Slot::Node);
        let ino = dir.ino;
        let place = format_args!("directory inode {ino}, its block {at}");
        let mut end = block.len();
        if leaf && dir.layout.tail {
            if let Err(e) = dir.layout.verify(dir.seed, block) {
                self.sink.corrupt(Class::Directory, place, &e);
            }
            end -= TAIL_SIZE;
        } else if !leaf && at > 0 {
            return; // one unused entry, which the index has looked at
        }
        let mut offset = 0;
        let mut nth = if at == 0 { 0 } else { 2 };
        while offset < end {
            let entry = match dir.layout.entry(block, offset) {
                Ok(entry) if offset + entry.rec_len <= end => entry,
                Ok(entry) => {
                    let expected = format_args!("an entry that ends at byte {end} at most");
                    let found = format_args!("{} bytes from {offset} on", entry.rec_len);
                    self.sink.add(Class::Directory, place, expected, found);
                    return;
                }
                Err(e) => {
                    self.sink.corrupt(Class::Directory, place, &e);
                    return;
                }
            };
            let code = block[offset + 7];
            offset += entry.rec_len;
            let place = format_args!(
                "directory inode {ino}, its block {at}, byte {}",
                entry.offset
            );
            let after = block.get(entry.offset + 8 + entry.name.len()).copied();
            match nth {
                0 if entry.ino != Some(ino) || entry.name != b"." || after != Some(0) => {
                    let found = "another entry";
                    self.sink.add(
                        Class::Directory,
                        place,
                        "\".\", the directory itself",
                        found,
                    );
                }
                1 if entry.ino.is_none() || entry.name != b".." || after != Some(0) => {
                    self.sink
                        .add(Class::Directory, place, "\"..\"", "another entry");
                }
                1 => self.dirs[dir.number].dotdot = entry.ino.map_or(0, |ino| ino.0),
                _ => {}
            }
            if let Some(target) = entry.ino {
                self.named(dir, (at, entry.offset), nth < 2, target, code, entry.name);
                if let (Some(Slot::Leaf(low, high)), Some(index)) = (slot, &dir.index) {
                    let hash = index.hasher.hash(entry.name).major;
                    if hash < low || hash > high {
                        let expected = format_args!("names with hashes from {low:#x} to {high:#x}");
                        let found = format_args!("one with {hash:#x}");
                        self.sink.add(Class::Index, place, expected, found);
                    }
                }
            }
            nth += 1;
        }
        if nth < 2 {
            self.sink.add(
                Class::Directory,
                place,
                "\".\" and \"..\"",
                "no such entries",
            );
        }
    }

    /// An entry that is in use.
    fn named(
        &mut self,
        dir: &mut Dir<'_>,
        at: (u32, usize),
        dots: bool,
        target: Ino,
        code: u8,
        name: &[u8],
    ) {
        let ino = dir.ino;
        let shown = String::from_utf8_lossy(name);
        let place = format_args!(
            "directory inode {ino}, its block {}, byte {}, name {shown:?}",
            at.0, at.1
        );
        let sink = &mut self.sink;
        let own = target.0 < self.sb.first_ino() && target != reserved::ROOT
            || [
                self.sb.s_usr_quota_inum(),
                self.sb.s_grp_quota_inum(),
                self.sb.s_prj_quota_inum(),
                self.sb.s_orphan_file_inum(),
            ]
            .contains(&target.0);
        if own {
            let found = format_args!("inode {target}, which is reserved");
            sink.add(Class::Directory, place, "an inode of a file", found);
            return;
        }
        if !dots && (target == ino || target == reserved::ROOT) {
            let found = format_args!("inode {target}, a directory above");
            sink.add(Class::Directory, place, "another inode", found);
        }
        if !dots {
            if name.is_empty()
                || name == b"."
                || name == b".."
                || name.iter().any(|b| matches!(b, 0 | b'/'))
            {
                sink.add(Class::Directory, place, "a name", "one that can not be");
            }
            dir.names.push(xxh3_128(name));
        }
        let Some(facts) = self.inodes.get_mut(target) else {
            let found = format_args!("inode {target}, which is not in use");
            sink.add(Class::Directory, place, "an inode in use", found);
            return;
        };
        facts.found = facts.found.saturating_add(1);
        let kind = facts.kind();
        let expected = if dir.layout.filetype { kind.code() } else { 0 };
        // 0 is "not recorded", which every reader knows.
        if code != expected && code != 0 {
            let expected = format_args!("file type {expected}");
            let found = format_args!("file type {code}");
            sink.add(Class::Directory, place, expected, found);
        }
        if !dots
            && kind == FileType::Directory
            && let Ok(child) = self.dirs.binary_search_by_key(&target, |dir| dir.ino)
        {
            let child = &mut self.dirs[child];
            if child.parent == 0 {
                child.parent = ino.0;
            } else {
                let found = format_args!("directory inode {target}, named in {} too", child.parent);
                sink.add(Class::Tree, place, "one name for each directory", found);
            }
        }
    }
}
