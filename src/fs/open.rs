//! Opening a volume: superblock, features, journal, recovery, roles. Owns the rule of the RECOVER flag on this side: set
//! durably before the log can become non-empty, cleared after the log is durably empty.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tracing::{info, warn};

use crate::ext4::checksum::crc32c_raw;
use crate::ext4::features::{self, Access, incompat};
use crate::ext4::inode::reserved;
use crate::ext4::superblock::{EXT4_ERROR_FS, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE};
use crate::ext4::{GroupDesc, Inode, Superblock};
use crate::fs::alloc::{Allocator, MetaBlocks};
use crate::fs::blocks::Blocks;
use crate::fs::burials::Burials;
use crate::fs::cache::Cache;
use crate::fs::extent::{self, Mapping};
use crate::fs::hold::Gate;
use crate::fs::inode::{blocks_of, owner};
use crate::fs::inodes::Inodes;
use crate::fs::meta::{Meta, superblock_place};
use crate::fs::mmp::{Claim, claim_volume};
use crate::fs::orphan::Orphans;
use crate::fs::running::Running;
use crate::fs::{Fs, FsError, indirect};
use crate::io::{Clock, Disk, Random};
use crate::journal::{Image, Journal, JournalError, LogMap, Recovery};
use crate::units::{BlockNo, BlockRange, FileBlock, Ino, Txid};
use crate::volume::Volume;

/// How a volume is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The journal is recovered in place.
    ReadWrite,
    /// As `ReadWrite`, but what the master did not confirm, by this number (from the facts) and by the log itself, stays in
    /// the log, not visible: a mirror.
    Confirmed(Txid),
    /// Nothing is written: a journal that needs recovery is replayed in memory.
    ReadOnly,
}

/// A volume whose journal has been read and recovered.
pub struct Opened {
    /// The block address space.
    pub volume: Arc<Volume>,
    /// Its journal.
    pub journal: Arc<Journal>,
    /// What recovery did; `None` when none was needed.
    pub recovered: Option<Recovery>,
    /// Whether its features allow writing.
    pub access: Access,
    /// The claim of the multiple-mount protection, if it was made before the journal was recovered; else a master makes it.
    pub claim: Option<Claim>,
    /// When a master says that it mounted the volume, seconds since 1970, if that was settled before; else it is now.
    pub mounted_at: Option<i64>,
}

/// What an open volume is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsRole {
    /// Requests change it.
    Master,
    /// The follower changes it, transaction by transaction; requests only read.
    Mirror,
    /// Nothing changes it.
    ReadOnly,
}

/// How the engine runs.
#[derive(Clone, Debug)]
pub struct FsOptions {
    /// What the volume is for.
    pub role: FsRole,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where random numbers come from.
    pub random: Arc<dyn Random>,
    /// Bound of the cache of metadata blocks, in bytes.
    pub cache_bytes: usize,
    /// The longest that a change waits before `commit_step` commits it.
    pub commit_interval: Duration,
}

/// The block size of the ext4 on (or beginning on) a disk, in bytes.
pub fn block_size_of(disk: &dyn Disk) -> Result<u32, FsError> {
    let mut bytes = [0; SUPERBLOCK_SIZE];
    disk.read_at(&mut bytes, SUPERBLOCK_OFFSET)
        .map_err(|source| FsError::Io {
            context: format!("reading the superblock of {}", disk.name()),
            source,
        })?;
    let sb = Superblock::decode(&bytes).map_err(|e| corrupt_superblock(e.to_string()))?;
    Ok(sb.block_size())
}

/// The superblock as it is at home.
pub fn read_superblock(volume: &Volume) -> Result<Superblock, FsError> {
    let mut bytes = [0; SUPERBLOCK_SIZE];
    volume.read_bytes(SUPERBLOCK_OFFSET, &mut bytes)?;
    let sb = match Superblock::decode(&bytes) {
        Ok(sb) => sb,
        Err(e) => {
            torn_superblock(volume, bytes).ok_or_else(|| corrupt_superblock(e.to_string()))?
        }
    };
    if sb.block_size() != volume.block_size() {
        return Err(corrupt_superblock(format!(
            "its blocks have {} bytes, the volume was opened with {}",
            sb.block_size(),
            volume.block_size()
        )));
    }
    if sb.s_blocks_count() > volume.blocks_count() {
        return Err(corrupt_superblock(format!(
            "the file system has {} blocks, its parts together {}",
            sb.s_blocks_count(),
            volume.blocks_count()
        )));
    }
    Ok(sb)
}

/// The superblock is two sectors, with the checksum in the second: a power cut while it was written may leave one old and one
/// new. Such a one is taken if all that it leads to (every group descriptor, the top directory's and the journal's inode)
/// verifies with the identity and geometry that it states; the log, or the next writing of it, mends the rest.
fn torn_superblock(volume: &Volume, mut bytes: [u8; SUPERBLOCK_SIZE]) -> Option<Superblock> {
    let at = SUPERBLOCK_SIZE - 4;
    let sum = crc32c_raw(!0, &bytes[..at]);
    bytes[at..].copy_from_slice(&sum.to_le_bytes());
    let sb = Superblock::decode(&bytes).ok()?;
    if !sb.has_metadata_csum()
        || sb.block_size() != volume.block_size()
        || sb.s_blocks_count() > volume.blocks_count()
    {
        return None;
    }
    let home = Home { volume, sb: &sb };
    let geometry = sb.geometry();
    let desc = |group| {
        let (block, offset) = geometry.desc_location(group);
        let image = home.get(block).ok()?;
        GroupDesc::decode(&sb, group, &image[offset..]).ok()
    };
    for group in geometry.groups() {
        desc(group)?;
    }
    for ino in [reserved::ROOT, Ino(sb.s_journal_inum())] {
        let (group, index) = geometry.inode_location(ino)?;
        let (block, offset) = geometry.inode_place(desc(group)?.bg_inode_table(), index);
        let image = home.get(block).ok()?;
        Inode::decode(&sb, ino, &image[offset..]).ok()?;
    }
    warn!("the superblock was torn by a power cut: what it leads to verifies, so it is used");
    Some(sb)
}

fn corrupt_superblock(detail: String) -> FsError {
    FsError::Corrupt {
        what: "superblock",
        ino: None,
        block: None,
        detail,
    }
}

/// Sets or clears RECOVER at home, durably on return. The superblock's other bytes stay.
pub fn set_recover(volume: &Volume, recover: bool) -> Result<(), FsError> {
    let mut sb = read_superblock(volume)?;
    if sb.has_recover() != recover {
        set_incompat_recover(&mut sb, recover)?;
        volume.write_bytes(SUPERBLOCK_OFFSET, sb.encode())?;
    }
    Ok(volume.flush()?)
}

pub(crate) fn set_incompat_recover(sb: &mut Superblock, recover: bool) -> Result<(), FsError> {
    sb.set_incompat(incompat::RECOVER, recover)
        .map_err(|e| FsError::Unsupported(e.to_string()))
}

/// Blocks as they are at home, journal or not: for finding the journal itself.
struct Home<'a> {
    volume: &'a Volume,
    sb: &'a Superblock,
}

impl Blocks for Home<'_> {
    fn sb(&self) -> &Superblock {
        self.sb
    }

    fn get(&self, block: BlockNo) -> Result<Image, FsError> {
        let mut bytes = vec![0; self.volume.block_size() as usize];
        self.volume.read(block, &mut bytes)?;
        Ok(bytes.into())
    }
}

/// Where the journal's blocks are, whatever the features of the volume.
pub fn journal_map(volume: &Volume) -> Result<LogMap, FsError> {
    let sb = read_superblock(volume)?;
    let home = Home { volume, sb: &sb };
    let ino = Ino(sb.s_journal_inum());
    let bad = |detail: String| FsError::Corrupt {
        what: "journal inode",
        ino: Some(ino),
        block: None,
        detail,
    };
    if !sb.has_compat(features::compat::HAS_JOURNAL) || ino.0 == 0 {
        return Err(FsError::Unsupported(
            "a volume without a journal of its own (feature has_journal)".into(),
        ));
    }
    let geometry = sb.geometry();
    let (group, index) = geometry
        .inode_location(ino)
        .ok_or_else(|| bad("there is no such inode".into()))?;
    let (block, offset) = geometry.desc_location(group);
    let image = home.get(block)?;
    let desc = GroupDesc::decode(&sb, group, &image[offset..]).map_err(|e| bad(e.to_string()))?;
    let (block, offset) = geometry.inode_place(desc.bg_inode_table(), index);
    let image = home.get(block)?;
    let inode = Inode::decode(&sb, ino, &image[offset..]).map_err(|e| bad(e.to_string()))?;
    if !inode.is_reg() || inode.i_links_count() == 0 {
        return Err(bad("it is not a file in use".into()));
    }
    let blocks = blocks_of(inode.i_size(&sb), volume.block_size() as usize);
    let blocks = u32::try_from(blocks).map_err(|_| bad(format!("it has {blocks} blocks")))?;
    let mut ranges: Vec<BlockRange> = Vec::new();
    let mut at = 0;
    while at < blocks {
        let (file_block, want) = (FileBlock(at), blocks - at);
        let mapping = if inode.has_extents() {
            extent::map(
                &home,
                owner(ino, &inode),
                &inode.i_block(),
                file_block,
                want,
            )?
        } else {
            indirect::map(&home, ino, &inode.i_block(), file_block, want)?
        };
        let Mapping::Mapped {
            block,
            len,
            unwritten: false,
        } = mapping
        else {
            return Err(bad(format!("its block {at} is not there")));
        };
        match ranges.last_mut() {
            Some(last) if last.end() == block => last.len += u64::from(len),
            _ => ranges.push(BlockRange::new(block, u64::from(len))),
        }
        at += len;
    }
    Ok(LogMap(ranges))
}

/// Reads superblock and journal and recovers. `base`: a transaction id near the log's, to widen jbd2's 32-bit ids with.
/// A volume whose features allow reading only is opened as `How::ReadOnly`, whatever was asked.
///
/// # Errors
/// `Unsupported` names the features that keep the volume from being opened at all.
pub fn open_volume(volume: Arc<Volume>, base: Txid, how: How) -> Result<Opened, FsError> {
    open_volume_noting(volume, base, how, &mut |_| Ok(()))
}

/// As `open_volume`. `note` is told what a recovery brought before the log forgets it (`Journal::recover_noting`).
pub fn open_volume_noting(
    volume: Arc<Volume>,
    base: Txid,
    how: How,
    note: &mut dyn FnMut(&Recovery) -> Result<(), JournalError>,
) -> Result<Opened, FsError> {
    let sb = read_superblock(&volume)?;
    let access = features::access(&sb);
    if let Access::Refused(reasons) = &access {
        return Err(FsError::Unsupported(reasons.join("; ")));
    }
    let map = journal_map(&volume)?;
    let journal = Arc::new(Journal::load(Arc::clone(&volume), map, base)?);
    let writable = how != How::ReadOnly && access == Access::ReadWrite;
    let mut recovered = None;
    if journal.needs_recovery() {
        if !sb.has_recover() {
            // The kernel would throw the log away here, e2fsck would stop. Neither is ours to choose.
            return Err(FsError::Corrupt {
                what: "superblock",
                ino: None,
                block: None,
                detail: "it says that the volume was unmounted cleanly, but the journal holds transactions".into(),
            });
        }
        let recovery = match how {
            _ if !writable => journal.recover_overlay()?,
            How::Confirmed(confirmed) => journal.recover_noting(Some(confirmed), note)?,
            How::ReadWrite | How::ReadOnly => journal.recover_noting(None, note)?,
        };
        info!(?recovery, "journal recovered");
        recovered = Some(recovery);
    }
    // Replay may have brought another superblock.
    let access = if recovered.is_some() {
        features::access(&committed_superblock(&volume, &journal)?)
    } else {
        access
    };
    if let Access::Refused(reasons) = &access {
        return Err(FsError::Unsupported(reasons.join("; ")));
    }
    Ok(Opened {
        volume,
        journal,
        recovered,
        access,
        claim: None,
        mounted_at: None,
    })
}

/// The superblock as the journal shows it.
pub(crate) fn committed_superblock(
    volume: &Volume,
    journal: &Journal,
) -> Result<Superblock, FsError> {
    let (block, offset) = superblock_place(volume.block_size() as usize);
    let mut bytes = vec![0; volume.block_size() as usize];
    journal.read(block, &mut bytes)?;
    Superblock::decode(&bytes[offset..]).or_else(|_| read_superblock(volume))
}

impl Fs {
    /// Opens the engine over a volume. A master sets RECOVER durably before its first commit and processes orphans; its
    /// journal has a segment begun.
    ///
    /// # Errors
    /// `Unsupported` names the features that keep a master from writing.
    pub fn open(opened: Opened, options: FsOptions) -> Result<Fs, FsError> {
        let Opened {
            volume,
            journal,
            access,
            claim,
            mounted_at,
            ..
        } = opened;
        if options.role == FsRole::Master
            && let Access::ReadOnly(reasons) = &access
        {
            return Err(FsError::Unsupported(reasons.join("; ")));
        }
        let sb = committed_superblock(&volume, &journal)?;
        if sb.s_state() & EXT4_ERROR_FS != 0 {
            warn!("errors were noted on this volume: run e2fsck on it when it is unmounted");
        }
        let block_size = volume.block_size() as usize;
        let mut alloc = Allocator::load(&Committed {
            sb: &sb,
            journal: &journal,
        })?;
        alloc.protect(&journal.map().0);
        if options.role == FsRole::Master {
            quarantine_again(&mut alloc, &sb, &journal)?;
        }
        let committed = journal.last_committed();
        let meta = Meta {
            sb,
            sb_changed: false,
            alloc: Some(alloc),
            orphans: Orphans::default(),
            running: Running::new(journal.next_txid()),
            committing: None,
            closed: false,
        };
        let fs = Fs {
            role: options.role,
            clock: options.clock,
            random: options.random,
            commit_interval: options.commit_interval,
            block_size,
            journal_blocks: journal.map().len_blocks(),
            max_transaction_blocks: journal.max_transaction_blocks(),
            epoch: RwLock::new(()),
            inodes: Inodes::new(),
            mirrored: RwLock::new(false),
            commit: Mutex::new(()),
            committed: AtomicU64::new(committed.0),
            meta: RwLock::new(meta),
            cache: Cache::new(options.cache_bytes, block_size),
            failed: OnceLock::new(),
            on_commit: RwLock::new(Vec::new()),
            low_space: RwLock::new(None),
            burials: Burials::default(),
            durability: RwLock::new(None),
            mmp: Mutex::new(None),
            gate: Gate::default(),
            volume,
            journal,
        };
        if fs.role == FsRole::Master {
            fs.claim(claim, mounted_at)?;
        }
        Ok(fs)
    }

    /// What a master does before its first request.
    fn claim(&self, claim: Option<Claim>, mounted_at: Option<i64>) -> Result<(), FsError> {
        *self.mmp.lock() = match claim {
            Some(claim) => Some(claim),
            None => claim_volume(&self.volume, &*self.clock, &*self.random)?,
        };
        {
            let now = mounted_at.unwrap_or_else(|| self.clock.now().secs);
            let mut meta = self.meta.write();
            set_incompat_recover(&mut meta.sb, true)?;
            let mounts = meta.sb.s_mnt_count().saturating_add(1);
            meta.sb.set_s_mnt_count(mounts);
            meta.sb.set_mtime(now);
            meta.sb.set_wtime(now);
            // The kernel brings these up to date at its unmount only: after a crash they are old.
            if let Some(alloc) = &meta.alloc {
                meta.sb_changed = meta.sb.s_free_blocks_count() != alloc.free_blocks()
                    || u64::from(meta.sb.s_free_inodes_count()) != alloc.free_inodes();
            }
            let mut home = read_superblock(&self.volume)?;
            set_incompat_recover(&mut home, true)?;
            home.set_s_mnt_count(mounts);
            home.set_mtime(now);
            home.set_wtime(now);
            self.volume.write_bytes(SUPERBLOCK_OFFSET, home.encode())?;
        }
        self.volume.flush()?;
        let orphans = {
            let op = self.begin(1)?;
            Orphans::open(&op)?
        };
        let any = !orphans.is_empty();
        self.meta.write().orphans = orphans;
        if any {
            self.process_orphans()?;
        }
        self.change(4, |op| op.settle_orphans())
    }
}

/// Blocks that earlier openings freed are not to be used again as long as a mirror lacks the transaction that freed them:
/// what it lacks may still have to be read from there.
fn quarantine_again(
    alloc: &mut Allocator,
    sb: &Superblock,
    journal: &Journal,
) -> Result<(), FsError> {
    let committed = Committed { sb, journal };
    for info in journal.info_after(journal.released()).unwrap_or_default() {
        // One that can not be read can not be sent either: whoever lacks it will be compared.
        match journal.load_transaction(info.txid) {
            Ok(txn) => {
                for range in txn.freed {
                    alloc.quarantine_again(&committed, range, info.txid)?;
                }
            }
            Err(e) => {
                warn!(txid = %info.txid, error = %e, "a transaction in the log can not be read")
            }
        }
    }
    Ok(())
}

/// What reading the group descriptors needs.
struct Committed<'a> {
    sb: &'a Superblock,
    journal: &'a Journal,
}

impl MetaBlocks for Committed<'_> {
    fn sb(&self) -> &Superblock {
        self.sb
    }

    fn get(&self, block: BlockNo) -> Result<Image, FsError> {
        let mut bytes = vec![0; self.sb.block_size() as usize];
        self.journal.read(block, &mut bytes)?;
        Ok(bytes.into())
    }

    fn modify(&mut self, _: BlockNo) -> Result<&mut [u8], FsError> {
        Err(FsError::ReadOnly)
    }

    fn create(&mut self, _: BlockNo) -> Result<&mut [u8], FsError> {
        Err(FsError::ReadOnly)
    }
}
