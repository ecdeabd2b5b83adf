//! An image, opened as a master, mounted in this process. Whatever happens, the mount and its files go away.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use lockstepfs::fs::{Fs, FsOptions, FsRole, How, open_volume};
use lockstepfs::fuse::{Mount, MountOptions};
use lockstepfs::io::file::{FileDisk, OpenMode, SystemClock, SystemRandom};
use lockstepfs::io::{Clock, Disk, Random};
use lockstepfs::units::{Generation, Txid};
use lockstepfs::volume::Volume;
use parking_lot::Mutex;

use crate::testkit::tree::{Compare, Tree};
use crate::testkit::{
    DEBIAN_12, FEATURE_SETS, FeatureSet, LoopMount, e2fsck, mke2fs, need_fuse, need_loop, run_for,
    said, tree_digest,
};

pub const MIB: u64 = 1 << 20;

/// Longest pause between two looks at the timer, so that an end is noticed soon.
const TICK: Duration = Duration::from_millis(50);

/// What a mounted test needs: root, FUSE, loop devices.
#[must_use]
pub fn possible() -> bool {
    need_fuse() && need_loop()
}

/// A set of features by its name.
pub fn set(name: &str) -> &'static FeatureSet {
    let found = FEATURE_SETS.iter().find(|set| set.name == name);
    found.unwrap_or_else(|| panic!("there is no set {name}"))
}

/// A file as a disk whose next flush can be held up.
#[derive(Debug)]
pub struct Slow {
    inner: FileDisk,
    gate: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

impl Slow {
    /// The next flush says on `begun` that it has begun, and ends when `go_on` is told.
    pub fn hold_next_flush(&self, begun: Sender<()>, go_on: Receiver<()>) {
        *self.gate.lock() = Some((begun, go_on));
    }
}

impl Disk for Slow {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buf, offset)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(data, offset)
    }
    fn flush(&self) -> io::Result<()> {
        let gate = self.gate.lock().take();
        if let Some((begun, go_on)) = gate {
            let _ = begun.send(());
            let _ = go_on.recv();
        }
        self.inner.flush()
    }
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.zero(offset, len)
    }
    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.preallocate(offset, len)
    }
    fn is_hole(&self, offset: u64, len: u64) -> bool {
        self.inner.is_hole(offset, len)
    }
    fn name(&self) -> String {
        self.inner.name()
    }
    fn changed_at(&self) -> Option<i128> {
        self.inner.changed_at()
    }
}

/// An open, mounted volume.
pub struct Live {
    pub fs: Arc<Fs>,
    pub disk: Arc<Slow>,
    mount: Option<Mount>,
    stop: Arc<AtomicBool>,
    timer: Option<JoinHandle<()>>,
}

impl Live {
    /// Opens an image as a master and mounts it.
    pub fn open(image: &Path, dir: &Path, mirrored: bool) -> Live {
        let mode = OpenMode {
            create_len: None,
            read_only: false,
        };
        let inner = FileDisk::open(image, mode).expect("the image opens");
        let block_size = lockstepfs::fs::block_size_of(&inner).expect("it has a superblock");
        let disk = Arc::new(Slow {
            inner,
            gate: Mutex::new(None),
        });
        let parts = vec![Arc::clone(&disk) as Arc<dyn Disk>];
        let volume = Arc::new(Volume::new(parts, block_size).expect("a volume"));
        let opened = open_volume(volume, Txid(0), How::ReadWrite).expect("the volume opens");
        let first = opened.journal.last_committed().next();
        let generation = Generation(SystemRandom.u128());
        opened
            .journal
            .begin_segment(generation, first)
            .expect("a segment");
        let clock = Arc::new(SystemClock::new());
        let options = FsOptions {
            role: FsRole::Master,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            random: Arc::new(SystemRandom),
            cache_bytes: 32 << 20,
            commit_interval: Duration::from_secs(1),
        };
        let fs = Arc::new(Fs::open(opened, options).expect("the engine opens"));
        fs.set_mirrored(mirrored).expect("the rule is changed");
        let stop = Arc::new(AtomicBool::new(false));
        let timer = std::thread::spawn({
            let (fs, stop) = (Arc::clone(&fs), Arc::clone(&stop));
            move || tick(&fs, &*clock, &stop)
        });
        let mut live = Live {
            fs: Arc::clone(&fs),
            disk,
            mount: None,
            stop,
            timer: Some(timer),
        };
        let options = MountOptions {
            volume: "test".to_string(),
            read_only: false,
            mirror: false,
            threads: 2,
            allow_other: true,
        };
        live.mount = Some(Mount::new(fs, dir, &options).expect("it mounts"));
        live
    }

    /// The mount.
    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("mounted until it is closed")
    }

    fn stop_timer(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(timer) = self.timer.take() {
            timer.thread().unpark();
            let _ = timer.join();
        }
    }

    /// Unmounts and closes.
    pub fn close(mut self) {
        let mut mount = self.mount.take().expect("mounted until now");
        // A program that another thread is just starting holds what this process has open, until it runs.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while let Err((back, error)) = mount.unmount(false) {
            mount = back;
            if std::time::Instant::now() > until || !error.to_string().contains("busy") {
                drop(mount);
                panic!("{error}");
            }
            std::thread::yield_now();
        }
        self.stop_timer();
        self.fs.close().expect("the volume closes");
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Out of the tree even when the test failed.
        drop(self.mount.take());
        self.stop_timer();
    }
}

fn tick(fs: &Fs, clock: &dyn Clock, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let Ok(step) = fs.commit_step(clock.monotonic()) else {
            return;
        };
        let wait = step.next.saturating_sub(clock.monotonic()).min(TICK);
        if !wait.is_zero() {
            std::thread::park_timeout(wait);
        }
    }
}

/// An image and its mount.
pub struct Rig {
    // In this order they go: the mount before its directory.
    pub live: Live,
    pub image: PathBuf,
    mount_dir: PathBuf,
    dir: tempfile::TempDir,
}

impl Rig {
    /// A new image of `mib` MiB with Debian's features.
    pub fn new(mib: u64) -> Rig {
        Rig::with(&DEBIAN_12, mib, false)
    }

    /// A new image with these features; `mirrored`: overwrites go by value.
    pub fn with(set: &FeatureSet, mib: u64, mirrored: bool) -> Rig {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        mke2fs(&image, mib * MIB, set).expect("mke2fs");
        let mount_dir = dir.path().join("mnt");
        std::fs::create_dir(&mount_dir).expect("a mount point");
        std::fs::create_dir(dir.path().join("scratch")).expect("a directory");
        let live = Live::open(&image, &mount_dir, mirrored);
        Rig {
            live,
            image,
            mount_dir,
            dir,
        }
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.mount_dir
    }

    /// A path on it.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.mount_dir.join(relative)
    }

    /// A directory that is not on it.
    pub fn scratch(&self) -> PathBuf {
        self.dir.path().join("scratch")
    }

    /// Runs a program to its end, within `seconds`; what it printed.
    #[track_caller]
    pub fn tool(&self, seconds: u32, name: &str, args: &[&str]) -> String {
        match run_for(seconds, name, args) {
            Ok(out) if out.status.success() => said(&out),
            Ok(out) => panic!("{name} {args:?}: {}:\n{}", out.status, last_lines(&out, 60)),
            Err(error) => panic!("{error}"),
        }
    }

    /// Writes what the kernel still holds back to the engine.
    pub fn sync(&self) {
        let dir = std::fs::File::open(self.dir()).expect("opened");
        rustix::fs::syncfs(&dir).expect("synced");
    }

    /// Everything on it.
    pub fn tree(&self) -> Tree {
        self.sync();
        tree_digest(self.dir()).expect("listed")
    }

    /// Unmounts, closes, has the image checked, and compares what the kernel's ext4 sees with what the mount showed.
    pub fn finish(self) {
        let before = self.tree();
        let Rig {
            live, image, dir, ..
        } = self;
        live.close();
        judge(&image, &before);
        drop(dir);
    }

    /// As `finish`, for trees that are too large to be read twice: without the comparison.
    pub fn finish_unread(self) {
        let Rig {
            live, image, dir, ..
        } = self;
        live.close();
        e2fsck(&image).expect("clean");
        drop(dir);
    }
}

/// e2fsck finds nothing, and the kernel sees what the mount showed.
pub fn judge(image: &Path, before: &Tree) {
    e2fsck(image).expect("clean");
    let kernel = LoopMount::read_only(image).expect("the kernel mounts it");
    let tree = tree_digest(kernel.dir()).expect("listed");
    kernel.unmount().expect("unmounted");
    before.assert_same(&tree, Compare::ALL);
}

/// The end of what a program printed.
pub fn last_lines(out: &Output, count: usize) -> String {
    let text = said(out);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
