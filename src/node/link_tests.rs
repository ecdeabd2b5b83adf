//! Links over real sockets: who is let in, what ends a link, what does not end the listener.

use super::keys::{Fingerprint, Identity};
use super::link::{Frame, Limits, Link, LinkEnd, NotSent};
use super::listen::Listener;
use super::trunk::{Socket, socket};
use super::trunks::Trunks;
use crate::io::file::SystemRandom;
use crate::wire::control::{Control, WINDOW};
use crate::wire::frame::{self, PREFIX_LEN};
use crate::wire::message::{MAX_STREAM_PAYLOAD, Message};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;

/// A node as far as links go: its key, its port, its connections.
pub struct Host {
    pub identity: Arc<Identity>,
    pub address: String,
    pub trunks: Arc<Trunks>,
    /// Links that peers opened.
    pub links: mpsc::UnboundedReceiver<Link>,
    listener: tokio::task::JoinHandle<()>,
}

impl Host {
    /// A node that listens and knows these peers.
    pub async fn new(identity: Identity, known: &[(Fingerprint, &str)], limits: Limits) -> Host {
        Host::of(Arc::new(identity), known, limits).await
    }

    /// Another run of a node.
    pub async fn of(
        identity: Arc<Identity>,
        known: &[(Fingerprint, &str)],
        limits: Limits,
    ) -> Host {
        let names: BTreeMap<_, _> = known.iter().map(|(f, n)| (*f, (*n).to_owned())).collect();
        let known = Arc::new(move |f: &Fingerprint| names.get(f).cloned());
        Host::with(identity, known, limits).await
    }

    /// A node that knows whom the function names.
    pub async fn with(identity: Arc<Identity>, known: super::tls::Known, limits: Limits) -> Host {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let (send, links) = mpsc::unbounded_channel();
        let trunks = Trunks::new(
            Arc::clone(&identity),
            known,
            limits,
            Arc::new(SystemRandom),
            Arc::new(move |link| drop(send.send(link))),
        );
        let listener = Listener::new(Arc::clone(&trunks)).unwrap();
        let listener = tokio::spawn(listener.run(socket));
        Host {
            identity,
            address,
            trunks,
            links,
            listener,
        }
    }

    pub fn key(&self) -> Fingerprint {
        self.identity.fingerprint()
    }

    /// A link to another node, which is called `peer` here.
    pub async fn dial(&self, other: &Host) -> Result<Link, LinkEnd> {
        let dead_after = self.trunks.limits().dead_after;
        self.trunks
            .dial("peer".into(), &other.address, other.key(), dead_after)
            .await
    }

    /// The next link that a peer opened.
    pub async fn link(&mut self) -> Link {
        let wait = tokio::time::timeout(Duration::from_secs(20), self.links.recv());
        wait.await.expect("a link comes").unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

pub fn identity(name: &str) -> Identity {
    let dir = tempfile::tempdir().unwrap();
    Identity::create(&dir.path().join("node.key"), name).unwrap()
}

pub fn limits() -> Limits {
    Limits {
        handshake: Duration::from_millis(2000),
        ping_every: Duration::from_millis(50),
        dead_after: Duration::from_millis(400),
        ..Limits::default()
    }
}

pub fn bye(reason: impl Into<String>, payload: Vec<u8>) -> Frame {
    Frame {
        channel: 0,
        header: Message::Bye {
            reason: reason.into(),
        },
        payload,
    }
}

/// What a frame says, without the channel it came on.
pub fn said(frame: Frame) -> (String, Vec<u8>) {
    match frame.header {
        Message::Bye { reason } => (reason, frame.payload),
        other => panic!("{other:?}"),
    }
}

/// Two keys; the second one's fingerprint is the smaller one exactly if `decides`.
pub fn keys(decides: bool) -> (Identity, Identity) {
    let (one, two) = (identity("one"), identity("two"));
    match (two.fingerprint() < one.fingerprint()) == decides {
        true => (one, two),
        false => (two, one),
    }
}

/// Two nodes that know each other, with such keys.
pub async fn hosts(limits: Limits, decides: bool) -> (Host, Host) {
    let (a, b) = keys(decides);
    let (ka, kb) = (a.fingerprint(), b.fingerprint());
    (
        Host::new(a, &[(kb, "peer")], limits).await,
        Host::new(b, &[(ka, "client")], limits).await,
    )
}

async fn pair(limits: Limits, decides: bool) -> (Link, Link, [Host; 2]) {
    let (a, mut b) = hosts(limits, decides).await;
    let ours = a.dial(&b).await.unwrap();
    let theirs = b.link().await;
    (ours, theirs, [a, b])
}

#[tokio::test]
async fn two_nodes_that_know_each_other_exchange_frames() {
    for decides in [false, true] {
        let (mut ours, mut theirs, _hosts) = pair(limits(), decides).await;
        assert_eq!(
            (ours.peer.as_str(), theirs.peer.as_str()),
            ("peer", "client")
        );
        let sent = bye("hello", vec![7; 100_000]);
        ours.sender.send(sent.clone()).await.unwrap();
        assert_eq!(said(theirs.receiver.recv().await.unwrap()), said(sent));
        theirs.sender.send(bye("answer", vec![])).await.unwrap();
        assert_eq!(said(ours.receiver.recv().await.unwrap()).0, "answer");
        drop(theirs);
        assert_eq!(ours.receiver.recv().await, Err(LinkEnd::Closed));
        assert!(ours.sender.is_closed());
    }
}

#[tokio::test]
async fn what_was_queued_before_the_end_arrives() {
    let (ours, mut theirs, _hosts) = pair(limits(), false).await;
    for i in 0..20 {
        let frame = bye(i.to_string(), vec![0; 200_000]);
        ours.sender.send(frame).await.unwrap();
    }
    drop(ours);
    for i in 0..20 {
        let frame = theirs.receiver.recv().await.unwrap();
        assert_eq!(said(frame).0, i.to_string());
    }
    assert_eq!(theirs.receiver.recv().await, Err(LinkEnd::Closed));
}

#[tokio::test]
async fn what_was_queued_arrives_also_when_the_node_stops() {
    let (ours, mut theirs, [a, _b]) = pair(limits(), true).await;
    for i in 0..20 {
        let frame = bye(i.to_string(), vec![0; 200_000]);
        ours.sender.send(frame).await.unwrap();
    }
    drop(ours);
    let stop = tokio::spawn(async move { a.trunks.close().await });
    for i in 0..20 {
        let frame = theirs.receiver.recv().await.unwrap();
        assert_eq!(said(frame).0, i.to_string());
    }
    assert_eq!(theirs.receiver.recv().await, Err(LinkEnd::Closed));
    stop.await.unwrap();
}

#[tokio::test]
async fn an_idle_link_lives_on_pings() {
    let (ours, mut theirs, hosts) = pair(limits(), false).await;
    tokio::time::sleep(limits().dead_after * 3).await;
    ours.sender.send(bye("late", vec![])).await.unwrap();
    assert!(theirs.receiver.recv().await.is_ok());
    assert_eq!(hosts[0].trunks.counts(), (1, 1));
}

#[tokio::test]
async fn an_unknown_client_is_refused_and_told_what_to_do() {
    for decides in [false, true] {
        let (a, b) = hosts(limits(), decides).await;
        let mut b = Host::new(identity("b"), &[(b.key(), "other")], limits()).await;
        let refused = a.dial(&b).await;
        assert_eq!(
            refused.map(drop),
            Err(LinkEnd::KeyRefused { ours: a.key() })
        );
        assert!(b.links.try_recv().is_err());
    }
}

#[tokio::test]
async fn a_server_with_another_key_is_not_talked_to() {
    let (a, b) = hosts(limits(), false).await;
    let other = identity("other").fingerprint();
    let refused = a
        .trunks
        .dial("peer".into(), &b.address, other, limits().dead_after)
        .await;
    assert!(matches!(refused, Err(LinkEnd::WrongKey { .. })));
}

#[tokio::test]
async fn nobody_at_the_address_is_said_to_all_who_wait() {
    let (a, mut b) = hosts(limits(), false).await;
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    b.address = unused.local_addr().unwrap().to_string();
    drop(unused);
    let (one, two) = tokio::join!(a.dial(&b), a.dial(&b));
    for refused in [one, two] {
        assert!(matches!(refused, Err(LinkEnd::Unreachable { .. })));
    }
}

#[tokio::test]
async fn garbage_and_silence_on_the_port_harm_nobody() {
    let (a, mut b) = hosts(limits(), false).await;
    let silent = TcpStream::connect(&b.address).await.unwrap();
    let mut noisy = TcpStream::connect(&b.address).await.unwrap();
    noisy.write_all(&[0x5a; 5000]).await.unwrap();
    let mut answer = Vec::new();
    // Closed or reset: either way the listener is done with it.
    let _ = noisy.read_to_end(&mut answer).await;
    let mut silent = silent;
    let _ = tokio::time::timeout(Duration::from_secs(5), silent.read_to_end(&mut answer))
        .await
        .expect("a client that says nothing is dropped at the deadline");
    let _link = a.dial(&b).await.unwrap();
    b.link().await;
}

/// A peer with the right key that writes what it likes, on a connection that is in use; and its victim.
pub async fn hostile(limits: Limits, decides: bool) -> (TlsStream<Socket>, Host) {
    let (a, b) = keys(decides);
    let known = [(a.fingerprint(), "client")];
    let b = Host::new(b, &known, limits).await;
    let connector = super::tls::connector(&a, b.key()).unwrap();
    let stream = TcpStream::connect(&b.address).await.unwrap();
    let mut stream = connector
        .connect(super::tls::server_name(), socket(stream))
        .await
        .unwrap();
    let first = match decides {
        true => Control::Call { boot: 1, seen: 0 },
        // It does not care what it is told.
        false => Control::Use { token: 5 },
    };
    tell(&mut stream, first).await;
    (stream, b)
}

pub async fn tell(stream: &mut TlsStream<Socket>, control: Control) {
    write(stream, &frame::encode(0, &control, b"").unwrap()).await;
}

pub async fn write(stream: &mut TlsStream<Socket>, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
}

/// Opens channel 1 and writes raw bytes: how the link ends.
async fn after(bytes: Vec<u8>) -> LinkEnd {
    let (mut stream, mut b) = hostile(limits(), false).await;
    tell(&mut stream, Control::Open { channel: 1 }).await;
    write(&mut stream, &bytes).await;
    b.link().await.receiver.recv().await.unwrap_err()
}

#[tokio::test]
async fn a_frame_of_absurd_length_inside_tls_ends_the_link() {
    let mut bytes = frame::encode(1, &Message::Ready, b"").unwrap();
    bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    match after(bytes).await {
        LinkEnd::BadFrame { detail } => assert!(detail.contains("4294967295"), "{detail}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn garbage_inside_tls_ends_the_link() {
    assert!(matches!(
        after(vec![0x17; PREFIX_LEN]).await,
        LinkEnd::BadFrame { .. }
    ));
}

#[tokio::test]
async fn a_peer_that_falls_silent_inside_a_frame_is_dead() {
    let bytes = frame::encode(1, &Message::Ready, b"").unwrap();
    let half = bytes[..bytes.len() - 1].to_vec();
    assert!(matches!(after(half).await, LinkEnd::Silent { .. }));
}

#[tokio::test]
async fn a_receiver_that_does_not_read_fills_bounded_queues() {
    let (ours, mut theirs, _hosts) = pair(limits(), false).await;
    let mut sent = 0u64;
    loop {
        let frame = bye("x", vec![0; MAX_STREAM_PAYLOAD]);
        match tokio::time::timeout(limits().dead_after * 2, ours.sender.send(frame)).await {
            Ok(Ok(())) => sent += 1,
            Ok(Err(e)) => panic!("the link ended while the peer was only slow: {e:?}"),
            Err(_) => break,
        }
    }
    let bound = WINDOW + limits().queue_bytes as u64 + MAX_STREAM_PAYLOAD as u64;
    assert!(sent * MAX_STREAM_PAYLOAD as u64 <= bound, "{sent} frames");
    assert!(matches!(
        ours.sender.try_send(bye("x", vec![0; MAX_STREAM_PAYLOAD])),
        Err(NotSent::Full(_))
    ));
    for _ in 0..sent {
        theirs.receiver.recv().await.unwrap();
    }
    ours.sender.ready().await;
    ours.sender.try_send(bye("again", vec![])).unwrap();
    assert_eq!(said(theirs.receiver.recv().await.unwrap()).0, "again");
}
