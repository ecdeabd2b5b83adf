//! A switchover in which something fails: before the hand-over nothing changes; after it, there is one master in the end.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, VOLUME};
use crate::daemon::Node;
use crate::roles::{assert_role, end_well, insync, settle};
use crate::testkit::{need_fuse, need_loop, need_netns, wait_until};
use crate::writer::Writer;

fn replicated() -> Cluster {
    let cluster = Cluster::linked();
    cluster.replicated(256, &["--buffer", "32M"]);
    cluster
}

/// Whether a node's facts say that it is the master: read from its disk, faster than it can be asked.
fn is_master_on_disk(node: &Node) -> bool {
    let facts = node.state().join("volumes").join(VOLUME).join("facts");
    let text = std::fs::read_to_string(facts).unwrap_or_default();
    text.contains("\"role\": \"master\"")
}

#[test]
fn a_peer_that_does_not_answer_is_given_nothing() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = replicated();
    let writer = Writer::start(cluster.alpha.path("writer"), 1);
    writer.wait_for(40, Duration::from_secs(60));
    cluster.beta.freeze(true);
    let (status, said) = cluster.alpha.refused(&["switchover", VOLUME, "beta"]);
    assert!(
        status != 0 && said.contains("goes on as the master"),
        "{said}"
    );
    // Writers were held for a while, and go on.
    writer.wait_for(20, Duration::from_secs(60));
    cluster.beta.freeze(false);
    let acknowledged = writer.stop();
    insync(&cluster.alpha, &cluster.beta);
    assert_role(&cluster.alpha, "master");
    cluster.settle();
    acknowledged.assert_kept(&cluster.beta.path("writer"));
    let [alpha, beta] = cluster.nodes();
    end_well(alpha, &mut [beta]);
}

#[test]
fn a_hand_over_whose_answer_is_lost_leaves_one_master() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = replicated();
    for old_dies in [false, true] {
        let (old, new) = (&mut cluster.alpha, &mut cluster.beta);
        std::fs::write(old.path("file"), format!("{old_dies}")).unwrap();
        settle(old, new, &format!(".before-{old_dies}"));
        std::thread::scope(|scope| {
            let asked = &*old;
            let to = new.name.clone();
            let command = scope.spawn(move || asked.run(&["switchover", VOLUME, &to]));
            let until = Instant::now() + Duration::from_secs(20);
            while !is_master_on_disk(new) && Instant::now() < until {
                std::hint::spin_loop();
            }
            let victim = if old_dies { old.pid() } else { new.pid() };
            rustix::process::kill_process(victim, rustix::process::Signal::KILL).unwrap();
            // Whatever it says: the answer may have been faster.
            drop(command.join());
        });
        let victim = if old_dies { &mut *old } else { &mut *new };
        victim.kill();
        victim.start();
        new.wait_mounted(VOLUME, Duration::from_secs(40));
        let settled = wait_until(Duration::from_secs(60), || {
            new.volume(VOLUME)["role"] == "master" && old.volume(VOLUME)["role"] == "mirror"
        });
        assert!(settled, "{}\n{}", old.ok(&["status"]), new.ok(&["status"]));
        insync(new, old);
        let text = std::fs::read_to_string(new.path("file")).unwrap();
        assert_eq!(text, format!("{old_dies}"));
        old.wait_mounted(VOLUME, Duration::from_secs(20));
        std::mem::swap(&mut cluster.alpha, &mut cluster.beta);
    }
    let [master, mirror] = cluster.nodes();
    end_well(master, &mut [mirror]);
}
