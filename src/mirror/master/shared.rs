//! What the mirrors of one volume have in common.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::fs::Fs;
use crate::journal::Journal;
use crate::mirror::MirrorError;
use crate::mirror::dirty::DirtyMap;
use crate::mirror::gate::Gate;
use crate::mirror::open::{MapStore, open_map};
use crate::mirror::slot::Slots;
use crate::units::{BlockRange, Generation, Txid};
use crate::volume::Volume;
use crate::volume::facts::{FactStore, Facts};
use crate::wire::message::Member;

/// What all mirrors of a volume share, on its master.
#[derive(Clone)]
pub struct MasterVolume {
    /// The volume's name.
    pub name: String,
    /// The node's name.
    pub node: String,
    /// The parts.
    pub volume: Arc<Volume>,
    /// The log.
    pub journal: Arc<Journal>,
    /// The engine.
    pub fs: Arc<Fs>,
    /// The generation of this opening.
    pub generation: Generation,
    /// The mirrors' places at the log.
    pub slots: Arc<Slots>,
    /// Where writers wait for mirrors.
    pub gate: Arc<Gate>,
    /// The facts.
    pub facts: Arc<Mutex<Facts>>,
    /// Where they are kept.
    pub store: Arc<dyn FactStore>,
    /// Where the maps are kept.
    pub maps: Arc<dyn MapStore>,
    /// The journal file's blocks.
    pub log: Vec<BlockRange>,
    /// The last transaction before this opening ...
    pub fork: Txid,
    /// ... and where the log stood when it began: ids between the two were never issued.
    pub opened_at: Txid,
    /// Every node that has a part in the volume: mirrors are told, so that any of them can take over.
    pub members: Arc<Mutex<Vec<Member>>>,
}

impl MasterVolume {
    /// The position at the log of somebody who has everything up to `txid`.
    pub fn log_position(&self, txid: Txid) -> Txid {
        match self.fork <= txid && txid < self.opened_at {
            true => self.opened_at,
            false => txid,
        }
    }

    /// An empty map of what a staged resync of `peer` has still to send.
    pub(super) fn todo(&self, peer: &str) -> Result<DirtyMap, MirrorError> {
        let blocks = self.volume.blocks_count();
        let (disk, _) = open_map(&*self.maps, blocks, &format!("~todo.{peer}"))?;
        let volume_id = self.facts.lock().volume_id;
        Ok(DirtyMap::create(disk, volume_id, blocks)?)
    }

    /// Whether the log holds everything after `txid`.
    pub fn log_covers(&self, txid: Txid) -> bool {
        txid >= self.facts.lock().logged_since && self.journal.covers(self.log_position(txid))
    }
}
