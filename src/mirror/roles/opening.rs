//! As what a node opens a volume of which it was the master, and what it tells others that ask.
//!
//! Owns the decision at a start, made of the facts and of what the peers answered. Never asks: the caller does, and
//! answers that do not come have no say.

use std::collections::BTreeSet;

use super::{Answer, Ended, Refused, Split, Verdict, judge};
use crate::volume::facts::{Facts, HandingOver, Lineage, Member, Role};
use crate::wire::message::Standing;

/// The other nodes of a volume, by the names that this one has for them, and those that it does not know: `known_as`
/// says which it is. `ours` is this node's key.
pub fn others(
    facts: &Facts,
    ours: &str,
    known_as: impl Fn(&Member) -> Option<String>,
) -> (BTreeSet<String>, Vec<Member>) {
    let mut known: BTreeSet<String> = facts.peers.keys().cloned().collect();
    let mut strangers = Vec::new();
    for member in facts.members.iter().filter(|m| m.fingerprint != ours) {
        match known_as(member) {
            Some(peer) => {
                known.insert(peer);
            }
            None if !known.contains(&member.name) => strangers.push(member.clone()),
            None => {}
        }
    }
    (known, strangers)
}

/// As what the list of volumes has one, which may lag behind its facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// This node is its master.
    Master,
    /// It is a mirror of the one on this peer.
    Mirror(String),
}

/// What the list has to say where a change of role was cut between the facts and it; `None` where it is right.
pub fn relisted(facts: &Facts, listed: &Listed) -> Option<Listed> {
    match (listed, facts.role) {
        (Listed::Master, Role::Mirror) if !facts.master.is_empty() => {
            Some(Listed::Mirror(facts.master.clone()))
        }
        (Listed::Mirror(_), Role::Master) => Some(Listed::Master),
        _ => None,
    }
}

/// Whether the peers are to be asked before the volume is opened.
pub fn is_asked_for(facts: &Facts, listed: &Listed) -> bool {
    let master = *listed == Listed::Master || facts.role == Role::Master;
    master && !facts.generations.is_empty()
}

/// As what a volume is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// As it is listed.
    AsListed,
    /// As a mirror, once it has stepped back.
    StepBack {
        /// The new master.
        master: String,
        /// Its history.
        theirs: Vec<Lineage>,
    },
    /// Only for reading: another node may be the master, and does not say. It is asked again and again.
    Undecided {
        /// That node.
        to: String,
        /// Why it does not say.
        why: String,
    },
}

/// What became of a hand-over that was under way when this node stopped; `None`: the peer is not the master, and will not
/// be by it, so the hand-over is forgotten and the peers are asked.
pub fn after_hand_over(handing: &HandingOver, ended: Ended) -> Option<Opening> {
    match ended {
        Ended::Taken(theirs) => Some(Opening::StepBack {
            master: handing.to.clone(),
            theirs,
        }),
        Ended::Refused(_) => None,
        Ended::Unknown(why) => Some(Opening::Undecided {
            to: handing.to.clone(),
            why,
        }),
    }
}

/// What the peers' answers come to. `ours` is this node's key.
pub fn opening(facts: &Facts, ours: &str, answers: &[Answer]) -> Result<Opening, Refused> {
    match judge(&facts.generations, answers) {
        Verdict::Open => Ok(Opening::AsListed),
        Verdict::Follow { master, theirs, .. } => Ok(Opening::StepBack { master, theirs }),
        Verdict::Missing { member } if member.fingerprint == ours => Err(Refused::OlderCopy),
        Verdict::Missing { member } => Err(Refused::NoPeer((&member).into())),
        Verdict::Diverged {
            master,
            shared,
            theirs,
        } => Err(Refused::Diverged(Split {
            master,
            shared,
            ours: facts.head.map(|head| head.txid),
            theirs: Some(theirs),
        })),
    }
}

/// What a node is for a volume, and whom it follows, when it is asked.
pub fn standing<'a>(facts: &'a Facts, listed: &'a Listed) -> (Standing, Option<&'a str>) {
    match (facts.role, &facts.handing_over, listed) {
        (Role::Master, None, _) => (Standing::Master, None),
        (Role::Master, Some(handing), _) => (Standing::Mirror, Some(&handing.to)),
        (Role::Mirror, _, Listed::Mirror(master)) => (Standing::Mirror, Some(master)),
        (Role::Mirror, _, Listed::Master) => (Standing::Mirror, None),
    }
}

/// Whether the node that answered can be followed.
pub fn may_follow(answer: Answer) -> Result<Answer, Refused> {
    match answer.standing {
        Standing::Master => Ok(answer),
        Standing::Mirror => Err(Refused::NoMaster { peer: answer.peer }),
        // It may become a mirror of the very node that asks.
        Standing::Undecided => Err(Refused::Undecided { peer: answer.peer }),
        Standing::Absent => Err(Refused::Absent { peer: answer.peer }),
    }
}
