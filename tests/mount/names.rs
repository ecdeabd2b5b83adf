//! Names and directories: too long, very many, listed while they change.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::rig::{Rig, possible, set};
use crate::testkit::{DEBIAN_12, FeatureSet, need_tool, recover_journal, run};

#[test]
fn a_name_that_is_too_long_is_refused_and_harms_nothing() {
    if !possible() {
        return;
    }
    let rig = Rig::new(64);
    let long = |len: usize| rig.path(OsStr::from_bytes(&vec![b'n'; len]));
    File::create(long(255)).expect("255 bytes are allowed");
    let too_long = |result: std::io::Result<()>| {
        assert_eq!(
            result.expect_err("refused").raw_os_error(),
            Some(libc::ENAMETOOLONG)
        );
    };
    for len in [256, 300, 1000] {
        let path = long(len);
        too_long(File::create(&path).map(drop));
        too_long(std::fs::metadata(&path).map(drop));
        too_long(std::fs::create_dir(&path));
        too_long(std::fs::hard_link(long(255), &path));
        too_long(std::fs::rename(long(255), &path));
        too_long(std::os::unix::fs::symlink("x", &path));
        too_long(std::fs::remove_file(&path));
        too_long(std::fs::remove_dir(&path));
    }
    let target = OsStr::from_bytes(&[b't'; 4095]);
    std::os::unix::fs::symlink(target, rig.path("link")).expect("4095 bytes are allowed");
    assert_eq!(std::fs::read_link(rig.path("link")).expect("read"), target);
    for name in [
        &b"\xff\xfe bytes"[..],
        b"new\nline",
        "ümläut".as_bytes(),
        b"-",
    ] {
        File::create(rig.path(OsStr::from_bytes(name))).expect("any byte but / and 0");
    }
    rig.finish();
}

#[test]
fn a_listing_shows_what_stays_once_while_others_come_and_go() {
    if !possible() {
        return;
    }
    let rig = Rig::with(set("debian-12-1k"), 96, false);
    let dir = rig.path("dir");
    std::fs::create_dir(&dir).expect("made");
    for i in 0..3000 {
        File::create(dir.join(format!("stays-{i}"))).expect("created");
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut i = 0;
            while !stop.load(Ordering::SeqCst) {
                File::create(dir.join(format!("comes-{i}"))).expect("created");
                if i >= 50 {
                    std::fs::remove_file(dir.join(format!("comes-{}", i - 50))).expect("removed");
                }
                i += 1;
            }
        });
        let listed = std::panic::catch_unwind(|| {
            for _ in 0..20 {
                let mut seen = HashSet::new();
                for entry in std::fs::read_dir(&dir).expect("listed") {
                    let name = entry.expect("an entry").file_name();
                    if name.as_bytes().starts_with(b"stays-") {
                        assert!(seen.insert(name.clone()), "{name:?} is listed twice");
                    }
                }
                assert_eq!(seen.len(), 3000);
            }
        });
        stop.store(true, Ordering::SeqCst);
        listed.expect("listed as it should be");
    });
    rig.finish();
}

#[test]
fn a_hundred_thousand_names_are_indexed_and_cost_no_more_than_the_first() {
    if !(possible() && need_tool("debugfs")) {
        return;
    }
    const NAMES: usize = 100_000;
    let many_inodes = FeatureSet {
        extra: &["-N", "110000"],
        ..DEBIAN_12
    };
    let rig = Rig::with(&many_inodes, 512, false);
    let dir = rig.path("crowd");
    std::fs::create_dir(&dir).expect("made");
    let counters = || {
        let requests = rig.live.mount().requests().total();
        (requests, rig.live.fs.journal().stats().blocks_written)
    };
    let mut spent = Vec::new();
    for tenth in 0..10 {
        let before = counters();
        for i in tenth * NAMES / 10..(tenth + 1) * NAMES / 10 {
            File::create(dir.join(format!("a name of some length {i}"))).expect("created");
        }
        let after = counters();
        spent.push((after.0 - before.0, after.1 - before.1));
    }
    // Not by the clock: what the last ten thousand asked of the engine, and of the log.
    let (first, last) = (spent[0], spent[9]);
    assert!(last.0 < first.0 * 3 / 2, "requests: {spent:?}");
    // How many there are depends on how often the timer commits; each name has its share of a few blocks.
    assert!(last.1 < (NAMES / 10 * 5) as u64, "log blocks: {spent:?}");
    let listed = std::fs::read_dir(&dir).expect("listed").count();
    assert_eq!(listed, NAMES);
    for i in (0..NAMES).step_by(997) {
        let found = std::fs::metadata(dir.join(format!("a name of some length {i}")));
        assert!(found.is_ok(), "{i}");
    }
    for i in (0..NAMES).step_by(2) {
        std::fs::remove_file(dir.join(format!("a name of some length {i}"))).expect("removed");
    }
    let left = std::fs::read_dir(&dir).expect("listed").count();
    assert_eq!(left, NAMES / 2);
    // debugfs reads an image that is not in use: a copy, its log replayed.
    rig.live.fs.sync().expect("synced");
    let copy = rig.scratch().join("copy");
    std::fs::copy(&rig.image, &copy).expect("copied");
    recover_journal(&copy).expect("recovered");
    let args = ["-R", "htree_dump /crowd", &copy.to_string_lossy()];
    let said = run("debugfs", &args).expect("debugfs reads it");
    assert!(said.contains("Root node dump"), "{said}");
    assert!(said.contains("Indirect levels: "), "{said}");
    rig.finish_unread();
}
