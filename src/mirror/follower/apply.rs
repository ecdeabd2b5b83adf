//! Transactions, as they come in: collected until they are whole, made durable in this side's journal, acknowledged, and
//! shown once the master has committed them. And answers to questions about hashes, which are about what has been shown.

use std::collections::BTreeMap;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::log::{freed, generation};
use super::{Current, FLUSH_BYTES, Follower, Output, Phase, TRANSACTION_BYTES, protocol};
use crate::journal::{Hint, Image, Reference, Transaction};
use crate::mirror::hashing::hash_blocks;
use crate::mirror::ranges::RangeSet;
use crate::mirror::{MirrorError, guard, stamps};
use crate::units::{BlockNo, BlockRange, Ino, Txid, planted};
use crate::wire::message::{MAX_STREAM_PAYLOAD, Message, Range, Touched};

/// Transactions that a master may have sent without confirming one of them: it sends them while it commits them, one by
/// one.
const MAX_UNCONFIRMED: usize = 256;
/// Blocks that one reference names at most (`journal::Reference`).
const REFERENCE_BLOCKS: u64 = 256;

impl Follower {
    pub(super) fn txn_begin(
        &mut self,
        first: Txid,
        last: Txid,
        zeroed: &[Range],
        freed: &[Range],
        touched: &[Touched],
    ) -> Result<(), MirrorError> {
        let before = match (&self.phase, self.streaming) {
            (Phase::Copying(copying), true) => copying.txid,
            (Phase::Staged(staged), true) => staged.copying.txid,
            (Phase::Following(following), true) => following
                .pending
                .last()
                .map_or(following.durable, |txn| txn.txid),
            _ => return Err(protocol("a transaction outside of a stream")),
        };
        if first > last || first <= before {
            return Err(protocol(&format!(
                "transactions {first} to {last} after transaction {before}"
            )));
        }
        let checked = |ranges: &[Range]| {
            ranges
                .iter()
                .map(|range| self.checked(*range))
                .collect::<Result<Vec<_>, _>>()
        };
        let (zeroed, freed) = (checked(zeroed)?, checked(freed)?);
        self.reaches(last)?;
        self.current = Some(Current {
            first,
            last,
            zeroed,
            freed,
            hints: touched.iter().map(hint_from_wire).collect(),
            images: BTreeMap::new(),
            refs: Vec::new(),
            bytes: 0,
        });
        Ok(())
    }

    pub(super) fn current(&mut self) -> Result<&mut Current, MirrorError> {
        self.current
            .as_mut()
            .ok_or_else(|| protocol("a frame of a transaction that did not begin"))
    }

    pub(super) fn txn_blocks(&mut self, blocks: &[u64], payload: &[u8]) -> Result<(), MirrorError> {
        let block_size = self.volume()?.block_size() as usize;
        if payload.len() != blocks.len() * block_size {
            return Err(protocol("blocks and bytes of a transaction do not match"));
        }
        if matches!(self.phase, Phase::Staged(_)) {
            self.current()?;
            let ranges: Vec<Range> = blocks
                .iter()
                .map(|start| Range {
                    start: *start,
                    len: 1,
                })
                .collect();
            return self.stage(&ranges, payload);
        }
        let guarded = matches!(self.phase, Phase::Copying(_));
        for (block, bytes) in blocks.iter().zip(payload.chunks_exact(block_size)) {
            let range = self.checked(Range {
                start: *block,
                len: 1,
            })?;
            let mut bytes = bytes.to_vec();
            if guarded {
                self.write_home(range, &mut bytes, true)?;
                continue;
            }
            guard::fit_image(*block, &mut bytes, false);
            let current = self.current()?;
            current.bytes += block_size;
            if current.bytes > TRANSACTION_BYTES {
                return Err(protocol("a transaction that is too large"));
            }
            current.images.insert(range.start, Image::from(bytes));
        }
        Ok(())
    }

    pub(super) fn txn_fresh(
        &mut self,
        ranges: &[Range],
        payload: &[u8],
        out: &mut Vec<Output>,
    ) -> Result<(), MirrorError> {
        if matches!(self.phase, Phase::Staged(_)) {
            self.current()?;
            return self.stage(ranges, payload);
        }
        let following = matches!(self.phase, Phase::Following(_));
        for range in ranges {
            let range = self.checked(*range)?;
            if self
                .current()?
                .freed
                .iter()
                .any(|freed| freed.overlaps(&range))
                && following
            {
                return Err(protocol("fresh data in blocks that are still in use"));
            }
            self.settle_before(range, out)?;
        }
        self.write_ranges(ranges, payload, !following)?;
        if following {
            let block_size = self.volume()?.block_size() as usize;
            let current = self.current()?;
            let mut rest = payload;
            for piece in ranges.iter().flat_map(|range| pieces(*range)) {
                let (bytes, later) = rest.split_at(piece.len as usize * block_size);
                rest = later;
                current.refs.push(Reference {
                    range: piece,
                    xxh3: xxh3_64(bytes),
                });
            }
        }
        Ok(())
    }

    /// Blocks that a waiting transaction frees are still in use until that one is shown.
    pub(super) fn settle_before(
        &mut self,
        range: BlockRange,
        out: &mut Vec<Output>,
    ) -> Result<(), MirrorError> {
        let in_use = |follower: &Follower| matches!(&follower.phase, Phase::Following(following) if following.unshown_freed.overlaps(range));
        if in_use(self) {
            self.commit(out)?;
            if in_use(self) {
                return Err(protocol(
                    "blocks are used again whose freeing is not confirmed",
                ));
            }
        }
        if let Phase::Following(following) = &self.phase
            && following.unsure_freed.overlaps(range)
        {
            // After a power cut they would be in use again.
            let applied = following.applied;
            self.note_applied(applied)?;
        }
        Ok(())
    }

    pub(super) fn txn_end(
        &mut self,
        seq: u64,
        last: Txid,
        chain: u64,
        confirmed: Txid,
        out: &mut Vec<Output>,
    ) -> Result<(), MirrorError> {
        let current = self
            .current
            .take()
            .filter(|current| current.last == last)
            .ok_or_else(|| protocol("the end of a transaction that did not begin"))?;
        let volume = self.volume()?;
        if matches!(self.phase, Phase::Staged(_)) {
            let zeroed: Vec<Range> = current.zeroed.iter().map(|range| (*range).into()).collect();
            self.stage(&zeroed, &[])?;
        } else {
            for range in &current.zeroed {
                self.settle_before(*range, out)?;
                volume.zero(*range)?;
            }
        }
        match &mut self.phase {
            Phase::Copying(copying) => {
                copying.took(seq, last);
                Ok(())
            }
            Phase::Staged(staged) => {
                staged.copying.took(seq, last);
                Ok(())
            }
            Phase::Following(following) => {
                following.seq = seq;
                following.confirmed = following.confirmed.max(confirmed);
                // What goes around its blocks counts: there may be no blocks at all.
                following.pending_bytes +=
                    current.bytes as u64 + 4 * u64::from(volume.block_size());
                for range in &current.freed {
                    following.unshown_freed.insert(*range);
                }
                tracing::trace!(volume = %self.name, first = %current.first, %last, "transaction received");
                following.pending.push(Transaction {
                    txid: last,
                    images: current.images,
                    refs: current.refs,
                    zeroed: current.zeroed,
                    freed: current.freed,
                    hints: current.hints,
                    chain,
                });
                // What is appended together takes room in the log that nothing frees before it is shown.
                let log = following.journal.stats().size_blocks * u64::from(volume.block_size());
                match following.pending_bytes >= FLUSH_BYTES.min(log / 4) {
                    true => self.commit(out),
                    false => Ok(()),
                }
            }
            Phase::Idle => Err(protocol("a transaction outside of a stream")),
        }
    }

    /// Makes the waiting transactions durable in this side's journal, acknowledges them, and shows what is confirmed.
    pub(super) fn commit(&mut self, out: &mut Vec<Output>) -> Result<(), MirrorError> {
        self.append(out)?;
        let Phase::Following(following) = &self.phase else {
            return Ok(());
        };
        self.show(following.confirmed, out)?;
        let Phase::Following(following) = &self.phase else {
            return Ok(());
        };
        let images = following
            .unshown
            .iter()
            .map(|txn| txn.images.len())
            .sum::<usize>();
        let block_size = self.volume.as_ref().map_or(0, |volume| volume.block_size());
        if following.unshown.len() > MAX_UNCONFIRMED
            || images * block_size as usize > TRANSACTION_BYTES
        {
            return Err(protocol("too much that the master does not confirm"));
        }
        Ok(())
    }

    /// Makes the waiting transactions durable in this side's journal and acknowledges them.
    pub(super) fn append(&mut self, out: &mut Vec<Output>) -> Result<(), MirrorError> {
        let Phase::Following(following) = &mut self.phase else {
            return Ok(());
        };
        if following.pending.is_empty() {
            return Ok(());
        }
        let mut txns = std::mem::take(&mut following.pending);
        if planted::is("apply-out-of-order")
            && let [.., older, newer] = &mut txns[..]
        {
            std::mem::swap(&mut older.images, &mut newer.images);
        }
        following.pending_bytes = 0;
        let (journal, confirmed) = (Arc::clone(&following.journal), following.confirmed);
        // What the log brings back by itself after a power cut.
        let sure = txns.partition_point(|txn| txn.txid <= confirmed);
        self.take_stamps(&txns[..sure], &txns[sure..])?;
        let before = self.env.clock.monotonic();
        journal.append_confirmed(&txns, confirmed)?;
        let flush_us = self.since(before);
        let Phase::Following(following) = &mut self.phase else {
            return Ok(());
        };
        following.durable = txns.last().expect("not empty").txid;
        // The log says now what was confirmed of what is shown.
        following.unsure_freed = RangeSet::default();
        following.unshown.extend(txns);
        out.push(Output::Send(
            Message::Ack {
                seq: following.seq,
                txid: following.durable.0,
                cursor: 0,
                consistent: true,
                flush_us,
            },
            Vec::new(),
        ));
        Ok(())
    }

    /// The master was opened again: its mount count, which `txns` bring, is this copy's from now on, and no change from
    /// outside. Durable before the log, or a checkpoint, can bring the superblock itself; and since the log may fail, what was
    /// so before is none either. Nor is what the transactions bring that are not confirmed, `later` among them: a promotion
    /// brings them home, and so does a log that says it of them.
    fn take_stamps(&self, txns: &[Transaction], later: &[Transaction]) -> Result<(), MirrorError> {
        let block_size = self.volume.as_ref().map_or(0, |volume| volume.block_size());
        let carried = |txn| stamps::carried(txn, block_size);
        let unshown = self.following().map(|following| &following.unshown);
        let mut facts = self.facts.lock();
        let before = (facts.stamps.clone(), facts.other_stamps.clone());
        let mut others: Vec<_> = txns.iter().filter_map(carried).collect();
        if let Some(stamps) = others.pop()
            && facts.stamps.as_ref() != Some(&stamps)
        {
            others.extend(facts.stamps.replace(stamps));
            facts.other_stamps.clear();
        }
        let unsure = unshown.into_iter().flatten().chain(later);
        others.extend(unsure.filter_map(carried));
        for stamps in others {
            if facts.stamps.as_ref() != Some(&stamps) && !facts.other_stamps.contains(&stamps) {
                facts.other_stamps.push(stamps);
            }
        }
        if before != (facts.stamps.clone(), facts.other_stamps.clone()) {
            self.env.facts.save(&facts)?;
        }
        Ok(())
    }

    /// Shows every transaction of the log up to `through`: the master has committed it.
    pub(super) fn show(&mut self, through: Txid, out: &mut Vec<Output>) -> Result<(), MirrorError> {
        let Phase::Following(following) = &mut self.phase else {
            return Ok(());
        };
        let count = following.unshown.partition_point(|txn| txn.txid <= through);
        if count == 0 {
            return Ok(());
        }
        let txns: Vec<Transaction> = following.unshown.drain(..count).collect();
        self.take_stamps(&txns, &[])?;
        let Phase::Following(following) = &mut self.phase else {
            return Ok(());
        };
        let hints = following.fs.switch_epoch(&txns)?;
        following.applied = txns.last().expect("counted above").txid;
        if !following.journal.is_confirmed_durably(following.applied) {
            let freed = txns.iter().flat_map(|txn| &txn.freed);
            freed.for_each(|range| following.unsure_freed.insert(*range));
        }
        following.unshown_freed = freed(following.unshown.iter().chain(&following.pending));
        out.push(Output::Invalidate(hints));
        Ok(())
    }

    /// The master has committed everything up to `txid`. It is shown once nothing more comes: a transaction that came with
    /// the word goes first, since somebody waits for its acknowledgement.
    pub(super) fn confirm(&mut self, txid: Txid) {
        // Otherwise: of a stream that has turned into a copy.
        if let (Phase::Following(following), true) = (&mut self.phase, self.streaming) {
            following.confirmed = following.confirmed.max(txid);
        }
    }

    /// Every mirror has everything up to `floor`: nobody will ever need that of this one.
    pub(super) fn floor(&mut self, floor: Txid) {
        let Phase::Following(following) = &self.phase else {
            return;
        };
        let generation = {
            let mut facts = self.facts.lock();
            facts.floor = floor;
            generation(&facts)
        };
        if !following.held {
            let journal = &following.journal;
            let applied = following.applied;
            following.heir.advance(journal, generation, floor, applied);
        }
    }

    pub(super) fn hash(
        &mut self,
        id: u64,
        ranges: &[Range],
        out: &mut Vec<Output>,
    ) -> Result<(), MirrorError> {
        self.idle_into(out)?;
        let volume = self.volume()?;
        let ranges = ranges
            .iter()
            .map(|range| self.checked(*range))
            .collect::<Result<Vec<_>, _>>()?;
        let blocks: u64 = ranges.iter().map(|range| range.len).sum();
        if blocks > 1 << 20 {
            return Err(protocol("a question about too many blocks"));
        }
        let block_size = u64::from(volume.block_size());
        let hashes = match self.following() {
            Some(following) => hash_blocks(&ranges, block_size, |start, buf| {
                following
                    .journal
                    .read(start, buf)
                    .map_err(MirrorError::from)
            })?,
            None => hash_blocks(&ranges, block_size, |start, buf| {
                volume.read(start, buf).map_err(MirrorError::from)
            })?,
        };
        let payload = hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
        out.push(Output::Send(Message::Hashes { id }, payload));
        Ok(())
    }
}

impl Follower {
    /// Sends what the copy has in some blocks, as it is shown.
    pub(super) fn fetch(
        &mut self,
        id: u64,
        ranges: &[Range],
        out: &mut Vec<Output>,
    ) -> Result<(), MirrorError> {
        self.idle_into(out)?;
        let block_size = self.volume()?.block_size() as usize;
        let ranges = ranges
            .iter()
            .map(|range| self.checked(*range))
            .collect::<Result<Vec<_>, _>>()?;
        let blocks: u64 = ranges.iter().map(|range| range.len).sum();
        if blocks > (MAX_STREAM_PAYLOAD / block_size) as u64 {
            return Err(protocol("too many blocks are asked for"));
        }
        let Some(following) = self.following() else {
            return Err(protocol(
                "blocks are asked for, but there is no copy to read",
            ));
        };
        let mut payload = Vec::new();
        for range in ranges {
            let at = payload.len();
            payload.resize(at + range.len as usize * block_size, 0);
            following.journal.read(range.start, &mut payload[at..])?;
        }
        out.push(Output::Send(Message::Fetched { id }, payload));
        Ok(())
    }
}

/// A range in pieces as a transaction refers to them.
fn pieces(range: Range) -> impl Iterator<Item = BlockRange> {
    let starts = (0..range.len).step_by(REFERENCE_BLOCKS as usize);
    starts.map(move |at| {
        let len = (range.len - at).min(REFERENCE_BLOCKS);
        BlockRange::new(BlockNo(range.start + at), len)
    })
}

fn hint_from_wire(touched: &Touched) -> Hint {
    match touched {
        Touched::Inode(ino) => Hint::Inode(Ino(*ino)),
        Touched::Entry(parent, name) => Hint::Entry {
            parent: Ino(*parent),
            name: name.clone(),
        },
        Touched::Everything => Hint::EverythingChanged,
    }
}
