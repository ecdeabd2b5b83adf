//! One connection between two nodes, which carries the links of all their mirrors in both directions.
//!
//! Owns the socket: reads frames into the channels' inboxes and writes what `channels` chooses; says and hears that both
//! ends are alive. Never interprets a message. The rules of channels, credit and turns are those of `channels` and `fair`.
//!
//! Invariants: reading never waits for a consumer, so a signal of life is always heard; time in which this process did not
//! run is nobody's silence; nothing is allocated for a frame before its channel admits it.

pub mod channels;

pub mod fair;

use self::channels::{Channels, Job, MAX_CHANNELS};
use super::keys::Fingerprint;
use super::link::{Frame, Limits, Link, LinkEnd};
use super::tls;
use crate::wire::control::{CONTROL, Control, MAX_CONTROL, cost};
use crate::wire::frame::{self, FrameError, Header, PREFIX_LEN, Prefix};
use crate::wire::message::Message;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsStream;
use tokio_rustls::rustls;

/// A socket under TLS. TLS asks for 4 KiB at a time; each time the kernel is asked costs more than decrypting them.
pub type Socket = BufReader<TcpStream>;

/// What is gathered of frames before it is encrypted and given to the kernel, bytes; less only when nothing else waits. Each
/// piece wakes the peer.
const GATHERED: usize = 64 << 10;
/// What the kernel is asked for at once, bytes.
const RECEIVED: usize = 64 << 10;

/// Takes over a link that a known peer has opened. Must not block.
pub type Handler = Arc<dyn Fn(Link) + Send + Sync>;

/// What every connection of a node needs.
#[derive(Clone)]
pub struct Desk {
    /// Our own key.
    pub ours: Fingerprint,
    /// Whom we know.
    pub known: tls::Known,
    /// For links that peers open.
    pub handler: Handler,
    /// One for each such link, on the whole node.
    pub places: Arc<Semaphore>,
    /// Times and sizes.
    pub limits: Limits,
}

/// A connection in use. It ends when it is told to, or when it breaks: not when this is dropped.
#[derive(Debug)]
pub struct Trunk {
    channels: Arc<Channels>,
    /// The random number of the peer's run, where the peer tells it.
    pub boot: u64,
    /// The connection's name, the same on both sides.
    pub token: u64,
    /// Called by this side.
    pub dialled: bool,
}

impl Trunk {
    /// Starts the connection's task on the current runtime. `first` is written first.
    pub fn start(
        stream: TlsStream<Socket>,
        desk: Desk,
        theirs: Fingerprint,
        boot: u64,
        token: u64,
        first: Option<Control>,
    ) -> Trunk {
        let dialled = matches!(stream, TlsStream::Client(_));
        let channels = Arc::new(Channels::new(desk.limits, dialled, first));
        let task = Task {
            desk,
            theirs,
            channels: Arc::clone(&channels),
            places: Arc::new(Semaphore::new(MAX_CHANNELS)),
        };
        tokio::spawn(async move {
            let why = task.run(stream).await;
            tracing::debug!(peer = %task.theirs, "connection ended: {why}");
            task.channels.end(why);
        });
        Trunk {
            channels,
            boot,
            token,
            dialled,
        }
    }

    /// Opens a channel to the peer, which its user calls by this name.
    pub fn open(&self, peer: String, dead_after: Duration) -> Result<Link, LinkEnd> {
        self.channels.open(peer, dead_after)
    }

    /// Whether something was heard within that time, and it has not ended.
    pub fn is_live(&self, within: Duration) -> bool {
        self.channels.ended().is_none() && self.channels.silent_for() < within
    }

    /// Why it ended, once it has.
    pub fn ended(&self) -> Option<LinkEnd> {
        self.channels.ended()
    }

    /// Ends it and all its links, for this reason.
    pub fn stop(&self, why: LinkEnd) {
        self.channels.end(why);
    }

    /// Takes no more links, and ends once everything has been written.
    pub fn drain(&self) {
        self.channels.drain();
    }
}

/// A new connection's socket, for TLS.
pub fn socket(stream: TcpStream) -> Socket {
    BufReader::with_capacity(RECEIVED, stream)
}

/// Why a connection broke.
pub fn lost(error: &io::Error, ours: Fingerprint) -> LinkEnd {
    match tls_error(error) {
        Some(rustls::Error::AlertReceived(_)) => LinkEnd::KeyRefused { ours },
        // A peer that died without TLS's farewell.
        _ if error.kind() == io::ErrorKind::UnexpectedEof => LinkEnd::Lost {
            detail: "the peer is gone".to_owned(),
        },
        _ => LinkEnd::Lost {
            detail: error.to_string(),
        },
    }
}

/// What TLS itself said.
pub fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>()
}

fn bad(error: &FrameError) -> LinkEnd {
    LinkEnd::BadFrame {
        detail: error.to_string(),
    }
}

/// Reads until `buffer` is full. `false`: the stream ended before the first byte.
async fn fill(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
    mut heard: impl FnMut(),
) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]).await? {
            0 if filled == 0 => return Ok(false),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => filled += n,
        }
        heard();
    }
    Ok(true)
}

async fn write_frame<H: Header>(
    writer: &mut (impl AsyncWrite + Unpin),
    header: &H,
) -> io::Result<()> {
    let head = frame::encode(CONTROL, header, b"").map_err(io::Error::other)?;
    writer.write_all(&head).await
}

/// Sends one control frame over a connection that is not in use yet.
pub async fn say(
    stream: &mut TlsStream<Socket>,
    ours: Fingerprint,
    control: &Control,
) -> Result<(), LinkEnd> {
    let said = async {
        write_frame(stream, control).await?;
        stream.flush().await
    };
    said.await.map_err(|e| lost(&e, ours))
}

/// Reads one control frame from a connection that is not in use yet.
pub async fn hear(stream: &mut TlsStream<Socket>, ours: Fingerprint) -> Result<Control, LinkEnd> {
    let lost = |e: io::Error| lost(&e, ours);
    let mut prefix = [0; PREFIX_LEN];
    if !fill(stream, &mut prefix, || ()).await.map_err(lost)? {
        return Err(LinkEnd::Closed);
    }
    let prefix = Prefix::decode(&prefix).map_err(|e| bad(&e))?;
    let is_control = prefix.channel() == CONTROL
        && prefix.header_len() <= MAX_CONTROL
        && prefix.payload_len() == 0;
    if !is_control {
        let detail = "it does not begin with a call".to_owned();
        return Err(LinkEnd::BadFrame { detail });
    }
    let mut header = prefix.header_buffer();
    if !fill(stream, &mut header, || ()).await.map_err(lost)? {
        return Err(LinkEnd::Closed);
    }
    prefix.decode_header(&header).map_err(|e| bad(&e))
}

struct Task {
    desk: Desk,
    theirs: Fingerprint,
    channels: Arc<Channels>,
    /// One for each link that this peer has opened.
    places: Arc<Semaphore>,
}

impl Task {
    async fn run(&self, stream: TlsStream<Socket>) -> LinkEnd {
        let (reader, writer) = tokio::io::split(stream);
        tokio::select! {
            end = self.read_all(reader) => end,
            end = self.write_all(writer) => end,
            end = self.watch() => end,
        }
    }

    fn lost(&self, error: &io::Error) -> LinkEnd {
        lost(error, self.desk.ours)
    }

    async fn read_all(&self, mut reader: impl AsyncRead + Unpin) -> LinkEnd {
        loop {
            match self.read_frame(&mut reader).await {
                Ok(true) => {}
                Ok(false) => return LinkEnd::Closed,
                Err(end) => return end,
            }
        }
    }

    /// Reads a frame and hands it on. `false` at the orderly end of the stream.
    async fn read_frame(&self, reader: &mut (impl AsyncRead + Unpin)) -> Result<bool, LinkEnd> {
        let lost = |e: io::Error| self.lost(&e);
        let heard = || self.channels.heard();
        let mut prefix = [0; PREFIX_LEN];
        if !fill(reader, &mut prefix, heard).await.map_err(lost)? {
            return Ok(false);
        }
        let prefix = Prefix::decode(&prefix).map_err(|e| bad(&e))?;
        self.channels.admit(&prefix)?;
        let cut = || lost(io::ErrorKind::UnexpectedEof.into());
        let mut header = prefix.header_buffer();
        if !fill(reader, &mut header, heard).await.map_err(lost)? {
            return Err(cut());
        }
        if prefix.channel() == CONTROL {
            let control = prefix.decode_header(&header).map_err(|e| bad(&e))?;
            if let Some(channel) = self.channels.control(&control)? {
                self.opened(channel)?;
            }
            return Ok(true);
        }
        let header = prefix
            .decode_header::<Message>(&header)
            .map_err(|e| bad(&e))?;
        let mut payload = vec![0; prefix.payload_len()];
        if !fill(reader, &mut payload, heard).await.map_err(lost)? {
            return Err(cut());
        }
        prefix.check_payload(&payload).map_err(|e| bad(&e))?;
        let cost = cost(prefix.header_len(), prefix.payload_len());
        let frame = Frame {
            channel: prefix.channel(),
            header,
            payload,
        };
        self.channels.deliver(frame, cost);
        Ok(true)
    }

    fn known(&self) -> Result<String, LinkEnd> {
        (self.desk.known)(&self.theirs).ok_or_else(|| LinkEnd::Lost {
            detail: "it is no peer any more".to_owned(),
        })
    }

    /// The peer has opened a channel.
    fn opened(&self, channel: u32) -> Result<(), LinkEnd> {
        let peer = self.known()?;
        let place = Arc::clone(&self.places).try_acquire_owned();
        let ours = Arc::clone(&self.desk.places).try_acquire_owned();
        match (place, ours) {
            (Ok(place), Ok(ours)) => {
                let link = self.channels.accept(channel, peer, vec![place, ours]);
                (self.desk.handler)(link);
            }
            _ => {
                tracing::warn!(peer, "refused a link: too many are open");
                self.channels.refuse(channel);
            }
        }
        Ok(())
    }

    async fn write_all(&self, writer: impl AsyncWrite + Unpin) -> LinkEnd {
        let mut writer = BufWriter::with_capacity(GATHERED, writer);
        loop {
            let written = match self.channels.next_job() {
                Some(Job::Control(control)) => write_frame(&mut writer, &control).await,
                Some(Job::Data(frame, traffic)) => {
                    let write = async {
                        writer.write_all(&frame.head).await?;
                        writer.write_all(&frame.payload).await
                    };
                    let written = write.await;
                    traffic.sent.fetch_add(frame.bytes(), Ordering::Relaxed);
                    written
                }
                None => match writer.flush().await {
                    Ok(()) if self.channels.is_drained() => {
                        // Farewell, within bounds. What the peer still says is read until it has read all of ours and
                        // ends: a socket that is closed before answers with a reset, which takes ours with it.
                        let farewell = async {
                            if writer.shutdown().await.is_ok() {
                                std::future::pending::<()>().await;
                            }
                        };
                        drop(timeout(self.desk.limits.ping_every, farewell).await);
                        return LinkEnd::ClosedHere;
                    }
                    Ok(()) => {
                        let idle = timeout(self.channels.tick(), self.channels.work.notified());
                        if idle.await.is_err() {
                            self.channels.ping();
                        }
                        Ok(())
                    }
                    failed => failed,
                },
            };
            if let Err(e) = written {
                return self.lost(&e);
            }
        }
    }

    /// Ends what is silent, what is not wanted and who is not trusted any more.
    async fn watch(&self) -> LinkEnd {
        loop {
            let tick = self.channels.tick();
            let began = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(tick) => {}
                () = self.channels.halt.notified() => {
                    return self.channels.ended().unwrap_or(LinkEnd::ClosedHere);
                }
            }
            // Stopped, or without a processor: what came meanwhile was not heard, but it may be there.
            let late = began.elapsed().saturating_sub(tick);
            let lost = if late > tick { late } else { Duration::ZERO };
            if let Err(end) = self.known().and_then(|_| self.channels.look(lost)) {
                return end;
            }
        }
    }
}
