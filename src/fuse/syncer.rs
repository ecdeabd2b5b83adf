//! Where requests wait for the disk. One fsync at a time is done by the thread that took it, where there are others to take
//! requests; the rest are answered from threads of their own, so that those that take requests never all wait for a flush.
//! Requests that come while a commit runs share the next one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use fuser::ReplyEmpty;
use parking_lot::Mutex;

use crate::fs::Fs;
use crate::fuse::convert::errno;
use crate::fuse::space::Space;
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
pub struct Syncer {
    files: Arc<Files>,
    /// Held by a thread that takes requests while it waits for the disk; `None` where it is the only one.
    inline: Option<Mutex<()>>,
    queue: Option<Sender<Waiting>>,
    threads: Vec<JoinHandle<()>>,
}

struct Files {
    fs: Arc<Fs>,
    space: Arc<Space>,
}

impl Files {
    fn sync(&self, waiting: Waiting) {
        let synced = self.fs.fsync(waiting.ino, waiting.datasync);
        self.space.synced(waiting.ino);
        match synced {
            Ok(txid) => {
                let reply = waiting.reply;
                self.fs.when_durable(txid, Box::new(move || reply.ok()));
            }
            Err(error) => waiting.reply.error(errno(&error)),
        }
    }
}

impl Syncer {
    /// Starts the threads; `requests`: how many others take requests.
    pub fn start(fs: &Arc<Fs>, space: &Arc<Space>, requests: usize) -> Syncer {
        let files = Arc::new(Files {
            fs: Arc::clone(fs),
            space: Arc::clone(space),
        });
        let (queue, work) = channel();
        let work = Arc::new(Mutex::new(work));
        let mut threads = Vec::new();
        for _ in 0..THREADS {
            let work = Arc::clone(&work);
            let files = Arc::clone(&files);
            let spawned = std::thread::Builder::new()
                .name("fsync".to_string())
                .spawn(move || run(&work, &files));
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(error) => tracing::error!(%error, "no thread for fsync"),
            }
        }
        Syncer {
            files,
            inline: (requests > 1).then(Mutex::default),
            queue: Some(queue),
            threads,
        }
    }

    /// Takes a request.
    pub fn wait(&self, waiting: Waiting) {
        if let Some(_alone) = self.inline.as_ref().and_then(|inline| inline.try_lock()) {
            // Nobody has to be woken: a third of what an fsync costs beside its flushes.
            return self.files.sync(waiting);
        }
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

fn run(work: &Mutex<Receiver<Waiting>>, files: &Files) {
    loop {
        let next = work.lock().recv();
        let Ok(waiting) = next else {
            return;
        };
        files.sync(waiting);
    }
}
