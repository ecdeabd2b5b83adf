//! The testkit keeps its promises: images are clean, mounts and namespaces go away, trees compare as they should.

use std::path::Path;
use std::process::Command;

use crate::testkit::*;

#[test]
fn every_feature_set_makes_a_clean_image_that_the_kernel_mounts() {
    if !need_loop() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for set in FEATURE_SETS.iter().chain(LEGACY) {
        let image = dir.path().join(set.name);
        mke2fs(&image, 64 << 20, set).unwrap();
        e2fsck(&image).unwrap();
        if !set.mounts {
            continue;
        }
        let mount = LoopMount::new(&image).unwrap_or_else(|e| panic!("{}: {e}", set.name));
        std::fs::write(mount.path("file"), b"x").unwrap();
        mount.unmount().unwrap();
        e2fsck(&image).unwrap();
        std::fs::remove_file(&image).unwrap();
    }
}

#[test]
fn e2fsck_reports_a_broken_image() {
    if !need_tool("mke2fs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    mke2fs(&image, 16 << 20, &DEBIAN_12).unwrap();
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    // The first group's descriptor.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 8], 4096).unwrap();
    assert!(e2fsck(&image).is_err());
}

#[test]
fn a_panic_unmounts_and_detaches() {
    if !need_loop() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    mke2fs(&image, 16 << 20, &DEBIAN_12).unwrap();
    let mounted = std::sync::Mutex::new(std::path::PathBuf::new());
    let panicked = std::panic::catch_unwind(|| {
        let mount = LoopMount::new(&image).unwrap();
        *mounted.lock().unwrap() = mount.dir().to_owned();
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(panicked.is_err());
    let mounted = mounted.into_inner().unwrap();
    assert!(mounted.is_absolute());
    assert!(!mounted.exists());
    let attached = run("losetup", &["-j".as_ref(), image.as_os_str()]).unwrap();
    assert_eq!(attached, "");
}

#[test]
fn a_populated_tree_survives_a_remount_and_shows_every_change() {
    if !need_loop() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    mke2fs(&image, 256 << 20, &DEBIAN_12).unwrap();
    let mount = LoopMount::new(&image).unwrap();
    populate_tree(mount.dir(), 1, 400).unwrap();
    mount.sync().unwrap();
    let before = tree_digest(mount.dir()).unwrap();
    mount.unmount().unwrap();
    e2fsck(&image).unwrap();
    let mount = LoopMount::read_only(&image).unwrap();
    let after = tree_digest(mount.dir()).unwrap();
    mount.unmount().unwrap();
    before.assert_same(&after, Compare::ALL);
    let kinds: std::collections::BTreeSet<_> = before.0.values().map(|e| e.kind).collect();
    assert_eq!(
        kinds.into_iter().collect::<Vec<_>>(),
        ["block", "char", "dir", "fifo", "file", "link", "socket"]
    );
    assert!(before.0.values().any(|e| e.kind == "file" && e.nlink > 1));
    assert!(before.0.values().any(|e| e.data.len() > 1));
    assert!(before.0.values().any(|e| !e.xattrs.is_empty()));
    let mount = LoopMount::new(&image).unwrap();
    mutate_tree(mount.dir(), 1, 200).unwrap();
    let changed = tree_digest(mount.dir()).unwrap();
    assert!(!before.differences(&changed, Compare::VISIBLE).is_empty());
    mount.unmount().unwrap();
    e2fsck(&image).unwrap();
}

#[test]
fn the_same_seed_makes_the_same_tree() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&one, &two] {
        populate_tree(dir.path(), 7, 150).unwrap();
        mutate_tree(dir.path(), 8, 60).unwrap();
    }
    let still = Compare {
        mtime: false,
        ..Compare::VISIBLE
    };
    let digest = |dir: &Path| tree_digest(dir).unwrap();
    digest(one.path()).assert_same(&digest(two.path()), still);
    std::fs::write(two.path().join("crowd/extra"), b"").unwrap();
    let lines = digest(one.path()).differences(&digest(two.path()), still);
    assert_eq!(lines, ["crowd/extra: only in the second"]);
}

#[test]
fn parts_are_cut_and_joined() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let mut bytes = Rng(5).bytes(3 << 20);
    bytes[5000..2_000_000].fill(0);
    std::fs::write(&image, &bytes).unwrap();
    let parts = split_parts(&image, &[1 << 20, 4096], dir.path()).unwrap();
    assert_eq!(parts.len(), 3);
    let joined = dir.path().join("joined");
    join_parts(&parts, &joined).unwrap();
    assert!(std::fs::read(&joined).unwrap() == bytes);
}

#[test]
fn two_hosts_talk_until_the_cable_is_cut_and_leave_nothing() {
    if !need_netns() {
        return;
    }
    let hosts = Namespaces::new().unwrap();
    let names = [hosts.a.name().to_owned(), hosts.b.name().to_owned()];
    let listener = hosts
        .b
        .enter(|| std::net::TcpListener::bind("0.0.0.0:0").unwrap())
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let there = std::net::SocketAddr::new(hosts.b.address(), port);
    let connect = || {
        let wait = std::time::Duration::from_millis(300);
        hosts
            .a
            .enter(|| std::net::TcpStream::connect_timeout(&there, wait))
            .unwrap()
    };
    // A new interface may take a moment to carry.
    assert!(wait_until(std::time::Duration::from_secs(5), || connect().is_ok()));
    hosts.cut().unwrap();
    assert!(connect().is_err());
    hosts.mend().unwrap();
    assert!(wait_until(std::time::Duration::from_secs(5), || connect().is_ok()));
    let inside = hosts
        .a
        .command("ip")
        .args(["-o", "address"])
        .output()
        .unwrap();
    assert!(said(&inside).contains(&hosts.a.address().to_string()));
    drop(hosts);
    let left = Command::new("ip").args(["netns", "list"]).output().unwrap();
    for name in names {
        assert!(!said(&left).contains(&name));
    }
}
