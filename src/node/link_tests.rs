//! Links over real sockets: who is let in, what ends a link, what does not end the listener.

use super::keys::{Fingerprint, Identity};
use super::link::{Frame, Limits, Link, LinkEnd, NotSent};
use super::listen::Listener;
use crate::wire::frame::{self, PREFIX_LEN};
use crate::wire::message::{MAX_STREAM_PAYLOAD, Message};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

fn identity(name: &str) -> Identity {
    let dir = tempfile::tempdir().unwrap();
    Identity::create(&dir.path().join("node.key"), name).unwrap()
}

fn limits() -> Limits {
    Limits {
        handshake: Duration::from_millis(500),
        ping_every: Duration::from_millis(50),
        dead_after: Duration::from_millis(400),
        ..Limits::default()
    }
}

/// A listening node that knows `client`; gives its address and its links.
async fn listening(
    server: &Identity,
    client: Fingerprint,
    limits: Limits,
) -> (String, mpsc::UnboundedReceiver<Link>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let (send, links) = mpsc::unbounded_channel();
    let known = Arc::new(move |f: &Fingerprint| (*f == client).then(|| "client".to_owned()));
    let handler = Arc::new(move |link, _place| drop(send.send(link)));
    let listener = Listener::new(server, known, limits, handler).unwrap();
    tokio::spawn(listener.run(socket));
    (address, links)
}

fn bye(reason: &str, payload: Vec<u8>) -> Frame {
    Frame {
        channel: 0,
        header: Message::Bye {
            reason: reason.to_owned(),
        },
        payload,
    }
}

async fn pair(limits_here: Limits) -> (Link, Link) {
    let (a, b) = (identity("a"), identity("b"));
    let (address, mut links) = listening(&b, a.fingerprint(), limits_here).await;
    let ours = Link::dial("b".into(), &address, &a, b.fingerprint(), limits_here)
        .await
        .unwrap();
    (ours, links.recv().await.unwrap())
}

#[tokio::test]
async fn two_nodes_that_know_each_other_exchange_frames() {
    let (mut ours, mut theirs) = pair(limits()).await;
    assert_eq!((ours.peer.as_str(), theirs.peer.as_str()), ("b", "client"));
    let sent = bye("hello", vec![7; 100_000]);
    ours.sender.send(sent.clone()).await.unwrap();
    assert_eq!(theirs.receiver.recv().await.unwrap(), sent);
    theirs.sender.send(bye("answer", vec![])).await.unwrap();
    assert_eq!(
        ours.receiver.recv().await.unwrap(),
        bye("answer", Vec::new())
    );
    drop(theirs);
    assert_eq!(ours.receiver.recv().await, Err(LinkEnd::Closed));
}

#[tokio::test]
async fn what_was_queued_before_the_end_arrives() {
    let (ours, mut theirs) = pair(limits()).await;
    for i in 0..20 {
        let frame = bye(&i.to_string(), vec![0; 200_000]);
        ours.sender.send(frame).await.unwrap();
    }
    drop(ours);
    for i in 0..20 {
        let frame = theirs.receiver.recv().await.unwrap();
        assert_eq!(
            frame.header,
            Message::Bye {
                reason: i.to_string()
            }
        );
    }
    assert_eq!(theirs.receiver.recv().await, Err(LinkEnd::Closed));
}

#[tokio::test]
async fn an_idle_link_lives_on_pings() {
    let (ours, mut theirs) = pair(limits()).await;
    tokio::time::sleep(limits().dead_after * 3).await;
    ours.sender.send(bye("late", vec![])).await.unwrap();
    assert!(theirs.receiver.recv().await.is_ok());
}

#[tokio::test]
async fn an_unknown_client_is_refused_and_told_what_to_do() {
    let (a, b) = (identity("a"), identity("b"));
    let stranger = identity("stranger");
    let (address, mut links) = listening(&b, a.fingerprint(), limits()).await;
    let mut link = Link::dial("b".into(), &address, &stranger, b.fingerprint(), limits())
        .await
        .unwrap();
    drop(link.sender.send(bye("let me in", vec![])).await);
    assert_eq!(
        link.receiver.recv().await,
        Err(LinkEnd::KeyRefused {
            ours: stranger.fingerprint()
        })
    );
    assert!(links.try_recv().is_err());
}

#[tokio::test]
async fn a_server_with_another_key_is_not_talked_to() {
    let (a, b, c) = (identity("a"), identity("b"), identity("c"));
    let (address, _links) = listening(&b, a.fingerprint(), limits()).await;
    let refused = Link::dial("b".into(), &address, &a, c.fingerprint(), limits()).await;
    assert!(matches!(refused, Err(LinkEnd::WrongKey { .. })));
}

#[tokio::test]
async fn garbage_and_silence_on_the_port_harm_nobody() {
    let (a, b) = (identity("a"), identity("b"));
    let (address, mut links) = listening(&b, a.fingerprint(), limits()).await;
    let silent = TcpStream::connect(&address).await.unwrap();
    let mut noisy = TcpStream::connect(&address).await.unwrap();
    noisy.write_all(&[0x5a; 5000]).await.unwrap();
    let mut answer = Vec::new();
    // Closed or reset: either way the listener is done with it.
    let _ = noisy.read_to_end(&mut answer).await;
    let mut silent = silent;
    let _ = tokio::time::timeout(Duration::from_secs(5), silent.read_to_end(&mut answer))
        .await
        .expect("a client that says nothing is dropped at the deadline");
    Link::dial("b".into(), &address, &a, b.fingerprint(), limits())
        .await
        .unwrap();
    assert!(links.recv().await.is_some());
}

/// A peer with the right key that writes raw bytes.
async fn hostile(bytes: Vec<u8>) -> LinkEnd {
    let (a, b) = (identity("a"), identity("b"));
    let (address, mut links) = listening(&b, a.fingerprint(), limits()).await;
    let connector = super::tls::connector(&a, b.fingerprint()).unwrap();
    let stream = TcpStream::connect(&address).await.unwrap();
    let mut stream = connector
        .connect(super::tls::server_name(), stream)
        .await
        .unwrap();
    stream.write_all(&bytes).await.unwrap();
    stream.flush().await.unwrap();
    let mut link = links.recv().await.unwrap();
    link.receiver.recv().await.unwrap_err()
}

#[tokio::test]
async fn a_frame_of_absurd_length_inside_tls_ends_the_link() {
    let mut bytes = frame::encode(0, &Message::Ready, b"").unwrap();
    bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    match hostile(bytes).await {
        LinkEnd::BadFrame { detail } => assert!(detail.contains("4294967295"), "{detail}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn garbage_inside_tls_ends_the_link() {
    assert!(matches!(
        hostile(vec![0x17; PREFIX_LEN]).await,
        LinkEnd::BadFrame { .. }
    ));
}

#[tokio::test]
async fn a_peer_that_falls_silent_inside_a_frame_is_dead() {
    let bytes = frame::encode(0, &Message::Ready, b"").unwrap();
    let half = bytes[..bytes.len() - 1].to_vec();
    assert!(matches!(hostile(half).await, LinkEnd::Silent { .. }));
}

#[tokio::test]
async fn a_receiver_that_does_not_read_fills_a_bounded_queue() {
    let small = Limits {
        queue_bytes: 20 << 20,
        queue_frames: 8,
        ..limits()
    };
    let (ours, mut theirs) = pair(small).await;
    let mut sent = 0u64;
    loop {
        let frame = bye("x", vec![0; MAX_STREAM_PAYLOAD]);
        match tokio::time::timeout(small.dead_after * 2, ours.sender.send(frame)).await {
            Ok(Ok(())) => sent += 1,
            Ok(Err(e)) => panic!("the link ended while the peer was only slow: {e:?}"),
            Err(_) => break,
        }
        assert!(sent < 40, "the queues are bounded");
    }
    assert!(matches!(
        ours.sender.try_send(bye("x", vec![0; MAX_STREAM_PAYLOAD])),
        Err(NotSent::Full(_))
    ));
    for _ in 0..sent {
        theirs.receiver.recv().await.unwrap();
    }
}
