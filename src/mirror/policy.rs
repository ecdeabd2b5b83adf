//! How one mirror is treated: what its operator asked for, the node's defaults, and the built-in ones, in this order.
//!
//! Owns the resolution and the built-in values. Never stores anything: wishes are in the mirror's facts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::volume::facts::{Compress, OnFull, Resync, SyncMode, Wishes};

/// Transactions that a mirror may lack before a limit trips, unless told otherwise.
const ASYNC_LIMIT: u64 = 4096;
/// Silence after which a mirror counts as lost, unless told otherwise.
const TIMEOUT_MS: u64 = 6000;

/// How a mirror is treated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// When a write is acknowledged.
    pub mode: SyncMode,
    /// Writers wait for a sync mirror that is away.
    pub strict: bool,
    /// What happens when the log gets full.
    pub on_full: OnFull,
    /// Transactions that it may lack.
    pub async_limit: u64,
    /// Bytes of the log that it may hold; 0: three quarters.
    pub high_water: u64,
    /// Where slowing ends; 0: half.
    pub low_water: u64,
    /// Silence after which it counts as lost, ms.
    pub timeout_ms: u64,
    /// Cap of the bulk replicator, bytes a second; 0: none.
    pub rate: u64,
    /// How payloads are packed.
    pub compress: Compress,
    /// Where a resync writes.
    pub resync: Resync,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy::resolve(&Wishes::default(), &Wishes::default())
    }
}

impl Policy {
    /// What `wishes` say, else `defaults`, else what is built in.
    pub fn resolve(wishes: &Wishes, defaults: &Wishes) -> Policy {
        let all = wishes.clone().or(defaults);
        Policy {
            mode: all.mode.unwrap_or_default(),
            strict: all.strict.unwrap_or_default(),
            on_full: all.on_full.unwrap_or_default(),
            async_limit: all.async_limit.unwrap_or(ASYNC_LIMIT).max(1),
            high_water: all.high_water.unwrap_or_default(),
            low_water: all.low_water.unwrap_or_default(),
            timeout_ms: all.timeout_ms.unwrap_or(TIMEOUT_MS),
            rate: all.rate.unwrap_or_default(),
            compress: all.compress.unwrap_or_default(),
            resync: all.resync.unwrap_or_default(),
        }
    }

    /// Whether writes are acknowledged by this mirror.
    pub fn is_sync(&self) -> bool {
        self.mode == SyncMode::Sync
    }

    /// Silence after which it counts as lost.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// The two marks in bytes, for a log of `size`; the low one below the high one, which is below the size.
    pub fn water(&self, size: u64) -> (u64, u64) {
        let high = match self.high_water {
            0 => size / 4 * 3,
            bytes => bytes.min(size / 8 * 7),
        };
        let low = match self.low_water {
            0 => size / 2,
            bytes => bytes,
        };
        (low.min(high / 8 * 7), high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirrors_own_word_wins_then_the_nodes_then_what_is_built_in() {
        let own = Wishes {
            mode: Some(SyncMode::Sync),
            ..Wishes::default()
        };
        let node = Wishes {
            mode: Some(SyncMode::Async),
            timeout_ms: Some(900),
            ..Wishes::default()
        };
        let policy = Policy::resolve(&own, &node);
        assert!(policy.is_sync());
        assert_eq!(policy.timeout(), Duration::from_millis(900));
        assert_eq!(policy.async_limit, 4096);
        assert_eq!(Policy::default().on_full, OnFull::Crack);
    }

    #[test]
    fn the_marks_leave_room() {
        let mut policy = Policy::default();
        assert_eq!(policy.water(1024), (512, 768));
        policy.high_water = 1 << 40;
        assert_eq!(policy.water(1024), (512, 896));
        policy.high_water = 400;
        assert_eq!(policy.water(1024), (350, 400), "low stays below high");
    }
}
