//! Where requests wait for the disk: fsync and its kin are answered from threads of their own, so that the threads that
//! take requests never wait for a flush. Requests that come while a commit runs share the next one.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use fuser::{Notifier, ReplyEmpty};
use parking_lot::Mutex;

use crate::fs::Fs;
use crate::fuse::convert::errno;
use crate::fuse::space;
use crate::units::Ino;

/// Two: one waits for the disk while the other answers those that are already covered.
const THREADS: usize = 2;

/// A request that waits.
pub struct Waiting {
    /// Which file; all of them for none.
    pub ino: Ino,
    /// Whether the data alone will do.
    pub datasync: bool,
    /// Whom to answer.
    pub reply: ReplyEmpty,
}

/// The threads that wait for the disk. They end when this is dropped; the kernel bounds what is queued.
#[derive(Debug)]
pub struct Syncer {
    queue: Option<Sender<Waiting>>,
    threads: Vec<JoinHandle<()>>,
}

impl Syncer {
    /// Starts the threads.
    pub fn start(fs: &Arc<Fs>, kernel: &Arc<OnceLock<Notifier>>) -> Syncer {
        let (queue, work) = channel();
        let work = Arc::new(Mutex::new(work));
        let mut threads = Vec::new();
        for _ in 0..THREADS {
            let work = Arc::clone(&work);
            let (fs, kernel) = (Arc::clone(fs), Arc::clone(kernel));
            let spawned = std::thread::Builder::new()
                .name("fsync".to_string())
                .spawn(move || run(&work, &fs, &kernel));
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(error) => tracing::error!(%error, "no thread for fsync"),
            }
        }
        Syncer {
            queue: Some(queue),
            threads,
        }
    }

    /// Queues a request.
    pub fn wait(&self, waiting: Waiting) {
        let unsent = match &self.queue {
            Some(queue) => queue.send(waiting).err().map(|unsent| unsent.0),
            None => Some(waiting),
        };
        if let Some(waiting) = unsent {
            waiting.reply.error(fuser::Errno::EIO);
        }
    }
}

impl Drop for Syncer {
    /// Waits for its threads: whoever unmounts may open the volume again at once.
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn run(work: &Mutex<Receiver<Waiting>>, fs: &Fs, kernel: &OnceLock<Notifier>) {
    loop {
        let next = work.lock().recv();
        let Ok(waiting) = next else {
            return;
        };
        let synced = fs.fsync(waiting.ino, waiting.datasync);
        space::tell(fs, kernel, waiting.ino);
        match synced {
            Ok(txid) => fs.when_durable(txid, Box::new(move || waiting.reply.ok())),
            Err(error) => waiting.reply.error(errno(&error)),
        }
    }
}
