//! The command line, as scripts rely on it: exit codes, JSON, history.

use std::time::Duration;

use crate::cluster::{Cluster, VOLUME};
use crate::testkit::{need_fuse, need_tool, wait_until};

#[test]
fn a_node_without_volumes_has_a_status() {
    let cluster = Cluster::local();
    let status = cluster.alpha.status();
    assert_eq!(status["node"], "alpha");
    assert_eq!(status["version"], 1);
    assert_eq!(status["volumes"].as_array().unwrap().len(), 0);
    let fingerprint = cluster.alpha.ok(&["node", "fingerprint"]);
    assert_eq!(fingerprint.trim_end().lines().count(), 1);
    assert!(!fingerprint.trim().contains(char::is_whitespace));
    let peers = cluster.alpha.ok(&["peer", "list"]);
    assert!(
        peers.contains("beta") && peers.contains(&cluster.beta.address),
        "{peers}"
    );
    cluster.alpha.ok(&["events"]);
    let (status, said) = cluster.alpha.refused(&["mount", "nothing", "/mnt"]);
    assert_eq!(status, 3, "{said}");
    let (status, said) =
        cluster
            .alpha
            .refused(&["wait", "nothing", "beta", "INSYNC", "--timeout", "1"]);
    assert_eq!(status, 3, "{said}");
    let (status, _) = cluster.alpha.refused(&["status", "nothing"]);
    assert_eq!(status, 3);
}

#[test]
fn a_node_that_does_not_run_says_so() {
    let cluster = Cluster::made(None);
    let (status, said) = cluster.alpha.refused(&["status"]);
    assert_eq!(status, 7, "{said}");
    assert!(said.contains("node run"), "{said}");
    // Peers may be added before the first start.
    cluster.introduce();
}

#[test]
fn wait_tells_reached_from_timeout_from_error() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    cluster.volume(64, &[]);
    // In the way: a volume of the same name.
    let part = format!("{}=64M", cluster.path("other").display());
    cluster
        .beta
        .ok(&["volume", "create", VOLUME, "--part", &part]);
    cluster.mirror(&[]);
    cluster.alpha.wait(VOLUME, "beta", "ERROR", 30);
    let wait = ["wait", VOLUME, "beta", "INSYNC", "--timeout", "20"];
    let (error, said) = cluster.alpha.refused(&wait);
    assert_eq!(error, 5, "{said}");
    cluster.beta.ok(&["volume", "delete", VOLUME]);
    cluster.alpha.ok(&["mirror", "restart", VOLUME, "beta"]);
    cluster.insync();
    // On the mirror's node, too.
    cluster.beta.wait(VOLUME, "alpha", "INSYNC", 30);
    let idle = ["wait", VOLUME, "beta", "IDLE", "--timeout", "1"];
    assert_eq!(cluster.alpha.refused(&idle).0, 4);
    let progress = cluster.alpha.ok(&["progress", VOLUME, "beta"]);
    assert!(progress.contains("INSYNC"), "{progress}");
    cluster.end_clean();
}

#[test]
fn the_history_of_events_survives_a_restart() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::local();
    cluster.replicated(64, &[]);
    let before = cluster.alpha.events();
    let of = |word: &str| {
        before
            .iter()
            .filter(|e| e.to_string().contains(word))
            .count()
    };
    for state in ["NEW", "INIT", "MAKEPARTS", "READY", "REPLICATE", "INSYNC"] {
        assert!(of(state) > 0, "no event names {state}: {before:#?}");
    }
    let counted = before.iter().any(|e| e.to_string().contains("bytes_bulk"));
    assert!(counted, "no event has the counters: {before:#?}");
    cluster.alpha.stop();
    cluster.alpha.start();
    let after = cluster.alpha.events();
    assert_eq!(after[..before.len()], before[..]);
    cluster.alpha.kill();
    cluster.alpha.start();
    // Of the last moments before a kill something may be missing.
    assert_eq!(cluster.alpha.events()[..before.len()], before[..]);
    cluster.end_clean();
}

#[test]
fn status_counts_what_is_there() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    cluster.replicated(64, &[]);
    std::fs::write(cluster.alpha.path("file"), vec![1; 100_000]).unwrap();
    cluster.settle();
    // Status is as of a moment ago.
    let counted = wait_until(Duration::from_secs(5), || {
        cluster.bytes_sequenced() >= 100_000
    });
    let mirror = cluster.alpha.mirror(VOLUME, "beta");
    assert!(counted, "{mirror}");
    for key in [
        "bytes_to_go",
        "bytes_bulk",
        "bytes_sequenced",
        "rate",
        "buffer_used",
        "buffer_size",
        "txid_committed",
        "txid_acked",
    ] {
        assert!(mirror[key].is_u64(), "{key}: {mirror}");
    }
    assert_eq!(mirror["state"], "INSYNC");
    assert_eq!(mirror["cracked"], false);
    assert!(
        mirror["buffer_size"].as_u64().unwrap() > 1 << 20,
        "{mirror}"
    );
    // A mirror shows what its master said last.
    cluster.beta.wait(VOLUME, "alpha", "INSYNC", 5);
    let there = cluster.beta.volume(VOLUME);
    assert_eq!(there["role"], "mirror");
    assert_eq!(there["mirrors"][0]["peer"], "alpha");
    let list = cluster.beta.ok(&["volume", "list"]);
    assert!(list.contains("mirror"), "{list}");
    cluster.alpha.ok(&["volume", "show", VOLUME]);
    // The mount says it, too.
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|l| l.contains(cluster.beta.mnt().to_str().unwrap()))
        .unwrap();
    assert!(
        line.starts_with(&format!("lockstep-mirror:{VOLUME} ")),
        "{line}"
    );
    cluster.end_clean();
}

#[test]
fn a_volume_with_mirrors_is_not_deleted() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    cluster.replicated(64, &[]);
    assert_eq!(cluster.alpha.refused(&["volume", "delete", VOLUME]).0, 3);
    cluster.alpha.ok(&["mirror", "delete", VOLUME, "beta"]);
    assert_eq!(
        cluster.alpha.volume(VOLUME)["mirrors"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    // Written home again: no mirror needs it.
    std::fs::write(cluster.alpha.path("file"), b"text").unwrap();
    cluster.alpha.ok(&["umount", VOLUME]);
    cluster.alpha.ok(&["volume", "check", VOLUME]);
    cluster
        .alpha
        .ok(&["volume", "tune", VOLUME, "--buffer", "16M"]);
    cluster.mount_master();
    assert_eq!(std::fs::read(cluster.alpha.path("file")).unwrap(), b"text");
    let size = cluster.alpha.volume(VOLUME)["buffer_size"]
        .as_u64()
        .unwrap();
    assert!((15 << 20..=16 << 20).contains(&size), "{size}");
    cluster.alpha.ok(&["umount", VOLUME]);
    cluster.alpha.ok(&["volume", "delete", VOLUME]);
    assert!(!cluster.path("part0").exists());
}

#[test]
fn a_mirrors_copy_is_checked_while_it_is_not_mounted_and_goes_on() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    cluster.replicated(64, &[]);
    std::fs::write(cluster.alpha.path("file"), b"text").unwrap();
    cluster.settle();
    let (status, said) = cluster.beta.refused(&["volume", "check", VOLUME]);
    assert_eq!(status, 3, "{said}");
    assert!(
        said.contains(&format!("lockstep umount {VOLUME}")),
        "{said}"
    );
    cluster.beta.ok(&["umount", VOLUME]);
    let said = cluster.beta.ok(&["volume", "check", VOLUME]);
    assert_eq!(said.trim_end(), format!("volume {VOLUME} is clean"));
    std::fs::write(cluster.alpha.path("file"), b"more text").unwrap();
    cluster.insync();
    cluster.mount_mirror();
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(10));
    cluster.settle();
    let copy = std::fs::read(cluster.beta.path("file")).unwrap();
    assert_eq!(copy, b"more text");
    cluster.end_clean();
}
