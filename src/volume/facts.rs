//! What a node knows of its copy of a volume, beside the copy itself.
//!
//! Owns the facts' types, their text form and their file. Never derives a state from them: that is done at each start,
//! from these and from the log. Invariants: the file is replaced as a whole, so that after a crash it is the old one or the new
//! one; a byte that changed is a named error and never a different fact.
//!
//! The file: one header line `lockstep-facts VERSION SERIAL XXH3 LENGTH`, then LENGTH bytes of JSON. SERIAL counts the
//! saves. XXH3 (16 hexadecimal digits) is taken over the other header fields and the JSON.

mod json;
mod store;
mod wishes;

pub use store::{FactFile, FactStore, FactsError, MemoryFacts};
pub use wishes::{Compress, OnFull, Resync, SyncMode, Wishes};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::parts::Description;
use crate::units::{BlockNo, Generation, LogBlock, Txid, planted};

/// Everything that must survive a restart and can not be read from the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Random identity of the volume, the same on every node.
    #[serde(with = "json::hex")]
    pub volume_id: u128,
    /// The volume's name on this node.
    pub name: String,
    /// What this node is for the volume.
    pub role: Role,
    /// Block size and parts; `None` until the parts were made or adopted.
    #[serde(default)]
    pub description: Option<Description>,
    /// The generations of this copy's history, oldest first.
    pub generations: Vec<Lineage>,
    /// No transaction id up to this one is ever issued again.
    #[serde(with = "json::number")]
    pub high_txid: Txid,
    /// The log's segments that hold something still needed, oldest first.
    pub segments: Vec<Segment>,
    /// From where on the log is kept for mirrors; `None` when nobody needs any of it.
    pub tail: Option<MirrorTail>,
    /// The log's end at the last clean close; `None` while open, and after a crash.
    pub head: Option<LogHead>,
    /// By which a change from outside is noticed; recorded at open and at close.
    pub stamps: Option<OutsideStamps>,
    /// Stamps that are as good: on a mirror until it is known that the log holds the transaction which brings `stamps`, on a
    /// master until an opening has written them.
    #[serde(default)]
    pub other_stamps: Vec<OutsideStamps>,
    /// How much of the volume this copy has.
    pub copy: Copy,
    /// A mirror's copy is a state the master had once it has applied this transaction.
    #[serde(with = "json::number")]
    pub consistent_at: Txid,
    /// The last transaction that this copy's home blocks or its log hold.
    #[serde(with = "json::number")]
    pub applied: Txid,
    /// The last transaction that the master has confirmed as durable at its own side (sync mode: may trail `applied`).
    #[serde(with = "json::number", default)]
    pub confirmed: Txid,
    /// On a mirror: the master's time of day, microseconds, of the newest commit that it is known to show; 0: not known.
    #[serde(default)]
    pub as_of: i64,
    /// On a mirror whose copy is no state of a master: no later transaction is in any of its blocks, acknowledged or not.
    #[serde(with = "json::number", default)]
    pub reach: Txid,
    /// The lowest transaction confirmed by every mirror, as the master last said; the log is kept from here on.
    #[serde(with = "json::number", default)]
    pub floor: Txid,
    /// On a master: while there was no mirror, data was overwritten at home, or something else wrote to the volume, so copies of
    /// an earlier state than this one lack more than the log and the maps say, though they bear its name.
    #[serde(with = "json::number", default)]
    pub logged_since: Txid,
    /// A staged resync is whole, and is being brought home: the copy is neither the old state nor the new one.
    #[serde(default)]
    pub switching: Option<Switch>,
    /// Chain hash at `applied`; 0 where it is not known.
    #[serde(with = "json::hex64")]
    pub chain: u64,
    /// A mirror's copy was changed by something else: not to be promoted without force, to be compared by checksum.
    pub tainted: bool,
    /// On a master: its mirrors, by the name of their node.
    pub peers: BTreeMap<String, PeerFacts>,
    /// On a mirror: blocks differ from the state at `applied`; this side's own dirty map says which.
    #[serde(default)]
    pub own_dirty: bool,
    /// On a mirror: its master, by this node's name for it, as of the last change of role; the catalogue follows it.
    #[serde(default)]
    pub master: String,
    /// On a mirror: the node, by its own name, that brought the newest generation, and all transactions of it.
    #[serde(default)]
    pub sender: String,
    /// Every node that has a part in the volume, as the master last said.
    #[serde(default)]
    pub members: Vec<Member>,
    /// This node, a master, has told another one to be the master, and has not heard what became of it.
    #[serde(default)]
    pub handing_over: Option<HandingOver>,
}

impl Facts {
    /// The facts of a copy that holds nothing yet.
    pub fn blank(volume_id: u128, name: impl Into<String>, role: Role) -> Facts {
        Facts {
            volume_id,
            name: name.into(),
            role,
            description: None,
            generations: Vec::new(),
            high_txid: Txid(0),
            segments: Vec::new(),
            tail: None,
            head: None,
            stamps: None,
            other_stamps: Vec::new(),
            copy: Copy::Blank,
            consistent_at: Txid(0),
            applied: Txid(0),
            confirmed: Txid(0),
            as_of: 0,
            reach: Txid(0),
            floor: Txid(0),
            logged_since: Txid(0),
            switching: None,
            chain: 0,
            tainted: false,
            peers: BTreeMap::new(),
            own_dirty: false,
            master: String::new(),
            sender: String::new(),
            members: Vec::new(),
            handing_over: None,
        }
    }

    /// Sets the stamps, and that no others are expected.
    pub fn set_stamps(&mut self, stamps: Option<OutsideStamps>) {
        self.stamps = stamps;
        self.other_stamps.clear();
    }
}

/// A node that has a part in a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Its name, as the master knows it.
    pub name: String,
    /// Where it listens; empty where that is not known.
    pub address: String,
    /// Its key, as `node fingerprint` prints it.
    pub fingerprint: String,
}

/// A hand-over whose end is not known.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HandingOver {
    /// The peer that may be the master.
    pub to: String,
    /// Names the hand-over.
    #[serde(with = "json::hex64")]
    pub token: u64,
}

/// What a node is for one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Writes, and sends.
    Master,
    /// Read-only; follows a master.
    Mirror,
}

/// One read-write opening by one master, and where it leaves the history before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lineage {
    /// The opening.
    #[serde(with = "json::generation")]
    pub generation: Generation,
    /// The last transaction of the generation before that belongs to this history; no transaction has the id 1, which stands
    /// for none. [`NOTHING`]: what was opened was no state of a master, and nothing before belongs to it.
    #[serde(with = "json::number")]
    pub fork: Txid,
}

/// The fork of a history that takes nothing over: it begins with a copy that was promoted half made.
pub const NOTHING: Txid = Txid(0);

impl Lineage {
    /// An opening of a copy that was `whole`, and had everything up to `last`, or was not.
    pub fn opening(generation: Generation, last: Txid, whole: bool) -> Lineage {
        let fork = match whole {
            _ if planted::is("forget-fork") => Txid(u64::from(u32::MAX)),
            true => last.max(Txid(1)),
            false => NOTHING,
        };
        Lineage { generation, fork }
    }
}

/// A run of transactions in the log, adjacent in it and in their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Segment {
    /// The opening that wrote it.
    #[serde(with = "json::generation")]
    pub generation: Generation,
    /// Its first transaction.
    #[serde(with = "json::number")]
    pub first_txid: Txid,
    /// Where that begins.
    #[serde(with = "json::number")]
    pub first_block: LogBlock,
}

/// The oldest transaction that the log keeps for mirrors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MirrorTail {
    /// Where it begins.
    #[serde(with = "json::number")]
    pub log_block: LogBlock,
    /// The first transaction that is still kept, or a lower bound of its id: nothing was issued between the two.
    #[serde(with = "json::number")]
    pub txid: Txid,
    /// The opening that wrote it.
    #[serde(with = "json::generation")]
    pub generation: Generation,
}

/// Where the log ends after a clean close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogHead {
    /// The log block after the last transaction: the next one begins there.
    #[serde(with = "json::number")]
    pub log_block: LogBlock,
    /// The last transaction.
    #[serde(with = "json::number")]
    pub txid: Txid,
    /// Chain hash at it.
    #[serde(with = "json::hex64")]
    pub chain: u64,
}

/// What something else that writes to the volume (a kernel mount, e2fsck) would change. Kernel names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OutsideStamps {
    /// Mounts since the last check.
    pub s_mnt_count: u16,
    /// Last mount, seconds since 1970.
    pub s_mtime: i64,
    /// Last write of the superblock, seconds since 1970.
    pub s_wtime: i64,
    /// Last check, seconds since 1970.
    pub s_lastcheck: i64,
    /// jbd2's `s_sequence`.
    pub journal_sequence: u32,
    /// Change time of each part, in ns since 1970; `None` for devices.
    pub ctimes: Vec<Option<i128>>,
}

/// What a copy becomes once its staging log is brought home.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Switch {
    /// The random id of the staging log.
    #[serde(with = "json::hex")]
    pub staging: u128,
    /// The history that comes with it.
    pub generations: Vec<Lineage>,
    /// The transaction that the copy is at then.
    #[serde(with = "json::number")]
    pub consistent_at: Txid,
    /// Chain hash at it.
    #[serde(with = "json::hex64")]
    pub chain: u64,
    /// The log keeps its place: nothing is laid over its blocks.
    pub keep_log: bool,
}

/// How much of the volume a copy has.
#[derive(Clone, core::marker::Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Copy {
    /// Nothing.
    Blank,
    /// The blocks before `cursor`, as of `txid`: a first copy was interrupted.
    Partial {
        /// The first block not copied.
        #[serde(with = "json::number")]
        cursor: BlockNo,
        /// The last transaction that is in the blocks before it.
        #[serde(with = "json::number")]
        txid: Txid,
    },
    /// Every allocated block, though perhaps of different times (`consistent_at`).
    Complete,
}

/// What a master knows of one of its mirrors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PeerFacts {
    /// Every transaction up to this one is acknowledged by the mirror, or recorded in its dirty map.
    #[serde(with = "json::number")]
    pub acked: Txid,
    /// Order was given up for a dirty map.
    pub cracked: bool,
    /// What the state machine wants remembered.
    #[serde(flatten)]
    pub record: PeerRecord,
}

/// What a dirty map knows of the time before it was begun, until its mirror is in INSYNC. Which blocks of a half-made copy
/// are of which time, only the map says by which it was being made.
#[derive(
    Clone, core::marker::Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum MapKnows {
    /// All of it.
    #[default]
    Everything,
    /// Nothing: the mirror was made a moment ago, perhaps over a copy that another map was at work on.
    Nothing,
    /// What a mirror kept for the others, before it was promoted.
    Heir,
}

/// What of a mirror's state outlasts its master's node. Facts, never a state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PeerRecord {
    /// The buffer is secured.
    #[serde(default)]
    pub secured: bool,
    /// The operator paused it.
    #[serde(default)]
    pub paused: bool,
    /// The severe failure that stopped it: the code of its cause, and the detail.
    #[serde(default)]
    pub error: Option<(String, String)>,
    /// The volume was changed from outside since this mirror was last equal, or its dirty map was lost.
    #[serde(default)]
    pub changed_outside: bool,
    /// What its dirty map knows of an earlier one's time.
    #[serde(default)]
    pub map_knows: MapKnows,
    /// Cap of the bulk replicator, bytes a second, as given when the mirror was made; `wishes` may say otherwise.
    #[serde(default)]
    pub rate: Option<u64>,
    /// What the operator asked for.
    #[serde(default)]
    pub wishes: Wishes,
    /// It was in INSYNC once.
    #[serde(default)]
    pub once_insync: bool,
}

#[cfg(test)]
mod tests;
