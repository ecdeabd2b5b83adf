//! Files and block devices as disks; the machine's clock and random numbers.
//!
//! Owns the opening of a part's store: it is locked against every other node and, as far as the kernel tells, against
//! mounts of the same store. Never caches, never splits a request, never creates a store that was not asked for.
//! Invariant: while a `FileDisk` opened for writing lives, no other `FileDisk` of the same store exists in any process.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::fs::{Advice, FallocateFlags, FlockOperation, SeekFrom};
use rustix::io::Errno;

use super::{Clock, Disk, Random, Timespec};

/// How [`FileDisk::open`] opens a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// Create the file, sparse, with this many bytes, if there is none or an empty one. A file or device that has
    /// another size is refused; one that has this size is opened as it is.
    pub create_len: Option<u64>,
    /// Open for reading only. Several readers may share a store; a reader and a writer may not.
    pub read_only: bool,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Refused: another process, or the kernel, uses the store.
    #[error("{} is in use{}", path.display(), by.as_deref().map(|b| format!(" ({b})")).unwrap_or_default())]
    InUse {
        /// The store.
        path: PathBuf,
        /// Who uses it, where that is known.
        by: Option<String>,
    },
    /// Refused: neither a regular file nor a block device.
    #[error("{} is neither a regular file nor a block device", path.display())]
    NotAStore {
        /// What was named.
        path: PathBuf,
    },
    /// Refused: the store exists with another size.
    #[error("{} has {found} bytes, not {expected}", path.display())]
    SizeDiffers {
        /// The store.
        path: PathBuf,
        /// Bytes asked for.
        expected: u64,
        /// Bytes it has.
        found: u64,
    },
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The store.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

impl OpenError {
    /// Whether the store does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, OpenError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A regular file or a block device.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    path: PathBuf,
    len: u64,
    device: bool,
    /// Why a flush failed, once one has.
    broken: Mutex<Option<Errno>>,
}

/// Bytes written at once where the store can not zero by itself.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

impl FileDisk {
    /// Opens `path`, exclusively unless `mode.read_only`.
    ///
    /// A new file's directory entry is durable on return; so is its size.
    pub fn open(path: impl AsRef<Path>, mode: OpenMode) -> Result<FileDisk, OpenError> {
        let path = path.as_ref();
        let fail = |action: &'static str| {
            move |source: io::Error| OpenError::Io {
                path: path.to_owned(),
                action,
                source,
            }
        };
        // Looked at before opening: opening a FIFO would wait for its other end, a tape would rewind.
        let existing = match std::fs::metadata(path) {
            Ok(found) if found.is_file() || found.file_type().is_block_device() => Some(found),
            Ok(_) => {
                return Err(OpenError::NotAStore {
                    path: path.to_owned(),
                });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(fail("look at")(e)),
        };
        let device = existing
            .as_ref()
            .is_some_and(|m| m.file_type().is_block_device());
        let create = existing.is_none() && mode.create_len.is_some() && !mode.read_only;
        let mut options = OpenOptions::new();
        options.read(true).write(!mode.read_only).mode(0o600);
        if create {
            // O_EXCL on a file: two nodes that create the same part do not both believe that it is new.
            options.create_new(true);
        } else if device && !mode.read_only {
            // O_EXCL on a block device: the kernel refuses it while mounted, in a RAID set or opened so elsewhere.
            options.custom_flags(libc::O_EXCL);
        }
        let file = match options.open(path) {
            Ok(file) => file,
            Err(e) if device && e.raw_os_error() == Some(libc::EBUSY) => {
                return Err(OpenError::InUse {
                    path: path.to_owned(),
                    by: Some("mounted, or opened by another process".into()),
                });
            }
            Err(e) => return Err(fail(if create { "create" } else { "open" })(e)),
        };
        let lock = if mode.read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match retry(|| rustix::fs::flock(file.as_fd(), lock)) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(OpenError::InUse {
                    path: path.to_owned(),
                    by: Some("locked by another process".into()),
                });
            }
            Err(e) => return Err(fail("lock")(e.into())),
        }
        // From here on every way out unlocks.
        let mut disk = FileDisk {
            file,
            path: path.to_owned(),
            len: 0,
            device,
            broken: Mutex::new(None),
        };
        if !device
            && !mode.read_only
            && let Some(holder) = loop_device_over(path)
        {
            return Err(OpenError::InUse {
                path: path.to_owned(),
                by: Some(format!("attached to {holder}")),
            });
        }
        disk.len = if device {
            device_len(&disk.file).map_err(fail("measure"))?
        } else {
            disk.file.metadata().map_err(fail("look at"))?.len()
        };
        if let Some(expected) = mode.create_len {
            if disk.len == 0 && !device && !mode.read_only {
                disk.file
                    .set_len(expected)
                    .map_err(fail("set the size of"))?;
                disk.file.sync_all().map_err(fail("flush"))?;
                sync_parent(path).map_err(fail("flush the directory of"))?;
                disk.len = expected;
            }
            if disk.len != expected {
                return Err(OpenError::SizeDiffers {
                    path: path.to_owned(),
                    expected,
                    found: disk.len,
                });
            }
        }
        Ok(disk)
    }

    /// Gives the lock up, for a file that another lock guards: it can be opened again while an earlier opening lingers.
    pub fn unlock(&self) {
        // Of a descriptor that is open nothing is to be expected here.
        let _ = rustix::fs::flock(self.file.as_fd(), FlockOperation::Unlock);
    }

    /// Whether the store is a block device.
    pub fn is_device(&self) -> bool {
        self.device
    }

    /// Where the store is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        super::check_range(self.len, offset, len)
    }

    /// Space that is only reserved costs the file system a transaction of its own when it is written first, and that flush
    /// takes twice as long.
    fn write_unwritten(&self, mut at: u64, end: u64) -> io::Result<()> {
        while at < end {
            let hole = match rustix::fs::seek(self.file.as_fd(), SeekFrom::Hole(at)) {
                Ok(hole) if hole < end => hole,
                // One that can not tell calls everything data: then it is as it is.
                Ok(_) | Err(Errno::NXIO | Errno::INVAL) => return Ok(()),
                Err(e) => return Err(e.into()),
            };
            let data = match rustix::fs::seek(self.file.as_fd(), SeekFrom::Data(hole)) {
                Ok(data) => data.min(end),
                Err(Errno::NXIO) => end,
                Err(e) => return Err(e.into()),
            };
            self.write_zeros(hole, data - hole)?;
            at = data;
        }
        Ok(())
    }

    fn write_zeros(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let n = len.min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..n as usize], offset)?;
            offset += n;
            len -= n;
        }
        Ok(())
    }
}

impl Drop for FileDisk {
    fn drop(&mut self) {
        // Said, not left to the close: a child process that another thread has forked and that has not called exec
        // yet holds a copy of the descriptor, and with it the lock.
        let _ = rustix::fs::flock(self.file.as_fd(), FlockOperation::Unlock);
    }
}

impl Disk for FileDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(offset, buf.len() as u64)?;
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.check(offset, data.len() as u64)?;
        self.file.write_all_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        // The kernel reports a lost write once, to whoever asks first, and then shows from its cache what is not on the disk.
        // So one at a time asks, nobody is told that all is well after that (not even on EINTR), and the cache goes: what is
        // read from here on is on the disk. Opened anew, the disk is trusted again.
        let mut broken = self.broken.lock();
        let flushed = match *broken {
            Some(errno) => Err(errno),
            None => rustix::fs::fdatasync(self.file.as_fd()),
        };
        flushed.map_err(|errno| {
            *broken = Some(errno);
            // It is advice, and there is nobody to complain to.
            let _ = rustix::fs::fadvise(self.file.as_fd(), 0, None, Advice::DontNeed);
            errno.into()
        })
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let done = if self.device {
            zero_device(&self.file, offset, len)
        } else {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            retry(|| rustix::fs::fallocate(self.file.as_fd(), flags, offset, len))
                .map_err(Into::into)
        };
        match done {
            // Not every file system punches, not every range is aligned to a device's sectors.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                self.write_zeros(offset, len)
            }
            other => other,
        }
    }

    /// A file system that can not preallocate answers `ErrorKind::Unsupported`; on a device there is nothing to do.
    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        if self.device || len == 0 {
            return Ok(());
        }
        retry(|| rustix::fs::fallocate(self.file.as_fd(), FallocateFlags::KEEP_SIZE, offset, len))?;
        self.write_unwritten(offset, offset + len)
    }

    fn is_hole(&self, offset: u64, len: u64) -> bool {
        if self.device || self.check(offset, len).is_err() {
            return false;
        }
        // The file position moves, which nobody here uses: every other access names its offset.
        match rustix::fs::seek(self.file.as_fd(), SeekFrom::Data(offset)) {
            Ok(data) => data >= offset + len,
            Err(Errno::NXIO) => true,
            Err(_) => false,
        }
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn changed_at(&self) -> Option<i128> {
        if self.device {
            return None;
        }
        let found = self.file.metadata().ok()?;
        Some(i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec()))
    }
}

/// Makes the directory entry of `path` durable.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// The writable loop device that is attached to `path`: the kernel's loop driver sees no lock, so a volume that is
/// loop-mounted would otherwise be opened a second time.
fn loop_device_over(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    for entry in std::fs::read_dir("/sys/block").ok()?.flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(b"loop") {
            continue;
        }
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).ok();
        let Some(backing) = read("loop/backing_file") else {
            continue;
        };
        let read_only = read("ro").is_some_and(|ro| ro.trim() == "1");
        if !read_only && Path::new(backing.trim_end_matches('\n')) == path {
            return Some(format!("/dev/{}", name.display()));
        }
    }
    None
}

/// Bytes of a block device.
fn device_len(file: &File) -> io::Result<u64> {
    // _IOR(0x12, 114, size_t), linux/fs.h; libc does not name it on every target.
    const BLKGETSIZE64: libc::Ioctl = 0x8008_1272_u32 as libc::Ioctl;
    let mut len = 0_u64;
    // SAFETY: the descriptor is open for as long as `file`, and BLKGETSIZE64 writes one u64 through the pointer.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &mut len as *mut u64) };
    if rc == 0 {
        Ok(len)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Zeros a range of a block device, by discard where the device then reads zeros.
fn zero_device(file: &File, offset: u64, len: u64) -> io::Result<()> {
    // _IO(0x12, 127), linux/fs.h.
    const BLKZEROOUT: libc::Ioctl = 0x127f;
    let range = [offset, len];
    loop {
        // SAFETY: the descriptor is open for as long as `file`, and BLKZEROOUT reads two u64 through the pointer.
        let rc = unsafe { libc::ioctl(file.as_raw_fd(), BLKZEROOUT, range.as_ptr()) };
        if rc == 0 {
            return Ok(());
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    pub fn new() -> SystemClock {
        SystemClock {
            start: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timespec {
        let now = SystemTime::now();
        match now.duration_since(UNIX_EPOCH) {
            Ok(since) => Timespec {
                secs: since.as_secs() as i64,
                nanos: since.subsec_nanos(),
            },
            // A clock set before 1970: nanoseconds still count upwards from the second below.
            Err(e) => {
                let before = e.duration();
                let nanos = before.subsec_nanos();
                let borrow = i64::from(nanos > 0);
                Timespec {
                    secs: -(before.as_secs() as i64) - borrow,
                    nanos: if nanos > 0 { 1_000_000_000 - nanos } else { 0 },
                }
            }
        }
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// The kernel's random numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, buf: &mut [u8]) {
        let mut rest = buf;
        while !rest.is_empty() {
            // SAFETY: the pointer and the length are those of one exclusively borrowed slice.
            let n = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
            if n > 0 {
                rest = &mut rest[n as usize..];
                continue;
            }
            // With flags 0 it fails only by a signal, or on a kernel older than this program supports: an id that is
            // not random would make two histories look like one, so there is no going on.
            let e = io::Error::last_os_error();
            assert_eq!(
                e.kind(),
                io::ErrorKind::Interrupted,
                "the kernel gives no random numbers: {e}"
            );
        }
    }
}

#[cfg(test)]
mod tests;
