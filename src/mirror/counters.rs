//! What an administrator tunes a mirror with: counters that only grow, and histograms with fixed buckets.

use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets, us; a last bucket takes the rest.
pub const BOUNDS_US: [u64; 12] = [
    100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000, 500_000, 2_000_000, 10_000_000,
];

/// How long something took, by bucket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Times in each bucket of `BOUNDS_US`, and in the last those beyond.
    pub buckets: [u64; BOUNDS_US.len() + 1],
    /// Times in all.
    pub count: u64,
    /// Their sum, us.
    pub sum_us: u64,
}

impl Histogram {
    /// One more, of `us` microseconds.
    pub fn add(&mut self, us: u64) {
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket] += 1;
        self.count += 1;
        self.sum_us += us;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_one_bucket() {
        let mut histogram = Histogram::default();
        for us in [0, 100, 101, 10_000_001, 1 << 50] {
            histogram.add(us);
        }
        assert_eq!(histogram.buckets[..2], [2, 1]);
        assert_eq!(histogram.buckets[BOUNDS_US.len()], 2);
        assert_eq!(histogram.buckets.iter().sum::<u64>(), histogram.count);
    }
}
