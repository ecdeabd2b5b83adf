//! What one mirror has of the connection to a peer: frames in, frames out, and why it ended.
//!
//! Owns the two ends of a channel (`trunk`). Never interprets a message, and knows nothing of the other channels beside
//! it. A link that has ended never comes back: its reason can be read for as long as the link's receiver lives.
//!
//! Invariants: memory is bounded, by `Limits::queue_bytes` for what waits to be sent and by the channel's window for what
//! was received, whatever the peer sends; a full queue makes the other side wait and nothing else.

use super::keys::Fingerprint;
use super::trunk::channels::{Channels, Encoded, MAX_CHANNELS, Room, Taken};
use crate::wire::control::Ended;
use crate::wire::frame;
use crate::wire::message::Message;
use parking_lot::Mutex;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};

/// A frame between two nodes.
pub type Frame = frame::Frame<Message>;

/// How long and how much a connection may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the TCP connection, the TLS handshake and the choice of the connection together.
    pub handshake: Duration,
    /// A `Ping` goes out when nothing else did, or nothing came, for this long.
    pub ping_every: Duration,
    /// Silence of this length ends a link, unless its user wants another (`LinkSender::set_dead_after`). The connection
    /// ends when the most patient of its links would, and no sooner than this.
    pub dead_after: Duration,
    /// Bytes of one link that may wait to be sent.
    pub queue_bytes: usize,
    /// Frames of one link that may wait to be sent.
    pub queue_frames: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            handshake: Duration::from_secs(5),
            ping_every: Duration::from_secs(1),
            dead_after: Duration::from_secs(6),
            queue_bytes: 8 << 20,
            queue_frames: 256,
        }
    }
}

/// Why a link ended, or did not come about.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LinkEnd {
    /// Nobody answers at the peer's address.
    #[error("can not reach {address}: {detail}")]
    Unreachable {
        /// Where we called.
        address: String,
        /// What the system said.
        detail: String,
    },
    /// The peer shows another key than the one that was pinned.
    #[error(
        "{address} shows another key than the pinned one ({expected}); compare `lockstep node fingerprint` there"
    )]
    WrongKey {
        /// Where we called.
        address: String,
        /// The key we expected.
        expected: Fingerprint,
    },
    /// The peer does not know our key.
    #[error(
        "the peer does not know this node's key; run there: lockstep peer add NAME ADDR:PORT --fingerprint {ours}"
    )]
    KeyRefused {
        /// Our own fingerprint.
        ours: Fingerprint,
    },
    /// The TLS handshake failed in another way, or took too long.
    #[error("no secure connection: {detail}")]
    Handshake {
        /// What TLS said.
        detail: String,
    },
    /// The peer sent what is no frame.
    #[error("the peer sent a bad frame: {detail}")]
    BadFrame {
        /// Which rule was broken.
        detail: String,
    },
    /// Nothing arrived for too long.
    #[error("nothing heard for {seconds} s")]
    Silent {
        /// The limit.
        seconds: u64,
    },
    /// The connection broke.
    #[error("connection lost: {detail}")]
    Lost {
        /// What the system said.
        detail: String,
    },
    /// Another connection to the same peer took its place.
    #[error("the peer connected anew")]
    Replaced,
    /// Too many links to one peer.
    #[error("{MAX_CHANNELS} mirrors are connected to this peer already, no more are")]
    NoRoomHere,
    /// The peer has too many links.
    #[error("the peer takes no more mirrors (at most {MAX_CHANNELS} from one node)")]
    NoRoomThere,
    /// The peer closed it in order.
    #[error("closed by the peer")]
    Closed,
    /// We closed it.
    #[error("closed by this node")]
    ClosedHere,
}

/// Bytes that went over one link, frames' prefixes and headers included, TLS's own not.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Sent.
    pub sent: AtomicU64,
    /// Received.
    pub received: AtomicU64,
}

/// Why a frame was not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum NotSent {
    /// The queue is full: try later. The frame comes back.
    Full(Box<Frame>),
    /// The link has ended.
    Ended,
}

/// Ends the channel in order when the last sender is dropped.
#[derive(Debug)]
struct Life {
    channels: Arc<Channels>,
    channel: u32,
    room: Arc<Notify>,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.channels.finish(self.channel);
    }
}

/// The sending half: can be cloned; the link ends in order when the last one is dropped.
#[derive(Clone, Debug)]
pub struct LinkSender {
    life: Arc<Life>,
}

impl LinkSender {
    pub(super) fn new(channels: Arc<Channels>, channel: u32, room: Arc<Notify>) -> LinkSender {
        LinkSender {
            life: Arc::new(Life {
                channels,
                channel,
                room,
            }),
        }
    }

    /// Queues a frame, or gives it back when the queue is full. Never waits.
    pub fn try_send(&self, frame: Frame) -> Result<(), NotSent> {
        let queued = self.queue(frame);
        self.wake();
        queued
    }

    /// As `try_send`, for whoever queues more at once and calls `wake` then.
    pub fn queue(&self, frame: Frame) -> Result<(), NotSent> {
        let Life {
            channels, channel, ..
        } = &*self.life;
        match channels.room(*channel) {
            Room::Yes => {}
            Room::No => return Err(NotSent::Full(Box::new(frame))),
            Room::Ended => return Err(NotSent::Ended),
        }
        // Here and not in the connection's task: the checksums of many mirrors are computed side by side.
        match frame::encode(*channel, &frame.header, &frame.payload) {
            Ok(head) => {
                let payload = frame.payload;
                match channels.put(*channel, Encoded { head, payload }) {
                    true => Ok(()),
                    false => Err(NotSent::Ended),
                }
            }
            Err(e) => {
                let detail = format!("our own frame is not sent: {e}");
                channels.abort(*channel, LinkEnd::BadFrame { detail }, Ended::Done);
                Err(NotSent::Ended)
            }
        }
    }

    /// What is queued may go.
    pub fn wake(&self) {
        self.life.channels.work.notify_one();
    }

    /// Queues a frame, waiting for room. An error when the link has ended.
    pub async fn send(&self, mut frame: Frame) -> Result<(), NotSent> {
        loop {
            let mut changed = pin!(self.life.room.notified());
            changed.as_mut().enable();
            match self.try_send(frame) {
                Err(NotSent::Full(back)) => frame = *back,
                done => return done,
            }
            changed.await;
        }
    }

    /// Waits until there is room for a frame, or the link has ended.
    pub async fn ready(&self) {
        loop {
            let mut changed = pin!(self.life.room.notified());
            changed.as_mut().enable();
            if self.life.channels.room(self.life.channel) != Room::No {
                return;
            }
            changed.await;
        }
    }

    /// Whether the link has ended.
    pub fn is_closed(&self) -> bool {
        self.life.channels.room(self.life.channel) == Room::Ended
    }

    /// How long this link bears silence of the peer, from now on: a mirror's own `--timeout`. Other links over the same
    /// connection keep theirs.
    pub fn set_dead_after(&self, dead_after: Duration) {
        let Life {
            channels, channel, ..
        } = &*self.life;
        channels.set_dead_after(*channel, dead_after);
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct LinkReceiver {
    channels: Arc<Channels>,
    channel: u32,
    queue: mpsc::UnboundedReceiver<Taken>,
    end: Arc<Mutex<Option<LinkEnd>>>,
    /// Its places among those of the node and of the connection, while it can hold frames.
    places: Vec<OwnedSemaphorePermit>,
}

impl LinkReceiver {
    pub(super) fn new(
        channels: Arc<Channels>,
        channel: u32,
        queue: mpsc::UnboundedReceiver<Taken>,
        end: Arc<Mutex<Option<LinkEnd>>>,
        places: Vec<OwnedSemaphorePermit>,
    ) -> LinkReceiver {
        LinkReceiver {
            channels,
            channel,
            queue,
            end,
            places,
        }
    }

    fn took(&self, taken: Taken) -> Frame {
        self.channels.took(self.channel, taken.cost);
        taken.frame
    }

    /// The next frame, if one is there.
    pub fn try_recv(&mut self) -> Option<Frame> {
        let taken = self.queue.try_recv().ok()?;
        Some(self.took(taken))
    }

    /// The next frame; why the link ended, after the last one. Safe to drop while it waits.
    pub async fn recv(&mut self) -> Result<Frame, LinkEnd> {
        match self.queue.recv().await {
            Some(taken) => Ok(self.took(taken)),
            None => {
                self.places.clear();
                Err(self.end.lock().clone().unwrap_or(LinkEnd::ClosedHere))
            }
        }
    }
}

#[cfg(test)]
impl LinkReceiver {
    /// Why the link ended, for one that takes nothing out and gives no credit back.
    pub async fn end_unread(&mut self) -> LinkEnd {
        while self.queue.recv().await.is_some() {}
        self.end.lock().clone().unwrap_or(LinkEnd::ClosedHere)
    }
}

/// A channel to a peer whose key has been checked.
#[derive(Debug)]
pub struct Link {
    /// The peer's name in our catalogue.
    pub peer: String,
    /// Sending half.
    pub sender: LinkSender,
    /// Receiving half.
    pub receiver: LinkReceiver,
    /// What went over it so far.
    pub traffic: Arc<Traffic>,
}
