//! What a mount costs in requests, independent of the machine, and what does not wait for what.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::rig::{Rig, possible};

#[test]
fn a_second_stat_of_a_thousand_files_costs_no_request() {
    if !possible() {
        return;
    }
    let rig = Rig::new(64);
    let paths: Vec<_> = (0..1000).map(|i| rig.path(format!("file-{i}"))).collect();
    for path in &paths {
        std::fs::write(path, b"text").expect("written");
    }
    let stat = || {
        for path in &paths {
            assert_eq!(std::fs::metadata(path).expect("known").len(), 4);
        }
    };
    stat();
    let counts = rig.live.mount().requests();
    let before = counts.total();
    stat();
    assert_eq!(counts.total() - before, 0, "{:?}", counts.list());
    // Names that are not there are remembered too.
    let absent = rig.path("absent");
    assert!(std::fs::metadata(&absent).is_err());
    let before = counts.total();
    assert!(std::fs::metadata(&absent).is_err());
    assert_eq!(counts.total() - before, 0);
    // And contents: opening and reading again asks for nothing.
    for path in &paths[..100] {
        std::fs::read(path).expect("read");
    }
    let asked = || -> u64 {
        let list = counts.list();
        let of = |what: &str| list.iter().find(|(n, _)| *n == what).map_or(0, |(_, c)| *c);
        // Closing a file costs its attributes: with the writeback cache the kernel does not know how many blocks it takes.
        of("read") + of("lookup") + of("open") + of("getxattr")
    };
    let before = asked();
    for path in &paths[..100] {
        std::fs::read(path).expect("read");
    }
    assert_eq!(asked() - before, 0, "{:?}", counts.list());
    rig.finish();
}

#[test]
fn a_read_does_not_wait_for_another_files_fsync() {
    if !possible() {
        return;
    }
    let rig = Rig::new(64);
    std::fs::write(rig.path("other"), vec![7; 100_000]).expect("written");
    std::fs::write(rig.path("one"), b"one").expect("written");
    rig.sync();
    rig.live.fs.sync().expect("synced");
    rig.tool(10, "sync", &["-d", &rig.path("other").to_string_lossy()]);
    let (begun, has_begun) = channel();
    let (let_go, go_on) = channel();
    let mut one = File::options()
        .append(true)
        .open(rig.path("one"))
        .expect("opened");
    one.write_all(b" and more").expect("written");
    rig.live.disk.hold_next_flush(begun, go_on);
    std::thread::scope(|scope| {
        let syncing = scope.spawn(|| one.sync_all());
        has_begun
            .recv_timeout(Duration::from_secs(20))
            .expect("the flush began");
        // More than there are threads that take requests: none of them may be the one that waits.
        let (done, is_done) = channel();
        let rig = &rig;
        scope.spawn(move || {
            let other = File::open(rig.path("other")).expect("opened");
            rustix::fs::fadvise(&other, 0, None, rustix::fs::Advice::DontNeed).expect("dropped");
            let mut buf = vec![0; 100_000];
            other.read_exact_at(&mut buf, 0).expect("read");
            assert!(buf.iter().all(|b| *b == 7));
            std::fs::metadata(rig.path("absent")).expect_err("not there");
            std::fs::write(rig.path("third"), b"meanwhile").expect("written");
            std::fs::rename(rig.path("third"), rig.path("fourth")).expect("renamed");
            assert_eq!(std::fs::read_dir(rig.dir()).expect("listed").count(), 4);
            done.send(()).expect("somebody listens");
        });
        let read = is_done.recv_timeout(Duration::from_secs(20));
        let waiting = !syncing.is_finished();
        let_go.send(()).expect("the flush waits");
        syncing.join().expect("no panic").expect("synced");
        read.expect("everything else went on");
        assert!(waiting, "the fsync was still waiting");
    });
    drop(one);
    rig.finish();
}
