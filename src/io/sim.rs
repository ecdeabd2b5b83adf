//! Simulated disks, clocks and random numbers. Owns what a power cut may do to a disk, and the faults that a test
//! can ask for. Never reads the machine's clock or random numbers: the same seed gives the same run.

mod disk;
mod pages;
mod recording;

pub use disk::{Fault, SECTOR, SimDisk, Survivors};
pub use recording::{Event, Recording, RecordingDisk};

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Clock, Random, Timespec};

/// A clock that stands still until it is told to advance.
#[derive(Debug)]
pub struct SimClock {
    start: Mutex<Timespec>,
    passed: Mutex<Duration>,
}

impl SimClock {
    /// A clock that shows `start`, its monotonic time being zero.
    pub fn new(start: Timespec) -> SimClock {
        SimClock {
            start: Mutex::new(start),
            passed: Mutex::new(Duration::ZERO),
        }
    }

    /// Somebody sets the time of day: it jumps by `secs`, forwards or back. Monotonic time goes on as before.
    pub fn jump(&self, secs: i64) {
        self.start.lock().secs += secs;
    }

    /// Lets `by` pass.
    pub fn advance(&self, by: Duration) {
        *self.passed.lock() += by;
    }
}

impl Default for SimClock {
    /// A clock that shows 2026-01-01 00:00:00 UTC.
    fn default() -> SimClock {
        SimClock::new(Timespec {
            secs: 1_767_225_600,
            nanos: 0,
        })
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timespec {
        let (start, passed) = (*self.start.lock(), *self.passed.lock());
        let nanos = start.nanos + passed.subsec_nanos();
        Timespec {
            secs: start.secs + passed.as_secs() as i64 + i64::from(nanos / 1_000_000_000),
            nanos: nanos % 1_000_000_000,
        }
    }

    fn monotonic(&self) -> Duration {
        *self.passed.lock()
    }

    fn sleep(&self, time: Duration) {
        *self.passed.lock() += time;
    }
}

/// Random numbers from a seed (splitmix64, Steele and others, "Fast splittable pseudorandom number generators",
/// 2014). Several threads may draw; only a single one gets the same numbers every time.
#[derive(Debug)]
pub struct SimRandom {
    state: AtomicU64,
}

impl SimRandom {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> SimRandom {
        SimRandom {
            state: AtomicU64::new(seed),
        }
    }

    /// 64 random bits.
    pub fn next_u64(&self) -> u64 {
        // The odd number nearest to 2^64 divided by the golden ratio.
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.state.fetch_add(GAMMA, Relaxed).wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 when `n` is 0. The bias of the remainder is of no consequence in a simulation.
    pub fn below(&self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next_u64() % n }
    }

    /// True `percent` times of a hundred.
    pub fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A generator of its own, which depends on this one's state only: what one part of a simulation draws does not
    /// shift what another draws.
    pub fn fork(&self) -> SimRandom {
        SimRandom::new(self.next_u64())
    }
}

impl Random for SimRandom {
    fn fill(&self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests;
