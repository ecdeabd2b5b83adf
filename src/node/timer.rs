//! The thread behind an open volume: commits when a change is due, checkpoints when there is something to bring home.
//!
//! Owns one thread for each open engine. Never holds a lock while it works. It ends when its engine fails for good, is
//! closed, or the timer is dropped.

use crate::fs::{Fs, FsError};
use crate::io::Clock;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// A failed step is tried again after this long: a disk that is full may not be full for ever.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Stop {
    stopped: Mutex<bool>,
    wake: Condvar,
}

/// A running timer.
#[derive(Debug)]
pub struct Timer {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Timer {
    /// Starts the thread. `each` is called about once a second; `failed` with each new failure.
    pub fn start(
        fs: Arc<Fs>,
        clock: Arc<dyn Clock>,
        each: impl Fn() + Send + 'static,
        failed: impl Fn(&FsError) + Send + 'static,
    ) -> std::io::Result<Timer> {
        let stop = Arc::new(Stop::default());
        let thread = {
            let stop = Arc::clone(&stop);
            std::thread::Builder::new()
                .name("commit".to_owned())
                .spawn(move || run(&stop, &fs, &*clock, &each, &failed))?
        };
        Ok(Timer {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        *self.stop.stopped.lock() = true;
        self.stop.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // Its last step ends first: the engine is to be closed by nobody else meanwhile.
            let _ = thread.join();
        }
    }
}

fn run(stop: &Stop, fs: &Fs, clock: &dyn Clock, each: &dyn Fn(), failed: &dyn Fn(&FsError)) {
    let mut told = String::new();
    let mut each_at = Duration::ZERO;
    loop {
        let now = clock.monotonic();
        if each_at <= now {
            each();
            each_at = now + Duration::from_secs(1);
        }
        let next = match fs.commit_step(now) {
            Ok(step) => {
                told.clear();
                step.next
            }
            Err(FsError::Closed) => return,
            Err(error) => {
                let text = error.to_string();
                if text != told {
                    failed(&error);
                    told = text;
                }
                now + AFTER_FAILURE
            }
        };
        let mut stopped = stop.stopped.lock();
        let wait = next.min(each_at).saturating_sub(clock.monotonic());
        if !*stopped && !wait.is_zero() {
            stop.wake.wait_for(&mut stopped, wait);
        }
        if *stopped {
            return;
        }
    }
}
