//! Making changes durable: closing the running transaction, group commit, fsync, the timer, and giving up after a write
//! error. Owns the commit lock. Callers that wait for the lock find, as a rule, that the commit before theirs took
//! their changes along.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::MutexGuard;
use tracing::{error, warn};

use crate::fs::{Durability, Fs, FsError, FsRole};
use crate::journal::Prepared;
use crate::units::{Ino, Txid};

/// Blocks that a `commit_step` checkpoints at most, so that it comes back to its timer soon.
const CHECKPOINT_BLOCKS: usize = 1024;

/// What `commit_step` did, and when it wants to be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Monotonic time at which to call again at the latest.
    pub next: Duration,
    /// The transaction that was committed, if one was due.
    pub committed: Option<Txid>,
    /// Committed blocks wait to be written home.
    pub checkpointing: bool,
}

impl Fs {
    /// The last transaction that is durable here.
    pub fn committed(&self) -> Txid {
        Txid(self.committed.load(Ordering::Acquire))
    }

    /// Makes the inode's changes durable, names included; `datasync`: only what is needed to read its data back. Returns the
    /// transaction that a mirror must have before it has them too (`when_durable`). Called from many threads, one commit serves them all.
    pub fn fsync(&self, ino: Ino, datasync: bool) -> Result<Txid, FsError> {
        // Nobody can say any more whose changes went with the last transaction.
        self.check_alive()?;
        let Some(inode) = self.inodes.find(ino) else {
            // Not in the table: what changed is committed, and no data went home since.
            self.flush_home()?;
            return Ok(self.committed());
        };
        let target = inode.last_change(datasync);
        if target > self.committed() {
            self.commit_through(target)?;
        } else {
            self.flush_home()?;
        }
        Ok(target)
    }

    /// Makes every change durable.
    pub fn sync(&self) -> Result<Txid, FsError> {
        let running = {
            let meta = self.meta.read();
            meta.running.txid
        };
        self.commit_through(running)
    }

    /// As `sync`, but commits even if nothing has changed: no earlier transaction has the name of this state.
    pub fn commit_anew(&self) -> Result<Txid, FsError> {
        self.meta.write().sb_changed = true;
        self.sync()
    }

    /// Data that was overwritten at home, and whatever else is in the disk's cache.
    fn flush_home(&self) -> Result<(), FsError> {
        if self.role != FsRole::Master {
            return Ok(());
        }
        Ok(self.volume.flush()?)
    }

    /// Returns once `want` (or, if nothing was left to commit, everything before it) is durable.
    pub(crate) fn commit_through(&self, want: Txid) -> Result<Txid, FsError> {
        if self.committed() >= want {
            return Ok(self.committed());
        }
        let committer = self.commit.lock();
        if self.committed() >= want {
            return Ok(self.committed());
        }
        let committed = self.commit_locked();
        drop(committer);
        self.tell(committed?)
    }

    /// Calls the hooks of a commit, with no lock held.
    fn tell(&self, committed: Option<Txid>) -> Result<Txid, FsError> {
        if let Some(txid) = committed {
            for hook in self.on_commit.read().iter() {
                hook(txid);
            }
        }
        Ok(self.committed())
    }

    /// Commits the running transaction if it has anything. The caller holds the commit lock.
    pub(crate) fn commit_locked(&self) -> Result<Option<Txid>, FsError> {
        let mut txn = {
            let mut meta = self.meta.write();
            self.check_alive()?;
            let Some(txn) = meta.close_running(self)? else {
                drop(meta);
                self.flush_home()?;
                return Ok(None);
            };
            txn
        };
        let txid = txn.txid;
        if let Err(e) = self.journal.commit(&mut txn) {
            // The images stay visible: what was read back once must not change under a reader.
            self.give_up(&e);
            return Err(e.into());
        }
        self.committed_one(txid);
        Ok(Some(txid))
    }

    fn committed_one(&self, txid: Txid) {
        let mut meta = self.meta.write();
        meta.finish_commit(self);
        self.committed.store(txid.0, Ordering::Release);
    }

    /// The first half of a commit: the running transaction's blocks are in the log, and no flush was asked for. For whoever
    /// has one thread for several nodes: what `Journal::prepared` shows can be sent before the second half. `None` when
    /// nothing has changed.
    pub fn begin_commit(&self) -> Result<Option<Commit<'_>>, FsError> {
        let committer = self.commit.lock();
        let mut txn = {
            let mut meta = self.meta.write();
            self.check_alive()?;
            match meta.close_running(self)? {
                Some(txn) => txn,
                None => return Ok(None),
            }
        };
        match self.journal.prepare(&mut txn) {
            Ok(prepared) => Ok(Some(Commit {
                fs: self,
                txid: txn.txid,
                prepared,
                _committer: committer,
            })),
            Err(e) => {
                self.give_up(&e);
                Err(e.into())
            }
        }
    }
}

/// A change that was admitted.
pub(crate) struct Admitted {
    durability: Option<Arc<dyn Durability>>,
    len: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(durability) = &self.durability {
            durability.entered(self.len);
        }
    }
}

/// A commit of which the first half is done. The second has to follow, or the power has to fail.
pub struct Commit<'a> {
    fs: &'a Fs,
    txid: Txid,
    prepared: Prepared<'a>,
    _committer: MutexGuard<'a, ()>,
}

impl Commit<'_> {
    /// The transaction.
    pub fn txid(&self) -> Txid {
        self.txid
    }

    /// The second half: durable on return.
    pub fn finish(self) -> Result<Txid, FsError> {
        if let Err(e) = self.prepared.finish() {
            self.fs.give_up(&e);
            return Err(e.into());
        }
        self.fs.committed_one(self.txid);
        drop(self._committer);
        self.fs.tell(Some(self.txid))
    }
}

impl Fs {
    /// Commits what is there, unless somebody else is committing: called by whoever filled the transaction half, so that
    /// others go on in the next one meanwhile.
    pub(crate) fn commit_if_idle(&self) {
        let Some(committer) = self.commit.try_lock() else {
            return;
        };
        let committed = self.commit_locked();
        drop(committer);
        // An error stays: every later change and every fsync gets it.
        if let Err(e) = committed.and_then(|txid| self.tell(txid)) {
            warn!(error = %e, "commit failed");
        }
    }

    /// Commits when due and checkpoints a little; says when to call again. `now`: monotonic time.
    pub fn commit_step(&self, now: Duration) -> Result<Step, FsError> {
        self.commit_step_within(now, CHECKPOINT_BLOCKS)
    }

    /// As [`Fs::commit_step`], with `blocks` checkpointed at most.
    pub fn commit_step_within(&self, now: Duration, blocks: usize) -> Result<Step, FsError> {
        let mut step = Step {
            next: now + self.commit_interval,
            committed: None,
            checkpointing: false,
        };
        if self.role == FsRole::ReadOnly {
            return Ok(step);
        }
        if self.role == FsRole::Master {
            self.refresh_mmp(now)?;
            let due = {
                let meta = self.meta.read();
                if meta.closed {
                    return Err(FsError::Closed);
                }
                meta.running.since.map(|since| since + self.commit_interval)
            };
            match due {
                Some(due) if due <= now => {
                    let committer = self.commit.lock();
                    let committed = self.commit_locked();
                    drop(committer);
                    step.committed = committed?;
                    self.tell(step.committed)?;
                }
                Some(due) => step.next = due,
                None => {}
            }
        }
        let checkpoint = self.journal.checkpoint(blocks)?;
        if !checkpoint.done {
            step.checkpointing = true;
            step.next = now;
        }
        if self.role == FsRole::Master {
            self.release_blocks();
        }
        Ok(step)
    }

    /// Lets the allocator have what mirrors no longer need.
    fn release_blocks(&self) {
        let released = self.journal.released();
        let waits = {
            let meta = self.meta.read();
            let alloc = meta.alloc.as_ref();
            alloc.is_some_and(|alloc| alloc.waiting_blocks() > 0)
        };
        if waits {
            self.meta.write().release(released);
        }
    }

    /// Calls `f` after every commit, with no lock held.
    pub fn on_commit(&self, f: Box<dyn Fn(Txid) + Send + Sync>) {
        self.on_commit.write().push(f);
    }

    /// Mirrors have a say from now on; `None`: no more.
    pub fn set_durability(&self, durability: Option<Arc<dyn Durability>>) {
        *self.durability.write() = durability;
    }

    /// Calls `done` once `txid`, which is durable here, is where it must be.
    pub fn when_durable(&self, txid: Txid, done: Box<dyn FnOnce() + Send>) {
        let durability = self.durability.read().clone();
        match durability {
            Some(durability) => durability.when_durable(txid, done),
            None => done(),
        }
    }

    /// Waits until `len` bytes may be written. They are on their way until the guard is dropped.
    pub(crate) fn admit(&self, len: u64) -> Admitted {
        let durability = self.durability.read().clone();
        if let Some(durability) = &durability {
            durability.admit(len, &|| self.uncommitted_bytes());
        }
        Admitted { durability, len }
    }

    /// Bytes by value of the running transaction, and of the one that is being committed.
    pub fn uncommitted_bytes(&self) -> u64 {
        let meta = self.meta.read();
        let committing = meta.committing.as_ref().map_or(0, |c| c.images.len());
        (meta.running.images.len() + committing) as u64 * self.block_size as u64
    }

    /// Calls `f`, with no metadata lock held, when the allocator needs space that only mirrors still need.
    pub fn set_low_space_hook(&self, f: Box<dyn Fn() + Send + Sync>) {
        *self.low_space.write() = Some(f);
    }

    /// Overwrites go by value (true: a mirror exists in any state) or straight home. On return the running transaction is
    /// durable, and everything after it follows the new rule. (Going home needs no more than that: a block of which the
    /// log still holds an image goes by value until it does not.)
    pub fn set_mirrored(&self, mirrored: bool) -> Result<(), FsError> {
        {
            // Waits for data that is being overwritten at home.
            let mut gate = self.mirrored.write();
            *gate = mirrored;
        }
        self.sync()?;
        Ok(())
    }

    /// Every later change fails; reading goes on. For errors that leave in doubt what is durable or what is in memory.
    pub(crate) fn give_up(&self, why: &dyn std::fmt::Display) {
        error!(error = %why, "the volume is read-only from here on");
        let _ = self.failed.set(why.to_string());
    }

    /// Why nothing can be changed any more, until the volume is opened anew; `None` while it can.
    pub fn failure(&self) -> Option<String> {
        let given_up = self.failed.get().cloned();
        given_up.or_else(|| self.journal.aborted().map(|why| why.to_string()))
    }

    /// An error once a commit failed.
    pub(crate) fn check_alive(&self) -> Result<(), FsError> {
        match self.failed.get() {
            Some(why) => Err(FsError::Aborted(why.clone())),
            None => Ok(()),
        }
    }
}
