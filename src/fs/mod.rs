//! The engine: inode and directory operations, allocator, caches, transactions.
//!
//! Owns an open ext4 volume: what its metadata says, the running transaction, and the order in which changes become
//! durable. Never speaks FUSE, never knows of mirrors other than through the journal and hooks, starts no thread:
//! background work is [`Fs::commit_step`].
//!
//! Invariants:
//! - an operation that fails leaves no trace in the running transaction;
//! - a block that is referred to by reference is at home before its transaction can commit;
//! - a freed block is not reused before the journal says that nobody needs it.
//!
//! Lock order, outermost first: the epoch (mirrors), an inode's data lock (ascending inode number), the overwrite gate,
//! the commit lock, the metadata lock, leaves (cache shards, inode states). The disk is waited for under the commit lock and
//! under inodes' data locks; under the metadata lock only to read a metadata block that is not cached.

pub mod alloc;
pub mod allocation;
pub mod blocks;
pub mod check;
pub mod dir;
pub mod error;
pub mod extent;
pub(crate) mod htree;
pub mod indirect;
pub mod orphan;
pub mod owners;
pub mod xattr;

mod attr;
mod burials;
mod cache;
mod close;
mod commit;
mod dirfile;
mod epoch;
mod fallocate;
mod file;
mod hold;
mod inode;
mod inodes;
mod meta;
mod mmp;
mod namei;
mod open;
mod read;
mod rename;
mod restore;
mod running;
mod setattr;
mod space;
mod truncate;
mod txn;
mod write;

use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

pub use attr::{
    Attr, Caller, DirEntry, FallocMode, FileKind, NAME_MAX, New, RenameFlags, SetAttr, SetTime,
    StatFs, Whence, XattrMode,
};
pub use close::CloseReport;
pub use commit::{Commit, Step};
pub use error::FsError;
pub use hold::Writes;
pub use mmp::{Claim, claim_volume};
pub use open::{
    FsOptions, FsRole, How, Opened, block_size_of, journal_map, open_volume, open_volume_noting,
    read_superblock, set_recover,
};
pub use restore::Restored;
pub use write::WriteFor;

use crate::io::{Clock, Random};
use crate::journal::Journal;
use crate::units::Txid;
use crate::volume::Volume;

/// An open volume. Shared as `Arc<Fs>`; every method may be called from many threads.
pub struct Fs {
    volume: Arc<Volume>,
    journal: Arc<Journal>,
    role: FsRole,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    commit_interval: Duration,
    /// Bytes of a block.
    block_size: usize,
    /// Blocks of the journal file.
    journal_blocks: u64,
    /// Blocks that one transaction may take in the log.
    max_transaction_blocks: usize,
    /// On a mirror: held shared by every request, exclusively by a switch of epochs. First in the lock order.
    epoch: RwLock<()>,
    inodes: inodes::Inodes,
    /// Whether overwrites go by value. Held shared while data is overwritten at home, exclusively to change the rule.
    mirrored: RwLock<bool>,
    /// Held by the one who commits.
    commit: Mutex<()>,
    /// The last transaction that is durable here.
    committed: AtomicU64,
    meta: RwLock<meta::Meta>,
    cache: cache::Cache,
    /// Why every change is refused, once a commit failed.
    failed: OnceLock<String>,
    /// The multiple-mount protection, where the volume has it.
    mmp: Mutex<Option<mmp::Claim>>,
    burials: burials::Burials,
    on_commit: RwLock<Vec<CommitHook>>,
    low_space: RwLock<Option<SpaceHook>>,
    durability: RwLock<Option<Arc<dyn Durability>>>,
    /// Whether operations are let through.
    gate: hold::Gate,
}

type CommitHook = Box<dyn Fn(Txid) + Send + Sync>;
type SpaceHook = Box<dyn Fn() + Send + Sync>;

/// Who has a say, beside this disk, in when a change is durable and how fast changes may come: mirrors.
pub trait Durability: Send + Sync {
    /// Calls `done` once whatever must have `txid`, which is durable here, has it; at once, from this thread, if nobody is
    /// waited for.
    fn when_durable(&self, txid: Txid, done: Box<dyn FnOnce() + Send>);
    /// Returns when `len` bytes of data may be written; called with no lock held, before the change joins a transaction.
    /// `uncommitted`: bytes of the transactions that are not committed yet.
    fn admit(&self, len: u64, uncommitted: &dyn Fn() -> u64);
    /// A change of `len` bytes that was admitted has joined a transaction, or has failed.
    fn entered(&self, len: u64);
}

impl fmt::Debug for Fs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fs")
            .field("volume", &self.volume)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl Fs {
    /// The volume.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// The journal.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// What the volume is for.
    pub fn role(&self) -> FsRole {
        self.role
    }

    /// What a request of a mirror holds while it runs.
    fn epoch(&self) -> Option<RwLockReadGuard<'_, ()>> {
        (self.role == FsRole::Mirror).then(|| self.epoch.read())
    }
}
