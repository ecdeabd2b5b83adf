//! The node's connections: one to each peer, whoever called.
//!
//! Owns the choice among several. Both nodes may call at once, or one may call because it has noticed the death of a
//! connection that the other still believes in. So that the two never disagree, one of them decides alone: the one with
//! the smaller fingerprint. On every connection the other one speaks first (`Call`: its run, and the last choice that it
//! has heard of), and uses it when the decider says so (`Use`). The decider takes the first that is complete, and another
//! one later only if the present one is dead: it ended, or is silent, or the peer is in another run, or the peer calls
//! although it knows the present one. No link ever is on a connection that was not chosen.
//!
//! Invariants: at most one connection of a peer is in use, at most one call to it is under way; whoever wants a link
//! meanwhile waits for that call, or for a connection that comes the other way.

use super::keys::{Fingerprint, Identity};
use super::link::{Limits, Link, LinkEnd};
use super::tls;
use super::trunk::{self, Desk, Handler, Socket, Trunk};
use crate::io::Random;
use crate::io::socket::limit_unsent;
use crate::wire::control::Control;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::{TlsAcceptor, TlsStream, rustls};

/// Links at once that peers have opened, on the whole node.
const MAX_LINKS: usize = 256;
/// Bytes that the kernel may hold of a connection before they are sent: what is urgent waits behind them.
const UNSENT_BYTES: u32 = 256 << 10;
/// A connection that does not come about within this is tried anew beside it.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// For the last words on every connection when the node stops.
const FAREWELL: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Entry {
    current: Option<Trunk>,
    /// Token of the last connection that the peer chose, where it decides.
    seen: u64,
    dialling: bool,
    attempts: u64,
    /// The last call that came to something, and why it failed if it did.
    outcome: Option<(u64, Option<LinkEnd>)>,
    /// Connections that were in use so far.
    installed: u64,
}

/// The connections of a node.
pub struct Trunks {
    identity: Arc<Identity>,
    desk: Desk,
    random: Arc<dyn Random>,
    boot: u64,
    /// Lock order: before the channels' state of any connection.
    peers: Mutex<BTreeMap<Fingerprint, Entry>>,
    changes: watch::Sender<u64>,
}

impl fmt::Debug for Trunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trunks({})", self.desk.ours)
    }
}

impl Trunks {
    /// No connections yet. Links that peers open go to `handler`; `known` says whom we trust.
    pub fn new(
        identity: Arc<Identity>,
        known: tls::Known,
        limits: Limits,
        random: Arc<dyn Random>,
        handler: Handler,
    ) -> Arc<Trunks> {
        let desk = Desk {
            ours: identity.fingerprint(),
            known,
            handler,
            places: Arc::new(Semaphore::new(MAX_LINKS)),
            limits,
        };
        Arc::new(Trunks {
            identity,
            desk,
            boot: u64::from(random.u32()) << 32 | u64::from(random.u32()),
            random,
            peers: Mutex::new(BTreeMap::new()),
            changes: watch::Sender::new(0),
        })
    }

    /// Times and sizes.
    pub fn limits(&self) -> Limits {
        self.desk.limits
    }

    /// For the listener.
    pub fn acceptor(&self) -> Result<TlsAcceptor, rustls::Error> {
        tls::acceptor(&self.identity, Arc::clone(&self.desk.known))
    }

    /// The name of the peer with this key.
    pub fn name_of(&self, key: &Fingerprint) -> Option<String> {
        (self.desk.known)(key)
    }

    /// A link to a peer: over the connection that there is, or over one that is made. `dead_after`: how long the link's
    /// user bears silence.
    pub async fn dial(
        self: &Arc<Trunks>,
        peer: String,
        address: &str,
        expected: Fingerprint,
        dead_after: Duration,
    ) -> Result<Link, LinkEnd> {
        let give_up = Instant::now() + 2 * self.desk.limits.handshake;
        // An idle peer speaks every `ping_every`: less than a few of these is no silence yet, however hasty the user.
        let doubtful = dead_after.max(3 * self.desk.limits.ping_every);
        let mut news = self.changes.subscribe();
        let mut awaited = None;
        loop {
            news.borrow_and_update();
            {
                let mut peers = self.peers.lock();
                let entry = peers.entry(expected).or_default();
                if let Some(trunk) = &entry.current
                    && trunk.is_live(doubtful)
                {
                    return trunk.open(peer, dead_after);
                }
                match (awaited, &entry.outcome) {
                    (Some(n), Some((done, failed))) if *done >= n => {
                        // It may have ended before we looked.
                        let ended = entry.current.as_ref().and_then(Trunk::ended);
                        let end = failed.clone().or(ended).unwrap_or(LinkEnd::Closed);
                        return Err(end);
                    }
                    (Some(_), _) => {}
                    (None, _) => {
                        if !entry.dialling {
                            entry.dialling = true;
                            entry.attempts += 1;
                            let call = Call {
                                address: address.to_owned(),
                                expected,
                                attempt: entry.attempts,
                                doubted: entry.current.as_ref().map(|t| t.token),
                                seen: entry.seen,
                            };
                            // A task of its own: whoever waits with us must not lose it with us.
                            tokio::spawn(Arc::clone(self).call(call));
                        }
                        awaited = Some(entry.attempts);
                    }
                }
            }
            if !matches!(timeout_at(give_up, news.changed()).await, Ok(Ok(()))) {
                return Err(LinkEnd::Handshake {
                    detail: "the peer prefers another connection, which does not come".to_owned(),
                });
            }
        }
    }

    async fn call(self: Arc<Trunks>, call: Call) {
        let limit = self.desk.limits.handshake;
        let called = match timeout(limit, self.connect(&call)).await {
            Ok(called) => called,
            Err(_) => Err(LinkEnd::Unreachable {
                address: call.address.clone(),
                detail: format!("no answer within {} s", limit.as_secs()),
            }),
        };
        let mut peers = self.peers.lock();
        let entry = peers.entry(call.expected).or_default();
        entry.dialling = false;
        match called {
            Ok(Choice::Used) => entry.outcome = Some((call.attempt, None)),
            // The other one is on its way, or was there first.
            Ok(Choice::Spare) => {}
            Err(end) => entry.outcome = Some((call.attempt, Some(end))),
        }
        drop(peers);
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    async fn connect(&self, call: &Call) -> Result<Choice, LinkEnd> {
        let handshake = |e: &dyn fmt::Display| LinkEnd::Handshake {
            detail: e.to_string(),
        };
        let expected = call.expected;
        let connector = tls::connector(&self.identity, expected).map_err(|e| handshake(&e))?;
        let stream = reach(&call.address).await;
        let stream = stream.map_err(|e| LinkEnd::Unreachable {
            address: call.address.clone(),
            detail: e.to_string(),
        })?;
        prepare(&stream);
        let stream = connector
            .connect(tls::server_name(), trunk::socket(stream))
            .await;
        let stream = stream.map_err(|e| match trunk::tls_error(&e) {
            Some(rustls::Error::InvalidCertificate(_)) => LinkEnd::WrongKey {
                address: call.address.clone(),
                expected,
            },
            _ => handshake(&e),
        })?;
        let stream = TlsStream::Client(stream);
        self.choose(stream, expected, Some(call)).await
    }

    /// Takes a connection that a known peer has made. Its place among the handshakes is kept meanwhile.
    pub async fn accepted(&self, stream: TlsStream<Socket>, theirs: Fingerprint) {
        let chosen = timeout(
            self.desk.limits.handshake,
            self.choose(stream, theirs, None),
        );
        match chosen.await {
            Ok(Ok(_)) => {}
            Ok(Err(end)) => tracing::debug!(peer = %theirs, "a connection is not used: {end}"),
            Err(_) => tracing::debug!(peer = %theirs, "a connection was never chosen"),
        }
    }

    /// Decides whether a connection is used, or hears it from the peer, who decides. `call`: how this side made it.
    async fn choose(
        &self,
        mut stream: TlsStream<Socket>,
        theirs: Fingerprint,
        call: Option<&Call>,
    ) -> Result<Choice, LinkEnd> {
        let ours = self.desk.ours;
        if ours < theirs {
            let (boot, seen) = match trunk::hear(&mut stream, ours).await? {
                Control::Call { boot, seen } => (boot, seen),
                other => return Err(out_of_turn(&other)),
            };
            let spare = {
                let mut peers = self.peers.lock();
                let entry = peers.entry(theirs).or_default();
                let keep = entry.current.as_ref().is_some_and(|t| {
                    // Whoever called did not want the one that it knew then.
                    let unwanted = call.map_or(seen, |c| c.doubted.unwrap_or(0));
                    t.is_live(self.desk.limits.dead_after) && t.boot == boot && t.token != unwanted
                });
                match keep {
                    true => Some(stream),
                    false => {
                        // 0 says that there was none.
                        let token = u64::from(self.random.u32()) << 32
                            | u64::from(self.random.u32())
                            | 1 << 31;
                        let first = Some(Control::Use { token });
                        let desk = self.desk.clone();
                        let new = Trunk::start(stream, desk, theirs, boot, token, first);
                        install(entry, new);
                        None
                    }
                }
            };
            if let Some(mut stream) = spare {
                trunk::say(&mut stream, ours, &Control::Spare).await?;
                // That the farewell is not heard is no loss.
                let _ = stream.shutdown().await;
                return Ok(Choice::Spare);
            }
        } else {
            // As it was when the call was decided on: a connection that came since is not what made us call.
            let seen = call.map_or(0, |c| c.seen);
            let boot = self.boot;
            trunk::say(&mut stream, ours, &Control::Call { boot, seen }).await?;
            match trunk::hear(&mut stream, ours).await? {
                Control::Use { token } => {
                    let mut peers = self.peers.lock();
                    let entry = peers.entry(theirs).or_default();
                    entry.seen = token;
                    let desk = self.desk.clone();
                    install(entry, Trunk::start(stream, desk, theirs, 0, token, None));
                }
                Control::Spare => return Ok(Choice::Spare),
                other => return Err(out_of_turn(&other)),
            }
        }
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
        Ok(Choice::Used)
    }

    /// Writes what links have left, for a moment, then ends every connection.
    pub async fn close(&self) {
        let until = Instant::now() + FAREWELL;
        for entry in self.peers.lock().values() {
            entry.current.iter().for_each(Trunk::drain);
        }
        let drained = || {
            let peers = self.peers.lock();
            peers
                .values()
                .flat_map(|e| &e.current)
                .all(|t| t.ended().is_some())
        };
        while !drained() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for entry in self.peers.lock().values() {
            if let Some(trunk) = &entry.current {
                trunk.stop(LinkEnd::ClosedHere);
            }
        }
    }

    /// How many connections have been in use so far, and how many are.
    #[cfg(test)]
    pub fn counts(&self) -> (u64, usize) {
        let peers = self.peers.lock();
        let live = peers.values().flat_map(|e| &e.current);
        let live = live.filter(|t| t.ended().is_none()).count();
        (peers.values().map(|e| e.installed).sum(), live)
    }

    /// Whether a call is under way.
    #[cfg(test)]
    pub fn is_dialling(&self) -> bool {
        self.peers.lock().values().any(|e| e.dialling)
    }

    /// Breaks every connection.
    #[cfg(test)]
    pub fn cut(&self) {
        for entry in self.peers.lock().values() {
            if let Some(trunk) = &entry.current {
                let detail = "cut".to_owned();
                trunk.stop(LinkEnd::Lost { detail });
            }
        }
    }
}

/// What became of a connection.
enum Choice {
    Used,
    Spare,
}

/// A call under way.
struct Call {
    address: String,
    expected: Fingerprint,
    attempt: u64,
    /// The connection that was there, and believed dead.
    doubted: Option<u64>,
    /// The last one that the peer had chosen.
    seen: u64,
}

fn install(entry: &mut Entry, new: Trunk) {
    tracing::debug!(
        token = new.token,
        dialled = new.dialled,
        "connection in use"
    );
    entry.installed += 1;
    if let Some(old) = entry.current.replace(new) {
        old.stop(LinkEnd::Replaced);
    }
}

fn out_of_turn(control: &Control) -> LinkEnd {
    LinkEnd::BadFrame {
        detail: format!("{control:?} before a connection is chosen"),
    }
}

/// Connects; when no answer comes, with further sockets beside the first one: the kernel repeats a lost request after 1, 3
/// and 7 s only, and a link that is mended in between is to be used at once. Ends with the call's deadline.
async fn reach(address: &str) -> io::Result<TcpStream> {
    let mut tries = JoinSet::new();
    loop {
        let address = address.to_owned();
        tries.spawn(async move { TcpStream::connect(address).await });
        if let Ok(Some(tried)) = timeout(TRY_AGAIN, tries.join_next()).await {
            return tried.map_err(io::Error::other)?;
        }
    }
}

/// Settings of the socket that shorten waits; without them it works all the same.
pub fn prepare(stream: &TcpStream) {
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!("TCP_NODELAY: {e}");
    }
    if let Err(e) = limit_unsent(stream, UNSENT_BYTES) {
        tracing::debug!("TCP_NOTSENT_LOWAT: {e}");
    }
}
