//! The multiple-mount protection: who else has the volume is found out by watching, not by the time of day.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lockstepfs::fs::{FsError, FsOptions, FsRole, New};
use lockstepfs::io::sim::SimClock;
use lockstepfs::io::{Clock, Disk, Timespec};

use crate::engine::{self, ROOT};
use crate::testkit::{FEATURE_SETS, e2fsck, mke2fs, run};

const START: Timespec = Timespec {
    secs: 1_800_000_000,
    nanos: 0,
};

/// A clock during whose sleep another host refreshes its claim, as often as it does.
#[derive(Debug)]
struct Busy {
    inner: SimClock,
    disk: Arc<dyn Disk>,
    offset: u64,
}

impl Clock for Busy {
    fn now(&self) -> Timespec {
        self.inner.now()
    }
    fn monotonic(&self) -> Duration {
        self.inner.monotonic()
    }
    fn sleep(&self, time: Duration) {
        refresh(&*self.disk, self.offset);
        self.inner.sleep(time);
    }
}

/// Another host's next sequence number.
fn refresh(disk: &dyn Disk, offset: u64) {
    let mut block = vec![0; 1024];
    disk.read_at(&mut block, offset).expect("read");
    let seq = u32::from_le_bytes(block[4..8].try_into().expect("four")) % 1000 + 1;
    block[4..8].copy_from_slice(&seq.to_le_bytes());
    block[16..28].copy_from_slice(b"other-host\0\0");
    disk.write_at(&block, offset).expect("written");
}

fn with(clock: Arc<dyn Clock>) -> FsOptions {
    FsOptions {
        clock,
        ..engine::options(FsRole::Master)
    }
}

fn said(image: &Path, field: &str) -> String {
    let text = run("dumpe2fs", &["-h", &image.to_string_lossy()]).expect("dumpe2fs");
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with(field));
    let value = line.and_then(|line| line.split(':').nth(1));
    value
        .unwrap_or_else(|| panic!("no {field}: {text}"))
        .trim()
        .to_string()
}

#[test]
fn a_volume_that_may_be_open_elsewhere_is_watched_before_it_is_claimed() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    // Without checksums, so that another host's block is easily made here.
    let args = ["-q", "-t", "ext4", "-b", "4096", "-O", "mmp,^metadata_csum"];
    let path = image.to_string_lossy().into_owned();
    run("mke2fs", &[&args[..], &[path.as_str(), "32M"]].concat()).expect("mke2fs");
    let block: u64 = said(&image, "MMP block number").parse().expect("a number");
    let disk = engine::file_disk(&image, false);
    let volume = || engine::volume(vec![Arc::clone(&disk)], 4096);

    // Clean: at once.
    let clock = Arc::new(SimClock::new(START));
    let fs = engine::open_master_with(volume(), with(clock.clone())).expect("opens");
    assert_eq!(clock.monotonic(), Duration::ZERO);
    let new = New {
        mode: 0o100_644,
        ..New::default()
    };
    fs.create(ROOT, b"file", &new).expect("created");
    // Refreshed as often as the volume says.
    let claimed = said(&image, "mmp_sequence");
    clock.sleep(Duration::from_secs(6));
    fs.commit_step(clock.monotonic()).expect("stepped");
    assert_ne!(said(&image, "mmp_sequence"), claimed);
    // The process dies.
    drop(fs);
    assert!(!said(&image, "mmp_sequence").contains("ff4d4d50"));

    // Nobody changes the block, whatever the time of day is: ours after the time that the kernel waits.
    let clock = Arc::new(SimClock::new(START));
    let fs = engine::open_master_with(volume(), with(clock.clone())).expect("opens");
    assert_eq!(clock.monotonic(), Duration::from_secs(11));
    fs.close().expect("closed");
    drop(fs);
    let closed = said(&image, "mmp_sequence");
    assert!(closed.contains("ff4d4d50"), "{closed}");
    e2fsck(&image).expect("clean");

    // Somebody does: refused by name, and nothing is written.
    refresh(&*disk, block * 4096);
    let busy = Arc::new(Busy {
        inner: SimClock::new(START),
        disk: Arc::clone(&disk),
        offset: block * 4096,
    });
    let refused = engine::open_master_with(volume(), with(busy)).expect_err("in use");
    assert!(
        refused.to_string().contains("other-host has open"),
        "{refused}"
    );

    // Somebody takes the volume over while it is open here: nothing more is written.
    let clock = Arc::new(SimClock::new(START));
    let fs = engine::open_master_with(volume(), with(clock.clone())).expect("opens");
    refresh(&*disk, block * 4096);
    clock.sleep(Duration::from_secs(6));
    let lost = fs.commit_step(clock.monotonic());
    assert!(matches!(lost, Err(FsError::Aborted(_))), "{lost:?}");
    assert!(fs.create(ROOT, b"more", &new).is_err());
}

#[test]
fn the_block_of_the_protection_is_right_with_checksums_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    let set = FEATURE_SETS.iter().find(|set| set.name == "mmp");
    mke2fs(&image, 32 << 20, set.expect("a set")).expect("mke2fs");
    for _ in 0..2 {
        let fs = engine::open_image(&image, 4096);
        fs.close().expect("closed");
        drop(fs);
        e2fsck(&image).expect("clean");
    }
}
