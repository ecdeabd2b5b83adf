//! The thread that tells the kernel what changed on a mirror. It holds no lock while it does: the kernel may wait for a
//! request in flight before it lets go of a page or a name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use fuser::Notifier;

use crate::fuse::convert::node;
use crate::fuse::nodes::Nodes;
use crate::journal::Hint;
use crate::units::Ino;

/// Transactions whose hints may wait; then the follower waits.
const QUEUE: usize = 256;

enum Work {
    Hints(Vec<Hint>),
    Settle(SyncSender<()>),
}

/// A queue of hints, worked off in order.
#[derive(Debug)]
pub struct Invalidator {
    queue: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Work::Hints(hints) => write!(f, "Hints({})", hints.len()),
            Work::Settle(_) => write!(f, "Settle"),
        }
    }
}

impl Invalidator {
    /// Starts the thread.
    pub fn start(notifier: Notifier, nodes: Arc<Nodes>) -> std::io::Result<Invalidator> {
        let (queue, work) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("invalidate".to_string())
            .spawn(move || run(&work, &notifier, &nodes))?;
        Ok(Invalidator {
            queue: Some(queue),
            thread: Some(thread),
        })
    }

    /// Queues hints.
    pub fn send(&self, hints: Vec<Hint>) {
        if let Some(queue) = &self.queue {
            // The thread ends only after the queue does.
            let _ = queue.send(Work::Hints(hints));
        }
    }

    /// Waits until everything queued so far is done.
    pub fn settle(&self) {
        let (done, wait) = sync_channel(1);
        if let Some(queue) = &self.queue
            && queue.send(Work::Settle(done)).is_ok()
        {
            let _ = wait.recv();
        }
    }
}

impl Drop for Invalidator {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(work: &Receiver<Work>, notifier: &Notifier, nodes: &Nodes) {
    while let Ok(item) = work.recv() {
        match item {
            Work::Hints(hints) => hints.iter().for_each(|hint| tell(hint, notifier, nodes)),
            Work::Settle(done) => {
                let _ = done.send(());
            }
        }
    }
}

fn tell(hint: &Hint, notifier: &Notifier, nodes: &Nodes) {
    let result = match hint {
        Hint::Inode(ino) => inode(*ino, notifier, nodes),
        Hint::Entry { parent, name } => match nodes.knows(*parent) || node(*parent).0 == 1 {
            true => notifier.inval_entry(node(*parent), OsStr::from_bytes(name)),
            false => Ok(()),
        },
        Hint::EverythingChanged => {
            for ino in nodes.all() {
                let _ = inode(ino, notifier, nodes);
            }
            inode(crate::fuse::convert::ROOT, notifier, nodes)
        }
    };
    if let Err(error) = result
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!(%error, ?hint, "the kernel did not take an invalidation");
    }
}

fn inode(ino: Ino, notifier: &Notifier, nodes: &Nodes) -> std::io::Result<()> {
    match nodes.knows(ino) || node(ino).0 == 1 {
        true => notifier.inval_inode(node(ino), 0, 0),
        false => Ok(()),
    }
}
