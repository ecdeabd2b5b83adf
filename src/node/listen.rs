//! The port between nodes: accepts, checks the key, hands the connection over.
//!
//! Owns the listening socket and the handshakes under way. Never reads a message. What arrives here comes from
//! anybody: a handshake has a deadline, there are at most `MAX_HANDSHAKES` of them at once (a connection counts until it
//! is chosen or closed), and whatever is wrong with a client ends that client's connection only.

use super::keys::Fingerprint;
use super::trunk::{self, Socket};
use super::trunks::{self, Trunks};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsStream, rustls};

/// Handshakes at once; further clients wait in the kernel's backlog.
const MAX_HANDSHAKES: usize = 64;

/// What the listener needs to know.
#[derive(Clone)]
pub struct Listener {
    acceptor: TlsAcceptor,
    trunks: Arc<Trunks>,
}

impl Listener {
    /// A listener for the node whose connections these are.
    pub fn new(trunks: Arc<Trunks>) -> Result<Listener, rustls::Error> {
        Ok(Listener {
            acceptor: trunks.acceptor()?,
            trunks,
        })
    }

    /// Accepts for ever; drop the future to stop.
    pub async fn run(self, socket: TcpListener) {
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
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
            tokio::spawn(async move {
                if let Some((theirs, stream)) = this.shake_hands(stream, from).await {
                    tracing::debug!(%from, peer = %theirs, "connection accepted");
                    this.trunks
                        .accepted(TlsStream::Server(stream), theirs)
                        .await;
                }
                drop(turn);
            });
        }
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
        from: SocketAddr,
    ) -> Option<(Fingerprint, tokio_rustls::server::TlsStream<Socket>)> {
        trunks::prepare(&stream);
        let accept = self.acceptor.accept(trunk::socket(stream)).into_fallible();
        let deadline = self.trunks.limits().handshake;
        match timeout(deadline, accept).await {
            Ok(Ok(stream)) => {
                let (_, session) = stream.get_ref();
                let certificate = session.peer_certificates().and_then(|c| c.first());
                let peer = certificate
                    .and_then(Fingerprint::of_certificate)
                    .filter(|key| self.trunks.name_of(key).is_some());
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
                tracing::warn!(%from, "refused: no handshake within {deadline:?}");
                None
            }
        }
    }
}

/// Lets the alert reach the client: closing a socket with unread bytes in it would reset the connection, and the
/// client would see that instead of the reason.
async fn farewell(mut stream: Socket) {
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
