//! The hash index of a directory: from the root down, which block is a node and which a leaf, and which hashes a leaf may hold.

use super::maps::Runs;
use super::{Check, Class};
use crate::ext4::htree::{self, DxBlock};
use crate::ext4::{DirLayout, Hasher};
use crate::units::Ino;

/// What the index says of a block of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Nothing refers to it.
    Unknown,
    /// The root or a node.
    Node,
    /// Names with hashes from the first to the second.
    Leaf(u32, u32),
}

/// A directory's index.
pub(super) struct Index {
    pub hasher: Hasher,
    pub slots: Vec<Slot>,
}

impl Check<'_> {
    /// `None`: the root can not be used.
    pub(super) fn index(&mut self, ino: Ino, seed: u32, runs: &Runs) -> Option<Index> {
        let layout = DirLayout::new(&self.sb);
        let bytes = self.block(runs.block(0)?)?;
        let place = format_args!("index of directory inode {ino}");
        let root = match DxBlock::decode_root(&layout, self.sb.has_large_dir(), &bytes) {
            Ok(root) => root,
            Err(e) => {
                self.sink.corrupt(Class::Index, place, &e);
                return None;
            }
        };
        let info = root.info?;
        if info.unused_flags & 1 != 0 {
            let found = format_args!("flags {:#x}", info.unused_flags);
            self.sink
                .add(Class::Index, place, "no incompatible flags", found);
        }
        if let Err(e) = htree::verify(&layout, seed, &bytes) {
            self.sink.corrupt(Class::Index, place, &e);
        }
        let mut index = Index {
            hasher: Hasher::new(&self.sb, info.hash_version),
            slots: vec![Slot::Unknown; runs.len() as usize],
        };
        index.slots[0] = Slot::Node;
        let levels = info.indirect_levels;
        self.below(&mut index, (ino, seed, runs), &root, levels, (0, u32::MAX));
        let unknown = index.slots.iter().position(|slot| *slot == Slot::Unknown);
        if let Some(block) = unknown {
            let found = format_args!("none to its block {block}");
            self.sink
                .add(Class::Index, place, "a way to every block", found);
        }
        Some(index)
    }

    /// The children of a root or node, which holds hashes `range`. Each block is gone into once.
    fn below(
        &mut self,
        index: &mut Index,
        dir: (Ino, u32, &Runs),
        node: &DxBlock,
        levels: u8,
        range: (u32, u32),
    ) {
        let (ino, seed, runs) = dir;
        for (i, entry) in node.entries.iter().enumerate() {
            let place = format_args!("index of directory inode {ino}");
            let low = if i == 0 { range.0 } else { entry.hash & !1 };
            let high = match node.entries.get(i + 1) {
                // Bit 0: names with the next one's hash begin here.
                Some(next) if next.hash & 1 == 0 => next.hash.saturating_sub(1),
                Some(next) => next.hash & !1,
                None => range.1,
            };
            let at = entry.block.0;
            let Some(slot) = index.slots.get_mut(at as usize) else {
                let expected = format_args!("blocks below {}", runs.len());
                let found = format_args!("block {at}");
                self.sink.add(Class::Index, place, expected, found);
                continue;
            };
            if *slot != Slot::Unknown {
                let found = format_args!("several to its block {at}");
                self.sink
                    .add(Class::Index, place, "one way to each block", found);
                continue;
            }
            if low < range.0 || high > range.1 {
                let expected = format_args!("hashes from {:#x} to {:#x}", range.0, range.1);
                let found = format_args!("{low:#x} to {high:#x} at its block {at}");
                self.sink.add(Class::Index, place, expected, found);
            }
            if levels == 0 {
                *slot = Slot::Leaf(low, high);
                continue;
            }
            *slot = Slot::Node;
            let Some(bytes) = runs.block(at).and_then(|block| self.block(block)) else {
                continue;
            };
            let layout = DirLayout::new(&self.sb);
            let place = format_args!("index of directory inode {ino}, its block {at}");
            match DxBlock::decode_node(&layout, &bytes) {
                Ok(child) => {
                    if let Err(e) = htree::verify(&layout, seed, &bytes) {
                        self.sink.corrupt(Class::Index, place, &e);
                    }
                    self.below(index, dir, &child, levels - 1, (low, high));
                }
                Err(e) => self.sink.corrupt(Class::Index, place, &e),
            }
        }
    }
}
