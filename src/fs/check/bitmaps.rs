//! Bitmaps and counts against what was found in use (e2fsck's pass 5).

use super::{Check, Class};
use crate::ext4::FileType;
use crate::ext4::bitmap::{self, Kind};
use crate::units::GroupNo;

/// The first bit that differs, and whether it is set in `disk`.
fn first_difference(disk: &[u8], found: &[u8]) -> Option<(usize, bool)> {
    let at = disk.iter().zip(found).position(|(a, b)| a != b)?;
    let bit = (disk[at] ^ found[at]).trailing_zeros() as usize;
    Some((at * 8 + bit, disk[at] >> bit & 1 != 0))
}

/// Sets the bits from `bits` on.
fn padded(bytes: &[u8], bits: u32) -> Vec<u8> {
    let mut all = bytes.to_vec();
    bitmap::pad(&mut all, bits);
    all
}

impl Check<'_> {
    pub(super) fn bitmaps(&mut self) {
        let (mut free_blocks, mut free_inodes) = (0u64, 0u64);
        for group in self.geometry.groups() {
            free_blocks += u64::from(self.block_bitmap(group));
            free_inodes += u64::from(self.inode_bitmap(group));
        }
        if !self.options.exact_superblock {
            return;
        }
        for (field, found, expected) in [
            (
                "s_free_blocks_count",
                self.sb.s_free_blocks_count(),
                free_blocks,
            ),
            (
                "s_free_inodes_count",
                self.sb.s_free_inodes_count().into(),
                free_inodes,
            ),
        ] {
            if found != expected {
                let found = format_args!("{field} is {found}");
                self.sink.add(Class::Counts, "superblock", expected, found);
            }
        }
    }

    fn count(&mut self, group: GroupNo, field: &str, expected: u32, found: u32) {
        if expected != found {
            let place = format_args!("group {group}");
            let found = format_args!("{field} is {found}");
            self.sink.add(Class::Counts, place, expected, found);
        }
    }

    /// Free blocks of a group.
    fn block_bitmap(&mut self, group: GroupNo) -> u32 {
        let geometry = self.geometry;
        let desc = self.groups[group.0 as usize];
        let blocks = geometry.blocks_in_group(group);
        let found = padded(self.blocks.group(&geometry, group), blocks);
        let place = format_args!("block bitmap of group {group}");
        let first = geometry.group_first_block(group).0;
        let free = if desc.block_uninit(&self.sb) {
            let system = padded(self.system.group(&geometry, group), blocks);
            if let Some((bit, _)) = first_difference(&system, &found) {
                let found = format_args!("block {} is in use", first + bit as u64);
                self.sink.add(
                    Class::BlockBitmap,
                    place,
                    "nothing in an uninitialised group",
                    found,
                );
            }
            bitmap::count_free(&system, blocks)
        } else {
            let Some(disk) = self.block(desc.bg_block_bitmap()) else {
                return 0;
            };
            if let Err(e) = bitmap::verify(&self.sb, &desc, Kind::Blocks, &disk) {
                self.sink.corrupt(Class::BlockBitmap, place, &e);
            }
            let (bits, tail) = disk.split_at(found.len().min(disk.len()));
            if let Some((bit, set)) = first_difference(bits, &found) {
                let block = first + bit as u64;
                let word = if set { "in use" } else { "free" };
                let (expected, found) = if bit as u32 >= blocks {
                    (
                        "set bits behind the group's end".to_owned(),
                        format!("bit {bit} is clear"),
                    )
                } else {
                    let other = if set { "free" } else { "in use" };
                    (
                        format!("block {block} {other}, as was found"),
                        format!("{word} in the bitmap"),
                    )
                };
                self.sink.add(Class::BlockBitmap, place, expected, found);
            }
            self.tail(Class::BlockBitmap, group, tail);
            bitmap::count_free(bits, blocks)
        };
        self.count(
            group,
            "bg_free_blocks_count",
            free,
            desc.bg_free_blocks_count(),
        );
        free
    }

    fn tail(&mut self, class: Class, group: GroupNo, tail: &[u8]) {
        if tail.iter().any(|b| *b != 0xff) {
            let place = format_args!("{class} of group {group}");
            self.sink
                .add(class, place, "set bits behind the last", "clear ones");
        }
    }

    /// Free inodes of a group.
    fn inode_bitmap(&mut self, group: GroupNo) -> u32 {
        let geometry = self.geometry;
        let desc = self.groups[group.0 as usize];
        let inodes = geometry.inodes_per_group;
        let mut found = vec![0; inodes as usize / 8];
        let mut directories = 0;
        for (index, facts) in self.inodes.group(group).iter().enumerate() {
            if facts.used {
                bitmap::set(&mut found, index as u32);
                directories += u32::from(facts.kind() == FileType::Directory);
            }
        }
        let place = format_args!("inode bitmap of group {group}");
        let free = if desc.inode_uninit(&self.sb) {
            inodes
        } else {
            let Some(disk) = self.block(desc.bg_inode_bitmap()) else {
                return 0;
            };
            if let Err(e) = bitmap::verify(&self.sb, &desc, Kind::Inodes, &disk) {
                self.sink.corrupt(Class::InodeBitmap, place, &e);
            }
            let (bits, tail) = disk.split_at(found.len().min(disk.len()));
            if let Some((bit, set)) = first_difference(bits, &found) {
                let ino = geometry.ino(group, bit as u32);
                let (word, other) = if set {
                    ("in use", "free")
                } else {
                    ("free", "in use")
                };
                let expected = format_args!("inode {ino} {other}, as was found");
                let found = format_args!("{word} in the bitmap");
                self.sink.add(Class::InodeBitmap, place, expected, found);
            }
            self.tail(Class::InodeBitmap, group, tail);
            bitmap::count_free(bits, inodes)
        };
        self.count(
            group,
            "bg_free_inodes_count",
            free,
            desc.bg_free_inodes_count(),
        );
        self.count(
            group,
            "bg_used_dirs_count",
            directories,
            desc.bg_used_dirs_count(),
        );
        free
    }
}
