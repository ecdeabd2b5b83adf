//! The mirror's side of a stream: makes what the master sends durable, acknowledges, and only then shows it.
//!
//! Owns the copy's parts, its journal, its facts. Invariants: while following, a transaction is in this side's journal,
//! flushed, before it is acknowledged; it is seen, and goes home, only when the master has confirmed that it is committed
//! there, and what was seen once is seen again after a restart; an incomplete transaction leaves no trace; while copying, blocks go
//! straight home behind a guard that keeps every other program off the volume, and the guard goes last. Never writes
//! outside the volume, nor to the journal's own blocks, whatever the master sends.

mod apply;
mod copy;
mod log;
mod session;
mod staged;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use states::{Cause, MinorCause};

use crate::fs::Fs;
use crate::io::{Clock, Random};
use crate::journal::{Hint, Image, Journal, Reference, Transaction};
use crate::mirror::error::{MirrorError, disk_cause};
use crate::mirror::floor::Heir;
use crate::mirror::lost::LostStore;
use crate::mirror::open::MapStore;
use crate::mirror::ranges::RangeSet;
use crate::mirror::staging::StagingStore;
use crate::mirror::{committed, guard, packing};
use crate::units::{BlockNo, BlockRange, Txid};
use crate::volume::Volume;
use crate::volume::facts::{Copy, FactStore, Facts, Role};
use crate::wire::message::{Codec, MasterStatus, Message};

/// Bytes written home, or waiting for the log, before they are flushed and acknowledged without waiting for a pause.
const FLUSH_BYTES: u64 = 16 << 20;
/// The most bytes by value that one transaction may have: the sender cracks before it merges more.
const TRANSACTION_BYTES: usize = 320 << 20;
/// This side's own claim on its log: what its fact file does not know yet.
const SELF: u32 = 0;

/// Where parts come from: the node decides, the master only says how many and how large.
pub trait PartStore: Send + Sync + std::fmt::Debug {
    /// Makes the parts of `volume`, or validates those that it made before. Sizes in bytes.
    fn make(
        &self,
        volume: &str,
        volume_id: u128,
        block_size: u32,
        parts: &[u64],
    ) -> Result<Arc<Volume>, (Cause, String)>;
}

/// What a follower wants done, in this order.
#[derive(Debug)]
pub enum Output {
    /// Send a frame to the master.
    Send(Message, Vec<u8>),
    /// Tell the mount what changed.
    Invalidate(Vec<Hint>),
    /// The copy can be mounted.
    Opened(Arc<Fs>),
    /// The copy is no longer a state that the master had: unmount it before the next frame.
    Withdraw,
    /// The master says how it stands.
    Status(MasterStatus),
    /// What only this side had was kept aside, as this entry; what is given up, in words.
    KeptAside(String, String),
    /// The session is over.
    Close(String),
}

/// What a follower needs of the world.
#[derive(Clone, Debug)]
pub struct Env {
    /// This node's name.
    pub node: String,
    /// Makes parts.
    pub parts: Arc<dyn PartStore>,
    /// Keeps facts.
    pub facts: Arc<dyn FactStore>,
    /// Keeps what other mirrors would need of this one (`floor`).
    pub maps: Arc<dyn MapStore>,
    /// Keeps what a staged resync brings.
    pub staging: Arc<dyn StagingStore>,
    /// Keeps aside what only this side has.
    pub lost: Arc<dyn LostStore>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub random: Arc<dyn Random>,
    /// Bytes of cache for the mounted copy.
    pub cache_bytes: usize,
}

/// A transaction of which not every frame has come.
struct Current {
    first: Txid,
    last: Txid,
    zeroed: Vec<BlockRange>,
    freed: Vec<BlockRange>,
    hints: Vec<Hint>,
    images: BTreeMap<BlockNo, Image>,
    refs: Vec<Reference>,
    bytes: usize,
}

/// A copy in the making.
struct Copying {
    first: bool,
    cursor: BlockNo,
    txid: Txid,
    seq: u64,
    unflushed: u64,
    /// No later transaction is in any block that came.
    reach: Txid,
    log: Vec<BlockRange>,
}

impl Copying {
    /// Transaction `txid` came whole, as frame `seq`.
    fn took(&mut self, seq: u64, txid: Txid) {
        self.txid = txid;
        self.seq = seq;
        self.unflushed += 1;
    }
}

/// A copy that follows the master's log.
struct Following {
    fs: Arc<Fs>,
    journal: Arc<Journal>,
    heir: Arc<Heir>,
    /// The last transaction that is shown: the lower of the next two, or what was so when the log was opened.
    applied: Txid,
    /// The last transaction that is whole in the log.
    durable: Txid,
    /// The last transaction that is committed on the master, as far as it said.
    confirmed: Txid,
    /// Whole, and not yet in the log.
    pending: Vec<Transaction>,
    pending_bytes: u64,
    /// In the log, acknowledged, and not confirmed.
    unshown: VecDeque<Transaction>,
    /// Blocks that transactions which are not shown free: still in use.
    unshown_freed: RangeSet,
    /// What was freed by transactions that are shown, and that after a power cut would be held back: nothing durable says yet that
    /// they are confirmed.
    unsure_freed: RangeSet,
    /// The log was opened with unconfirmed transactions in it: nothing is appended before the master has said what
    /// becomes of them.
    held: bool,
    seq: u64,
}

enum Phase {
    Idle,
    Copying(Copying),
    Following(Following),
    Staged(Box<staged::Staged>),
}

/// One mirrored volume on the mirror's node.
pub struct Follower {
    env: Env,
    name: String,
    volume: Option<Arc<Volume>>,
    facts: Arc<Mutex<Facts>>,
    phase: Phase,
    current: Option<Current>,
    /// The master that called last, by its own name.
    caller: String,
    /// A stream has begun on the present link.
    streaming: bool,
    /// What the facts say of the copy (`applied`, `as_of`) is newer than what was saved.
    unsaved: bool,
    /// Something failed that makes what is open here useless: the next call opens it anew.
    failed: bool,
    /// A staged resync has come whole, as this frame; the switch is to be done.
    switching: Option<u64>,
    /// A staged resync found no room: the next goes home directly.
    no_staging: bool,
    /// The next payload is packed: how, and its length before.
    packed: Option<(Codec, u64)>,
}

impl Follower {
    /// A follower for the volume `name`, which may have a copy already. Opens the copy if it is complete and consistent,
    /// so that it can be mounted without its master.
    pub fn open(
        env: Env,
        name: String,
        facts: Option<Facts>,
        volume: Option<Arc<Volume>>,
    ) -> Result<(Follower, Vec<Output>), MirrorError> {
        let facts = facts.unwrap_or_else(|| Facts::blank(0, name.clone(), Role::Mirror));
        let mut follower = Follower {
            env,
            name,
            volume,
            facts: Arc::new(Mutex::new(facts)),
            phase: Phase::Idle,
            current: None,
            caller: String::new(),
            streaming: false,
            unsaved: false,
            failed: false,
            switching: None,
            no_staging: false,
            packed: None,
        };
        if follower.facts.lock().switching.is_none()
            && let Err(error) = follower.env.staging.remove()
        {
            tracing::warn!(volume = %follower.name, %error, "the staging log is left behind");
        }
        let mut outputs = Vec::new();
        match follower.volume.is_some() && follower.is_consistent() {
            true => follower.follow(&mut outputs)?,
            false => follower.guard_again(),
        }
        Ok((follower, outputs))
    }

    /// A copy that is no state of its master has the guard, but where power went before it was raised, or a promotion by force
    /// that lowered it came to nothing.
    fn guard_again(&self) {
        let facts = self.facts.lock();
        let unfinished = facts.copy != Copy::Blank && facts.switching.is_none();
        if let Some(volume) = self.volume.as_ref().filter(|_| unfinished)
            && let Err(error) = guard::raise_if_lowered(volume)
        {
            tracing::warn!(volume = %self.name, %error, "the unfinished copy can not be guarded");
        }
    }

    /// The volume's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A copy of the facts as they are now.
    pub fn facts(&self) -> Facts {
        self.facts.lock().clone()
    }

    /// The open copy, if there is one that is a state the master had.
    pub fn fs(&self) -> Option<Arc<Fs>> {
        self.following().map(|following| Arc::clone(&following.fs))
    }

    fn following(&self) -> Option<&Following> {
        match &self.phase {
            Phase::Following(following) => Some(following),
            Phase::Staged(staged) => Some(&staged.following),
            Phase::Idle | Phase::Copying(_) => None,
        }
    }

    /// Whether the copy is complete and a state that the master had.
    pub fn is_consistent(&self) -> bool {
        let facts = self.facts.lock();
        facts.copy == Copy::Complete && facts.applied >= facts.consistent_at
    }

    /// The last transaction of the copy.
    pub fn applied(&self) -> Txid {
        match (&self.phase, self.following()) {
            (Phase::Copying(copying), _) => copying.txid,
            (_, Some(following)) => following.applied,
            _ => self.facts.lock().applied,
        }
    }

    /// The last transaction that is whole and durable here: what a promotion would keep.
    pub fn durable(&self) -> Txid {
        match self.following() {
            Some(following) => following.durable,
            None => self.applied(),
        }
    }

    /// The last transaction here of which the master has said that it is committed there.
    pub fn confirmed(&self) -> Txid {
        match self.following() {
            Some(following) => following.confirmed.min(following.durable),
            None => self.applied(),
        }
    }

    /// What is kept here for other mirrors, should this one be promoted.
    pub fn heir(&self) -> Option<Arc<Heir>> {
        self.following()
            .map(|following| Arc::clone(&following.heir))
    }

    /// Handles one frame. After an error the session is over; the next one opens anew what the error made useless.
    pub fn frame(
        &mut self,
        message: Message,
        payload: Vec<u8>,
    ) -> Result<Vec<Output>, MirrorError> {
        let result = self.take(message, payload);
        self.note_failure(result)
    }

    fn note_failure<T>(&mut self, result: Result<T, MirrorError>) -> Result<T, MirrorError> {
        // A master that breaks the protocol breaks nothing here.
        if let Err(error) = &result
            && !matches!(error, MirrorError::Protocol(_) | MirrorError::NoStaging(_))
        {
            self.failed = true;
        }
        result
    }

    fn take(&mut self, message: Message, payload: Vec<u8>) -> Result<Vec<Output>, MirrorError> {
        let mut out = Vec::new();
        self.complete_switch(&mut out)?;
        if matches!(message, Message::Begin { .. }) {
            // What was announced belonged to a stream that ended there.
            self.packed = None;
        }
        let payload = match self.packed.take() {
            Some((codec, len)) if !payload.is_empty() => packing::unpack(codec, len, &payload)?,
            waits => {
                self.packed = waits;
                payload
            }
        };
        match message {
            Message::Hello {
                version,
                volume_id,
                volume,
                node,
                generations,
            } => {
                self.packed = None;
                self.hello(version, &volume, volume_id, &node, &generations, &mut out)?;
            }
            Message::Packed { codec, len } => self.packed = Some((codec, len)),
            Message::MakeParts {
                block_size,
                parts,
                discard,
            } => self.make_parts(block_size, &parts, discard, &mut out)?,
            Message::Ask => self.answer(&mut out)?,
            Message::Begin {
                mode,
                generations,
                from,
                compare,
                drop_after,
            } => {
                let start = session::Start {
                    mode,
                    from: Txid(from),
                    compare,
                    drop_after: drop_after.map(Txid),
                };
                self.begin(start, &generations, &payload, &mut out)?
            }
            Message::Bulk {
                seq,
                data,
                zero,
                cursor,
                reach,
            } => {
                self.reaches(Txid(reach))?;
                self.bulk(seq, &data, &zero, cursor, &payload, &mut out)?
            }
            Message::TxnBegin {
                first,
                last,
                zeroed,
                freed,
                touched,
                ..
            } => self.txn_begin(Txid(first), Txid(last), &zeroed, &freed, &touched)?,
            Message::TxnBlocks { blocks } => self.txn_blocks(&blocks, &payload)?,
            Message::TxnFresh { ranges } => self.txn_fresh(&ranges, &payload, &mut out)?,
            Message::TxnEnd {
                seq,
                last,
                chain,
                confirmed,
            } => self.txn_end(seq, Txid(last), chain, Txid(confirmed), &mut out)?,
            Message::Confirm { txid } => self.confirm(Txid(txid)),
            Message::CopyEnd {
                seq,
                consistent_at,
                chain,
                log,
            } => self.copy_end(seq, Txid(consistent_at), chain, &log, &payload, &mut out)?,
            Message::Hash { id, ranges } => self.hash(id, &ranges, &mut out)?,
            Message::Fetch { id, ranges } => self.fetch(id, &ranges, &mut out)?,
            Message::Status(status) => {
                self.floor(Txid(status.floor));
                self.note_members(&status)?;
                out.push(Output::Status(status));
            }
            Message::Ping { token } => {
                out.push(Output::Send(Message::Pong { token }, Vec::new()));
            }
            Message::Pong { .. } => {}
            Message::Bye { reason } => {
                // As if the link were lost: nothing of this session holds on the next one.
                out.extend(self.disconnected()?);
                out.push(Output::Close(reason));
            }
            Message::RoleQuery { .. }
            | Message::RoleAnswer { .. }
            | Message::Prepare { .. }
            | Message::Prepared { .. }
            | Message::HandOverMap { .. }
            | Message::HandOver { .. }
            | Message::HandedOver { .. } => {
                return Err(MirrorError::Protocol(
                    "a message that has a connection of its own".to_string(),
                ));
            }
            Message::Welcome { .. }
            | Message::Dirty { .. }
            | Message::Refused { .. }
            | Message::PartsReady
            | Message::History(_)
            | Message::Ready
            | Message::Ack { .. }
            | Message::Hashes { .. }
            | Message::Fetched { .. } => {
                return Err(MirrorError::Protocol(
                    "a message that only a mirror sends".to_string(),
                ));
            }
        }
        Ok(out)
    }

    /// Whether nobody waits for what has come: their writers went on when the master had committed it.
    pub fn may_wait(&self) -> bool {
        let Phase::Following(following) = &self.phase else {
            return false;
        };
        let last = following.pending.last();
        last.is_some_and(|txn| txn.txid <= following.confirmed)
    }

    /// The first half of `idle`, for whoever can send what it returns before the second: the master's writers wait for it.
    pub fn append_whole(&mut self) -> Result<Vec<Output>, MirrorError> {
        let mut out = Vec::new();
        let result = self.append(&mut out);
        self.note_failure(result)?;
        Ok(out)
    }

    /// Nothing more has come for now: what has is made durable, acknowledged, and shown.
    pub fn idle(&mut self) -> Result<Vec<Output>, MirrorError> {
        let mut out = Vec::new();
        let result = self.idle_into(&mut out);
        self.note_failure(result)?;
        Ok(out)
    }

    fn idle_into(&mut self, out: &mut Vec<Output>) -> Result<(), MirrorError> {
        match &self.phase {
            Phase::Copying(copying) if copying.unflushed > 0 => self.flush_copy(out),
            Phase::Staged(staged) if staged.copying.unflushed > 0 => self.flush_staged(out),
            Phase::Following(_) => self.commit(out),
            Phase::Copying(_) | Phase::Staged(_) => Ok(()),
            Phase::Idle => self.complete_switch(out),
        }
    }

    /// The link is gone: an unfinished transaction is dropped, what is whole is kept.
    pub fn disconnected(&mut self) -> Result<Vec<Output>, MirrorError> {
        self.current = None;
        self.packed = None;
        self.streaming = false;
        self.drop_staged();
        let out = self.idle()?;
        self.note_reach()?;
        if let Err(error) = self.tick() {
            tracing::warn!(volume = %self.name, %error, "how far the copy is could not be recorded; its log says");
        }
        Ok(out)
    }

    /// Now and then (about once a second): the fact file learns how far the copy is, so that the log can be reused.
    pub fn tick(&mut self) -> Result<(), MirrorError> {
        match &self.phase {
            Phase::Following(following) if !following.held => {
                let last = following.applied;
                if self.facts.lock().applied < last || self.unsaved {
                    self.note_applied(last)?;
                }
                Ok(())
            }
            Phase::Following(_) | Phase::Idle | Phase::Copying(_) | Phase::Staged(_) => Ok(()),
        }
    }

    /// What is shown now was committed at `at` by the master's clock, microseconds. Durable with the next tick, so that a
    /// copy whose master is gone can say how old it is, after a restart too.
    pub fn shows_time(&mut self, at: i64) {
        let mut facts = self.facts.lock();
        self.unsaved |= facts.as_of != at;
        facts.as_of = at;
    }

    fn note_applied(&mut self, txid: Txid) -> Result<(), MirrorError> {
        let Phase::Following(following) = &self.phase else {
            return Ok(());
        };
        self.unsaved = true;
        let mut facts = self.facts.lock();
        facts.applied = txid;
        if let Some(chain) = committed::chain_at(&following.journal, txid) {
            facts.chain = chain;
        }
        facts.high_txid = facts.high_txid.max(following.durable);
        facts.confirmed = facts.confirmed.max(txid);
        self.env.facts.save(&facts)?;
        drop(facts);
        self.unsaved = false;
        following.journal.set_consumer(SELF, txid);
        following.journal.confirmed_durably(txid);
        if let Phase::Following(following) = &mut self.phase {
            following.unsure_freed = RangeSet::default();
        }
        Ok(())
    }

    /// Microseconds since a moment of the clock.
    fn since(&self, before: std::time::Duration) -> u64 {
        let took = self.env.clock.monotonic().saturating_sub(before);
        took.as_micros() as u64
    }

    fn volume(&self) -> Result<Arc<Volume>, MirrorError> {
        self.volume
            .clone()
            .ok_or_else(|| MirrorError::Protocol("there are no parts yet".to_string()))
    }
}

/// What a mirror tells its master when it can not go on.
pub fn failure(error: &MirrorError) -> Message {
    match error {
        MirrorError::Refused { cause, detail } => refused(*cause, detail.clone()),
        MirrorError::NoStaging(detail) => Message::Refused {
            code: MinorCause::NoStaging.to_string(),
            detail: detail.clone(),
            severe: false,
        },
        MirrorError::Protocol(detail) => Message::Refused {
            code: "bad-frame".to_string(),
            detail: detail.clone(),
            severe: false,
        },
        other => refused(disk_cause(other), other.to_string()),
    }
}

fn refused(cause: Cause, detail: String) -> Message {
    Message::Refused {
        code: cause.to_string(),
        detail,
        severe: true,
    }
}

fn protocol(what: &str) -> MirrorError {
    MirrorError::Protocol(what.to_string())
}
