//! `switchover`: a master hands a volume over to a mirror that has everything.
//!
//! Owns the order in which the daemons of both sides carry out what `mirror::roles` decides. It happens in one step, but for
//! the wait until the mirror has everything; what may be lost is the hand-over, or its answer, or the power of either side.
//! A master that does not know what became of it asks, here as in the daemon.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstepfs::fs::Fs;
use lockstepfs::mirror::ranges::RangeSet;
use lockstepfs::mirror::roles::{self, Answer, Candidate, Ended, Listed, Opening};
use lockstepfs::units::Txid;
use lockstepfs::volume::facts::{FactStore, HandingOver, Role};
use lockstepfs::wire::message::{Member, Place};
use states::State;

use super::net::End;
use super::node::{Asking, Host, MasterHost};
use super::world::World;

/// Rounds in which the mirror has to get what it lacks.
const DRAIN: usize = 200;
/// Pause between two questions of a node that does not know whether it is the master.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl World {
    pub fn switchover_some(&mut self) -> bool {
        let v = self.some_volume();
        let Some(n) = self.master_of(v) else {
            return false;
        };
        let others = self.others(n, v);
        let peer = others[self.random.below(others.len() as u64) as usize];
        self.switchover(n, v, peer)
    }

    /// The master, if it may hand over to `peer` now.
    fn hands_over(&mut self, n: usize, v: usize, peer: usize) -> Option<&MasterHost> {
        let Some(Host::Master(host)) = self.host(n, v) else {
            return None;
        };
        let driver = host.drivers.get(&peer)?;
        let free = host.writing.is_none() && !host.committing;
        (free && driver.mirror.state() == State::InSync).then_some(&**host)
    }

    fn switchover(&mut self, n: usize, v: usize, peer: usize) -> bool {
        let Some(host) = self.hands_over(n, v, peer) else {
            return false;
        };
        let shared = host.open.shared.clone();
        self.note(|| format!("v{v} n{n}: switchover to n{peer}"));
        if let Err(error) = shared.fs.sync() {
            self.operation_failed(n, &error);
            self.noticed_dark(n);
            return true;
        }
        let txid = shared.journal.last_committed();
        let mut ready = false;
        for _ in 0..DRAIN {
            ready = self.is_ready(n, v, peer, txid);
            if ready {
                break;
            }
            let ms = self.random.below(5) + 1;
            self.round(ms);
        }
        // Held until now: whatever else was committed meanwhile, it is a master still.
        let still = self.hands_over(n, v, peer).is_some_and(|host| {
            let fs: *const Fs = &*host.open.shared.fs;
            std::ptr::eq(fs, &*shared.fs)
        });
        if !ready || !still || shared.journal.last_committed() != txid {
            return true;
        }
        let Some(Host::Master(mut host)) = self.take_host(n, v) else {
            return true;
        };
        let members = self.members(v);
        let (ours, theirs) = (self.nodes[n].name.clone(), self.nodes[peer].name.clone());
        let member = |name: &str| -> Member {
            let found = members.iter().find(|m| m.name == name);
            found.cloned().expect("every node of a volume is a member")
        };
        let slots = host.open.slots.all();
        let (places, maps) = roles::places(&shared, &slots, &theirs, txid, member(&ours), member);
        let maps = maps.into_iter().collect();
        for (_, mut driver) in std::mem::take(&mut host.drivers) {
            if let Some(id) = driver.conn.take() {
                self.net.close(id, End::Master);
            }
        }
        let at = (txid, shared.journal.chain());
        let saved = {
            let mut facts = shared.facts.lock();
            facts.handing_over = Some(HandingOver {
                to: theirs,
                token: self.random.next_u64(),
            });
            shared.store.save(&facts)
        };
        let ended = match (saved, self.random.below(6)) {
            (Err(error), _) => {
                self.error(n, &format!("handing v{v} over: {error}"));
                Ended::Unknown("it could not be recorded".to_owned())
            }
            (Ok(()), 0) => Ended::Unknown("the hand-over was lost".to_owned()),
            (Ok(()), 1) => {
                self.take_over(peer, v, n, at, &places, maps);
                Ended::Unknown("the answer was lost".to_owned())
            }
            (Ok(()), _) => self.take_over(peer, v, n, at, &places, maps),
        };
        self.note(|| format!("v{v} n{n}: handed over: {ended:?}"));
        drop(slots);
        drop(shared);
        if let Err(error) = self.close_master(v, &host) {
            self.error(n, &format!("closing v{v}: {error}"));
        }
        drop(host);
        if !self.nodes[n].power.is_on() {
            self.noticed_dark(n);
            return true;
        }
        let faulty = self.nodes[n].faulty;
        self.handing_ended(n, v, ended, faulty);
        true
    }

    /// Whether the mirror has, and shows, everything, and would be the master.
    fn is_ready(&mut self, n: usize, v: usize, peer: usize, txid: Txid) -> bool {
        let listed = self.nodes[peer].homes[&v].list.get();
        let follows = listed == Some(Listed::Mirror(self.nodes[n].name.clone()));
        let Some(Host::Mirror(host)) = self.host(peer, v) else {
            return false;
        };
        let candidate = Candidate {
            consistent: host.follower.is_consistent() && host.follower.fs().is_some(),
            applied: host.follower.applied(),
        };
        let ready = roles::is_ready(&host.follower.facts(), candidate, txid);
        let acked = |host: &MasterHost| {
            let driver = host.drivers.get(&peer)?;
            Some(driver.mirror.slot().state.lock().acked)
        };
        let had = self.hands_over(n, v, peer).and_then(acked);
        follows && ready == Ok(true) && had.is_some_and(|acked| acked >= txid)
    }

    /// The mirror becomes the master.
    fn take_over(
        &mut self,
        n: usize,
        v: usize,
        master: usize,
        at: (Txid, u64),
        places: &[Place],
        maps: BTreeMap<u32, RangeSet>,
    ) -> Ended {
        match self.take_host(n, v) {
            Some(Host::Mirror(host)) => self.leave(n, v, *host),
            _ => return Ended::Unknown("it was ready a moment ago".to_owned()),
        }
        if self.noticed_dark(n) {
            return Ended::Unknown("the connection ended".to_owned());
        }
        let (ours, theirs) = (self.nodes[n].name.clone(), self.nodes[master].name.clone());
        let home = &self.nodes[n].homes[&v];
        let facts = home.facts.stored().expect("it was there before");
        let known_as = |member: &Member| (member.name != ours).then(|| member.name.clone());
        let volume = home.volume();
        let next = roles::heirs(&facts, at, &theirs, places, maps, known_as).and_then(|peers| {
            let next = roles::master_facts(&volume, &facts, &*home.maps, &peers);
            next.map_err(|error| error.to_string())
        });
        let opened = next.and_then(|next| self.open_master(n, v, next));
        match opened {
            Ok(host) => {
                if let Host::Master(host) = &host {
                    assert!(
                        host.open.shared.fork == at.0,
                        "roles: v{v} was handed over at {}, n{n} goes on from {}",
                        at.0,
                        host.open.shared.fork
                    );
                    self.promoted(n, v, host.open.shared.fork);
                    // What it knows of the others is what the old master knew.
                    self.volumes[v].made_up_to.remove(&n);
                }
                for place in places.iter().filter(|place| place.lost) {
                    let lost = self.number(&place.member.name);
                    self.volumes[v].excused.extend(lost);
                }
                self.put_host(n, v, host);
                self.list(n, v, Listed::Master);
                self.tally.check("switchover", 1);
            }
            Err(error) => {
                self.error(n, &format!("taking v{v} over: {error}"));
                self.start_volume(n, v);
            }
        }
        if self.noticed_dark(n) {
            return Ended::Unknown("the connection ended".to_owned());
        }
        match self.nodes[n].homes[&v].facts.stored() {
            Some(facts) if facts.role == Role::Master => Ended::Taken(facts.generations),
            _ => Ended::Refused("it is a mirror still".to_owned()),
        }
    }

    /// A node that handed over, its volume closed, does what follows from what it heard.
    fn handing_ended(&mut self, n: usize, v: usize, ended: Ended, faulty: bool) {
        let facts = self.nodes[n].homes[&v].facts.stored();
        let mut facts = facts.expect("it was the master");
        let Some(handing) = facts.handing_over.clone() else {
            return self.start_volume(n, v);
        };
        match roles::after_hand_over(&handing, ended) {
            None => {
                facts.handing_over = None;
                if let Err(error) = self.nodes[n].homes[&v].facts.save(&facts) {
                    self.error(n, &format!("forgetting a hand-over of v{v}: {error}"));
                }
                self.start_volume(n, v);
            }
            Some(Opening::StepBack { master, theirs }) => {
                match self.step_back(n, v, &master, &theirs, false) {
                    Ok(_) => self.open_host(n, v),
                    Err(why) => self.put_host(n, v, Host::Closed(why)),
                }
            }
            Some(_) => self.ask_after(n, v, &handing, faulty),
        }
        self.noticed_dark(n);
    }

    /// Asks the node to which it handed over, again and again.
    pub fn ask_after(&mut self, n: usize, v: usize, handing: &HandingOver, faulty: bool) {
        let to = self.number(&handing.to).expect("a node of this world");
        let asking = Asking {
            ticket: self.question(n, to, v),
            until: self.now + ASK_AGAIN,
            waiting: [to].into(),
            answers: Vec::new(),
            faulty,
        };
        self.put_host(n, v, Host::Asking(asking));
    }

    /// It answered, or did not.
    pub fn answered_after(&mut self, n: usize, v: usize, answer: Option<Answer>, faulty: bool) {
        let facts = self.nodes[n].homes[&v].facts.stored();
        let ours = facts.expect("it was the master").generations;
        let ended = roles::asked_after(&ours, answer);
        let was_faulty = self.nodes[n].faulty;
        self.nodes[n].faulty |= faulty;
        self.handing_ended(n, v, ended, faulty);
        self.nodes[n].faulty = was_faulty;
    }
}
