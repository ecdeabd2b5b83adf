//! Recording what reaches disks, and rebuilding them as of any instant.
//!
//! Owns one ordered list of events over any number of disks (the parts of a volume) and the contents they had when they were
//! wrapped. Never changes a request. Invariant: a write is recorded after it completed, and a flush covers the writes that
//! were recorded before it began, so a rebuilt disk never takes for durable what the real one might have lost.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{SimDisk, Survivors};
use super::pages;
use crate::io::Disk;

/// One thing that reached a disk. `disk` counts the wrapped disks from 0.
#[derive(Clone, Debug)]
pub enum Event {
    /// A completed write.
    Write {
        /// Which disk.
        disk: usize,
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Arc<[u8]>,
    },
    /// A range made to read as zeros.
    Zero {
        /// Which disk.
        disk: usize,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// A completed flush.
    Flush {
        /// Which disk.
        disk: usize,
        /// Events before this position are durable, as far as they went to this disk.
        covers: usize,
    },
    /// Something the test wants to find again, such as "operation 17 was acknowledged".
    Mark(u64),
}

#[derive(Debug, Default)]
struct Log {
    bases: Vec<SimDisk>,
    events: Vec<Event>,
}

/// What reached some disks, in order.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    log: Arc<Mutex<Log>>,
}

impl Recording {
    /// An empty recording.
    pub fn new() -> Recording {
        Recording::default()
    }

    /// Records from now on what goes to `inner`, whose present contents are taken for durable.
    pub fn wrap(&self, inner: Arc<dyn Disk>) -> io::Result<Arc<RecordingDisk>> {
        let pages = pages::of(&*inner)?;
        let mut log = self.log.lock();
        let disk = log.bases.len();
        log.bases
            .push(SimDisk::from_pages(inner.name(), inner.len(), pages));
        Ok(Arc::new(RecordingDisk {
            inner,
            disk,
            recording: self.clone(),
        }))
    }

    /// Adds a mark at the present position.
    pub fn mark(&self, mark: u64) {
        self.push(Event::Mark(mark));
    }

    /// Events so far.
    pub fn len(&self) -> usize {
        self.log.lock().events.len()
    }

    /// Whether nothing has happened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The event at a position.
    pub fn event(&self, at: usize) -> Option<Event> {
        self.log.lock().events.get(at).cloned()
    }

    /// The marks among the first `n` events.
    pub fn marks_before(&self, n: usize) -> Vec<u64> {
        let log = self.log.lock();
        log.events
            .iter()
            .take(n)
            .filter_map(|e| match e {
                Event::Mark(m) => Some(*m),
                _ => None,
            })
            .collect()
    }

    /// The disks as a power cut after the first `n` events leaves them.
    pub fn image_at(&self, n: usize, survivors: Survivors<'_>) -> Vec<Arc<SimDisk>> {
        let log = self.log.lock();
        let events = &log.events[..n.min(log.events.len())];
        log.bases
            .iter()
            .enumerate()
            .map(|(disk, base)| {
                let image = base.snapshot();
                let durable = events
                    .iter()
                    .filter_map(|e| match e {
                        Event::Flush { disk: d, covers } if *d == disk => Some(*covers),
                        _ => None,
                    })
                    .max()
                    .unwrap_or(0);
                replay(&image, disk, &events[..durable]);
                image.flush().expect("the rebuilt disk has no faults");
                replay(&image, disk, &events[durable..]);
                image.crash(survivors);
                Arc::new(image)
            })
            .collect()
    }

    fn push(&self, event: Event) {
        self.log.lock().events.push(event);
    }
}

fn replay(image: &SimDisk, disk: usize, events: &[Event]) {
    for event in events {
        let done = match event {
            Event::Write {
                disk: d,
                offset,
                data,
            } if *d == disk => image.write_at(data, *offset),
            Event::Zero {
                disk: d,
                offset,
                len,
            } if *d == disk => image.zero(*offset, *len),
            _ => Ok(()),
        };
        done.expect("the rebuilt disk is as large as the recorded one and has no faults");
    }
}

/// Passes every request on to another disk and records those that change it. Failed ones are not recorded.
#[derive(Debug)]
pub struct RecordingDisk {
    inner: Arc<dyn Disk>,
    disk: usize,
    recording: Recording,
}

impl Disk for RecordingDisk {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(data, offset)?;
        self.recording.push(Event::Write {
            disk: self.disk,
            offset,
            data: data.into(),
        });
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let covers = self.recording.len();
        self.inner.flush()?;
        self.recording.push(Event::Flush {
            disk: self.disk,
            covers,
        });
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.zero(offset, len)?;
        self.recording.push(Event::Zero {
            disk: self.disk,
            offset,
            len,
        });
        Ok(())
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
