//! Two real nodes: a first copy, live changes, failures of every kind, and what both sides say meanwhile.

use crate::node::{Node, mounted};
use crate::testkit::{Compare, command, e2fsck, need_fuse, populate_tree, tree_digest, wait_until};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

struct Pair {
    a: Node,
    b: Node,
}

fn know(one: &Node, name: &str, other: &Node) {
    let fingerprint = other.ok(&["node", "fingerprint"]);
    let address = other.address();
    one.ok(&[
        "peer",
        "add",
        name,
        &address,
        "--fingerprint",
        fingerprint.trim(),
    ]);
}

impl Pair {
    /// Two nodes that know each other, and a volume on the first.
    fn new(size: &str, buffer: &str) -> Pair {
        let (mut a, mut b) = (Node::init("alpha"), Node::init("beta"));
        know(&a, "beta", &b);
        know(&b, "alpha", &a);
        for node in [&mut a, &mut b] {
            node.configure("peer_timeout_s = 2");
            node.start();
        }
        let part = format!("{}={size}", a.path("p0").display());
        a.ok(&[
            "volume", "create", "data", "--part", &part, "--buffer", buffer,
        ]);
        Pair { a, b }
    }

    fn mount(&self) -> PathBuf {
        let mnt = self.a.mnt();
        self.a.ok(&["mount", "data", mnt.to_str().unwrap()]);
        mnt
    }

    fn mirror(&self) {
        self.a.ok(&["mirror", "create", "data", "beta"]);
        self.reach("INSYNC");
    }

    fn reach(&self, state: &str) {
        self.a
            .ok(&["wait", "data", "beta", state, "--timeout", "60"]);
    }

    fn mount_copy(&self) -> PathBuf {
        let mnt = self.b.mnt();
        self.b.ok(&["mount", "data", mnt.to_str().unwrap()]);
        mnt
    }

    fn of_mirror(&self, key: &str) -> Value {
        self.a.status()["volumes"][0]["mirrors"][0][key].clone()
    }

    /// Stops both; the copies are clean and equal.
    fn finish(mut self) {
        self.reach("INSYNC");
        self.a.ok(&["verify", "data"]);
        self.a.stop();
        self.b.stop();
        e2fsck(&self.a.path("p0")).unwrap();
        e2fsck(&self.b.path("store/data/part0")).unwrap();
    }
}

fn write(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

fn appears(path: &Path, bytes: &[u8]) {
    let found = wait_until(Duration::from_secs(5), || {
        std::fs::read(path).is_ok_and(|found| found == bytes)
    });
    assert!(
        found,
        "{} does not come to hold what was written",
        path.display()
    );
}

#[test]
fn a_tree_is_copied_and_live_changes_follow() {
    if !need_fuse() {
        return;
    }
    let pair = Pair::new("128M", "16M");
    let mnt = pair.mount();
    populate_tree(&mnt.join("lost+found"), 1, 0).unwrap();
    populate_tree(&mnt, 7, 300).unwrap();
    pair.mirror();
    let copy = pair.mount_copy();
    let (source, options) = mounted(&copy).unwrap();
    assert!(
        source.contains("mirror") && options.starts_with("ro"),
        "{source} {options}"
    );
    write(&mnt.join("live"), b"one");
    appears(&copy.join("live"), b"one");
    write(&mnt.join("live"), b"two, and longer");
    appears(&copy.join("live"), b"two, and longer");
    std::fs::rename(mnt.join("live"), mnt.join("moved")).unwrap();
    File::open(&mnt).unwrap().sync_all().unwrap();
    appears(&copy.join("moved"), b"two, and longer");
    assert!(!copy.join("live").exists());
    let refused = File::create(copy.join("x")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    let ours = tree_digest(&mnt).unwrap();
    let theirs = tree_digest(&copy).unwrap();
    ours.assert_same(&theirs, Compare::ALL);
    let status = pair.b.until("INSYNC there", |s| {
        s["volumes"][0]["mirrors"][0]["state"] == "INSYNC"
            && !s["volumes"][0]["consistent_as_of"].is_null()
    });
    assert_eq!(status["volumes"][0]["role"], "mirror");
    assert_eq!(status["volumes"][0]["read_only"], true);
    pair.b
        .ok(&["wait", "data", "alpha", "INSYNC", "--timeout", "5"]);
    assert!(pair.of_mirror("bytes_bulk").as_u64().unwrap() > 0);
    pair.finish();
}

#[test]
fn a_pause_is_made_good_by_replay_and_a_crack_from_the_dirty_map() {
    if !need_fuse() {
        return;
    }
    let pair = Pair::new("256M", "8M");
    let mnt = pair.mount();
    write(&mnt.join("file"), &vec![1; 24 << 20]);
    pair.mirror();
    let bulk = pair.of_mirror("bytes_bulk");
    pair.a.ok(&["mirror", "pause", "data", "beta"]);
    pair.reach("IDLE");
    pair.a.fails(3, &["mirror", "pause", "data", "beta"]);
    pair.a
        .fails(4, &["wait", "data", "beta", "INSYNC", "--timeout", "0.2"]);
    pair.a.fails(3, &["verify", "data", "beta"]);
    write(&mnt.join("small"), b"while it was paused");
    pair.a.ok(&["mirror", "continue", "data", "beta"]);
    pair.reach("INSYNC");
    assert_eq!(
        pair.of_mirror("bytes_bulk"),
        bulk,
        "a pause is made good by replay"
    );
    pair.a.ok(&["mirror", "pause", "data", "beta"]);
    // In place: overwrites go through the log, which is three times too small for them.
    let mut file = File::options().write(true).open(mnt.join("file")).unwrap();
    file.write_all(&vec![2; 24 << 20]).unwrap();
    file.sync_all().unwrap();
    pair.a.until("cracked", |s| {
        s["volumes"][0]["mirrors"][0]["cracked"] == true
    });
    pair.a.ok(&["mirror", "continue", "data", "beta"]);
    pair.reach("INSYNC");
    let sent = pair.of_mirror("bytes_bulk").as_u64().unwrap() - bulk.as_u64().unwrap();
    assert!(sent < 28 << 20, "{sent} bytes were sent for 24 MiB");
    let states: Vec<String> = pair
        .a
        .ok(&["events", "--json"])
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap())
        .filter(|e| e["kind"] == "state")
        .map(|e| e["to"].as_str().unwrap().to_owned())
        .collect();
    assert!(states.iter().any(|s| s == "OUTOFSYNC"), "{states:?}");
    pair.finish();
}

#[test]
fn either_daemon_may_be_killed() {
    if !need_fuse() {
        return;
    }
    let mut pair = Pair::new("128M", "16M");
    let mnt = pair.mount();
    pair.mirror();
    let copy = pair.mount_copy();
    write(&mnt.join("before"), b"1");
    appears(&copy.join("before"), b"1");
    pair.b.crash();
    pair.reach("LINKDOWN");
    write(&mnt.join("meanwhile"), b"2");
    pair.b.start();
    pair.reach("INSYNC");
    pair.b
        .until("mounted there", |s| s["volumes"][0]["mounted"] == true);
    appears(&copy.join("meanwhile"), b"2");
    write(&mnt.join("last"), b"3");
    pair.a.crash();
    pair.b.until("LINKDOWN there", |s| {
        s["volumes"][0]["mirrors"][0]["state"] == "LINKDOWN"
    });
    assert_eq!(std::fs::read(copy.join("before")).unwrap(), b"1");
    pair.a.start();
    pair.reach("INSYNC");
    assert_eq!(pair.of_mirror("bytes_bulk"), 0, "by replay");
    appears(&copy.join("last"), b"3");
    pair.a
        .until("mounted", |s| s["volumes"][0]["mounted"] == true);
    write(&mnt.join("on"), b"4");
    appears(&copy.join("on"), b"4");
    pair.finish();
}

#[test]
fn a_mount_asked_for_early_waits_and_comes_back_after_a_restart() {
    if !need_fuse() {
        return;
    }
    let mut pair = Pair::new("128M", "16M");
    let mnt = pair.mount();
    write(&mnt.join("file"), &vec![7; 8 << 20]);
    // Slow enough that the mount is asked for before the copy is consistent.
    pair.a
        .ok(&["mirror", "create", "data", "beta", "--rate", "4M"]);
    pair.b
        .until("known there", |s| s["volumes"][0]["name"] == "data");
    let copy = pair.b.mnt();
    let said = pair.b.ok(&["mount", "data", copy.to_str().unwrap()]);
    assert!(said.contains("waits"), "{said}");
    assert_eq!(mounted(&copy), None);
    pair.reach("INSYNC");
    pair.b
        .until("mounted there", |s| s["volumes"][0]["mounted"] == true);
    let umount = command("umount").arg("-l").arg(&copy).status().unwrap();
    assert!(umount.success());
    pair.b.until("mounted again", |_| mounted(&copy).is_some());
    pair.b.stop();
    assert_eq!(mounted(&copy), None);
    // Without its master, a consistent copy can be read.
    pair.a.stop();
    pair.b.start();
    pair.b
        .until("mounted there", |s| s["volumes"][0]["mounted"] == true);
    assert_eq!(std::fs::read(copy.join("file")).unwrap().len(), 8 << 20);
    pair.a.start();
    pair.finish();
}

#[test]
fn severe_errors_name_cause_and_remedy_and_a_restart_recovers() {
    let pair = Pair::new("64M", "8M");
    // The name is taken.
    let part = format!("{}=64M", pair.b.path("own").display());
    pair.b.ok(&["volume", "create", "data", "--part", &part]);
    pair.a.ok(&["mirror", "create", "data", "beta"]);
    pair.a
        .fails(5, &["wait", "data", "beta", "INSYNC", "--timeout", "20"]);
    pair.reach("ERROR");
    let reason = pair.of_mirror("reason");
    let reason = reason.as_str().unwrap();
    assert!(reason.contains("another volume of this name"), "{reason}");
    pair.b.ok(&["volume", "delete", "data"]);
    pair.a.ok(&["mirror", "restart", "data", "beta"]);
    pair.reach("INSYNC");
    pair.a.fails(3, &["mirror", "create", "data", "beta"]);
    pair.a.fails(3, &["peer", "remove", "beta"]);
    pair.a.fails(3, &["volume", "delete", "data"]);
    pair.b.fails(3, &["peer", "remove", "alpha"]);
    pair.b.fails(3, &["mirror", "pause", "data", "alpha"]);
    // The key is not known there any more.
    pair.a.ok(&["mirror", "delete", "data", "beta"]);
    pair.b.ok(&["volume", "delete", "data"]);
    pair.b.ok(&["peer", "remove", "alpha"]);
    pair.a.ok(&["mirror", "create", "data", "beta"]);
    pair.reach("ERROR");
    let fingerprint = pair.a.ok(&["node", "fingerprint"]);
    assert!(
        pair.b.log().contains(fingerprint.trim()),
        "the refused key is named"
    );
    know(&pair.b, "alpha", &pair.a);
    pair.a.ok(&["mirror", "restart", "data", "beta"]);
    pair.finish();
}

#[test]
fn no_room_and_foreign_parts_are_refused() {
    let mut pair = Pair::new("64M", "8M");
    let dir = pair.b.path("store/data");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("part0"), b"somebody's").unwrap();
    pair.a.ok(&["mirror", "create", "data", "beta"]);
    pair.reach("ERROR");
    assert_eq!(std::fs::read(dir.join("part0")).unwrap(), b"somebody's");
    std::fs::remove_file(dir.join("part0")).unwrap();
    pair.a.ok(&["mirror", "restart", "data", "beta"]);
    pair.reach("INSYNC");
    // A part that is gone, and comes back.
    pair.b.stop();
    std::fs::rename(dir.join("part0"), dir.join("aside")).unwrap();
    pair.b.start();
    pair.reach("ERROR");
    let reason = pair.of_mirror("reason");
    assert!(
        reason.as_str().unwrap().contains("not where they were"),
        "{reason}"
    );
    std::fs::rename(dir.join("aside"), dir.join("part0")).unwrap();
    pair.a.ok(&["mirror", "restart", "data", "beta"]);
    pair.finish();
}

#[test]
fn a_flipped_byte_is_found_by_verify() {
    if !need_fuse() {
        return;
    }
    let mut pair = Pair::new("64M", "8M");
    let mnt = pair.mount();
    write(&mnt.join("file"), &vec![0x5a; 1 << 20]);
    pair.mirror();
    pair.b.stop();
    let part = pair.b.path("store/data/part0");
    let bytes = std::fs::read(&part).unwrap();
    let at = bytes.windows(4096).position(|w| w == [0x5a; 4096]).unwrap();
    {
        use std::os::unix::fs::FileExt;
        let times = std::fs::metadata(&part).unwrap().modified().unwrap();
        let file = File::options().write(true).open(&part).unwrap();
        file.write_all_at(b"x", at as u64 + 100).unwrap();
        file.set_modified(times).unwrap();
    }
    pair.b.start();
    pair.reach("INSYNC");
    let out = pair.a.run(&["verify", "data"]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    match out.status.code() {
        Some(6) => assert!(text.contains("blocks differ"), "{text}"),
        // The change time of the part gave it away at the start: it was compared and repaired.
        Some(0) => assert!(pair.b.log().contains("changed from outside"), "{text}"),
        other => panic!("{other:?} {text}"),
    }
}
