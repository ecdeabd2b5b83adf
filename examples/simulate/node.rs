//! A node: what outlasts its process, and the process itself while it runs.
//!
//! Owns the product's objects. What the daemon does around them with threads and sockets (dial, hand frames over, give
//! up) is done here in the same order, one step at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lockstepfs::io::sim::SimClock;
use lockstepfs::mirror::follower::Follower;
use lockstepfs::mirror::master::Mirror;
use lockstepfs::mirror::open::OpenMaster;
use lockstepfs::mirror::policy::OnFull;
use lockstepfs::mirror::roles::Answer;
use lockstepfs::units::Txid;
use parking_lot::Mutex;
use states::State;

use super::device::{Home, Power};
use super::files::Writing;
use super::net::ConnId;
use super::policy::Door;
use super::sync::Syncs;

pub struct Node {
    pub name: String,
    pub power: Arc<Power>,
    pub clock: Arc<SimClock>,
    /// By volume: kept on disk.
    pub homes: BTreeMap<usize, Home>,
    /// The process: what it serves, by volume; none while the node is down.
    pub hosts: Option<BTreeMap<usize, Host>>,
    /// It waits for a slow disk until then.
    pub busy_until: Duration,
    /// A disk was made to fail: errors are no surprise, until it is mended.
    pub faulty: bool,
    /// The power goes so many requests after the end of a copy has come.
    pub cut_at_switch: Option<u64>,
}

impl Node {
    pub fn is_up(&self) -> bool {
        self.hosts.is_some()
    }
}

pub enum Host {
    Master(Box<MasterHost>),
    Mirror(Box<MirrorHost>),
    /// It asks the other nodes who is the master.
    Asking(Asking),
    /// It could not be opened, or gave up: the operator has to mend the disk and start the node again.
    Closed(String),
}

/// A volume that is opened once the answers have come, or no longer are waited for.
pub struct Asking {
    /// Names the questions.
    pub ticket: u64,
    pub until: Duration,
    /// Nodes that have not answered.
    pub waiting: BTreeSet<usize>,
    pub answers: Vec<Answer>,
    /// A disk failed before the node was started.
    pub faulty: bool,
}

pub struct MasterHost {
    pub open: OpenMaster,
    /// By the number of the mirror's node.
    pub drivers: BTreeMap<usize, Driver>,
    /// When the commit timer is due.
    pub commit_at: Duration,
    pub tick_at: Duration,
    /// The last transaction of which the drivers know.
    pub told: Txid,
    /// The first half of a commit is done.
    pub committing: bool,
    /// Who waits for mirrors.
    pub syncs: Arc<Mutex<Syncs>>,
    /// Who throttles, and whom it holds back.
    pub door: Arc<Door>,
    pub writing: Option<Writing>,
}

/// What was sent since a copy or a repair began.
#[derive(Clone, Copy, Debug)]
pub struct Stint {
    pub bulk: u64,
    pub changed: u64,
    /// Bytes that the map had at the beginning; none for a comparison or a first copy.
    pub marked: Option<u64>,
}

pub struct Driver {
    pub mirror: Mirror,
    pub conn: Option<ConnId>,
    /// A dial ends then.
    pub dial_at: Option<Duration>,
    pub state: State,
    pub stint: Option<Stint>,
    pub verifying: bool,
    /// Since it was made: it was INSYNC once, and nothing happened since that excuses a comparison.
    pub was_insync: bool,
}

impl Driver {
    /// Whether applications may have to wait for this mirror for as long as it takes.
    pub fn may_hold_back(&self) -> bool {
        let policy = self.mirror.policy();
        (policy.is_sync() && policy.strict) || policy.on_full == OnFull::Throttle
    }
}

pub struct MirrorHost {
    pub follower: Follower,
    pub call: Option<ConnId>,
    /// A copy goes home directly on the present call.
    pub copying: bool,
    /// When the timer that brings the log home is due.
    pub commit_at: Duration,
    pub tick_at: Duration,
    /// The transaction at which the copy was compared last, since it was opened.
    pub seen: Option<Txid>,
}
