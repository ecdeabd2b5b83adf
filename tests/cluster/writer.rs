//! A writer that remembers what was acknowledged: every fsync that returned is a promise, to be checked afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cluster::sync_dir;
use crate::testkit::Rng;

const RECORD: usize = 4096;
/// Blocks that are overwritten in place.
const SLOTS: u64 = 64;

/// What was acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged {
    /// Files that are there: number -> length.
    files: BTreeMap<u64, usize>,
    /// Files that are gone.
    removed: BTreeSet<u64>,
    /// The file whose removal was begun and not acknowledged.
    doubtful: Option<u64>,
    /// The version of the file that is replaced by renaming.
    current: u64,
    /// Records appended.
    records: u64,
    /// Versions of the blocks that are overwritten in place.
    slots: BTreeMap<u64, u64>,
    /// Operations.
    pub operations: u64,
    /// The longest that one of them took.
    pub worst: Duration,
}

fn content(kind: u64, number: u64, len: usize) -> Vec<u8> {
    Rng(kind << 48 ^ number).bytes(len)
}

fn slot(version: u64) -> Vec<u8> {
    let mut bytes = version.to_le_bytes().to_vec();
    bytes.extend(content(2, version, RECORD - 8));
    bytes
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

impl Acknowledged {
    /// One operation in `dir`, to its acknowledgement.
    fn operate(&mut self, dir: &Path, rng: &mut Rng) -> io::Result<()> {
        let n = self.operations;
        let began = Instant::now();
        match n % 6 {
            0 | 1 => {
                let len = rng.below(60_000) as usize;
                write_new(&dir.join(format!("file{n}")), &content(0, n, len))?;
                File::open(dir)?.sync_all()?;
                self.files.insert(n, len);
            }
            2 => {
                let temporary = dir.join("next");
                write_new(&temporary, &slot(n))?;
                std::fs::rename(&temporary, dir.join("current"))?;
                File::open(dir)?.sync_all()?;
                self.current = n;
            }
            3 => {
                let file = File::options()
                    .append(true)
                    .create(true)
                    .open(dir.join("records"))?;
                // A record may be there without having been acknowledged: by its place, not at the end.
                file.write_all_at_end(&content(1, self.records, RECORD), self.records)?;
                file.sync_data()?;
                self.records += 1;
            }
            4 => {
                let which = rng.below(SLOTS);
                let file = File::options()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(dir.join("slots"))?;
                file.write_all_at(&slot(n), which * RECORD as u64)?;
                file.sync_all()?;
                self.slots.insert(which, n);
            }
            _ => {
                // Bulk that nobody waits for, and a removal.
                std::fs::write(dir.join(format!("loose{}", n % 24)), rng.bytes(400_000))?;
                if self.files.len() > 40 {
                    let oldest = *self.files.keys().next().expect("there are 40");
                    self.files.remove(&oldest);
                    self.doubtful = Some(oldest);
                    std::fs::remove_file(dir.join(format!("file{oldest}")))?;
                    File::open(dir)?.sync_all()?;
                    self.doubtful = None;
                    self.removed.insert(oldest);
                }
            }
        }
        self.operations += 1;
        self.worst = self.worst.max(began.elapsed());
        Ok(())
    }

    /// What of it is not there; nothing, if every promise was kept.
    pub fn broken(&self, dir: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        let mut expect = |name: String, expected: &[u8]| match std::fs::read(dir.join(&name)) {
            Ok(bytes) if bytes == expected => {}
            Ok(bytes) => {
                let at = bytes.iter().zip(expected).position(|(a, b)| a != b);
                lines.push(format!(
                    "{name}: {} bytes of {}, first difference at {at:?}",
                    bytes.len(),
                    expected.len()
                ));
            }
            Err(e) => lines.push(format!("{name}: {e}")),
        };
        for (n, len) in &self.files {
            expect(format!("file{n}"), &content(0, *n, *len));
        }
        for n in &self.removed {
            if dir.join(format!("file{n}")).exists() {
                lines.push(format!("file{n}: is back"));
            }
        }
        if self.current > 0 {
            match std::fs::read(dir.join("current")) {
                Ok(bytes) if version(&bytes).is_some_and(|v| v >= self.current) => {}
                other => lines.push(format!(
                    "current {}: {:?}",
                    self.current,
                    other.map(|b| version(&b))
                )),
            }
        }
        let records = std::fs::read(dir.join("records")).unwrap_or_default();
        for n in 0..self.records {
            let at = n as usize * RECORD;
            if records.get(at..at + RECORD) != Some(&content(1, n, RECORD)[..]) {
                lines.push(format!(
                    "record {n} of {}: {} bytes",
                    self.records,
                    records.len()
                ));
                break;
            }
        }
        let slots = std::fs::read(dir.join("slots")).unwrap_or_default();
        for (which, acknowledged) in &self.slots {
            let at = *which as usize * RECORD;
            let found = slots.get(at..at + RECORD).and_then(version);
            if found.is_none_or(|v| v < *acknowledged) {
                lines.push(format!("slot {which}: {found:?}, not {acknowledged}"));
            }
        }
        lines
    }

    /// Fails the test unless every promise was kept.
    #[track_caller]
    pub fn assert_kept(&self, dir: &Path) {
        let lines = self.broken(dir);
        assert!(
            lines.is_empty(),
            "{}: {} of {} operations lost:\n{}",
            dir.display(),
            lines.len(),
            self.operations,
            lines[..lines.len().min(20)].join("\n")
        );
    }
}

/// The version in a whole block; none if the block is torn.
fn version(bytes: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (bytes == slot(number)).then_some(number)
}

trait AtRecord {
    fn write_all_at_end(&self, bytes: &[u8], record: u64) -> io::Result<()>;
}

impl AtRecord for File {
    fn write_all_at_end(&self, bytes: &[u8], record: u64) -> io::Result<()> {
        // An append that failed in the middle, or was never acknowledged, is cut off.
        self.set_len(record * RECORD as u64)?;
        (&*self).write_all(bytes)
    }
}

/// A thread that writes until it is told to stop, or until a call fails.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    operations: Arc<AtomicU64>,
    thread: Option<JoinHandle<(Acknowledged, Option<io::Error>)>>,
}

impl Writer {
    /// Starts writing in a directory, which is made if it is not there.
    pub fn start(dir: PathBuf, seed: u64) -> Writer {
        Writer::go_on(dir, seed, Acknowledged::default())
    }

    /// One that rests after every operation.
    pub fn paced(dir: PathBuf, seed: u64, pause: Duration) -> Writer {
        Writer::run(dir, seed, Acknowledged::default(), pause)
    }

    /// Goes on from what was acknowledged before.
    pub fn go_on(dir: PathBuf, seed: u64, acknowledged: Acknowledged) -> Writer {
        Writer::run(dir, seed, acknowledged, Duration::ZERO)
    }

    fn run(dir: PathBuf, seed: u64, mut acknowledged: Acknowledged, pause: Duration) -> Writer {
        if !dir.exists() {
            std::fs::create_dir(&dir).unwrap();
            sync_dir(dir.parent().unwrap());
        }
        acknowledged.worst = Duration::ZERO;
        let stop = Arc::new(AtomicBool::new(false));
        let operations = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&operations));
        let thread = std::thread::spawn(move || {
            let mut rng = Rng(seed ^ acknowledged.operations);
            while !stopped.load(Ordering::Relaxed) {
                if let Err(e) = acknowledged.operate(&dir, &mut rng) {
                    return (acknowledged, Some(e));
                }
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(pause);
            }
            (acknowledged, None)
        });
        Writer {
            stop,
            operations,
            thread: Some(thread),
        }
    }

    /// Operations acknowledged since the start.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Waits until some more operations were acknowledged.
    #[track_caller]
    pub fn wait_for(&self, operations: u64, within: Duration) {
        let until = self.operations() + operations;
        let done = crate::testkit::wait_until(within, || self.operations() >= until);
        assert!(
            done,
            "the writer made {} of {until} operations",
            self.operations()
        );
    }

    /// Stops; no call may have failed.
    #[track_caller]
    pub fn stop(mut self) -> Acknowledged {
        let (acknowledged, error) = self.join();
        if let Some(e) = error {
            panic!("operation {}: {e}", acknowledged.operations);
        }
        acknowledged
    }

    /// The same, of a writer whose file system was killed.
    pub fn killed(mut self) -> Acknowledged {
        self.join().0
    }

    fn join(&mut self) -> (Acknowledged, Option<io::Error>) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("joined once");
        thread.join().expect("the writer does not panic")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Not joined: the file system may be gone with the cluster, or hang; the thread ends with its next call.
    }
}

#[test]
fn a_broken_promise_is_noticed() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = dir.path().join("writer");
    let writer = Writer::start(at.clone(), 1);
    writer.wait_for(400, Duration::from_secs(60));
    let acknowledged = writer.stop();
    acknowledged.assert_kept(&at);
    let file = acknowledged.files.keys().next().unwrap();
    let removed = acknowledged.removed.first().unwrap();
    std::fs::remove_file(at.join(format!("file{file}"))).unwrap();
    std::fs::write(at.join(format!("file{removed}")), b"").unwrap();
    std::fs::write(at.join("current"), slot(0)).unwrap();
    for name in ["records", "slots"] {
        let open = File::options().write(true).open(at.join(name)).unwrap();
        open.set_len(100).unwrap();
    }
    let broken = acknowledged.broken(&at).join("\n");
    for what in [
        &format!("file{file}:"),
        "is back",
        "current",
        "record 0",
        "slot",
    ] {
        assert!(broken.contains(what), "{what}: {broken}");
    }
    // And goes on where it ended.
    Writer::go_on(at, 2, acknowledged).stop();
}
