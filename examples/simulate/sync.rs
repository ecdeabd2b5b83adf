//! What an application's sync waits for, and what it may rely on once it was answered.
//!
//! Owns the commits that are done in two halves, so that rounds of the world, and faults, come between them, as they come
//! between a daemon's flush and its mirrors' answers; and the promises: which mirror has to have what. Invariant: a
//! promise is made at the answer only, and by looking at the mirror itself, not at what its master knows of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lockstepfs::fs::Fs;
use lockstepfs::mirror::follower::Follower;
use lockstepfs::mirror::open::OpenMaster;
use lockstepfs::mirror::policy::SyncMode;
use lockstepfs::mirror::roles::{Relation, relation};
use lockstepfs::units::Txid;
use states::State;

use super::files;
use super::node::{Driver, Host, MasterHost};
use super::world::World;

/// Nobody waits longer than this for mirrors that are neither strict nor throttled: the slowest disk flushes many times,
/// and the longest timeout passes.
pub const LONGEST: Duration = Duration::from_secs(600);

/// The syncs of one open master that were not answered yet.
#[derive(Debug, Default)]
pub struct Syncs {
    next: u64,
    /// By number: the transaction, and since when.
    pub waiting: BTreeMap<u64, (Txid, Duration)>,
    /// The volume is being closed: nobody waits for a mirror that is away.
    pub stopping: bool,
    /// When somebody last was strict, or throttled.
    patient_at: Duration,
    /// Answered, and not looked at yet.
    answered: Vec<(Txid, Duration)>,
}

impl Syncs {
    fn begin(&mut self, txid: Txid, now: Duration) -> u64 {
        self.next += 1;
        self.waiting.insert(self.next, (txid, now));
        self.next
    }

    fn answer(&mut self, id: u64) {
        let answered = self.waiting.remove(&id);
        self.answered
            .push(answered.expect("I7: a sync is answered once"));
    }
}

/// Mirrors in sync mode want transactions while they are being committed; without one nobody does.
pub fn listen(open: &OpenMaster) {
    let any = open.shared.gate.any_sync();
    let listener: Option<Box<dyn Fn() + Send + Sync>> = match any {
        true => Some(Box::new(|| {})),
        false => None,
    };
    open.shared.journal.on_prepared(listener);
}

impl World {
    /// An application's fsync or sync; in one go, or in two halves with some rounds in between.
    pub fn sync(&mut self) -> bool {
        let v = self.some_volume();
        match self.random.chance(50) {
            true => self.sync_in_halves(v, false),
            false => self.sync_at_once(v),
        }
    }

    /// A sync in the middle of which somebody loses its power, its process or its link.
    pub fn sync_cut(&mut self) -> bool {
        let v = self.some_volume();
        self.sync_in_halves(v, true)
    }

    fn master_fs(&mut self, v: usize) -> Option<(usize, Arc<Fs>)> {
        let n = self.master_of(v)?;
        match self.host(n, v) {
            Some(Host::Master(host)) => Some((n, Arc::clone(&host.open.shared.fs))),
            _ => None,
        }
    }

    fn sync_at_once(&mut self, v: usize) -> bool {
        let Some((n, fs)) = self.master_fs(v) else {
            return false;
        };
        let golden = Arc::clone(&self.volumes[v].lines.of(n).golden);
        match files::sync(&fs, &golden, &self.random) {
            Ok(txid) => self.durable_here(n, v, &fs, txid),
            Err(error) => self.operation_failed(n, &error),
        }
        self.noticed_dark(n);
        true
    }

    fn sync_in_halves(&mut self, v: usize, cut: bool) -> bool {
        let Some((n, fs)) = self.master_fs(v) else {
            return false;
        };
        let commit = match fs.begin_commit() {
            Ok(Some(commit)) => commit,
            Ok(None) => {
                self.durable_here(n, v, &fs, fs.committed());
                return !cut;
            }
            Err(error) => {
                self.operation_failed(n, &error);
                self.noticed_dark(n);
                return true;
            }
        };
        let txid = commit.txid();
        self.volumes[v].lines.of(n).golden.lock().prepared(txid);
        self.set_committing(n, v, true);
        let rounds = self.random.below(8);
        self.rounds(rounds, 15);
        if cut {
            self.cut_one_of(n, v);
            let rounds = self.random.below(4);
            self.rounds(rounds, 15);
        }
        let same = matches!(self.host(n, v), Some(Host::Master(host)) if Arc::ptr_eq(&host.open.shared.fs, &fs));
        if !same {
            // Whoever held it is dead.
            return true;
        }
        self.set_committing(n, v, false);
        let ahead = self.volumes[v].durable.values().any(|at| *at >= txid);
        if ahead {
            self.tally
                .check("commit that was on a mirror before it was done", 1);
        }
        match commit.finish() {
            Ok(_) => self.durable_here(n, v, &fs, txid),
            Err(error) => {
                self.operation_failed(n, &error);
                // Its master gave it up: mirrors may be told to.
                self.volumes[v].lines.of(n).golden.lock().pending = None;
            }
        }
        self.noticed_dark(n);
        true
    }

    fn set_committing(&mut self, n: usize, v: usize, committing: bool) {
        if let Some(Host::Master(host)) = self.host(n, v) {
            host.committing = committing;
        }
    }

    /// What may happen to any node while a master commits.
    fn cut_one_of(&mut self, n: usize, v: usize) {
        let mirrors = &self.volumes[v].shape.mirrors;
        let mirror = mirrors[self.random.below(mirrors.len() as u64) as usize];
        let what = self.random.below(7);
        self.note(|| format!("v{v} n{n}: in the middle of a commit: {what}, n{mirror}"));
        match what {
            0 | 1 => self.power_cut(n),
            2 => self.power_cut(mirror),
            3 => {
                self.power_cut(n);
                self.power_cut(mirror);
            }
            4 => self.kill(n),
            5 => self.kill(mirror),
            _ => {
                for id in self.net.ids() {
                    let ours = self.net.get(id).is_some_and(|conn| conn.master == n);
                    if ours {
                        self.net.cut(id, self.now, &self.random);
                    }
                }
            }
        }
    }

    /// `txid` is durable on the master: the application waits for its mirrors.
    fn durable_here(&mut self, n: usize, v: usize, fs: &Fs, txid: Txid) {
        assert!(
            fs.committed() >= txid,
            "I3: transaction {txid} was acknowledged before it was committed"
        );
        let acked = &mut self.volumes[v].lines.of_mut(n).acked;
        *acked = txid.max(*acked);
        let now = self.now;
        let Some(Host::Master(host)) = self.host(n, v) else {
            return;
        };
        let syncs = Arc::clone(&host.syncs);
        let id = syncs.lock().begin(txid, now);
        fs.when_durable(txid, Box::new(move || syncs.lock().answer(id)));
        self.look_for_answers(n, v);
    }

    /// Looks at what was answered since the last time.
    pub fn look_for_answers(&mut self, n: usize, v: usize) {
        if let Some(Host::Master(host)) = self.take_host(n, v) {
            self.answered(v, &host, None);
            self.put_host(n, v, Host::Master(host));
        }
    }

    /// The same where the host is at hand, and `current` is one of its drivers that is being driven.
    pub fn answered(&mut self, v: usize, host: &MasterHost, current: Option<(usize, &Driver)>) {
        let (answered, stopping) = {
            let mut syncs = host.syncs.lock();
            (std::mem::take(&mut syncs.answered), syncs.stopping)
        };
        for (txid, since) in answered {
            self.tally.check("sync that was answered", 1);
            if since < self.now {
                self.tally.check("sync that waited for mirrors", 1);
            }
            let drivers = host.drivers.iter().map(|(peer, driver)| (*peer, driver));
            let drivers: Vec<_> = drivers.chain(current).collect();
            for (peer, driver) in drivers {
                self.promise(v, host, (peer, driver), txid, stopping);
            }
        }
        self.nobody_waits_for_ever(v, host, current);
    }

    /// I4: an answer says that the mirror has it, if the mirror is one that is waited for.
    fn promise(
        &mut self,
        v: usize,
        host: &MasterHost,
        (peer, driver): (usize, &Driver),
        txid: Txid,
        stopping: bool,
    ) {
        let policy = driver.mirror.policy();
        if policy.mode != SyncMode::Sync {
            return;
        }
        let state = driver.mirror.state();
        let awaited = match state {
            State::InSync => true,
            // The operator let it go.
            State::Idle => false,
            _ => !stopping && policy.strict && driver.mirror.record().once_insync,
        };
        if !awaited {
            return;
        }
        let has = self.has(peer, v, host);
        if has < txid && self.was_told_to_give_up(peer, v, host, txid) {
            self.tally.check(
                "sync that was answered as its mirror was given to a master anew",
                1,
            );
            return;
        }
        assert!(
            has >= txid,
            "I4: transaction {txid} of v{v} was acknowledged, the sync mirror n{peer} in {state} has {has}"
        );
        let promised = self.volumes[v].promised.entry(peer).or_default();
        *promised = txid.max(*promised);
        self.tally
            .check("sync that was answered and is on a mirror", 1);
    }

    /// The answer was under way when the mirror was given to a master that was promoted from less: the mirror kept aside what it
    /// gave up, and the volume is disputed.
    /// Or its operator said, on a link of which the master has not heard that it is gone, that the copy counts for nothing.
    fn was_told_to_give_up(&mut self, n: usize, v: usize, by: &MasterHost, txid: Txid) -> bool {
        let excused = self.volumes[v].excused.contains(&n);
        let has = match self.host(n, v) {
            Some(Host::Mirror(host)) if host.call.is_none() && excused => return true,
            // It is a master by now.
            Some(Host::Master(_)) if excused => return true,
            Some(Host::Mirror(host)) => host.follower.durable(),
            _ => return false,
        };
        self.was_kept(n, v, has, txid, Some(&by.open.shared.node))
    }

    /// The last transaction that a node would have if `master` burnt down now.
    fn has(&mut self, n: usize, v: usize, master: &MasterHost) -> Txid {
        match self.host(n, v) {
            Some(Host::Mirror(host)) if host.follower.is_consistent() => host.follower.durable(),
            // It was promoted meanwhile: of the history of the one that waits it has what it took over.
            Some(Host::Master(host)) => {
                let lineage = |host: &MasterHost| host.open.shared.facts.lock().generations.clone();
                match relation(&lineage(master), &lineage(host)) {
                    Relation::Behind { fork } => fork,
                    Relation::Diverged { shared } => shared,
                    _ => Txid(0),
                }
            }
            Some(Host::Mirror(_)) => Txid(0),
            // It is down: what it acknowledged is on its disks, and looked for there when it starts.
            _ => self.volumes[v].durable.get(&n).copied().unwrap_or_default(),
        }
    }

    fn nobody_waits_for_ever(
        &self,
        v: usize,
        host: &MasterHost,
        current: Option<(usize, &Driver)>,
    ) {
        let mut syncs = host.syncs.lock();
        let drivers = host.drivers.values();
        let mut drivers = drivers.chain(current.map(|(_, driver)| driver));
        if drivers.any(|driver| driver.may_hold_back()) {
            syncs.patient_at = self.now;
        }
        for (txid, since) in syncs.waiting.values() {
            let since = syncs.patient_at.max(*since);
            assert!(
                since + LONGEST > self.now,
                "I7: a sync of transaction {txid} of v{v} waits since {since:?}, though nobody said that it should"
            );
        }
    }

    /// What a mirror promised, it keeps.
    pub fn keeps_promises(&mut self, n: usize, v: usize, follower: &Follower) {
        if self.nodes[n].faulty || !follower.is_consistent() {
            return;
        }
        let volume = &mut self.volumes[v];
        let promised = volume.promised.get(&n).copied().unwrap_or_default();
        let durable = follower.durable();
        assert!(
            durable >= promised,
            "I4: transaction {promised} of v{v} was acknowledged in sync mode, n{n} has no more than {durable}"
        );
        let sent = volume.durable.get(&n).copied().unwrap_or_default();
        let known = volume.lines.of(n).golden.lock().newest_until(sent);
        // What it was told to give up when power went, before it could say so, was kept aside first.
        assert!(
            durable >= known || self.was_kept(n, v, durable, known, None),
            "I3: transaction {known} of v{v} was acknowledged by n{n}, which came back with {durable}"
        );
        if sent > durable {
            // Its master gave the rest up, though it may find it in its log when it is opened again.
            self.volumes[v].durable.insert(n, durable);
        }
    }
}
