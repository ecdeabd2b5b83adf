//! Many links over one connection: which connection it is, who waits for whom, what a hostile peer can not do.

use super::link::Limits;
use super::link::{Link, LinkEnd, NotSent};
use super::link_tests::{Host, bye, hostile, hosts, identity, limits, said, tell};
use super::trunk::channels::{Channels, Encoded, Job, MAX_CHANNELS};
use crate::wire::control::{Control, Ended, WINDOW};
use crate::wire::frame::{self, PREFIX_LEN, Prefix};
use crate::wire::message::{MAX_STREAM_PAYLOAD, Message};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// Times that no busy machine exceeds, for tests in which nobody is to be silent.
fn patient() -> Limits {
    Limits {
        handshake: Duration::from_secs(20),
        dead_after: Duration::from_secs(60),
        ..limits()
    }
}

/// Says something on one end; the other has to hear it.
async fn talk(from: &Link, to: &mut Link, word: &str) {
    from.sender.send(bye(word, vec![1; 1000])).await.unwrap();
    let (heard, payload) = said(to.receiver.recv().await.unwrap());
    assert_eq!((heard.as_str(), payload.len()), (word, 1000));
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
    waited.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_call_each_other_at_once_use_one_connection() {
    let (mut a, mut b) = hosts(patient(), false).await;
    for round in 1..=100 {
        // Several at once on each side, too.
        let (one, other, two) = tokio::join!(a.dial(&b), b.dial(&a), a.dial(&b));
        let (one, mut other, two) = (one.unwrap(), other.unwrap(), two.unwrap());
        let (mut first, mut second) = (b.link().await, b.link().await);
        let mut third = a.link().await;
        one.sender.send(bye("one", vec![])).await.unwrap();
        two.sender.send(bye("two", vec![])).await.unwrap();
        let mut words = Vec::new();
        for link in [&mut first, &mut second] {
            words.push(said(link.receiver.recv().await.unwrap()).0);
        }
        words.sort();
        assert_eq!(words, ["one", "two"]);
        talk(&third, &mut other, "three").await;
        talk(&other, &mut third, "four").await;
        // A call that came second is given up; it must not come first after the cut.
        let settled = || !a.trunks.is_dialling() && !b.trunks.is_dialling();
        until("no call is under way", settled).await;
        // No connection was in use and replaced.
        assert_eq!(a.trunks.counts(), (round, 1));
        assert_eq!(b.trunks.counts(), (round, 1));
        let (cut, far) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        cut.trunks.cut();
        until("the other side notices", || far.trunks.counts().1 == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_call_while_one_has_not_noticed_the_end_find_each_other() {
    let (mut a, mut b) = hosts(patient(), true).await;
    for round in 0..100 {
        let (here, there) = match round % 2 {
            0 => (&mut a, &mut b),
            _ => (&mut b, &mut a),
        };
        here.trunks.cut();
        // The other one may open its link on what is dying, and is told so; then it tries again.
        let ours = here.dial(there).await.unwrap();
        let mut theirs = loop {
            let link = there.link().await;
            if !link.sender.is_closed() {
                break link;
            }
        };
        talk(&ours, &mut theirs, "here").await;
        let mut back = there.dial(here).await.unwrap();
        let link = here.link().await;
        talk(&link, &mut back, "and back").await;
        assert_eq!((a.trunks.counts().1, b.trunks.counts().1), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_anew_is_let_in_at_once() {
    for decides in [false, true] {
        let (a, mut b) = hosts(patient(), decides).await;
        let mut old = a.dial(&b).await.unwrap();
        let mut gone = b.link().await;
        talk(&old, &mut gone, "before").await;
        // The same key, in another run; the first one's connection is as alive as can be.
        let again = Host::of(Arc::clone(&a.identity), &[(b.key(), "peer")], patient()).await;
        let new = again.dial(&b).await.unwrap();
        let mut there = b.link().await;
        talk(&new, &mut there, "after").await;
        assert_eq!(gone.receiver.recv().await, Err(LinkEnd::Replaced));
        let end = old.receiver.recv().await.unwrap_err();
        let lost = matches!(end, LinkEnd::Closed | LinkEnd::Lost { .. });
        assert!(lost, "{end}");
        assert_eq!(b.trunks.counts(), (2, 1));
    }
}

#[tokio::test]
async fn a_link_that_is_not_read_holds_up_no_other() {
    let (a, mut b) = hosts(patient(), false).await;
    let (stuck, free) = (a.dial(&b).await.unwrap(), a.dial(&b).await.unwrap());
    let (mut unread, mut read) = (b.link().await, b.link().await);
    let full = || bye("stuck", vec![0; MAX_STREAM_PAYLOAD]);
    let mut sent = 0;
    // As many as the window and the queue take.
    while sent * MAX_STREAM_PAYLOAD as u64 <= WINDOW {
        stuck.sender.send(full()).await.unwrap();
        sent += 1;
    }
    while stuck.sender.try_send(full()).is_ok() {
        sent += 1;
    }
    for i in 0..3 * WINDOW / MAX_STREAM_PAYLOAD as u64 {
        free.sender
            .send(bye(i.to_string(), vec![0; MAX_STREAM_PAYLOAD]))
            .await
            .unwrap();
        let (word, _) = said(read.receiver.recv().await.unwrap());
        assert_eq!(word, i.to_string());
    }
    // By now the credit is used up: what is taken now waits here.
    while stuck.sender.try_send(full()).is_ok() {
        sent += 1;
    }
    talk(&read, &mut { free }, "the other way").await;
    assert!(matches!(
        stuck.sender.try_send(full()),
        Err(NotSent::Full(_))
    ));
    // It was late, and nothing of it is lost.
    drop(stuck);
    for _ in 0..sent {
        assert_eq!(said(unread.receiver.recv().await.unwrap()).0, "stuck");
    }
    assert_eq!(unread.receiver.recv().await, Err(LinkEnd::Closed));
}

#[tokio::test]
async fn a_link_that_ends_ends_no_other() {
    let (a, mut b) = hosts(patient(), true).await;
    let stays = a.dial(&b).await.unwrap();
    let mut there = b.link().await;
    for round in 0..2 * MAX_CHANNELS {
        let ours = a.dial(&b).await.unwrap();
        let theirs = b.link().await;
        // Under way when the link ends: nobody wants it any more.
        for _ in 0..4 {
            let frame = bye("unwanted", vec![0; 100_000]);
            theirs.sender.try_send(frame).unwrap();
        }
        drop(ours);
        talk(&stays, &mut there, &round.to_string()).await;
        let sender = &theirs.sender;
        until("the other side hears of it", || sender.is_closed()).await;
    }
    assert_eq!(a.trunks.counts(), (1, 1));
}

#[tokio::test]
async fn links_to_one_peer_are_counted() {
    let (a, mut b) = hosts(patient(), false).await;
    let mut links = Vec::new();
    for _ in 0..MAX_CHANNELS {
        links.push((a.dial(&b).await.unwrap(), b.link().await));
    }
    assert!(matches!(a.dial(&b).await, Err(LinkEnd::NoRoomHere)));
    // The other direction has its own.
    let _back = b.dial(&a).await.unwrap();
    let (ours, theirs) = links.pop().unwrap();
    drop(ours);
    // Still held over there: what it received is not read.
    let mut refused = a.dial(&b).await.unwrap();
    assert_eq!(refused.receiver.recv().await, Err(LinkEnd::NoRoomThere));
    drop((refused, theirs));
    let ours = a.dial(&b).await.unwrap();
    talk(&ours, &mut b.link().await, "there is room again").await;
    assert_eq!(a.trunks.counts(), (1, 1));
}

#[tokio::test]
async fn the_end_of_a_connection_ends_all_its_links_and_the_next_one_carries_new_ones() {
    let (mut a, mut b) = hosts(patient(), false).await;
    let mut ours = vec![a.dial(&b).await.unwrap(), a.dial(&b).await.unwrap()];
    let mut theirs = vec![b.link().await, b.link().await];
    theirs.push(b.dial(&a).await.unwrap());
    ours.push(a.link().await);
    a.trunks.cut();
    for link in &mut ours {
        let detail = "cut".to_owned();
        assert_eq!(link.receiver.recv().await, Err(LinkEnd::Lost { detail }));
    }
    for link in &mut theirs {
        let end = link.receiver.recv().await.unwrap_err();
        let lost = matches!(end, LinkEnd::Closed | LinkEnd::Lost { .. });
        assert!(lost, "{end}");
    }
    let again = b.dial(&a).await.unwrap();
    talk(&again, &mut a.link().await, "again").await;
    assert_eq!((a.trunks.counts(), b.trunks.counts()), ((2, 1), (2, 1)));
}

#[tokio::test]
async fn each_link_has_its_own_patience() {
    let (mut stream, mut b) = hostile(patient(), true).await;
    for channel in [1, 3] {
        tell(&mut stream, Control::Open { channel }).await;
    }
    let (mut hasty, patient) = (b.link().await, b.link().await);
    hasty.sender.set_dead_after(Duration::from_millis(100));
    let end = hasty.receiver.recv().await;
    assert!(matches!(end, Err(LinkEnd::Silent { .. })));
    assert!(!patient.sender.is_closed());
    assert_eq!(b.trunks.counts(), (1, 1));
}

/// What a peer writes on a connection with two open links, 1 and 3; both have to end with this complaint.
async fn complaint(bytes: &[u8]) -> String {
    let (mut stream, mut b) = hostile(patient(), true).await;
    for channel in [1, 3] {
        tell(&mut stream, Control::Open { channel }).await;
    }
    let (mut one, mut two) = (b.link().await, b.link().await);
    // It may be cut off before it has said everything.
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    let mut ends = Vec::new();
    for link in [&mut one, &mut two] {
        ends.push(link.receiver.end_unread().await);
    }
    assert_eq!(ends[0], ends[1]);
    match ends.remove(0) {
        LinkEnd::BadFrame { detail } => detail,
        other => panic!("{other:?}"),
    }
}

fn control(control: &Control) -> Vec<u8> {
    frame::encode(0, control, b"").unwrap()
}

#[tokio::test]
async fn a_sender_that_ignores_its_credit_is_cut_off() {
    let payload = vec![0; MAX_STREAM_PAYLOAD];
    let header = Message::Bye {
        reason: String::new(),
    };
    let mut bytes = Vec::new();
    for _ in 0..=WINDOW / MAX_STREAM_PAYLOAD as u64 {
        bytes.extend(frame::encode(3, &header, &payload).unwrap());
        bytes.extend(&payload);
    }
    let detail = complaint(&bytes).await;
    assert!(detail.contains("on channel 3"), "{detail}");
    // Small frames cost more than their bytes.
    let small = frame::encode(1, &Message::Ready, b"").unwrap();
    let detail = complaint(&small.repeat(WINDOW as usize / 256)).await;
    assert!(detail.contains("on channel 1"), "{detail}");
}

#[tokio::test]
async fn a_peer_that_breaks_the_rules_of_channels_is_cut_off() {
    let data = |channel| frame::encode(channel, &Message::Ready, b"").unwrap();
    let end = |channel| {
        control(&Control::End {
            channel,
            why: Ended::Done,
        })
    };
    let mut with_payload = frame::encode(0, &Control::Spare, b"x").unwrap();
    with_payload.push(b'x');
    let cases = [
        (data(5), "never opened"),
        (data(2), "never opened"),
        (control(&Control::Open { channel: 7 }), "the next one is 5"),
        (control(&Control::Open { channel: 3 }), "the next one is 5"),
        (control(&Control::Open { channel: 2 }), "the next one is 5"),
        (control(&Control::Open { channel: 0 }), "the next one is 5"),
        (end(5), "never opened"),
        (end(0), "never opened"),
        (end(4), "never opened"),
        (
            control(&Control::Credit {
                channel: 1,
                bytes: 1,
            }),
            "more than was sent",
        ),
        (
            control(&Control::Credit {
                channel: 1,
                bytes: u64::MAX,
            }),
            "more than was sent",
        ),
        (
            control(&Control::Credit {
                channel: 9,
                bytes: 1,
            }),
            "never opened",
        ),
        (control(&Control::Use { token: 1 }), "in use"),
        (with_payload, "control frame"),
        (vec![0x17; PREFIX_LEN], "not a lockstep frame"),
    ];
    for (bytes, expected) in cases {
        let detail = complaint(&bytes).await;
        assert!(detail.contains(expected), "{expected}: {detail}");
    }
}

#[tokio::test]
async fn a_peer_that_opens_and_never_listens_is_bounded() {
    let (mut stream, mut b) = hostile(patient(), true).await;
    // Dropped at once here, so that only the answers add up.
    let links = &mut b.links;
    let flood = async {
        let mut channel = 1;
        loop {
            let open = control(&Control::Open { channel });
            if stream.write_all(&open).await.is_err() {
                return;
            }
            channel += 2;
        }
    };
    let drain = async {
        loop {
            drop(links.recv().await);
        }
    };
    let cut = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::select! { () = flood => {}, () = drain => {} }
    });
    cut.await.expect("it is cut off");
    assert_eq!(b.trunks.counts().1, 0);
}

/// The channel and the payload's length of what is written next.
fn written(channels: &Channels) -> Option<(u32, usize)> {
    loop {
        match channels.next_job()? {
            Job::Control(_) => {}
            Job::Data(Encoded { head, payload }, _) => {
                let mut prefix = [0; PREFIX_LEN];
                prefix.copy_from_slice(&head[..PREFIX_LEN]);
                let prefix = Prefix::decode(&prefix).unwrap();
                return Some((prefix.channel(), payload.len()));
            }
        }
    }
}

#[test]
fn a_copy_delays_others_by_one_frame_and_two_copies_share_by_bytes() {
    let channels = Arc::new(Channels::new(limits(), true, None));
    let open = || {
        channels
            .open("peer".into(), Duration::from_secs(6))
            .unwrap()
    };
    let (copy, other, volume) = (open(), open(), open());
    let full = |size: usize| bye("bulk", vec![0; size]);
    let mut sent = [0u64; 3];
    for round in 0..300 {
        // Both always have something to send.
        while copy.sender.try_send(full(MAX_STREAM_PAYLOAD)).is_ok() {}
        while other.sender.try_send(full(50_000)).is_ok() {}
        if round % 10 == 5 {
            volume.sender.try_send(bye("acknowledged", vec![])).unwrap();
            let two = [written(&channels).unwrap(), written(&channels).unwrap()];
            let at = two.iter().position(|(channel, _)| *channel == 5);
            assert!(at.is_some(), "{two:?}");
            for (channel, bytes) in two {
                sent[channel as usize / 2] += bytes as u64;
            }
        }
        let (channel, bytes) = written(&channels).unwrap();
        sent[channel as usize / 2] += bytes as u64;
        for channel in [1, 3] {
            // The peer takes everything at once.
            let bytes = channels.spent(channel);
            channels
                .control(&Control::Credit { channel, bytes })
                .unwrap();
        }
    }
    let (one, two) = (sent[0], sent[1]);
    assert!(
        one.abs_diff(two) <= 2 * MAX_STREAM_PAYLOAD as u64,
        "{sent:?}"
    );
}

#[tokio::test]
async fn who_is_no_peer_any_more_is_cut_off() {
    let trusted = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (a, b) = (identity("a"), identity("b"));
    let known = {
        let (trusted, key) = (Arc::clone(&trusted), a.fingerprint());
        move |f: &super::keys::Fingerprint| {
            let yes = *f == key && trusted.load(std::sync::atomic::Ordering::SeqCst);
            yes.then(|| "client".to_owned())
        }
    };
    let kb = b.fingerprint();
    let a = Host::new(a, &[(kb, "peer")], patient()).await;
    let mut b = Host::with(Arc::new(b), Arc::new(known), patient()).await;
    let _ours = a.dial(&b).await.unwrap();
    let mut theirs = b.link().await;
    trusted.store(false, std::sync::atomic::Ordering::SeqCst);
    let end = theirs.receiver.recv().await.unwrap_err();
    assert!(end.to_string().contains("no peer any more"), "{end}");
}
