//! The world, as traits: disk, clock, random numbers. Owns their real and their simulated implementations. Knows
//! nothing of blocks, volumes or nodes. Everything above takes these as arguments, so that one thread can run several
//! whole nodes over simulated ones. With `fuse`, the only layer that may use `unsafe`.

pub mod counting;
pub mod file;
pub mod sim;
pub mod socket;

use std::fmt;
use std::io;
use std::time::Duration;

/// A random-access store of bytes that survives power loss up to its last flush.
///
/// Contract: after `flush` returned, everything written before it was called is durable. Writes since the last flush
/// may, after a power cut, be there wholly, in part, in any order, or not at all. Safe to call from many threads.
#[allow(
    clippy::len_without_is_empty,
    reason = "a disk of no bytes is of no interest to anyone"
)]
pub trait Disk: Send + Sync + fmt::Debug {
    /// Size in bytes.
    fn len(&self) -> u64;
    /// Fills `buf` from `offset` (bytes); an error when the range goes past the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `data` at `offset` (bytes); an error when the range goes past the end.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Makes every completed write durable.
    fn flush(&self) -> io::Result<()>;
    /// Makes the range read as zeros and gives its space back where the store can; writes zeros otherwise.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Reserves space for the range so that later writes to it can not fail for want of it, nor cost more than those after
    /// them; contents are kept. Nobody else may write there meanwhile.
    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Whether the range certainly reads as zeros without reading it (a hole); `false` when unknown.
    fn is_hole(&self, offset: u64, len: u64) -> bool;
    /// What a person knows it by: a path.
    fn name(&self) -> String;
    /// Change stamp of the store (ctime in ns for files); `None` where there is none (devices).
    fn changed_at(&self) -> Option<i128>;
}

/// Refuses a range that is not wholly within `size` bytes.
fn check_range(size: u64, offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{len} bytes at {offset} go past the end at {size}"),
        )),
    }
}

/// Time of day, ext4's way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timespec {
    /// Seconds since 1970-01-01 UTC; may be negative.
    pub secs: i64,
    /// 0..1_000_000_000.
    pub nanos: u32,
}

/// Where time comes from.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Time of day.
    fn now(&self) -> Timespec;
    /// Time since some fixed point; never goes back.
    fn monotonic(&self) -> Duration;
    /// Lets `time` pass. For what can do nothing else meanwhile, such as watching whether another host changes a volume.
    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Where random numbers come from.
pub trait Random: Send + Sync + fmt::Debug {
    /// Fills `buf` with random bytes.
    fn fill(&self, buf: &mut [u8]);

    /// 32 random bits.
    fn u32(&self) -> u32 {
        let mut b = [0; 4];
        self.fill(&mut b);
        u32::from_le_bytes(b)
    }

    /// 128 random bits.
    fn u128(&self) -> u128 {
        let mut b = [0; 16];
        self.fill(&mut b);
        u128::from_le_bytes(b)
    }
}
