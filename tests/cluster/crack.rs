//! A mirror that is away for longer than the buffer holds cracks, writers do not notice, and only what changed is copied.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, VOLUME};
use crate::sizes::MIB;
use crate::testkit::{Rng, need_fuse, need_tool, wait_until};

/// Overwrites the file; how long it took, to the end of fsync.
fn overwrite(path: &Path, bytes: u64, seed: u64) -> Duration {
    let file = File::options().write(true).open(path).unwrap();
    let mut rng = Rng(seed);
    let mut chunk = rng.bytes(MIB as usize);
    let began = Instant::now();
    for at in 0..bytes / MIB {
        // Other contents in every block, without spending the time on random numbers.
        for block in chunk.chunks_mut(1024) {
            block[..8].copy_from_slice(&rng.next().to_le_bytes());
        }
        file.write_all_at(&chunk, at * MIB).unwrap();
        if at % 8 == 7 {
            file.sync_data().unwrap();
        }
    }
    file.sync_all().unwrap();
    began.elapsed()
}

#[test]
fn a_cracked_mirror_gets_only_what_changed() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    const CHANGED: u64 = 200 * MIB;
    let cluster = Cluster::local();
    cluster.volume(640, &["--buffer", "32M"]);
    let path = cluster.alpha.path("file");
    std::fs::write(&path, vec![7; CHANGED as usize]).unwrap();
    let without = overwrite(&path, CHANGED, 1);
    cluster.mirror(&[]);
    cluster.insync();
    cluster.mount_mirror();
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(10));
    cluster.settle();

    cluster.alpha.ok(&["mirror", "pause", VOLUME, "beta"]);
    cluster.alpha.wait(VOLUME, "beta", "IDLE", 10);
    let before = (cluster.bytes_bulk(), cluster.bytes_sequenced());
    let with = overwrite(&path, CHANGED, 2);
    eprintln!(
        "200 MiB overwritten: {without:.2?} without a mirror, {with:.2?} with one that is paused"
    );
    assert!(
        with < 3 * without + Duration::from_secs(2),
        "writers waited: {with:?} instead of {without:?}"
    );
    // What does not fit into the buffer any more is to go; status tells within a moment.
    let known = wait_until(Duration::from_secs(5), || {
        let mirror = cluster.alpha.mirror(VOLUME, "beta");
        mirror["bytes_to_go"].as_u64().unwrap() >= CHANGED * 8 / 10
    });
    let mirror = cluster.alpha.mirror(VOLUME, "beta");
    assert!(known, "{mirror}");
    assert_eq!(mirror["state"], "IDLE");
    assert_eq!(mirror["cracked"], true, "{mirror}");

    cluster.alpha.ok(&["mirror", "continue", VOLUME, "beta"]);
    cluster.insync();
    let sent = cluster.bytes_bulk() - before.0 + cluster.bytes_sequenced() - before.1;
    eprintln!("{sent} bytes sent for {CHANGED} changed");
    assert!(
        sent <= CHANGED + CHANGED / 10 + MIB,
        "{sent} bytes for {CHANGED}"
    );
    assert!(
        sent >= CHANGED - CHANGED / 10 - MIB,
        "{sent} bytes for {CHANGED}"
    );
    let passed = cluster
        .alpha
        .events()
        .iter()
        .any(|e| e.to_string().contains("OUTOFSYNC"));
    assert!(passed, "INSYNC without OUTOFSYNC");
    let back = cluster.beta.wait_mounted(VOLUME, Duration::from_secs(10));
    eprintln!("mounted again after {back:?}");
    cluster.assert_same_trees();
    cluster.verify();
    cluster.end_clean();
}

#[test]
fn a_pause_that_the_buffer_holds_is_made_up_by_replay() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    cluster.replicated(256, &[]);
    let bulk = cluster.bytes_bulk();
    cluster.alpha.ok(&["mirror", "pause", VOLUME, "beta"]);
    cluster.alpha.wait(VOLUME, "beta", "IDLE", 10);
    for n in 0..200 {
        std::fs::write(cluster.alpha.path(format!("file{n}")), vec![n as u8; 5000]).unwrap();
    }
    crate::cluster::sync_dir(&cluster.alpha.mnt());
    // It shows what it had, and stays mounted.
    assert!(cluster.beta.mnt().read_dir().is_ok());
    assert!(!cluster.beta.path("file0").exists());
    // Continue is refused when nothing is paused, and pause when it is.
    cluster.alpha.refused(&["mirror", "pause", VOLUME, "beta"]);
    cluster.alpha.ok(&["mirror", "continue", VOLUME, "beta"]);
    cluster.insync();
    cluster
        .alpha
        .refused(&["mirror", "continue", VOLUME, "beta"]);
    assert!(wait_until(Duration::from_secs(5), || cluster
        .beta
        .path("file199")
        .exists()));
    cluster.assert_same_trees();
    assert_eq!(cluster.bytes_bulk(), bulk, "nothing is copied");
    cluster.verify();
    cluster.end_clean();
}
