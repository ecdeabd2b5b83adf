//! Space: what statfs says, a full volume and its recovery, files larger than the volume.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use crate::rig::{MIB, Rig, possible, set};
use crate::testkit::{LoopMount, mke2fs, need_tool, run_for, wait_until};

fn statfs(rig: &Rig) -> rustix::fs::StatVfs {
    rustix::fs::statvfs(rig.dir()).expect("known")
}

#[test]
fn statfs_follows_what_is_written_and_removed() {
    if !possible() {
        return;
    }
    let rig = Rig::new(128);
    let empty = statfs(&rig);
    assert_eq!((empty.f_bsize, empty.f_namemax), (4096, 255));
    assert!(empty.f_blocks > 100 * 256 && empty.f_blocks <= 128 * 256);
    assert!(empty.f_bavail <= empty.f_bfree && empty.f_bfree <= empty.f_blocks);
    let mut file = File::create(rig.path("file")).expect("created");
    file.write_all(&vec![1; 20 << 20]).expect("written");
    file.sync_all().expect("synced");
    drop(file);
    let filled = statfs(&rig);
    let taken = empty.f_bfree - filled.f_bfree;
    assert!((5120..5140).contains(&taken), "20 MiB took {taken} blocks");
    assert_eq!(filled.f_ffree, empty.f_ffree - 1);
    std::fs::remove_file(rig.path("file")).expect("removed");
    rig.sync();
    // Blocks that wait for their freeing to be committed count as free.
    let back = wait_until(Duration::from_secs(10), || {
        let now = statfs(&rig);
        now.f_bfree == empty.f_bfree && now.f_ffree == empty.f_ffree
    });
    assert!(back, "what was removed is free again");
    rig.finish();
}

/// Fills the volume; how many bytes a file took before the error.
fn fill(rig: &Rig, name: &str) -> u64 {
    let mut file = File::create(rig.path(name)).expect("created");
    let bytes = vec![0x5a; MIB as usize];
    let full = loop {
        // The page cache takes anything: what there was no room for is said when it goes to the engine.
        if let Err(e) = file.write_all(&bytes).and_then(|()| file.sync_data()) {
            break e;
        }
    };
    assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
    file.metadata().expect("known").len()
}

#[test]
fn a_full_volume_says_so_and_recovers() {
    if !possible() {
        return;
    }
    for mirrored in [false, true] {
        let rig = Rig::with(set("debian-12-1k"), 48, mirrored);
        std::fs::write(rig.path("before"), vec![1; 300_000]).expect("written");
        for round in 0..3 {
            let len = fill(&rig, "filler");
            assert!(len > 20 * MIB, "round {round}: {len} bytes");
            // Whatever fails, fails with ENOSPC; reading and overwriting go on.
            let refused = (0..2000).find_map(|i| {
                let name = rig.path(format!("small-{i}"));
                let made = File::create(name).and_then(|mut f| {
                    f.write_all(&[3; 5000])?;
                    f.sync_all()
                });
                made.err()
            });
            assert_eq!(refused.expect("it is full").kind(), ErrorKind::StorageFull);
            let file = OpenOptions::new()
                .write(true)
                .open(rig.path("before"))
                .expect("opened");
            file.write_all_at(&[2; 300_000], 0).expect("overwritten");
            file.sync_all().expect("synced");
            assert_eq!(
                std::fs::read(rig.path("before")).expect("read"),
                vec![2; 300_000]
            );
            std::fs::remove_file(rig.path("filler")).expect("removed");
            for i in 0..2000 {
                let _ = std::fs::remove_file(rig.path(format!("small-{i}")));
            }
            std::fs::write(rig.path(format!("after-{round}")), [4; 100_000]).expect("written");
            let file = File::open(rig.path(format!("after-{round}"))).expect("opened");
            file.sync_all().expect("synced");
        }
        // The first syncfs since then reports what could not be written, once.
        let dir = File::open(rig.dir()).expect("opened");
        let _ = rustix::fs::syncfs(&dir);
        drop(dir);
        rig.finish();
    }
}

#[test]
fn a_sparse_file_of_a_tebibyte_takes_what_was_written() {
    if !possible() {
        return;
    }
    const TIB: u64 = 1 << 40;
    let rig = Rig::new(64);
    let file = File::create_new(rig.path("sparse")).expect("created");
    file.set_len(TIB).expect("lengthened");
    for at in [0, 77 * MIB + 5, TIB / 2 - 3, TIB - 9] {
        file.write_all_at(b"here I am", at).expect("written");
    }
    file.sync_all().expect("synced");
    let known = file.metadata().expect("known");
    assert_eq!(known.len(), TIB);
    assert!(known.blocks() <= 20 * 8, "{} sectors", known.blocks());
    let reader = File::open(rig.path("sparse")).expect("opened");
    let mut buf = [0; 9];
    for at in [0, 77 * MIB + 5, TIB / 2 - 3, TIB - 9] {
        reader.read_exact_at(&mut buf, at).expect("read");
        assert_eq!(&buf, b"here I am");
    }
    reader.read_exact_at(&mut buf, 3 * MIB).expect("read");
    assert_eq!(buf, [0; 9]);
    // 16 TiB less a block is the largest that ext4 has.
    let beyond = file.set_len(17 * TIB).expect_err("refused");
    assert_eq!(beyond.kind(), ErrorKind::FileTooLarge);
    // A terabyte is not read back twice: shortened before the trees are compared.
    file.set_len(100 * MIB).expect("shortened");
    assert!(file.metadata().expect("known").blocks() <= 10 * 8);
    drop((file, reader));
    rig.finish();
}

#[test]
fn running_out_of_inodes_is_an_error_that_passes() {
    if !possible() {
        return;
    }
    let rig = Rig::new(16);
    let inodes = statfs(&rig).f_ffree;
    let dir = rig.path("dir");
    std::fs::create_dir(&dir).expect("made");
    let mut made = 0;
    let error = loop {
        match File::create(dir.join(made.to_string())) {
            Ok(_) => made += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(made, inodes - 1);
    assert_eq!(statfs(&rig).f_ffree, 0);
    std::fs::remove_file(dir.join("7")).expect("removed");
    let again = wait_until(Duration::from_secs(10), || {
        File::create(dir.join("again")).is_ok()
    });
    assert!(again, "an inode that was freed can be used");
    assert_eq!(
        std::fs::metadata(dir.join("again")).expect("known").nlink(),
        1
    );
    rig.finish();
}

#[test]
fn what_was_removed_and_closed_is_space_for_the_next_request() {
    if !possible() {
        return;
    }
    let rig = Rig::new(48);
    for round in 0..12 {
        let file = File::create(rig.path("filler")).expect("created");
        // Several, so that the allocator has nothing left for a name.
        let mut taken = Vec::new();
        for at in 0..48 {
            let more =
                rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at * MIB, MIB);
            taken.push(more.is_ok());
        }
        assert!(taken.contains(&false), "it is full");
        for len in [4096, 1] {
            let small = rustix::fs::FallocateFlags::KEEP_SIZE;
            let mut at = 100 * MIB;
            while rustix::fs::fallocate(&file, small, at, len).is_ok() {
                at += MIB;
            }
        }
        std::fs::remove_file(rig.path("filler")).expect("removed");
        drop(file);
        // The file is gone for whoever used it; the FORGET for it is on its way.
        std::fs::create_dir(rig.path(format!("dir-{round}")))
            .unwrap_or_else(|e| panic!("round {round}: {e}"));
    }
    rig.finish();
}

/// What a user finds, takes and leaves: `f_bavail` before and after a file of his took all that he gets, what is free then,
/// and whether root still gets 2 MiB.
fn as_user(dir: &std::path::Path) -> (u64, u64, u64, bool) {
    let before = rustix::fs::statvfs(dir).expect("known").f_bavail;
    let file = dir.join("users");
    File::create(&file).expect("created");
    std::os::unix::fs::chown(&file, Some(65534), Some(65534)).expect("given away");
    let take = |len: &str, user: bool| {
        let user: &[&str] = match user {
            true => &["--reuid=65534", "--regid=65534", "--clear-groups"],
            false => &[],
        };
        let size = std::fs::metadata(&file).expect("known").len().to_string();
        let file = file.to_string_lossy();
        let what = ["fallocate", "-o", &size, "-l", len, &file];
        let out = run_for(20, "setpriv", &[user, &what].concat()).expect("run");
        out.status.success()
    };
    for step in ["1048576", "65536", "4096"] {
        while take(step, true) {}
    }
    let now = rustix::fs::statvfs(dir).expect("known");
    let root = take("2097152", false);
    (before, now.f_bavail, now.f_bfree, root)
}

#[test]
fn a_user_leaves_to_root_what_the_kernel_leaves() {
    if !(possible() && need_tool("setpriv")) {
        return;
    }
    let theirs = {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        mke2fs(&image, 64 * MIB, set("debian-12")).expect("mke2fs");
        let mount = LoopMount::new(&image).expect("mounted");
        let seen = as_user(mount.dir());
        mount.unmount().expect("unmounted");
        seen
    };
    let rig = Rig::new(64);
    let ours = as_user(rig.dir());
    assert_eq!(ours.0, theirs.0, "available at first");
    assert_eq!((ours.1, theirs.1), (0, 0), "available in the end");
    assert!(
        ours.2.abs_diff(theirs.2) <= 2,
        "left free: {} here, {} there",
        ours.2,
        theirs.2
    );
    assert_eq!((ours.3, theirs.3), (true, true), "root gets more");
    rig.finish();
}

/// `st_blocks` of an open file after each of several changes.
fn space_taken(dir: &std::path::Path) -> Vec<(&'static str, u64)> {
    use rustix::fs::{FallocateFlags, XattrFlags, fallocate, fsetxattr};
    let file = File::create_new(dir.join("file")).expect("created");
    let mut seen = Vec::new();
    let mut look = |what| seen.push((what, file.metadata().expect("known").blocks()));
    look("empty");
    file.write_all_at(&vec![1; 3 * MIB as usize], 0)
        .expect("written");
    file.sync_all().expect("synced");
    look("3 MiB");
    file.write_all_at(&vec![2; 5 * MIB as usize], MIB)
        .expect("written");
    file.sync_data().expect("synced");
    look("6 MiB");
    file.write_all_at(&[3; 100], 20 * MIB).expect("written");
    file.sync_all().expect("synced");
    look("and a block far off");
    fallocate(&file, FallocateFlags::KEEP_SIZE, 40 * MIB, MIB).expect("allocated");
    look("allocated ahead");
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, MIB, MIB).expect("punched");
    look("punched");
    fsetxattr(&file, "user.large", &[7; 2000], XattrFlags::empty()).expect("set");
    look("with attributes");
    file.set_len(2 * MIB + 5).expect("cut");
    look("cut");
    rustix::fs::fremovexattr(&file, "user.large").expect("removed");
    look("without attributes");
    seen
}

#[test]
fn the_space_that_an_open_file_takes_is_what_the_kernel_says() {
    if !possible() {
        return;
    }
    let theirs = {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        mke2fs(&image, 128 * MIB, set("debian-12")).expect("mke2fs");
        let mount = LoopMount::new(&image).expect("mounted");
        let seen = space_taken(mount.dir());
        mount.unmount().expect("unmounted");
        seen
    };
    let rig = Rig::new(128);
    assert_eq!(space_taken(rig.dir()), theirs);
    // Written back by the kernel in its own time, with nobody who waits: known soon after.
    let file = File::create_new(rig.path("later")).expect("created");
    file.write_all_at(&[1; 40_000], 0).expect("written");
    assert_eq!(file.metadata().expect("known").blocks(), 0);
    rig.sync();
    let known = wait_until(Duration::from_secs(10), || {
        file.metadata().expect("known").blocks() == 80
    });
    assert!(known, "it takes ten blocks");
    // Until something changes, it is not asked for again.
    let asked = |rig: &Rig| {
        let list = rig.live.mount().requests().list();
        list.iter().find(|r| r.0 == "getattr").map_or(0, |r| r.1)
    };
    let before = asked(&rig);
    for _ in 0..100 {
        file.metadata().expect("known");
    }
    assert_eq!(asked(&rig), before, "attributes are cached");
    // A program that appends and syncs, and looks: it sees each block.
    let appended = File::create_new(rig.path("appended")).expect("created");
    let append = |n: u64| {
        appended
            .write_all_at(&[1; 4096], n * 4096)
            .expect("written");
        appended.sync_all().expect("synced");
    };
    for n in 0..20 {
        append(n);
        let known = appended.metadata().expect("known").blocks();
        assert_eq!(known, (n + 1) * 8);
    }
    // One that does not look costs nothing but its own requests, and whoever looks later sees what is there.
    let before = asked(&rig);
    for n in 20..220 {
        append(n);
    }
    let requests = asked(&rig) - before;
    assert!(requests < 50, "{requests} for 200 appends");
    let known = wait_until(Duration::from_secs(10), || {
        appended.metadata().expect("known").blocks() == 220 * 8
    });
    assert!(known, "it takes 220 blocks");
    drop((file, appended));
    rig.finish();
}
