//! Ctrl-C, for a command that has to clean up after itself.
//!
//! Owns a flag that SIGINT, SIGTERM and SIGHUP raise, and nothing else: whoever works looks at it between two steps and
//! returns, and guards do the rest.

use super::super::Failed;
use super::super::exit::Exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How often something without an event of its own is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Whether somebody wants the command to end.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes the signals over; a thread waits for them for as long as the process lives.
    pub fn listen() -> Result<Interrupt, Failed> {
        let failed = |e: std::io::Error| Failed::here("signals", e);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(failed)?;
        let mut streams = {
            let _entered = runtime.enter();
            let kinds = [
                SignalKind::interrupt(),
                SignalKind::terminate(),
                SignalKind::hangup(),
            ];
            kinds
                .into_iter()
                .map(signal)
                .collect::<Result<Vec<_>, _>>()
                .map_err(failed)?
        };
        let interrupt = Interrupt::default();
        let raised = interrupt.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let [one, two, three] = &mut streams[..] else {
                        return;
                    };
                    loop {
                        tokio::select! {
                            _ = one.recv() => {}
                            _ = two.recv() => {}
                            _ = three.recv() => {}
                        }
                        raised.0.store(true, Ordering::SeqCst);
                    }
                });
            })
            .map_err(failed)?;
        Ok(interrupt)
    }

    /// An error once the command is to end.
    pub fn check(&self) -> Result<(), Failed> {
        match self.0.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(Failed::new(
                Exit::Failure,
                "interrupted",
                "lockstep demo runs it again from the start",
            )),
        }
    }

    /// Looks again until `done` says so; `Ok(false)` when `limit` has passed before.
    pub fn wait(
        &self,
        limit: Duration,
        mut done: impl FnMut() -> Result<bool, Failed>,
    ) -> Result<bool, Failed> {
        let end = Instant::now() + limit;
        loop {
            self.check()?;
            if done()? {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}
