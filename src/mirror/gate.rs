//! Where writers wait for mirrors: an fsync for those in sync mode, a change for those that throttle.
//!
//! Owns, per mirror, what of its policy and its state writers depend on, and whoever waits. Never does I/O; nothing waits
//! here with a lock of the engine or of the journal held. Invariants: a wait ends when each mirror in question has
//! acknowledged, is no longer in INSYNC (unless strict), or was let go by the operator; a limit that tripped stays so until
//! the lower mark is reached.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::fs::Durability;
use crate::io::Clock;
use crate::journal::Journal;
use crate::mirror::counters::Histogram;
use crate::mirror::policy::{OnFull, Policy};
use crate::units::{Txid, planted};

/// A change is delayed this long at a time while the log has room: reading goes on between two of them.
const SLICE: Duration = Duration::from_millis(100);

/// What writers need to know of one mirror.
#[derive(Debug)]
struct Lane {
    policy: Policy,
    insync: bool,
    /// It was in INSYNC once: a strict mirror is not waited for before its first copy is complete.
    strict_applies: bool,
    /// The operator let it go (pause).
    let_go: bool,
    acked: Txid,
    /// Transactions that it lacks, and bytes of the log that it holds: those behind `after`.
    lacks: u64,
    bytes: u64,
    after: Txid,
    log_bytes: u64,
    /// Bytes that are on their way to the log, as of the last change.
    ahead: u64,
    /// What tripped, and nobody was told yet.
    news: Option<String>,
    by_count: bool,
    by_bytes: bool,
    waits: Waits,
}

/// How often and how long writers waited for one mirror, and which limits tripped.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Waits {
    /// Times that the number of transactions passed its limit.
    pub trips_by_count: u64,
    /// Times that the bytes in the log passed their mark.
    pub trips_by_bytes: u64,
    /// Whether the first is in force now.
    pub over_count: bool,
    /// Whether the second is in force now.
    pub over_bytes: bool,
    /// Most transactions that the mirror lacked at one time.
    pub queue_highest: u64,
    /// Most bytes of the log that it held at one time.
    pub queue_bytes_highest: u64,
    /// Syncs that waited for the mirror, and how long in all, us.
    pub syncs_delayed: u64,
    /// In all, us.
    pub syncs_delayed_us: u64,
    /// Changes that were delayed to slow writers.
    pub writers_delayed: u64,
    /// In all, us.
    pub writers_delayed_us: u64,
    /// How long syncs waited.
    pub sync_wait: Histogram,
}

type Done = Box<dyn FnOnce() + Send>;

struct Waiter {
    txid: Txid,
    since: Duration,
    done: Done,
}

#[derive(Default)]
struct State {
    lanes: BTreeMap<String, Lane>,
    waiters: Vec<Waiter>,
    /// Bytes of changes that were admitted and are not in a transaction yet.
    entering: u64,
    /// Mirrors that are away are waited for no more.
    stopping: bool,
    closed: bool,
}

/// The gate of one volume.
pub struct Gate {
    clock: Arc<dyn Clock>,
    /// What mirrors hold of it is looked up for every change: their own measure comes late when it counts.
    journal: OnceLock<Weak<Journal>>,
    state: Mutex<State>,
    changed: Condvar,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl Lane {
    /// Whether an fsync of `txid` still waits for this mirror.
    fn holds(&self, txid: Txid) -> bool {
        if self.acked >= txid || self.let_go {
            return false;
        }
        let sync = self.policy.is_sync() && !planted::is("ack-without-mirror");
        match self.insync {
            true => sync || (self.throttles() && self.by_count),
            false => sync && self.policy.strict && self.strict_applies,
        }
    }

    fn throttles(&self) -> bool {
        self.policy.on_full == OnFull::Throttle
    }

    fn slows(&self) -> bool {
        self.insync && self.by_bytes && self.throttles() && !self.let_go
    }

    /// Trips and releases the limits; `coming` bytes are about to be written.
    fn measure(&mut self, coming: u64) {
        let bytes = self.bytes + self.ahead + coming;
        let limit = self.policy.async_limit;
        let (low, high) = self.policy.water(self.log_bytes);
        self.waits.queue_highest = self.waits.queue_highest.max(self.lacks);
        self.waits.queue_bytes_highest = self.waits.queue_bytes_highest.max(self.bytes);
        if self.by_count {
            self.by_count = self.lacks > limit / 2;
        } else if self.lacks > limit {
            self.by_count = true;
            self.waits.trips_by_count += 1;
            self.news = Some(format!(
                "it lacks {} transactions, more than {limit}",
                self.lacks
            ));
        }
        if self.by_bytes {
            self.by_bytes = bytes > low;
        } else if self.log_bytes > 0 && bytes > high {
            self.by_bytes = true;
            self.waits.trips_by_bytes += 1;
            self.news = Some(format!(
                "it holds {bytes} bytes of the buffer, more than {high}"
            ));
        }
        self.waits.over_count = self.by_count;
        self.waits.over_bytes = self.by_bytes;
    }

    /// Whether `coming` more bytes would take of the last of the log, which is for what can not wait.
    fn is_full(&self, coming: u64) -> bool {
        let (_, high) = self.policy.water(self.log_bytes);
        let most = high + (self.log_bytes - high) / 2;
        self.slows() && self.bytes + self.ahead + coming > most
    }
}

impl State {
    fn holds(&self, txid: Txid) -> bool {
        let counts = |lane: &&Lane| lane.insync || !self.stopping;
        !self.closed
            && self
                .lanes
                .values()
                .filter(counts)
                .any(|lane| lane.holds(txid))
    }

    /// Admits a change of `len` bytes that has waited for so long, if it may be made now.
    fn admits(&mut self, len: u64, waited: Option<Duration>) -> bool {
        let coming = self.entering + len;
        if self.closed || !self.lanes.values().any(Lane::throttles) {
            self.entering = coming;
            return true;
        }
        let lanes = self.lanes.values_mut();
        for lane in lanes.filter(|lane| lane.throttles()) {
            lane.measure(coming);
        }
        let slows = self.lanes.values().any(Lane::slows);
        // Who has everything can not make room: a change for which the log is too small is let in alone.
        let held = |lane: &Lane| lane.bytes + lane.ahead + self.entering > 0;
        let mut lanes = self.lanes.values();
        let full = lanes.any(|lane| held(lane) && lane.is_full(coming));
        if slows && (full || waited.unwrap_or_default() < SLICE) {
            return false;
        }
        self.entering = coming;
        if let Some(elapsed) = waited {
            let lanes = self.lanes.values_mut();
            for lane in lanes.filter(|lane| lane.throttles()) {
                lane.waits.writers_delayed += 1;
                lane.waits.writers_delayed_us += elapsed.as_micros() as u64;
            }
        }
        true
    }

    /// Takes out those who no longer wait.
    fn released(&mut self, now: Duration) -> Vec<Done> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < self.waiters.len() {
            if self.holds(self.waiters[at].txid) {
                at += 1;
                continue;
            }
            let waiter = self.waiters.swap_remove(at);
            let us = now.saturating_sub(waiter.since).as_micros() as u64;
            for lane in self.lanes.values_mut() {
                if lane.policy.is_sync() || lane.throttles() {
                    lane.waits.syncs_delayed += 1;
                    lane.waits.syncs_delayed_us += us;
                    lane.waits.sync_wait.add(us);
                }
            }
            out.push(waiter.done);
        }
        out
    }
}

impl Gate {
    /// The gate of a volume without mirrors.
    pub fn new(clock: Arc<dyn Clock>) -> Gate {
        Gate {
            clock,
            journal: OnceLock::new(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The journal that the mirrors are behind in.
    pub fn watch(&self, journal: &Arc<Journal>) {
        // Once, at the opening.
        let _ = self.journal.set(Arc::downgrade(journal));
    }

    /// What throttled mirrors hold of the log now, and what will come to it.
    fn look(&self, uncommitted: &dyn Fn() -> u64) {
        let Some(journal) = self.journal.get().and_then(Weak::upgrade) else {
            return;
        };
        let behind: Vec<(String, Txid)> = {
            let state = self.state.lock();
            let lanes = state.lanes.iter();
            let throttled = lanes.filter(|(_, l)| l.throttles() && l.insync && l.log_bytes > 0);
            throttled.map(|(p, l)| (p.clone(), l.after)).collect()
        };
        if behind.is_empty() {
            return;
        }
        // In this order: what is committed in between counts twice, not never.
        let ahead = uncommitted();
        let block_size = u64::from(journal.volume().block_size());
        let held: Vec<u64> = behind
            .iter()
            .map(|(_, after)| journal.backlog(*after).1 * block_size)
            .collect();
        let mut state = self.state.lock();
        for ((peer, _), bytes) in behind.iter().zip(held) {
            if let Some(lane) = state.lanes.get_mut(peer) {
                (lane.bytes, lane.ahead) = (bytes, ahead);
            }
        }
    }

    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let (result, done) = {
            let mut state = self.state.lock();
            let result = change(&mut state);
            (result, state.released(self.clock.monotonic()))
        };
        self.changed.notify_all();
        for done in done {
            done();
        }
        result
    }

    /// A mirror exists, or its policy changed.
    pub fn set_policy(&self, peer: &str, policy: &Policy) {
        self.change(|state| {
            let lane = state.lanes.entry(peer.to_string()).or_insert_with(|| Lane {
                policy: policy.clone(),
                insync: false,
                strict_applies: false,
                let_go: false,
                acked: Txid(0),
                lacks: 0,
                bytes: 0,
                after: Txid(0),
                log_bytes: 0,
                ahead: 0,
                news: None,
                by_count: false,
                by_bytes: false,
                waits: Waits::default(),
            });
            lane.policy = policy.clone();
        });
    }

    /// A mirror is no more.
    pub fn forget(&self, peer: &str) {
        self.change(|state| state.lanes.remove(peer));
    }

    /// The state of a mirror: in INSYNC; was so once; let go by the operator.
    pub fn set_state(&self, peer: &str, insync: bool, strict_applies: bool, let_go: bool) {
        self.change(|state| {
            if let Some(lane) = state.lanes.get_mut(peer) {
                lane.insync = insync;
                lane.strict_applies = strict_applies;
                lane.let_go = let_go;
            }
        });
    }

    /// A mirror has everything up to `acked` durably.
    pub fn acked(&self, peer: &str, acked: Txid) {
        self.change(|state| {
            if let Some(lane) = state.lanes.get_mut(peer) {
                lane.acked = acked;
            }
        });
    }

    /// What a mirror lacks after the transaction `after`: transactions, and bytes of a log of `log_bytes`. What tripped
    /// since the last time, in words.
    pub fn measured(
        &self,
        peer: &str,
        after: Txid,
        (lacks, bytes): (u64, u64),
        log_bytes: u64,
    ) -> Option<String> {
        self.change(|state| {
            let entering = state.entering;
            let lane = state.lanes.get_mut(peer)?;
            lane.lacks = lacks;
            lane.bytes = bytes;
            lane.after = after;
            lane.log_bytes = log_bytes;
            lane.measure(entering);
            lane.news.take()
        })
    }

    /// As `admit`, for whoever has one thread for several nodes and has waited for so long: whether the change may be made
    /// now. If so, it is on its way.
    pub fn try_admit(
        &self,
        len: u64,
        waited: Option<Duration>,
        uncommitted: &dyn Fn() -> u64,
    ) -> bool {
        self.look(uncommitted);
        self.state.lock().admits(len, waited)
    }

    /// Whether an fsync whose changes are in `txid`, which is durable here, may return.
    pub fn is_open(&self, txid: Txid) -> bool {
        !self.state.lock().holds(txid)
    }

    /// Whether writers are being slowed.
    pub fn is_slowing(&self) -> bool {
        let state = self.state.lock();
        !state.closed && state.lanes.values().any(Lane::slows)
    }

    /// How writers waited for a mirror.
    pub fn waits(&self, peer: &str) -> Waits {
        let state = self.state.lock();
        let lane = state.lanes.get(peer);
        lane.map(|lane| lane.waits.clone()).unwrap_or_default()
    }

    /// Whether a mirror is in sync mode: it wants transactions while they are being committed.
    pub fn any_sync(&self) -> bool {
        let state = self.state.lock();
        state.lanes.values().any(|lane| lane.policy.is_sync())
    }

    /// The volume is about to be closed: nobody waits for a mirror that is away, strict or not.
    pub fn stop(&self) {
        self.change(|state| state.stopping = true);
    }

    /// The volume is being closed: nobody waits any more.
    pub fn close(&self) {
        self.change(|state| state.closed = true);
    }
}

impl Durability for Gate {
    fn when_durable(&self, txid: Txid, done: Done) {
        {
            let mut state = self.state.lock();
            if state.holds(txid) {
                state.waiters.push(Waiter {
                    txid,
                    since: self.clock.monotonic(),
                    done,
                });
                return;
            }
        }
        done();
    }

    fn admit(&self, len: u64, uncommitted: &dyn Fn() -> u64) {
        let since = self.clock.monotonic();
        let mut waited = None;
        loop {
            self.look(uncommitted);
            let elapsed = self.clock.monotonic().saturating_sub(since);
            let mut state = self.state.lock();
            if state.admits(len, waited.map(|()| elapsed)) {
                return;
            }
            waited = Some(());
            self.changed.wait_for(&mut state, SLICE);
        }
    }

    fn entered(&self, len: u64) {
        self.state.lock().entering -= len;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::mirror::policy::SyncMode;

    fn gate() -> Gate {
        let clock = crate::io::sim::SimClock::new(crate::io::Timespec {
            secs: 1_800_000_000,
            nanos: 0,
        });
        Gate::new(Arc::new(clock))
    }

    fn sync(strict: bool) -> Policy {
        Policy {
            mode: SyncMode::Sync,
            strict,
            ..Policy::default()
        }
    }

    fn count(gate: &Gate, txid: u64) -> Arc<AtomicUsize> {
        let called = Arc::new(AtomicUsize::new(0));
        let counts = Arc::clone(&called);
        gate.when_durable(
            Txid(txid),
            Box::new(move || {
                counts.fetch_add(1, Ordering::Relaxed);
            }),
        );
        called
    }

    #[test]
    fn a_sync_mirror_is_waited_for_and_another_is_not() {
        let gate = gate();
        gate.set_policy("a", &sync(false));
        gate.set_policy("b", &Policy::default());
        for peer in ["a", "b"] {
            gate.set_state(peer, true, true, false);
        }
        let waits = count(&gate, 5);
        gate.acked("b", Txid(9));
        gate.acked("a", Txid(4));
        assert_eq!(waits.load(Ordering::Relaxed), 0);
        gate.acked("a", Txid(5));
        assert_eq!(waits.load(Ordering::Relaxed), 1);
        assert_eq!(gate.waits("a").syncs_delayed, 1);
    }

    #[test]
    fn a_lost_mirror_lets_writers_go_unless_strict() {
        for strict in [false, true] {
            let gate = gate();
            gate.set_policy("a", &sync(strict));
            gate.set_state("a", true, true, false);
            let waits = count(&gate, 5);
            gate.set_state("a", false, true, false);
            assert_eq!(waits.load(Ordering::Relaxed), usize::from(!strict));
            assert_eq!(gate.is_open(Txid(6)), !strict);
            // The operator lets go: any of three ways.
            match strict {
                true => gate.set_policy("a", &sync(false)),
                false => gate.set_state("a", false, true, true),
            }
            assert_eq!(waits.load(Ordering::Relaxed), 1);
            let again = count(&gate, 7);
            assert_eq!(again.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn a_strict_mirror_is_not_waited_for_while_it_is_copied_for_the_first_time() {
        let gate = gate();
        gate.set_policy("a", &sync(true));
        gate.set_state("a", false, false, false);
        assert!(gate.is_open(Txid(1)));
        gate.set_state("a", false, true, false);
        let waits = count(&gate, 5);
        gate.forget("a");
        assert_eq!(waits.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn limits_trip_once_and_stay_until_the_lower_mark() {
        let gate = gate();
        let policy = Policy {
            on_full: OnFull::Throttle,
            async_limit: 10,
            ..Policy::default()
        };
        gate.set_policy("a", &policy);
        gate.set_state("a", true, true, false);
        assert!(gate.measured("a", Txid(0), (10, 0), 1000).is_none());
        assert!(gate.measured("a", Txid(0), (11, 0), 1000).is_some());
        assert!(!gate.is_open(Txid(5)));
        assert!(gate.measured("a", Txid(0), (6, 0), 1000).is_none());
        assert!(!gate.is_open(Txid(5)));
        gate.measured("a", Txid(0), (5, 0), 1000);
        assert!(gate.is_open(Txid(5)));
        assert!(gate.measured("a", Txid(0), (5, 760), 1000).is_some());
        assert!(gate.is_slowing());
        gate.measured("a", Txid(0), (5, 501), 1000);
        assert!(gate.is_slowing());
        gate.measured("a", Txid(0), (5, 500), 1000);
        assert!(!gate.is_slowing());
        let waits = gate.waits("a");
        assert_eq!((waits.trips_by_count, waits.trips_by_bytes), (1, 1));
        assert_eq!((waits.queue_highest, waits.queue_bytes_highest), (11, 760));
    }

    /// A gate with a mirror in sync, for which changes wait when the log is full.
    fn throttled() -> Gate {
        let gate = gate();
        let policy = Policy {
            on_full: OnFull::Throttle,
            ..Policy::default()
        };
        gate.set_policy("a", &policy);
        gate.set_state("a", true, true, false);
        gate
    }

    #[test]
    fn what_is_on_its_way_counts_before_it_is_in_the_log() {
        let gate = throttled();
        gate.measured("a", Txid(0), (5, 400), 1000);
        // Three at once: none of them sees what the others write.
        for _ in 0..3 {
            assert!(!gate.is_slowing());
            gate.admit(100, &|| 0);
        }
        let mut state = gate.state.lock();
        let lane = state.lanes.get_mut("a").unwrap();
        lane.measure(300 + 100);
        assert!(lane.slows() && !lane.is_full(400) && lane.is_full(500));
        drop(state);
        for _ in 0..3 {
            gate.entered(100);
        }
        gate.measured("a", Txid(0), (5, 400), 1000);
        assert!(!gate.is_slowing());
    }

    #[test]
    fn a_change_for_which_the_log_is_too_small_is_let_in_alone() {
        let gate = throttled();
        gate.measured("a", Txid(0), (1, 100), 1000);
        let long = Some(10 * SLICE);
        assert!(!gate.try_admit(1000, long, &|| 0), "it has to wait for 100");
        gate.measured("a", Txid(1), (0, 0), 1000);
        assert!(gate.try_admit(1000, long, &|| 0));
        assert!(!gate.try_admit(1000, long, &|| 0), "another is under way");
        gate.entered(1000);
        assert!(gate.try_admit(1000, long, &|| 0));
    }

    #[test]
    fn who_cracks_never_makes_anybody_wait() {
        let gate = gate();
        gate.set_policy("a", &Policy::default());
        gate.set_state("a", true, true, false);
        gate.measured("a", Txid(0), (1 << 20, 999), 1000);
        assert!(gate.is_open(Txid(5)) && !gate.is_slowing());
        gate.admit(1 << 20, &|| 1 << 20);
        gate.entered(1 << 20);
        assert_eq!(gate.waits("a").writers_delayed, 0);
    }
}
