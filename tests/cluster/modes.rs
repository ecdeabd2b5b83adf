//! Modes and limits on real nodes: what an acknowledged write is on, and who waits for whom when a mirror is stopped, full
//! or away.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, VOLUME, free_address, write_durably};
use crate::copies::{copy_of, recovered_by_kernel};
use crate::faults::Small;
use crate::testkit::{e2fsck, need_fuse, need_loop, need_tool, wait_until};

fn set(cluster: &Cluster, more: &[&str]) {
    let args = [&["mirror", "set", VOLUME, "beta"], more].concat();
    cluster.alpha.ok(&args);
}

/// The reason why the mirror is in the state in which it is.
fn reason(cluster: &Cluster) -> String {
    let mirror = cluster.alpha.mirror(VOLUME, "beta");
    mirror["reason"].as_str().unwrap().to_owned()
}

fn degraded(cluster: &Cluster) -> bool {
    let warned = cluster.alpha.volume(VOLUME)["warnings"].to_string();
    let shown = cluster.alpha.mirror(VOLUME, "beta")["degraded"] == true;
    assert_eq!(shown, warned.contains("durability is degraded"), "{warned}");
    shown
}

#[test]
fn in_sync_mode_what_was_acknowledged_is_on_the_mirror_when_the_master_burns_down() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    let mut cluster = Cluster::local();
    cluster.replicated(100, &[]);
    set(&cluster, &["--mode", "sync"]);
    let policy = &cluster.alpha.mirror(VOLUME, "beta")["policy"];
    assert_eq!(
        (&policy["mode"], &policy["timeout_ms"]),
        (&"sync".into(), &6000.into())
    );
    for n in 0..40 {
        let bytes = vec![n; if n % 4 == 0 { 300_000 } else { 4096 }];
        write_durably(&cluster.alpha.path(format!("file-{n}")), &bytes);
    }
    // At once: nobody had time for anything that the acknowledgement did not wait for.
    cluster.alpha.kill();
    cluster.beta.kill();
    let [_, mirror] = cluster.parts();
    let copy = copy_of(&mirror, &cluster.path("after-the-fire"));
    recovered_by_kernel(&copy);
    e2fsck(&copy).unwrap();
    let mounted = crate::testkit::LoopMount::read_only(&copy).unwrap();
    for n in 0..40 {
        let found = std::fs::read(mounted.path(&format!("file-{n}")));
        let found = found.unwrap_or_else(|e| panic!("file-{n} was acknowledged: {e}"));
        assert!(
            found.iter().all(|b| *b == n) && found.len() >= 4096,
            "file-{n}"
        );
    }
    drop(mounted);
    // And they find together again.
    cluster.start();
    cluster.insync();
    cluster.verify();
    assert_eq!(cluster.bytes_bulk(), 0, "nothing is copied again");
}

#[test]
fn a_stopped_mirror_delays_no_writer_of_async_and_one_of_sync_for_its_timeout() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    cluster.replicated(64, &[]);
    set(&cluster, &["--timeout", "3"]);
    for mode in ["async", "sync"] {
        set(&cluster, &["--mode", mode]);
        assert!(!degraded(&cluster));
        cluster.beta.freeze(true);
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut waited = Vec::new();
            for n in 0..20 {
                let begun = Instant::now();
                write_durably(&cluster.alpha.path(format!("{mode}-{n}")), &[1; 5000]);
                waited.push(begun.elapsed());
            }
            cluster.alpha.wait(VOLUME, "beta", "LINKDOWN", 20);
            let long = waited.iter().filter(|w| **w > Duration::from_millis(2500));
            match mode {
                // The one that was under way, and at most the one after it.
                "sync" => {
                    assert!((1..=2).contains(&long.count()), "{waited:?}");
                    assert!(degraded(&cluster));
                    assert!(
                        reason(&cluster).contains("acknowledged without"),
                        "{}",
                        reason(&cluster)
                    );
                }
                _ => {
                    assert_eq!(long.count(), 0, "{waited:?}");
                    assert!(!degraded(&cluster));
                }
            }
            assert!(
                waited.iter().all(|w| *w < Duration::from_secs(10)),
                "{waited:?}"
            );
        }));
        cluster.beta.freeze(false);
        if let Err(panic) = tried {
            std::panic::resume_unwind(panic);
        }
        cluster.insync();
        assert!(wait_until(Duration::from_secs(5), || !degraded(&cluster)));
        cluster.verify();
    }
}

#[test]
fn strict_writers_wait_until_the_mirror_is_back_or_let_go() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    cluster.replicated(64, &[]);
    set(
        &cluster,
        &["--mode", "sync", "--strict", "yes", "--timeout", "1"],
    );
    let write = |name: &str| {
        let path = cluster.alpha.path(name);
        let (done, wait) = mpsc::channel();
        std::thread::spawn(move || {
            write_durably(&path, b"text");
            let _ = done.send(());
        });
        wait
    };
    for way in ["back", "no longer strict"] {
        cluster.beta.freeze(true);
        let wait = write(way);
        cluster.alpha.wait(VOLUME, "beta", "LINKDOWN", 20);
        let still = wait.recv_timeout(Duration::from_secs(1)).is_err();
        let why = reason(&cluster);
        match way {
            "back" => cluster.beta.freeze(false),
            _ => set(&cluster, &["--strict", "no"]),
        }
        let done = wait.recv_timeout(Duration::from_secs(30));
        cluster.beta.freeze(false);
        assert!(still, "it did not wait");
        assert!(why.contains("writers wait"), "{why}");
        done.unwrap_or_else(|_| panic!("it waits though the mirror is {way}"));
        cluster.insync();
    }
    cluster.verify();
}

#[test]
fn a_full_mirror_stops_only_the_mirror() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    for mode in ["async", "sync"] {
        let mut cluster = Cluster::local();
        let store = cluster.beta.store();
        std::fs::create_dir_all(&store).unwrap();
        let disk = Small::new(&cluster.path("image"), 160 << 20, &store);
        cluster.replicated(100, &[]);
        set(&cluster, &["--mode", mode]);
        // Somebody else takes the room that the mirror's sparse part has not used.
        disk.fill();
        for n in 0..30 {
            let begun = Instant::now();
            write_durably(&cluster.alpha.path(format!("f{n}")), &vec![n; 1 << 20]);
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "a writer was held up"
            );
        }
        cluster.alpha.wait(VOLUME, "beta", "ERROR", 60);
        assert!(reason(&cluster).contains("full"), "{}", reason(&cluster));
        assert_eq!(degraded(&cluster), mode == "sync");
        write_durably(&cluster.alpha.path("after"), b"text");
        disk.empty();
        cluster.alpha.ok(&["mirror", "restart", VOLUME, "beta"]);
        cluster.insync();
        cluster.verify();
        cluster.stop();
        drop(disk);
    }
}

#[test]
fn figures_are_served_to_prometheus() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::made(None);
    let at = free_address();
    let config = cluster.alpha.state().join("lockstep.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = format!("metrics = \"{at}\"\n{text}\n[mirror]\nasync_limit = 77\n");
    std::fs::write(&config, text).unwrap();
    cluster.start();
    cluster.introduce();
    cluster.volume(64, &[]);
    cluster.mirror(&["--mode", "sync", "--compress", "off"]);
    cluster.insync();
    assert_eq!(
        cluster.alpha.mirror(VOLUME, "beta")["policy"]["async_limit"],
        77
    );
    for n in 0..5 {
        write_durably(&cluster.alpha.path(format!("f{n}")), &[1; 5000]);
    }
    // Somebody who says nothing is in nobody's way.
    let _silent = TcpStream::connect(&at).unwrap();
    let get = || {
        let mut stream = TcpStream::connect(&at).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let value = |name: &str| -> f64 {
        let text = get();
        assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
        let begins = format!("lockstep_mirror_{name}{{volume=\"data\",peer=\"beta\"}} ");
        let line = text.lines().find_map(|l| l.strip_prefix(&begins));
        line.unwrap_or_else(|| panic!("{name} in\n{text}"))
            .parse()
            .unwrap()
    };
    assert_eq!(value("insync"), 1.0);
    // Whether an fsync still has to wait when its commit is done here is a race between two disks; that each transaction
    // went out before is not.
    let early = || value("early_transactions_total") >= 5.0;
    assert!(wait_until(Duration::from_secs(5), early), "{}", get());
    let waited = || value("sync_wait_seconds_count") == value("syncs_delayed_total");
    assert!(wait_until(Duration::from_secs(5), waited), "{}", get());
    assert!(value("round_trip_seconds_count") > 0.0 && value("flush_seconds_count") > 0.0);
    assert!(value("bulk_bytes_total") > 0.0);
}
