//! Where requests wait for the disk: fsync and its kin are answered from threads of their own, so that the threads that
//! take requests never wait for a flush. Requests that come while a commit runs share the next one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use fuser::ReplyEmpty;
use parking_lot::Mutex;

use crate::fs::Fs;
use crate::fuse::convert::errno;
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
    queue: Sender<Waiting>,
}

impl Syncer {
    /// Starts the threads.
    pub fn start(fs: &Arc<Fs>) -> Syncer {
        let (queue, work) = channel();
        let work = Arc::new(Mutex::new(work));
        for _ in 0..THREADS {
            let work = Arc::clone(&work);
            let fs = Arc::clone(fs);
            let spawned = std::thread::Builder::new()
                .name("fsync".to_string())
                .spawn(move || run(&work, &fs));
            if let Err(error) = spawned {
                tracing::error!(%error, "no thread for fsync");
            }
        }
        Syncer { queue }
    }

    /// Queues a request.
    pub fn wait(&self, waiting: Waiting) {
        if let Err(unsent) = self.queue.send(waiting) {
            unsent.0.reply.error(fuser::Errno::EIO);
        }
    }
}

fn run(work: &Mutex<Receiver<Waiting>>, fs: &Fs) {
    loop {
        let next = work.lock().recv();
        let Ok(waiting) = next else {
            return;
        };
        match fs.fsync(waiting.ino, waiting.datasync) {
            Ok(_) => waiting.reply.ok(),
            Err(error) => waiting.reply.error(errno(&error)),
        }
    }
}
