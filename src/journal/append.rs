//! Writing transactions into the log, making them durable, publishing them. Owns the layout of a transaction's blocks and
//! the search for space. Invariants: nothing is written over space that the durable checkpoint tail or the saved mirror
//! tail still covers; the commit blocks of a group are written after the flush that covers everything before them.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::MutexGuard;

use super::format::{HEADER_SIZE, REVOKE_HEADER_SIZE, Tag, needs_escape};
use super::log::{LogWriter, Pos};
use super::payload::{PART_HEADER_SIZE, Payload, encode_part};
use super::scan::Logged;
use super::state::{Newest, Pending, Txn, gone};
use super::superblock::LogFormat;
use super::transaction::{Image, Transaction, chain_hash};
use super::{Journal, JournalError, Refused};
use crate::units::{BlockNo, BlockRange, Generation, Txid, coalesce, planted};

/// Transactions that share two flushes. Bounds how many tids a crash can leave behind in the log without a commit.
pub(super) const MAX_GROUP: u32 = 256;
/// Log bytes of a group of several transactions; where recovery looks for what a crash left behind.
pub(super) const GROUP_BYTES: u64 = 16 << 20;

/// What one transaction will take.
struct Plan {
    payload: Vec<u8>,
    revokes: Vec<BlockNo>,
    /// Per revoke block: how many records, how many payload bytes.
    revoke_blocks: Vec<(usize, usize)>,
    gone: Vec<BlockRange>,
    blocks: u64,
}

/// Blocks that are in the log and not yet durable.
struct Written {
    indexed: Vec<Txn>,
    commits: Vec<(Pos, u32)>,
    format: LogFormat,
}

/// A transaction that is being committed.
#[derive(Debug)]
pub struct PreparedTxn {
    /// As it will be committed.
    pub txn: Transaction,
    /// The last transaction before it.
    pub after: Txid,
}

/// The first half of a commit, done.
pub struct Prepared<'a> {
    journal: &'a Journal,
    zeroed: Vec<BlockRange>,
    written: Written,
    commit: MutexGuard<'a, ()>,
}

impl Prepared<'_> {
    /// The second half: durable and visible on return.
    pub fn finish(self) -> Result<(), JournalError> {
        let journal = self.journal;
        let zeroed = std::iter::once(&self.zeroed[..]);
        // In one step: whoever learns that the transaction is committed reads what it wrote. A stream that left a block out
        // of a transaction, because its copy comes to it later, must not then copy what the block was before.
        let done = journal.make_durable(self.written, zeroed, true);
        *journal.prepared.lock() = None;
        let void = done.map_err(|error| journal.abort_with(error))?;
        drop(self.commit);
        journal.wait_landed(void);
        Ok(())
    }
}

impl Journal {
    /// Appends and publishes one transaction of a master; fills its chain hash. Durable and visible on return. Fresh data
    /// that it refers to was written home before: the first of the two flushes makes it durable.
    pub fn commit(&self, txn: &mut Transaction) -> Result<(), JournalError> {
        self.prepare(txn)?.finish()
    }

    /// The first half of `commit`: the transaction's blocks are written, nothing is flushed. Those who listen are told, so
    /// that a mirror in sync mode gets it while this side flushes.
    pub fn prepare(&self, txn: &mut Transaction) -> Result<Prepared<'_>, JournalError> {
        let commit = self.commit.lock();
        self.check_alive()?;
        let (chain, after) = {
            let state = self.state.read();
            (state.chain, state.last)
        };
        txn.chain = chain_hash(chain, txn);
        let one = std::slice::from_ref(txn);
        self.check_transactions(one)?;
        let written = self.write_first(one, None)?;
        let listener = self.on_prepared.read();
        if let Some(listener) = &*listener {
            let txn = txn.clone();
            *self.prepared.lock() = Some(Arc::new(PreparedTxn { txn, after }));
            listener();
        }
        drop(listener);
        Ok(Prepared {
            journal: self,
            zeroed: txn.zeroed.clone(),
            written,
            commit,
        })
    }

    /// Calls `listener`, with the commit lock held, when a transaction is prepared; `None`: nobody listens.
    pub fn on_prepared(&self, listener: Option<Box<dyn Fn() + Send + Sync>>) {
        *self.on_prepared.write() = listener;
        // What is being committed stays for whoever sends it just now.
    }

    /// The transaction that is being committed: its blocks are in the log, and it may still be lost with the power.
    pub fn prepared(&self) -> Option<Arc<PreparedTxn>> {
        self.prepared.lock().clone()
    }

    /// Appends transactions, oldest first: durable on return, not yet visible, not yet checkpointed. After an error a
    /// prefix of them may have been appended; `last_committed` tells.
    pub fn append(&self, txns: &[Transaction]) -> Result<(), JournalError> {
        let _commit = self.commit.lock();
        self.append_locked(txns, None)
    }

    /// As `append`, for a mirror that is told what its master has committed: the log says so too (`Payload::confirmed`), for
    /// whoever recovers it.
    pub fn append_confirmed(
        &self,
        txns: &[Transaction],
        confirmed: Txid,
    ) -> Result<(), JournalError> {
        let _commit = self.commit.lock();
        self.append_locked(txns, Some(confirmed))?;
        self.confirmed_durably(confirmed);
        Ok(())
    }

    /// Lets reading see every appended transaction up to `through`. On return no older image of a block that they freed or
    /// wrote home is on its way home.
    pub fn publish(&self, through: Txid) {
        let void = self.state.write().publish(through);
        self.wait_landed(void);
    }

    /// Waits until nothing in `void` is on its way home.
    fn wait_landed(&self, void: Vec<BlockRange>) {
        let void = coalesce(void);
        let mut in_flight = self.in_flight.lock();
        while void
            .iter()
            .any(|r| in_flight.range(r.start..r.end()).next().is_some())
        {
            self.landed.wait(&mut in_flight);
        }
    }

    fn append_locked(
        &self,
        txns: &[Transaction],
        confirmed: Option<Txid>,
    ) -> Result<(), JournalError> {
        self.check_alive()?;
        self.check_transactions(txns)?;
        let mut rest = txns;
        while !rest.is_empty() {
            let written = self.write_first(rest, confirmed)?;
            let (group, later) = rest.split_at(written.indexed.len());
            let zeroed = group.iter().map(|txn| &txn.zeroed[..]);
            self.make_durable(written, zeroed, false)
                .map_err(|error| self.abort_with(error))?;
            rest = later;
        }
        Ok(())
    }

    /// Writes the blocks of the first of `txns`, as many as share their flushes.
    fn write_first(
        &self,
        txns: &[Transaction],
        confirmed: Option<Txid>,
    ) -> Result<Written, JournalError> {
        let capacity = self.log.capacity();
        let group_blocks = (GROUP_BYTES / self.log.block_size() as u64).min(capacity / 4);
        let (plans, total) = self.plan_group(txns, group_blocks, confirmed)?;
        if self.keeper.read().is_some() && self.state.read().saved.is_none() {
            self.save_tail(true)?;
        }
        self.ensure_space(total)?;
        self.write_group(&txns[..plans.len()], plans, total)
            .map_err(|error| self.abort_with(error))
    }

    fn check_transactions(&self, txns: &[Transaction]) -> Result<(), JournalError> {
        let state = self.state.read();
        if !state.open {
            return Err(Refused::NoSegment.into());
        }
        let volume_blocks = self.volume.blocks_count();
        let lowest = state.segments.last().map_or(Txid(0), |(s, _)| s.first_txid);
        let mut last = state.last.max(Txid(lowest.0.saturating_sub(1)));
        for txn in txns {
            if txn.txid <= last {
                return Err(Refused::OutOfOrder {
                    txid: txn.txid,
                    last,
                }
                .into());
            }
            last = txn.txid;
            for (block, image) in &txn.images {
                if block.0 >= volume_blocks || image.len() != self.log.block_size() {
                    return Err(Refused::BadBlock {
                        txid: txn.txid,
                        block: *block,
                    }
                    .into());
                }
            }
            let refs = txn.refs.iter().map(|r| &r.range);
            for range in refs.chain(&txn.zeroed).chain(&txn.freed) {
                if range.len == 0
                    || range
                        .start
                        .0
                        .checked_add(range.len)
                        .is_none_or(|end| end > volume_blocks)
                {
                    return Err(Refused::BadBlock {
                        txid: txn.txid,
                        block: range.start,
                    }
                    .into());
                }
            }
        }
        Ok(())
    }

    /// Plans as many of the next transactions as share their flushes, at least one; and the log blocks they take.
    fn plan_group(
        &self,
        txns: &[Transaction],
        group_blocks: u64,
        confirmed: Option<Txid>,
    ) -> Result<(Vec<Plan>, u64), JournalError> {
        let state = self.state.read();
        let limit = self.log.capacity() / 2;
        let mut plans: Vec<Plan> = Vec::new();
        let mut total = 0;
        // What the group's earlier transactions do to blocks; shadows the index.
        let mut earlier: BTreeMap<BlockNo, bool> = BTreeMap::new();
        for txn in txns.iter().take(MAX_GROUP as usize) {
            let refs: Vec<BlockRange> = txn.refs.iter().map(|r| r.range).collect();
            let gone = gone(&txn.freed, &refs, &txn.zeroed);
            let mut revokes = revokes(&gone, txn, &state.logged, &earlier);
            if planted::is("skip-revoke") {
                revokes.clear();
            }
            let confirmed = confirmed.unwrap_or(txn.txid);
            let plan = plan(
                &state.format,
                state.generation,
                txn,
                confirmed,
                gone,
                revokes,
            );
            if plan.blocks > limit {
                return Err(Refused::TooLarge {
                    txid: txn.txid,
                    blocks: plan.blocks,
                    limit,
                }
                .into());
            }
            if !plans.is_empty() && total + plan.blocks > group_blocks {
                break;
            }
            for block in &plan.revokes {
                earlier.insert(*block, true);
            }
            for block in txn.images.keys() {
                earlier.insert(*block, false);
            }
            total += plan.blocks;
            plans.push(plan);
        }
        Ok((plans, total))
    }

    /// Blocks that may be written now, and the same if only one of the two tails counted.
    fn free_blocks(&self) -> (u64, u64, u64) {
        let keeper = self.keeper.read().is_some();
        let state = self.state.read();
        // One block stays free, so that a full log and an empty one differ.
        let room = self.log.capacity() - 1;
        let behind = |pos: Pos| room.saturating_sub(state.head - pos);
        let by_checkpoint = behind(state.durable_tail.pos);
        let by_mirrors = behind(state.mirror_limit(keeper));
        (by_checkpoint.min(by_mirrors), by_checkpoint, by_mirrors)
    }

    /// Waits for nothing: moves the tails until `need` blocks are free, or fails by name.
    fn ensure_space(&self, need: u64) -> Result<(), JournalError> {
        let has_keeper = self.keeper.read().is_some();
        let mut before_room = None;
        loop {
            let (_, by_checkpoint, mut by_mirrors) = self.free_blocks();
            // Tails are saved seldom: when they are in the way, or half the log would come free.
            let could = {
                let state = self.state.read();
                state.needed().0 - state.mirror_limit(has_keeper).min(state.needed().0)
            };
            let half = self.log.capacity() / 2;
            if has_keeper
                && could > 0
                && (by_mirrors < need || (by_mirrors < half && could >= half / 2))
            {
                self.save_tail(true)?;
                by_mirrors = self.free_blocks().2;
            }
            if by_checkpoint < need {
                self.checkpoint_for(need)?;
            }
            let (free, by_checkpoint, _) = self.free_blocks();
            if free >= need {
                return Ok(());
            }
            // What holds the log now is a consumer: its transactions, or its pins under the checkpoint tail.
            let now = {
                let state = self.state.read();
                (
                    state.durable_tail.pos,
                    state.needed().0,
                    state.lowest_consumer(),
                )
            };
            let full = || {
                let state = self.state.read();
                JournalError::from(Refused::LogFull {
                    needed: need,
                    free,
                    size: self.log.capacity(),
                    oldest: state.txns.front().map_or(state.last, |t| t.txid),
                    last: state.last,
                })
            };
            tracing::debug!(need, by_checkpoint, by_mirrors, "the log is full");
            let held_by_consumers =
                by_mirrors < need || self.state.read().overlay.is_held_by_pins();
            if before_room == Some(now) || !held_by_consumers || !self.make_room()? {
                return Err(full());
            }
            before_room = Some(now);
        }
    }

    fn write_group(
        &self,
        txns: &[Transaction],
        plans: Vec<Plan>,
        total: u64,
    ) -> Result<Written, JournalError> {
        let (format, generation, head, first_tid, live) = {
            let mut state = self.state.write();
            let end = state.head + total;
            state.forget_before((end + 1).saturating_sub(self.log.capacity()));
            (
                state.format,
                state.generation,
                state.head,
                state.next_tid,
                state.live,
            )
        };
        if !live {
            self.start_log(head, first_tid)?;
        }
        let mut writer = LogWriter::new(&self.log, head);
        let mut commits: Vec<(Pos, u32)> = Vec::with_capacity(txns.len());
        let mut indexed: Vec<Txn> = Vec::with_capacity(txns.len());
        let mut tid = first_tid;
        for (txn, plan) in txns.iter().zip(plans) {
            let start = writer.pos();
            let images = write_images(&mut writer, &format, tid, txn)?;
            write_revokes(&mut writer, &format, tid, txn.txid, &plan)?;
            commits.push((writer.pos(), tid));
            // The commit block's place: nothing older may stand there, and one write covers the group.
            writer.push(&vec![0; format.block_size])?;
            indexed.push(Txn {
                txid: txn.txid,
                tid,
                generation,
                chain: txn.chain,
                start,
                end: writer.pos(),
                images: images.len() as u64,
                blocks: txn.images.keys().copied().collect(),
                revoked: plan.revokes,
                refs: coalesce(txn.refs.iter().map(|r| r.range).collect()),
                outstanding: images.len(),
                pending: Some(Pending {
                    images,
                    gone: plan.gone,
                }),
            });
            tid = tid.wrapping_add(1);
        }
        writer.finish()?;
        assert_eq!(
            writer.pos(),
            head + total,
            "a transaction takes what was planned"
        );
        Ok(Written {
            indexed,
            commits,
            format,
        })
    }

    /// The flushes of a group, and its commit blocks between them. With `publish` the group becomes visible as it becomes
    /// known; returns the ranges whose older images are void by that.
    fn make_durable<'a>(
        &self,
        written: Written,
        zeroed: impl Iterator<Item = &'a [BlockRange]>,
        publish: bool,
    ) -> Result<Vec<BlockRange>, JournalError> {
        self.flush()?;
        for (pos, tid) in written.commits {
            self.log.write(pos, &written.format.encode_commit(tid))?;
        }
        if !planted::is("ack-before-flush") {
            self.flush()?;
        }
        let mut state = self.state.write();
        for (txn, zeroed) in written.indexed.into_iter().zip(zeroed) {
            state.push(txn, zeroed);
        }
        match publish {
            true => {
                let last = state.last;
                Ok(state.publish(last))
            }
            false => Ok(Vec::new()),
        }
    }

    /// The first commit of a segment: the superblock points at it before or with the flush of its blocks. Should the
    /// superblock get to the disk alone, replay finds no transaction there.
    fn start_log(&self, head: Pos, tid: u32) -> Result<(), JournalError> {
        let _checkpoint = self.checkpoint.lock();
        let block = self.log.block_at(head);
        self.write_superblock(|sb| {
            sb.use_own_features();
            sb.set_tail(block, tid);
            // Where the last clean close left the head is no longer true, whoever recovers this log.
            sb.set_head(crate::units::LogBlock(0));
            sb.set_errno(0);
        })?;
        self.state.write().live = true;
        Ok(())
    }
}

/// The void blocks of which the log still holds an image that replay would bring back.
fn revokes(
    gone: &[BlockRange],
    txn: &Transaction,
    logged: &BTreeMap<BlockNo, Newest>,
    earlier: &BTreeMap<BlockNo, bool>,
) -> Vec<BlockNo> {
    let mut out = Vec::new();
    for range in gone {
        let span = range.start..range.end();
        for (block, newest) in logged.range(span.clone()) {
            if !newest.revoked && !earlier.contains_key(block) && !txn.images.contains_key(block) {
                out.push(*block);
            }
        }
        for (block, revoked) in earlier.range(span) {
            if !revoked && !txn.images.contains_key(block) {
                out.push(*block);
            }
        }
    }
    out
}

fn plan(
    format: &LogFormat,
    generation: Generation,
    txn: &Transaction,
    confirmed: Txid,
    gone: Vec<BlockRange>,
    revokes: Vec<BlockNo>,
) -> Plan {
    let payload = Payload {
        txid: txn.txid,
        generation,
        chain: txn.chain,
        confirmed,
        refs: txn.refs.clone(),
        zeroed: txn.zeroed.clone(),
        freed: txn.freed.clone(),
        hints: txn.hints.clone(),
    }
    .encode();
    let revoke_blocks = split_revokes(format, revokes.len(), payload.len());
    let images = txn.images.len() as u64;
    let descriptors = images.div_ceil(format.tags_per_descriptor() as u64);
    Plan {
        blocks: descriptors + images + revoke_blocks.len() as u64 + 1,
        payload,
        revokes,
        revoke_blocks,
        gone,
    }
}

/// How many records and payload bytes each revoke block takes: records first, the payload behind the last of them.
pub(super) fn split_revokes(
    format: &LogFormat,
    mut records: usize,
    mut bytes: usize,
) -> Vec<(usize, usize)> {
    /// A part smaller than this is not begun behind records.
    const WORTHWHILE: usize = 64;
    const _: () = assert!(REVOKE_HEADER_SIZE > HEADER_SIZE);
    let room = format.content_end() - REVOKE_HEADER_SIZE;
    let mut blocks = Vec::new();
    while records > 0 || bytes > 0 {
        let here = records.min(room / format.revoke_size());
        let left = room - here * format.revoke_size();
        let part = if left >= PART_HEADER_SIZE + WORTHWHILE {
            bytes.min(left - PART_HEADER_SIZE)
        } else {
            0
        };
        blocks.push((here, part));
        records -= here;
        bytes -= part;
    }
    blocks
}

fn write_images(
    writer: &mut LogWriter<'_>,
    format: &LogFormat,
    tid: u32,
    txn: &Transaction,
) -> Result<Vec<(Logged, Image)>, JournalError> {
    let all: Vec<(&BlockNo, &Image)> = txn.images.iter().collect();
    let mut out = Vec::with_capacity(all.len());
    let mut escaped_bytes = vec![0; format.block_size];
    for chunk in all.chunks(format.tags_per_descriptor()) {
        let mut tags = Vec::with_capacity(chunk.len());
        for (i, (block, image)) in chunk.iter().enumerate() {
            let escaped = needs_escape(image);
            let checksum = if escaped {
                escaped_bytes.copy_from_slice(image);
                escaped_bytes[..4].fill(0);
                format.tag_checksum(tid, &escaped_bytes)
            } else {
                format.tag_checksum(tid, image)
            };
            tags.push(Tag {
                block: **block,
                escaped,
                checksum,
            });
            out.push((
                Logged {
                    block: **block,
                    pos: writer.pos() + 1 + i as u64,
                    escaped,
                    checksum,
                    tid,
                },
                Image::clone(image),
            ));
        }
        writer.push(&format.encode_descriptor(tid, &tags))?;
        for ((_, image), tag) in chunk.iter().zip(&tags) {
            if tag.escaped {
                escaped_bytes.copy_from_slice(image);
                escaped_bytes[..4].fill(0);
                writer.push(&escaped_bytes)?;
            } else {
                writer.push(image)?;
            }
        }
    }
    Ok(out)
}

fn write_revokes(
    writer: &mut LogWriter<'_>,
    format: &LogFormat,
    tid: u32,
    txid: Txid,
    plan: &Plan,
) -> Result<(), JournalError> {
    let parts = plan.revoke_blocks.iter().filter(|b| b.1 > 0).count() as u16;
    let mut part = 0;
    let (mut records, mut bytes) = (&plan.revokes[..], &plan.payload[..]);
    for (count, len) in &plan.revoke_blocks {
        let (now, later) = records.split_at(*count);
        let (here, rest) = bytes.split_at(*len);
        (records, bytes) = (later, rest);
        let behind = if here.is_empty() {
            Vec::new()
        } else {
            part += 1;
            encode_part(txid, part - 1, parts, here)
        };
        writer.push(&format.encode_revoke(tid, now, &behind))?;
    }
    Ok(())
}
