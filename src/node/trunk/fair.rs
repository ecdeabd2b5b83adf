//! Whose frame is written next: deficit round robin by bytes, in which a channel that was idle goes first.
//!
//! Owns turns and nothing else: no frames, no credit. As fq_codel does it (RFC 8290, section 4.2): a channel that has
//! something to send after a pause is served before those that always have, until it has used its quantum; so an
//! acknowledgement or a transaction waits for one frame of a bulk copy at most, and channels that always have something
//! to send get the same number of bytes.

use std::collections::{HashMap, VecDeque};

/// Bytes that a channel may send in a turn. Less than a frame of a copy, which is made up for in later rounds; more than
/// several transactions of metadata.
pub const QUANTUM: i64 = 64 << 10;

/// The channels that may have something to send, in the order of their turns.
#[derive(Debug, Default)]
pub struct Fair {
    /// Was idle before.
    fresh: VecDeque<u32>,
    /// Used up a quantum since.
    old: VecDeque<u32>,
    /// Bytes left in the turn, of every channel in one of the two.
    left: HashMap<u32, i64>,
}

impl Fair {
    /// A channel has something to send. Nothing changes when it is waiting for its turn.
    pub fn wake(&mut self, channel: u32) {
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.left.entry(channel) {
            vacant.insert(QUANTUM);
            self.fresh.push_back(channel);
        }
    }

    /// Whose turn it is, of those that `has` says can send now; the others are forgotten until they wake.
    pub fn next(&mut self, has: impl Fn(u32) -> bool) -> Option<u32> {
        loop {
            let from_fresh = !self.fresh.is_empty();
            let queue = match from_fresh {
                true => &mut self.fresh,
                false => &mut self.old,
            };
            let channel = *queue.front()?;
            let Some(left) = self.left.get_mut(&channel) else {
                queue.pop_front();
                continue;
            };
            if *left <= 0 {
                *left += QUANTUM;
                queue.pop_front();
                self.old.push_back(channel);
            } else if has(channel) {
                return Some(channel);
            } else {
                queue.pop_front();
                // One that sends a little again and again must not come before the others each time.
                match from_fresh && !self.old.is_empty() {
                    true => self.old.push_back(channel),
                    false => drop(self.left.remove(&channel)),
                }
            }
        }
    }

    /// The channel whose turn it is sent so many bytes.
    pub fn spent(&mut self, channel: u32, bytes: u64) {
        if let Some(left) = self.left.get_mut(&channel) {
            *left -= i64::try_from(bytes).unwrap_or(i64::MAX);
        }
    }

    /// The channel has ended.
    pub fn remove(&mut self, channel: u32) {
        self.left.remove(&channel);
        self.fresh.retain(|c| *c != channel);
        self.old.retain(|c| *c != channel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Queues of frames by their sizes; `order` writes until nothing is left.
    struct Line {
        fair: Fair,
        queues: HashMap<u32, VecDeque<u64>>,
    }

    impl Line {
        fn new() -> Line {
            Line {
                fair: Fair::default(),
                queues: HashMap::new(),
            }
        }

        fn put(&mut self, channel: u32, sizes: &[u64]) {
            self.queues.entry(channel).or_default().extend(sizes);
            self.fair.wake(channel);
        }

        fn write(&mut self) -> Option<(u32, u64)> {
            let channel = self.fair.next(|c| !self.queues[&c].is_empty())?;
            let size = self.queues.get_mut(&channel)?.pop_front()?;
            self.fair.spent(channel, size);
            Some((channel, size))
        }
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn two_copies_get_the_same_number_of_bytes_whatever_their_frames_sizes() {
        let mut line = Line::new();
        line.put(1, &[MIB; 64]);
        line.put(2, &[100_000; 2000]);
        line.put(3, &[4000; 40_000]);
        let mut sent = HashMap::new();
        for _ in 0..5000 {
            let (channel, size) = line.write().unwrap();
            *sent.entry(channel).or_insert(0) += size;
            let most = sent.values().max().unwrap();
            for channel in 1..=3 {
                let lags = most - sent.get(&channel).copied().unwrap_or(0);
                assert!(lags <= 2 * MIB, "{sent:?}");
            }
        }
        assert!(sent.values().all(|bytes| *bytes > 10 * MIB), "{sent:?}");
    }

    #[test]
    fn what_was_idle_goes_before_a_copy_and_waits_for_no_second_frame() {
        let mut line = Line::new();
        line.put(1, &[MIB; 1000]);
        line.put(2, &[MIB; 1000]);
        for _ in 0..200 {
            assert_ne!(line.write().unwrap().0, 3);
            line.put(3, &[300]);
            let two = [line.write().unwrap().0, line.write().unwrap().0];
            assert!(two.contains(&3), "{two:?}");
        }
    }

    #[test]
    fn many_small_frames_do_not_starve_a_large_one() {
        let mut line = Line::new();
        line.put(1, &[MIB; 3]);
        let mut small = 0;
        while !line.queues[&1].is_empty() {
            line.put(2, &[500]);
            line.put(3, &[500]);
            if line.write().unwrap().0 != 1 {
                small += 1;
            }
        }
        assert!(small < 3 * 2 * MIB / 500, "{small} small frames came first");
    }

    #[test]
    fn one_that_has_ended_or_can_not_send_is_passed_over() {
        let mut line = Line::new();
        for channel in 1..=3 {
            line.put(channel, &[10; 2]);
        }
        line.fair.remove(2);
        line.queues.insert(3, VecDeque::new());
        assert_eq!(line.write(), Some((1, 10)));
        assert_eq!(line.write(), Some((1, 10)));
        assert_eq!(line.write(), None);
        line.put(3, &[7]);
        assert_eq!(line.write(), Some((3, 7)));
    }
}
