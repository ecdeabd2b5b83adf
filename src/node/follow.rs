//! A volume of which this node is a mirror: a thread that feeds the follower with the master's frames and carries out
//! what it asks for.
//!
//! Owns the link from the master and the follower. Never decides about the copy. Invariants: an acknowledgement
//! is sent after what it acknowledges is durable (the follower's word for it); the mount is withdrawn before the next
//! frame after the follower says so; what is shown of the master's view is never shown over a dead link.

use super::driver::{time_of_day, timers};
use super::history::{Moment, NewEvent};
use super::link::{Frame, Link, LinkEnd};
use super::lost::LostFiles;
use super::mounts::Offer;
use super::protocol::{Condition, MirrorStatus};
use super::refusal::{Code, Refusal};
use super::registry::{Host, Node};
use super::roles;
use super::staging::StagingFile;
use super::stores::{MapFiles, MirrorParts};
use super::timer::Timer;
use super::volumes::chain;
use crate::mirror::MirrorError;
use crate::mirror::follower::{Env, Follower, Output, failure};
use crate::units::Txid;
use crate::volume::Volume;
use crate::volume::facts::{FactFile, FactStore, FactsError};
use crate::wire::message::{History, MasterStatus, Message};
use states::State;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How often the facts learn how far the copy is.
const TICK: Duration = Duration::from_secs(1);
/// Transactions for which nobody waits are gathered for so long before they are made durable: each time costs two flushes.
const GATHER: Duration = Duration::from_millis(2);
/// Commits whose time is remembered for `consistent_as_of`.
const COMMITS: usize = 256;

/// A link from the master, with its first frame.
#[derive(Debug)]
pub struct Call {
    /// The link.
    pub link: Link,
    /// The `Hello`.
    pub hello: Frame,
}

#[derive(Debug)]
enum Input {
    Call(Box<Call>),
    Ask(blocking::Sender<Standing>),
    Stop(blocking::Sender<Result<(), String>>),
}

/// How a copy stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its master has called, and has not hung up.
    pub linked: bool,
    /// What the master said last of the bytes that it lacks.
    pub bytes_to_go: u64,
    /// It is a state that the master had.
    pub consistent: bool,
    /// The last transaction that it shows.
    pub applied: Txid,
    /// What it would tell a master.
    pub history: Option<Box<History>>,
}

/// A thread at work on a frame answers when it is done with it.
const STANDING_WITHIN: Duration = Duration::from_secs(30);

/// A running follower.
#[derive(Debug)]
pub struct Follow {
    inbox: mpsc::Sender<Input>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Follow {
    /// Opens the copy, if there is one, and starts the thread. Without `volume` there is no copy yet.
    pub fn start(
        node: &Arc<Node>,
        host: &Arc<Host>,
        master: &str,
        volume: Option<Arc<Volume>>,
    ) -> Result<Follow, Refusal> {
        let name = host.name();
        let dir = node.state.create_volume(name);
        let dir = dir.map_err(|e| Refusal::io("no place for the volume's facts", e))?;
        let store: Arc<dyn FactStore> = Arc::new(FactFile::new(dir.join("facts")));
        let unusable = |error: &dyn std::error::Error| {
            let remedy = format!(
                "lockstep volume delete {name}, then `lockstep mirror restart {name}` on {master}: it is copied again"
            );
            Refusal::new(Code::Unusable, chain(error), remedy)
        };
        let facts = match store.load() {
            Ok(facts) => Some(facts),
            Err(FactsError::Missing { .. }) => None,
            Err(error) => return Err(unusable(&error)),
        };
        let env = Env {
            node: node.config.name.clone(),
            parts: Arc::new(MirrorParts::new(node, master)),
            facts: store,
            maps: Arc::new(MapFiles::new(&dir)),
            staging: Arc::new(StagingFile::of(node, name)),
            lost: Arc::new(LostFiles::new(node.state.path())),
            clock: node.clock.clone(),
            random: node.random.clone(),
            cache_bytes: node.cache_bytes(),
        };
        let opened = Follower::open(env, name.to_owned(), facts, volume);
        let (follower, outputs) = opened.map_err(|e| unusable(&e))?;
        let (inbox, inputs) = mpsc::channel(8);
        let mut task = Task {
            node: Arc::clone(node),
            host: Arc::clone(host),
            master: master.to_owned(),
            follower,
            timer: None,
            call: None,
            settle_at: None,
            shown: MirrorStatus::default(),
            commits: VecDeque::new(),
            broken: None,
        };
        task.unlinked("the master has not called yet");
        let runtime = timers().map_err(|e| Refusal::io("no timers for the mirror", e))?;
        let thread = std::thread::Builder::new()
            .name(format!("from {master}"))
            .spawn(move || {
                runtime.block_on(async {
                    task.put_out(outputs).await;
                    task.run(inputs).await;
                });
            })
            .map_err(|e| Refusal::io("no thread for the mirror", e))?;
        Ok(Follow {
            inbox,
            thread: Some(thread),
        })
    }

    /// Hands a link over.
    pub fn call(&self, call: Box<Call>) {
        if self.inbox.try_send(Input::Call(call)).is_err() {
            tracing::warn!("a link is dropped: the mirror's thread is busy with others");
        }
    }

    /// How the copy stands; `None` when the thread does not say.
    pub fn standing(&self) -> Option<Standing> {
        let (reply, answer) = blocking::channel();
        self.inbox.blocking_send(Input::Ask(reply)).ok()?;
        answer.recv_timeout(STANDING_WITHIN).ok()
    }

    /// Closes the copy in order and ends the thread.
    pub fn stop(mut self) -> Result<(), Refusal> {
        let (reply, answer) = blocking::channel();
        let sent = self.inbox.blocking_send(Input::Stop(reply));
        let closed = match sent {
            Ok(()) => answer.recv().unwrap_or(Ok(())),
            Err(_) => Ok(()),
        };
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        closed.map_err(|message| {
            let remedy = "see the daemon's log; the next start recovers from the journal";
            Refusal::new(Code::Io, message, remedy)
        })
    }
}

struct Task {
    node: Arc<Node>,
    host: Arc<Host>,
    master: String,
    follower: Follower,
    /// Brings the open copy's log home.
    timer: Option<Timer>,
    call: Option<Call>,
    /// When what has come is made durable at the latest.
    settle_at: Option<Instant>,
    /// What the master said last.
    shown: MirrorStatus,
    /// Transactions of the master and when they were committed there, oldest first.
    commits: VecDeque<(u64, i128)>,
    /// Why the copy can not be used until the volume is opened again.
    broken: Option<String>,
}

async fn receive(call: &mut Option<Call>) -> Result<Frame, LinkEnd> {
    match call {
        Some(call) => call.link.receiver.recv().await,
        None => std::future::pending().await,
    }
}

/// Resolves at that time; never, if there is none.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Task {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                input = inputs.recv() => match input {
                    Some(Input::Call(call)) => self.called(*call).await,
                    Some(Input::Ask(reply)) => {
                        // Whoever asked may have given up.
                        let _ = reply.send(Standing {
                            linked: self.call.is_some(),
                            bytes_to_go: self.shown.bytes_to_go,
                            consistent: self.follower.is_consistent(),
                            applied: self.follower.applied(),
                            history: Some(Box::new(self.follower.described())),
                        });
                    }
                    Some(Input::Stop(reply)) => {
                        let _ = reply.send(self.close().await);
                        return;
                    }
                    None => {
                        let _ = self.close().await;
                        return;
                    }
                },
                frame = receive(&mut self.call) => match frame {
                    Ok(frame) => self.frames(frame).await,
                    Err(end) => self.hung_up(&end.to_string()).await,
                },
                () = due(self.settle_at) => self.settle().await,
                _ = tick.tick() => {
                    if let Err(error) = self.follower.tick() {
                        self.failed(&error).await;
                    }
                    self.show_position();
                }
            }
        }
    }

    /// The master calls. An earlier link of it is dead, or it would not.
    async fn called(&mut self, call: Call) {
        if self.call.is_some() {
            self.hung_up("the master called anew").await;
        }
        if call.link.peer != self.master {
            // Its lineage goes on from this copy's: whoever handed the call over has looked.
            self.host.forget_mirror(&self.master);
            self.master.clone_from(&call.link.peer);
            self.shown.peer.clone_from(&self.master);
            self.commits.clear();
        }
        let hello = Frame {
            channel: 0,
            header: call.hello.header.clone(),
            payload: Vec::new(),
        };
        self.call = Some(call);
        self.shown.state = State::Init.word().to_owned();
        self.shown.reason = "the master has called".to_owned();
        self.publish();
        if let Some(why) = &self.broken {
            let refused = Message::Refused {
                code: states::Cause::MirrorDamaged.word().to_owned(),
                detail: why.clone(),
                severe: true,
            };
            self.send(refused, Vec::new()).await;
            return;
        }
        self.frames(hello).await;
    }

    /// Handles a frame and every further one that has come meanwhile; then what is whole is made durable, now or soon.
    async fn frames(&mut self, first: Frame) {
        let mut next = Some(first);
        while let Some(frame) = next {
            let outputs = self.follower.frame(frame.header, frame.payload);
            match outputs {
                Ok(outputs) => self.put_out(outputs).await,
                Err(error) => return self.failed(&error).await,
            }
            next = match &mut self.call {
                Some(call) => call.link.receiver.try_recv(),
                None => return,
            };
        }
        let now = Instant::now();
        match self.follower.may_wait() {
            true if *self.settle_at.get_or_insert(now + GATHER) > now => {}
            _ => self.settle().await,
        }
    }

    /// What is whole is made durable, acknowledged, and shown.
    async fn settle(&mut self) {
        self.settle_at = None;
        for step in [Follower::append_whole, Follower::idle] {
            match step(&mut self.follower) {
                Ok(outputs) => self.put_out(outputs).await,
                Err(error) => return self.failed(&error).await,
            }
        }
        self.show_position();
    }

    /// Something failed on this side, or the master broke the protocol: it is told, and the link ends.
    async fn failed(&mut self, error: &MirrorError) {
        let text = chain(error);
        tracing::error!(volume = self.host.name(), "{text}");
        let protocol = matches!(error, MirrorError::Protocol(_));
        if !protocol {
            let event = NewEvent::mirror("mirror-failed", self.host.name(), &self.master, &text);
            self.node.record(event);
        }
        self.send(failure(error), Vec::new()).await;
        self.hung_up(&text).await;
    }

    async fn hung_up(&mut self, why: &str) {
        if self.call.take().is_none() {
            return;
        }
        tracing::info!(volume = self.host.name(), master = self.master, "{why}");
        self.unlinked(why);
        self.settle_at = None;
        // How old the copy is, while it is known: the follower records it.
        self.show_position();
        match self.follower.disconnected() {
            Ok(outputs) => self.put_out(outputs).await,
            Err(error) => tracing::error!(volume = self.host.name(), "{}", chain(&error)),
        }
        self.show_position();
    }

    fn unlinked(&mut self, why: &str) {
        self.shown.peer.clone_from(&self.master);
        self.shown.state = State::LinkDown.word().to_owned();
        self.shown.reason = why.to_owned();
        self.shown.rate = 0;
        self.shown.eta_s = None;
        self.publish();
    }

    async fn send(&mut self, message: Message, payload: Vec<u8>) {
        if let Some(call) = &self.call {
            let frame = Frame {
                channel: 0,
                header: message,
                payload,
            };
            // That the link has ended is heard from its receiving half.
            let _ = call.link.sender.send(frame).await;
        }
    }

    async fn put_out(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send(message, payload) => self.send(message, payload).await,
                Output::Invalidate(hints) => self.host.mounts.invalidate(hints),
                Output::Opened(fs) => self.opened(fs),
                Output::Withdraw => self.withdraw("the copy is being repaired"),
                Output::Status(status) => self.told(&status),
                Output::KeptAside(id, what) => {
                    let name = self.host.name();
                    let event = NewEvent::mirror("kept-aside", name, &self.master, what);
                    self.node.record(event.with("kept_aside", id));
                }
                Output::Close(reason) => {
                    self.call = None;
                    match reason.parse::<State>() {
                        // The master says farewell with the state that it went to.
                        Ok(state) => {
                            self.unlinked(&format!("the mirror is in {state} on {}", self.master));
                            self.shown.state = state.word().to_owned();
                            self.publish();
                        }
                        Err(_) => self.unlinked(&reason),
                    }
                }
            }
        }
    }

    fn opened(&mut self, fs: Arc<crate::fs::Fs>) {
        let failed = {
            let name = self.host.name().to_owned();
            move |error: &crate::fs::FsError| {
                tracing::error!(volume = name, "bringing the log home: {}", chain(error));
            }
        };
        self.timer = Timer::start(Arc::clone(&fs), self.node.clock.clone(), || {}, failed)
            .inspect_err(|e| tracing::error!("no thread for the copy's log: {e}"))
            .ok();
        self.host.mounts.offer(Offer {
            fs,
            writable: false,
            mirror: true,
        });
        let as_of = self.follower.facts().as_of;
        self.node.publish(&self.host, |view| {
            view.condition = Condition::Open;
            view.reason.clear();
            if as_of > 0 {
                view.consistent_as_of = Some(moment(as_of));
            }
        });
        let event = NewEvent::volume(
            "copy-consistent",
            self.host.name(),
            "the copy is consistent",
        );
        self.node.record(event);
    }

    fn withdraw(&mut self, why: &str) {
        self.host.mounts.withdraw();
        drop(self.timer.take());
        self.node.publish(&self.host, |view| {
            view.condition = Condition::Waiting;
            why.clone_into(&mut view.reason);
            view.consistent_as_of = None;
        });
    }

    fn told(&mut self, status: &MasterStatus) {
        let acked = self.follower.applied().0;
        self.shown = MirrorStatus {
            peer: self.master.clone(),
            state: status.state.clone(),
            reason: status.reason.clone(),
            cracked: status.cracked,
            bytes_to_go: status.bytes_to_go,
            bytes_bulk: status.bytes_bulk,
            bytes_sequenced: status.bytes_sequenced,
            rate: status.rate,
            eta_s: status.eta_s,
            buffer_used: status.buffer_used,
            buffer_size: status.buffer_size,
            txid_committed: status.txid_committed,
            txid_acked: acked,
            lag_s: 0.0,
            ..MirrorStatus::default()
        };
        if status.committed_at > 0 {
            let known = self
                .commits
                .back()
                .is_some_and(|(t, _)| *t >= status.txid_committed);
            if !known {
                self.commits
                    .push_back((status.txid_committed, status.committed_at));
                if self.commits.len() > COMMITS {
                    self.commits.pop_front();
                }
            }
        }
        let mut warnings = roles::warnings(&self.node, &self.follower.facts());
        self.node.publish(&self.host, |view| {
            view.warnings.retain(|w| w.starts_with("not mounted: "));
            warnings.append(&mut view.warnings);
            view.warnings = warnings;
        });
        self.show_position();
    }

    /// How far the copy is, and the time on the master that it shows.
    fn show_position(&mut self) {
        let applied = self.follower.applied().0;
        self.shown.txid_acked = applied;
        let open = self.follower.fs().is_some();
        let reached = self.commits.iter().rfind(|(txid, _)| *txid <= applied);
        let reached = reached.map(|(_, at)| *at as i64);
        if let Some(at) = reached.filter(|_| open) {
            self.follower.shows_time(at);
        }
        let as_of = reached.map(moment);
        let missing = self.commits.iter().find(|(txid, _)| *txid > applied);
        let lag = missing.map_or(0, |(_, at)| (time_of_day() - at).max(0));
        self.shown.lag_s = (lag / 1_000_000) as f64 / 1000.0;
        self.node.publish(&self.host, |view| {
            if open {
                if as_of.is_some() {
                    view.consistent_as_of.clone_from(&as_of);
                }
            } else {
                view.consistent_as_of = None;
            }
        });
        self.publish();
    }

    fn publish(&self) {
        if self.host.publish_mirror(self.shown.clone()) {
            self.node.changed();
        }
    }

    async fn close(&mut self) -> Result<(), String> {
        let reason = "the mirror's node closes the volume".to_owned();
        self.send(Message::Bye { reason }, Vec::new()).await;
        self.call = None;
        self.unlinked("the volume is closed here");
        self.withdraw("");
        self.follower.close().map(drop).map_err(|e| chain(&e))
    }
}

/// Microseconds of a time of day, as they are shown.
fn moment(micros: i64) -> String {
    Moment(micros / 1_000_000).to_string()
}
