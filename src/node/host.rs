//! One volume on this node: whether it is open, what is being done to it, and what `status` says of it.
//!
//! Owns the volume's operator lock and its published view. Invariant: whoever wants to know how the volume stands
//! reads the view, and never waits for whoever works on the volume; whoever works on it holds the operator lock and is
//! named to others who want it.

use super::mounts::Mounts;
use super::protocol::{MirrorStatus, VolumeStatus};
use super::refusal::{Code, Refusal};
use crate::volume::Volume;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Weak;
use std::time::{Duration, Instant};

/// How long an operator's request waits for another one on the same volume.
const BUSY_AFTER: Duration = Duration::from_secs(10);

/// One volume of a running node. `E` is what holds it open.
#[derive(Debug)]
pub struct VolumeHost<E> {
    name: String,
    /// Its mount.
    pub mounts: Mounts,
    /// The open parts. A mount that is detached and still in use holds them open when the volume is closed: whoever opens
    /// it again takes these. Taken alone, for moments.
    pub parts: Mutex<Weak<Volume>>,
    /// The operator lock: held for as long as an operation takes, across I/O. Taken before any other lock of the node.
    engine: Mutex<E>,
    /// Who holds it, since when. Taken alone, for moments.
    doing: Mutex<Option<(&'static str, Instant)>>,
    /// What status shows. Taken alone, for moments: nothing is waited for while it is held.
    view: Mutex<VolumeStatus>,
}

/// The operator lock, held.
#[derive(Debug)]
pub struct Held<'a, E> {
    engine: MutexGuard<'a, E>,
    doing: &'a Mutex<Option<(&'static str, Instant)>>,
}

impl<E> std::ops::Deref for Held<'_, E> {
    type Target = E;

    fn deref(&self) -> &E {
        &self.engine
    }
}

impl<E> std::ops::DerefMut for Held<'_, E> {
    fn deref_mut(&mut self) -> &mut E {
        &mut self.engine
    }
}

impl<E> Drop for Held<'_, E> {
    fn drop(&mut self) {
        *self.doing.lock() = None;
    }
}

impl<E> VolumeHost<E> {
    /// A host whose view is `view`; the view has its name.
    pub fn new(engine: E, view: VolumeStatus, mounts: Mounts) -> VolumeHost<E> {
        VolumeHost {
            name: view.name.clone(),
            mounts,
            parts: Mutex::default(),
            engine: Mutex::new(engine),
            doing: Mutex::new(None),
            view: Mutex::new(view),
        }
    }

    /// The volume's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the operator lock to do `what` (a gerund: `checking`), or says who has it.
    pub fn hold(&self, what: &'static str) -> Result<Held<'_, E>, Refusal> {
        self.hold_within(what, BUSY_AFTER)
    }

    /// The same, waiting for at most `limit`.
    pub fn hold_within(&self, what: &'static str, limit: Duration) -> Result<Held<'_, E>, Refusal> {
        let Some(engine) = self.engine.try_lock_for(limit) else {
            let name = &self.name;
            let message = match *self.doing.lock() {
                Some((what, since)) => format!(
                    "volume {name} is busy: {what}, for {} s now",
                    since.elapsed().as_secs()
                ),
                None => format!("volume {name} is busy"),
            };
            let remedy = format!("wait, and look at it: lockstep status {name}");
            return Err(Refusal::new(Code::Busy, message, remedy));
        };
        *self.doing.lock() = Some((what, Instant::now()));
        Ok(Held {
            engine,
            doing: &self.doing,
        })
    }

    /// What status shows.
    pub fn view(&self) -> VolumeStatus {
        self.view.lock().clone()
    }

    /// Changes what status shows. `change` must not wait for anything. Whether something changed.
    pub fn publish(&self, change: impl FnOnce(&mut VolumeStatus)) -> bool {
        let mut view = self.view.lock();
        let before = view.clone();
        change(&mut view);
        *view != before
    }

    /// Puts one mirror's figures into the view, in the order of names.
    pub fn publish_mirror(&self, mirror: MirrorStatus) -> bool {
        self.publish(|view| {
            let place = view.mirrors.binary_search_by(|m| m.peer.cmp(&mirror.peer));
            match place {
                Ok(i) => view.mirrors[i] = mirror,
                Err(i) => view.mirrors.insert(i, mirror),
            }
        })
    }

    /// Takes a mirror out of the view.
    pub fn forget_mirror(&self, peer: &str) -> bool {
        self.publish(|view| view.mirrors.retain(|m| m.peer != peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::mounts::Settings;

    fn host() -> VolumeHost<()> {
        let settings = Settings {
            threads: 1,
            allow_other: false,
        };
        let view = VolumeStatus {
            name: "data".to_owned(),
            ..VolumeStatus::default()
        };
        VolumeHost::new((), view, Mounts::new("data", settings, None))
    }

    #[test]
    fn whoever_is_late_hears_what_is_being_done() {
        let host = host();
        let held = host.hold("checking").unwrap();
        let refused = host
            .hold_within("mounting", Duration::from_millis(10))
            .unwrap_err();
        assert_eq!(refused.code, Code::Busy);
        assert!(refused.message.contains("checking"), "{refused}");
        assert_eq!(host.view().name, "data", "the view needs no lock");
        drop(held);
        host.hold("mounting").unwrap();
    }

    #[test]
    fn mirrors_are_shown_in_the_order_of_their_names() {
        let host = host();
        let mirror = |peer: &str, txid_acked| MirrorStatus {
            peer: peer.into(),
            txid_acked,
            ..MirrorStatus::default()
        };
        assert!(host.publish_mirror(mirror("b", 1)));
        assert!(host.publish_mirror(mirror("a", 1)));
        assert!(host.publish_mirror(mirror("b", 2)));
        assert!(!host.publish_mirror(mirror("b", 2)));
        let shown: Vec<_> = host.view().mirrors;
        assert_eq!(shown, [mirror("a", 1), mirror("b", 2)]);
        assert!(host.forget_mirror("a"));
    }
}
