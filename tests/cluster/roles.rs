//! Changes of role: a killed master is replaced by its mirror, and comes back as one.
//!
//! The table "What happens, case by case" of lockstep-semantics(7), and the tests of each row. (`recipe` compares the two.)
//!
//! | case | tests |
//! |---|---|
//! | the master is killed, comes back, nobody was promoted | `killed::a_killed_master_keeps_what_was_fsynced_and_replays` |
//! | master and mirror were both down, either one first | `reconnect::both_were_down_and_either_comes_back_first` |
//! | a mirror was promoted, the old master comes back | `roles::a_killed_master_is_replaced_and_comes_back_as_a_mirror`, `roles::nothing_acknowledged_in_sync_mode_is_lost_in_any_failover`, `cases::several_parts_change_roles`, `cases::what_only_the_old_master_had_is_extracted_byte_by_byte` |
//! | the same, and the old master's parts were changed meanwhile by the kernel or by e2fsck, or it is no longer recorded which blocks differ | `reconnect::an_old_master_that_others_wrote_to_does_not_rejoin_by_itself`, `cases::an_old_master_that_does_not_know_where_it_differs_is_compared` |
//! | another mirror of the old master | `roles::another_mirror_follows_the_promoted_one_without_a_copy` |
//! | another mirror was ahead of the promoted one | `roles::a_mirror_that_was_ahead_of_the_promoted_one_steps_back` |
//! | another mirror, in sync mode, had what the promoted one lacks, and no master has confirmed it | `sync::what_was_acknowledged_is_kept_aside_when_another_master_lacks_it` (in tests/sim: the real code, on simulated disks, at that moment) |
//! | the promoted node is down, the old master comes back, another mirror follows the promoted one and answers | `roles::another_mirror_follows_the_promoted_one_without_a_copy` |
//! | the promoted node is down, the old master comes back, and nobody answers | `roles::nothing_acknowledged_is_forgotten_when_a_promoted_node_is_gone_again` |
//! | two nodes were master at once: two promotions, or a promotion while the old master could not be reached | `cases::two_promotions_are_seen_and_one_command_decides`, `roles::two_masters_are_refused_and_one_command_decides` |
//! | a state directory was cloned, or put back from a backup | `cases::a_cloned_state_directory_beside_the_original_opens_nothing`, `reconnect::a_master_put_back_from_a_backup_opens_nothing_by_itself` |
//! | a hand-over whose answer was lost | `handover::a_hand_over_whose_answer_is_lost_leaves_one_master` |
//! | a promotion of a copy that is incomplete, inconsistent or changed from outside | `roles::an_inconsistent_copy_is_promoted_by_force_only`, `cases::half_a_first_copy_is_promoted_by_force_and_repaired`, `cases::half_a_repair_is_promoted_by_force_and_repaired`, `cases::a_copy_changed_from_outside_is_promoted_by_force_only` |

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::{COPY_SECONDS, Cluster, VISIBLE_WITHIN, VOLUME, free_address};
use crate::copies::{assert_equal_blocks, copy_of, image_of, recovered_by_kernel};
use crate::daemon::Node;
use crate::sizes::choose;
use crate::testkit::{Compare, e2fsck, need_fuse, need_loop, need_netns, tree_digest, wait_until};
use crate::writer::{Acknowledged, Writer};

/// Bytes that a repair has no reason to copy again.
const FILLER: usize = 96 << 20;

/// Failovers in a row: `LOCKSTEP_FAILOVERS`, as the documents tell.
fn rounds() -> u64 {
    let asked = std::env::var("LOCKSTEP_FAILOVERS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(choose(3, 20))
}

/// Everything acknowledged on the master shows on the mirror.
#[track_caller]
pub fn settle(master: &Node, mirror: &Node, mark: &str) {
    rustix::fs::syncfs(File::open(master.mnt()).unwrap()).unwrap();
    let mut file = File::create(master.path(mark)).unwrap();
    file.write_all(mark.as_bytes()).unwrap();
    file.sync_all().unwrap();
    File::open(master.mnt()).unwrap().sync_all().unwrap();
    let there = mirror.path(mark);
    let shown = wait_until(VISIBLE_WITHIN, || {
        std::fs::read(&there).is_ok_and(|bytes| bytes == mark.as_bytes())
    });
    assert!(shown, "{mark} did not appear: {}", master.ok(&["status"]));
}

/// The parts of the volume on a node.
pub fn parts(node: &Node) -> Vec<PathBuf> {
    let shown = node.ok(&["volume", "show", VOLUME, "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let parts = shown["parts"].as_array().unwrap().iter();
    parts
        .map(|part| part["path"].as_str().unwrap().into())
        .collect()
}

/// The first of them.
pub fn part(node: &Node) -> PathBuf {
    parts(node).swap_remove(0)
}

#[track_caller]
pub fn insync(master: &Node, mirror: &Node) {
    // An ERROR about two masters goes by itself when one of them gives up.
    let reached = wait_until(Duration::from_secs(COPY_SECONDS.into()), || {
        master.mirror(VOLUME, &mirror.name)["state"] == "INSYNC"
    });
    assert!(reached, "{}", master.ok(&["status"]));
}

#[track_caller]
pub fn assert_role(node: &Node, role: &str) {
    assert_eq!(node.volume(VOLUME)["role"], role, "{}", node.name);
}

/// Equal in every respect, for us, for the kernel and for e2fsck.
#[track_caller]
pub fn end_well(master: &mut Node, mirrors: &mut [&mut Node]) {
    for mirror in mirrors.iter() {
        insync(master, mirror);
        mirror.wait_mounted(VOLUME, Duration::from_secs(20));
        settle(master, mirror, &format!(".end-{}", mirror.name));
        let all = Compare {
            blocks: false,
            ..Compare::ALL
        };
        tree_digest(&master.mnt())
            .unwrap()
            .assert_same(&tree_digest(&mirror.mnt()).unwrap(), all);
    }
    master.ok(&["verify", VOLUME]);
    let image = |node: &mut Node| {
        let parts = parts(node);
        node.stop();
        let image = image_of(&parts, &node.dir.join("joined"));
        e2fsck(&image).unwrap();
        image
    };
    let ours = image(master);
    for mirror in mirrors.iter_mut() {
        assert_equal_blocks(&ours, &image(mirror));
    }
}

/// A cluster with a volume that a full copy of would be noticed.
pub fn filled() -> Cluster {
    let cluster = Cluster::linked();
    cluster.replicated(384, &["--buffer", "64M"]);
    std::fs::write(cluster.alpha.path("filler"), vec![7; FILLER]).unwrap();
    cluster.settle();
    cluster
}

#[test]
fn a_killed_master_is_replaced_and_comes_back_as_a_mirror() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = filled();
    for round in 0..rounds() {
        let (master, mirror) = (&mut cluster.alpha, &mut cluster.beta);
        let writer = Writer::start(master.path("kept"), round);
        writer.wait_for(60, Duration::from_secs(60));
        let kept = writer.stop();
        settle(master, mirror, &format!(".round-{round}"));
        // What comes now may be lost with the master, from some moment on.
        let writer = Writer::start(master.path("loose"), round);
        writer.wait_for(40 + 13 * round % 70, Duration::from_secs(60));
        master.kill();
        drop(writer.killed());

        mirror.ok(&["promote", VOLUME]);
        mirror.wait_mounted(VOLUME, Duration::from_secs(20));
        assert_role(mirror, "master");
        // Again: nothing changes.
        mirror.ok(&["promote", VOLUME]);
        kept.assert_kept(&mirror.path("kept"));
        recovered_by_kernel(&copy_of(&part(mirror), &mirror.dir.join("copy")));
        let writer = Writer::go_on(mirror.path("kept"), 1000 + round, kept);
        writer.wait_for(40, Duration::from_secs(60));

        master.start();
        insync(mirror, master);
        assert_role(master, "mirror");
        let kept = writer.stop();
        let bulk = mirror.mirror(VOLUME, &master.name)["bytes_bulk"]
            .as_u64()
            .unwrap();
        assert!(
            bulk < FILLER as u64 / 2,
            "round {round}: {bulk} bytes were copied again"
        );
        master.wait_mounted(VOLUME, Duration::from_secs(20));
        settle(mirror, master, &format!(".back-{round}"));
        kept.assert_kept(&master.path("kept"));
        mirror.ok(&["verify", VOLUME]);
        std::fs::remove_dir_all(mirror.path("kept")).unwrap();
        let _ = std::fs::remove_dir_all(mirror.path("loose"));
        settle(mirror, master, &format!(".cleared-{round}"));
        std::mem::swap(&mut cluster.alpha, &mut cluster.beta);
    }
    end_with(cluster);
}

/// The first node of a cluster gives up what only it has, and is the mirror of the other from then on.
#[track_caller]
pub fn give_up_first(cluster: &Cluster) {
    let args = ["rejoin", VOLUME, "beta", "--discard", "alpha"];
    cluster.alpha.ok(&args);
    insync(&cluster.beta, &cluster.alpha);
}

/// As `end_with`, where the second has become the master.
#[track_caller]
pub fn end_swapped(mut cluster: Cluster) {
    std::mem::swap(&mut cluster.alpha, &mut cluster.beta);
    end_with(cluster);
}

/// As `end_well`, of both nodes of a cluster; the first is the master.
#[track_caller]
pub fn end_with(mut cluster: Cluster) {
    let [master, mirror] = cluster.nodes();
    end_well(master, &mut [mirror]);
}

#[test]
fn two_masters_are_refused_and_one_command_decides() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let cluster = filled();
    let hosts = cluster.hosts.as_ref().unwrap();
    // While the master is there, a promotion is refused.
    let (status, said) = cluster.beta.refused(&["promote", VOLUME]);
    assert_eq!(status, 3);
    assert!(said.contains("switchover"), "{said}");
    hosts.cut().unwrap();
    cluster.alpha.wait(VOLUME, "beta", "LINKDOWN", 30);
    let down = wait_until(Duration::from_secs(30), || {
        cluster.beta.mirror(VOLUME, "alpha")["state"] == "LINKDOWN"
    });
    assert!(down);
    cluster.beta.ok(&["promote", VOLUME]);
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(20));
    // Both are written to.
    let lost = Writer::start(cluster.alpha.path("alpha"), 1);
    let kept = Writer::start(cluster.beta.path("beta"), 2);
    lost.wait_for(60, Duration::from_secs(60));
    kept.wait_for(60, Duration::from_secs(60));
    let (_, kept) = (lost.stop(), kept.stop());
    cluster.hosts.as_ref().unwrap().mend().unwrap();
    cluster.alpha.wait(VOLUME, "beta", "ERROR", 30);
    cluster.beta.wait(VOLUME, "alpha", "ERROR", 30);
    let why = cluster.beta.mirror(VOLUME, "alpha")["reason"].to_string();
    assert!(why.contains("--discard alpha"), "{why}");
    assert!(why.contains("loses transactions"), "{why}");
    // The decision, looked at without acting on it; the copies as they were.
    let compared = cluster.beta.ok(&["mirror", "compare", VOLUME, "alpha"]);
    assert!(compared.contains("rule 3"), "{compared}");
    assert!(compared.contains("loses transactions"), "{compared}");
    // The wrong name is refused; the right one decides.
    let rejoin = ["rejoin", VOLUME, "beta", "--discard", "beta"];
    assert_eq!(cluster.alpha.refused(&rejoin).0, 3);
    assert_role(&cluster.alpha, "master");
    give_up_first(&cluster);
    let bulk = cluster.beta.mirror(VOLUME, "alpha")["bytes_bulk"]
        .as_u64()
        .unwrap();
    assert!(bulk < FILLER as u64 / 2, "{bulk} bytes were copied again");
    kept.assert_kept(&cluster.beta.path("beta"));
    end_swapped(cluster);
}

#[test]
fn an_inconsistent_copy_is_promoted_by_force_only() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = Cluster::linked();
    cluster.volume(256, &[]);
    std::fs::write(cluster.alpha.path("large"), vec![9; FILLER]).unwrap();
    rustix::fs::syncfs(File::open(cluster.alpha.mnt()).unwrap()).unwrap();
    cluster.mirror(&["--rate", "20M"]);
    cluster.alpha.wait(VOLUME, "beta", "REPLICATE", 30);
    let far = wait_until(Duration::from_secs(30), || cluster.bytes_bulk() > 30 << 20);
    assert!(far);
    cluster.alpha.kill();
    let down = wait_until(Duration::from_secs(30), || {
        cluster.beta.mirror(VOLUME, "alpha")["state"] == "LINKDOWN"
    });
    assert!(down);
    let (status, said) = cluster.beta.refused(&["promote", VOLUME]);
    assert_eq!(status, 3);
    assert!(said.contains("never copied"), "{said}");
    assert_role(&cluster.beta, "mirror");
    // The old master is there after all, and goes on.
    cluster.alpha.start();
    cluster.insync();
    cluster.mount_mirror();
    cluster.alpha.wait_mounted(VOLUME, Duration::from_secs(20));
    end_with(cluster);
}

#[test]
fn nothing_acknowledged_is_forgotten_when_a_promoted_node_is_gone_again() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = filled();
    let acknowledged: Acknowledged = {
        let writer = Writer::start(cluster.alpha.path("writer"), 5);
        writer.wait_for(60, Duration::from_secs(60));
        writer.stop()
    };
    cluster.settle();
    cluster.alpha.kill();
    cluster.beta.ok(&["promote", VOLUME]);
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(20));
    std::fs::write(cluster.beta.path("by-beta"), b"beta").unwrap();
    cluster.beta.kill();
    // Nobody answers: the old master is master again, and two histories go on.
    cluster.alpha.start();
    cluster.alpha.wait_mounted(VOLUME, Duration::from_secs(30));
    acknowledged.assert_kept(&cluster.alpha.path("writer"));
    std::fs::write(cluster.alpha.path("by-alpha"), b"alpha").unwrap();
    rustix::fs::syncfs(File::open(cluster.alpha.mnt()).unwrap()).unwrap();
    // The promoted one finds another master, and opens nothing.
    cluster.beta.start();
    let refused = wait_until(Duration::from_secs(30), || {
        cluster.beta.volume(VOLUME)["condition"] == "failed"
    });
    assert!(refused, "{}", cluster.beta.ok(&["status"]));
    let why = cluster.beta.volume(VOLUME)["reason"].to_string();
    assert!(why.contains("each been its master"), "{why}");
    cluster
        .beta
        .ok(&["rejoin", VOLUME, "alpha", "--discard", "beta"]);
    insync(&cluster.alpha, &cluster.beta);
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(20));
    settle(&cluster.alpha, &cluster.beta, ".settled");
    assert!(cluster.beta.path("by-alpha").exists());
    end_with(cluster);
}

/// A third node beside a cluster on one host, each of the three the others' peer.
pub struct Three {
    pub cluster: Cluster,
    pub gamma: Node,
}

impl Three {
    fn new() -> Three {
        let cluster = Cluster::local();
        let mut gamma = Node::init(cluster.path("gamma"), "gamma", &free_address(), None);
        gamma.start();
        let add = |one: &Node, other: &Node| {
            let fingerprint = other.ok(&["node", "fingerprint"]);
            let (name, address) = (&other.name, &other.address);
            one.ok(&[
                "peer",
                "add",
                name,
                address,
                "--fingerprint",
                fingerprint.trim(),
            ]);
        };
        for node in [&cluster.alpha, &cluster.beta] {
            add(node, &gamma);
            add(&gamma, node);
        }
        Three { cluster, gamma }
    }

    /// A volume on alpha, with mirrors on the others, all mounted.
    pub fn filled() -> Three {
        let three = Three::new();
        three.cluster.replicated(384, &["--buffer", "64M"]);
        three
            .cluster
            .alpha
            .ok(&["mirror", "create", VOLUME, "gamma"]);
        insync(&three.cluster.alpha, &three.gamma);
        let mnt = three.gamma.mnt();
        three.gamma.ok(&["mount", VOLUME, mnt.to_str().unwrap()]);
        std::fs::write(three.cluster.alpha.path("filler"), vec![7; FILLER]).unwrap();
        three.cluster.settle();
        three.gamma.wait_mounted(VOLUME, Duration::from_secs(20));
        settle(&three.cluster.alpha, &three.gamma, ".filled");
        // Whoever takes over has to know of the others.
        let told = wait_until(Duration::from_secs(10), || {
            [&three.cluster.beta, &three.gamma].iter().all(|node| {
                let facts = node.state().join("volumes").join(VOLUME).join("facts");
                let facts = std::fs::read_to_string(facts).unwrap();
                facts.contains("\"beta\"") && facts.contains("\"gamma\"")
            })
        });
        assert!(told, "the mirrors were not told of each other");
        three
    }
}

#[track_caller]
fn bulk(master: &Node, mirror: &Node) -> u64 {
    master.mirror(VOLUME, &mirror.name)["bytes_bulk"]
        .as_u64()
        .unwrap()
}

/// The master dies while one of its mirrors, `behind`, lacks a little of what the other has. Beta is promoted, and gamma
/// follows it without a copy of everything.
#[track_caller]
fn beta_takes_over(alpha: &mut Node, beta: &Node, gamma: &Node, behind: &str) {
    alpha.ok(&["mirror", "pause", VOLUME, behind]);
    let writer = Writer::start(alpha.path("ahead"), 2);
    writer.wait_for(60, Duration::from_secs(60));
    drop(writer.stop());
    let ahead = if behind == "beta" { gamma } else { beta };
    settle(alpha, ahead, &format!(".{}-has-it", ahead.name));
    alpha.kill();
    beta.ok(&["promote", VOLUME]);
    beta.wait_mounted(VOLUME, Duration::from_secs(20));
    std::fs::write(beta.path("by-beta"), b"beta").unwrap();
    insync(beta, gamma);
    let copied = bulk(beta, gamma);
    assert!(
        copied < FILLER as u64 / 2,
        "{copied} bytes were copied again"
    );
}

/// A node that asks whether it still is the master may be about to follow the very one that would give its copy up for it.
#[test]
fn a_master_that_is_starting_is_rejoined_once_it_is_one() {
    if !need_fuse() {
        return;
    }
    let three = Three::filled();
    let Three {
        mut cluster,
        mut gamma,
    } = three;
    cluster.alpha.stop();
    let config = cluster.alpha.state().join("lockstep.toml");
    let mut text = std::fs::read_to_string(&config).unwrap();
    text.insert_str(0, "role_query_s = 60\n");
    std::fs::write(&config, text).unwrap();
    // It is asked, and does not answer.
    gamma.freeze(true);
    cluster.alpha.start();
    let asks = wait_until(Duration::from_secs(20), || {
        cluster.alpha.volume(VOLUME)["condition"] == "opening"
    });
    assert!(asks, "{}", cluster.alpha.ok(&["status"]));
    let rejoin = ["rejoin", VOLUME, "alpha"];
    let (status, said) = cluster.beta.refused(&rejoin);
    assert_eq!(status, 3);
    assert!(said.contains("has not found out yet"), "{said}");
    gamma.freeze(false);
    cluster.alpha.wait_mounted(VOLUME, Duration::from_secs(30));
    cluster.beta.ok(&rejoin);
    insync(&cluster.alpha, &cluster.beta);
    insync(&cluster.alpha, &gamma);
    end_well(&mut cluster.alpha, &mut [&mut cluster.beta, &mut gamma]);
}

#[test]
fn another_mirror_follows_the_promoted_one_without_a_copy() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    let Three {
        mut cluster,
        mut gamma,
    } = Three::filled();
    let (alpha, beta) = (&mut cluster.alpha, &mut cluster.beta);
    let writer = Writer::start(alpha.path("kept"), 1);
    writer.wait_for(100, Duration::from_secs(60));
    let kept = writer.stop();
    settle(alpha, beta, ".both");
    beta_takes_over(alpha, beta, &gamma, "gamma");
    kept.assert_kept(&beta.path("kept"));
    assert_eq!(gamma.volume(VOLUME)["mirrors"][0]["peer"], "beta");
    gamma.wait_mounted(VOLUME, Duration::from_secs(20));
    settle(beta, &gamma, ".after");
    // The one that comes back hears of it from whoever answers; here the promoted one is down, too.
    beta.kill();
    alpha.start();
    let follows = wait_until(Duration::from_secs(20), || {
        alpha.volume(VOLUME)["role"] == "mirror"
    });
    assert!(follows, "{}", alpha.ok(&["status"]));
    beta.start();
    beta.wait_mounted(VOLUME, Duration::from_secs(20));
    insync(beta, alpha);
    end_well(beta, &mut [alpha, &mut gamma]);
}

#[test]
fn a_mirror_that_was_ahead_of_the_promoted_one_steps_back() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    let Three {
        mut cluster,
        mut gamma,
    } = Three::filled();
    let (alpha, beta) = (&mut cluster.alpha, &mut cluster.beta);
    beta_takes_over(alpha, beta, &gamma, "beta");
    let lost = gamma.state().join("lost").join(VOLUME);
    let listed = gamma.ok(&["lost", "list", VOLUME, "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let entry = &listed["lost"][0];
    assert!(
        entry["files"].as_u64().unwrap() > 10,
        "{} in {}",
        entry,
        lost.display()
    );
    let id = entry["id"].as_str().unwrap();
    let told = gamma.events();
    let mut told = told.iter().filter(|e| e["kind"] == "kept-aside");
    assert!(
        told.any(|e| e.to_string().contains(id)),
        "no event names {id}"
    );
    let shown = gamma.ok(&["lost", "show", VOLUME, id]);
    assert!(shown.contains("file /ahead/slots, bytes "), "{shown}");
    let to = gamma.dir.join("extracted");
    gamma.ok(&["lost", "extract", VOLUME, id, to.to_str().unwrap()]);
    assert_eq!(
        std::fs::read(to.join(".gamma-has-it")).unwrap()[..13],
        *b".gamma-has-it"
    );
    assert!(!beta.path(".gamma-has-it").exists());
    alpha.start();
    insync(beta, alpha);
    end_well(beta, &mut [alpha, &mut gamma]);
}

/// Every mirror of the master acknowledges from now on.
fn all_sync(master: &Node, mirrors: [&Node; 2]) {
    for mirror in mirrors {
        insync(master, mirror);
        master.ok(&["mirror", "set", VOLUME, &mirror.name, "--mode", "sync"]);
        assert_eq!(master.mirror(VOLUME, &mirror.name)["degraded"], false);
    }
}

/// The master is killed under load, again and again; what it acknowledged is on both of its mirrors, whichever of them is
/// promoted.
#[test]
fn nothing_acknowledged_in_sync_mode_is_lost_in_any_failover() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    let Three { mut cluster, gamma } = Three::filled();
    // The master, whoever is promoted next, and the other one.
    let mut third = gamma;
    let mut acknowledged = Acknowledged::default();
    for round in 0..rounds() {
        if round % 3 == 1 {
            std::mem::swap(&mut cluster.beta, &mut third);
        }
        let (master, heir) = (&mut cluster.alpha, &mut cluster.beta);
        all_sync(master, [heir, &third]);
        let dir = master.path("writer");
        let writer = Writer::go_on(dir, 3 * round, std::mem::take(&mut acknowledged));
        writer.wait_for(60 + 29 * round % 90, Duration::from_secs(60));
        master.kill();
        acknowledged = writer.killed();
        heir.ok(&["promote", VOLUME]);
        heir.wait_mounted(VOLUME, Duration::from_secs(20));
        acknowledged.assert_kept(&heir.path("writer"));
        insync(heir, &third);
        if round % 4 == 3 {
            recovered_by_kernel(&copy_of(&part(heir), &heir.dir.join("copy")));
        }
        // It was acknowledged: nobody had anything more, but for what the old master had under way.
        master.start();
        insync(heir, master);
        for mirror in [&*master, &third] {
            mirror.wait_mounted(VOLUME, Duration::from_secs(20));
            settle(heir, mirror, &format!(".round-{round}-{}", mirror.name));
            acknowledged.assert_kept(&mirror.path("writer"));
        }
        heir.ok(&["verify", VOLUME]);
        std::mem::swap(&mut cluster.alpha, &mut cluster.beta);
    }
    let [master, mirror] = cluster.nodes();
    end_well(master, &mut [mirror, &mut third]);
}

#[test]
fn a_switchover_under_load_loses_and_copies_nothing() {
    switchovers(false);
}

#[test]
fn a_switchover_in_sync_mode_loses_and_copies_nothing() {
    switchovers(true);
}

fn switchovers(sync: bool) {
    if !(need_fuse() && need_loop()) {
        return;
    }
    let Three {
        mut cluster,
        mut gamma,
    } = Three::filled();
    let mut acknowledged = Acknowledged::default();
    for round in 0..rounds() {
        let (master, mirror) = (&cluster.alpha, &cluster.beta);
        insync(master, mirror);
        insync(master, &gamma);
        if sync {
            all_sync(master, [mirror, &gamma]);
        }
        let dir = master.path("writer");
        let writer = Writer::go_on(dir, round, std::mem::take(&mut acknowledged));
        writer.wait_for(40 + 17 * round % 50, Duration::from_secs(60));
        let before = bulk(master, &gamma);
        let said = master.ok(&["switchover", VOLUME, &mirror.name]);
        assert!(said.contains("writes paused for"), "{said}");
        // The writer met EROFS, or its mount went.
        acknowledged = writer.killed();
        assert_role(mirror, "master");
        mirror.wait_mounted(VOLUME, Duration::from_secs(20));
        insync(mirror, master);
        insync(mirror, &gamma);
        acknowledged.assert_kept(&mirror.path("writer"));
        assert_eq!(bulk(mirror, master), 0, "round {round}: nothing to copy");
        let copied = bulk(mirror, &gamma);
        assert!(
            copied < 4 << 20,
            "round {round}: {copied} bytes were copied, {before} before"
        );
        std::mem::swap(&mut cluster.alpha, &mut cluster.beta);
    }
    let [master, mirror] = cluster.nodes();
    settle(master, mirror, ".last");
    acknowledged.assert_kept(&mirror.path("writer"));
    // A mirror that is not in sync is no heir.
    gamma.kill();
    master.wait(VOLUME, "gamma", "LINKDOWN", 30);
    let (status, said) = master.refused(&["switchover", VOLUME, "gamma"]);
    assert_eq!(status, 3);
    assert!(said.contains("INSYNC"), "{said}");
    gamma.start();
    end_well(master, &mut [mirror, &mut gamma]);
}
