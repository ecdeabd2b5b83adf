//! What the kernel shows of the space that a file takes (`st_blocks`). With the writeback cache it keeps attributes for ever
//! and forgets this one by itself only when a file is closed, so it is told when a write or an attribute changed it: at
//! once where somebody waits for an answer about that file (fsync, setxattr), otherwise within a second.
//!
//! A notice costs the kernel 20 us and the next stat a request. So those that nobody waits for are gathered, sent only if
//! nobody has asked since, and bounded in number: what does not fit waits for the file's next write, fsync or close.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::Notifier;

use crate::fs::Fs;
use crate::fuse::convert::node;
use crate::units::Ino;

/// Files that may wait to be told of.
const QUEUE: usize = 4096;
/// How long they are gathered.
const GATHER: Duration = Duration::from_millis(500);
/// How many are told of at the end of that, at most.
const AT_ONCE: usize = 256;

/// Makes the kernel ask for the attributes of `ino` again if the space that it takes has changed. For a thread that answers
/// a request about that file: the kernel can not be letting go of it then, so this waits for nothing.
pub fn tell(fs: &Fs, kernel: &OnceLock<Notifier>, ino: Ino) {
    if !fs.take_blocks_changed(ino) {
        return;
    }
    if let Some(kernel) = kernel.get()
        // A negative offset: the attributes only, no page.
        && let Err(error) = kernel.inval_inode(node(ino), -1, 0)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!(%error, %ino, "the kernel did not take a notice");
    }
}

/// The thread that tells of files that nobody waits for. Of its own, because the kernel may wait for a write in flight
/// before it takes a notice. Ends when this is dropped.
#[derive(Debug)]
pub struct Space {
    queue: Option<SyncSender<Ino>>,
    thread: Option<JoinHandle<()>>,
}

impl Space {
    /// Starts the thread; `kernel` is set once the volume is mounted.
    pub fn start(fs: &Arc<Fs>, kernel: &Arc<OnceLock<Notifier>>) -> Space {
        let (queue, work) = sync_channel(QUEUE);
        let (fs, kernel) = (Arc::clone(fs), Arc::clone(kernel));
        let thread = std::thread::Builder::new()
            .name("space".to_string())
            .spawn(move || run(&work, &fs, &kernel))
            .inspect_err(|error| tracing::error!(%error, "no thread for notices"))
            .ok();
        Space {
            queue: Some(queue),
            thread,
        }
    }

    /// A file was written.
    pub fn written(&self, ino: Ino) {
        if let Some(queue) = &self.queue {
            let _ = queue.try_send(ino);
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(work: &Receiver<Ino>, fs: &Fs, kernel: &OnceLock<Notifier>) {
    while let Ok(first) = work.recv() {
        let mut files = HashSet::from([first]);
        let until = Instant::now() + GATHER;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match work.recv_timeout(left) {
                Ok(ino) if files.len() < QUEUE => drop(files.insert(ino)),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        for ino in files.into_iter().take(AT_ONCE) {
            tell(fs, kernel, ino);
        }
    }
}
