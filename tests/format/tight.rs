//! A volume that is full most of the time and has a mirror that never answers: everything freed waits for it. No local write
//! may fail for that with anything but "no space", nor when there is some.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lockstepfs::fs::{Caller, FallocMode, Fs, FsError, New, SetAttr, WriteFor};
use lockstepfs::io::Disk;
use lockstepfs::io::file::{SystemClock, SystemRandom};
use lockstepfs::io::sim::SimDisk;
use lockstepfs::mirror::open::{MapStore, MasterOptions, OpenMaster, open_master};
use lockstepfs::units::Ino;
use lockstepfs::volume::facts::{Copy, FactStore, Facts, MemoryFacts, Role};
use parking_lot::Mutex;

use crate::engine::{self, ROOT};
use crate::model::Model;
use crate::testkit::{DEBIAN_12, FEATURE_SETS, FeatureSet, Rng, e2fsck, mke2fs};

/// Dirty maps in memory.
#[derive(Debug, Default)]
struct Maps(Mutex<HashMap<String, Arc<SimDisk>>>);

impl MapStore for Maps {
    fn open(&self, peer: &str, len: u64) -> std::io::Result<(Arc<dyn Disk>, bool)> {
        let mut disks = self.0.lock();
        let created = !disks.contains_key(peer);
        let disk = disks
            .entry(peer.to_string())
            .or_insert_with(|| Arc::new(SimDisk::new(len)));
        Ok((Arc::clone(disk) as Arc<dyn Disk>, created))
    }
}

/// Opens an image as the master of mirrors that never answer.
fn open(disk: Arc<dyn Disk>, block_size: u32, mirrors: usize) -> OpenMaster {
    let volume = engine::volume(vec![disk], block_size);
    let facts = Facts {
        copy: Copy::Complete,
        ..Facts::blank(4711, "data", Role::Master)
    };
    let store = Arc::new(MemoryFacts::new());
    store.save(&facts).expect("saved");
    let options = MasterOptions {
        node: "alpha".into(),
        facts: store,
        maps: Arc::new(Maps::default()),
        clock: Arc::new(SystemClock::new()),
        random: Arc::new(SystemRandom),
        cache_bytes: 1 << 20,
        commit_interval: Duration::from_secs(5),
    };
    let master = open_master(volume, facts, &options).expect("opened");
    for i in 0..mirrors {
        let peer = format!("beta-{i}");
        master.add_mirror(&peer, None).expect("added");
    }
    master
}

const FILE: New = New {
    mode: 0o100_600,
    umask: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
};

/// Takes all space but about `leave` bytes, in one of the ways in which space is taken.
fn fill(fs: &Fs, ino: Ino, rng: &mut Rng, leave: u64) {
    let block_size = u64::from(fs.volume().block_size());
    let bytes = (fs.statfs().expect("statfs").bfree * block_size).saturating_sub(leave);
    let mut at = 0;
    let data = vec![0x33; 1 << 20];
    if rng.chance(40) {
        let mode = FallocMode::Allocate { keep_size: true };
        match fs.fallocate(ino, mode, 0, bytes.max(1)) {
            Ok(()) | Err(FsError::NoSpace) => return,
            Err(e) => panic!("fallocate: {e}"),
        }
    }
    while at < bytes {
        let len = (bytes - at).min(1 + rng.below(1 << 20)) as usize;
        match fs.write(ino, at, &data[..len]) {
            Ok(done) => at += done as u64,
            Err(FsError::NoSpace) => return,
            Err(e) => panic!("write: {e}"),
        }
    }
}

fn full_most_of_the_time(set: &FeatureSet, seed: u64, mib: u64, rounds: usize, mirrors: usize) {
    let what = format!("{}, seed {seed}", set.name);
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    mke2fs(&image, mib << 20, set).expect("mke2fs");
    let mut rng = Rng(seed);
    let disk = engine::file_disk(&image, false);
    let master = open(disk, set.block_size, mirrors);
    let fs = Arc::clone(&master.shared.fs);
    let mut model = Model::new(&fs);
    model.tight = true;
    model.max_bytes = 3_000_000;
    for round in 0..rounds {
        let name = format!("ballast-{round}");
        let ballast = fs.create(ROOT, name.as_bytes(), &FILE);
        if let Ok(ballast) = &ballast {
            fs.hold(ballast.ino);
            fs.unlink(ROOT, name.as_bytes()).expect("removed");
            fill(&fs, ballast.ino, &mut rng, 100 << 10);
        }
        let mut history = Vec::new();
        for step in 0..150 {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                history.push(model.step(&fs, &mut rng));
                match rng.below(30) {
                    0 => drop(fs.sync().expect("synced")),
                    1 => drop(fs.commit_step(Duration::MAX / 2).expect("stepped")),
                    _ => {}
                }
            }));
            if let Err(panic) = done {
                eprintln!("{what}, round {round}, step {step}; before it:");
                for line in &history[history.len().saturating_sub(12)..] {
                    eprintln!("  {line}");
                }
                std::panic::resume_unwind(panic);
            }
        }
        model.assert_same(&fs);
        if let Ok(ballast) = ballast {
            fs.forget(ballast.ino, 1);
        }
        fs.sync().expect("synced");
    }
    assert!(model.refused > 0, "{what}: it was full");
    drop(fs);
    master.close().expect("closed");
    drop(master);
    e2fsck(&image).unwrap_or_else(|e| panic!("{what}: {e}"));
}

/// A full volume of 24 MiB with a mirror that never answers; all space is taken that `caller` may take.
fn filled(image: &std::path::Path, caller: Caller) -> (OpenMaster, Ino) {
    mke2fs(image, 24 << 20, &DEBIAN_12).expect("mke2fs");
    let master = open(engine::file_disk(image, false), 4096, 1);
    let fs = &master.shared.fs;
    let file = fs.create(ROOT, b"file", &FILE).expect("created").ino;
    let by = WriteFor {
        caller,
        ..WriteFor::default()
    };
    let mut at = 0;
    loop {
        match fs.write_as(file, at, &[7; 100_000], by) {
            Ok(done) => at += done as u64,
            Err(FsError::NoSpace) => break,
            Err(e) => panic!("{e}"),
        }
    }
    (master, file)
}

#[test]
fn a_user_leaves_the_reserve_and_want_of_space_for_him_cracks_no_mirror() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    let user = Caller {
        uid: 1000,
        gid: 1000,
    };
    let (master, file) = filled(&image, user);
    let fs = &master.shared.fs;
    let left = fs.statfs().expect("statfs");
    assert_eq!(left.bavail, 0);
    // mke2fs: a twentieth for the superuser; the kernel: a fiftieth for extent trees.
    let kept = 6144 / 20 + 6144 / 50;
    assert!((kept - 3..kept + 3).contains(&left.bfree), "{}", left.bfree);
    // Something waits for the mirror now, but would not be the user's if it did not.
    let small = fs
        .create(ROOT, b"small", &FILE)
        .expect("the superuser's")
        .ino;
    fs.write(small, 0, &[1; 4096]).expect("the superuser's");
    fs.unlink(ROOT, b"small").expect("removed");
    for caller in [
        user,
        Caller {
            uid: 65534,
            gid: 65534,
        },
    ] {
        let new = New {
            mode: 0o040_755,
            uid: caller.uid,
            gid: caller.gid,
            ..FILE
        };
        let refused = fs.create(ROOT, b"directory", &new);
        assert!(matches!(refused, Err(FsError::NoSpace)), "{refused:?}");
        let by = WriteFor {
            caller,
            ..WriteFor::default()
        };
        let refused = fs.write_as(file, 1 << 30, &[1; 40_000], by);
        assert!(matches!(refused, Err(FsError::NoSpace)), "{refused:?}");
        let mode = FallocMode::Allocate { keep_size: true };
        let refused = fs.fallocate_as(file, mode, 1 << 30, 4096, by);
        assert!(matches!(refused, Err(FsError::NoSpace)), "{refused:?}");
    }
    let cracks: u64 = master
        .slots
        .all()
        .iter()
        .map(|s| s.state.lock().cracks)
        .sum();
    assert_eq!(cracks, 0, "no mirror was given up for it");
    // Root may take the reserve, and nobody what is kept for trees.
    let mode = FallocMode::Allocate { keep_size: true };
    fs.fallocate(file, mode, 1 << 30, 300 * 4096)
        .expect("the reserve");
    let refused = fs.fallocate(file, mode, 1 << 31, 100 * 4096);
    assert!(matches!(refused, Err(FsError::NoSpace)), "{refused:?}");
    assert!(fs.statfs().expect("statfs").bfree >= 6144 / 50);
    master.close().expect("closed");
    drop(master);
    e2fsck(&image).expect("clean");
}

#[test]
fn what_the_kernel_writes_back_is_written_or_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    let (master, file) = filled(&image, Caller::default());
    let fs = &master.shared.fs;
    fs.create(ROOT, b"gap", &FILE).expect("created");
    let size = fs.getattr(file).expect("there").size;
    let change = SetAttr {
        size: Some(size - 200_000),
        ..SetAttr::default()
    };
    fs.setattr(file, &change).expect("cut");
    let other = fs.create(ROOT, b"other", &FILE).expect("created").ino;
    let by = WriteFor {
        writeback: true,
        ..WriteFor::default()
    };
    // The kernel does not look at the length that was written: less than all of it, silently, was data lost.
    let refused = fs.write_as(other, 0, &[5; 1 << 20], by);
    assert!(matches!(refused, Err(FsError::NoSpace)), "{refused:?}");
    let written = fs.write_as(other, 0, &[5; 40_000], by);
    assert_eq!(written.expect("there is room for it"), 40_000);
    master.close().expect("closed");
    drop(master);
    e2fsck(&image).expect("clean");
}

#[test]
fn a_mirror_that_never_answers_fails_no_write_on_a_full_volume() {
    let seeds = match std::env::var("TIGHT_SEEDS") {
        Ok(n) => n.parse().expect("a number"),
        Err(_) => 8,
    };
    let sets = ["debian-12-1k", "debian-12", "no-csum", "upstream-1k"];
    for seed in 0..seeds {
        let name = sets[seed as usize % sets.len()];
        let set = FEATURE_SETS.iter().find(|set| set.name == name);
        let mib = [16, 24, 32, 48][(seed / 4) as usize % 4];
        full_most_of_the_time(
            set.expect("a set"),
            7000 + seed,
            mib,
            6,
            1 + seed as usize % 2,
        );
    }
}
