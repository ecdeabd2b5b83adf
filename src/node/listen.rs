//! The port between nodes: accepts, checks the key, hands the link over.
//!
//! Owns the listening socket and the handshakes under way. Never reads a message. What arrives here comes from
//! anybody: a handshake has a deadline, there are at most `MAX_HANDSHAKES` of them and `MAX_LINKS` links at once, and
//! whatever is wrong with a client ends that client's connection only.

use super::keys::{Fingerprint, Identity};
use super::link::{Limits, Link};
use super::tls;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsStream, rustls};

/// Handshakes at once; further clients wait in the kernel's backlog.
const MAX_HANDSHAKES: usize = 64;
/// Links at once, of known peers: 4 a volume and mirror leave room for 64 of them.
const MAX_LINKS: usize = 256;

/// Takes over a link of a known peer. Must not block.
pub type Handler = Arc<dyn Fn(Link, OwnedSemaphorePermit) + Send + Sync>;

/// What the listener needs to know.
#[derive(Clone)]
pub struct Listener {
    acceptor: TlsAcceptor,
    known: tls::Known,
    ours: Fingerprint,
    limits: Limits,
    handler: Handler,
}

impl Listener {
    /// A listener that shows `identity`, accepts the keys that `known` names and hands links to `handler`.
    pub fn new(
        identity: &Identity,
        known: tls::Known,
        limits: Limits,
        handler: Handler,
    ) -> Result<Listener, rustls::Error> {
        Ok(Listener {
            acceptor: tls::acceptor(identity, Arc::clone(&known))?,
            known,
            ours: identity.fingerprint(),
            limits,
            handler,
        })
    }

    /// Accepts for ever; drop the future to stop.
    pub async fn run(self, socket: TcpListener) {
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let links = Arc::new(Semaphore::new(MAX_LINKS));
        loop {
            let turn = Arc::clone(&handshakes)
                .acquire_owned()
                .await
                .expect("never closed");
            let (stream, from) = match socket.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    // Out of descriptors, or a client that left in the backlog: go on, but not in a busy loop.
                    tracing::warn!("accept: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let this = self.clone();
            let links = Arc::clone(&links);
            tokio::spawn(async move {
                let taken = this.shake_hands(stream, from).await;
                drop(turn);
                let Some((peer, stream)) = taken else { return };
                let Ok(place) = links.try_acquire_owned() else {
                    tracing::warn!(%from, peer, "refused: {MAX_LINKS} links are open");
                    return;
                };
                tracing::debug!(%from, peer, "link accepted");
                let stream = TlsStream::Server(stream);
                let link = Link::start(peer, stream, this.ours, this.limits);
                (this.handler)(link, place);
            });
        }
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
        from: SocketAddr,
    ) -> Option<(String, tokio_rustls::server::TlsStream<TcpStream>)> {
        if let Err(e) = stream.set_nodelay(true) {
            tracing::debug!(%from, "TCP_NODELAY: {e}");
        }
        let accept = self.acceptor.accept(stream).into_fallible();
        match timeout(self.limits.handshake, accept).await {
            Ok(Ok(stream)) => {
                let (_, session) = stream.get_ref();
                let certificate = session.peer_certificates().and_then(|c| c.first());
                let peer = certificate
                    .and_then(Fingerprint::of_certificate)
                    .and_then(|fingerprint| (self.known)(&fingerprint));
                if peer.is_none() {
                    tracing::warn!(%from, "refused: the peer was removed during its handshake");
                }
                peer.map(|peer| (peer, stream))
            }
            Ok(Err((error, stream))) => {
                tracing::warn!(%from, "no secure connection: {error}");
                farewell(stream).await;
                None
            }
            Err(_) => {
                tracing::warn!(%from, "refused: no handshake within {:?}", self.limits.handshake);
                None
            }
        }
    }
}

/// Lets the alert reach the client: closing a socket with unread bytes in it would reset the connection, and the
/// client would see that instead of the reason.
async fn farewell(mut stream: TcpStream) {
    let drained = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut sink = [0; 4096];
        for _ in 0..64 {
            match stream.read(&mut sink).await {
                Ok(n) if n > 0 => {}
                _ => return,
            }
        }
    };
    drop(timeout(Duration::from_secs(1), drained).await);
}
