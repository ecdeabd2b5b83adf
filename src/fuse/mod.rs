//! The FUSE adapter: decode, call the engine, map the errno, reply, invalidate.
//!
//! Owns the mounts of volumes, the kernel's view of them, and the order of invalidations. Never decides anything about
//! files: that is the engine's. Invariants: an invalidation is sent from a thread that holds no lock and is no request
//! handler (the kernel would deadlock); a request that waits for a disk's flush gives its reply to another thread.

mod adapter;
mod convert;
mod invalidate;
mod nodes;
mod seeker;
mod space;
mod stale;
mod syncer;
mod trial;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};

pub use adapter::RequestCounts;
pub use stale::{clear_stale, detach, mounted_as};
pub use trial::try_mount;

use crate::fs::Fs;
use crate::fuse::adapter::Adapter;
use crate::fuse::invalidate::Invalidator;
use crate::journal::Hint;

/// How long the kernel may trust names and attributes: until it is told otherwise. On a master it makes every change
/// itself; on a mirror it is notified.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Read-ahead of a mount in KiB, so that sequential reads come as requests of 1 MiB.
const READ_AHEAD_KB: u32 = 2048;

/// How a volume is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The volume's name, for the mount table.
    pub volume: String,
    /// Nothing can be changed through the mount.
    pub read_only: bool,
    /// The volume is a mirror: changes come from a follower, and the kernel is notified of them.
    pub mirror: bool,
    /// Threads that take requests.
    pub threads: usize,
    /// Whether users other than the one who mounts may use it.
    pub allow_other: bool,
}

/// What can go wrong with a mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is no /dev/fuse, or it can not be opened.
    #[error(
        "/dev/fuse can not be opened: {0}; load the fuse module, or run where /dev/fuse is allowed"
    )]
    NoFuse(std::io::Error),
    /// The mount point is not a directory, or not there.
    #[error("{}: {source}; create the directory first", dir.display())]
    MountPoint {
        /// The directory.
        dir: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Something else is mounted there.
    #[error("{} is a mount point of {what} already; unmount that first", dir.display())]
    Busy {
        /// The directory.
        dir: PathBuf,
        /// What is mounted there.
        what: String,
    },
    /// The kernel, or fusermount3, refused.
    #[error("mounting on {}: {source}{}", dir.display(), hint(source))]
    Mount {
        /// The directory.
        dir: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Unmounting failed.
    #[error("unmounting {}: {source}; end the programs that use it, or use --lazy", dir.display())]
    Unmount {
        /// The directory.
        dir: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl MountError {
    fn refused(dir: &Path, source: std::io::Error) -> MountError {
        let text = source.to_string();
        let line = text.trim_end();
        MountError::Mount {
            dir: dir.to_path_buf(),
            // What fusermount3 printed comes with the end of its line.
            source: match line.len() == text.len() {
                true => source,
                false => std::io::Error::new(source.kind(), line),
            },
        }
    }
}

fn hint(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => {
            "; users other than root need fusermount3 (Debian package fuse3) and access to /dev/fuse"
        }
        _ => "",
    }
}

fn open_device() -> Result<(), MountError> {
    let device = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    device.map(drop).map_err(MountError::NoFuse)
}

/// A mounted volume. Dropping it unmounts, lazily if need be.
#[derive(Debug)]
pub struct Mount {
    dir: Box<Path>,
    fsname: String,
    session: Option<Box<BackgroundSession>>,
    invalidator: Box<Invalidator>,
    counts: Arc<RequestCounts>,
    withdrawn: Arc<AtomicBool>,
}

impl Mount {
    /// Mounts `fs` on `dir`; when this returns, it can be used. Where mount(2) is not permitted it is done by
    /// fusermount3 (`fuser` sees to that), so that ordinary users can mount.
    pub fn new(fs: Arc<Fs>, dir: &Path, options: &MountOptions) -> Result<Mount, MountError> {
        let mount_error = |source| MountError::refused(dir, source);
        open_device()?;
        clear_stale(dir)?;
        let dir = dir
            .canonicalize()
            .and_then(|path| match path.is_dir() {
                true => Ok(path),
                false => Err(std::io::ErrorKind::NotADirectory.into()),
            })
            .map_err(|source| MountError::MountPoint {
                dir: dir.to_path_buf(),
                source,
            })?;
        if let Some(what) = mounted_as(&dir) {
            return Err(MountError::Busy { dir, what });
        }
        let fsname = match options.mirror {
            true => format!("lockstep-mirror:{}", options.volume),
            false => format!("lockstep:{}", options.volume),
        };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(fsname.clone()),
            MountOption::Subtype("lockstep".to_string()),
            MountOption::DefaultPermissions,
            match options.read_only {
                true => MountOption::RO,
                false => MountOption::RW,
            },
        ];
        if rustix::process::geteuid().is_root() {
            config.mount_options.push(MountOption::Dev);
            config.mount_options.push(MountOption::Suid);
        }
        config.acl = match options.allow_other {
            true => SessionACL::All,
            false => SessionACL::Owner,
        };
        config.n_threads = Some(options.threads.max(1));
        config.clone_fd = true;
        let counts = Arc::new(RequestCounts::default());
        let adapter = Adapter::new(fs, options, Arc::clone(&counts));
        let nodes = adapter.nodes();
        let withdrawn = adapter.withdrawn();
        let kernel = adapter.kernel();
        let session = Session::new(adapter, &dir, &config)
            .and_then(Session::spawn)
            .map_err(mount_error)?;
        let _ = kernel.set(session.notifier());
        let invalidator = Invalidator::start(session.notifier(), nodes).map_err(mount_error)?;
        stale::set_read_ahead(&dir, READ_AHEAD_KB);
        Ok(Mount {
            dir: dir.into(),
            fsname,
            session: Some(Box::new(session)),
            invalidator: Box::new(invalidator),
            counts,
            withdrawn,
        })
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Tells the kernel, soon and in order, to forget what it knows of these.
    pub fn invalidate(&self, hints: Vec<Hint>) {
        self.invalidator.send(hints);
    }

    /// Waits until everything that was to be invalidated has been.
    pub fn settle(&self) {
        self.invalidator.settle();
    }

    /// How many requests of each kind came.
    pub fn requests(&self) -> &RequestCounts {
        &self.counts
    }

    /// Whether it is still in the mount table and served.
    pub fn is_mounted(&self) -> bool {
        let serving = self
            .session
            .as_ref()
            .is_some_and(|session| !session.guard.is_finished());
        serving && mounted_as(&self.dir).is_some_and(|what| what == self.fsname)
    }

    /// The copy behind a mirror's mount is no longer a state that its master had: whoever still uses the mount gets ESTALE.
    pub fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::SeqCst);
    }

    /// Unmounts; `lazy` detaches a busy mount from the tree and lets its users finish.
    pub fn unmount(mut self, lazy: bool) -> Result<(), (Mount, MountError)> {
        match self.detach(lazy) {
            Ok(()) => {
                self.end();
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }

    fn detach(&self, lazy: bool) -> Result<(), MountError> {
        if mounted_as(&self.dir).is_none_or(|what| what != self.fsname) {
            return Ok(());
        }
        stale::detach(&self.dir, lazy).map_err(|source| MountError::Unmount {
            dir: self.dir.to_path_buf(),
            source,
        })
    }

    /// Ends the session of a mount that is out of the tree. A busy, detached one ends when its last user does.
    fn end(&mut self) {
        if let Some(session) = self.session.take() {
            drop(session);
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.session.is_some() {
            if let Err(error) = self.detach(true) {
                tracing::warn!(%error, "a mount is left behind");
            }
            self.end();
        }
    }
}
