//! Who is the master: what nodes ask each other at their start, and what operators do about it.
//!
//! Owns the order in which the daemon carries out what `mirror::roles` decides: ask, step back, open. Questions and their
//! answers travel as frames do: late, or not at all. Checked here: what is given up was kept aside, byte by byte.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstepfs::mirror::MirrorError;
use lockstepfs::mirror::roles::{
    self, Answer, Called, CopyStanding, Listed, Opening, StepBack, Stepped, Volume, lineage,
};
use lockstepfs::units::Txid;
use lockstepfs::volume::facts::{Copy, FactStore, Facts, Lineage, Member, Role};
use lockstepfs::wire::message::{Member as WireMember, Message, Standing};
use states::{Cause, State};

use super::force::is_doubtful;
use super::net::{ConnId, End, Heard};
use super::node::{Asking, Host, MasterHost, MirrorHost};
use super::world::World;

/// A node that starts waits this long for answers: `role_query_s` of lockstep.toml.
const ASK_FOR: Duration = Duration::from_secs(3);

/// A question or an answer under way.
pub struct Letter {
    at: Duration,
    from: usize,
    to: usize,
    volume: usize,
    ticket: u64,
    body: Body,
}

enum Body {
    /// The sender is this.
    Question(Standing),
    Answer(Answer),
}

impl World {
    pub fn number(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// The nodes of a volume, as the master tells its mirrors.
    pub fn members(&self, v: usize) -> Vec<WireMember> {
        let shape = &self.volumes[v].shape;
        let all = [&[shape.master], &shape.mirrors[..]].concat();
        let member = |n: usize| WireMember {
            name: self.nodes[n].name.clone(),
            address: String::new(),
            fingerprint: self.nodes[n].name.clone(),
        };
        all.into_iter().map(member).collect()
    }

    /// The nodes on which the master `n` may have a mirror.
    pub fn others(&self, n: usize, v: usize) -> Vec<usize> {
        let shape = &self.volumes[v].shape;
        let all = [&[shape.master], &shape.mirrors[..]].concat();
        all.into_iter().filter(|other| *other != n).collect()
    }

    /// The other nodes of a volume, as a node's facts have them.
    fn known(&self, n: usize, facts: &Facts) -> BTreeSet<usize> {
        let known_as = |member: &Member| Some(member.name.clone());
        let (known, _) = roles::others(facts, &self.nodes[n].name, known_as);
        known.iter().filter_map(|name| self.number(name)).collect()
    }

    fn listed(&self, n: usize, v: usize) -> Listed {
        self.nodes[n].homes[&v].list.get().unwrap_or(Listed::Master)
    }

    /// Changes the list. A node without power says so later.
    pub fn list(&mut self, n: usize, v: usize, listed: Listed) {
        if let Err(error) = self.nodes[n].homes[&v].list.set(listed) {
            self.error(n, &error.to_string());
        }
    }

    // ---- questions ----

    fn post(&mut self, from: usize, to: usize, volume: usize, ticket: u64, body: Body) {
        let late = self.random.below(self.net.jitter_ms * 2 + 2);
        self.letters.push(Letter {
            at: self.now + Duration::from_millis(late),
            from,
            to,
            volume,
            ticket,
            body,
        });
    }

    /// A question of one that was the master; its ticket.
    pub fn question(&mut self, from: usize, to: usize, volume: usize) -> u64 {
        let ticket = self.random.next_u64();
        self.post(from, to, volume, ticket, Body::Question(Standing::Master));
        ticket
    }

    /// What has arrived is read; what nobody can read is lost.
    pub fn deliver(&mut self) {
        let now = self.now;
        let (due, rest) = std::mem::take(&mut self.letters)
            .into_iter()
            .partition(|letter| letter.at <= now);
        self.letters = rest;
        let due: Vec<Letter> = due;
        for letter in due {
            let Letter { from, to, .. } = letter;
            if self.net.is_blocked((from, to)) || !self.nodes[to].is_up() {
                continue;
            }
            let v = letter.volume;
            match letter.body {
                Body::Question(standing) => {
                    let answer = self.answer(to, v, from, standing);
                    self.post(to, from, v, letter.ticket, Body::Answer(answer));
                }
                Body::Answer(answer) => {
                    if let Some(Host::Asking(asking)) = self.host(to, v)
                        && asking.ticket == letter.ticket
                        && asking.waiting.remove(&from)
                    {
                        asking.answers.push(answer);
                    }
                }
            }
        }
    }

    /// What a node says to `asker`, which is `theirs`.
    fn answer(&mut self, n: usize, v: usize, asker: usize, theirs: Standing) -> Answer {
        let live = match self.host(n, v) {
            Some(Host::Master(host)) => Some(host.open.shared.fs.committed()),
            Some(Host::Mirror(host)) => host.follower.fs().map(|fs| fs.committed()),
            _ => None,
        };
        let asking = matches!(self.host(n, v), Some(Host::Asking(_)));
        let home = &self.nodes[n].homes[&v];
        let facts = home.facts.stored().filter(|facts| facts.volume_id != 0);
        let peer = self.nodes[n].name.clone();
        let Some(facts) = facts else {
            return Answer {
                peer,
                standing: Standing::Absent,
                master: None,
                master_member: None,
                generations: Vec::new(),
                applied: Txid(0),
            };
        };
        let listed = self.listed(n, v);
        let (standing, master) = roles::standing(&facts, &listed);
        let master = master.map(str::to_owned);
        let standing = match standing {
            Standing::Master if asking => Standing::Undecided,
            standing => standing,
        };
        if standing == Standing::Master && theirs == Standing::Mirror {
            self.welcome_back(n, v, asker);
        }
        Answer {
            peer,
            standing,
            master,
            master_member: None,
            generations: facts.generations,
            applied: live.unwrap_or(facts.applied),
        }
    }

    /// A peer that was taken for a second master is a mirror now.
    fn welcome_back(&mut self, n: usize, v: usize, peer: usize) {
        let host = match self.host(n, v) {
            Some(Host::Master(host)) => host,
            Some(Host::Closed(_)) => return self.start_volume(n, v),
            _ => return,
        };
        let stuck = host.drivers.get(&peer).is_some_and(|driver| {
            let causes = [Cause::TwoMasters, Cause::Diverged];
            let error = driver.mirror.record().error.as_ref();
            driver.mirror.state() == State::Error
                && error.is_some_and(|(code, _)| causes.iter().any(|cause| cause.word() == code))
        });
        if stuck {
            self.request_for(n, v, peer, lockstepfs::mirror::master::Request::Restart);
        }
    }

    /// An operator's question, which is waited for: none if the peer can not be reached.
    fn ask(&mut self, n: usize, v: usize, peer: usize) -> Option<Answer> {
        let open = !self.net.is_blocked((n, peer)) && !self.net.is_blocked((peer, n));
        (open && self.nodes[peer].is_up()).then(|| self.answer(peer, v, n, Standing::Master))
    }

    // ---- opening ----

    /// Opens a volume of a node that has just started, or asks the others first.
    pub fn start_volume(&mut self, n: usize, v: usize) {
        let Some(facts) = self.nodes[n].homes[&v].facts.stored() else {
            return;
        };
        self.relist(n, v, &facts);
        if facts.handing_over.is_some() {
            return self.open_host(n, v);
        }
        let waiting = self.known(n, &facts);
        if !roles::is_asked_for(&facts, &self.listed(n, v)) || waiting.is_empty() {
            return self.open_host(n, v);
        }
        let ticket = self.random.next_u64();
        for peer in &waiting {
            self.post(n, *peer, v, ticket, Body::Question(Standing::Master));
        }
        let asking = Asking {
            ticket,
            until: self.now + ASK_FOR,
            waiting,
            answers: Vec::new(),
            faulty: self.nodes[n].faulty,
        };
        self.put_host(n, v, Host::Asking(asking));
    }

    fn relist(&mut self, n: usize, v: usize, facts: &Facts) {
        if let Some(listed) = roles::relisted(facts, &self.listed(n, v)) {
            self.list(n, v, listed);
        }
    }

    /// A volume that is not open: it asks, and others may call.
    pub fn asking_step(&mut self, n: usize, v: usize, mut asking: Asking) {
        if asking.waiting.is_empty() || asking.until <= self.now {
            let facts = self.nodes[n].homes[&v].facts.stored();
            if facts.is_some_and(|facts| facts.handing_over.is_some()) {
                return self.answered_after(n, v, asking.answers.pop(), asking.faulty);
            }
            return self.decide(n, v, asking.answers, asking.faulty);
        }
        let faulty = asking.faulty;
        self.put_host(n, v, Host::Asking(asking));
        self.closed_step(n, v, faulty);
    }

    /// Calls for a volume that is not open: whoever calls is asked no more.
    pub fn closed_step(&mut self, n: usize, v: usize, faulty: bool) {
        for id in self.calls(n, v) {
            let Some(Heard::Frame(message, payload)) = self.net.receive(id, End::Mirror, self.now)
            else {
                continue;
            };
            match self.called(n, v, id, &message, None) {
                Called::OpenAsked(answer) => {
                    self.take_host(n, v);
                    self.decide(n, v, vec![answer], faulty);
                    self.hand_over_call(n, v, id, message, payload);
                    return;
                }
                Called::Refuse(cause, detail) => self.refuse(id, cause, detail),
                Called::Listen | Called::Follow { .. } => match self.host(n, v) {
                    Some(Host::Closed(why)) => {
                        let why = why.clone();
                        self.refuse(id, Cause::MirrorDamaged, why);
                    }
                    _ => self.net.close(id, End::Mirror),
                },
            }
        }
    }

    fn hand_over_call(&mut self, n: usize, v: usize, id: ConnId, hello: Message, with: Vec<u8>) {
        match self.take_host(n, v) {
            Some(Host::Mirror(mut host)) => {
                host.call = Some(id);
                let handled = host.follower.frame(hello, with);
                self.handled(n, v, &mut host, handled);
                self.put_host(n, v, Host::Mirror(host));
            }
            Some(other) => {
                let detail = match &other {
                    Host::Closed(why) => why.clone(),
                    _ => format!("{} is a master of v{v}, too", self.nodes[n].name),
                };
                self.refuse(id, Cause::Diverged, detail);
                self.put_host(n, v, other);
            }
            None => self.net.close(id, End::Mirror),
        }
    }

    pub fn refuse(&mut self, id: ConnId, cause: Cause, detail: String) {
        let refused = Message::Refused {
            code: cause.word().to_owned(),
            detail,
            severe: true,
        };
        self.net
            .send(id, End::Mirror, refused, Vec::new(), self.now, &self.random);
        self.net.close(id, End::Mirror);
    }

    /// The answers are there, or waited for no longer.
    fn decide(&mut self, n: usize, v: usize, answers: Vec<Answer>, faulty: bool) {
        let was_faulty = self.nodes[n].faulty;
        self.nodes[n].faulty |= faulty;
        let decided = {
            let facts = self.nodes[n].homes[&v].facts.stored();
            let facts = facts.expect("it was asked for with them");
            roles::opening(&facts, &self.nodes[n].name, &answers)
        };
        let name = format!("v{v}");
        let ours = self.nodes[n].name.clone();
        match decided {
            Ok(Opening::AsListed | Opening::Undecided { .. }) => self.open_host(n, v),
            Ok(Opening::StepBack { master, theirs }) => {
                self.tally.check("master that became a mirror by itself", 1);
                match self.step_back(n, v, &master, &theirs, false) {
                    Ok(_) => self.open_host(n, v),
                    Err(why) => self.put_host(n, v, Host::Closed(why)),
                }
            }
            Err(refused) => {
                let at = Volume {
                    name: &name,
                    node: &ours,
                };
                let why = format!("{}; next: {}", refused.why(&at), refused.remedy(&at));
                self.note(|| format!("n{n}: {why}"));
                self.tally.check("start that was refused for a dispute", 1);
                self.put_host(n, v, Host::Closed(why));
            }
        }
        self.nodes[n].faulty = was_faulty;
        self.noticed_dark(n);
    }

    // ---- calls ----

    /// A master calls: whether it is listened to. A new master is listed.
    fn called(
        &mut self,
        n: usize,
        v: usize,
        id: ConnId,
        message: &Message,
        open: Option<Txid>,
    ) -> Called {
        let caller = self.net.get(id).map_or(n, |conn| conn.master);
        let caller = self.nodes[caller].name.clone();
        let Message::Hello { generations, .. } = message else {
            return Called::Refuse(Cause::NameTaken, "it did not greet".to_string());
        };
        let name = format!("v{v}");
        let at = Volume {
            name: &name,
            node: &self.nodes[n].name,
        };
        let home = &self.nodes[n].homes[&v];
        let Some(listed) = home.list.get() else {
            return Called::Listen;
        };
        let facts = home.facts.stored().filter(|facts| facts.volume_id != 0);
        let theirs = lineage(generations);
        let said = roles::called(&at, facts.as_ref(), &listed, open, &caller, theirs);
        if let Called::Follow { fork } = said {
            self.note(|| format!("v{v} n{n}: {caller} is the master now, from {fork} on"));
            self.tally.check("mirror that was given another master", 1);
            self.list(n, v, Listed::Mirror(caller));
        }
        said
    }

    /// Whether a mirror takes this call.
    pub fn listens(&mut self, n: usize, v: usize, id: ConnId, message: &Message) -> bool {
        match self.called(n, v, id, message, None) {
            Called::Listen | Called::Follow { .. } => true,
            Called::Refuse(cause, detail) => {
                self.refuse(id, cause, detail);
                false
            }
            Called::OpenAsked(_) => {
                self.net.close(id, End::Mirror);
                false
            }
        }
    }

    /// Masters that call a master.
    pub fn refuse_masters(&mut self, n: usize, v: usize, host: &MasterHost) {
        for id in self.calls(n, v) {
            let Some(Heard::Frame(message, _)) = self.net.receive(id, End::Mirror, self.now) else {
                continue;
            };
            let open = host.open.shared.journal.last_committed();
            match self.called(n, v, id, &message, Some(open)) {
                Called::Refuse(cause, detail) => {
                    self.note(|| format!("v{v} n{n}: refused: {detail}"));
                    self.refuse(id, cause, detail);
                }
                said => panic!("roles: the master n{n} of v{v} takes a call: {said:?}"),
            }
        }
    }

    /// A node's copy may be of another history now. True if it is.
    pub fn follows(&mut self, n: usize, v: usize, generations: &[Lineage]) -> bool {
        let volume = &mut self.volumes[v];
        let Some(fork) = volume.lines.follows(n, generations) else {
            return false;
        };
        for known in [&mut volume.durable, &mut volume.promised] {
            if let Some(txid) = known.get_mut(&n) {
                *txid = fork.min(*txid);
            }
        }
        true
    }

    // ---- changes ----

    /// A closed volume becomes a mirror of `master`. The error is what the operator reads.
    pub fn step_back(
        &mut self,
        n: usize,
        v: usize,
        master: &str,
        theirs: &[Lineage],
        discard: bool,
    ) -> Result<Stepped, String> {
        let ours = self.nodes[n].name.clone();
        let home = &self.nodes[n].homes[&v];
        let Some(mut facts) = home.facts.stored() else {
            return Err("there are no facts".to_string());
        };
        let was_master = facts.role == Role::Master;
        let volume = home.volume();
        let stepped = StepBack {
            volume: &volume,
            facts: &*home.facts,
            maps: &*home.maps,
            lost: &*home.lost,
            node: &ours,
            master,
            theirs,
            discard,
        }
        .rejoin(&mut facts);
        let stepped = match stepped {
            Ok(stepped) => stepped,
            Err(MirrorError::Refused { detail, .. }) => {
                self.note(|| format!("v{v} n{n}: can not step back: {detail}"));
                assert!(
                    self.nodes[n].faulty || !detail.contains("changed from outside"),
                    "stamps: n{n}'s copy of v{v} can not step back: {detail}"
                );
                return Err(format!(
                    "volume v{v} can not become a mirror of the one on {master} by itself: {detail}; next: lockstep rejoin v{v} {master} --discard {ours}, to keep the volume of {master}"
                ));
            }
            Err(error) => {
                let why = error.to_string();
                self.error(n, &format!("v{v}: stepping back: {why}"));
                if discard {
                    // What was given up may be recorded already.
                    self.volumes[v].excused.insert(n);
                }
                return Err(why);
            }
        };
        self.note(|| format!("v{v} n{n}: a mirror of {master}: {stepped}"));
        self.given_up(n, v, &stepped);
        self.list(n, v, Listed::Mirror(master.to_string()));
        self.volumes[v].lines.stepped_back(n);
        self.follows(n, v, &facts.generations);
        let volume = &mut self.volumes[v];
        if was_master {
            // As a mirror it begins to keep what others may need.
            volume.made_up_to.insert(n, stepped.shared);
        }
        if discard {
            self.went_back(n, v, stepped.shared);
        }
        let volume = &mut self.volumes[v];
        if discard || was_master {
            volume.durable.remove(&n);
            volume.promised.remove(&n);
        }
        match facts.copy {
            Copy::Complete if was_master => volume.complete.insert(n),
            Copy::Complete => false,
            Copy::Partial { .. } | Copy::Blank => volume.complete.remove(&n),
        };
        if stepped.compare {
            volume.excused.insert(n);
        }
        if let Some(master) = self.number(master) {
            self.post(n, master, v, 0, Body::Question(Standing::Mirror));
        }
        Ok(stepped)
    }

    /// A node was told to give up what it had after `shared`. Who was told before that it had it keeps nothing for it.
    fn went_back(&mut self, n: usize, v: usize, shared: Txid) {
        let name = self.nodes[n].name.clone();
        for other in self.others(n, v) {
            let slot = match self.host(other, v) {
                Some(Host::Master(host)) => host.open.slots.all().into_iter(),
                _ => Vec::new().into_iter(),
            };
            let live = slot.filter(|slot| slot.peer == name);
            let live = live.map(|slot| slot.state.lock().position).next();
            let stored = self.nodes[other].homes[&v].facts.stored();
            let stored = stored.map(|facts| match facts.role {
                Role::Master => facts.peers.get(&name).map_or(Txid(0), |peer| peer.acked),
                Role::Mirror => facts.floor,
            });
            if live.or(stored).is_some_and(|had| had > shared) {
                self.volumes[v].went_back.insert((other, n));
            }
        }
    }

    /// `promote`
    pub fn promote(&mut self, n: usize, v: usize, force: bool) -> bool {
        match self.host(n, v) {
            None | Some(Host::Master(_)) => return false,
            Some(_) => {}
        }
        let home = &self.nodes[n].homes[&v];
        let Some(mut facts) = home.facts.stored() else {
            return false;
        };
        let Listed::Mirror(master) = self.listed(n, v) else {
            // It was the master, and is to be it, whatever others say.
            let Ok(changed) = roles::stay_master(&mut facts, force) else {
                return false;
            };
            if changed && self.nodes[n].homes[&v].facts.save(&facts).is_err() {
                return false;
            }
            self.note(|| format!("v{v} n{n}: promoted, as it was"));
            self.take_host(n, v);
            self.open_host(n, v);
            self.noticed_dark(n);
            return true;
        };
        let linked = matches!(self.host(n, v), Some(Host::Mirror(host)) if host.call.is_some());
        let answer = self
            .number(&master)
            .filter(|_| linked)
            .and_then(|m| self.ask(n, v, m));
        let stands = CopyStanding {
            linked: answer.is_some_and(|answer| roles::may_follow(answer).is_ok()),
            bytes_to_go: 0,
        };
        let Ok(doubts) = roles::doubts(&master, &facts, stands, force) else {
            return false;
        };
        self.told_the_loss(n, v, &facts, &doubts);
        match self.take_host(n, v) {
            Some(Host::Mirror(host)) => self.leave(n, v, *host),
            Some(other) => {
                self.put_host(n, v, other);
                return false;
            }
            None => return false,
        }
        if !self.nodes[n].power.is_on() {
            return true;
        }
        let home = &self.nodes[n].homes[&v];
        let mut facts = home.facts.stored().expect("it was there before");
        if facts.switching.is_some() || (is_doubtful(&facts) && !force) {
            // Refused; or it is not what it was when it was asked about.
            self.open_host(n, v);
            return false;
        }
        let forced = is_doubtful(&facts);
        if forced {
            self.volumes[v].forced.insert(n);
        }
        if !roles::is_whole(&facts) && !self.repair(n, v, &mut facts) {
            // As it was before.
            if self.nodes[n].power.is_on() {
                self.open_host(n, v);
            }
            return true;
        }
        let home = &self.nodes[n].homes[&v];
        let mut peers: BTreeMap<String, _> = BTreeMap::new();
        for peer in self.known(n, &facts) {
            peers.insert(self.nodes[peer].name.clone(), None);
        }
        peers.insert(master.clone(), None);
        let volume = home.volume();
        let next = roles::master_facts(&volume, &facts, &*home.maps, &peers);
        self.note(|| format!("v{v} n{n}: promoted in place of {master}, forced: {force}"));
        let opened = match next {
            Ok(next) => self.open_master(n, v, next),
            Err(error) => Err(error.to_string()),
        };
        match opened {
            Ok(host) => {
                if let Host::Master(host) = &host {
                    self.promoted(n, v, host.open.shared.fork);
                }
                if forced {
                    self.knows_nobody(v, n);
                }
                self.put_host(n, v, host);
                self.list(n, v, Listed::Master);
            }
            Err(error) => {
                self.error(n, &format!("promoting v{v}: {error}"));
                if self.nodes[n].faulty {
                    // It may be the master by its facts, and its disk tells no more whose what is.
                    let others = self.others(n, v);
                    self.volumes[v].excused.extend(others);
                }
                self.start_volume(n, v);
            }
        }
        true
    }

    /// Closes a mirror in order.
    pub fn leave(&mut self, n: usize, v: usize, mut host: MirrorHost) {
        if let Some(id) = host.call.take() {
            let reason = "the mirror's node closes the volume".to_string();
            let bye = Message::Bye { reason };
            self.net
                .send(id, End::Mirror, bye, Vec::new(), self.now, &self.random);
            self.net.close(id, End::Mirror);
        }
        if let Err(error) = host.follower.close() {
            self.error(n, &format!("closing v{v}: {error}"));
        }
    }

    /// What is expected of the mirrors of a new master.
    pub fn promoted(&mut self, n: usize, v: usize, fork: Txid) {
        let others = self.others(n, v);
        let faulty = self.nodes[n].faulty;
        let volume = &mut self.volumes[v];
        let promised = volume.promised.remove(&n).unwrap_or_default();
        assert!(
            faulty || fork >= promised,
            "I4: transaction {promised} of v{v} was acknowledged in sync mode, n{n} was promoted with {fork}"
        );
        volume.complete.insert(n);
        volume.new_to.retain(|(master, _)| *master != n);
        if faulty || volume.excused.contains(&n) {
            volume.excused.extend(others);
        }
        self.tally.check("promotion", 1);
    }

    /// `rejoin`
    pub fn rejoin(&mut self, n: usize, v: usize, master: usize, discard: bool) -> bool {
        if self.host(n, v).is_none() || n == master {
            return false;
        }
        let Some(answer) = self.ask(n, v, master) else {
            return false;
        };
        let Ok(answer) = roles::may_follow(answer) else {
            return false;
        };
        self.note(|| format!("v{v} n{n}: rejoin n{master}, discard: {discard}"));
        match self.take_host(n, v) {
            Some(Host::Master(mut host)) => {
                for (_, mut driver) in std::mem::take(&mut host.drivers) {
                    if let Some(id) = driver.conn.take() {
                        self.net.close(id, End::Master);
                    }
                }
                if let Err(error) = self.close_master(v, &host) {
                    self.error(n, &format!("closing v{v}: {error}"));
                }
            }
            Some(Host::Mirror(host)) => self.leave(n, v, *host),
            _ => {}
        }
        if !self.nodes[n].power.is_on() {
            return true;
        }
        let name = self.nodes[master].name.clone();
        // Refused: it is opened as it was, for the operator has not decided.
        let done = self.step_back(n, v, &name, &answer.generations, discard);
        if self.nodes[n].power.is_on() {
            self.open_host(n, v);
        }
        self.noticed_dark(n);
        done.is_ok()
    }
}
