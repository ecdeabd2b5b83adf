//! Mounts are remembered: they wait, come back, and are what was asked for.

use std::time::Duration;

use crate::cluster::{Cluster, VOLUME, write_durably};
use crate::daemon::is_mount;
use crate::testkit::{command, need_fuse, need_root, need_tool, wait_until};

const SOON: Duration = Duration::from_secs(15);

#[test]
fn mounts_come_back_after_a_restart() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::local();
    cluster.replicated(64, &[]);
    write_durably(&cluster.alpha.path("file"), b"text");
    cluster.settle();
    for hard in [false, true] {
        for node in cluster.nodes() {
            if hard {
                // Leaves a dead mount: "Transport endpoint is not connected".
                node.kill();
                assert!(is_mount(&node.mnt()));
            } else {
                node.stop();
                assert!(!is_mount(&node.mnt()));
            }
            node.start();
            node.wait_mounted(VOLUME, SOON);
            assert_eq!(std::fs::read(node.path("file")).unwrap(), b"text");
        }
        cluster.insync();
    }
    // Read-write there, read-only here.
    write_durably(&cluster.alpha.path("after"), b"text");
    assert!(std::fs::write(cluster.beta.path("after"), b"x").is_err());
    cluster.assert_same_trees();
    // Without the master, the mirror's copy is mounted too.
    cluster.stop();
    cluster.beta.start();
    cluster.beta.wait_mounted(VOLUME, SOON);
    assert_eq!(std::fs::read(cluster.beta.path("after")).unwrap(), b"text");
    cluster.end_clean();
}

#[test]
fn a_lazy_unmount_by_somebody_is_mended() {
    if !(need_root() && need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    cluster.replicated(64, &[]);
    write_durably(&cluster.alpha.path("file"), b"text");
    cluster.settle();
    for node in [&cluster.alpha, &cluster.beta] {
        let done = command("umount")
            .arg("-l")
            .arg(node.mnt())
            .status()
            .unwrap();
        assert!(done.success());
        let back = wait_until(SOON, || {
            is_mount(&node.mnt()) && std::fs::read(node.path("file")).is_ok_and(|b| b == b"text")
        });
        assert!(back, "{}: {}", node.name, node.volume(VOLUME));
    }
    write_durably(&cluster.alpha.path("after"), b"text");
    cluster.assert_same_trees();
    cluster.end_clean();
}

#[test]
fn a_mirrors_mount_waits_for_insync() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    cluster.volume(200, &[]);
    std::fs::write(cluster.alpha.path("large"), vec![3; 120 << 20]).unwrap();
    cluster.mirror(&["--rate", "30M"]);
    cluster.alpha.wait(VOLUME, "beta", "REPLICATE", 30);
    let mnt = cluster.beta.mnt();
    let said = cluster.beta.ok(&["mount", VOLUME, mnt.to_str().unwrap()]);
    assert!(said.contains("wait"), "{said}");
    assert!(!is_mount(&mnt));
    let volume = cluster.beta.volume(VOLUME);
    assert_eq!(volume["role"], "mirror");
    assert_eq!(volume["mounted"], false);
    assert!(volume["consistent_as_of"].is_null(), "{volume}");
    cluster.insync();
    cluster.beta.wait_mounted(VOLUME, SOON);
    let volume = cluster.beta.volume(VOLUME);
    assert_eq!(volume["read_only"], true);
    assert!(volume["consistent_as_of"].is_string(), "{volume}");
    cluster.assert_same_trees();
    cluster.end_clean();
}

#[test]
fn a_mirror_whose_master_is_gone_says_how_old_its_copy_is() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::local();
    cluster.replicated(64, &[]);
    cluster.settle();
    let as_of = |cluster: &Cluster| {
        let volume = cluster.beta.volume(VOLUME);
        volume["consistent_as_of"].as_str().map(str::to_owned)
    };
    assert!(wait_until(SOON, || as_of(&cluster).is_some()));
    cluster.alpha.kill();
    cluster.beta.wait(VOLUME, "alpha", "LINKDOWN", 30);
    let before = as_of(&cluster);
    assert!(before.is_some(), "the master is gone, the copy is not");
    cluster.beta.kill();
    cluster.beta.start();
    assert!(wait_until(SOON, || as_of(&cluster).is_some()));
    // What the log brought back since may be newer than what was recorded: it says "or later", never more.
    assert!(
        as_of(&cluster) <= before,
        "{before:?}, then {:?}",
        as_of(&cluster)
    );
    cluster.end_clean();
}

#[test]
fn mount_is_idempotent_and_umount_leaves_replication_running() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::local();
    cluster.replicated(64, &[]);
    cluster.mount_master();
    cluster.mount_mirror();
    assert_eq!(cluster.alpha.volume(VOLUME)["read_only"], false);
    // A mirror is made, and works, on an unmounted volume too.
    std::fs::write(cluster.alpha.path("last"), b"text").unwrap();
    cluster.alpha.ok(&["umount", VOLUME]);
    assert!(!is_mount(&cluster.alpha.mnt()));
    assert_eq!(cluster.alpha.volume(VOLUME)["mounted"], false);
    let there = cluster.beta.path("last");
    assert!(wait_until(SOON, || std::fs::read(&there).is_ok_and(|b| b == b"text")));
    cluster.insync();
    cluster.verify();
    // What was unmounted stays so.
    cluster.alpha.stop();
    cluster.alpha.start();
    cluster.insync();
    assert!(!is_mount(&cluster.alpha.mnt()));
    cluster.mount_master();
    cluster.assert_same_trees();
    cluster.beta.ok(&["umount", VOLUME]);
    assert!(!is_mount(&cluster.beta.mnt()));
    cluster.insync();
    cluster.end_clean();
}

#[test]
fn a_mirror_is_made_of_an_unmounted_volume() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    let part = format!("{}=64M", cluster.path("part0").display());
    cluster
        .alpha
        .ok(&["volume", "create", VOLUME, "--part", &part]);
    cluster.mirror(&[]);
    cluster.insync();
    cluster.verify();
    cluster.mount_master();
    cluster.mount_mirror();
    cluster.beta.wait_mounted(VOLUME, SOON);
    write_durably(&cluster.alpha.path("file"), b"text");
    cluster.assert_same_trees();
    cluster.end_clean();
}

#[test]
fn a_read_only_mount_of_a_master_says_so() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    let part = format!("{}=64M", cluster.path("part0").display());
    cluster
        .alpha
        .ok(&["volume", "create", VOLUME, "--part", &part]);
    let mnt = cluster.alpha.mnt();
    let mnt = mnt.to_str().unwrap();
    cluster.alpha.ok(&["mount", VOLUME, mnt, "--read-only"]);
    assert_eq!(cluster.alpha.volume(VOLUME)["read_only"], true);
    assert!(std::fs::write(cluster.alpha.path("file"), b"x").is_err());
    cluster.alpha.ok(&["umount", VOLUME]);
    cluster.alpha.ok(&["mount", VOLUME, mnt]);
    std::fs::write(cluster.alpha.path("file"), b"x").unwrap();
    // Nothing is mounted where there is nothing.
    cluster.alpha.ok(&["umount", VOLUME]);
    cluster
        .alpha
        .refused(&["mount", VOLUME, "/nonexistent/directory"]);
    cluster.end_clean();
}
