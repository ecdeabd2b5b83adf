//! What the demonstration with mounts and the one without have in common: how often, how long, and in which words.
//!
//! Owns no state and does nothing: both do the same steps by different means.

use super::super::Failed;
use super::super::size::show;
use super::broken;
use super::report::{Report, count};
use super::sizes::Sizes;
use super::source::Extent;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A state is reached within this, or something is wrong.
pub const SOON: Duration = Duration::from_secs(30);
/// A first copy ends within this.
pub const COPIED_WITHIN: Duration = Duration::from_secs(300);
/// Files written during a pause and while the link is cut.
pub const FILES: u64 = 100;
/// Bytes of each.
pub const SMALL: usize = 4096;
/// Changes whose way to the mirror is timed.
pub const CHANGES: usize = 20;
/// What the last columns of the table are.
pub const COLUMNS: &str =
    "COPIED is what the bulk replicator sent, REPLAYED what came in order from the log";

/// Bytes that went to the mirror.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Copied from home to home.
    pub bulk: u64,
    /// In order, from the log.
    pub sequenced: u64,
}

impl Sent {
    /// What came to it since `before`.
    pub fn since(self, before: Sent) -> Sent {
        Sent {
            bulk: self.bulk - before.bulk,
            sequenced: self.sequenced - before.sequenced,
        }
    }
}

impl Report {
    /// Ends the step in which the tree was copied in.
    pub fn copied_in(
        &mut self,
        used: &[PathBuf],
        extent: Extent,
        over: u64,
        began: Instant,
    ) -> Result<(), Failed> {
        let names: Vec<_> = used.iter().map(|p| p.display().to_string()).collect();
        let bytes = extent.bytes + over;
        let rate = bytes as f64 / began.elapsed().as_secs_f64();
        let text = format!(
            "{} in, and {} of our own, synced: {}, {} at {}/s",
            names.join(", "),
            show(over),
            count(extent.files + 1, "file"),
            show(bytes),
            show(rate as u64)
        );
        self.done(&text, 0, 0)
    }

    /// Ends a step in which everything has to come from the log.
    pub fn replayed(&mut self, text: &str, sent: Sent) -> Result<(), Failed> {
        if sent.bulk > 0 {
            return Err(broken(format!(
                "{} were copied, not replayed",
                show(sent.bulk)
            )));
        }
        let text = format!(
            "{text}: {} replayed from the log, 0 bytes copied",
            show(sent.sequenced)
        );
        self.done(&text, 0, sent.sequenced)
    }
}

impl Sizes {
    /// After a crack as much is copied as was overwritten, and a little for the metadata that changed with it.
    pub fn check_repair(&self, copied: u64) -> Result<(), Failed> {
        match copied <= self.over + self.over / 10 + (1 << 20) {
            true => Ok(()),
            false => Err(broken(format!(
                "{} were copied for {} that were overwritten",
                show(copied),
                show(self.over)
            ))),
        }
    }
}
