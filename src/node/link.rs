//! One connection to one peer: frames in, frames out, and the knowledge whether the peer is alive.
//!
//! Owns the socket, its two bounded queues and the keepalive. Never interprets a message but `Ping` and `Pong`. A link
//! that has ended never comes back: its reason can be read for as long as the link's receiver lives.
//!
//! Invariants: memory is bounded by `Limits::queue_bytes` in each direction, whatever the peer sends; a peer from which
//! nothing arrives for `Limits::dead_after` while we wait for it ends the link; a full queue makes the other side wait
//! and nothing else.

use super::keys::{Fingerprint, Identity};
use super::tls;
use crate::wire::frame::{self, FrameError, PREFIX_LEN, Prefix};
use crate::wire::message::Message;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsStream;
use tokio_rustls::rustls;

/// A frame between two nodes.
pub type Frame = frame::Frame<Message>;

/// How long and how much a connection may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the TCP connection and the TLS handshake together.
    pub handshake: Duration,
    /// A `Ping` goes out when nothing else did for this long.
    pub ping_every: Duration,
    /// Silence of this length, while we wait for the peer, ends the link (`--timeout`).
    pub dead_after: Duration,
    /// Bytes that may wait in each direction.
    pub queue_bytes: usize,
    /// Frames that may wait in each direction.
    pub queue_frames: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            handshake: Duration::from_secs(5),
            ping_every: Duration::from_secs(1),
            dead_after: Duration::from_secs(6),
            queue_bytes: 32 << 20,
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

/// A frame in a queue, with its share of the queue's bytes.
struct Queued {
    frame: Frame,
    _share: OwnedSemaphorePermit,
}

/// The sending half: can be cloned; the link ends in order when the last one is dropped.
#[derive(Clone, Debug)]
pub struct LinkSender {
    queue: mpsc::Sender<Queued>,
    budget: Arc<Semaphore>,
    budget_size: u32,
}

/// Why a frame was not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum NotSent {
    /// The queue is full: try later. The frame comes back.
    Full(Box<Frame>),
    /// The link has ended.
    Ended,
}

impl LinkSender {
    /// Share of the budget of a frame, KiB. The header's size is not known yet: transactions' lists are
    /// the largest, and a queue of 256 of them stays below the budget's order of magnitude.
    fn share(&self, frame: &Frame) -> u32 {
        let kib = frame.payload.len().div_ceil(1024) as u32 + 1;
        kib.min(self.budget_size)
    }

    /// Queues a frame, or gives it back when the queue is full. Never waits.
    pub fn try_send(&self, frame: Frame) -> Result<(), NotSent> {
        let share = self.share(&frame);
        let budget = Arc::clone(&self.budget);
        let Ok(permit) = budget.try_acquire_many_owned(share) else {
            if self.queue.is_closed() {
                return Err(NotSent::Ended);
            }
            return Err(NotSent::Full(Box::new(frame)));
        };
        let queued = Queued {
            frame,
            _share: permit,
        };
        self.queue.try_send(queued).map_err(|e| match e {
            mpsc::error::TrySendError::Full(q) => NotSent::Full(Box::new(q.frame)),
            mpsc::error::TrySendError::Closed(_) => NotSent::Ended,
        })
    }

    /// Queues a frame, waiting for room. An error when the link has ended.
    pub async fn send(&self, frame: Frame) -> Result<(), NotSent> {
        let budget = Arc::clone(&self.budget);
        let acquire = budget.acquire_many_owned(self.share(&frame));
        let permit = tokio::select! {
            permit = acquire => permit.map_err(|_| NotSent::Ended)?,
            () = self.queue.closed() => return Err(NotSent::Ended),
        };
        let queued = Queued {
            frame,
            _share: permit,
        };
        self.queue.send(queued).await.map_err(|_| NotSent::Ended)
    }

    /// Waits until there is room for a frame of `payload` bytes, or the link has ended.
    pub async fn ready(&self, payload: usize) {
        let kib = (payload.div_ceil(1024) as u32 + 1).min(self.budget_size);
        tokio::select! {
            room = self.budget.acquire_many(kib) => drop(room),
            () = self.queue.closed() => return,
        }
        drop(self.queue.reserve().await);
    }

    /// Whether the link has ended.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct LinkReceiver {
    queue: mpsc::Receiver<Queued>,
    end: Arc<Mutex<Option<LinkEnd>>>,
}

impl std::fmt::Debug for Queued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queued({:?})", self.frame.header)
    }
}

impl LinkReceiver {
    /// The next frame, if one is there.
    pub fn try_recv(&mut self) -> Option<Frame> {
        self.queue.try_recv().ok().map(|queued| queued.frame)
    }

    /// The next frame; why the link ended, after the last one. Safe to drop while it waits.
    pub async fn recv(&mut self) -> Result<Frame, LinkEnd> {
        match self.queue.recv().await {
            Some(queued) => Ok(queued.frame),
            None => Err(self.end.lock().clone().unwrap_or(LinkEnd::ClosedHere)),
        }
    }
}

/// A live connection to a peer whose key has been checked.
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

impl Link {
    /// Starts the link's task on the current runtime.
    pub fn start(
        peer: String,
        stream: TlsStream<TcpStream>,
        ours: Fingerprint,
        limits: Limits,
    ) -> Link {
        let budget_size = (limits.queue_bytes / 1024).max(frame::MAX_PAYLOAD / 1024 + 1) as u32;
        let (to_wire, from_us) = mpsc::channel(limits.queue_frames);
        let (to_us, from_wire) = mpsc::channel(limits.queue_frames);
        let end = Arc::new(Mutex::new(None));
        let traffic = Arc::new(Traffic::default());
        let task = Task {
            limits,
            ours,
            traffic: Arc::clone(&traffic),
            inbound_budget: Arc::new(Semaphore::new(budget_size as usize)),
            inbound_size: budget_size,
        };
        let reason = Arc::clone(&end);
        tokio::spawn(async move {
            let why = task.run(stream, from_us, &to_us).await;
            *reason.lock() = Some(why);
            // Dropping the queue's sender is what tells the receiver: the reason must be there by then.
            drop(to_us);
        });
        Link {
            peer,
            sender: LinkSender {
                queue: to_wire,
                budget: Arc::new(Semaphore::new(budget_size as usize)),
                budget_size,
            },
            receiver: LinkReceiver {
                queue: from_wire,
                end,
            },
            traffic,
        }
    }

    /// Calls a peer and checks its key.
    pub async fn dial(
        peer: String,
        address: &str,
        identity: &Identity,
        expected: Fingerprint,
        limits: Limits,
    ) -> Result<Link, LinkEnd> {
        let unreachable = |detail: String| LinkEnd::Unreachable {
            address: address.to_owned(),
            detail,
        };
        let handshake = |e: &dyn std::fmt::Display| LinkEnd::Handshake {
            detail: e.to_string(),
        };
        let connector = tls::connector(identity, expected).map_err(|e| handshake(&e))?;
        let dialled = timeout(limits.handshake, async {
            let stream = TcpStream::connect(address)
                .await
                .map_err(|e| unreachable(e.to_string()))?;
            stream.set_nodelay(true).map_err(|e| handshake(&e))?;
            connector
                .connect(tls::server_name(), stream)
                .await
                .map_err(|e| match tls_error(&e) {
                    Some(rustls::Error::InvalidCertificate(_)) => LinkEnd::WrongKey {
                        address: address.to_owned(),
                        expected,
                    },
                    _ => handshake(&e),
                })
        })
        .await;
        let stream = match dialled {
            Ok(stream) => stream?,
            Err(_) => {
                let seconds = limits.handshake.as_secs();
                return Err(unreachable(format!("no answer within {seconds} s")));
            }
        };
        let ours = identity.fingerprint();
        Ok(Link::start(peer, TlsStream::Client(stream), ours, limits))
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>()
}

struct Task {
    limits: Limits,
    ours: Fingerprint,
    traffic: Arc<Traffic>,
    inbound_budget: Arc<Semaphore>,
    inbound_size: u32,
}

impl Task {
    async fn run(
        &self,
        stream: TlsStream<TcpStream>,
        outgoing: mpsc::Receiver<Queued>,
        incoming: &mpsc::Sender<Queued>,
    ) -> LinkEnd {
        let (reader, writer) = tokio::io::split(stream);
        // Answers to pings overtake the queue. Full means that the peer pings faster than it reads: drop them.
        let (pongs, pongs_out) = mpsc::channel(4);
        tokio::select! {
            end = self.read_all(reader, incoming, pongs) => end,
            end = self.write_all(writer, outgoing, pongs_out) => end,
        }
    }

    fn lost(&self, error: &io::Error) -> LinkEnd {
        match tls_error(error) {
            Some(rustls::Error::AlertReceived(_)) => LinkEnd::KeyRefused { ours: self.ours },
            _ => LinkEnd::Lost {
                detail: error.to_string(),
            },
        }
    }

    fn bad(error: &FrameError) -> LinkEnd {
        LinkEnd::BadFrame {
            detail: error.to_string(),
        }
    }

    /// Reads until `buffer` is full. `Ok(false)`: the stream ended before the first byte.
    async fn fill(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        buffer: &mut [u8],
    ) -> Result<bool, LinkEnd> {
        let mut filled = 0;
        while filled < buffer.len() {
            let read = reader.read(&mut buffer[filled..]);
            let Ok(read) = timeout(self.limits.dead_after, read).await else {
                let seconds = self.limits.dead_after.as_secs();
                return Err(LinkEnd::Silent { seconds });
            };
            match read {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => {
                    let eof = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(self.lost(&eof));
                }
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && filled == 0 => {
                    // A peer that died without TLS's farewell: not an orderly end.
                    return Err(LinkEnd::Lost {
                        detail: "the peer is gone".to_owned(),
                    });
                }
                Err(e) => return Err(self.lost(&e)),
            }
        }
        let n = buffer.len() as u64;
        self.traffic.received.fetch_add(n, Ordering::Relaxed);
        Ok(true)
    }

    async fn read_frame(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
    ) -> Result<Option<Queued>, LinkEnd> {
        let mut prefix = [0; PREFIX_LEN];
        if !self.fill(reader, &mut prefix).await? {
            return Ok(None);
        }
        let prefix = Prefix::decode(&prefix).map_err(|e| Self::bad(&e))?;
        let kib = (prefix.header_len() + prefix.payload_len()).div_ceil(1024) as u32 + 1;
        let share = Arc::clone(&self.inbound_budget)
            .acquire_many_owned(kib.min(self.inbound_size))
            .await
            .expect("the budget is never closed");
        let ended = || LinkEnd::Lost {
            detail: "the stream ended inside a frame".to_owned(),
        };
        let mut header = prefix.header_buffer();
        if !self.fill(reader, &mut header).await? {
            return Err(ended());
        }
        let header = prefix
            .decode_header::<Message>(&header)
            .map_err(|e| Self::bad(&e))?;
        let mut payload = vec![0; prefix.payload_len()];
        if !self.fill(reader, &mut payload).await? {
            return Err(ended());
        }
        prefix.check_payload(&payload).map_err(|e| Self::bad(&e))?;
        Ok(Some(Queued {
            frame: Frame {
                channel: prefix.channel(),
                header,
                payload,
            },
            _share: share,
        }))
    }

    async fn read_all(
        &self,
        mut reader: impl AsyncRead + Unpin,
        incoming: &mpsc::Sender<Queued>,
        pongs: mpsc::Sender<u64>,
    ) -> LinkEnd {
        loop {
            match self.read_frame(&mut reader).await {
                Err(end) => return end,
                Ok(None) => return LinkEnd::Closed,
                Ok(Some(queued)) => match queued.frame.header {
                    Message::Ping { token } => drop(pongs.try_send(token)),
                    Message::Pong { .. } => {}
                    _ => {
                        if incoming.send(queued).await.is_err() {
                            return LinkEnd::ClosedHere;
                        }
                    }
                },
            }
        }
    }

    async fn write_frame(
        &self,
        writer: &mut (impl AsyncWrite + Unpin),
        channel: u32,
        header: &Message,
        payload: &[u8],
    ) -> Result<(), LinkEnd> {
        let head = frame::encode(channel, header, payload).map_err(|e| LinkEnd::BadFrame {
            detail: format!("our own frame is not sent: {e}"),
        })?;
        let write = async {
            writer.write_all(&head).await?;
            writer.write_all(payload).await
        };
        write.await.map_err(|e| self.lost(&e))?;
        let n = (head.len() + payload.len()) as u64;
        self.traffic.sent.fetch_add(n, Ordering::Relaxed);
        Ok(())
    }

    async fn write_all(
        &self,
        mut writer: impl AsyncWrite + Unpin,
        mut outgoing: mpsc::Receiver<Queued>,
        mut pongs: mpsc::Receiver<u64>,
    ) -> LinkEnd {
        let mut token = 0;
        loop {
            let written = tokio::select! {
                biased;
                Some(token) = pongs.recv() => {
                    self.write_frame(&mut writer, 0, &Message::Pong { token }, b"").await
                }
                queued = outgoing.recv() => match queued {
                    Some(Queued { frame, _share }) => {
                        self.write_frame(&mut writer, frame.channel, &frame.header, &frame.payload).await
                    }
                    None => {
                        // The last sender is gone: everything was written; say farewell, within bounds.
                        drop(timeout(self.limits.ping_every, writer.shutdown()).await);
                        return LinkEnd::ClosedHere;
                    }
                },
                () = tokio::time::sleep(self.limits.ping_every) => {
                    token += 1;
                    self.write_frame(&mut writer, 0, &Message::Ping { token }, b"").await
                }
            };
            if let Err(end) = written {
                return end;
            }
            if outgoing.is_empty()
                && let Err(e) = writer.flush().await
            {
                return self.lost(&e);
            }
        }
    }
}
