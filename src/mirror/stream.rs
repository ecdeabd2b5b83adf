//! The master's side of one mirror's stream: the sequencer and the bulk replicator, in one order.
//!
//! Owns what was sent and not yet acknowledged. Never blocks and never reads a clock: `next` gives the frame to be sent
//! now, or nothing. Invariants: transactions go out in order, each whole or never ended; the cursor passes a chunk, and
//! the chunk takes its place in the stream, before it is read; what lies beyond the cursor is not sent with a
//! transaction, what lies behind it is; a bit of the dirty map is cleared only by the acknowledgement of the frame that
//! carried the block, and not at all if the mirror cracked in between.

mod bulk;
mod confirm;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::journal::{Hint, Journal, Transaction, TxnInfo};
use crate::mirror::MirrorError;
use crate::mirror::committed::{self, Committed};
use crate::mirror::counters::Histogram;
use crate::mirror::hashing::Questions;
use crate::mirror::ranges::RangeSet;
use crate::mirror::rate::Rate;
use crate::mirror::shipment::Shipment;
use crate::mirror::slot::{Slot, SlotState};
use crate::units::{BlockNo, BlockRange, Generation, Txid, planted};
use crate::volume::Volume;
use crate::wire::message::{MAX_STREAM_PAYLOAD, Message, Range, Touched};

/// A header and its payload.
pub type Frame = (Message, Vec<u8>);

/// Bytes of blocks in one frame of the bulk replicator.
const BULK_BYTES: u64 = 1 << 20;
/// Bytes under way before the stream waits for acknowledgements.
const WINDOW_BYTES: u64 = 32 << 20;
/// A merge with more bytes by value than this is not worth its memory: the mirror cracks instead.
const MERGE_BYTES: u64 = 256 << 20;
/// Blocks of the volume that one step of a pass looks at, at most.
const SPAN_BLOCKS: u64 = 32768;
/// Spans without anything to copy that one step skips.
const SPANS_A_STEP: u32 = 64;

/// Where the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Asking for hashes of everything allocated; what differs goes into the map.
    Compare {
        /// Next block to be compared.
        cursor: BlockNo,
    },
    /// Copying: every allocated block (`first`), or the blocks of the map.
    Copy {
        /// First block that was not passed.
        cursor: BlockNo,
        /// Whether this is a first copy.
        first: bool,
    },
    /// The cursor is at the end; the copy is whole once `until` is applied.
    Draining {
        /// Last transaction committed when the last chunk was read.
        until: Txid,
    },
    /// `CopyEnd` was sent and is not acknowledged.
    Ending {
        /// Its place in the stream.
        seq: u64,
    },
    /// Nothing but transactions.
    Sequencing,
}

/// What `next` has.
#[derive(Debug)]
pub enum Next {
    /// A frame, to be sent now.
    Frame(Frame),
    /// Nothing until something is committed, acknowledged, or the given time has come.
    Nothing {
        /// When the rate limit lets the next chunk go, if that is what is waited for.
        at: Option<Duration>,
    },
    /// The mirror cracked while it was sequencing: the state machine has to be told.
    Cracked,
}

/// What an acknowledgement led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acked {
    /// Progress.
    Progress,
    /// The copy is complete and consistent, and the map is empty.
    InSync,
    /// The copy is complete, but blocks were marked meanwhile: another one has to begin.
    Again,
}

/// What has been sent since the stream's owner began to count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of blocks sent by the bulk replicator.
    pub bytes_bulk: u64,
    /// Bytes of blocks sent with transactions.
    pub bytes_sequenced: u64,
    /// Transactions sent (a merge counts as one).
    pub transactions: u64,
    /// Bytes read from the volume for the bulk replicator.
    pub bytes_read: u64,
    /// Transactions that were sent again, after a link was lost or a mirror fell behind.
    pub retransmitted: u64,
    /// Transactions that were sent while they were being committed here.
    pub sent_early: u64,
}

#[derive(Debug)]
struct InFlight {
    seq: u64,
    bytes: u64,
    at: Duration,
}

/// A transaction of which not every frame was sent.
#[derive(Debug)]
struct Sending {
    shipment: Shipment,
    blocks_left: VecDeque<BlockNo>,
    fresh_left: VecDeque<BlockRange>,
    begun: bool,
    bytes: u64,
}

/// The master's side of a stream.
#[derive(Debug)]
pub struct Stream {
    volume: Arc<Volume>,
    journal: Arc<Journal>,
    slot: Arc<Slot>,
    generation: Generation,
    log: Vec<BlockRange>,
    phase: Phase,
    cracks: u64,
    seq: u64,
    sent: Txid,
    /// What was sent is committed here, and the mirror knows, up to this.
    confirmed: Txid,
    /// When it was first to be told of more.
    confirm_since: Option<Duration>,
    /// The furthest that was ever sent.
    furthest: Txid,
    /// Transactions go out while they are being committed.
    early: bool,
    now: Duration,
    infos: VecDeque<TxnInfo>,
    sending: Option<Sending>,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: u64,
    passed_blocks: u64,
    used_blocks: u64,
    committed: Option<Committed>,
    bulk_turn: bool,
    mismatches: u32,
    /// The mirror cracked after the end of a copy was sent: nothing more goes out before a new one begins.
    void: bool,
    rate: Rate,
    pub(super) questions: Questions,
    /// What was sent.
    pub counters: Counters,
    /// From a frame to its acknowledgement.
    pub round_trip: Histogram,
}

impl Stream {
    /// A stream that has nothing to say yet. `log` are the journal file's own blocks, which are never copied.
    pub fn new(
        volume: Arc<Volume>,
        journal: Arc<Journal>,
        slot: Arc<Slot>,
        generation: Generation,
        log: Vec<BlockRange>,
        rate: Rate,
    ) -> Stream {
        let block_size = u64::from(volume.block_size());
        Stream {
            volume,
            journal,
            slot,
            generation,
            log,
            phase: Phase::Sequencing,
            cracks: 0,
            seq: 0,
            sent: Txid(0),
            confirmed: Txid(0),
            confirm_since: None,
            furthest: Txid(0),
            early: false,
            now: Duration::ZERO,
            infos: VecDeque::new(),
            sending: None,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            passed_blocks: 0,
            used_blocks: 0,
            committed: None,
            bulk_turn: false,
            mismatches: 0,
            void: false,
            rate,
            questions: Questions::new(block_size),
            counters: Counters::default(),
            round_trip: Histogram::default(),
        }
    }

    /// Begins with `phase`, the mirror having everything up to `from`, as was found when it had cracked `cracks` times:
    /// if it has cracked since, `from` is no longer true, and `next` sees to it.
    pub fn begin(&mut self, phase: Phase, from: Txid, cracks: u64) -> Result<(), MirrorError> {
        let block_size = self.volume.block_size() as usize;
        let committed = Committed::load(Arc::clone(&self.journal), block_size)?;
        self.used_blocks = committed.used_blocks()?;
        self.committed = Some(committed);
        self.phase = phase;
        self.sent = from;
        self.confirmed = from;
        self.cracks = cracks;
        self.infos.clear();
        self.sending = None;
        self.void = false;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.slot.state.lock().under_way.clear();
        self.passed_blocks = match phase {
            // Not known without counting; the rest of the volume bounds what is left.
            Phase::Copy {
                cursor,
                first: true,
            } => self.used_blocks.min(cursor.0),
            _ => 0,
        };
        self.questions.clear();
        Ok(())
    }

    /// Whether transactions go out while they are being committed (sync mode), and how fast the bulk replicator may be.
    pub fn set_policy(&mut self, early: bool, rate: Rate) {
        self.early = early;
        self.rate = rate;
    }

    /// Whether the line, or the mirror, is what holds the stream up.
    pub fn is_held_up(&self) -> bool {
        self.in_flight_bytes >= WINDOW_BYTES / 2
    }

    /// When the oldest frame that is not acknowledged was sent.
    pub fn waits_since(&self) -> Option<Duration> {
        self.in_flight.front().map(|frame| frame.at)
    }

    fn committed(&self) -> Result<&Committed, MirrorError> {
        self.committed
            .as_ref()
            .ok_or_else(|| MirrorError::Protocol("the stream has not begun".to_string()))
    }

    /// Bytes of the blocks that were allocated when the stream began.
    pub fn allocated_bytes(&self) -> u64 {
        self.used_blocks * self.block_size()
    }

    /// Where the stream is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The last transaction that was sent whole.
    pub fn sent(&self) -> Txid {
        self.sent
    }

    /// Bytes that the mirror still lacks, as far as the phase can tell.
    pub fn bytes_to_go(&self) -> u64 {
        let block_size = self.block_size();
        let marked = self.slot.state.lock().left() * block_size;
        match self.phase {
            Phase::Copy {
                cursor,
                first: true,
            } => {
                let left = self.volume.blocks_count().saturating_sub(cursor.0);
                let used = self.used_blocks;
                used.saturating_sub(self.passed_blocks).min(left) * block_size + marked
            }
            Phase::Sequencing => self.in_flight_bytes,
            _ => marked + self.in_flight_bytes,
        }
    }

    fn block_size(&self) -> u64 {
        u64::from(self.volume.block_size())
    }

    /// What is to be sent now.
    pub fn next(&mut self, now: Duration) -> Result<Next, MirrorError> {
        self.now = now;
        if self.slot.state.lock().cracks != self.cracks && !self.cracked() {
            return Ok(Next::Cracked);
        }
        let confirm_at = self.confirm_at();
        if confirm_at.is_some_and(|at| at <= now)
            && let Some(frame) = self.confirm()
        {
            return Ok(Next::Frame(frame));
        }
        if self.in_flight_bytes >= WINDOW_BYTES || self.void {
            return Ok(Next::Nothing { at: confirm_at });
        }
        let mut wait = None;
        // A pass and the transactions take turns, so that a copy ends under a writer that never stops.
        for _ in 0..2 {
            self.bulk_turn = self.sending.is_none() && !self.bulk_turn;
            if self.bulk_turn {
                match self.rate.ready(now) {
                    Ok(()) => {
                        if let Some(frame) = self.bulk(now)? {
                            return Ok(Next::Frame(frame));
                        }
                    }
                    Err(at) => wait = Some(at),
                }
            } else if let Some(frame) = self.transaction()? {
                return Ok(Next::Frame(frame));
            }
        }
        if let Some(frame) = self.ending()? {
            return Ok(Next::Frame(frame));
        }
        let passing = matches!(self.phase, Phase::Copy { .. } | Phase::Compare { .. });
        let wait = wait.filter(|_| passing);
        Ok(Next::Nothing {
            at: wait.into_iter().chain(confirm_at).min(),
        })
    }

    /// Takes notice of a crack. A pass goes on (the given-up blocks are in the map and get a pass of their own);
    /// `false` when sequencing has to stop.
    fn cracked(&mut self) -> bool {
        let state = self.slot.state.lock();
        self.sending = None;
        self.infos.clear();
        if self.phase == Phase::Sequencing {
            self.questions.clear();
            return false;
        }
        self.cracks = state.cracks;
        self.sent = state.position;
        drop(state);
        match self.phase {
            Phase::Draining { .. } => {
                self.phase = Phase::Copy {
                    cursor: BlockNo(0),
                    first: false,
                };
            }
            // The mirror is about to end this copy: what was given up needs one of its own.
            Phase::Ending { .. } => self.void = true,
            Phase::Compare { .. } | Phase::Copy { .. } | Phase::Sequencing => {}
        }
        true
    }

    fn next_seq(&mut self, bytes: u64) -> u64 {
        self.seq += 1;
        self.in_flight_bytes += bytes;
        self.in_flight.push_back(InFlight {
            seq: self.seq,
            bytes,
            at: self.now,
        });
        self.seq
    }

    /// The mirror has everything up to `seq`, and with it transaction `txid`, durably.
    pub fn acknowledged(
        &mut self,
        seq: u64,
        txid: Txid,
        consistent: bool,
        now: Duration,
    ) -> Result<Acked, MirrorError> {
        if seq > self.seq || txid > self.sent.max(self.slot.state.lock().position) {
            return Err(MirrorError::Protocol(format!(
                "acknowledged frame {seq} and transaction {txid}, of which {} and {} were sent",
                self.seq, self.sent
            )));
        }
        let mut state = self.slot.state.lock();
        let current = state.cracks == self.cracks;
        while self.in_flight.front().is_some_and(|f| f.seq <= seq) {
            let frame = self.in_flight.pop_front().expect("looked at above");
            self.in_flight_bytes -= frame.bytes;
            let took = now.saturating_sub(frame.at);
            self.round_trip.add(took.as_micros() as u64);
        }
        state.arrived(seq)?;
        if current {
            state.acked = state.acked.max(txid);
        }
        if state.map.coverage().is_none() {
            state.settle(&self.journal, self.slot.id, self.generation)?;
        }
        match self.phase {
            Phase::Ending { seq: ending } if consistent && seq >= ending => {}
            _ => return Ok(Acked::Progress),
        }
        if !current || self.void || state.left() > 0 {
            // Something was marked since the last pass began. The mirror has left the copy, and gets another one.
            self.void = true;
            state.switched()?;
            return Ok(Acked::Again);
        }
        state.staging_ended()?;
        state.settle(&self.journal, self.slot.id, self.generation)?;
        state.map.retire();
        state.map.flush()?;
        state.cracked = false;
        state.map_lost = false;
        self.phase = Phase::Sequencing;
        Ok(Acked::InSync)
    }

    // ---- transactions ----

    fn transaction(&mut self) -> Result<Option<Frame>, MirrorError> {
        if self.sending.is_none() && !self.load_next()? {
            return Ok(None);
        }
        // Blocks that the one before freed may be written by this one: the mirror has to know that it is committed.
        if self.sending.as_ref().is_some_and(|sending| !sending.begun)
            && let Some(frame) = self.confirm()
        {
            return Ok(Some(frame));
        }
        let Some(mut sending) = self.sending.take() else {
            return Ok(None);
        };
        if !sending.begun {
            sending.begun = true;
            let shipment = &sending.shipment;
            let begin = Message::TxnBegin {
                first: shipment.first.0,
                last: shipment.last.0,
                generation: self.generation.0,
                zeroed: shipment.zeroed.iter().map(Range::from).collect(),
                freed: shipment.freed.iter().map(Range::from).collect(),
                touched: shipment.hints.iter().map(hint_to_wire).collect(),
            };
            self.sending = Some(sending);
            return Ok(Some((begin, Vec::new())));
        }
        if !sending.fresh_left.is_empty() {
            match self.fresh_frame(&mut sending)? {
                Some(frame) => {
                    self.sending = Some(sending);
                    return Ok(Some(frame));
                }
                // What is at home is not what was referenced: begin again, merged as far as needed.
                None => {
                    self.infos.clear();
                    return Ok(None);
                }
            }
        }
        if !sending.blocks_left.is_empty() {
            let room = MAX_STREAM_PAYLOAD / self.block_size() as usize;
            let mut blocks = Vec::new();
            let mut payload = Vec::new();
            while blocks.len() < room
                && let Some(block) = sending.blocks_left.pop_front()
            {
                payload.extend_from_slice(&sending.shipment.images[&block]);
                blocks.push(block.0);
            }
            sending.bytes += payload.len() as u64;
            self.sending = Some(sending);
            return Ok(Some((Message::TxnBlocks { blocks }, payload)));
        }
        let seq = self.next_seq(sending.bytes);
        self.counters.bytes_sequenced += sending.bytes;
        self.counters.transactions += 1;
        self.mismatches = 0;
        self.sent = sending.shipment.last;
        if self.sent <= self.furthest {
            self.counters.retransmitted += 1;
        }
        self.furthest = self.furthest.max(self.sent);
        let committed = self.journal.last_committed();
        if committed >= self.sent {
            self.confirmed = self.sent;
        } else {
            self.counters.sent_early += 1;
        }
        let end = Message::TxnEnd {
            seq,
            last: sending.shipment.last.0,
            chain: sending.shipment.chain,
            confirmed: committed.0,
        };
        Ok(Some((end, Vec::new())))
    }

    /// Loads what follows `sent`, merged as far as it must be. `false` when there is nothing.
    fn load_next(&mut self) -> Result<bool, MirrorError> {
        if self.sent > self.journal.last_committed() {
            // Sent early; nothing follows before its commit is done.
            return Ok(false);
        }
        if self.infos.is_empty() {
            match self.journal.info_after(self.sent) {
                Some(infos) => self.infos = infos.into(),
                None => {
                    self.log_lost()?;
                    return Ok(false);
                }
            }
        }
        let Some(first) = self.infos.front() else {
            return Ok(self.load_prepared());
        };
        let mut shipment = Shipment::new(first.txid);
        let mut until = first.txid;
        // The mirror's log is as large as this one; a transaction may take half of it, with what goes around its blocks.
        let limit = MERGE_BYTES.min(self.journal.stats().size_blocks * self.block_size() * 3 / 8);
        while let Some(info) = self.infos.pop_front() {
            let Some(txn) = self.logged(info.txid)? else {
                return Ok(false);
            };
            shipment.push(txn);
            if let Some(through) = self.journal.overwritten_by(info.txid) {
                until = until.max(through);
            }
            if info.txid >= until {
                break;
            }
            if shipment.images.len() as u64 * self.block_size() > limit {
                self.too_large(&shipment)?;
                return Ok(false);
            }
        }
        match self.phase {
            Phase::Copy { cursor, first } => {
                let beyond = shipment.cut(cursor);
                if !first {
                    let mut state = self.slot.state.lock();
                    for range in beyond.iter() {
                        state.mark(range)?;
                    }
                    stage(&mut state, &shipment)?;
                }
                shipment.hints.clear();
            }
            Phase::Compare { .. } => {
                let beyond = shipment.cut(BlockNo(0));
                let mut state = self.slot.state.lock();
                for range in beyond.iter() {
                    state.mark(range)?;
                }
                shipment.hints.clear();
            }
            Phase::Draining { .. } => stage(&mut self.slot.state.lock(), &shipment)?,
            Phase::Ending { .. } | Phase::Sequencing => {}
        }
        let block_size = self.block_size() as usize;
        shipment.settle(block_size, |range| {
            let mut bytes = vec![0; range.len as usize * block_size];
            self.volume.read(range.start, &mut bytes).map(|()| bytes)
        })?;
        if shipment.first < shipment.last
            && shipment.images.len() as u64 * self.block_size() > limit
        {
            self.too_large(&shipment)?;
            return Ok(false);
        }
        self.sending = Some(Sending {
            blocks_left: shipment.images.keys().copied().collect(),
            fresh_left: shipment.fresh.iter().collect(),
            shipment,
            begun: false,
            bytes: 0,
        });
        Ok(true)
    }

    /// A transaction, from the log; `None` when the log has let go of it meanwhile.
    fn logged(&mut self, txid: Txid) -> Result<Option<Transaction>, MirrorError> {
        match self.journal.load_transaction(txid) {
            Err(_) if self.journal.info_after(self.sent).is_none() => {
                self.log_lost()?;
                Ok(None)
            }
            loaded => Ok(Some(loaded?)),
        }
    }

    /// Takes the transaction that is being committed, if it is the next.
    fn load_prepared(&mut self) -> bool {
        if !self.early || self.phase != Phase::Sequencing {
            return false;
        }
        let next = self.journal.prepared();
        let Some(next) = next.filter(|next| next.after <= self.sent && next.txn.txid > self.sent)
        else {
            return false;
        };
        let mut shipment = Shipment::new(next.txn.txid);
        shipment.push(next.txn.clone());
        self.sending = Some(Sending {
            blocks_left: shipment.images.keys().copied().collect(),
            fresh_left: shipment.fresh.iter().collect(),
            shipment,
            begun: false,
            bytes: 0,
        });
        true
    }

    /// The log no longer holds what comes next: the mirror cracked a moment ago; or it had cracked before it was sent what the
    /// log still held of what the map has; or the map is of no use any more.
    fn log_lost(&mut self) -> Result<(), MirrorError> {
        self.infos.clear();
        let mut state = self.slot.state.lock();
        if state.cracks != self.cracks {
            return Ok(());
        }
        let coverage = state.map.coverage();
        let in_map =
            coverage.is_some_and(|c| c.from_txid <= self.sent && c.through_txid >= state.position);
        if in_map && self.sent < state.position {
            drop(state);
            return self.give_up();
        }
        tracing::error!(peer = %self.slot.peer, sent = %self.sent, "the log was reused under a mirror");
        state.map_lost = true;
        state.cracked = true;
        state.cracks += 1;
        Ok(())
    }

    fn too_large(&mut self, shipment: &Shipment) -> Result<(), MirrorError> {
        tracing::warn!(peer = %self.slot.peer, first = %shipment.first, last = %shipment.last,
            "a merge of transactions is too large for the mirror's log: the mirror cracks");
        self.give_up()
    }

    /// The mirror cracks by our own decision: everything committed goes into its map.
    fn give_up(&mut self) -> Result<(), MirrorError> {
        let last = self.journal.last_committed();
        self.slot
            .state
            .lock()
            .crack(&self.journal, self.slot.id, self.generation, last)
    }

    /// A frame of fresh data, read from home and checked against its reference; `None` when it is not what was
    /// referenced.
    fn fresh_frame(&mut self, sending: &mut Sending) -> Result<Option<Frame>, MirrorError> {
        let block_size = self.block_size();
        let room = MAX_STREAM_PAYLOAD as u64 / block_size;
        let mut ranges: Vec<Range> = Vec::new();
        let mut payload = Vec::new();
        let mut blocks = 0;
        while let Some(range) = sending.fresh_left.pop_front() {
            let check = sending
                .shipment
                .checks
                .iter()
                .find(|check| check.range.contains(range.start));
            let piece = match check {
                Some(check) => check.range.len.min(range.len),
                None => range.len.min(256),
            };
            if blocks > 0 && blocks + piece > room {
                sending.fresh_left.push_front(range);
                break;
            }
            if piece < range.len {
                sending.fresh_left.push_front(BlockRange::new(
                    BlockNo(range.start.0 + piece),
                    range.len - piece,
                ));
            }
            let range = BlockRange::new(range.start, piece);
            let at = payload.len();
            payload.resize(at + (piece * block_size) as usize, 0);
            self.volume.read(range.start, &mut payload[at..])?;
            let wrong = !planted::is("reuse-pinned")
                && check.is_some_and(|check| {
                    check.range == range && check.xxh3 != xxh3_64(&payload[at..])
                });
            if wrong {
                self.mismatches += 1;
                if self.mismatches > 1 {
                    tracing::warn!(peer = %self.slot.peer, %range, txid = %sending.shipment.last,
                        "fresh data is not what its reference says: the mirror cracks");
                    self.mismatches = 0;
                    self.give_up()?;
                }
                return Ok(None);
            }
            ranges.push(range.into());
            blocks += piece;
        }
        sending.bytes += payload.len() as u64;
        Ok(Some((Message::TxnFresh { ranges }, payload)))
    }

    /// The mirror's hashes came. Blocks that differ are marked (a comparison) or reported (`verify`).
    pub fn answered(&mut self, id: u64, hashes: &[u8]) -> Result<(), MirrorError> {
        let differing = self.questions.answered(id, hashes)?;
        if matches!(self.phase, Phase::Compare { .. }) {
            let mut state = self.slot.state.lock();
            for range in differing {
                state.mark(range)?;
            }
        } else {
            self.questions.report(differing);
        }
        Ok(())
    }

    fn ending(&mut self) -> Result<Option<Frame>, MirrorError> {
        let Phase::Draining { until } = self.phase else {
            return Ok(None);
        };
        if self.sent < until || self.sending.is_some() {
            return Ok(None);
        }
        let superblock = committed::empty_log(&self.volume, &self.log)?;
        let Some(chain) = committed::chain_at(&self.journal, self.sent) else {
            self.log_lost()?;
            return Ok(None);
        };
        let seq = self.next_seq(0);
        self.phase = Phase::Ending { seq };
        {
            let mut state = self.slot.state.lock();
            if state.todo.is_some() && state.left() == 0 {
                state.staged_at = Some(self.sent);
            }
        }
        let end = Message::CopyEnd {
            seq,
            consistent_at: self.sent.0,
            chain,
            log: self.log.iter().map(|range| (*range).into()).collect(),
        };
        Ok(Some((end, superblock)))
    }
}

/// What goes out with a transaction while a resync is staged is not at the mirror's home yet. What it freed counts, too: this
/// side may come back as a mirror of that one (see `SlotState::crack`).
fn stage(state: &mut SlotState, shipment: &Shipment) -> Result<(), MirrorError> {
    if state.todo.is_some() {
        let images = shipment
            .images
            .keys()
            .map(|block| BlockRange::new(*block, 1));
        let ranges = images
            .chain(shipment.fresh.iter())
            .chain(shipment.zeroed.iter())
            .chain(shipment.freed.iter());
        for range in ranges.collect::<RangeSet>().iter() {
            state.staged(range)?;
        }
    }
    Ok(())
}

fn hint_to_wire(hint: &Hint) -> Touched {
    match hint {
        Hint::Inode(ino) => Touched::Inode(ino.0),
        Hint::Entry { parent, name } => Touched::Entry(parent.0, name.clone()),
        Hint::EverythingChanged => Touched::Everything,
    }
}
