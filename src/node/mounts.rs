//! The mount of one volume: wanted by the operator, possible when the volume is open, there when both are so.
//!
//! Owns the FUSE mount. Never decides whether a volume may be mounted: whoever opens the volume offers it, and takes
//! the offer back. Invariants: a mount that is wanted and possible is there, or its trouble is known and it is tried
//! again; what is not offered is not mounted. The lock is held across mounting and unmounting, so a watcher only tries it.

use super::catalogue::MountPoint;
use super::refusal::{Code, Refusal};
use crate::fs::Fs;
use crate::fuse::{Mount, MountError, MountOptions, clear_stale};
use crate::journal::Hint;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a failed mount waits before it is tried again by itself.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// An open volume that may be mounted.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The engine.
    pub fs: Arc<Fs>,
    /// Whether it can be changed.
    pub writable: bool,
    /// Whether it follows a master.
    pub mirror: bool,
}

/// How mounts are made on this node.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Threads that take requests.
    pub threads: usize,
    /// Whether other users may use it.
    pub allow_other: bool,
}

/// What status shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// In the mount table, and served.
    pub mounted: bool,
    /// Refuses writes.
    pub read_only: bool,
    /// Why it is not mounted although it is wanted and possible.
    pub trouble: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    wanted: Option<MountPoint>,
    offer: Option<Offer>,
    mount: Option<Mount>,
    trouble: Option<(String, Instant)>,
}

/// The mount of one volume.
#[derive(Debug)]
pub struct Mounts {
    volume: String,
    settings: Settings,
    state: Mutex<State>,
}

fn refusal(error: &MountError) -> Refusal {
    let (code, remedy) = match error {
        MountError::NoFuse(_) => (Code::Unsupported, "modprobe fuse; ls -l /dev/fuse"),
        MountError::MountPoint { .. } => (Code::Invalid, "mkdir -p DIR"),
        MountError::Busy { .. } => (Code::Busy, "choose another directory, or unmount it"),
        MountError::Unmount { .. } => (Code::Busy, "fuser -vm DIR shows who uses it"),
        MountError::Mount { .. } => (Code::Io, "see the daemon's log"),
    };
    Refusal::new(code, super::volumes::chain(error), remedy)
}

impl State {
    fn mounted(&self) -> bool {
        self.mount.as_ref().is_some_and(Mount::is_mounted)
    }

    fn read_only(&self) -> bool {
        let asked = self.wanted.as_ref().is_some_and(|w| w.read_only);
        let writable = |o: &Offer| o.writable && o.fs.failure().is_none();
        asked || !self.offer.as_ref().is_some_and(writable)
    }

    /// Mounts what is wanted and possible. `Ok(false)`: nothing is offered.
    fn mount(&mut self, volume: &str, settings: Settings) -> Result<bool, MountError> {
        let (Some(wanted), Some(offer)) = (&self.wanted, &self.offer) else {
            return Ok(false);
        };
        if self.mounted() {
            return Ok(true);
        }
        // Somebody unmounted it: what is left of it ends here.
        drop(self.mount.take());
        let options = MountOptions {
            volume: volume.to_owned(),
            read_only: self.read_only(),
            mirror: offer.mirror,
            threads: settings.threads,
            allow_other: settings.allow_other,
        };
        let mounted = Mount::new(Arc::clone(&offer.fs), &wanted.dir, &options);
        match mounted {
            Ok(mount) => {
                self.mount = Some(mount);
                self.trouble = None;
                Ok(true)
            }
            Err(error) => {
                let text = super::volumes::chain(&error);
                let known = self.trouble.as_ref().is_some_and(|(t, _)| *t == text);
                if !known {
                    tracing::warn!(volume, "not mounted: {text}");
                }
                self.trouble = Some((text, Instant::now()));
                Err(error)
            }
        }
    }

    fn unmount(&mut self, lazy: bool) -> Result<(), MountError> {
        let Some(mount) = self.mount.take() else {
            return Ok(());
        };
        match mount.unmount(lazy) {
            Ok(()) => Ok(()),
            Err((mount, error)) => {
                self.mount = Some(mount);
                Err(error)
            }
        }
    }
}

/// Takes away the mount that a daemon left on `dir`.
pub fn take_away(dir: &Path) -> std::io::Result<()> {
    crate::fuse::detach(dir, true)
}

/// Why nothing can be mounted on `dir`, an empty directory; `None` if something can.
pub fn trouble_mounting(dir: &Path) -> Option<String> {
    let tried = crate::fuse::try_mount(dir);
    tried.err().map(|error| super::volumes::chain(&error))
}

impl Mounts {
    /// The mount of `volume`; `wanted` is what the catalogue remembers.
    pub fn new(volume: &str, settings: Settings, wanted: Option<MountPoint>) -> Mounts {
        Mounts {
            volume: volume.to_owned(),
            settings,
            state: Mutex::new(State {
                wanted,
                ..State::default()
            }),
        }
    }

    /// Whether a mount is wanted.
    pub fn wanted(&self) -> Option<MountPoint> {
        self.state.lock().wanted.clone()
    }

    /// Clears what a dead daemon left at the mount point, whether or not the volume can be mounted now.
    pub fn clear_stale(&self) {
        let wanted = self.wanted();
        if let Some(wanted) = wanted
            && let Err(e) = clear_stale(&wanted.dir)
        {
            tracing::warn!(volume = self.volume, "{e}");
        }
    }

    /// The volume is open: a wanted mount appears. What goes wrong is shown, and tried again.
    pub fn offer(&self, offer: Offer) {
        let mut state = self.state.lock();
        state.offer = Some(offer);
        // Trouble is kept for status.
        let _ = state.mount(&self.volume, self.settings);
    }

    /// The volume is not to be used any more: the mount goes, lazily if somebody uses it. It stays wanted.
    pub fn withdraw(&self) {
        let mut state = self.state.lock();
        state.offer = None;
        state.trouble = None;
        if let Err(error) = state.unmount(false) {
            tracing::warn!(volume = self.volume, "{error}; detached");
            if let Err(error) = state.unmount(true) {
                tracing::error!(volume = self.volume, "{error}");
            }
        }
        drop(state.mount.take());
    }

    /// Mounts on `dir` at the operator's wish. `Ok(true)`: it is there; `Ok(false)`: it will be, once it is offered.
    pub fn mount(&self, dir: &Path, read_only: bool) -> Result<bool, Refusal> {
        let mut state = self.state.lock();
        if let Some(wanted) = &state.wanted {
            let name = &self.volume;
            if wanted.dir != dir {
                return Err(Refusal::new(
                    Code::NotAllowed,
                    format!("volume {name} is mounted on {}", wanted.dir.display()),
                    format!("lockstep umount {name}"),
                ));
            }
            let writable = state.offer.as_ref().is_some_and(|o| o.writable);
            if wanted.read_only != read_only && writable && state.mounted() {
                let how = if wanted.read_only {
                    "read-only"
                } else {
                    "read-write"
                };
                return Err(Refusal::new(
                    Code::NotAllowed,
                    format!("volume {name} is mounted {how}"),
                    format!("lockstep umount {name}, then mount it as you want it"),
                ));
            }
        }
        let before = state.wanted.replace(MountPoint {
            dir: dir.to_owned(),
            read_only,
        });
        let mounted = state.mount(&self.volume, self.settings);
        mounted.map_err(|error| {
            state.trouble = None;
            state.wanted = before;
            refusal(&error)
        })
    }

    /// Unmounts at the operator's wish; what was mounted, if anything was.
    pub fn umount(&self) -> Result<Option<MountPoint>, Refusal> {
        let mut state = self.state.lock();
        state.unmount(false).map_err(|error| refusal(&error))?;
        state.trouble = None;
        Ok(state.wanted.take())
    }

    /// Looks after the mount: brings back what somebody unmounted. `None` when somebody works on it just now.
    pub fn look_after(&self) -> Option<Shown> {
        let mut state = self.state.try_lock()?;
        let waits = match &state.trouble {
            Some((_, since)) => since.elapsed() < TRY_AGAIN,
            None => false,
        };
        if state.wanted.is_some() && state.offer.is_some() && !waits && !state.mounted() {
            let came_back = state.mount.is_some();
            if let Ok(true) = state.mount(&self.volume, self.settings)
                && came_back
            {
                tracing::info!(volume = self.volume, "mounted again");
            }
        }
        Some(shown(&state))
    }

    /// What status shows.
    pub fn shown(&self) -> Shown {
        shown(&self.state.lock())
    }

    /// The engine of the open volume, if it is open.
    pub fn engine(&self) -> Option<Arc<Fs>> {
        let state = self.state.try_lock()?;
        state.offer.as_ref().map(|o| Arc::clone(&o.fs))
    }

    /// Requests of each kind that came through the mount.
    pub fn requests(&self) -> Vec<(&'static str, u64)> {
        let state = self.state.try_lock();
        let mount = state.as_ref().and_then(|state| state.mount.as_ref());
        mount.map_or(Vec::new(), |mount| mount.requests().list())
    }

    /// Tells the kernel what a mirror's mount must forget.
    pub fn invalidate(&self, hints: Vec<Hint>) {
        if let Some(mount) = &self.state.lock().mount {
            mount.invalidate(hints);
        }
    }
}

fn shown(state: &State) -> Shown {
    Shown {
        mounted: state.mounted(),
        read_only: state.read_only(),
        trouble: state.trouble.as_ref().map(|(text, _)| text.clone()),
    }
}
