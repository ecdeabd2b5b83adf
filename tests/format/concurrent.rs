//! What runs side by side: a reader is not held up by somebody else's fsync, and threads that write different files at once
//! leave a clean volume.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstepfs::fs::{Fs, New};
use lockstepfs::io::Disk;
use lockstepfs::io::file::{FileDisk, OpenMode};

use crate::engine::{self, ROOT};
use crate::testkit::{DEBIAN_12, Rng, e2fsck, mke2fs};

const FILE: u32 = 0o100_644;

/// A disk whose next flush says that it has begun and ends when it is told to.
#[derive(Debug)]
struct Stuck {
    inner: FileDisk,
    gate: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

impl Disk for Stuck {
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
        let gate = self.gate.lock().expect("unpoisoned").take();
        if let Some((begun, go_on)) = gate {
            begun.send(()).expect("the test listens");
            go_on.recv().expect("the test lets it go");
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

fn file(fs: &Fs, name: &str) -> lockstepfs::fs::Attr {
    let new = New {
        mode: FILE,
        ..New::default()
    };
    fs.create(ROOT, name.as_bytes(), &new).expect("created")
}

#[test]
fn a_read_completes_while_another_files_fsync_waits_for_its_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    mke2fs(&image, 32 << 20, &DEBIAN_12).expect("mke2fs");
    let mode = OpenMode {
        create_len: None,
        read_only: false,
    };
    let disk = Arc::new(Stuck {
        inner: FileDisk::open(&image, mode).expect("opened"),
        gate: Mutex::new(None),
    });
    let volume = engine::volume(vec![Arc::clone(&disk) as Arc<dyn Disk>], 4096);
    let fs = Arc::new(engine::open_master(volume).expect("the engine opens"));
    let one = file(&fs, "one");
    let other = file(&fs, "other");
    fs.write(one.ino, 0, b"one").expect("written");
    fs.write(other.ino, 0, &[7; 100_000]).expect("written");
    fs.sync().expect("synced");

    let (begun, has_begun) = channel();
    let (let_go, go_on) = channel();
    fs.write(one.ino, 0, b"two").expect("written");
    *disk.gate.lock().expect("unpoisoned") = Some((begun, go_on));
    let syncing = std::thread::spawn({
        let fs = Arc::clone(&fs);
        move || fs.fsync(one.ino, false).map(drop)
    });
    has_begun
        .recv_timeout(Duration::from_secs(20))
        .expect("the flush began");
    // Everything but a commit goes on: reading, also of what is being committed, looking up, changing.
    let (done, is_done) = channel();
    let worker = std::thread::spawn({
        let fs = Arc::clone(&fs);
        move || {
            let mut buf = vec![0; 100_000];
            assert_eq!(
                fs.read(other.ino, other.generation, 0, &mut buf)
                    .expect("read"),
                100_000
            );
            assert!(buf.iter().all(|b| *b == 7));
            let mut buf = [0; 8];
            assert_eq!(
                fs.read(one.ino, one.generation, 0, &mut buf).expect("read"),
                3
            );
            assert_eq!(&buf[..3], b"two");
            fs.lookup(ROOT, b"other").expect("found");
            fs.write(other.ino, 5, b"while it waits").expect("written");
            file(&fs, "third");
            done.send(()).expect("the test listens");
        }
    });
    is_done
        .recv_timeout(Duration::from_secs(20))
        .expect("requests complete while the disk is stuck");
    assert!(!syncing.is_finished(), "fsync waits for the disk");
    let_go.send(()).expect("it listens");
    syncing.join().expect("no panic").expect("synced");
    worker.join().expect("no panic");
    fs.close().expect("closed");
    drop(fs);
    drop(disk);
    e2fsck(&image).expect("clean");
}

#[test]
fn threads_that_write_different_files_leave_what_each_wrote() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    mke2fs(&image, 128 << 20, &DEBIAN_12).expect("mke2fs");
    let fs = Arc::new(engine::open_image(&image, 4096));
    let threads: Vec<_> = (0..4_u64)
        .map(|thread| {
            let fs = Arc::clone(&fs);
            std::thread::spawn(move || {
                let mut rng = Rng(thread);
                for round in 0..30 {
                    let name = format!("file-{thread}-{round}");
                    let attr = file(&fs, &name);
                    let mut bytes = Vec::new();
                    for _ in 0..6 {
                        let len = 1 + rng.below(120_000) as usize;
                        let at = rng.below(bytes.len() as u64 + 1) as usize;
                        let data = rng.bytes(len);
                        fs.write(attr.ino, at as u64, &data).expect("written");
                        if bytes.len() < at + len {
                            bytes.resize(at + len, 0);
                        }
                        bytes[at..at + len].copy_from_slice(&data);
                        if rng.chance(20) {
                            fs.fsync(attr.ino, rng.chance(50)).expect("synced");
                        }
                    }
                    let attr = fs.getattr(attr.ino).expect("it is there");
                    assert!(
                        engine::contents(&fs, &attr).expect("read") == bytes,
                        "{name}"
                    );
                    if rng.chance(50) {
                        fs.unlink(ROOT, name.as_bytes()).expect("removed");
                    }
                }
            })
        })
        .collect();
    // The timer's work runs beside them.
    while threads.iter().any(|thread| !thread.is_finished()) {
        fs.commit_step(Duration::MAX / 2).expect("stepped");
        std::thread::yield_now();
    }
    for thread in threads {
        thread.join().expect("no panic");
    }
    fs.close().expect("closed");
    drop(fs);
    e2fsck(&image).expect("clean");
}
