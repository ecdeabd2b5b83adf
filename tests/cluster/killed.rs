//! kill -9 in the middle of writing: what was acknowledged is there, and replication goes on by replay.

use std::time::Duration;

use crate::cluster::{Cluster, VOLUME};
use crate::copies::{assert_equal_blocks, copy_of, recovered_by_kernel};
use crate::sizes::choose;
use crate::testkit::{Compare, e2fsck, need_fuse, need_loop, need_netns, tree_digest};
use crate::writer::{Acknowledged, Writer};

/// How often each is killed.
fn rounds() -> u64 {
    choose(3, 30)
}

fn replicated() -> Cluster {
    let cluster = Cluster::linked();
    // Room for what is written while one is down: otherwise it cracks, which is another test.
    cluster.replicated(400, &["--buffer", "128M"]);
    cluster
}

fn writing(cluster: &Cluster, round: u64, acknowledged: Acknowledged) -> Writer {
    let writer = Writer::go_on(cluster.alpha.path("writer"), 100 + round, acknowledged);
    // Not at the same place in every round.
    writer.wait_for(60 + 37 * round % 90, Duration::from_secs(60));
    writer
}

/// Equal, clean and complete, at the end of a test.
#[track_caller]
fn ends_well(mut cluster: Cluster, acknowledged: &Acknowledged) {
    cluster.assert_same_trees();
    cluster.verify();
    acknowledged.assert_kept(&cluster.alpha.path("writer"));
    acknowledged.assert_kept(&cluster.beta.path("writer"));
    cluster.stop();
    let [master, mirror] = cluster.parts();
    e2fsck(&master).unwrap();
    e2fsck(&mirror).unwrap();
    assert_equal_blocks(&master, &mirror);
}

#[test]
fn a_killed_master_keeps_what_was_fsynced_and_replays() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = replicated();
    let mut acknowledged = Acknowledged::default();
    for round in 0..rounds() {
        let writer = writing(&cluster, round, acknowledged);
        cluster.alpha.kill();
        acknowledged = writer.killed();
        let [master, _] = cluster.parts();
        let copy = copy_of(&master, &cluster.path("copy"));
        let by_kernel = recovered_by_kernel(&copy);
        cluster.alpha.start();
        cluster.alpha.wait_mounted(VOLUME, Duration::from_secs(20));
        acknowledged.assert_kept(&cluster.alpha.path("writer"));
        tree_digest(&cluster.alpha.mnt())
            .unwrap()
            .assert_same(&by_kernel, Compare::ALL);
        cluster.insync();
        assert_eq!(cluster.bytes_bulk(), 0, "round {round}: replay, not a copy");
    }
    ends_well(cluster, &acknowledged);
}

#[test]
fn a_killed_mirror_keeps_what_it_acknowledged_and_replays() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = replicated();
    let bulk = cluster.bytes_bulk();
    let mut acknowledged = Acknowledged::default();
    for round in 0..rounds() {
        let writer = writing(&cluster, round, acknowledged);
        cluster.beta.kill();
        let [_, mirror] = cluster.parts();
        let copy = copy_of(&mirror, &cluster.path("copy"));
        recovered_by_kernel(&copy);
        writer.wait_for(60, Duration::from_secs(60));
        cluster.beta.start();
        cluster.insync();
        cluster.beta.wait_mounted(VOLUME, Duration::from_secs(20));
        acknowledged = writer.stop();
        assert_eq!(
            cluster.bytes_bulk(),
            bulk,
            "round {round}: replay, not a copy"
        );
        cluster.settle();
        acknowledged.assert_kept(&cluster.beta.path("writer"));
    }
    ends_well(cluster, &acknowledged);
}

#[test]
fn both_killed_after_a_cut_with_writes_pending() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = replicated();
    let mut acknowledged = Acknowledged::default();
    for round in 0..rounds() {
        let writer = writing(&cluster, round, acknowledged);
        let hosts = cluster.hosts.as_ref().unwrap();
        hosts.cut().unwrap();
        writer.wait_for(80, Duration::from_secs(60));
        cluster.beta.kill();
        cluster.alpha.kill();
        acknowledged = writer.killed();
        for (n, part) in cluster.parts().iter().enumerate() {
            let copy = copy_of(part, &cluster.path(&format!("copy{n}")));
            recovered_by_kernel(&copy);
        }
        cluster.alpha.start();
        cluster.beta.start();
        cluster.alpha.wait_mounted(VOLUME, Duration::from_secs(20));
        acknowledged.assert_kept(&cluster.alpha.path("writer"));
        cluster.hosts.as_ref().unwrap().mend().unwrap();
        cluster.insync();
        assert_eq!(cluster.bytes_bulk(), 0, "round {round}: replay was due");
        cluster.beta.wait_mounted(VOLUME, Duration::from_secs(20));
    }
    ends_well(cluster, &acknowledged);
}

#[test]
fn a_first_copy_that_was_killed_goes_on() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = Cluster::linked();
    cluster.volume(320, &[]);
    std::fs::write(cluster.alpha.path("large"), vec![9; 200 << 20]).unwrap();
    let writer = writing(&cluster, 0, Acknowledged::default());
    cluster.mirror(&["--rate", "40M"]);
    cluster.alpha.wait(VOLUME, "beta", "REPLICATE", 30);
    let far =
        crate::testkit::wait_until(Duration::from_secs(30), || cluster.bytes_bulk() > 60 << 20);
    assert!(far, "{}", cluster.alpha.ok(&["status"]));
    // Both sides know how fast it goes, and for how long.
    for node in [&cluster.alpha, &cluster.beta] {
        let known = crate::testkit::wait_until(Duration::from_secs(2), || {
            let seen = &node.volume(VOLUME)["mirrors"][0];
            seen["rate"].as_u64() > Some(0) && seen["eta_s"].is_u64()
        });
        assert!(known, "{}", node.ok(&["status", "--json"]));
    }
    cluster.beta.kill();
    let at_kill = cluster.bytes_bulk();
    cluster.beta.start();
    cluster.insync();
    let again = cluster.bytes_bulk() - at_kill;
    assert!(
        again < 180 << 20,
        "{again} bytes after {at_kill}: it began again"
    );
    let acknowledged = writer.stop();
    cluster.mount_mirror();
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(20));
    ends_well(cluster, &acknowledged);
}
