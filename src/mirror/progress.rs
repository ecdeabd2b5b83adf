//! How fast bytes went lately.

use std::collections::VecDeque;
use std::time::Duration;

/// How far back the rate looks.
const WINDOW: Duration = Duration::from_secs(3);

/// Samples of a counter.
#[derive(Debug, Default)]
pub struct Progress {
    samples: VecDeque<(Duration, u64)>,
}

impl Progress {
    /// The counter is at `bytes` now.
    pub fn sample(&mut self, now: Duration, bytes: u64) {
        self.samples.push_back((now, bytes));
        while self.samples.len() > 2 && self.samples[1].0 + WINDOW < now {
            self.samples.pop_front();
        }
    }

    /// Bytes a second over the last seconds.
    pub fn rate(&self) -> u64 {
        match (self.samples.front(), self.samples.back()) {
            (Some((from, low)), Some((to, high))) if to > from => {
                ((high - low) as f64 / (*to - *from).as_secs_f64()) as u64
            }
            _ => 0,
        }
    }
}
