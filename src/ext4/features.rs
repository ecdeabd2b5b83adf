//! The three feature words of the superblock and what they let us do. Owns the one table of features: bit, name, and
//! whether this program may write a volume that has it. Never silent about a bit it does not know: it is named in hex.

use crate::ext4::Superblock;

/// Unknown-to-everybody incompat bit that marks a half-copied mirror: the kernel and e2fsck refuse such a volume.
pub const LOCKSTEP_INCOMPAT_GUARD: u32 = 0x8000_0000;

/// `s_feature_compat`: whoever does not know a bit may still write.
pub mod compat {
    #![allow(missing_docs, reason = "the names are the kernel's own")]
    pub const DIR_PREALLOC: u32 = 0x0001;
    pub const IMAGIC_INODES: u32 = 0x0002;
    pub const HAS_JOURNAL: u32 = 0x0004;
    pub const EXT_ATTR: u32 = 0x0008;
    pub const RESIZE_INODE: u32 = 0x0010;
    pub const DIR_INDEX: u32 = 0x0020;
    pub const SPARSE_SUPER2: u32 = 0x0200;
    pub const FAST_COMMIT: u32 = 0x0400;
    pub const STABLE_INODES: u32 = 0x0800;
    pub const ORPHAN_FILE: u32 = 0x1000;
}

/// `s_feature_incompat`: whoever does not know a bit may not even read.
pub mod incompat {
    #![allow(missing_docs, reason = "the names are the kernel's own")]
    pub const COMPRESSION: u32 = 0x0001;
    pub const FILETYPE: u32 = 0x0002;
    pub const RECOVER: u32 = 0x0004;
    pub const JOURNAL_DEV: u32 = 0x0008;
    pub const META_BG: u32 = 0x0010;
    pub const EXTENTS: u32 = 0x0040;
    pub const SIXTY_FOUR_BIT: u32 = 0x0080;
    pub const MMP: u32 = 0x0100;
    pub const FLEX_BG: u32 = 0x0200;
    pub const EA_INODE: u32 = 0x0400;
    pub const DIRDATA: u32 = 0x1000;
    pub const CSUM_SEED: u32 = 0x2000;
    pub const LARGEDIR: u32 = 0x4000;
    pub const INLINE_DATA: u32 = 0x8000;
    pub const ENCRYPT: u32 = 0x1_0000;
    pub const CASEFOLD: u32 = 0x2_0000;
}

/// `s_feature_ro_compat`: whoever does not know a bit may read but not write.
pub mod ro_compat {
    #![allow(missing_docs, reason = "the names are the kernel's own")]
    pub const SPARSE_SUPER: u32 = 0x0001;
    pub const LARGE_FILE: u32 = 0x0002;
    pub const BTREE_DIR: u32 = 0x0004;
    pub const HUGE_FILE: u32 = 0x0008;
    pub const GDT_CSUM: u32 = 0x0010;
    pub const DIR_NLINK: u32 = 0x0020;
    pub const EXTRA_ISIZE: u32 = 0x0040;
    pub const HAS_SNAPSHOT: u32 = 0x0080;
    pub const QUOTA: u32 = 0x0100;
    pub const BIGALLOC: u32 = 0x0200;
    pub const METADATA_CSUM: u32 = 0x0400;
    pub const REPLICA: u32 = 0x0800;
    pub const READONLY: u32 = 0x1000;
    pub const PROJECT: u32 = 0x2000;
    pub const SHARED_BLOCKS: u32 = 0x4000;
    pub const VERITY: u32 = 0x8000;
    pub const ORPHAN_PRESENT: u32 = 0x1_0000;
}

/// What may be done with a volume that has a feature.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Write,
    Read,
    Refuse,
}

const INCOMPAT: &[(u32, &str, Class)] = &[
    (incompat::COMPRESSION, "compression", Class::Refuse),
    (incompat::FILETYPE, "filetype", Class::Write),
    (incompat::RECOVER, "needs_recovery", Class::Write),
    (incompat::JOURNAL_DEV, "journal_dev", Class::Refuse),
    (incompat::META_BG, "meta_bg", Class::Write),
    (incompat::EXTENTS, "extent", Class::Write),
    (incompat::SIXTY_FOUR_BIT, "64bit", Class::Write),
    (incompat::MMP, "mmp", Class::Write),
    (incompat::FLEX_BG, "flex_bg", Class::Write),
    (incompat::EA_INODE, "ea_inode", Class::Refuse),
    (incompat::DIRDATA, "dirdata", Class::Refuse),
    (incompat::CSUM_SEED, "metadata_csum_seed", Class::Write),
    (incompat::LARGEDIR, "large_dir", Class::Write),
    (incompat::INLINE_DATA, "inline_data", Class::Refuse),
    (incompat::ENCRYPT, "encrypt", Class::Refuse),
    (incompat::CASEFOLD, "casefold", Class::Refuse),
];

// quota is read-only until the engine keeps the quota files: they would be wrong after the first write.
const RO_COMPAT: &[(u32, &str, Class)] = &[
    (ro_compat::SPARSE_SUPER, "sparse_super", Class::Write),
    (ro_compat::LARGE_FILE, "large_file", Class::Write),
    (ro_compat::BTREE_DIR, "btree_dir", Class::Read),
    (ro_compat::HUGE_FILE, "huge_file", Class::Write),
    (ro_compat::GDT_CSUM, "uninit_bg", Class::Write),
    (ro_compat::DIR_NLINK, "dir_nlink", Class::Write),
    (ro_compat::EXTRA_ISIZE, "extra_isize", Class::Write),
    (ro_compat::HAS_SNAPSHOT, "snapshot", Class::Read),
    (ro_compat::QUOTA, "quota", Class::Read),
    (ro_compat::BIGALLOC, "bigalloc", Class::Read),
    (ro_compat::METADATA_CSUM, "metadata_csum", Class::Write),
    (ro_compat::REPLICA, "replica", Class::Read),
    (ro_compat::READONLY, "read-only", Class::Read),
    (ro_compat::PROJECT, "project", Class::Write),
    (ro_compat::SHARED_BLOCKS, "shared_blocks", Class::Read),
    (ro_compat::VERITY, "verity", Class::Read),
    (ro_compat::ORPHAN_PRESENT, "orphan_present", Class::Write),
];

const COMPAT: &[(u32, &str, Class)] = &[
    (compat::DIR_PREALLOC, "dir_prealloc", Class::Write),
    (compat::IMAGIC_INODES, "imagic_inodes", Class::Write),
    (compat::HAS_JOURNAL, "has_journal", Class::Write),
    (compat::EXT_ATTR, "ext_attr", Class::Write),
    (compat::RESIZE_INODE, "resize_inode", Class::Write),
    (compat::DIR_INDEX, "dir_index", Class::Write),
    (compat::SPARSE_SUPER2, "sparse_super2", Class::Write),
    (compat::FAST_COMMIT, "fast_commit", Class::Write),
    (compat::STABLE_INODES, "stable_inodes", Class::Write),
    (compat::ORPHAN_FILE, "orphan_file", Class::Write),
];

/// What this program can do with a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    ReadWrite,
    /// Reading only; the reasons, one a feature.
    ReadOnly(Vec<String>),
    /// Nothing; the reasons, one a feature.
    Refused(Vec<String>),
}

/// Sentence for [`LOCKSTEP_INCOMPAT_GUARD`].
pub const GUARD_MESSAGE: &str =
    "this is a half-copied mirror: it becomes readable when its resynchronisation has finished";

/// Classifies a volume by its features (and the few other fields that decide what can be written).
pub fn access(sb: &Superblock) -> Access {
    let mut refused = Vec::new();
    let mut read_only = Vec::new();
    let mut word = |value: u32, table: &[(u32, &str, Class)], kind: &str, unknown: Class| {
        for bit in (0..32).map(|n| 1u32 << n).filter(|bit| value & bit != 0) {
            let known = table.iter().find(|row| row.0 == bit);
            let class = known.map_or(unknown, |row| row.2);
            let text = match known {
                _ if kind == "incompat" && bit == LOCKSTEP_INCOMPAT_GUARD => {
                    GUARD_MESSAGE.to_string()
                }
                Some((_, name, _)) => format!("feature {name} is not supported"),
                None => format!("unknown {kind} feature {bit:#x}"),
            };
            match class {
                Class::Write => {}
                Class::Read => read_only.push(text),
                Class::Refuse => refused.push(text),
            }
        }
    };
    word(sb.s_feature_incompat(), INCOMPAT, "incompat", Class::Refuse);
    word(
        sb.s_feature_ro_compat(),
        RO_COMPAT,
        "ro_compat",
        Class::Read,
    );
    word(sb.s_feature_compat(), COMPAT, "compat", Class::Write);

    if sb.block_size() > 4096 {
        refused.push(format!(
            "blocks of {} bytes are not supported: only 1024, 2048 and 4096",
            sb.block_size()
        ));
    }
    if sb.desc_size() > 64 {
        refused.push(format!(
            "group descriptors of {} bytes are not supported: only 32 and 64",
            sb.desc_size()
        ));
    }
    if !sb.has_compat(compat::HAS_JOURNAL) {
        read_only.push("there is no journal (feature has_journal)".to_string());
    } else if sb.s_journal_inum() == 0 {
        read_only.push("the journal is on another device".to_string());
    }
    if !sb.has_incompat(incompat::EXTENTS) {
        read_only.push("files are mapped without extents (feature extent)".to_string());
    }
    if sb.has_compat(compat::FAST_COMMIT) && sb.has_incompat(incompat::RECOVER) {
        read_only.push(
            "the journal may hold fast commits (feature fast_commit, needs_recovery set)"
                .to_string(),
        );
    }
    if sb.s_creator_os() == 1 {
        read_only.push("inodes are laid out for the Hurd".to_string());
    }
    if !refused.is_empty() {
        Access::Refused(refused)
    } else if !read_only.is_empty() {
        Access::ReadOnly(read_only)
    } else {
        Access::ReadWrite
    }
}

/// Every feature that is set, by mke2fs' names, unknown bits in hex. For people.
pub fn names(sb: &Superblock) -> Vec<String> {
    let words = [
        (sb.s_feature_compat(), COMPAT, "compat"),
        (sb.s_feature_incompat(), INCOMPAT, "incompat"),
        (sb.s_feature_ro_compat(), RO_COMPAT, "ro_compat"),
    ];
    let mut all = Vec::new();
    for (value, table, kind) in words {
        for bit in (0..32).map(|n| 1u32 << n).filter(|bit| value & bit != 0) {
            all.push(match table.iter().find(|row| row.0 == bit) {
                Some((_, name, _)) => (*name).to_string(),
                None => format!("{kind}:{bit:#x}"),
            });
        }
    }
    all
}
