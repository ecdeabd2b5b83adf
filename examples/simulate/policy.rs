//! `mirror set`, at any moment: how a mirror is treated, and that it is treated so at once.
//!
//! Owns the choice of what an operator asks for.

use lockstepfs::mirror::policy::{SyncMode, Wishes};

use super::node::Host;
use super::sync::listen;
use super::world::World;

impl World {
    /// What an operator may ask for.
    pub fn some_wishes(&self) -> Wishes {
        let random = &self.random;
        let asked = |percent| random.chance(percent);
        let mode = match random.below(2) {
            0 => SyncMode::Async,
            _ => SyncMode::Sync,
        };
        Wishes {
            mode: asked(70).then_some(mode),
            strict: asked(50).then(|| random.chance(40)),
            ..Wishes::default()
        }
    }

    /// `mirror set`, for one mirror of one volume.
    pub fn set(&mut self) -> bool {
        let v = self.some_volume();
        let Some(n) = self.master_of(v) else {
            return false;
        };
        let Some(Host::Master(mut host)) = self.take_host(n, v) else {
            return false;
        };
        let peers: Vec<usize> = host.drivers.keys().copied().collect();
        let at = self.random.below(peers.len() as u64) as usize;
        if let Some(peer) = peers.get(at) {
            let wishes = self.some_wishes();
            self.note(|| format!("v{v} n{n}->n{peer}: set {wishes:?}"));
            let driver = host.drivers.get_mut(peer).expect("one of its keys");
            driver.mirror.set_wishes(wishes);
            listen(&host.open);
            self.answered(v, &host, None);
        }
        self.put_host(n, v, Host::Master(host));
        !peers.is_empty()
    }
}
