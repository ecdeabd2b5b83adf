//! What an operator asked for of one mirror. Owns the types and their text form; what is not said here is a default of
//! the node (`mirror::policy` resolves them).

use serde::{Deserialize, Serialize};

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncMode {
    /// When the local commit is durable.
    #[default]
    Async,
    /// When it is durable here and in the mirror's journal.
    Sync,
}

/// What happens when the log can not hold what the mirror lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFull {
    /// The mirror falls to its dirty map; writers never wait.
    #[default]
    Crack,
    /// Writers are slowed before that.
    Throttle,
}

/// How payloads are packed on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compress {
    /// Whatever is found to pay.
    #[default]
    Auto,
    /// Fast.
    Lz4,
    /// Small.
    Zstd,
    /// As they are.
    Off,
}

/// Where a resync writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resync {
    /// Home at once: the mirror is inconsistent meanwhile.
    Direct,
    /// Beside the copy where space allows: the mirror keeps its last consistent transaction meanwhile.
    #[default]
    Staged,
}

/// What was asked for; `None` is the node's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wishes {
    /// When a write is acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<SyncMode>,
    /// In sync mode: writers wait for a mirror that is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
    /// What happens when the log gets full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
    /// Transactions that the mirror may lack before writers wait as in sync mode (with throttle).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub async_limit: Option<u64>,
    /// Bytes of the log that the mirror may hold before writers are slowed (with throttle); 0: three quarters of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_water: Option<u64>,
    /// Bytes at which they no longer are; 0: half of the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_water: Option<u64>,
    /// Silence after which the mirror counts as lost, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Cap of the bulk replicator, bytes a second; 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// How payloads are packed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compress: Option<Compress>,
    /// Where a resync writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resync: Option<Resync>,
}

impl Wishes {
    /// These, and where they say nothing, `other`.
    pub fn or(self, other: &Wishes) -> Wishes {
        Wishes {
            mode: self.mode.or(other.mode),
            strict: self.strict.or(other.strict),
            on_full: self.on_full.or(other.on_full),
            async_limit: self.async_limit.or(other.async_limit),
            high_water: self.high_water.or(other.high_water),
            low_water: self.low_water.or(other.low_water),
            timeout_ms: self.timeout_ms.or(other.timeout_ms),
            rate: self.rate.or(other.rate),
            compress: self.compress.or(other.compress),
            resync: self.resync.or(other.resync),
        }
    }

    /// What of these no mirror can follow, in words.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.async_limit == Some(0) {
            return Err("--async-limit is at least 1");
        }
        if self
            .timeout_ms
            .is_some_and(|ms| !(100..=3_600_000).contains(&ms))
        {
            return Err("--timeout is from 0.1 to 3600 seconds");
        }
        let water = (self.low_water.unwrap_or(0), self.high_water.unwrap_or(0));
        if water.0 > 0 && water.1 > 0 && water.0 >= water.1 {
            return Err("--low-water is below --high-water");
        }
        Ok(())
    }
}
