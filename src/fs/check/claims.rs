//! What an inode's map claims: marks blocks in use, finds those that are in use already, and keeps what the inode's size and
//! counts are judged by.

use std::fmt;

use super::maps::{BlockMap, Run, Runs};
use super::report::{Class, Sink};
use super::walk::Visitor;
use crate::ext4::Corrupt;
use crate::units::{BlockNo, BlockRange, Ino};

/// Whose map it is, where that changes the rules.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// A file or symbolic link.
    File,
    /// A directory: no holes, nothing unwritten, `most` blocks.
    Directory { most: u64, holes: bool },
    /// The inode that holds the blocks reserved for descriptors, which are claimed as what they are.
    Resize,
    /// The list of bad blocks, which may lie anywhere.
    Bad,
}

/// What was claimed for one inode.
pub(super) struct Claims<'a> {
    pub blocks: &'a mut BlockMap,
    pub sink: &'a mut Sink,
    pub ino: Ino,
    pub whose: Whose,
    /// Blocks, those of the map included.
    pub count: u64,
    /// The file block behind the last.
    pub end: u64,
    /// The last file block that is written.
    pub last_written: Option<u64>,
    /// Of a directory.
    pub runs: Runs,
}

impl<'a> Claims<'a> {
    pub fn new(blocks: &'a mut BlockMap, sink: &'a mut Sink, ino: Ino, whose: Whose) -> Claims<'a> {
        Claims {
            blocks,
            sink,
            ino,
            whose,
            count: 0,
            end: 0,
            last_written: None,
            runs: Runs::default(),
        }
    }

    fn claim(&mut self, range: BlockRange) -> bool {
        let taken = self.blocks.claim(range);
        if let Some(block) = taken
            && self.whose != Whose::Bad
        {
            self.sink.add(
                Class::Twice,
                format_args!("inode {}", self.ino),
                "blocks of its own",
                format_args!("block {block}, which something else has too"),
            );
        }
        taken.is_none()
    }

    fn found(&mut self, expected: impl fmt::Display, found: impl fmt::Display) {
        let place = format_args!("inode {}", self.ino);
        self.sink.add(Class::Map, place, expected, found);
    }
}

impl Visitor for Claims<'_> {
    fn node(&mut self, block: BlockNo, level: u32) -> bool {
        self.count += 1;
        if self.whose == Whose::Resize && level == 0 {
            return true;
        }
        // A block of a map that something else has is not gone into: so every one is read once at most.
        self.claim(BlockRange::new(block, 1))
    }

    fn data(&mut self, at: u32, blocks: BlockRange, unwritten: bool) {
        self.count += blocks.len;
        let at = u64::from(at);
        let end = at + blocks.len;
        if self.whose == Whose::Resize {
            self.end = self.end.max(end);
            return;
        }
        if at < self.end {
            let expected = format_args!("file block {} or more", self.end).to_string();
            self.found(
                expected,
                format_args!("a run that begins with file block {at}"),
            );
        }
        if let Whose::Directory { most, holes } = self.whose {
            if unwritten {
                self.found(
                    "written blocks in a directory",
                    format_args!("unwritten ones from {at} on"),
                );
            }
            if at > self.end && !holes {
                let found = format!("a hole at file block {}", self.end);
                self.found("no holes in a directory", found);
            }
            if end > most {
                self.found(
                    format_args!("at most {most} blocks"),
                    format_args!("a directory of {end}"),
                );
            }
            match self.runs.0.last_mut() {
                Some(run)
                    if run.blocks.end() == blocks.start
                        && u64::from(run.at) + run.blocks.len == at =>
                {
                    run.blocks.len += blocks.len;
                }
                _ if at >= self.end => self.runs.0.push(Run {
                    at: at as u32,
                    blocks,
                }),
                _ => {}
            }
        } else if !unwritten {
            self.last_written = Some(end - 1);
        }
        self.end = self.end.max(end);
        self.claim(blocks);
    }

    fn wrong(
        &mut self,
        block: Option<BlockNo>,
        expected: &dyn fmt::Display,
        found: &dyn fmt::Display,
    ) {
        match block {
            Some(block) => {
                let place = format_args!("inode {}, block {block}", self.ino);
                self.sink.add(Class::Map, place, expected, found);
            }
            None => self.found(expected, found),
        }
    }

    fn corrupt(&mut self, block: Option<BlockNo>, corrupt: &Corrupt) {
        let ino = self.ino;
        match block {
            Some(block) => {
                let place = format_args!("inode {ino}, block {block}");
                self.sink.corrupt(Class::Map, place, corrupt);
            }
            None => self
                .sink
                .corrupt(Class::Map, format_args!("inode {ino}"), corrupt),
        }
    }

    fn unreadable(&mut self, block: BlockNo, error: &dyn fmt::Display) {
        let place = format_args!("block {block} of inode {}", self.ino);
        self.sink.add(Class::Unreadable, place, "to be read", error);
    }
}
