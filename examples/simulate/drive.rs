//! One round of the world: time passes, frames arrive, every node does a little of what it has to do.
//!
//! Owns what the daemon's threads do between the product's objects and the network, and the checks that belong to every
//! such step.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use lockstepfs::fs::FsError;
use lockstepfs::fs::check::{self, Finding, Options};
use lockstepfs::journal::Journal;
use lockstepfs::mirror::MirrorError;
use lockstepfs::mirror::follower::{Output, failure};
use lockstepfs::mirror::master::Action;
use lockstepfs::mirror::roles::{Listed, Relation, relation};
use lockstepfs::units::Txid;
use lockstepfs::wire::message::{Message, Mode};
use states::State;

use super::files;
use super::net::{ConnId, End, Heard};
use super::node::{Driver, Host, MasterHost, MirrorHost, Stint};
use super::world::World;

/// Frames that one step handles in one direction, at most.
const FRAMES: usize = 16;
/// Frames of the stream that a driver hands over at once, at most.
const PUMP: usize = 8;
/// How often housekeeping is done.
const SECOND: Duration = Duration::from_secs(1);

/// How a stream begins, as its message has it.
struct Start {
    mode: Mode,
    compare: bool,
    from: Txid,
}

impl World {
    /// One round; `ms` pass.
    pub fn round(&mut self, ms: u64) {
        let by = Duration::from_millis(ms);
        self.now += by;
        self.tally.simulated += by;
        for n in 0..self.nodes.len() {
            self.nodes[n].clock.advance(by);
        }
        self.deliver();
        for n in 0..self.nodes.len() {
            if self.nodes[n].is_up() && self.nodes[n].busy_until <= self.now {
                self.node_step(n);
            }
            let debt = self.nodes[n].power.take_debt_ms();
            if debt > 0 {
                self.nodes[n].busy_until = self.now + Duration::from_millis(debt);
            }
        }
    }

    fn node_step(&mut self, n: usize) {
        for v in 0..self.volumes.len() {
            match self.take_host(n, v) {
                Some(Host::Master(mut host)) => {
                    self.master_step(n, v, &mut host);
                    self.put_host(n, v, Host::Master(host));
                }
                Some(Host::Mirror(mut host)) => {
                    self.mirror_step(n, v, &mut host);
                    self.put_host(n, v, Host::Mirror(host));
                }
                Some(Host::Asking(asking)) => self.asking_step(n, v, asking),
                Some(Host::Closed(why)) => {
                    self.put_host(n, v, Host::Closed(why));
                    let faulty = self.nodes[n].faulty;
                    self.closed_step(n, v, faulty);
                }
                None => self.first_call(n, v),
            }
            if self.noticed_dark(n) {
                return;
            }
        }
    }

    fn some_time(&self) -> Duration {
        Duration::from_millis(self.random.below(1000))
    }

    /// Images that a step brings home at most.
    fn some_images(&self, v: usize) -> usize {
        self.random.below(self.volumes[v].shape.images_home + 1) as usize
    }

    // ---- the master's side ----

    fn master_step(&mut self, n: usize, v: usize, host: &mut MasterHost) {
        self.refuse_masters(n, v, host);
        if !host.committing
            && let Err(error) = self.let_in(n, v, host)
        {
            self.cut_short(n, v, &error);
        }
        if host.commit_at <= self.now && !host.committing {
            let most = self.some_images(v);
            let step = host.open.shared.fs.commit_step_within(self.now, most);
            host.commit_at = match step {
                // Others change something before it goes on.
                Ok(step) if step.checkpointing => self.now + self.some_time(),
                Ok(step) => step.next,
                Err(FsError::NoSpace) => self.now + SECOND,
                Err(error) => {
                    self.error(n, &format!("commit: {error}"));
                    self.now + SECOND
                }
            };
        }
        if host.tick_at <= self.now {
            host.tick_at = self.now + SECOND;
            if let Err(error) = host.open.tick() {
                self.error(n, &format!("facts: {error}"));
            }
        }
        let committed = host.open.shared.fs.committed();
        let peers: Vec<usize> = host.drivers.keys().copied().collect();
        for peer in peers {
            let Some(mut driver) = host.drivers.remove(&peer) else {
                continue;
            };
            if committed > host.told {
                driver.mirror.committed(committed, self.now);
            }
            if self.drive(n, v, peer, host, &mut driver) {
                host.drivers.insert(peer, driver);
            } else {
                self.forgotten(n, v, host, driver);
            }
            if !self.nodes[n].power.is_on() {
                return;
            }
        }
        host.told = host.told.max(committed);
    }

    /// The mirror is no more.
    pub fn forgotten(&mut self, n: usize, v: usize, host: &mut MasterHost, driver: Driver) {
        let peer = driver.mirror.peer().to_string();
        if let Err(error) = host.open.remove_mirror(driver.mirror.slot()) {
            self.error(n, &format!("removing the mirror {peer}: {error}"));
        }
        self.nodes[n].homes[&v].maps.remove(&peer);
        if host.open.slots.all().is_empty() {
            self.volumes[v].lines.of(n).golden.lock().end();
        }
    }

    /// `false`: the mirror was deleted.
    fn drive(
        &mut self,
        n: usize,
        v: usize,
        peer: usize,
        host: &MasterHost,
        driver: &mut Driver,
    ) -> bool {
        if driver.dial_at.is_some_and(|at| at <= self.now) {
            driver.dial_at = None;
            self.dialled(n, v, peer, driver);
            self.answered(v, host, Some((peer, driver)));
        }
        for _ in 0..FRAMES {
            let Some(id) = driver.conn else { break };
            match self.net.receive(id, End::Master, self.now) {
                Some(Heard::Frame(message, payload)) => {
                    let actions = driver.mirror.frame(message, payload, self.now);
                    self.answered(v, host, Some((peer, driver)));
                    if !self.act(n, v, peer, driver, actions) {
                        return false;
                    }
                }
                Some(Heard::Lost(why)) => {
                    driver.conn = None;
                    let actions = driver.mirror.link_lost(why, None, self.now);
                    self.answered(v, host, Some((peer, driver)));
                    self.act(n, v, peer, driver, actions);
                }
                None => break,
            }
        }
        let actions = driver.mirror.tick(self.now);
        self.answered(v, host, Some((peer, driver)));
        if !self.act(n, v, peer, driver, actions) {
            return false;
        }
        for _ in 0..PUMP {
            let Some(id) = driver.conn else { break };
            if !self.net.has_room(id, End::Master) {
                break;
            }
            let (actions, frame, _) = driver.mirror.next_frame(self.now);
            self.answered(v, host, Some((peer, driver)));
            let acted = !actions.is_empty();
            self.act(n, v, peer, driver, actions);
            match frame {
                Some((message, payload)) => {
                    if let Some(id) = driver.conn {
                        self.net
                            .send(id, End::Master, message, payload, self.now, &self.random);
                    }
                }
                None if acted => {}
                None => break,
            }
        }
        if driver.verifying && !driver.mirror.is_verifying() {
            driver.verifying = false;
        }
        if driver.verifying
            && let Some(verdict) = driver.mirror.verdict()
        {
            driver.verifying = false;
            self.tally.check("verify of two copies", 1);
            assert!(
                verdict.differing.is_empty(),
                "I2: verify found differences on n{peer}: {:?}",
                verdict.differing
            );
        }
        self.check_driver(n, v, peer, host, driver);
        true
    }

    fn dialled(&mut self, n: usize, v: usize, peer: usize, driver: &mut Driver) {
        let open = !self.net.is_blocked((n, peer)) && !self.net.is_blocked((peer, n));
        let actions = if open && self.nodes[peer].is_up() {
            if self.random.chance(8) {
                // A dial that was given up, and arrives nevertheless.
                let ghost = self.net.dial(v, n, peer, self.now, &self.random);
                self.net.close(ghost, End::Master);
                self.tally.inject("duplicated dial");
            }
            driver.conn = Some(self.net.dial(v, n, peer, self.now, &self.random));
            driver.mirror.connected(self.now)
        } else {
            driver.mirror.link_lost("no route", None, self.now)
        };
        self.act(n, v, peer, driver, actions);
    }

    /// Carries out what a mirror's machine wants. `false`: the mirror is no more.
    pub fn act(
        &mut self,
        n: usize,
        v: usize,
        peer: usize,
        driver: &mut Driver,
        actions: Vec<Action>,
    ) -> bool {
        let mut actions: VecDeque<Action> = actions.into();
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Connect => {
                    if let Some(id) = driver.conn.take() {
                        self.net.close(id, End::Master);
                    }
                    let wait = Duration::from_millis(self.random.below(30));
                    driver.dial_at = Some(self.now + wait);
                }
                Action::Close => {
                    if let Some(id) = driver.conn.take() {
                        self.net.close(id, End::Master);
                    }
                    driver.dial_at = None;
                }
                Action::Send(message, payload) => {
                    if let Message::Begin {
                        mode,
                        compare,
                        from,
                        ..
                    } = &message
                    {
                        let start = Start {
                            mode: *mode,
                            compare: *compare,
                            from: Txid(*from),
                        };
                        self.begins(n, v, peer, driver, start);
                    }
                    if let Some(id) = driver.conn {
                        self.net
                            .send(id, End::Master, message, payload, self.now, &self.random);
                    }
                }
                Action::Event { from, to, why } => {
                    self.note(|| format!("v{v} n{n}->n{peer}: {from} -> {to}: {why}"));
                    self.tally.enter(to);
                    driver.state = to;
                    if to == State::InSync {
                        driver.was_insync = true;
                    }
                }
                Action::Noted { .. } => self.tally.check("limit that tripped", 1),
                Action::Forgotten => {
                    if let Some(id) = driver.conn.take() {
                        self.net.close(id, End::Master);
                    }
                    return false;
                }
            }
        }
        true
    }

    /// A stream begins: in which way is no matter of chance.
    fn begins(&mut self, n: usize, v: usize, peer: usize, driver: &mut Driver, start: Start) {
        let Start {
            mode,
            compare,
            from,
        } = start;
        self.note(|| format!("v{v} n{n}->n{peer}: begins {mode:?}, compare: {compare}"));
        let volume = &self.volumes[v];
        let excused = volume.excused.contains(&peer) || volume.new_to.contains(&(n, peer));
        let had = self.volumes[v].complete.contains(&peer);
        match mode {
            Mode::Replicate { .. } => assert!(
                !had || excused,
                "I3: v{v} is copied to n{peer} again from the beginning, which had all of it"
            ),
            Mode::OutOfSync | Mode::Staged { .. } if compare && had => {
                assert!(
                    excused || self.unknown_to_its_master(n, v, peer),
                    "I3: v{v} on n{peer} is compared as a whole, although nothing was lost that says what differs"
                );
                self.tally
                    .check("comparison of everything that a fault explains", 1);
            }
            Mode::OutOfSync | Mode::Staged { .. } | Mode::InSync => {}
        }
        self.tally.check("decision of a reconnect", 1);
        let marked = driver.mirror.slot().state.lock().map.count();
        let golden = self.volumes[v].lines.of(n).golden.lock();
        driver.stint = match mode {
            Mode::InSync => None,
            _ => Some(Stint {
                bulk: driver.mirror.status(self.now).bytes_bulk,
                changed: golden.changed_bytes,
                marked: (!matches!(mode, Mode::Replicate { .. })
                    && !compare
                    && golden.knows_since(from))
                .then(|| {
                    // What the log still holds goes along, and is marked where the cursor has not been.
                    let marked = marked * u64::from(self.volumes[v].shape.block_size);
                    if marked == 0 {
                        0
                    } else {
                        marked + golden.changed_after(from)
                    }
                }),
            }),
        };
    }

    /// The master was promoted, and its own copy was made or repaired after the time of which the mirror's is; or the mirror was
    /// told to give up what it had acknowledged.
    fn unknown_to_its_master(&mut self, n: usize, v: usize, peer: usize) -> bool {
        if self.volumes[v].went_back.contains(&(n, peer)) {
            return true;
        }
        let has = match self.host(peer, v) {
            Some(Host::Mirror(host)) if host.follower.is_consistent() => host.follower.durable(),
            // Another master was repairing it: what it lacks is counted from what all mirrors had when it was whole.
            Some(Host::Mirror(_)) => {
                let facts = self.nodes[peer].homes[&v].facts.stored();
                facts.map_or(Txid(0), |facts| facts.floor)
            }
            _ => return false,
        };
        let stored = |n: usize| self.nodes[n].homes[&v].facts.stored();
        if let (Some(ours), Some(theirs)) = (stored(n), stored(peer))
            && theirs.consistent_at == Txid(u64::MAX)
            && let Relation::Behind { fork } = relation(&theirs.generations, &ours.generations)
            && theirs.reach > fork
        {
            // The one that was repairing it had committed more than this master has, and nobody says which blocks came.
            return true;
        }
        let made = self.volumes[v].made_up_to.get(&n);
        made.is_some_and(|made| has < *made)
    }

    /// What can be said of a mirror at any time, from its master's side.
    fn check_driver(
        &mut self,
        n: usize,
        v: usize,
        peer: usize,
        host: &MasterHost,
        driver: &mut Driver,
    ) {
        let status = driver.mirror.status(self.now);
        if status.state == State::InSync {
            assert!(
                driver.conn.is_some(),
                "states: INSYNC over a dead link to n{peer}"
            );
            assert!(
                driver.mirror.slot().state.lock().map.count() == 0 || status.cracked,
                "states: INSYNC with blocks marked for n{peer}"
            );
        }
        assert!(
            status.bytes_to_go <= 4 * host.open.shared.volume.len(),
            "I5: {} bytes to go for n{peer}",
            status.bytes_to_go
        );
        if status.state == State::InSync {
            // While a disk fails, what either side learnt may not outlast it.
            let faulty = self.nodes[n].faulty || self.nodes[peer].faulty;
            // Nor has a master heard yet of what happened to a mirror that hung up.
            let call = match self.host(peer, v) {
                Some(Host::Mirror(host)) => host.call,
                _ => None,
            };
            let volume = &mut self.volumes[v];
            volume.complete.insert(peer);
            volume.new_to.remove(&(n, peer));
            volume.went_back.remove(&(n, peer));
            if !faulty && call.is_some() && call == driver.conn {
                volume.excused.remove(&peer);
            }
            if let Some(stint) = driver.stint.take() {
                let sent = status.bytes_bulk - stint.bulk;
                let changed = volume.lines.of(n).golden.lock().changed_bytes - stint.changed;
                let slack = 1 << 20;
                // Nothing marked at the beginning: the log brings the marks, and they are counted as it is read.
                if let Some(marked) = stint.marked.filter(|marked| *marked > 0) {
                    assert!(
                        sent <= marked + changed + slack,
                        "I8: {sent} bytes were sent for {marked} marked and {changed} changed"
                    );
                    self.tally.check("bytes of a repair", 1);
                }
            }
        }
    }

    // ---- the mirror's side ----

    pub fn calls(&self, n: usize, v: usize) -> Vec<ConnId> {
        let ours = |id: &ConnId| {
            let conn = self.net.get(*id);
            conn.is_some_and(|conn| conn.volume == v && conn.mirror == n && conn.open[1])
        };
        self.net.ids().into_iter().filter(ours).collect()
    }

    /// Nobody here knows the volume: the first call makes a place for it.
    fn first_call(&mut self, n: usize, v: usize) {
        for id in self.calls(n, v) {
            match self.net.receive(id, End::Mirror, self.now) {
                Some(Heard::Frame(message @ Message::Hello { .. }, payload)) => {
                    if !self.listens(n, v, id, &message) {
                        return;
                    }
                    let facts = self.nodes[n].homes[&v].facts.stored();
                    match self.open_mirror(n, v, facts) {
                        Ok(Host::Mirror(mut host)) => {
                            host.call = Some(id);
                            let handled = host.follower.frame(message, payload);
                            self.handled(n, v, &mut host, handled);
                            self.put_host(n, v, Host::Mirror(host));
                        }
                        Ok(_) => {}
                        Err(error) => {
                            self.error(n, &error);
                            self.put_host(n, v, Host::Closed(error));
                        }
                    }
                    return;
                }
                Some(Heard::Frame(..)) => self.net.close(id, End::Mirror),
                Some(Heard::Lost(_)) | None => {}
            }
        }
    }

    fn mirror_step(&mut self, n: usize, v: usize, host: &mut MirrorHost) {
        let mut heard = false;
        for id in self.calls(n, v) {
            for _ in 0..FRAMES {
                if !self.nodes[n].power.is_on() {
                    return;
                }
                match self.net.receive(id, End::Mirror, self.now) {
                    Some(Heard::Frame(message, payload)) => {
                        if host.call != Some(id) {
                            let hello = matches!(message, Message::Hello { .. });
                            if !hello {
                                self.net.close(id, End::Mirror);
                                break;
                            }
                            if !self.listens(n, v, id, &message) {
                                break;
                            }
                            self.hung_up(n, v, host, "the master called anew");
                            host.call = Some(id);
                        }
                        heard = true;
                        if matches!(message, Message::CopyEnd { .. })
                            && let Some(requests) = self.nodes[n].cut_at_switch.take()
                        {
                            self.nodes[n].power.cut_after(requests);
                            self.tally.inject("power cut at the end of a copy");
                        }
                        let handled = host.follower.frame(message, payload);
                        self.handled(n, v, host, handled);
                    }
                    Some(Heard::Lost(why)) => {
                        if host.call == Some(id) {
                            self.hung_up(n, v, host, why);
                        }
                        break;
                    }
                    None => break,
                }
            }
        }
        if let Some(conn) = host.call.and_then(|id| self.net.get(id))
            && self.nodes[n].homes[&v].list.get().is_none()
            && self.nodes[n].homes[&v].facts.stored().is_some()
        {
            // As the daemon, which lists what it made parts for.
            let master = self.nodes[conn.master].name.clone();
            self.list(n, v, Listed::Mirror(master));
        }
        if heard && host.call.is_some() {
            let handled = host.follower.idle();
            self.handled(n, v, host, handled);
        }
        if host.tick_at <= self.now {
            host.tick_at = self.now + SECOND;
            if let Err(error) = host.follower.tick() {
                let error = Err(error);
                self.handled(n, v, host, error);
            }
        }
        if let Some(fs) = host.follower.fs()
            && host.commit_at <= self.now
        {
            host.commit_at = self.now + self.some_time();
            // The thread that brings the copy's log home; it only says when it can not.
            if let Err(error) = fs.commit_step_within(self.now, self.some_images(v))
                && !matches!(error, FsError::Closed)
            {
                self.error(n, &format!("bringing v{v}'s log home: {error}"));
            }
        }
        if self.nodes[n].power.is_on() {
            self.check_mirror(n, v, host, false);
        }
    }

    fn hung_up(&mut self, n: usize, v: usize, host: &mut MirrorHost, why: &str) {
        let Some(id) = host.call.take() else { return };
        host.copying = false;
        self.net.close(id, End::Mirror);
        self.note(|| format!("v{v} n{n}: {why}"));
        match host.follower.disconnected() {
            Ok(outputs) => self.put_out(n, v, host, outputs),
            Err(error) => self.error(n, &format!("v{v}: {error}")),
        }
    }

    /// What a follower did, or that it can not go on: it says why, and hangs up.
    pub fn handled(
        &mut self,
        n: usize,
        v: usize,
        host: &mut MirrorHost,
        handled: Result<Vec<Output>, MirrorError>,
    ) {
        match handled {
            Ok(outputs) => self.put_out(n, v, host, outputs),
            Err(error) => {
                assert!(
                    !matches!(error, MirrorError::Protocol(_)),
                    "protocol: n{n} does not take what its master sends: {error}"
                );
                self.error(n, &format!("v{v}: {error}"));
                if let Some(id) = host.call {
                    let message = failure(&error);
                    self.net
                        .send(id, End::Mirror, message, Vec::new(), self.now, &self.random);
                }
                self.hung_up(n, v, host, "it can not go on");
            }
        }
    }

    pub fn put_out(&mut self, n: usize, v: usize, host: &mut MirrorHost, outputs: Vec<Output>) {
        // Whatever was to be sent when the power went is not sent.
        if !self.nodes[n].power.is_on() {
            return;
        }
        for output in outputs {
            match output {
                Output::Send(message, payload) => {
                    let has = match &message {
                        Message::Ack {
                            txid,
                            consistent: true,
                            ..
                        } => Some(*txid),
                        // What was acknowledged into a link that was cut.
                        Message::History(history) if host.follower.is_consistent() => {
                            Some(history.durable)
                        }
                        _ => None,
                    };
                    if let Some(txid) = has {
                        self.volumes[v].durable.insert(n, Txid(txid));
                    }
                    if message == Message::Ready {
                        host.copying = host.follower.fs().is_none();
                    }
                    if let Some(id) = host.call {
                        self.net
                            .send(id, End::Mirror, message, payload, self.now, &self.random);
                    }
                }
                Output::Withdraw | Output::Opened(_) => {
                    host.seen = None;
                    host.copying = false;
                    if host.call.is_some() && matches!(output, Output::Opened(_)) {
                        let applied = host.follower.applied();
                        self.volumes[v].made_up_to.insert(n, applied);
                    }
                }
                Output::Close(reason) => {
                    if let Some(id) = host.call.take() {
                        self.net.close(id, End::Mirror);
                    }
                    self.note(|| format!("v{v} n{n}: the master says: {reason}"));
                }
                Output::KeptAside(id, _) => self.kept_aside(n, v, &id),
                Output::Invalidate(_) | Output::Status(_) => {}
            }
        }
    }

    /// What a mirror shows is what its master had at that transaction.
    pub fn check_mirror(&mut self, n: usize, v: usize, host: &mut MirrorHost, whole: bool) {
        if self.follows(n, v, &host.follower.facts().generations) {
            host.seen = None;
        }
        self.keeps_promises(n, v, &host.follower);
        let Some(fs) = host.follower.fs() else {
            host.seen = None;
            if host.copying && host.call.is_some() && self.random.chance(10) {
                self.guarded(n, v);
            }
            return;
        };
        let at = host.follower.applied();
        let whole = whole || host.seen.is_none() || self.random.chance(1);
        if host.seen == Some(at) && !whole {
            return;
        }
        if self.nodes[n].faulty {
            // Reading may fail; it is compared when its disk is mended.
            host.seen = None;
            return;
        }
        let who = format!("n{n}'s copy of v{v}");
        let golden = Arc::clone(&self.volumes[v].lines.of(n).golden);
        let golden = golden.lock();
        if golden.since == Some(at) && !self.volumes[v].complete.contains(&n) {
            // It was made a mirror again. While there was none, what had no name yet was lost with its name only.
            host.seen = None;
            return;
        }
        assert!(
            at <= golden.last || golden.since.is_none(),
            "I1: {who} shows transaction {at}, the master never had more than {}",
            golden.last
        );
        let seen = host.seen.filter(|_| !whole);
        let blocks = fs.volume().blocks_count();
        let compared = golden.compare(fs.journal(), blocks, at, seen, &who);
        self.tally
            .check("block of a mirror against its master's history", compared);
        host.seen = Some(at);
        if whole || self.random.chance(10) {
            sound(fs.journal(), &who);
            self.tally
                .check("copy that could be promoted, by our own check", 1);
        }
        if (whole || self.random.chance(10))
            && !golden.blind
            && let Some(snapshot) = golden.snapshots.get(&at)
        {
            let snapshot = snapshot.clone();
            drop(golden);
            if let Err(error) = files::compare(&fs, &snapshot, "I1", &who) {
                self.error(n, &error);
            }
            self.tally
                .check("files of a mirror against its master's history", 1);
        }
    }
}

/// What a promotion would open, or what the master has committed, is a sound file system.
pub fn sound(journal: &Journal, who: &str) {
    let exact = Options {
        exact_superblock: true,
        ..Options::default()
    };
    let report = check::run(journal, &exact);
    // Of these e2fsck looks at a quarter, rounded down: the rest is as half a copy had it that it mended.
    let not_copied = |finding: &&Finding| {
        finding
            .place
            .starts_with("inode 7, which holds the blocks reserved")
            && finding.found == "block 0"
    };
    let left = report.findings.iter().filter(not_copied).count();
    assert!(
        report.is_clean() || left == report.findings.len(),
        "I3: {who} is damaged: {:?}",
        report.findings
    );
}
