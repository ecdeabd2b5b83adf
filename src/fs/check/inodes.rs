//! Every inode of the used parts of the tables: what its fields may say together, and what its map claims (e2fsck's pass 1).

use super::claims::{Claims, Whose};
use super::maps::{Directory, Facts};
use super::walk::Walk;
use super::{Check, Class};
use crate::ext4::extent::ExtentHeader;
use crate::ext4::features::compat;
use crate::ext4::inode::{flags, reserved};
use crate::ext4::{FileType, Inode};
use crate::units::{BlockNo, GroupNo, Ino};

/// Bytes of the inode tables that are read at a time.
const CHUNK: usize = 1 << 17;
/// `i_flags`: an inode of AFS.
const IMAGIC: u32 = 0x2000;
/// A regular file from this size on needs the feature large_file, bytes.
const LARGE_FILE: u64 = 1 << 31;

impl Check<'_> {
    pub(super) fn scan_inodes(&mut self) {
        let geometry = self.geometry;
        let block_size = geometry.block_size as usize;
        let inode_size = usize::from(geometry.inode_size);
        let mut buf = Vec::new();
        for group in geometry.groups() {
            let inodes = self.inodes_used(group.0 as usize);
            self.inodes.open(group, inodes);
            let table = self.groups[group.0 as usize].bg_inode_table();
            let per_chunk = (CHUNK / inode_size) as u32;
            let mut first = 0;
            while first < inodes {
                let n = per_chunk.min(inodes - first);
                let bytes = n as usize * inode_size;
                buf.resize(bytes.next_multiple_of(block_size), 0);
                let (block, _) = geometry.inode_place(table, first);
                self.chunk(group, first, block, &mut buf, n);
                first += n;
            }
        }
    }

    fn chunk(&mut self, group: GroupNo, first: u32, block: BlockNo, buf: &mut [u8], n: u32) {
        if !self.blocks_at(block, buf) {
            return;
        }
        let size = usize::from(self.geometry.inode_size);
        for (i, raw) in buf.chunks_exact(size).take(n as usize).enumerate() {
            let ino = self.geometry.ino(group, first + i as u32);
            self.inode(ino, raw);
        }
    }

    fn inode(&mut self, ino: Ino, raw: &[u8]) {
        let own = ino.0 < self.sb.first_ino() || ino.0 == self.sb.s_orphan_file_inum();
        let zero = raw.iter().all(|b| *b == 0);
        if zero && !own {
            return; // an orphan that is not in use was found with the list
        }
        let place = format_args!("inode {ino}");
        let inode = match Inode::decode_unverified(&self.sb, raw) {
            Ok(inode) => inode,
            Err(e) => {
                // One that is not in use may hold anything, if its checksum agrees; without a layout it has none.
                if raw[0x1A..0x1C] != [0, 0] || own || self.sb.has_metadata_csum() {
                    self.sink.corrupt(Class::Inode, place, &e);
                }
                return;
            }
        };
        if !zero && let Err(e) = inode.verify(&self.sb, ino) {
            self.sink.corrupt(Class::Inode, place, &e);
        }
        let orphan = self.is_orphan(ino);
        let dtime = inode.i_dtime();
        if dtime != 0 && self.low_dtime && dtime < self.sb.s_inodes_count() && !orphan {
            let found = format_args!("i_dtime is {dtime}, a link of the orphan list");
            self.sink
                .add(Class::Orphans, place, "an inode of that list", found);
        }
        if inode.i_links_count() == 0 && !orphan && !own && !self.is_quota(ino) {
            if inode.i_mode() != 0 && dtime == 0 {
                let found = "no links, and no time of deletion";
                self.sink
                    .add(Class::Inode, place, "a time of deletion", found);
            }
            return;
        }
        let facts = Facts::new(inode.file_type(), inode.i_links_count());
        self.inodes.set(ino, facts);
        self.map_flags(ino, &inode);
        if !self.special_inode(ino, &inode) {
            self.fields(ino, &inode, orphan);
            self.kind(ino, &inode);
            let attributes = self.ibody(ino, &inode);
            debug_assert!(attributes <= usize::from(self.geometry.inode_size));
            self.claims(ino, &inode, orphan);
        }
    }

    fn is_quota(&self, ino: Ino) -> bool {
        self.quota_inodes()
            .iter()
            .any(|(number, _)| *number == ino.0)
    }

    fn wrong(&mut self, ino: Ino, expected: &str, found: impl std::fmt::Display) {
        let place = format_args!("inode {ino}");
        self.sink.add(Class::Inode, place, expected, found);
    }

    /// Flags that say how `i_block` is to be read.
    fn map_flags(&mut self, ino: Ino, inode: &Inode) {
        if inode.has_flag(flags::INLINE_DATA | flags::ENCRYPT | flags::CASEFOLD) {
            let found = format_args!("flags {:#x}", inode.i_flags());
            self.wrong(ino, "no flags of features that the volume lacks", found);
        }
        if inode.has_extents() && !self.has_extents() {
            self.wrong(ino, "a block map, as the features say", "an extent tree");
        }
        let mapped = inode.is_reg() || inode.is_dir();
        let header = ExtentHeader::decode(&inode.i_block());
        if !inode.has_extents()
            && self.has_extents()
            && mapped
            && header.is_ok_and(|h| h.eh_max >= 2)
        {
            self.wrong(ino, "the flag of extents", "an extent tree without it");
        }
    }

    /// The inodes of ext4's own. `true`: there is nothing more to check.
    fn special_inode(&mut self, ino: Ino, inode: &Inode) -> bool {
        let quota = self.quota_inodes();
        let used = if ino == reserved::ROOT {
            if !inode.is_dir() {
                self.wrong(ino, "the root directory", "no directory");
            }
            return false;
        } else if ino == reserved::BAD {
            if inode.i_mode() != 0
                || inode.i_uid() != 0
                || inode.i_gid() != 0
                || inode.i_links_count() != 0
                || inode.i_file_acl(&self.sb).is_some()
            {
                self.wrong(ino, "only a list of bad blocks", "fields of a file");
            }
            self.bad_blocks(ino, inode);
            return true;
        } else if ino == reserved::JOURNAL {
            self.sb.s_journal_inum() == ino.0
        } else if let Some((_, used)) = quota.iter().find(|(number, _)| *number == ino.0) {
            *used
        } else if ino.0 == self.sb.s_orphan_file_inum() {
            self.sb.has_orphan_file()
        } else if ino.0 < self.sb.first_ino() {
            let sound = match ino {
                reserved::BOOT_LOADER => !inode.is_dir(),
                reserved::RESIZE => inode.i_mode() == 0 || inode.is_reg(),
                _ => inode.i_mode() == 0,
            };
            if !sound {
                let found = format_args!("mode {:#o}", inode.i_mode());
                self.wrong(ino, "a reserved inode that is not in use", found);
            }
            self.claims(ino, inode, false);
            return true;
        } else {
            return false;
        };
        if used {
            if !inode.is_reg() {
                let found = format_args!("mode {:#o}", inode.i_mode());
                self.wrong(ino, "a regular file", found);
            }
            self.claims(ino, inode, false);
            return true;
        }
        let first = &inode.i_block()[..4];
        if inode.i_links_count() != 0 || inode.i_blocks_lo() != 0 || first != [0; 4] {
            self.wrong(ino, "an inode that is not in use", "links or blocks");
        }
        ino.0 < self.sb.first_ino()
    }

    fn fields(&mut self, ino: Ino, inode: &Inode, orphan: bool) {
        if inode.i_dtime() != 0 && !orphan {
            let found = format_args!("i_dtime is {}", inode.i_dtime());
            self.wrong(ino, "no time of deletion on an inode in use", found);
        }
        if inode.i_obso_faddr() != 0 {
            let found = format_args!("i_faddr is {}", inode.i_obso_faddr());
            self.wrong(ino, "0", found);
        }
        if !self.sb.has_64bit() && inode.l_i_file_acl_high() != 0 {
            let found = format_args!("i_file_acl_high is {}", inode.l_i_file_acl_high());
            self.wrong(ino, "0 without 64bit", found);
        }
        if !self.sb.has_huge_file() && inode.l_i_blocks_high() != 0 {
            let found = format_args!("i_blocks_hi is {}", inode.l_i_blocks_high());
            self.wrong(ino, "0 without huge_file", found);
        }
        if inode.has_flag(IMAGIC) && !self.sb.has_compat(compat::IMAGIC_INODES) {
            self.wrong(ino, "no imagic flag", "one");
        }
        let isize = inode.i_extra_isize();
        if isize != 0 && isize < 4 {
            let found = format_args!("i_extra_isize is {isize}");
            self.wrong(ino, "4 or more", found);
        }
        if inode.i_file_acl(&self.sb).is_some() && !self.sb.has_compat(compat::EXT_ATTR) {
            self.wrong(ino, "no attribute block without ext_attr", "one");
        }
        if inode.has_flag(flags::INDEX) && !(inode.is_dir() && self.sb.has_dir_index()) {
            let expected = "an index only in directories, with the feature dir_index";
            self.wrong(ino, expected, "the flag of an index");
        }
    }

    fn kind(&mut self, ino: Ino, inode: &Inode) {
        match inode.file_type() {
            FileType::Regular | FileType::Directory => {}
            FileType::Symlink => self.symlink(ino, inode),
            FileType::Unknown => {
                let found = format_args!("mode {:#o}", inode.i_mode());
                self.wrong(ino, "a type of file", found);
            }
            _ => {
                if inode.has_flag(flags::INDEX | flags::EXTENTS) {
                    let found = format_args!("flags {:#x}", inode.i_flags());
                    self.wrong(
                        ino,
                        "no index and no extents in a device, pipe or socket",
                        found,
                    );
                }
                let rest = inode.i_block()[16..].iter().any(|b| *b != 0);
                if rest && inode.has_flag(flags::IMMUTABLE | flags::APPEND) {
                    self.wrong(ino, "a device number only", "more in i_block");
                }
                if inode.i_size_lo() != 0 || inode.i_size_high() != 0 {
                    let found = format_args!("size {}", inode.i_size_lo());
                    self.wrong(ino, "size 0 in a device, pipe or socket", found);
                }
            }
        }
    }

    fn symlink(&mut self, ino: Ino, inode: &Inode) {
        let size = inode.i_size_lo() as usize;
        if size == 0 || inode.i_size_high() != 0 || inode.has_flag(flags::INDEX) {
            let found = format_args!("size {size}, flags {:#x}", inode.i_flags());
            return self.wrong(ino, "a target", found);
        }
        let fast = size < 60;
        if fast != inode.is_fast_symlink(&self.sb) {
            let found = format_args!("size {size}, {} sectors", inode.i_blocks(&self.sb));
            return self.wrong(
                ino,
                "a target in the inode below 60 bytes, else in a block",
                found,
            );
        }
        let i_block = inode.i_block();
        let ends = |bytes: &[u8]| bytes.iter().position(|b| *b == 0) == Some(size);
        if fast {
            if inode.has_extents() {
                self.wrong(
                    ino,
                    "no extents where the target is in the inode",
                    "their flag",
                );
            } else if !ends(&i_block) {
                self.wrong(
                    ino,
                    "a target that ends where the size says",
                    "another length",
                );
            }
            return;
        }
        struct First(Option<BlockNo>, u64);
        impl super::walk::Visitor for First {
            fn node(&mut self, _: BlockNo, _: u32) -> bool {
                self.1 += 2;
                false
            }
            fn data(&mut self, at: u32, blocks: crate::units::BlockRange, _: bool) {
                self.1 += blocks.len + u64::from(at);
                self.0 = Some(blocks.start);
            }
            fn wrong(
                &mut self,
                _: Option<BlockNo>,
                _: &dyn std::fmt::Display,
                _: &dyn std::fmt::Display,
            ) {
            }
            fn corrupt(&mut self, _: Option<BlockNo>, _: &crate::ext4::Corrupt) {}
            fn unreadable(&mut self, _: BlockNo, _: &dyn std::fmt::Display) {}
        }
        let mut first = First(None, 0);
        self.walk().visit(ino, inode, true, &mut first);
        let First(Some(block), 1) = first else {
            return self.wrong(ino, "a target in one block", "another map");
        };
        if let Some(bytes) = self.block(block)
            && !ends(&bytes)
        {
            self.wrong(
                ino,
                "a target that ends where the size says",
                "another length",
            );
        }
    }

    fn bad_blocks(&mut self, ino: Ino, inode: &Inode) {
        let walk = Walk {
            reader: self.reader,
            sb: &self.sb,
            blocks_count: self.geometry.blocks_count,
        };
        let mut claims = Claims::new(&mut self.blocks, &mut self.sink, ino, Whose::Bad);
        walk.visit(ino, inode, true, &mut claims);
    }

    /// What the inode's map and attribute block claim, and whether size and i_blocks agree with it.
    fn claims(&mut self, ino: Ino, inode: &Inode, orphan: bool) {
        let attributes = self.attribute_block(ino, inode);
        let mapped = match inode.file_type() {
            FileType::Regular | FileType::Directory => true,
            FileType::Symlink => !inode.is_fast_symlink(&self.sb),
            _ => false,
        };
        let is_dir = inode.is_dir();
        let whose = if ino == reserved::RESIZE {
            Whose::Resize
        } else if is_dir {
            let large = self.sb.has_large_dir();
            Whose::Directory {
                most: match large || inode.i_size_high() != 0 {
                    true => u64::MAX,
                    false => 1 << (21 - self.sb.s_log_block_size()),
                },
                holes: large && !inode.has_extents(),
            }
        } else {
            Whose::File
        };
        let walk = Walk {
            reader: self.reader,
            sb: &self.sb,
            blocks_count: self.geometry.blocks_count,
        };
        let mut claims = Claims::new(&mut self.blocks, &mut self.sink, ino, whose);
        if mapped {
            walk.visit(ino, inode, orphan, &mut claims);
        }
        let Claims {
            count,
            end,
            last_written,
            runs,
            ..
        } = claims;
        let unlinked = orphan && inode.i_links_count() == 0;
        if !orphan {
            self.size(ino, inode, end, last_written);
        }
        if is_dir && count == 0 && !unlinked {
            self.wrong(ino, "a directory with blocks", "none");
        }
        self.sectors(ino, inode, count + attributes);
        if is_dir && !unlinked {
            self.dirs.push(Directory {
                ino,
                seed: inode.seed(&self.sb, ino),
                indexed: inode.has_flag(flags::INDEX),
                parent: 0,
                dotdot: 0,
                runs,
            });
        }
    }

    fn size(&mut self, ino: Ino, inode: &Inode, end: u64, last_written: Option<u64>) {
        let block = u64::from(self.geometry.block_size);
        let size = u64::from(inode.i_size_lo()) | u64::from(inode.i_size_high()) << 32;
        let found = format_args!("size {size}");
        if inode.is_dir() {
            if size != end * block {
                let expected = format_args!("size {}, its blocks", end * block).to_string();
                self.wrong(ino, &expected, found);
            }
            return;
        }
        if inode.is_symlink() {
            return;
        }
        if let Some(last) = last_written
            && size < last * block
            && !inode.has_flag(flags::VERITY)
        {
            let expected = format_args!("a size that reaches into block {last}").to_string();
            self.wrong(ino, &expected, found);
        }
        let most = if inode.has_extents() {
            (1 << (32 + self.sb.block_bits())) - 1
        } else {
            let per = block / 4;
            (12 + per + per * per + per * per * per) * block
        };
        if size > most {
            let expected = format_args!("at most {most} bytes").to_string();
            self.wrong(ino, &expected, found);
        }
        if inode.is_reg() && size >= LARGE_FILE {
            self.large_file.get_or_insert(ino);
        }
    }

    fn sectors(&mut self, ino: Ino, inode: &Inode, blocks: u64) {
        let huge = self.sb.has_huge_file();
        let in_blocks = huge && inode.has_flag(flags::HUGE_FILE);
        let expected = match in_blocks {
            true => blocks,
            false => blocks * u64::from(self.geometry.block_size / 512),
        };
        let mut found = u64::from(inode.i_blocks_lo());
        if huge {
            found |= u64::from(inode.l_i_blocks_high()) << 32;
        }
        if found != expected || (in_blocks && inode.l_i_blocks_high() != 0) {
            let place = format_args!("inode {ino}");
            let expected = format_args!("i_blocks {expected}");
            let found = format_args!("i_blocks {found}");
            self.sink.add(Class::Inode, place, expected, found);
        }
    }
}
