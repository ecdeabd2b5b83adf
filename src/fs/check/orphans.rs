//! Inodes that are unlinked but open, or being cut: the list through `s_last_orphan` and `i_dtime`, and the orphan file.

use super::maps::Runs;
use super::{Check, Class};
use crate::ext4::Inode;
use crate::ext4::features::ro_compat::ORPHAN_PRESENT;
use crate::ext4::orphan_file as noun;
use crate::units::Ino;

impl Check<'_> {
    pub(super) fn find_orphans(&mut self) {
        self.orphan_file();
        // Ends: it comes back to an inode at the latest after all of them.
        let mut next = self.sb.s_last_orphan();
        while next != 0 {
            match self.orphan(next, "the orphan list") {
                Some(inode) => next = inode.i_dtime(),
                None => break, // the rest can not be trusted
            }
        }
    }

    /// An inode that is said to be an orphan; `None`: it can not be one.
    fn orphan(&mut self, number: u32, from: &str) -> Option<Inode> {
        let (first, last) = (self.sb.first_ino(), self.sb.s_inodes_count());
        let place = from.to_owned();
        if number < first || number > last {
            let expected = format_args!("inodes from {first} to {last}");
            let found = format_args!("inode {number}");
            self.sink.add(Class::Orphans, place, expected, found);
            return None;
        }
        let inode = self
            .inode_at(Ino(number))
            .filter(|inode| inode.i_mode() != 0);
        if inode.is_none() {
            let found = format_args!("inode {number}, which is not");
            self.sink.add(Class::Orphans, place, "inodes in use", found);
            return None;
        }
        if !self.orphans.insert(number) {
            let found = format_args!("inode {number} again");
            self.sink
                .add(Class::Orphans, place, "each inode once", found);
            return None;
        }
        inode
    }

    /// The orphan file; its own blocks are claimed when its inode is scanned.
    fn orphan_file(&mut self) {
        let present = self.sb.has_ro_compat(ORPHAN_PRESENT);
        if !self.sb.has_orphan_file() {
            if present {
                let found = "orphan_present is set";
                self.sink.add(
                    Class::Orphans,
                    "superblock",
                    "no orphans without an orphan file",
                    found,
                );
            }
            return;
        }
        let ino = Ino(self.sb.s_orphan_file_inum());
        let place = format_args!("orphan file, inode {ino}");
        let Some(inode) = self.inode_at(ino).filter(Inode::is_reg) else {
            self.sink
                .add(Class::Orphans, place, "a regular file", "none");
            return;
        };
        let size = inode.i_size(&self.sb);
        let block_size = u64::from(self.geometry.block_size);
        let runs = self.runs_of(ino, &inode);
        if !size.is_multiple_of(block_size) || size / block_size != u64::from(runs.len()) {
            let found = format_args!("size {size} with {} blocks", runs.len());
            self.sink.add(Class::Orphans, place, "whole blocks", found);
        }
        let seed = inode.seed(&self.sb, ino);
        for run in &runs.0 {
            for block in run.blocks.blocks() {
                let Some(bytes) = self.block(block) else {
                    continue;
                };
                if let Err(e) = noun::verify(&self.sb, seed, block, &bytes) {
                    let place = format_args!("orphan file, block {block}");
                    self.sink.corrupt(Class::Orphans, place, &e);
                    continue;
                }
                for (_, ino) in noun::orphans(&bytes) {
                    self.orphan_slots += 1;
                    self.orphan(ino.0, "the orphan file");
                }
            }
        }
        let taken = self.orphan_slots > 0;
        // The kernel leaves the bit set while it has the volume mounted.
        let lazy = present && self.sb.has_recover() && !self.options.exact_superblock;
        if present != taken && !lazy {
            let found = format_args!(
                "{} orphans in the file, orphan_present is {present}",
                self.orphan_slots
            );
            self.sink
                .add(Class::Orphans, "superblock", "a flag that says so", found);
        }
    }

    /// Where a file's blocks are, without a word on what is wrong with its map: that is said when it is scanned.
    fn runs_of(&mut self, ino: Ino, inode: &Inode) -> Runs {
        let mut quiet = super::report::Sink::new(0);
        let mut seen = super::maps::BlockMap::new(&self.geometry);
        let whose = super::claims::Whose::Directory {
            most: u64::MAX,
            holes: true,
        };
        let mut claims = super::claims::Claims::new(&mut seen, &mut quiet, ino, whose);
        self.walk().visit(ino, inode, true, &mut claims);
        claims.runs
    }
}
