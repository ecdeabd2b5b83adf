//! A disk that counts what goes through it. Owns the counters; never changes a request. For status and benches.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Disk;

/// What went through a [`CountingDisk`], failed requests included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Bytes asked for by reads.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes of writes.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Ranges zeroed.
    pub zeros: u64,
    /// Bytes zeroed.
    pub zeroed_bytes: u64,
}

impl Counts {
    /// The sum of both.
    pub fn plus(self, other: Counts) -> Counts {
        Counts {
            reads: self.reads + other.reads,
            read_bytes: self.read_bytes + other.read_bytes,
            writes: self.writes + other.writes,
            written_bytes: self.written_bytes + other.written_bytes,
            flushes: self.flushes + other.flushes,
            zeros: self.zeros + other.zeros,
            zeroed_bytes: self.zeroed_bytes + other.zeroed_bytes,
        }
    }
}

/// Passes every request on to another disk and counts it.
#[derive(Debug)]
pub struct CountingDisk {
    inner: Arc<dyn Disk>,
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    zeros: AtomicU64,
    zeroed_bytes: AtomicU64,
}

impl CountingDisk {
    /// Counts from zero what goes to `inner`.
    pub fn new(inner: Arc<dyn Disk>) -> CountingDisk {
        let zero = AtomicU64::default;
        CountingDisk {
            inner,
            reads: zero(),
            read_bytes: zero(),
            writes: zero(),
            written_bytes: zero(),
            flushes: zero(),
            zeros: zero(),
            zeroed_bytes: zero(),
        }
    }

    /// The counters, each by itself: they are not read at one instant.
    pub fn counts(&self) -> Counts {
        Counts {
            reads: self.reads.load(Relaxed),
            read_bytes: self.read_bytes.load(Relaxed),
            writes: self.writes.load(Relaxed),
            written_bytes: self.written_bytes.load(Relaxed),
            flushes: self.flushes.load(Relaxed),
            zeros: self.zeros.load(Relaxed),
            zeroed_bytes: self.zeroed_bytes.load(Relaxed),
        }
    }
}

impl Disk for CountingDisk {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.reads.fetch_add(1, Relaxed);
        self.read_bytes.fetch_add(buf.len() as u64, Relaxed);
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.writes.fetch_add(1, Relaxed);
        self.written_bytes.fetch_add(data.len() as u64, Relaxed);
        self.inner.write_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Relaxed);
        self.inner.flush()
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.zeros.fetch_add(1, Relaxed);
        self.zeroed_bytes.fetch_add(len, Relaxed);
        self.inner.zero(offset, len)
    }

    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.preallocate(offset, len)
    }

    fn is_hole(&self, offset: u64, len: u64) -> bool {
        self.inner.is_hole(offset, len)
    }

    fn name(&self) -> String {
        self.inner.name()
    }

    fn changed_at(&self) -> Option<i128> {
        self.inner.changed_at()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sim::SimDisk;

    #[test]
    fn every_request_is_counted_and_passed_on() {
        let disk = CountingDisk::new(Arc::new(SimDisk::new(8192)));
        disk.write_at(&[7; 100], 50).unwrap();
        disk.zero(60, 10).unwrap();
        disk.flush().unwrap();
        let mut back = [1; 20];
        disk.read_at(&mut back, 55).unwrap();
        assert_eq!(back[..5], [7; 5]);
        assert_eq!(back[5..15], [0; 10]);
        assert_eq!(back[15..], [7; 5]);
        let counts = Counts {
            reads: 1,
            read_bytes: 20,
            writes: 1,
            written_bytes: 100,
            flushes: 1,
            zeros: 1,
            zeroed_bytes: 10,
        };
        assert_eq!(disk.counts(), counts);
    }
}
