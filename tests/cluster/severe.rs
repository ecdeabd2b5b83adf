//! Severe errors: ERROR with its cause and its remedy; `mirror restart` goes on once it is mended. Strangers and garbage.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, VOLUME, free_address, write_durably};
use crate::daemon::Node;
use crate::faults::Small;
use crate::testkit::{
    LoopMount, Rng, e2fsck, mke2fs_with, need_fuse, need_loop, need_tool, run, said, wait_until,
};

/// Waits for ERROR; what status says of it has to name these.
#[track_caller]
fn error(cluster: &Cluster, cause: &str, remedy: &str) -> Value {
    cluster.alpha.wait(VOLUME, "beta", "ERROR", 60);
    let mirror = cluster.alpha.mirror(VOLUME, "beta");
    let reason = mirror["reason"].as_str().unwrap();
    assert!(reason.contains(cause), "no {cause:?} in {reason}");
    assert!(reason.contains(remedy), "no {remedy:?} in {reason}");
    mirror
}

/// What was wrong is mended.
#[track_caller]
fn restarted(cluster: &Cluster) {
    cluster.alpha.ok(&["mirror", "restart", VOLUME, "beta"]);
    cluster.insync();
    cluster.mount_mirror();
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(10));
    cluster.assert_same_trees();
    cluster.verify();
}

#[test]
fn a_name_that_is_taken() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    cluster.volume(64, &[]);
    write_durably(&cluster.alpha.path("file"), b"text");
    let part = format!("{}=64M", cluster.path("other").display());
    cluster
        .beta
        .ok(&["volume", "create", VOLUME, "--part", &part]);
    cluster.mirror(&[]);
    error(&cluster, "another volume of this name", "volume delete");
    // Their volume is theirs.
    assert_eq!(cluster.beta.volume(VOLUME)["role"], "master");
    cluster.beta.ok(&["volume", "delete", VOLUME]);
    restarted(&cluster);
    cluster.end_clean();
}

#[test]
fn too_little_space() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    let cluster = Cluster::local();
    cluster.volume(200, &[]);
    write_durably(&cluster.alpha.path("file"), b"text");
    let store = cluster.beta.store();
    std::fs::create_dir_all(&store).unwrap();
    let small = Small::new(&cluster.path("small"), 64 << 20, &store);
    cluster.mirror(&[]);
    error(&cluster, "less space", "store");
    assert!(
        !store.join(VOLUME).join("part0").exists(),
        "what did not fit is left"
    );
    drop(small);
    restarted(&cluster);
    cluster.end_clean();
}

#[test]
fn an_unknown_key() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::made(None);
    cluster.start();
    // Alpha knows beta, but beta does not know alpha.
    let fingerprint = cluster.beta.ok(&["node", "fingerprint"]);
    let (address, theirs) = (cluster.beta.address.clone(), fingerprint.trim().to_owned());
    cluster
        .alpha
        .ok(&["peer", "add", "beta", &address, "--fingerprint", &theirs]);
    cluster.volume(64, &[]);
    cluster.mirror(&[]);
    error(&cluster, "does not know the other", "peer list");
    let ours = cluster.alpha.ok(&["node", "fingerprint"]);
    let named = wait_until(Duration::from_secs(5), || {
        cluster.beta.log().contains(ours.trim())
    });
    assert!(
        named,
        "beta's log does not name the stranger:\n{}",
        cluster.beta.log()
    );
    assert_eq!(
        cluster.beta.status()["volumes"].as_array().unwrap().len(),
        0
    );
    let address = cluster.alpha.address.clone();
    cluster.beta.ok(&[
        "peer",
        "add",
        "alpha",
        &address,
        "--fingerprint",
        ours.trim(),
    ]);
    restarted(&cluster);
    cluster.end_clean();
}

#[test]
fn a_stranger_and_garbage_on_the_port_harm_nothing() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    cluster.replicated(64, &[]);
    let mut rng = Rng(51);
    let mut connections = Vec::new();
    for node in [&cluster.alpha, &cluster.beta] {
        for n in 0..20_usize {
            let mut connection = TcpStream::connect(&node.address).unwrap();
            connection
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            let bytes = match n % 4 {
                0 => rng.bytes(100_000),
                1 => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
                // A TLS record of the greatest length, and nothing in it.
                2 => [&[0x16, 3, 1, 0xff, 0xff][..], &vec![0; 65_535]].concat(),
                // Says nothing.
                _ => Vec::new(),
            };
            let _ = connection.write_all(&bytes);
            if !bytes.is_empty() {
                let mut answer = Vec::new();
                // Closed or reset, in time.
                let _ = connection.read_to_end(&mut answer);
                assert!(answer.len() < 1000);
            } else {
                connections.push(connection);
            }
        }
    }
    // Another node, with a key of its own, which nobody added.
    let mut gamma = Node::init(cluster.path("gamma"), "gamma", &free_address(), None);
    gamma.start();
    let theirs = cluster.beta.ok(&["node", "fingerprint"]);
    gamma.ok(&[
        "peer",
        "add",
        "beta",
        &cluster.beta.address,
        "--fingerprint",
        theirs.trim(),
    ]);
    let part = format!("{}=64M", cluster.path("gammas").display());
    gamma.ok(&["volume", "create", VOLUME, "--part", &part]);
    gamma.ok(&["mirror", "create", VOLUME, "beta"]);
    gamma.wait(VOLUME, "beta", "ERROR", 60);
    gamma.stop();

    write_durably(&cluster.alpha.path("file"), b"text");
    cluster.assert_same_trees();
    cluster.insync();
    cluster.verify();
    for log in [cluster.alpha.log(), cluster.beta.log()] {
        assert!(!log.contains("panicked"), "{log}");
        assert!(
            log.contains("127."),
            "nothing in the log names where it came from:\n{log}"
        );
    }
    cluster.end_clean();
}

#[test]
fn a_half_copied_mirror_is_refused_by_the_kernel() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    let mut cluster = Cluster::local();
    cluster.volume(200, &[]);
    std::fs::write(cluster.alpha.path("large"), vec![8; 120 << 20]).unwrap();
    cluster.mirror(&["--rate", "20M"]);
    cluster.alpha.wait(VOLUME, "beta", "REPLICATE", 30);
    assert!(wait_until(Duration::from_secs(20), || cluster.bytes_bulk() > 30 << 20));
    cluster.beta.kill();
    let [_, mirror] = cluster.parts();
    assert!(
        LoopMount::read_only(&mirror).is_err(),
        "the kernel mounts half a copy"
    );
    assert!(e2fsck(&mirror).is_err());
    // A repair is as half as a first copy.
    cluster.beta.start();
    cluster.insync();
    cluster.verify();
    cluster.end_clean();
}

#[test]
fn parts_that_are_held_by_another_program() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::local();
    cluster.replicated(64, &[]);
    // A second daemon on the same state, and a second volume on the same part.
    let second = cluster.alpha.run(&["node", "run"]);
    assert!(!second.status.success(), "two daemons on one state");
    let part = cluster.path("part0");
    let (_, text) =
        cluster
            .alpha
            .refused(&["volume", "adopt", "again", "--part", part.to_str().unwrap()]);
    assert!(text.contains("part0"), "{text}");
    // The mirror's parts are gone while it is down.
    cluster.beta.stop();
    let [_, mirror] = cluster.parts();
    let aside = cluster.path("aside");
    std::fs::rename(&mirror, &aside).unwrap();
    cluster.beta.start();
    error(&cluster, "not where they were", "restart");
    std::fs::rename(&aside, &mirror).unwrap();
    let bulk = cluster.bytes_bulk();
    restarted(&cluster);
    // Their names were changed, so somebody else may have written to them: compared, and used again.
    let again = cluster.bytes_bulk() - bulk;
    assert!(
        again < bulk / 10,
        "{again} bytes: what it had is used again"
    );
    cluster.end_clean();
}

#[test]
fn a_damaged_journal_is_refused() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    let cluster = Cluster::local();
    let image = cluster.path("damaged");
    mke2fs_with(&image, 64 << 20, "", 4096).unwrap();
    let layout = run(
        "debugfs",
        &["-R".as_ref(), "blocks <8>".as_ref(), image.as_os_str()],
    )
    .unwrap();
    let journal: u64 = layout.split_whitespace().next().unwrap().parse().unwrap();
    let file = File::options().write(true).open(&image).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 1024], journal * 4096).unwrap();
    drop(file);
    let part = image.to_str().unwrap();
    let out = cluster
        .alpha
        .run(&["volume", "adopt", VOLUME, "--part", part]);
    let text = if out.status.success() {
        let mnt = cluster.alpha.mnt();
        cluster
            .alpha
            .refused(&["mount", VOLUME, mnt.to_str().unwrap()])
            .1
    } else {
        said(&out)
    };
    assert!(text.contains("journal"), "{text}");
    assert!(cluster.alpha.status()["volumes"].is_array());
}
