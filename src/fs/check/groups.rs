//! The superblock's fields beyond its geometry, and the group descriptors: what e2fsck does before its first pass. Claims the
//! volume's own blocks.

use super::{Check, Class};
use crate::ext4::features::{compat, incompat};
use crate::ext4::group_desc::{EXT4_BG_BLOCK_UNINIT, EXT4_BG_INODE_UNINIT};
use crate::ext4::{GroupDesc, Mmp};
use crate::units::{BlockNo, BlockRange, GroupNo};

impl Check<'_> {
    /// `false`: what follows can not be computed.
    pub(super) fn superblock_fields(&mut self) -> bool {
        let sb = &self.sb;
        let sink = &mut self.sink;
        let mut wrong = |field: &str, expected: String, found: u64| {
            let found = format_args!("{field} is {found}");
            sink.add(Class::Superblock, "superblock", expected, found);
        };
        if sb.s_rev_level() > 1 {
            wrong("s_rev_level", "0 or 1".into(), sb.s_rev_level().into());
        }
        let blocks = sb.s_blocks_count();
        if sb.s_r_blocks_count() > blocks / 2 {
            let expected = format!("at most half of {blocks} blocks");
            wrong("s_r_blocks_count", expected, sb.s_r_blocks_count());
        }
        if sb.s_log_cluster_size() != sb.s_log_block_size() {
            let found = sb.s_log_cluster_size().into();
            wrong("s_log_cluster_size", "s_log_block_size".into(), found);
        }
        if sb.s_clusters_per_group() != sb.s_blocks_per_group() {
            let found = sb.s_clusters_per_group().into();
            wrong("s_clusters_per_group", "s_blocks_per_group".into(), found);
        }
        let per_block = u64::from(sb.block_size()) / u64::from(sb.inode_size());
        let most = per_block * u64::from(sb.s_blocks_per_group()).saturating_sub(4);
        let per_group = u64::from(sb.s_inodes_per_group());
        if per_group > most {
            wrong("s_inodes_per_group", format!("at most {most}"), per_group);
        }
        let room = sb.inode_size() - 128;
        for (field, value) in [
            ("s_min_extra_isize", sb.s_min_extra_isize()),
            ("s_want_extra_isize", sb.s_want_extra_isize()),
        ] {
            let sound = value == 0 || (4..=room).contains(&value) && value.is_multiple_of(4);
            if room > 0 && !sound {
                let expected = format!("a multiple of 4 from 4 to {room}");
                wrong(field, expected, value.into());
            }
        }
        if sb.has_incompat(incompat::CSUM_SEED) && !sb.has_metadata_csum() {
            wrong("metadata_csum_seed", "metadata_csum with it".into(), 1);
        }
        let resize = sb.has_compat(compat::RESIZE_INODE);
        if resize && sb.has_meta_bg() {
            wrong("resize_inode", "not together with meta_bg".into(), 1);
        }
        if !resize && sb.s_reserved_gdt_blocks() != 0 {
            let found = sb.s_reserved_gdt_blocks().into();
            wrong(
                "s_reserved_gdt_blocks",
                "0 without resize_inode".into(),
                found,
            );
        }
        if sb.has_orphan_file() && !sb.has_compat(compat::HAS_JOURNAL) {
            wrong("orphan_file", "a journal with it".into(), 1);
        }
        let mut computable = true;
        for (field, value) in [
            ("s_blocks_per_group", sb.s_blocks_per_group()),
            ("s_inodes_per_group", sb.s_inodes_per_group()),
        ] {
            if !value.is_multiple_of(8) {
                wrong(field, "a multiple of 8".into(), value.into());
                computable = false;
            }
        }
        computable
    }

    /// `false`: some group's metadata is nowhere.
    pub(super) fn descriptors(&mut self) -> bool {
        let geometry = self.geometry;
        let mut current: Option<(BlockNo, Vec<u8>)> = None;
        for group in geometry.groups() {
            let (block, offset) = geometry.desc_location(group);
            if current.as_ref().is_none_or(|(at, _)| *at != block) {
                let Some(bytes) = self.block(block) else {
                    return false;
                };
                current = Some((block, bytes));
            }
            let bytes = current.as_ref().and_then(|(_, bytes)| bytes.get(offset..));
            match GroupDesc::decode_unverified(&self.sb, bytes.unwrap_or_default()) {
                Ok(desc) => self.groups.push(desc),
                Err(e) => {
                    let place = format_args!("group {group}");
                    self.sink.corrupt(Class::Group, place, &e);
                    return false;
                }
            }
        }
        let mut placed = true;
        for group in geometry.groups() {
            self.flags(group);
            placed &= self.places(group);
        }
        if placed {
            self.claim_system();
        }
        placed
    }

    fn flags(&mut self, group: GroupNo) {
        let desc = self.groups[group.0 as usize];
        let place = format_args!("group {group}");
        if let Err(e) = desc.verify(&self.sb, group) {
            self.sink.corrupt(Class::Group, place, &e);
        }
        let uninit = desc.bg_flags() & (EXT4_BG_BLOCK_UNINIT | EXT4_BG_INODE_UNINIT) != 0;
        if !self.sb.has_group_desc_csum() {
            if uninit || desc.bg_itable_unused() != 0 {
                let found = "uninitialised parts";
                self.sink.add(
                    Class::Group,
                    place,
                    "none without checksums of descriptors",
                    found,
                );
            }
            return;
        }
        if desc.bg_flags() & EXT4_BG_BLOCK_UNINIT != 0 && group.0 + 1 == self.geometry.groups_count
        {
            let found = "BLOCK_UNINIT is set";
            self.sink.add(
                Class::Group,
                place,
                "a written bitmap in the last group",
                found,
            );
        }
        let unused = desc.bg_itable_unused();
        if unused > desc.bg_free_inodes_count() || unused > self.geometry.inodes_per_group {
            let expected = format_args!("at most {} free inodes", desc.bg_free_inodes_count());
            let found = format_args!("bg_itable_unused is {unused}");
            self.sink.add(Class::Group, place, expected, found);
        }
    }

    fn places(&mut self, group: GroupNo) -> bool {
        let geometry = self.geometry;
        let desc = self.groups[group.0 as usize];
        let range = if self.sb.has_flex_bg() {
            let first = u64::from(geometry.first_data_block);
            BlockRange::new(BlockNo(first), geometry.blocks_count - first)
        } else {
            geometry.group_blocks(group)
        };
        let mut placed = true;
        let names = ["block bitmap", "inode bitmap", "inode table"];
        for (name, part) in names.iter().zip(desc.metadata(&geometry)) {
            let end = part.start.0.checked_add(part.len);
            let inside = part.start >= range.start && end.is_some_and(|end| end <= range.end().0);
            if !inside || part.start.0 == 0 {
                self.sink.add(
                    Class::Group,
                    format_args!("group {group}"),
                    format_args!("a place within blocks {range}"),
                    format_args!("the {name} at block {}", part.start),
                );
                placed = false;
            }
        }
        placed
    }

    fn claim_system(&mut self) {
        let geometry = self.geometry;
        let claim = |check: &mut Self, group: GroupNo, what: &str, range: BlockRange| {
            if range.len == 0 {
                return;
            }
            check.system.claim(range);
            if let Some(block) = check.blocks.claim(range) {
                check.sink.add(
                    Class::Twice,
                    format_args!("{what} of group {group}"),
                    "blocks of its own",
                    format_args!("block {block}, which other metadata has too"),
                );
            }
        };
        for group in geometry.groups() {
            let base = geometry.base_meta(group);
            if let Some(block) = base.superblock {
                claim(self, group, "superblock copy", BlockRange::new(block, 1));
            }
            claim(self, group, "descriptors", base.descriptors);
            claim(self, group, "reserved descriptor blocks", base.reserved);
        }
        for group in geometry.groups() {
            let desc = self.groups[group.0 as usize];
            let names = ["block bitmap", "inode bitmap", "inode table"];
            for (name, part) in names.iter().zip(desc.metadata(&geometry)) {
                claim(self, group, name, part);
            }
        }
        if self.sb.has_mmp() {
            self.mmp();
        }
    }

    fn mmp(&mut self) {
        let at = self.sb.s_mmp_block();
        let first = u64::from(self.geometry.first_data_block);
        if at <= first || at >= self.geometry.blocks_count {
            let found = format_args!("s_mmp_block is {at}");
            self.sink.add(
                Class::Superblock,
                "superblock",
                "a block of the volume",
                found,
            );
            return;
        }
        let block = BlockNo(at);
        if self.blocks.claim(BlockRange::new(block, 1)).is_some() {
            let found = format_args!("block {at}, which other metadata has too");
            self.sink
                .add(Class::Twice, "MMP block", "a block of its own", found);
        }
        if let Some(bytes) = self.block(block)
            && let Err(e) = Mmp::decode(&self.sb, &bytes)
        {
            self.sink
                .corrupt(Class::Superblock, format_args!("block {at}"), &e);
        }
    }
}
