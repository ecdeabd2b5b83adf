//! One operation of the running transaction. Owns its undo: whatever an operation changed, images, allocator, orphans,
//! superblock, goes back to what it was unless the operation says at its end that it is complete. So no check has to
//! come before the first change, and no operation is ever half in a commit.
//!
//! An operation holds the metadata lock exclusively from its begin to its end. Before it begins, there is room for it
//! in the running transaction: otherwise that is committed first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLockWriteGuard;
use tracing::warn;

use crate::ext4::Superblock;
use crate::fs::alloc::{Allocator, BlockRequest, Reach};
use crate::fs::blocks::{Blocks, BlocksMut};
use crate::fs::meta::Meta;
use crate::fs::orphan::Orphans;
use crate::fs::running::{Collected, subtract};
use crate::fs::{Caller, Fs, FsError, FsRole, Writes};
use crate::journal::{Image, Reference};
use crate::units::{BlockNo, BlockRange, Ino, Txid};

/// Times an operation is tried again after the allocator had no space but some was about to be released.
const SPACE_RETRIES: usize = 3;

/// An operation under way.
pub(crate) struct Op<'a> {
    /// The engine.
    pub fs: &'a Fs,
    /// What is behind the metadata lock.
    pub meta: RwLockWriteGuard<'a, Meta>,
    /// Which of the last free blocks it may have.
    pub reach: Reach,
    /// What the running transaction had for each image that this operation changed.
    before: HashMap<BlockNo, Before>,
    sb_before: Option<(Superblock, bool)>,
    /// The allocator may differ from what the transaction's images say, should they be undone.
    pub alloc_changed: bool,
    /// Reserved blocks that it allocated.
    pub taken: Vec<BlockRange>,
    /// The same of the orphans.
    pub orphans_changed: bool,
    collected: Collected,
    now: (i64, u32),
    done: bool,
}

/// What the running transaction had for a block before the operation.
struct Before {
    image: Option<Image>,
    data: bool,
}

impl Fs {
    /// Runs `work` as one operation of the running transaction: all of it or nothing. `credits`: blocks that it changes at
    /// most. `work` runs again, from the start, when space had to be released first.
    pub(crate) fn change<R>(
        &self,
        credits: usize,
        work: impl FnMut(&mut Op<'_>) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        self.change_by(Caller::default(), credits, work)
    }

    /// As `change`, on somebody's behalf.
    pub(crate) fn change_by<R>(
        &self,
        caller: Caller,
        credits: usize,
        mut work: impl FnMut(&mut Op<'_>) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        self.retry_space(|| {
            let mut op = self.begin(credits)?;
            op.reach = reach_of(op.sb(), caller);
            let result = work(&mut op)?;
            if op.finish() {
                self.commit_if_idle();
            }
            Ok(result)
        })
    }

    /// Does `work` again when it found no space but some could be released.
    pub(crate) fn retry_space<R>(
        &self,
        mut work: impl FnMut() -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        let mut left = SPACE_RETRIES;
        let mut patience = None;
        loop {
            let deleted = self.burials.count();
            match work() {
                Err(FsError::SpaceHeld { .. }) if left > 0 && self.reclaim()? => left -= 1,
                // What is free is not enough: no mirror has to give anything up for that. But the kernel may just be
                // letting go of a file that was removed.
                Err(FsError::NoSpace | FsError::SpaceHeld { .. }) => {
                    if !self.deleted_another(deleted, &mut patience) {
                        return Err(FsError::NoSpace);
                    }
                }
                result => return result,
            }
        }
    }

    /// Whether more files than `deleted` have been deleted: at once if so, else after waiting for one, for as long as the
    /// mount has asked for, if there are files without a name.
    fn deleted_another(&self, deleted: u64, patience: &mut Option<Duration>) -> bool {
        if self.burials.count() == deleted && self.meta.read().orphans.is_empty() {
            return false;
        }
        self.burials.wait(deleted, patience, &*self.clock)
    }

    /// Waits for room for `credits` blocks in the running transaction and begins an operation.
    pub(crate) fn begin(&self, credits: usize) -> Result<Op<'_>, FsError> {
        loop {
            let meta = self.meta.write();
            if meta.closed {
                return Err(FsError::Closed);
            }
            self.check_writable()?;
            match self.writes() {
                Writes::Open => {}
                Writes::Refused => return Err(FsError::ReadOnly),
                Writes::Held => {
                    drop(meta);
                    self.wait_for_writes();
                    continue;
                }
            }
            let used = meta.running.log_blocks(self.block_size);
            if meta.running.is_empty() || used + credits <= self.max_transaction_blocks {
                let now = self.clock.now();
                return Ok(Op {
                    fs: self,
                    meta,
                    reach: Reach::Superuser,
                    before: HashMap::new(),
                    sb_before: None,
                    alloc_changed: false,
                    taken: Vec::new(),
                    orphans_changed: false,
                    collected: Collected::default(),
                    now: (now.secs, now.nanos),
                    done: false,
                });
            }
            let txid = meta.running.txid;
            drop(meta);
            self.commit_through(txid)?;
        }
    }

    /// An error unless requests may change the volume.
    pub(crate) fn check_writable(&self) -> Result<(), FsError> {
        if self.role != FsRole::Master {
            return Err(FsError::ReadOnly);
        }
        self.check_alive()
    }

    /// Tries to make freed blocks allocatable: commits what freed them, then asks whoever keeps them for mirrors. Whether
    /// there are more than before.
    fn reclaim(&self) -> Result<bool, FsError> {
        let waiting = |meta: &Meta| meta.alloc.as_ref().map_or(0, Allocator::waiting_blocks);
        let (before, running) = {
            let meta = self.meta.read();
            (waiting(&meta), meta.running.txid)
        };
        if before == 0 {
            return Ok(false);
        }
        self.commit_through(running)?;
        let release = || {
            let mut meta = self.meta.write();
            meta.release(self.journal.released());
            waiting(&meta)
        };
        if release() < before {
            return Ok(true);
        }
        if let Some(hook) = self.low_space.read().as_ref() {
            warn!(
                blocks = before,
                "space is short: giving up what mirrors still need"
            );
            hook();
        }
        Ok(release() < before)
    }
}

/// As ext4: root, and the user and the group that the superblock names, may use the reserve.
pub(crate) fn reach_of(sb: &Superblock, caller: Caller) -> Reach {
    let group = sb.def_resgid();
    let favoured =
        caller.uid == 0 || caller.uid == sb.def_resuid() || (group != 0 && caller.gid == group);
    match favoured {
        true => Reach::Superuser,
        false => Reach::Anyone,
    }
}

impl Op<'_> {
    /// The running transaction.
    pub fn txid(&self) -> Txid {
        self.meta.running.txid
    }

    /// Remembers what the running transaction has for `block`, once.
    fn save(&mut self, block: BlockNo) {
        let running = &self.meta.running;
        self.before.entry(block).or_insert_with(|| Before {
            image: running.images.get(&block).cloned(),
            data: running.data.contains(&block),
        });
    }

    /// The superblock, to be changed; it joins the transaction when that closes.
    pub fn sb_mut(&mut self) -> &mut Superblock {
        if self.sb_before.is_none() {
            self.sb_before = Some((self.meta.sb.clone(), self.meta.sb_changed));
        }
        self.meta.sb_changed = true;
        &mut self.meta.sb
    }

    /// Notes a change of an inode; `data`: one that fdatasync must make durable.
    pub fn touch(&mut self, ino: Ino, data: bool) {
        *self.collected.inodes.entry(ino).or_insert(false) |= data;
    }

    /// Notes that a name appeared, vanished or names another inode.
    pub fn touch_name(&mut self, parent: Ino, name: &[u8]) {
        self.collected.names.push((parent, name.into()));
    }

    /// New contents of a block of a file, by value.
    pub fn put_data(&mut self, block: BlockNo, image: Image) {
        self.save(block);
        self.meta.running.images.insert(block, image);
        self.meta.running.data.insert(block);
        self.given_contents(BlockRange::new(block, 1));
    }

    /// Fresh data of a file that is at home already.
    pub fn put_reference(&mut self, reference: Reference) {
        self.given_contents(reference.range);
        self.collected.refs.push(reference);
    }

    /// Blocks of a file that were allocated and are zeroed at home.
    pub fn put_zeroed(&mut self, range: BlockRange) {
        self.collected.zeroed.push(range);
    }

    fn given_contents(&mut self, range: BlockRange) {
        subtract(&mut self.collected.zeroed, range);
        self.collected.given_contents.push(range);
    }

    /// The operation is complete: its changes stay. Whether the transaction is so full that it should be committed.
    fn finish(mut self) -> bool {
        self.done = true;
        if self.before.is_empty() && self.sb_before.is_none() && self.collected.is_empty() {
            return false;
        }
        let collected = std::mem::take(&mut self.collected);
        let txid = self.meta.running.txid;
        for (ino, data) in &collected.inodes {
            self.fs
                .inodes
                .get(*ino, self.fs.committed())
                .touch(txid, *data);
        }
        let now = self.fs.clock.monotonic();
        self.meta.running.absorb(collected, now);
        self.meta.running.log_blocks(self.fs.block_size) > self.fs.max_transaction_blocks / 2
    }

    fn undo(&mut self) {
        let running = &mut self.meta.running;
        for (block, before) in self.before.drain() {
            match before.image {
                Some(image) => running.images.insert(block, image),
                None => running.images.remove(&block),
            };
            if before.data {
                running.data.insert(block);
            } else {
                running.data.remove(&block);
            }
        }
        if let Some((sb, changed)) = self.sb_before.take() {
            self.meta.sb = sb;
            self.meta.sb_changed = changed;
        }
        if let Err(e) = self.undo_memory() {
            // What is in memory no longer says what the transaction's images say: nothing more may be built on it.
            self.fs.give_up(&e);
        }
    }

    /// Brings what is kept in memory beside the images back to what these say.
    fn undo_memory(&mut self) -> Result<(), FsError> {
        if std::mem::take(&mut self.orphans_changed) {
            self.meta.orphans = Orphans::open(self)?;
        }
        if std::mem::take(&mut self.alloc_changed) {
            let txid = self.txid();
            let freed = std::mem::take(&mut self.collected.freed);
            let mut alloc = self.meta.alloc.take().ok_or(FsError::ReadOnly)?;
            for range in freed {
                alloc.unquarantine(range, txid);
            }
            for range in std::mem::take(&mut self.taken) {
                alloc.hold(range);
            }
            let result = alloc.reload(self);
            self.meta.alloc = Some(alloc);
            result?;
        }
        Ok(())
    }
}

impl Drop for Op<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.undo();
        }
    }
}

impl Blocks for Op<'_> {
    fn sb(&self) -> &Superblock {
        &self.meta.sb
    }

    fn get(&self, block: BlockNo) -> Result<Image, FsError> {
        self.meta.get(self.fs, block)
    }

    fn is_system(&self, range: BlockRange) -> bool {
        self.meta.is_system(range)
    }
}

impl BlocksMut for Op<'_> {
    fn modify(&mut self, block: BlockNo) -> Result<&mut [u8], FsError> {
        if !self.meta.running.images.contains_key(&block) {
            let image = self.meta.get(self.fs, block)?;
            self.save(block);
            self.meta.running.images.insert(block, image);
        } else {
            self.save(block);
        }
        let image = self.meta.running.images.get_mut(&block);
        Ok(Arc::make_mut(image.expect("was there or was just put in")))
    }

    fn create(&mut self, block: BlockNo) -> Result<&mut [u8], FsError> {
        self.save(block);
        let zeros = Image::from(vec![0; self.fs.block_size]);
        self.given_contents(BlockRange::new(block, 1));
        let images = &mut self.meta.running.images;
        images.insert(block, zeros);
        let image = images.get_mut(&block).expect("was just put in");
        Ok(Arc::make_mut(image))
    }

    fn alloc(&mut self, goal: BlockNo, min: u32, max: u32) -> Result<BlockRange, FsError> {
        let request = BlockRequest {
            goal,
            min,
            max,
            reach: self.reach,
        };
        self.with_alloc(|alloc, op| Ok(alloc.alloc_blocks(op, &request)?))
    }

    fn alloc_node(&mut self, goal: BlockNo) -> Result<BlockRange, FsError> {
        let request = BlockRequest {
            goal,
            min: 1,
            max: 1,
            reach: Reach::Tree,
        };
        self.with_alloc(|alloc, op| Ok(alloc.alloc_blocks(op, &request)?))
    }

    fn free(&mut self, range: BlockRange) -> Result<(), FsError> {
        let txid = self.txid();
        self.with_alloc(|alloc, op| Ok(alloc.free_blocks_in(op, range, txid)?))?;
        self.collected.freed.push(range);
        // No image of a freed block goes into the log.
        let images = self.meta.running.images.range(range.start..range.end());
        let logged: Vec<BlockNo> = images.map(|(block, _)| *block).collect();
        for block in logged {
            self.save(block);
            self.meta.running.images.remove(&block);
            self.meta.running.data.remove(&block);
        }
        subtract(&mut self.collected.zeroed, range);
        self.collected.given_contents.push(range);
        Ok(())
    }

    fn now(&self) -> (i64, u32) {
        self.now
    }
}
