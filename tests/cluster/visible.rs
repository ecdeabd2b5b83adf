//! What the master's users do shows on the mirror's mount, soon and without remounting; nothing can be done there.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;

use crate::cluster::{Cluster, chmod, sync_dir, write_durably};
use crate::testkit::{need_fuse, need_netns, need_tool, wait_until};

/// The promise.
const SECOND: Duration = Duration::from_secs(1);

/// How long it took until `done`.
#[track_caller]
fn soon(what: &str, done: impl FnMut() -> bool) {
    let began = Instant::now();
    let seen = wait_until(Duration::from_secs(10), done);
    let took = began.elapsed();
    assert!(seen, "{what}: not visible after {took:?}");
    assert!(took <= SECOND, "{what}: visible only after {took:?}");
}

#[test]
fn changes_are_visible_within_a_second_of_their_fsync() {
    if !(need_fuse() && need_netns() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::linked();
    cluster.replicated(128, &[]);
    let (here, there) = (cluster.alpha.mnt(), cluster.beta.mnt());
    std::fs::create_dir(here.join("dir")).unwrap();
    for n in 0..50 {
        write_durably(
            &here.join(format!("dir/file{n}")),
            format!("one {n}").as_bytes(),
        );
    }
    write_durably(&here.join("large"), &vec![1; 3 << 20]);
    cluster.settle();
    let names = |dir: &Path| -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    // Everything is in the mirror's kernel caches, the absence of names too; one file is held open.
    assert_eq!(names(&there.join("dir")).len(), 50);
    for n in 0..50 {
        let read = std::fs::read(there.join(format!("dir/file{n}"))).unwrap();
        assert_eq!(read, format!("one {n}").as_bytes());
    }
    assert!(!there.join("dir/new").exists());
    let open = File::open(there.join("large")).unwrap();
    let mut byte = [0];
    open.read_exact_at(&mut byte, 2 << 20).unwrap();
    assert_eq!(byte, [1]);

    write_durably(&here.join("dir/new"), b"new");
    soon("a new name", || {
        std::fs::read(there.join("dir/new")).is_ok_and(|b| b == b"new")
    });
    soon("a new name in the listing", || {
        names(&there.join("dir")).contains(&"new".into())
    });

    write_durably(&here.join("dir/file7"), b"changed, and longer than before");
    soon("changed contents", || {
        std::fs::read(there.join("dir/file7")).unwrap() == b"changed, and longer than before"
    });

    let large = File::options()
        .write(true)
        .open(here.join("large"))
        .unwrap();
    large.write_all_at(&[2; 4096], 2 << 20).unwrap();
    large.sync_all().unwrap();
    soon("an overwritten block of an open file", || {
        open.read_exact_at(&mut byte, 2 << 20).unwrap();
        byte == [2]
    });

    large.set_len(1 << 20).unwrap();
    large.sync_all().unwrap();
    soon("a cut", || open.metadata().unwrap().len() == 1 << 20);

    std::fs::rename(here.join("dir/file1"), here.join("dir/renamed")).unwrap();
    sync_dir(&here.join("dir"));
    soon("a rename", || {
        !there.join("dir/file1").exists() && there.join("dir/renamed").exists()
    });

    std::fs::rename(here.join("dir/file2"), here.join("dir/file3")).unwrap();
    sync_dir(&here.join("dir"));
    soon("a rename over another", || {
        std::fs::read(there.join("dir/file3")).unwrap() == b"one 2"
            && !there.join("dir/file2").exists()
    });

    std::fs::remove_file(here.join("dir/file4")).unwrap();
    sync_dir(&here.join("dir"));
    soon("a removal", || !there.join("dir/file4").exists());

    chmod(&here.join("dir/file5"), 0o640).unwrap();
    File::open(here.join("dir/file5"))
        .unwrap()
        .sync_all()
        .unwrap();
    soon("a mode", || {
        std::fs::metadata(there.join("dir/file5")).unwrap().mode() & 0o7777 == 0o640
    });

    rustix::fs::setxattr(
        here.join("dir/file6"),
        "user.colour",
        b"red",
        XattrFlags::empty(),
    )
    .unwrap();
    File::open(here.join("dir/file6"))
        .unwrap()
        .sync_all()
        .unwrap();
    soon("an attribute", || {
        let mut value = [0_u8; 8];
        rustix::fs::getxattr(there.join("dir/file6"), "user.colour", &mut value[..])
            .is_ok_and(|n| &value[..n] == b"red")
    });
    cluster.assert_same_trees();
    cluster.end_clean();
}

#[test]
fn a_plain_write_is_visible_after_the_commit_timer() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    cluster.replicated(64, &[]);
    std::fs::write(cluster.alpha.path("plain"), b"nobody said fsync").unwrap();
    // The kernel may keep what was written for 30 s; names are the engine's at once.
    let there = cluster.beta.path("plain");
    assert!(wait_until(Duration::from_secs(5), || there.exists()));
    cluster.end_clean();
}

#[test]
fn a_second_stat_costs_no_request() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    cluster.volume(64, &[]);
    let dir = cluster.alpha.path("dir");
    std::fs::create_dir(&dir).unwrap();
    for n in 0..1000 {
        std::fs::write(dir.join(format!("file{n}")), b"x").unwrap();
    }
    cluster.mirror(&[]);
    cluster.insync();
    cluster.mount_mirror();
    cluster
        .beta
        .wait_mounted(crate::cluster::VOLUME, Duration::from_secs(10));
    let there = cluster.beta.path("dir");
    let all = move || {
        for n in 0..1000 {
            std::fs::symlink_metadata(there.join(format!("file{n}"))).unwrap();
        }
    };
    all();
    // A daemon that is stopped answers nothing: what works now is the kernel's own.
    cluster.beta.freeze(true);
    let (done, finished) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        all();
        let _ = done.send(());
    });
    let without = finished.recv_timeout(Duration::from_secs(10));
    cluster.beta.freeze(false);
    thread.join().unwrap();
    without.expect("1,000 files are looked at without the daemon");
    cluster.end_clean();
}

#[test]
fn every_write_on_the_mirror_is_erofs() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    cluster.volume(64, &[]);
    write_durably(&cluster.alpha.path("file"), b"text");
    std::fs::create_dir(cluster.alpha.path("dir")).unwrap();
    cluster.mirror(&[]);
    cluster.insync();
    cluster.mount_mirror();
    cluster
        .beta
        .wait_mounted(crate::cluster::VOLUME, Duration::from_secs(10));
    let at = |name: &str| cluster.beta.path(name);
    let now = std::fs::FileTimes::new().set_modified(std::time::SystemTime::now());
    let attempts: [(&str, std::io::Result<()>); 14] = [
        ("create", File::create(at("new")).map(drop)),
        (
            "open to write",
            File::options().write(true).open(at("file")).map(drop),
        ),
        (
            "open to append",
            File::options().append(true).open(at("file")).map(drop),
        ),
        ("mkdir", std::fs::create_dir(at("new"))),
        ("rmdir", std::fs::remove_dir(at("dir"))),
        ("unlink", std::fs::remove_file(at("file"))),
        ("rename", std::fs::rename(at("file"), at("new"))),
        ("link", std::fs::hard_link(at("file"), at("new"))),
        ("symlink", std::os::unix::fs::symlink("x", at("new"))),
        ("chmod", chmod(&at("file"), 0o600)),
        (
            "chown",
            std::os::unix::fs::chown(at("file"), Some(1), Some(1)),
        ),
        ("truncate", rustix_truncate(&at("file"))),
        (
            "utimens",
            File::open(at("file")).and_then(|f| f.set_times(now)),
        ),
        (
            "setxattr",
            rustix::fs::setxattr(at("file"), "user.x", b"y", XattrFlags::empty())
                .map_err(Into::into),
        ),
    ];
    for (what, result) in attempts {
        let errno = result.map_err(|e| e.raw_os_error());
        let erofs = rustix::io::Errno::ROFS.raw_os_error();
        assert_eq!(errno, Err(Some(erofs)), "{what}");
    }
    assert_eq!(std::fs::read(at("file")).unwrap(), b"text");
    cluster.end_clean();
}

/// truncate(2), by path: it needs no descriptor that is open to write.
fn rustix_truncate(path: &Path) -> std::io::Result<()> {
    let out = crate::testkit::run_for(
        10,
        "truncate",
        &["-c".as_ref(), "-s".as_ref(), "0".as_ref(), path.as_os_str()],
    );
    let out = out.map_err(std::io::Error::other)?;
    let said = crate::testkit::said(&out);
    match out.status.success() {
        true => Ok(()),
        false if said.contains("Read-only file system") => Err(rustix::io::Errno::ROFS.into()),
        false => Err(std::io::Error::other(said)),
    }
}
