//! Ext4's own files: the journal's inode and the inode that holds the blocks reserved for more descriptors.

use super::{Check, Class};
use crate::ext4::Inode;
use crate::ext4::features::{compat, ro_compat};
use crate::ext4::inode::reserved;
use crate::ext4::layout::get;
use crate::units::{BlockNo, Ino};

impl Check<'_> {
    pub(super) fn special(&mut self) {
        self.journal_inode();
        self.resize_inode();
        if let Some(ino) = self.large_file
            && !self.sb.has_ro_compat(ro_compat::LARGE_FILE)
        {
            let found = format_args!("inode {ino} is a large file");
            self.sink.add(
                Class::Superblock,
                "superblock",
                "the feature large_file with it",
                found,
            );
        }
    }

    fn journal_inode(&mut self) {
        let ino = Ino(self.sb.s_journal_inum());
        if !self.sb.has_compat(compat::HAS_JOURNAL) || ino.0 == 0 {
            return;
        }
        let place = format_args!("journal, inode {ino}");
        let sound = |inode: &Inode| inode.is_reg() && inode.i_links_count() > 0;
        if self.inode_at(ino).is_none_or(|inode| !sound(&inode)) {
            self.sink
                .add(Class::Journal, place, "a file in use", "none");
        }
        if self.sb.s_journal_uuid() != [0; 16] {
            let found = "the identity of an external one";
            self.sink.add(
                Class::Journal,
                "superblock",
                "an internal journal only",
                found,
            );
        }
    }

    fn resize_inode(&mut self) {
        let Some(inode) = self.inode_at(reserved::RESIZE) else {
            return;
        };
        let i_block = inode.i_block();
        let place = "inode 7, which holds the blocks reserved for descriptors";
        if !self.sb.has_compat(compat::RESIZE_INODE) {
            if i_block.iter().any(|b| *b != 0) {
                let expected = "none without the feature resize_inode";
                self.sink.add(Class::Inode, place, expected, "blocks");
            }
            return;
        }
        let dind: u32 = get(&i_block, 13 * 4);
        let other = (0..15).any(|n| n != 13 && get::<u32>(&i_block, n * 4) != 0);
        let first = self.geometry.first_data_block;
        let outside = dind < first || u64::from(dind) >= self.geometry.blocks_count || dind == 0;
        // As e2fsck: a mode with that bit.
        if other || outside || inode.i_links_count() == 0 || inode.i_mode() & 0o100_000 == 0 {
            let expected = "a file with a block of two levels and no other";
            self.sink.add(Class::Inode, place, expected, "another");
            return;
        }
        let Some(table) = self.block(BlockNo(dind.into())) else {
            return;
        };
        let per_block = self.geometry.block_size / 4;
        let descriptors = self.geometry.desc_blocks();
        let backups: Vec<u64> = (self.geometry.groups().skip(1))
            .filter(|group| self.geometry.group_has_super(*group))
            .map(|group| u64::from(group.0) * u64::from(self.geometry.blocks_per_group))
            .collect();
        for n in 0..u32::from(self.sb.s_reserved_gdt_blocks()) {
            let slot = ((descriptors + n) % per_block) as usize;
            let block = u64::from(first) + 1 + u64::from(descriptors) + u64::from(n);
            let found: u32 = get(&table, slot * 4);
            if u64::from(found) != block {
                let expected = format_args!("block {block} in slot {slot}");
                let found = format_args!("block {found}");
                self.sink.add(Class::Inode, place, expected, found);
                return;
            }
            let Some(copies) = self.block(BlockNo(block)) else {
                return;
            };
            for (copy, offset) in copies.chunks_exact(4).zip(&backups) {
                let found: u32 = get(copy, 0);
                if u64::from(found) != block + offset {
                    let expected = format_args!("its copy at block {}", block + offset);
                    let found = format_args!("one at block {found}");
                    let place = format_args!("{place}, block {block}");
                    self.sink.add(Class::Inode, place, expected, found);
                    return;
                }
            }
        }
    }
}
