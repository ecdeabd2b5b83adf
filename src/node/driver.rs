//! One mirror, as its master's node drives it: a thread that feeds the step functions of `mirror::master` with what
//! happens and carries out what they ask for.
//!
//! Owns the link to the mirror's node and the order of frames on it. Never decides anything. `select` chooses
//! what happened, then everything is synchronous. Invariants: a frame that has been taken from the stream is sent
//! before any later one, or the connection is closed; what a closed connection still had to tell is thrown away.

use super::history::NewEvent;
use super::link::{Frame, Link, LinkEnd, NotSent};
use super::protocol::MirrorStatus;
use super::refusal::{Code, Refusal};
use super::registry::{Host, Node};
use super::stores::MapFiles;
use super::volumes::chain;
use crate::mirror::hashing::Verdict;
use crate::mirror::master::{Action, Mirror, Request, Status};
use crate::mirror::open::OpenMaster;
use crate::mirror::policy::Wishes;
use crate::mirror::rate::Rate;
use crate::units::{BlockRange, Txid};
use crate::wire::message::{History, Message};
use states::{Cause, State};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};

/// How often time is told to the mirror, and its status published.
const TICK: Duration = Duration::from_millis(100);
/// Frames taken from the stream before other inputs are looked at again.
const FRAMES_AT_ONCE: usize = 8;
/// Bytes of frames that are handed over at once: a small transaction wakes the connection, and the mirror, once.
const GATHERED: usize = 64 << 10;
/// An operator's request is answered within this: the thread may be reading a chunk from a slow disk.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The last commit of a volume: its transaction and the time of day, ns since 1970.
pub type Committed = (Txid, i128);

/// What is known of a comparison.
pub enum Verifying {
    /// It has asked about every block before this one.
    Block(u64),
    /// It is done.
    Verdict(Verdict),
    /// It ended without a result.
    Refused(Refusal),
}

enum Input {
    Operator(Request, blocking::Sender<Result<(), Refusal>>),
    Set(Box<Wishes>, blocking::Sender<()>),
    Compare(Box<History>, bool, blocking::Sender<Vec<String>>),
    Verify(Rate, blocking::Sender<Verifying>),
    Repair(Vec<BlockRange>, blocking::Sender<Result<(), Refusal>>),
    Fetch(Vec<BlockRange>, blocking::Sender<Vec<u8>>),
    Dialled(u64, Result<Box<Link>, LinkEnd>),
    Stop,
}

/// A running driver.
#[derive(Debug)]
pub struct Driver {
    volume: String,
    peer: String,
    inbox: mpsc::Sender<Input>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// By which others reach a driver, without holding it.
#[derive(Clone, Debug)]
pub struct Remote {
    volume: String,
    peer: String,
    inbox: mpsc::Sender<Input>,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Input")
    }
}

impl Remote {
    fn gone(&self) -> Refusal {
        Refusal::new(
            Code::NotAllowed,
            format!(
                "the mirror of {} on {} is being closed",
                self.volume, self.peer
            ),
            format!("lockstep status {}", self.volume),
        )
    }

    /// Carries out an operator's request.
    pub fn request(&self, request: Request) -> Result<(), Refusal> {
        let (reply, answer) = blocking::channel();
        let sent = self.inbox.blocking_send(Input::Operator(request, reply));
        sent.map_err(|_| self.gone())?;
        match answer.recv_timeout(ANSWER_WITHIN) {
            Ok(answer) => answer,
            Err(blocking::RecvTimeoutError::Disconnected) => Err(self.gone()),
            Err(blocking::RecvTimeoutError::Timeout) => Err(Refusal::new(
                Code::Timeout,
                format!(
                    "the mirror's thread did not answer within {} s",
                    ANSWER_WITHIN.as_secs()
                ),
                format!("lockstep status {}", self.volume),
            )),
        }
    }

    /// Changes how the mirror is treated; in force on return.
    pub fn set(&self, wishes: Wishes) -> Result<(), Refusal> {
        let (reply, answer) = blocking::channel();
        let sent = self
            .inbox
            .blocking_send(Input::Set(Box::new(wishes), reply));
        sent.map_err(|_| self.gone())?;
        answer.recv_timeout(ANSWER_WITHIN).map_err(|_| self.gone())
    }

    /// Sends blocks to the mirror again, as a resync.
    pub fn repair(&self, ranges: Vec<BlockRange>) -> Result<(), Refusal> {
        let (reply, answer) = blocking::channel();
        let sent = self.inbox.blocking_send(Input::Repair(ranges, reply));
        sent.map_err(|_| self.gone())?;
        answer
            .recv_timeout(ANSWER_WITHIN)
            .unwrap_or_else(|_| Err(self.gone()))
    }

    /// What the mirror has in these blocks; nothing when it left INSYNC meanwhile.
    pub fn fetch(&self, ranges: Vec<BlockRange>) -> Result<Option<Vec<u8>>, Refusal> {
        let (reply, answer) = blocking::channel();
        let sent = self.inbox.blocking_send(Input::Fetch(ranges, reply));
        sent.map_err(|_| self.gone())?;
        Ok(answer.recv_timeout(ANSWER_WITHIN).ok())
    }

    /// Starts a comparison that reads no faster than `rate`; what is known of it comes through the channel, which ends
    /// with it.
    pub fn verify(&self, rate: Rate) -> Result<blocking::Receiver<Verifying>, Refusal> {
        let (reply, answer) = blocking::channel();
        let sent = self.inbox.blocking_send(Input::Verify(rate, reply));
        sent.map_err(|_| self.gone())?;
        Ok(answer)
    }
}

impl Remote {
    /// What would be done with a mirror that says this; `master`: its node is one itself.
    pub fn compare(&self, theirs: Box<History>, master: bool) -> Result<Vec<String>, Refusal> {
        let (reply, answer) = blocking::channel();
        let sent = self
            .inbox
            .blocking_send(Input::Compare(theirs, master, reply));
        sent.map_err(|_| self.gone())?;
        answer.recv_timeout(ANSWER_WITHIN).map_err(|_| self.gone())
    }
}

impl Driver {
    /// Starts a thread for a mirror.
    pub fn start(
        node: &Arc<Node>,
        host: &Arc<Host>,
        open: OpenMaster,
        mirror: Mirror,
        commits: watch::Receiver<Committed>,
    ) -> std::io::Result<Driver> {
        let (inbox, inputs) = mpsc::channel(64);
        let peer = mirror.peer().to_owned();
        let task = Task {
            node: Arc::clone(node),
            host: Arc::clone(host),
            open,
            peer: peer.clone(),
            mirror,
            link: None,
            epoch: 0,
            queue: VecDeque::new(),
            dialled: inbox.clone(),
            commits: commits.clone(),
            verifying: None,
            fetching: None,
            gone: false,
        };
        // Whoever created the mirror sees it at once.
        task.publish();
        let runtime = timers()?;
        let thread = std::thread::Builder::new()
            .name(format!("to {peer}"))
            .spawn(move || runtime.block_on(task.run(inputs, commits)))?;
        Ok(Driver {
            volume: host.name().to_owned(),
            peer,
            inbox,
            thread: Some(thread),
        })
    }

    /// To ask it something.
    pub fn remote(&self) -> Remote {
        Remote {
            volume: self.volume.clone(),
            peer: self.peer.clone(),
            inbox: self.inbox.clone(),
        }
    }

    /// Says farewell to the mirror and ends the thread.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A thread that has ended by itself (the mirror was deleted) takes no more.
            let _ = self.inbox.blocking_send(Input::Stop);
            let _ = thread.join();
        }
    }

    /// Whether the thread has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(|t| t.is_finished())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.end();
    }
}

struct Task {
    node: Arc<Node>,
    host: Arc<Host>,
    open: OpenMaster,
    peer: String,
    mirror: Mirror,
    link: Option<Link>,
    /// Counts connections: what an earlier one brings late is not taken for the present one.
    epoch: u64,
    /// Frames that the link has no room for yet, in order.
    queue: VecDeque<Frame>,
    dialled: mpsc::Sender<Input>,
    commits: watch::Receiver<Committed>,
    verifying: Option<blocking::Sender<Verifying>>,
    fetching: Option<blocking::Sender<Vec<u8>>>,
    gone: bool,
}

/// What the select chose.
enum Chosen {
    Input(Option<Input>),
    Frame(Result<Frame, LinkEnd>),
    Committed,
    Wake,
}

async fn receive(link: &mut Option<Link>) -> Result<Frame, LinkEnd> {
    match link {
        Some(link) => link.receiver.recv().await,
        None => std::future::pending().await,
    }
}

/// Resolves when the first of the frames that wait may have room.
async fn room(link: Option<super::link::LinkSender>, waiting: bool) {
    match link {
        Some(link) if waiting => link.ready().await,
        _ => std::future::pending().await,
    }
}

impl Task {
    fn now(&self) -> Duration {
        self.node.now()
    }

    async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut commits: watch::Receiver<Committed>,
    ) {
        let actions = self.mirror.start(self.now());
        self.act(actions);
        let mut tick_at = Duration::ZERO;
        while !self.gone {
            let now = self.now();
            if tick_at <= now {
                tick_at = now + TICK;
                let actions = self.mirror.tick(now);
                self.act(actions);
                self.watch_verify();
                self.publish();
            }
            let wake = self.pump().map_or(tick_at, |at| at.min(tick_at));
            if self.gone {
                break;
            }
            let waiting = !self.queue.is_empty();
            let sender = self.link.as_ref().map(|l| l.sender.clone());
            let chosen = tokio::select! {
                biased;
                input = inputs.recv() => Chosen::Input(input),
                frame = receive(&mut self.link) => Chosen::Frame(frame),
                changed = commits.changed() => match changed {
                    Ok(()) => Chosen::Committed,
                    // The volume is being closed; the stop is on its way.
                    Err(_) => std::future::pending().await,
                },
                () = room(sender, waiting) => Chosen::Wake,
                () = tokio::time::sleep(wake.saturating_sub(now)) => Chosen::Wake,
            };
            match chosen {
                Chosen::Input(None | Some(Input::Stop)) => break,
                Chosen::Input(Some(input)) => self.input(input),
                Chosen::Frame(Ok(frame)) => {
                    let now = self.now();
                    let actions = self.mirror.frame(frame.header, frame.payload, now);
                    self.act(actions);
                    if let Some(fetched) = self.mirror.fetched()
                        && let Some(reply) = self.fetching.take()
                    {
                        let _ = reply.send(fetched);
                    }
                }
                Chosen::Frame(Err(end)) => self.lost(&end),
                Chosen::Committed => {
                    let (txid, _) = *commits.borrow_and_update();
                    let now = self.now();
                    self.mirror.committed(txid, now);
                }
                Chosen::Wake => {}
            }
        }
        if !self.gone && self.link.is_some() {
            let reason = "the master's node closes the volume".to_owned();
            self.queue
                .push_back(frame(Message::Bye { reason }, Vec::new()));
            self.send();
        }
        // The link writes what it has before it closes.
        self.close();
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Operator(request, reply) => {
                let now = self.now();
                let done = match self.mirror.request(request, now) {
                    Ok(actions) => {
                        self.act(actions);
                        Ok(())
                    }
                    Err(refusal) => Err(Refusal::new(
                        Code::NotAllowed,
                        refusal.sentence(),
                        format!("lockstep status {}", self.host.name()),
                    )),
                };
                self.publish();
                // Whoever asked may have given up.
                let _ = reply.send(done);
            }
            Input::Set(wishes, reply) => {
                self.mirror.set_wishes(*wishes);
                let policy = serde_json::to_value(self.mirror.policy()).unwrap_or_default();
                let event = NewEvent::mirror(
                    "policy",
                    self.host.name(),
                    &self.peer,
                    "the mirror is treated differently from now on",
                );
                self.node.record(event.with("policy", policy));
                self.publish();
                let _ = reply.send(());
            }
            Input::Repair(ranges, reply) => {
                let now = self.now();
                let done = self.mirror.repair(&ranges, now);
                let done = done.map(|actions| self.act(actions)).map_err(|error| {
                    let remedy = format!("lockstep status {}", self.host.name());
                    Refusal::new(Code::Io, chain(&error), remedy)
                });
                self.publish();
                let _ = reply.send(done);
            }
            Input::Fetch(ranges, reply) => {
                let actions = self.mirror.fetch(&ranges);
                self.fetching = (!actions.is_empty()).then_some(reply);
                self.act(actions);
            }
            Input::Compare(theirs, master, reply) => {
                let _ = reply.send(self.mirror.compared(&theirs, master));
            }
            Input::Verify(rate, reply) => {
                let refused = if self.verifying.is_some() {
                    Some("a comparison is under way".to_owned())
                } else if !self.mirror.start_verify(rate) {
                    let state = self.mirror.state();
                    Some(format!(
                        "the mirror is in {state}; only one in INSYNC is compared"
                    ))
                } else {
                    None
                };
                match refused {
                    Some(message) => {
                        let (volume, peer) = (self.host.name(), &self.peer);
                        let remedy = format!("lockstep wait {volume} {peer} INSYNC, then again");
                        let refusal = Refusal::new(Code::NotAllowed, message, remedy);
                        let _ = reply.send(Verifying::Refused(refusal));
                    }
                    None => self.verifying = Some(reply),
                }
            }
            Input::Dialled(epoch, dialled) if epoch == self.epoch => match dialled {
                Ok(link) => {
                    self.link = Some(*link);
                    let now = self.now();
                    let actions = self.mirror.connected(now);
                    self.act(actions);
                }
                Err(end) => self.lost(&end),
            },
            // Of a connection that is not wanted any more: dropping it closes it.
            Input::Dialled(..) | Input::Stop => {}
        }
    }

    /// The connection ended, or did not come about.
    fn lost(&mut self, end: &LinkEnd) {
        self.close();
        let cause = match end {
            LinkEnd::WrongKey { .. } | LinkEnd::KeyRefused { .. } => Some(Cause::KeyRefused),
            _ => None,
        };
        let now = self.now();
        let actions = self.mirror.link_lost(&end.to_string(), cause, now);
        self.act(actions);
    }

    fn close(&mut self) {
        self.epoch += 1;
        self.queue.clear();
        self.fetching = None;
        self.link = None;
    }

    /// Sends what is queued, then the stream's next frames, as far as the link takes them. When to look again.
    fn pump(&mut self) -> Option<Duration> {
        let mut wake = Some(Duration::ZERO);
        let mut gathered = GATHERED;
        for _ in 0..FRAMES_AT_ONCE {
            if gathered >= GATHERED {
                if !self.send() {
                    return None;
                }
                gathered = 0;
            }
            self.link.as_ref()?;
            let now = self.now();
            let (actions, next, at) = self.mirror.next_frame(now);
            let acted = !actions.is_empty();
            self.act(actions);
            match next {
                Some((message, payload)) => {
                    gathered += payload.len();
                    self.queue.push_back(frame(message, payload));
                }
                None if acted => {}
                None => {
                    wake = at;
                    break;
                }
            }
        }
        self.send().then_some(wake).flatten()
    }

    /// Sends what is queued. `false`: the link has no room for all of it.
    fn send(&mut self) -> bool {
        let Some(link) = &self.link else {
            self.queue.clear();
            return true;
        };
        if self.queue.is_empty() {
            return true;
        }
        while let Some(next) = self.queue.pop_front() {
            match link.sender.queue(next) {
                Ok(()) => {}
                Err(NotSent::Full(next)) => {
                    self.queue.push_front(*next);
                    break;
                }
                // The receiving half tells why.
                Err(NotSent::Ended) => self.queue.clear(),
            }
        }
        link.sender.wake();
        self.queue.is_empty()
    }

    fn act(&mut self, actions: Vec<Action>) {
        let mut actions: VecDeque<Action> = actions.into();
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Connect => self.dial(),
                Action::Close => {
                    self.send();
                    self.close();
                }
                Action::Send(mut message, payload) => {
                    if let Message::Status(status) = &mut message {
                        let (txid, at) = *self.commits.borrow();
                        if txid.0 >= status.txid_committed {
                            status.committed_at = at;
                        }
                    }
                    self.queue.push_back(frame(message, payload));
                }
                Action::Event { from, to, why } => self.record(from, to, &why),
                Action::Noted { kind, what } => self.note(kind, &what),
                Action::Forgotten => self.forget(),
            }
        }
    }

    fn dial(&mut self) {
        self.close();
        let epoch = self.epoch;
        let node = Arc::clone(&self.node);
        let peer = self.peer.clone();
        let inbox = self.dialled.clone();
        self.node.runtime.spawn(async move {
            let known = node.catalogue.get().peers.get(&peer).cloned();
            let dialled = match known {
                None => Err(LinkEnd::Unreachable {
                    address: peer,
                    detail: "it is no peer any more".to_owned(),
                }),
                Some(known) => {
                    let dead_after = node.config.peer_timeout();
                    let (address, key) = (known.address, known.fingerprint);
                    node.trunks.dial(peer, &address, key, dead_after).await
                }
            };
            // A driver that has ended wants no link.
            let _ = inbox
                .send(Input::Dialled(epoch, dialled.map(Box::new)))
                .await;
        });
    }

    fn record(&self, from: State, to: State, why: &str) {
        let status = self.mirror.status(self.now());
        let message = format!("{from} -> {to}: {why}");
        let event = NewEvent::mirror("state", self.host.name(), &self.peer, message)
            .with("from", from.word())
            .with("to", to.word())
            .with("reason", why)
            .with("bytes_bulk", status.bytes_bulk)
            .with("bytes_sequenced", status.bytes_sequenced)
            .with("bytes_to_go", status.bytes_to_go)
            .with("txid_committed", status.txid_committed.0)
            .with("txid_acked", status.txid_acked.0);
        self.node.record(event);
        self.publish();
    }

    fn note(&self, kind: &'static str, what: &str) {
        let status = self.mirror.status(self.now());
        let counters = serde_json::to_value(&status.counters).unwrap_or_default();
        let event = NewEvent::mirror(kind, self.host.name(), &self.peer, what);
        self.node.record(event.with("counters", counters));
    }

    /// Says in the volume's warnings whether a write is acknowledged without a mirror that it should be on.
    fn warn_degraded(&self, degraded: bool, state: State) {
        let begins = format!("durability is degraded: the sync mirror on {} ", self.peer);
        let text = format!("{begins}is in {state}");
        self.node.publish(&self.host, |view| {
            view.warnings.retain(|w| !w.starts_with(&begins));
            if degraded {
                view.warnings.push(text);
            }
        });
    }

    fn publish(&self) {
        if self.gone {
            return;
        }
        let status = self.mirror.status(self.now());
        self.warn_degraded(status.degraded, status.state);
        let shown = self.shown(status);
        if self.host.publish_mirror(shown) {
            self.node.changed();
        }
    }

    fn shown(&self, status: Status) -> MirrorStatus {
        let stats = self.open.shared.journal.stats();
        let block_size = u64::from(self.open.shared.volume.block_size());
        let behind = status.txid_acked < status.txid_committed;
        MirrorStatus {
            peer: self.peer.clone(),
            state: status.state.word().to_owned(),
            reason: status.reason,
            cracked: status.cracked,
            bytes_to_go: status.bytes_to_go,
            bytes_bulk: status.bytes_bulk,
            bytes_sequenced: status.bytes_sequenced,
            rate: status.rate,
            eta_s: status.eta_s,
            buffer_used: if behind {
                stats.used_by_mirrors * block_size
            } else {
                0
            },
            buffer_size: stats.size_blocks * block_size,
            txid_committed: status.txid_committed.0,
            txid_acked: status.txid_acked.0,
            lag_s: (status.lag_s * 1000.0).round() / 1000.0,
            policy: Some(status.policy),
            degraded: status.degraded,
            counters: Some(Box::new(status.counters)),
        }
    }

    fn watch_verify(&mut self) {
        let Some(reply) = &self.verifying else { return };
        let news = match self.mirror.verdict() {
            Some(verdict) => Verifying::Verdict(verdict),
            None if self.mirror.is_verifying() => {
                let block = self.mirror.verify_cursor().map_or(u64::MAX, |b| b.0);
                if reply.send(Verifying::Block(block)).is_err() {
                    self.mirror.stop_verify();
                    self.verifying = None;
                }
                return;
            }
            None => Verifying::Refused(Refusal::new(
                Code::NotAllowed,
                format!(
                    "the comparison was cut short: the mirror went to {}",
                    self.mirror.state()
                ),
                format!(
                    "lockstep wait {} {} INSYNC, then again",
                    self.host.name(),
                    self.peer
                ),
            )),
        };
        let _ = reply.send(news);
        self.verifying = None;
    }

    /// The mirror is no more.
    fn forget(&mut self) {
        self.gone = true;
        self.warn_degraded(false, self.mirror.state());
        self.close();
        let volume = self.host.name();
        if let Err(error) = self.open.remove_mirror(self.mirror.slot()) {
            tracing::error!(volume, peer = self.peer, %error, "the mirror's place at the log");
        }
        MapFiles::new(&self.node.state.volume(volume)).remove(&self.peer);
        let removed = self.node.change(|c| {
            if let Some(entry) = c.volumes.get_mut(volume) {
                entry.mirrors.remove(&self.peer);
            }
            Ok(())
        });
        if let Err(refusal) = removed {
            tracing::error!(volume, peer = self.peer, "{refusal}");
        }
        self.host.forget_mirror(&self.peer);
        self.node.changed();
        let event = NewEvent::mirror("mirror-deleted", volume, &self.peer, "mirror deleted");
        self.node.record(event);
    }
}

fn frame(header: Message, payload: Vec<u8>) -> Frame {
    Frame {
        channel: 0,
        header,
        payload,
    }
}

/// What a thread needs that waits for channels and times, and for no socket: timers of its own, which wake nobody else.
pub fn timers() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
}

/// Time of day, ns since 1970.
pub fn time_of_day() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_nanos() as i128)
}
