//! The master's side of one mirror: runs the state machine and does what it commands.
//!
//! Owns the state word (assigned at one place, `fire`), the facts that the machine looks at, and the stream. Never opens
//! a connection, writes a file or reads a clock: it returns [`Action`]s, and time is an argument. Invariant: INSYNC is
//! never reported over a dead link, nor while a block is marked.

mod compare;
mod decide;
mod limits;
mod repair;
mod shared;
mod status;

pub use shared::MasterVolume;
pub use status::{Status, Tuning};

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use states::reconnect::Outcome;
use states::{
    Cause, Command, Event, Facts as Truth, MinorCause, Next as To, Refusal, State, Step, Transition,
};

use crate::mirror::MirrorError;
use crate::mirror::counters::Histogram;
use crate::mirror::hashing::Verdict;
use crate::mirror::packing::Packer;
use crate::mirror::policy::{Policy, Wishes};
use crate::mirror::progress::Progress;
use crate::mirror::ranges::RangeSet;
use crate::mirror::rate::Rate;
use crate::mirror::slot::Slot;
use crate::mirror::stream::{Acked, Frame, Next, Phase, Stream};
use crate::units::{BlockNo, Txid};
use crate::volume::facts::PeerRecord;
use crate::wire::message::{CopyState, History, MasterStatus, Message, PROTOCOL_VERSION};

/// How long a step of the handshake may take before the link counts as dead.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// First wait before contact is sought again, or a step is tried again.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Longest such wait.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How often a mirror is told how its master stands.
const STATUS_EVERY: Duration = Duration::from_millis(500);

/// What is to be done for a mirror, in this order.
#[derive(Debug)]
pub enum Action {
    /// Make a connection; then call `connected` or `link_lost`.
    Connect,
    /// Close the connection, if there is one.
    Close,
    /// Send a frame.
    Send(Message, Vec<u8>),
    /// The state changed, or something worth remembering happened.
    Event {
        /// The state before.
        from: State,
        /// The state after.
        to: State,
        /// Why.
        why: String,
    },
    /// A limit of the mirror's policy tripped, or another thing that an administrator tunes by.
    Noted {
        /// What, as a word.
        kind: &'static str,
        /// What, in a sentence.
        what: String,
    },
    /// The mirror is no more: remove its map, its facts, its entry.
    Forgotten,
}

/// What an operator may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `mirror pause`
    Pause,
    /// `mirror continue`
    Continue,
    /// `mirror restart`
    Restart,
    /// `mirror delete`
    Delete,
}

/// The master's side of one mirror.
pub struct Mirror {
    shared: MasterVolume,
    peer: String,
    slot: Arc<Slot>,
    state: State,
    truth: Truth,
    record: PeerRecord,
    reason: String,
    detail: String,
    stream: Stream,
    /// What a promotion of the mirror would keep: not what a pass brings it, which is of no use before its end.
    holds: Txid,
    streaming: bool,
    outcome: Option<Outcome>,
    /// How often the mirror had cracked when that was decided.
    decided_at: u64,
    /// What the mirror has after this is to be erased when the stream begins.
    drop_after: Option<u64>,
    their: Option<History>,
    /// What the mirror says to differ from its own history; `None` when it does not know.
    their_dirty: Option<RangeSet>,
    step_deadline: Option<Duration>,
    reconnect_at: Option<Duration>,
    reconnect_wait: Duration,
    retry_at: Option<Duration>,
    retry_wait: Duration,
    status_at: Duration,
    status_sent: Option<MasterStatus>,
    commits: VecDeque<(Txid, Duration)>,
    progress: Progress,
    fetch: repair::Fetch,
    defaults: Wishes,
    policy: Policy,
    heard: Duration,
    time_in_queue: Histogram,
    mirror_flush: Histogram,
    packer: Packer,
    /// A frame whose announcement was just sent.
    packed: Option<Frame>,
}

impl Mirror {
    /// A mirror with what was recorded of it. Call `start` next.
    pub fn new(
        shared: MasterVolume,
        peer: String,
        slot: Arc<Slot>,
        record: PeerRecord,
        rate: Rate,
    ) -> Mirror {
        let stream = Stream::new(
            Arc::clone(&shared.volume),
            Arc::clone(&shared.journal),
            Arc::clone(&slot),
            shared.generation,
            shared.log.clone(),
            rate,
        );
        let truth = Truth {
            secured: record.secured,
            paused: record.paused,
            error: record
                .error
                .as_ref()
                .map(|(code, _)| code.parse().unwrap_or(Cause::MirrorDamaged)),
            ..Truth::default()
        };
        let mut mirror = Mirror {
            detail: record
                .error
                .as_ref()
                .map(|(_, detail)| detail.clone())
                .unwrap_or_default(),
            shared,
            peer,
            slot,
            state: State::New,
            truth,
            record,
            reason: String::new(),
            stream,
            holds: Txid(0),
            streaming: false,
            outcome: None,
            decided_at: 0,
            drop_after: None,
            their: None,
            their_dirty: Some(RangeSet::default()),
            step_deadline: None,
            reconnect_at: None,
            reconnect_wait: FIRST_WAIT,
            retry_at: None,
            retry_wait: FIRST_WAIT,
            status_at: Duration::ZERO,
            status_sent: None,
            commits: VecDeque::new(),
            progress: Progress::default(),
            fetch: repair::Fetch::default(),
            defaults: Wishes::default(),
            policy: Policy::default(),
            heard: Duration::ZERO,
            time_in_queue: Histogram::default(),
            mirror_flush: Histogram::default(),
            packer: Packer::default(),
            packed: None,
        };
        mirror.apply_policy();
        mirror
    }

    /// The peer's name.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// What is to be kept durably.
    pub fn record(&self) -> &PeerRecord {
        &self.record
    }

    /// The mirror's place at the log.
    pub fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    // ---- inputs ----

    /// The node started, or the mirror was created.
    pub fn start(&mut self, now: Duration) -> Vec<Action> {
        let mut out = Vec::new();
        self.fire(Event::Started, now, &mut out);
        out
    }

    /// A connection stands, and the peer's key is the one that was pinned.
    pub fn connected(&mut self, now: Duration) -> Vec<Action> {
        let mut out = Vec::new();
        self.truth.linked = true;
        self.reconnect_at = None;
        match self.state {
            State::LinkDown => self.fire(Event::Contact, now, &mut out),
            State::Init => self.hello(now, &mut out),
            // Nobody waits for it any more.
            _ => {
                self.truth.linked = false;
                out.push(Action::Close);
            }
        }
        out
    }

    /// The connection is dead, or could not be made. `cause` where trying again is of no use.
    pub fn link_lost(&mut self, why: &str, cause: Option<Cause>, now: Duration) -> Vec<Action> {
        let mut out = Vec::new();
        self.truth.linked = false;
        self.streaming = false;
        self.step_deadline = None;
        why.clone_into(&mut self.detail);
        match cause {
            Some(cause) => self.fire(Event::SevereFailure(cause), now, &mut out),
            None => self.fire(Event::LinkLost, now, &mut out),
        }
        // The table says it once; contact is sought until there is some.
        if self.state == State::LinkDown && self.reconnect_at.is_none() {
            self.seek_contact(now);
        }
        out
    }

    fn seek_contact(&mut self, now: Duration) {
        self.reconnect_at = Some(now + self.reconnect_wait);
        // A twentieth of the outage so far: whoever was away for long is missed for a little longer.
        self.reconnect_wait = (self.reconnect_wait * 21 / 20).min(LONGEST_WAIT);
    }

    /// The operator's wish.
    pub fn request(&mut self, request: Request, now: Duration) -> Result<Vec<Action>, Refusal> {
        let mut out = Vec::new();
        let event = match request {
            Request::Pause => Event::Pause,
            Request::Continue => Event::Continue,
            Request::Restart => Event::Restart,
            Request::Delete => Event::Delete,
        };
        self.refresh();
        let transition = states::step(self.state, &self.truth, event)?;
        self.carry_out(transition, now, &mut out);
        Ok(out)
    }

    /// A transaction was committed here.
    pub fn committed(&mut self, txid: Txid, now: Duration) {
        if self.commits.back().is_some_and(|(last, _)| *last >= txid) {
            return;
        }
        if self.commits.len() < 4096 {
            self.commits.push_back((txid, now));
        } else if let Some(last) = self.commits.back_mut() {
            last.0 = txid;
        }
    }

    /// Time went by. Cheap; to be called about ten times a second.
    pub fn tick(&mut self, now: Duration) -> Vec<Action> {
        let mut out = Vec::new();
        if self.step_deadline.is_some_and(|at| at <= now) {
            self.step_deadline = None;
            "the peer did not answer in time".clone_into(&mut self.detail);
            self.fire(Event::LinkLost, now, &mut out);
        }
        if self.reconnect_at.is_some_and(|at| at <= now) {
            self.reconnect_at = None;
            out.push(Action::Connect);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.fire(Event::RetryDue, now, &mut out);
        }
        self.progress.sample(
            now,
            self.stream.counters.bytes_bulk + self.stream.counters.bytes_sequenced,
        );
        if self.streaming {
            let mut state = self.slot.state.lock();
            let settled = state.settle(&self.shared.journal, self.slot.id, self.shared.generation);
            if settled.is_err() {
                state.map_lost = true;
            }
        }
        let silent = self
            .stream
            .waits_since()
            .is_some_and(|since| since.max(self.heard) + self.policy.timeout() <= now);
        if self.state == State::InSync && self.streaming && silent {
            self.detail = format!(
                "nothing was acknowledged for {} s",
                self.policy.timeout().as_secs_f64()
            );
            out.push(Action::Close);
            self.truth.linked = false;
            self.streaming = false;
            self.fire(Event::LinkLost, now, &mut out);
        }
        self.measure(&mut out);
        if self.streaming && self.status_at <= now {
            self.status_at = now + STATUS_EVERY;
            let status = self.master_status(now);
            if self.status_sent.as_ref() != Some(&status) {
                self.status_sent = Some(status.clone());
                out.push(Action::Send(Message::Status(status), Vec::new()));
            }
        }
        out
    }

    /// A frame came from the mirror.
    pub fn frame(&mut self, message: Message, payload: Vec<u8>, now: Duration) -> Vec<Action> {
        let mut out = Vec::new();
        self.heard = now;
        if let Err(error) = self.take(message, payload, now, &mut out) {
            self.failed(error, now, &mut out);
        }
        out
    }

    fn take(
        &mut self,
        message: Message,
        payload: Vec<u8>,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> Result<(), MirrorError> {
        match message {
            Message::Welcome { version, .. } if self.state == State::Init => {
                self.step_deadline = None;
                match version == PROTOCOL_VERSION {
                    true => self.fire(Event::Connected, now, out),
                    false => self.severe(
                        Cause::VersionMismatch,
                        format!("this node speaks {PROTOCOL_VERSION}, the mirror's {version}"),
                        now,
                        out,
                    ),
                }
            }
            Message::PartsReady if self.state == State::MakeParts => {
                self.step_deadline = None;
                self.fire(Event::PartsReady, now, out);
            }
            Message::Dirty { ranges, lost } if self.state == State::Ready => {
                self.note_their_dirty(&ranges, lost)?;
            }
            Message::History(history) if self.state == State::Ready => {
                self.step_deadline = None;
                self.decide(history, now, out);
            }
            Message::Ack {
                seq,
                txid,
                consistent,
                flush_us,
                ..
            } if self.streaming => {
                self.mirror_flush.add(flush_us);
                self.acknowledged(seq, Txid(txid), consistent, now, out)?;
                self.measure(out);
            }
            Message::Hashes { id } if self.streaming => self.stream.answered(id, &payload)?,
            Message::Fetched { id } if self.fetch.is_asked(id) => self.fetch.came(payload),
            Message::Refused {
                code,
                detail,
                severe,
            } => self.refused(&code, detail, severe, now, out),
            Message::Ping { token } => {
                out.push(Action::Send(Message::Pong { token }, Vec::new()));
            }
            Message::Bye { reason } => {
                self.detail = format!("{} ended the session: {reason}", self.peer);
                self.truth.linked = false;
                self.streaming = false;
                self.fire(Event::LinkLost, now, out);
            }
            // Late answers of a stream that was stopped, and answers that are of no interest.
            Message::Welcome { .. }
            | Message::PartsReady
            | Message::Dirty { .. }
            | Message::History(_)
            | Message::Ready
            | Message::Ack { .. }
            | Message::Hashes { .. }
            | Message::Fetched { .. }
            | Message::Pong { .. } => {}
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
            Message::Hello { .. }
            | Message::MakeParts { .. }
            | Message::Ask
            | Message::Begin { .. }
            | Message::Bulk { .. }
            | Message::Packed { .. }
            | Message::TxnBegin { .. }
            | Message::TxnBlocks { .. }
            | Message::TxnFresh { .. }
            | Message::TxnEnd { .. }
            | Message::Confirm { .. }
            | Message::CopyEnd { .. }
            | Message::Hash { .. }
            | Message::Fetch { .. }
            | Message::Status(_) => {
                return Err(MirrorError::Protocol(
                    "a message that only a master sends".to_string(),
                ));
            }
        }
        Ok(())
    }

    /// The next frame of the stream, if there is one to be sent now; and when to ask again at the latest.
    pub fn next_frame(&mut self, now: Duration) -> (Vec<Action>, Option<Frame>, Option<Duration>) {
        let mut out = Vec::new();
        if !self.streaming {
            self.packed = None;
            return (out, None, None);
        }
        if let Some(frame) = self.packed.take() {
            return (out, Some(frame), None);
        }
        match self.stream.next(now) {
            Ok(Next::Frame(frame)) => (out, Some(self.pack(frame)), None),
            Ok(Next::Nothing { at }) => (out, None, at),
            Ok(Next::Cracked) => {
                self.fire(Event::Cracked, now, &mut out);
                (out, None, Some(now))
            }
            Err(error) => {
                self.failed(error, now, &mut out);
                (out, None, None)
            }
        }
    }

    // ---- verify ----

    /// Starts to compare the copies, if the mirror is in sync.
    pub fn start_verify(&mut self, rate: Rate) -> bool {
        let ready = self.state == State::InSync && self.streaming;
        if ready {
            self.stream.questions.start_verify(rate);
        }
        ready
    }

    /// The result, once: `None` while it is running.
    pub fn verdict(&mut self) -> Option<Verdict> {
        self.stream.questions.verdict()
    }

    /// Gives up a comparison.
    pub fn stop_verify(&mut self) {
        self.stream.questions.stop_verify();
    }

    /// Whether a comparison is running, or has a result that was not taken yet.
    pub fn is_verifying(&self) -> bool {
        self.stream.questions.is_verifying()
    }

    /// How far a running comparison is: the next block.
    pub fn verify_cursor(&self) -> Option<BlockNo> {
        self.stream.questions.verify_cursor()
    }

    // ---- the machine ----

    /// Brings the facts that follow from others up to date.
    fn refresh(&mut self) {
        let state = self.slot.state.lock();
        self.truth.dirty = state.map.count() > 0;
        self.truth.cracked = state.cracked;
        self.truth.acknowledged = state.acked.0;
    }

    fn fire(&mut self, event: Event, now: Duration, out: &mut Vec<Action>) {
        self.refresh();
        match states::step(self.state, &self.truth, event) {
            Ok(transition) => self.carry_out(transition, now, out),
            Err(refusal) => tracing::error!(peer = %self.peer, %refusal, "a fact was refused"),
        }
    }

    /// The one place that assigns the state.
    fn carry_out(&mut self, transition: Transition, now: Duration, out: &mut Vec<Action>) {
        tracing::debug!(volume = %self.shared.name, peer = %self.peer, "{transition}");
        if let To::Enter(state) = transition.next {
            let from = self.state;
            self.state = state;
            if state != State::LinkDown {
                self.reconnect_at = None;
            }
            if state != State::Reset {
                self.retry_at = None;
            }
            self.reason = self.explain(&transition);
            if from != state {
                tracing::info!(volume = %self.shared.name, peer = %self.peer, reason = %self.reason, "{from} -> {state}");
                out.push(Action::Event {
                    from,
                    to: state,
                    why: self.reason.clone(),
                });
                self.status_at = now;
            }
        }
        if self.state == State::InSync && !self.record.once_insync {
            self.record.once_insync = true;
            self.save();
        }
        self.show_gate();
        for command in transition.commands {
            self.perform(*command, &transition, now, out);
        }
        if transition.next == To::Gone {
            self.shared.gate.forget(&self.peer);
            out.push(Action::Forgotten);
        }
    }

    fn explain(&self, transition: &Transition) -> String {
        let detail = match self.detail.is_empty() {
            true => String::new(),
            false => format!(" ({})", self.detail),
        };
        match (transition.next, transition.cause, transition.minor_cause) {
            (_, Some(cause), _) => format!("{}{detail} {}", cause.sentence(), cause.remedy()),
            (_, _, Some(minor)) => format!("{}{detail}", minor.sentence()),
            (To::Enter(State::LinkDown | State::OutOfSync | State::Replicate), ..) => {
                format!("{}{detail}", transition.why)
            }
            _ => transition.why.to_string(),
        }
    }

    fn perform(
        &mut self,
        command: Command,
        transition: &Transition,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        match command {
            Command::SecureBuffer => self.secure(now, out),
            Command::Connect => match self.truth.linked {
                true => self.hello(now, out),
                false => {
                    self.step_deadline = Some(now + STEP_TIMEOUT);
                    out.push(Action::Connect);
                }
            },
            Command::MakeParts => {
                self.step_deadline = Some(now + STEP_TIMEOUT);
                let volume = &self.shared.volume;
                let parts = volume.parts().iter().map(|part| part.len()).collect();
                let block_size = volume.block_size();
                out.push(Action::Send(
                    Message::MakeParts {
                        block_size,
                        parts,
                        discard: false,
                    },
                    Vec::new(),
                ));
            }
            Command::Decide => {
                self.step_deadline = Some(now + STEP_TIMEOUT);
                self.their_dirty = Some(RangeSet::default());
                out.push(Action::Send(Message::Ask, Vec::new()));
            }
            Command::DropUnconfirmed => {
                if let Some(after) = self.drop_after {
                    tracing::warn!(peer = %self.peer, after, "the mirror has what was never confirmed");
                }
            }
            Command::BeginCopy => self.begin_copy(now, out),
            Command::BeginResync => self.begin_resync(now, out),
            // The stream begins its further passes by itself: it sees the marks before anybody else.
            Command::BeginPass => {
                self.truth.copying = true;
                self.slot.state.lock().cracked = false;
            }
            Command::StopCopy | Command::StopSequencing => {
                self.streaming = false;
                self.stream.questions.stop_verify();
            }
            Command::BeginSequencing => self.begin_sequencing(now, out),
            // `CopyEnd` told the mirror, and it acknowledged: it opened its copy by itself.
            Command::OpenMirror => {}
            Command::CloseLink => {
                if self.truth.linked {
                    let reason = self.state.to_string();
                    out.push(Action::Send(Message::Bye { reason }, Vec::new()));
                }
                self.truth.linked = false;
                self.streaming = false;
                self.step_deadline = None;
                self.reconnect_at = None;
                out.push(Action::Close);
            }
            Command::ReconnectLater => self.seek_contact(now),
            Command::RetryLater(step) => {
                self.truth.retry = step;
                self.retry_at = Some(now + self.retry_wait);
                self.retry_wait = longer(self.retry_wait);
            }
            Command::ForgetBackoff => {
                self.reconnect_wait = FIRST_WAIT;
                if self.truth.retry == Step::Init {
                    self.retry_wait = FIRST_WAIT;
                }
                self.detail.clear();
            }
            Command::RecordError => {
                let cause = transition.cause.or(self.truth.error);
                self.truth.error = cause;
                self.record.error = cause.map(|cause| (cause.to_string(), self.detail.clone()));
                self.save();
            }
            Command::ForgetError => {
                self.truth.error = None;
                self.record.error = None;
                self.detail.clear();
                self.save();
            }
            Command::RecordPause => {
                self.truth.paused = true;
                self.record.paused = true;
                self.save();
            }
            Command::ForgetPause => {
                self.truth.paused = false;
                self.record.paused = false;
                self.save();
            }
            Command::Forget => {}
        }
    }

    pub(super) fn save(&self) {
        let mut facts = self.shared.facts.lock();
        let entry = facts.peers.entry(self.peer.clone()).or_default();
        entry.record = self.record.clone();
        entry.acked = self.slot.state.lock().position;
        if let Err(error) = self.shared.store.save(&facts) {
            tracing::error!(volume = %self.shared.name, peer = %self.peer, %error, "facts are not saved");
        }
    }

    /// The buffer is the volume's journal: it is secured by this mirror's claim on it, which the slot has made.
    fn secure(&mut self, now: Duration, out: &mut Vec<Action>) {
        let stats = self.shared.journal.stats();
        // Its superblock is not counted: the smallest that mke2fs makes.
        let least = 1023;
        if stats.size_blocks < least {
            self.detail = format!(
                "the journal has {} blocks, {least} are needed",
                stats.size_blocks
            );
            self.fire(Event::NoRoom, now, out);
            return;
        }
        self.truth.secured = true;
        self.record.secured = true;
        self.save();
        self.fire(Event::Secured, now, out);
    }

    fn acknowledged(
        &mut self,
        seq: u64,
        txid: Txid,
        consistent: bool,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> Result<(), MirrorError> {
        let acked = self.stream.acknowledged(seq, txid, consistent, now)?;
        while let Some((committed, at)) = self.commits.front().copied()
            && committed <= txid
        {
            self.commits.pop_front();
            let took = now.saturating_sub(at);
            self.time_in_queue.add(took.as_micros() as u64);
        }
        if self.stream.phase() == Phase::Sequencing {
            self.holds = self.slot.state.lock().acked;
            self.shared.gate.acked(&self.peer, self.holds);
        }
        if acked != Acked::Progress
            && let Some(their) = &mut self.their
        {
            their.copy = CopyState::Complete;
            their.tainted = false;
            (their.applied, their.consistent_at) = (txid.0, txid.0);
        }
        if acked == Acked::Again {
            self.begin_resync(now, out);
        }
        self.note_replaced(acked == Acked::InSync);
        if acked == Acked::InSync {
            self.truth.copying = false;
            self.truth.consistent_at = txid.0;
            self.fire(Event::CopyFinished, now, out);
        }
        Ok(())
    }

    fn severe(&mut self, cause: Cause, detail: String, now: Duration, out: &mut Vec<Action>) {
        self.detail = detail;
        self.fire(Event::SevereFailure(cause), now, out);
    }

    /// Something failed on this side, or the mirror broke the protocol.
    fn failed(&mut self, error: MirrorError, now: Duration, out: &mut Vec<Action>) {
        tracing::error!(volume = %self.shared.name, peer = %self.peer, %error, "replication failed");
        self.detail = error.to_string();
        let event = match &error {
            MirrorError::Protocol(_) => Event::MinorFailure(MinorCause::BadFrame),
            MirrorError::Dirty(_) => {
                self.slot.state.lock().map_lost = true;
                Event::MinorFailure(MinorCause::TransientIo)
            }
            MirrorError::Refused { cause, .. } => Event::SevereFailure(*cause),
            _ => Event::SevereFailure(Cause::MasterDamaged),
        };
        self.fire(event, now, out);
    }
}

fn longer(wait: Duration) -> Duration {
    (wait * 3 / 2).min(LONGEST_WAIT)
}
