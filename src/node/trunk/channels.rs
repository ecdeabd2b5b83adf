//! The channels of one connection: what waits to be written, what was read and not yet taken, and the credit for both.
//!
//! Owns the table of channels and their rules. Never touches a socket and never waits: the connection's task asks what to
//! write next and hands in what it read; links put frames in and take frames out.
//!
//! Invariants: a peer has at most `WINDOW` bytes in a channel's inbox, and at most `MAX_CHANNELS` inboxes (one counts until
//! its link is dropped or has been read to its end); what breaks that ends the connection, as a bad frame. A link that is
//! not read holds up its own channel only. The numbers of channels ascend on each side, so a number that is not in the
//! table and not new is one that has ended: what still comes for it is thrown away. Once the connection has ended, every
//! link has its reason before it sees the end.

use super::super::link::{Frame, Limits, Link, LinkEnd, LinkReceiver, LinkSender, Traffic};
use super::fair::Fair;
use crate::wire::control::{CONTROL, Control, Ended, FRAME_COST, MAX_CONTROL, WINDOW, cost};
use crate::wire::frame::{PREFIX_LEN, Prefix};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

/// Channels that each side may have opened on one connection. With `WINDOW` it bounds what a peer makes this node keep:
/// 1 GiB when every one of its mirrors here stands still at once.
pub const MAX_CHANNELS: usize = 128;
/// Control frames that may wait to be written: an honest peer reads them, and each channel has only two.
const MAX_CONTROLS: usize = 4 * MAX_CHANNELS;
/// Credit is given back in pieces of this size, bytes.
const CREDIT_STEP: u64 = WINDOW / 4;

/// A frame, encoded.
#[derive(Debug)]
pub struct Encoded {
    /// Prefix and header.
    pub head: Vec<u8>,
    /// Goes behind it.
    pub payload: Vec<u8>,
}

impl Encoded {
    fn cost(&self) -> u64 {
        cost(self.head.len() - PREFIX_LEN, self.payload.len())
    }

    /// Bytes on the wire.
    pub fn bytes(&self) -> u64 {
        (self.head.len() + self.payload.len()) as u64
    }
}

/// What is to be written next.
#[derive(Debug)]
pub enum Job {
    /// About the connection.
    Control(Control),
    /// For a channel; the counter of what it sent.
    Data(Encoded, Arc<Traffic>),
}

/// Whether a frame may be put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It may.
    Yes,
    /// Later.
    No,
    /// The channel has ended.
    Ended,
}

/// A frame in an inbox.
#[derive(Debug)]
pub struct Taken {
    /// The frame.
    pub frame: Frame,
    /// Its share of the window.
    pub cost: u64,
}

#[derive(Debug)]
struct Channel {
    out: VecDeque<Encoded>,
    out_bytes: u64,
    /// What may still be sent.
    credit: u64,
    inbox: mpsc::UnboundedSender<Taken>,
    /// What the peer has used of the window here.
    held: u64,
    /// How much of that was taken out and not given back yet.
    owed: u64,
    owed_queued: bool,
    /// Its user said the last word, then.
    closing: Option<Instant>,
    dead_after: Duration,
    end: Arc<Mutex<Option<LinkEnd>>>,
    room: Arc<Notify>,
    traffic: Arc<Traffic>,
}

impl Channel {
    fn can_send(&self) -> bool {
        self.out.front().is_some_and(|f| f.cost() <= self.credit)
    }
}

#[derive(Debug)]
struct State {
    end: Option<LinkEnd>,
    draining: bool,
    table: HashMap<u32, Channel>,
    next_ours: u32,
    next_theirs: u32,
    ours: usize,
    fair: Fair,
    control: VecDeque<Control>,
    /// At most one of each waits.
    ping: Option<u64>,
    pong: Option<u64>,
    pings: u64,
    heard: Instant,
}

/// The channels of one connection. Lock order: the state's lock is the last one; no other is taken under it but an ended
/// channel's reason.
#[derive(Debug)]
pub struct Channels {
    state: Mutex<State>,
    limits: Limits,
    /// There may be something to write.
    pub work: Notify,
    /// The connection is to end.
    pub halt: Notify,
}

fn bad(detail: String) -> LinkEnd {
    LinkEnd::BadFrame { detail }
}

impl State {
    fn is_ours(&self, channel: u32) -> bool {
        channel % 2 == self.next_ours % 2
    }

    /// Whether a number has been in use; `false` only for one that never was.
    fn was_used(&self, channel: u32) -> bool {
        match self.is_ours(channel) {
            true => channel < self.next_ours,
            false => channel < self.next_theirs,
        }
    }

    /// Takes a channel out of the table. Its links see the end behind what they have not read yet.
    fn remove(&mut self, channel: u32, why: Option<LinkEnd>) {
        let Some(gone) = self.table.remove(&channel) else {
            return;
        };
        self.fair.remove(channel);
        if self.is_ours(channel) {
            self.ours -= 1;
        }
        if let Some(why) = why {
            gone.end.lock().get_or_insert(why);
        }
        drop(gone.inbox);
        gone.room.notify_waiters();
    }

    fn end_frame(&mut self, channel: u32, why: Ended) {
        self.control.push_back(Control::End { channel, why });
    }
}

impl Channels {
    /// Of a new connection. `dialled`: by this side. `first` is written before anything else.
    pub fn new(limits: Limits, dialled: bool, first: Option<Control>) -> Channels {
        let (next_ours, next_theirs) = if dialled { (1, 2) } else { (2, 1) };
        Channels {
            state: Mutex::new(State {
                end: None,
                draining: false,
                table: HashMap::new(),
                next_ours,
                next_theirs,
                ours: 0,
                fair: Fair::default(),
                control: first.into_iter().collect(),
                ping: None,
                pong: None,
                pings: 0,
                heard: Instant::now(),
            }),
            limits,
            work: Notify::new(),
            halt: Notify::new(),
        }
    }

    /// Why the connection ended, once it has.
    pub fn ended(&self) -> Option<LinkEnd> {
        self.state.lock().end.clone()
    }

    /// How long nothing has been heard.
    pub fn silent_for(&self) -> Duration {
        self.state.lock().heard.elapsed()
    }

    /// Ends every channel and the connection.
    pub fn end(&self, why: LinkEnd) {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return;
        }
        state.end = Some(why.clone());
        let all: Vec<u32> = state.table.keys().copied().collect();
        for channel in all {
            state.remove(channel, Some(why.clone()));
        }
        state.control.clear();
        drop(state);
        self.halt.notify_one();
        self.work.notify_one();
    }

    /// No channel is opened any more; the connection ends once everything has been written.
    pub fn drain(&self) {
        self.state.lock().draining = true;
        self.work.notify_one();
    }

    fn link(
        self: &Arc<Channels>,
        state: &mut State,
        channel: u32,
        peer: String,
        dead_after: Duration,
        places: Vec<OwnedSemaphorePermit>,
    ) -> Link {
        let (inbox, taken) = mpsc::unbounded_channel();
        let end = Arc::new(Mutex::new(None));
        let room = Arc::new(Notify::new());
        let traffic = Arc::new(Traffic::default());
        let made = Channel {
            out: VecDeque::new(),
            out_bytes: 0,
            credit: WINDOW,
            inbox,
            held: 0,
            owed: 0,
            owed_queued: false,
            closing: None,
            dead_after,
            end: Arc::clone(&end),
            room: Arc::clone(&room),
            traffic: Arc::clone(&traffic),
        };
        state.table.insert(channel, made);
        Link {
            peer,
            sender: LinkSender::new(Arc::clone(self), channel, room),
            receiver: LinkReceiver::new(Arc::clone(self), channel, taken, end, places),
            traffic,
        }
    }

    /// Opens a channel.
    pub fn open(self: &Arc<Channels>, peer: String, dead_after: Duration) -> Result<Link, LinkEnd> {
        let mut state = self.state.lock();
        if let Some(end) = &state.end {
            return Err(end.clone());
        }
        if state.draining {
            return Err(LinkEnd::ClosedHere);
        }
        if state.ours >= MAX_CHANNELS || state.control.len() >= MAX_CONTROLS {
            return Err(LinkEnd::NoRoomHere);
        }
        let channel = state.next_ours;
        let Some(next) = channel.checked_add(2) else {
            drop(state);
            // After two thousand million channels: the next connection begins anew.
            self.end(LinkEnd::ClosedHere);
            return Err(LinkEnd::ClosedHere);
        };
        state.next_ours = next;
        state.ours += 1;
        state.control.push_back(Control::Open { channel });
        let link = self.link(&mut state, channel, peer, dead_after, Vec::new());
        drop(state);
        self.work.notify_one();
        Ok(link)
    }

    /// Takes a channel that the peer has opened.
    pub fn accept(
        self: &Arc<Channels>,
        channel: u32,
        peer: String,
        places: Vec<OwnedSemaphorePermit>,
    ) -> Link {
        let mut state = self.state.lock();
        let link = self.link(&mut state, channel, peer, self.limits.dead_after, places);
        if let Some(end) = state.end.clone() {
            state.remove(channel, Some(end));
        }
        link
    }

    /// Does not take it.
    pub fn refuse(&self, channel: u32) {
        self.state.lock().end_frame(channel, Ended::NoRoom);
        self.work.notify_one();
    }

    /// Whether a channel takes a frame now.
    pub fn room(&self, channel: u32) -> Room {
        match self.state.lock().table.get(&channel) {
            None => Room::Ended,
            Some(c) if c.closing.is_some() => Room::Ended,
            // One frame may go past the limit: how long it becomes is not known before.
            Some(c)
                if c.out_bytes >= self.limits.queue_bytes as u64
                    || c.out.len() >= self.limits.queue_frames =>
            {
                Room::No
            }
            Some(_) => Room::Yes,
        }
    }

    /// Puts a frame in, and wakes nobody. `false`: the channel has ended.
    pub fn put(&self, channel: u32, frame: Encoded) -> bool {
        let mut state = self.state.lock();
        let Some(entry) = state.table.get_mut(&channel) else {
            return false;
        };
        entry.out_bytes += frame.cost();
        entry.out.push_back(frame);
        if entry.can_send() {
            state.fair.wake(channel);
        }
        true
    }

    /// The user of a channel has said everything: it ends behind what waits.
    pub fn finish(&self, channel: u32) {
        let mut state = self.state.lock();
        let Some(entry) = state.table.get_mut(&channel) else {
            return;
        };
        entry.closing = Some(Instant::now());
        if entry.out.is_empty() {
            state.end_frame(channel, Ended::Done);
            state.remove(channel, None);
        }
        drop(state);
        self.work.notify_one();
    }

    /// Ends a channel at once, for a reason.
    pub fn abort(&self, channel: u32, why: LinkEnd, told: Ended) {
        let mut state = self.state.lock();
        if state.table.contains_key(&channel) {
            state.end_frame(channel, told);
            state.remove(channel, Some(why));
        }
        drop(state);
        self.work.notify_one();
    }

    /// How long a channel's user bears silence from now on.
    pub fn set_dead_after(&self, channel: u32, dead_after: Duration) {
        if let Some(entry) = self.state.lock().table.get_mut(&channel) {
            entry.dead_after = dead_after;
        }
    }

    /// A frame was taken out of an inbox.
    pub fn took(&self, channel: u32, cost: u64) {
        let mut state = self.state.lock();
        let Some(entry) = state.table.get_mut(&channel) else {
            return;
        };
        entry.owed += cost;
        if entry.owed < CREDIT_STEP || entry.owed_queued {
            return;
        }
        entry.owed_queued = true;
        // The sum is put in when it is written.
        state
            .control
            .push_back(Control::Credit { channel, bytes: 0 });
        drop(state);
        self.work.notify_one();
    }

    /// What to write next. `None`: nothing, at present.
    pub fn next_job(&self) -> Option<Job> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if let Some(token) = state.pong.take() {
            return Some(Job::Control(Control::Pong { token }));
        }
        while let Some(control) = state.control.pop_front() {
            let Control::Credit { channel, .. } = control else {
                return Some(Job::Control(control));
            };
            if let Some(entry) = state.table.get_mut(&channel) {
                entry.owed_queued = false;
                entry.held -= entry.owed;
                let bytes = std::mem::take(&mut entry.owed);
                return Some(Job::Control(Control::Credit { channel, bytes }));
            }
        }
        if let Some(token) = state.ping.take() {
            return Some(Job::Control(Control::Ping { token }));
        }
        let table = &mut state.table;
        let channel = state
            .fair
            .next(|c| table.get(&c).is_some_and(Channel::can_send))?;
        let entry = table.get_mut(&channel)?;
        let frame = entry.out.pop_front()?;
        state.fair.spent(channel, frame.bytes());
        entry.credit -= frame.cost();
        entry.out_bytes -= frame.cost();
        let traffic = Arc::clone(&entry.traffic);
        entry.room.notify_waiters();
        if entry.closing.is_some() && entry.out.is_empty() {
            state.end_frame(channel, Ended::Done);
            state.remove(channel, None);
        }
        Some(Job::Data(frame, traffic))
    }

    /// Whether everything has been written that will be.
    pub fn is_drained(&self) -> bool {
        let state = self.state.lock();
        state.draining && state.table.values().all(|c| c.out.is_empty())
    }

    /// Asks the peer for a sign of life.
    pub fn ping(&self) {
        let mut state = self.state.lock();
        state.pings += 1;
        state.ping = Some(state.pings);
        drop(state);
        self.work.notify_one();
    }

    /// Bytes came.
    pub fn heard(&self) {
        self.state.lock().heard = Instant::now();
    }

    /// Looks at a frame's prefix, before memory is taken for the frame.
    pub fn admit(&self, prefix: &Prefix) -> Result<(), LinkEnd> {
        let channel = prefix.channel();
        if channel == CONTROL {
            if prefix.header_len() > MAX_CONTROL || prefix.payload_len() > 0 {
                return Err(bad(format!(
                    "a control frame with {} and {} bytes",
                    prefix.header_len(),
                    prefix.payload_len()
                )));
            }
            return Ok(());
        }
        let cost = cost(prefix.header_len(), prefix.payload_len());
        let mut state = self.state.lock();
        if let Some(entry) = state.table.get_mut(&channel) {
            if entry.held + cost > WINDOW {
                return Err(bad(format!(
                    "{cost} bytes on channel {channel}, where only {} may be sent",
                    WINDOW - entry.held
                )));
            }
            entry.held += cost;
            return Ok(());
        }
        match state.was_used(channel) {
            true => Ok(()),
            false => Err(bad(format!("channel {channel} was never opened"))),
        }
    }

    /// A frame that was admitted has arrived.
    pub fn deliver(&self, frame: Frame, cost: u64) {
        let state = self.state.lock();
        if let Some(entry) = state.table.get(&frame.channel) {
            let received = PREFIX_LEN as u64 + cost - FRAME_COST;
            entry
                .traffic
                .received
                .fetch_add(received, Ordering::Relaxed);
            // Nobody reads any more: its share of the window stays used, and the peer stops.
            let _ = entry.inbox.send(Taken { frame, cost });
        }
    }

    /// A control frame has arrived. A channel that the peer opens is returned.
    pub fn control(&self, control: &Control) -> Result<Option<u32>, LinkEnd> {
        let mut state = self.state.lock();
        let state = &mut *state;
        match *control {
            Control::Open { channel } => {
                if channel != state.next_theirs {
                    return Err(bad(format!(
                        "channel {channel} is opened, the next one is {}",
                        state.next_theirs
                    )));
                }
                if state.control.len() >= MAX_CONTROLS {
                    return Err(bad("channels are opened and no answer is read".to_owned()));
                }
                let next = channel.checked_add(2);
                state.next_theirs =
                    next.ok_or_else(|| bad("no numbers are left for channels".to_owned()))?;
                return Ok(Some(channel));
            }
            Control::Credit { channel, bytes } => {
                if let Some(entry) = state.table.get_mut(&channel) {
                    entry.credit = entry.credit.saturating_add(bytes);
                    if entry.credit > WINDOW {
                        return Err(bad(format!(
                            "credit for more than was sent on channel {channel}"
                        )));
                    }
                    state.fair.wake(channel);
                    self.work.notify_one();
                } else if !state.was_used(channel) {
                    return Err(bad(format!("credit for channel {channel}, never opened")));
                }
            }
            Control::End { channel, why } => {
                if channel == CONTROL || !state.was_used(channel) {
                    return Err(bad(format!("the end of channel {channel}, never opened")));
                }
                let why = match why {
                    Ended::Done => LinkEnd::Closed,
                    Ended::NoRoom => LinkEnd::NoRoomThere,
                    Ended::Silent => LinkEnd::Lost {
                        detail: "the peer heard nothing from this node for too long".to_owned(),
                    },
                };
                state.remove(channel, Some(why));
            }
            Control::Ping { token } => {
                state.pong = Some(token);
                self.work.notify_one();
            }
            Control::Pong { .. } => {}
            Control::Call { .. } | Control::Use { .. } | Control::Spare => {
                return Err(bad(format!("{control:?} on a connection in use")));
            }
        }
        Ok(None)
    }

    /// How long to wait before the next look at who is silent.
    pub fn tick(&self) -> Duration {
        let state = self.state.lock();
        let shortest = state.table.values().map(|c| c.dead_after).min();
        let shortest = shortest.map_or(self.limits.dead_after, |s| s.min(self.limits.dead_after));
        self.limits.ping_every.min(shortest / 4)
    }

    /// Ends what has been silent, or has not got rid of its last frames, for too long. `lost` is time in which this process
    /// did not run, and could hear nothing. An error when the whole connection is to end.
    pub fn look(&self, lost: Duration) -> Result<(), LinkEnd> {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.heard = (state.heard + lost).min(now);
        let silent = now - state.heard;
        let longest = state.table.values().map(|c| c.dead_after).max();
        let longest = longest.map_or(self.limits.dead_after, |l| l.max(self.limits.dead_after));
        let silence = |dead_after: Duration| LinkEnd::Silent {
            seconds: dead_after.as_secs(),
        };
        if silent >= longest {
            return Err(silence(longest));
        }
        let dead: Vec<(u32, Duration, bool)> = state
            .table
            .iter()
            .map(|(id, c)| {
                let stuck = c.closing.is_some_and(|at| now - at >= c.dead_after);
                (*id, c.dead_after, stuck)
            })
            .filter(|(_, dead_after, stuck)| *stuck || silent >= *dead_after)
            .collect();
        for (channel, dead_after, _) in &dead {
            state.end_frame(*channel, Ended::Silent);
            state.remove(*channel, Some(silence(*dead_after)));
        }
        drop(state);
        if silent >= self.tick() {
            self.ping();
        } else if !dead.is_empty() {
            self.work.notify_one();
        }
        Ok(())
    }

    /// Credit that was used and not given back.
    #[cfg(test)]
    pub fn spent(&self, channel: u32) -> u64 {
        WINDOW - self.state.lock().table[&channel].credit
    }
}
