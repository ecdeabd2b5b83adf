//! Checks a volume as e2fsck does, in this process, without writing: everything that e2fsck's passes look at, read through the
//! journal's overlay, so that a volume whose log is not empty is judged as it would be after replay.
//!
//! Owns the rules of a consistent ext4 as a whole. Never writes, never repairs, never starts a program, and trusts nothing that
//! it reads: whatever the bytes, it ends with findings, without a panic and in time proportional to the volume's metadata (every
//! block of a map is gone into once).
//!
//! Memory: one bit for each block (two where groups are uninitialised), eight bytes for each inode in the used parts of the inode
//! tables, the runs of each directory, sixteen bytes for each name of the largest directory, and a bounded list of findings.
//!
//! The state must not change meanwhile: the caller holds still what it checks, or the findings are of no state at all.
//!
//! Where it differs from `e2fsck -fn` on purpose:
//! - files that are unlinked but open, or being cut, are orphans and in order here; e2fsck -n does not follow their list;
//! - stricter: the orphan list itself, depths below the root of an extent tree, a name twice in different blocks of a directory,
//!   names of equal hash on both sides of an index entry that does not say so, the hash of an attribute block;
//! - not looked at: what quota files hold, times that lie in the future (there is no clock here), features that the engine
//!   refuses altogether ([`Report::unchecked`]).

mod bitmaps;
mod claims;
mod dirs;
mod groups;
mod index;
mod inodes;
mod links;
mod maps;
mod orphans;
mod report;
mod special;
pub(in crate::fs) mod walk;
mod xattrs;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

pub use report::{Class, Finding, Report};

use crate::ext4::features::{self, Access, compat, incompat, ro_compat};
use crate::ext4::{Geometry, GroupDesc, Inode, Superblock};
use crate::fs::meta::superblock_place;
use crate::fs::{FsError, How, open_volume};
use crate::journal::Journal;
use crate::units::{BlockNo, Ino, Txid};
use crate::volume::Volume;
use maps::{BlockMap, Directory, InodeMap};
use report::Sink;
use walk::Walk;

/// Reading the state that is to be checked.
pub trait Reader {
    /// Bytes of a block.
    fn block_size(&self) -> u32;
    /// Blocks that there are.
    fn blocks_count(&self) -> u64;
    /// Fills `buf`, whole blocks, with the blocks from `start` on.
    ///
    /// # Errors
    /// Whatever the medium says.
    fn read(&self, start: BlockNo, buf: &mut [u8]) -> Result<(), FsError>;
}

/// As the last published transaction left it: the journal's overlay, else home.
impl Reader for Journal {
    fn block_size(&self) -> u32 {
        self.volume().block_size()
    }

    fn blocks_count(&self) -> u64 {
        self.volume().blocks_count()
    }

    fn read(&self, start: BlockNo, buf: &mut [u8]) -> Result<(), FsError> {
        Ok(Journal::read(self, start, buf)?)
    }
}

/// As it is at home, whatever the journal holds.
impl Reader for Volume {
    fn block_size(&self) -> u32 {
        Volume::block_size(self)
    }

    fn blocks_count(&self) -> u64 {
        Volume::blocks_count(self)
    }

    fn read(&self, start: BlockNo, buf: &mut [u8]) -> Result<(), FsError> {
        Ok(Volume::read(self, start, buf)?)
    }
}

/// What a check is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Findings that are kept; the others are counted.
    pub max_findings: usize,
    /// Whether the superblock's own counts of free blocks and inodes, and its note of orphans in the orphan file, have to be
    /// exact. This engine keeps them so in every transaction; the kernel only at its unmount, and nobody reads them before they
    /// were counted anew.
    pub exact_superblock: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            max_findings: 100,
            exact_superblock: false,
        }
    }
}

/// Checks a volume that is not open, as it would be after its journal was replayed. Nothing is written.
pub fn volume(volume: &Arc<Volume>, options: &Options) -> Report {
    let mut sink = Sink::new(options.max_findings);
    match open_volume(Arc::clone(volume), Txid(0), How::ReadOnly) {
        Ok(opened) => run(&*opened.journal, options),
        // Without a journal home is all there is.
        Err(FsError::Unsupported(_)) if !has_journal(volume) => run(&**volume, options),
        Err(error) => {
            let mut report = run(&**volume, options);
            if report.unchecked.is_none() {
                let place = "opening";
                sink.add(Class::Journal, place, "a journal that can be read", error);
                report.findings.splice(0..0, sink.findings);
            }
            report
        }
    }
}

fn has_journal(volume: &Volume) -> bool {
    crate::fs::read_superblock(volume).is_ok_and(|sb| sb.has_compat(compat::HAS_JOURNAL))
}

/// Checks what a reader shows.
pub fn run(reader: &dyn Reader, options: &Options) -> Report {
    let mut sink = Sink::new(options.max_findings);
    let sb = match superblock(reader) {
        Ok(sb) => sb,
        Err(why) => {
            sink.add(Class::Superblock, "superblock", "a sound superblock", why);
            return Report {
                findings: sink.findings,
                ..Report::default()
            };
        }
    };
    if let Some(why) = unknown_features(&sb) {
        return Report {
            unchecked: Some(why),
            ..Report::default()
        };
    }
    let geometry = sb.geometry();
    let mut check = Check {
        reader,
        options: *options,
        geometry,
        sink,
        groups: Vec::new(),
        blocks: BlockMap::new(&geometry),
        system: BlockMap::new(&geometry),
        inodes: InodeMap::new(&geometry),
        dirs: Vec::new(),
        attribute_blocks: HashMap::new(),
        orphans: HashSet::new(),
        orphan_slots: 0,
        large_file: None,
        low_dtime: low_dtime(&sb),
        sb,
    };
    check.everything();
    let Check {
        sink,
        blocks,
        dirs,
        orphans,
        inodes,
        ..
    } = check;
    Report {
        findings: sink.findings,
        left_off: sink.left_off,
        unchecked: None,
        inodes: geometry
            .groups()
            .map(|g| inodes.group(g).iter().filter(|f| f.used).count() as u64)
            .sum(),
        directories: dirs.len() as u64,
        orphans: orphans.len() as u64,
        blocks: blocks.count(),
    }
}

/// The superblock, if arithmetic over its fields is safe and it speaks of the volume that is there.
pub(in crate::fs) fn superblock(reader: &dyn Reader) -> Result<Superblock, String> {
    let size = reader.block_size();
    let (block, offset) = superblock_place(size as usize);
    let mut bytes = vec![0; size as usize];
    reader
        .read(block, &mut bytes)
        .map_err(|e| format!("it can not be read: {e}"))?;
    let bytes = bytes.get(offset..).unwrap_or_default();
    let sb = Superblock::decode(bytes).map_err(|e| e.to_string())?;
    if sb.block_size() != size {
        let own = sb.block_size();
        return Err(format!(
            "blocks of {own} bytes on a volume opened with {size}"
        ));
    }
    if sb.s_blocks_count() > reader.blocks_count() {
        return Err(format!(
            "it counts {} blocks, the volume has {}",
            sb.s_blocks_count(),
            reader.blocks_count()
        ));
    }
    Ok(sb)
}

/// Features with rules that this check does not know.
fn unknown_features(sb: &Superblock) -> Option<String> {
    if let Access::Refused(reasons) = features::access(sb) {
        return Some(reasons.join("; "));
    }
    let known = ro_compat::SPARSE_SUPER
        | ro_compat::LARGE_FILE
        | ro_compat::HUGE_FILE
        | ro_compat::GDT_CSUM
        | ro_compat::DIR_NLINK
        | ro_compat::EXTRA_ISIZE
        | ro_compat::QUOTA
        | ro_compat::METADATA_CSUM
        | ro_compat::READONLY
        | ro_compat::PROJECT
        | ro_compat::VERITY
        | ro_compat::ORPHAN_PRESENT;
    let ro = sb.s_feature_ro_compat() & !known;
    let known = compat::DIR_PREALLOC
        | compat::IMAGIC_INODES
        | compat::HAS_JOURNAL
        | compat::EXT_ATTR
        | compat::RESIZE_INODE
        | compat::DIR_INDEX
        | compat::SPARSE_SUPER2
        | compat::FAST_COMMIT
        | compat::STABLE_INODES
        | compat::ORPHAN_FILE;
    let other = sb.s_feature_compat() & !known;
    if ro != 0 {
        return Some(format!(
            "ro_compat features {ro:#x} are not known to the check"
        ));
    }
    (other != 0).then(|| format!("compat features {other:#x} are not known to the check"))
}

/// Whether times of deletion can be told from links of the orphan list.
fn low_dtime(sb: &Superblock) -> bool {
    let low = |time: u32| time != 0 && time < sb.s_inodes_count();
    !(low(sb.s_wtime()) || low(sb.s_mtime()) || low(sb.s_mkfs_time()))
}

/// An attribute block: what it says of itself, and how many inodes refer to it.
struct Shared {
    stated: u32,
    seen: u32,
}

/// A check under way.
struct Check<'a> {
    reader: &'a dyn Reader,
    options: Options,
    sb: Superblock,
    geometry: Geometry,
    sink: Sink,
    groups: Vec<GroupDesc>,
    /// Every block that something has claimed.
    blocks: BlockMap,
    /// Those of the volume itself: copies of superblock and descriptors, bitmaps, inode tables.
    system: BlockMap,
    inodes: InodeMap,
    /// By inode.
    dirs: Vec<Directory>,
    attribute_blocks: HashMap<u64, Shared>,
    orphans: HashSet<u32>,
    /// Orphans that are in the orphan file.
    orphan_slots: u64,
    /// A file that needs the feature large_file.
    large_file: Option<Ino>,
    low_dtime: bool,
}

impl Check<'_> {
    fn everything(&mut self) {
        if !self.superblock_fields() || !self.descriptors() {
            return; // nothing can be found from here
        }
        self.find_orphans();
        self.scan_inodes();
        self.attribute_counts();
        self.special();
        self.directories();
        self.tree();
        self.link_counts();
        self.bitmaps();
    }

    fn walk(&self) -> Walk<'_> {
        Walk {
            reader: self.reader,
            sb: &self.sb,
            blocks_count: self.geometry.blocks_count,
        }
    }

    /// Reads one block; what goes wrong is a finding.
    fn block(&mut self, block: BlockNo) -> Option<Vec<u8>> {
        let mut bytes = vec![0; self.geometry.block_size as usize];
        self.blocks_at(block, &mut bytes).then_some(bytes)
    }

    /// Reads blocks; what goes wrong is a finding.
    fn blocks_at(&mut self, start: BlockNo, bytes: &mut [u8]) -> bool {
        match self.reader.read(start, bytes) {
            Ok(()) => true,
            Err(e) => {
                let place = format_args!("block {start}");
                self.sink.add(Class::Unreadable, place, "to be read", e);
                false
            }
        }
    }

    /// How many inodes of a group's table may be in use.
    fn inodes_used(&self, group: usize) -> u32 {
        let desc = &self.groups[group];
        let all = self.geometry.inodes_per_group;
        if desc.inode_uninit(&self.sb) {
            0
        } else if self.sb.has_group_desc_csum() {
            all - desc.bg_itable_unused().min(all)
        } else {
            all
        }
    }

    /// An inode, wherever it is; its checksum is not looked at.
    fn inode_at(&mut self, ino: Ino) -> Option<Inode> {
        let (group, index) = self.geometry.inode_location(ino)?;
        if index >= self.inodes_used(group.0 as usize) {
            return None;
        }
        let table = self.groups[group.0 as usize].bg_inode_table();
        let (block, offset) = self.geometry.inode_place(table, index);
        let bytes = self.block(block)?;
        Inode::decode_unverified(&self.sb, bytes.get(offset..)?).ok()
    }

    fn has_extents(&self) -> bool {
        self.sb.has_incompat(incompat::EXTENTS)
    }

    /// Whether an inode is unlinked and waits to be deleted, or is being cut.
    fn is_orphan(&self, ino: Ino) -> bool {
        self.orphans.contains(&ino.0)
    }

    /// The inodes that hold quotas: number, and whether the volume uses it.
    fn quota_inodes(&self) -> [(u32, bool); 3] {
        let on = self.sb.has_ro_compat(ro_compat::QUOTA);
        let sb = &self.sb;
        [
            (3, on && sb.s_usr_quota_inum() == 3),
            (4, on && sb.s_grp_quota_inum() == 4),
            (sb.s_prj_quota_inum(), on && sb.s_prj_quota_inum() != 0),
        ]
    }
}
