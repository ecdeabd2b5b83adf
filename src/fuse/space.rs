//! What the kernel shows of the space that a file takes (`st_blocks`). With the writeback cache it keeps attributes for ever
//! and forgets this one by itself only when a file is closed, so it is told when a write or an attribute changed it: at
//! once where somebody waits for an answer about that file (fsync, setxattr), otherwise within a second.
//!
//! A notice costs the kernel 20 us, and the file's next write two requests (attributes, and whether it has capabilities).
//! So those that nobody waits for are gathered, sent only if nobody has asked since, and bounded in number: what does not
//! fit waits for the file's next write, fsync or close. And where the last who asked was a write, not a program, a program
//! that appends and syncs all day is all there is: its notices are gathered, too.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::Notifier;
use parking_lot::{Condvar, Mutex};

use crate::fs::Fs;
use crate::fuse::convert::node;
use crate::units::Ino;

/// Files that are remembered at once, of either kind.
const FILES: usize = 4096;
/// How long they are gathered.
const GATHER: Duration = Duration::from_millis(500);
/// How many are told of at the end of that, at most.
const AT_ONCE: usize = 256;

/// Who tells the kernel.
pub struct Space {
    fs: Arc<Fs>,
    /// Set once the volume is mounted.
    kernel: Arc<OnceLock<Notifier>>,
    files: Mutex<Files>,
    changed: Condvar,
}

#[derive(Default)]
struct Files {
    /// Written since the last round.
    gathered: HashSet<Ino>,
    /// Those that only writes have asked about since the kernel was told.
    unseen: HashSet<Ino>,
    ended: bool,
}

impl Space {
    /// For the mount of `fs`.
    pub fn new(fs: &Arc<Fs>, kernel: &Arc<OnceLock<Notifier>>) -> Arc<Space> {
        Arc::new(Space {
            fs: Arc::clone(fs),
            kernel: Arc::clone(kernel),
            files: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// A file was written, and nobody waits for an answer.
    pub fn written(&self, ino: Ino) {
        let mut files = self.files.lock();
        if files.gathered.len() < FILES && files.gathered.insert(ino) && files.gathered.len() == 1 {
            self.changed.notify_one();
        }
    }

    /// The kernel asks for the attributes of `ino`: for a program, or for a write of its own (`by_write`).
    pub fn asked(&self, ino: Ino, by_write: bool) {
        self.fs.take_blocks_changed(ino);
        let mut files = self.files.lock();
        if !by_write {
            files.unseen.remove(&ino);
            return;
        }
        if files.unseen.len() == FILES {
            // They are told at once, once more.
            files.unseen.clear();
        }
        files.unseen.insert(ino);
    }

    /// A file was synced. For a thread that answers that request.
    pub fn synced(&self, ino: Ino) {
        let unseen = self.files.lock().unseen.contains(&ino);
        match unseen {
            true => self.written(ino),
            false => self.tell(ino),
        }
    }

    /// Makes the kernel ask for the attributes of `ino` again if the space that it takes has changed. For a thread that
    /// answers a request about that file: the kernel can not be letting go of it then, so this waits for nothing.
    pub fn tell(&self, ino: Ino) {
        if !self.fs.take_blocks_changed(ino) {
            return;
        }
        if let Some(kernel) = self.kernel.get()
            // A negative offset: the attributes only, no page.
            && let Err(error) = kernel.inval_inode(node(ino), -1, 0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(%error, %ino, "the kernel did not take a notice");
        }
    }

    /// Tells of files that nobody waits for, until the end.
    fn run(&self) {
        let mut files = self.files.lock();
        while !files.ended {
            if files.gathered.is_empty() {
                self.changed.wait(&mut files);
                continue;
            }
            let until = Instant::now() + GATHER;
            while !files.ended && !self.changed.wait_until(&mut files, until).timed_out() {}
            if files.ended {
                return;
            }
            let gathered = std::mem::take(&mut files.gathered);
            drop(files);
            for ino in gathered.into_iter().take(AT_ONCE) {
                self.tell(ino);
            }
            files = self.files.lock();
        }
    }
}

/// The thread that tells of files that nobody waits for. Of its own, because the kernel may wait for a write in flight
/// before it takes a notice. Ends when this is dropped.
pub struct Gatherer {
    space: Arc<Space>,
    thread: Option<JoinHandle<()>>,
}

impl Gatherer {
    /// Starts the thread.
    pub fn start(space: &Arc<Space>) -> Gatherer {
        let runs = Arc::clone(space);
        let thread = std::thread::Builder::new()
            .name("space".to_string())
            .spawn(move || runs.run())
            .inspect_err(|error| tracing::error!(%error, "no thread for notices"))
            .ok();
        Gatherer {
            space: Arc::clone(space),
            thread,
        }
    }
}

impl Drop for Gatherer {
    fn drop(&mut self) {
        self.space.files.lock().ended = true;
        self.space.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
