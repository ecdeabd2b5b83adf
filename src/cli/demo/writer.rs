//! What writes on the master's mount during a demonstration.
//!
//! Owns the files it makes there. Every write is followed by an fsync whose time is taken.

use super::super::Failed;
use super::interrupt::Interrupt;
use super::steps::SMALL;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two small files of the writer beside a first copy.
const REST: Duration = Duration::from_millis(10);

/// What was written, and how long the longest fsync took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// Files.
    pub files: u64,
    /// Creating, writing and making durable one of them, at most.
    pub slowest: Duration,
}

/// Replaces a file's contents and makes them durable.
pub fn write_durably(path: &Path, contents: &[u8]) -> Result<(), Failed> {
    put(path, contents).map_err(|e| Failed::here(path.display(), e))
}

fn put(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

impl Written {
    fn add(&mut self, dir: &Path) -> io::Result<()> {
        let began = Instant::now();
        let n = self.files;
        put(&dir.join(format!("{n:04}")), &[n as u8; SMALL])?;
        self.files += 1;
        self.slowest = self.slowest.max(began.elapsed());
        Ok(())
    }
}

/// Writes `count` small files into a new directory, each made durable.
pub fn write_files(dir: &Path, count: u64, interrupt: &Interrupt) -> Result<Written, Failed> {
    let failed = |e: io::Error| Failed::here(dir.display(), e);
    std::fs::create_dir(dir).map_err(failed)?;
    let mut written = Written::default();
    for _ in 0..count {
        interrupt.check()?;
        written.add(dir).map_err(failed)?;
    }
    Ok(written)
}

/// Writes over a file from its start, in place, and makes it durable. `turn` makes each time's bytes different.
pub fn overwrite(path: &Path, bytes: u64, turn: u8) -> Result<(), Failed> {
    let write = || {
        let options = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path);
        let mut file = options?;
        let mut chunk = vec![0_u8; 1 << 20];
        let mut left = bytes as usize;
        let mut n = 0_usize;
        while left > 0 {
            let len = left.min(chunk.len());
            for (i, byte) in chunk[..len].iter_mut().enumerate() {
                *byte = (i >> 8) as u8 ^ n as u8 ^ turn.wrapping_mul(0x5b);
            }
            file.write_all(&chunk[..len])?;
            left -= len;
            n += 1;
        }
        file.sync_all()
    };
    write().map_err(|e: io::Error| Failed::here(path.display(), e))
}

/// Writes small files until it is stopped.
#[derive(Debug)]
pub struct LiveWriter {
    stop: Arc<AtomicBool>,
    dir: PathBuf,
    thread: Option<JoinHandle<io::Result<Written>>>,
}

impl LiveWriter {
    /// Starts to write into a new directory.
    pub fn start(dir: PathBuf) -> Result<LiveWriter, Failed> {
        let failed = |e: io::Error| Failed::here(dir.display(), e);
        std::fs::create_dir(&dir).map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (stop, dir) = (Arc::clone(&stop), dir.clone());
            let work = move || {
                let mut written = Written::default();
                while !stop.load(Ordering::SeqCst) {
                    written.add(&dir)?;
                    std::thread::sleep(REST);
                }
                Ok(written)
            };
            let thread = std::thread::Builder::new().name("writer".to_owned());
            thread.spawn(work).map_err(failed)?
        };
        Ok(LiveWriter {
            stop,
            dir,
            thread: Some(thread),
        })
    }

    /// Ends it; what it wrote.
    pub fn stop(mut self) -> Result<Written, Failed> {
        self.stop.store(true, Ordering::SeqCst);
        let joined = self.thread.take().and_then(|t| t.join().ok());
        let written = joined.unwrap_or_else(|| Err(io::Error::other("the writer panicked")));
        written.map_err(|e| Failed::here(self.dir.display(), e))
    }
}

impl Drop for LiveWriter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
