//! Where requests for holes wait for the kernel: with the writeback cache it asks the server where a file has data while
//! it still keeps some of that to itself. So before the engine is asked, the kernel is made to write back what it has of
//! the file behind the offset. That takes WRITE requests, so it is never done by a thread that takes requests.
//!
//! The price: what the kernel had cached there is read again.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use fuser::{Notifier, ReplyLseek};

use crate::fs::{Fs, Whence};
use crate::fuse::convert::{errno, node};
use crate::units::Ino;

/// A request that waits.
pub struct Seeking {
    /// In which file.
    pub ino: Ino,
    /// From where on, in bytes.
    pub offset: u64,
    /// What is looked for.
    pub whence: Whence,
    /// Whom to answer.
    pub reply: ReplyLseek,
}

impl Seeking {
    /// Asks the engine and answers.
    pub fn answer(self, fs: &Fs) {
        match fs.seek(self.ino, self.offset, self.whence) {
            Ok(found) => self.reply.offset(found as i64),
            Err(error) => self.reply.error(errno(&error)),
        }
    }
}

/// The thread that has data written back before it looks for holes. It ends when this is dropped.
#[derive(Debug)]
pub struct Seeker {
    queue: Option<Sender<Seeking>>,
    thread: Option<JoinHandle<()>>,
}

impl Seeker {
    /// Starts the thread; `kernel` is set once the volume is mounted.
    pub fn start(fs: &Arc<Fs>, kernel: &Arc<OnceLock<Notifier>>) -> Seeker {
        let (queue, work) = channel();
        let (fs, kernel) = (Arc::clone(fs), Arc::clone(kernel));
        let thread = std::thread::Builder::new()
            .name("seek".to_string())
            .spawn(move || run(&work, &fs, &kernel))
            .inspect_err(|error| tracing::error!(%error, "no thread for seeking"))
            .ok();
        Seeker {
            queue: Some(queue),
            thread,
        }
    }

    /// Queues a request; the kernel bounds how many there are.
    pub fn wait(&self, seeking: Seeking) {
        let unsent = match &self.queue {
            Some(queue) => queue.send(seeking).err().map(|unsent| unsent.0),
            None => Some(seeking),
        };
        if let Some(seeking) = unsent {
            seeking.reply.error(fuser::Errno::EIO);
        }
    }
}

impl Drop for Seeker {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(work: &Receiver<Seeking>, fs: &Fs, kernel: &OnceLock<Notifier>) {
    while let Ok(seeking) = work.recv() {
        if let Some(kernel) = kernel.get() {
            // An offset beyond what the kernel takes has nothing behind it.
            let from = i64::try_from(seeking.offset).unwrap_or(i64::MAX);
            if let Err(error) = kernel.inval_inode(node(seeking.ino), from, 0) {
                tracing::debug!(%error, ino = %seeking.ino, "nothing was written back");
            }
        }
        seeking.answer(fs);
    }
}
