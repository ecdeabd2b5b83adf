//! The cap on the bulk replicator: a token bucket over the caller's clock.

use std::time::Duration;

/// How much may be saved up while nothing is sent.
const BURST: Duration = Duration::from_millis(100);

/// A cap in bytes a second, or none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    bytes_per_s: Option<u64>,
    free_at: Duration,
}

impl Rate {
    /// A cap of `bytes_per_s`; `None` or 0 is no cap.
    pub fn new(bytes_per_s: Option<u64>) -> Rate {
        Rate {
            bytes_per_s: bytes_per_s.filter(|rate| *rate > 0),
            free_at: Duration::ZERO,
        }
    }

    /// Whether bytes may go now; else, when.
    pub fn ready(&self, now: Duration) -> Result<(), Duration> {
        match self.free_at <= now {
            true => Ok(()),
            false => Err(self.free_at),
        }
    }

    /// `bytes` went.
    pub fn spend(&mut self, now: Duration, bytes: u64) {
        if let Some(rate) = self.bytes_per_s {
            let start = self.free_at.max(now.saturating_sub(BURST));
            self.free_at = start + Duration::from_secs_f64(bytes as f64 / rate as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_holds_over_time() {
        let mut rate = Rate::new(Some(1 << 20));
        let mut now = Duration::from_secs(5);
        let mut sent = 0;
        while now < Duration::from_secs(15) {
            match rate.ready(now) {
                Ok(()) => {
                    rate.spend(now, 1 << 18);
                    sent += 1 << 18;
                }
                Err(at) => now = at,
            }
        }
        assert!((10 << 20..11 << 20).contains(&sent), "{sent}");
        assert_eq!(Rate::new(None).ready(now), Ok(()));
    }
}
