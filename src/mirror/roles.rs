//! Who is the master, and what a node does that was one, or becomes one. Pure rules over lineages, facts and answers: as
//! what a volume is opened (`opening`), who is listened to (`call`), who may be promoted (`promote`), what a hand-over
//! comes to (`handover`); and the two changes of role on a closed volume.
//!
//! Owns the rule that the longer history wins: a history that continues another one past a fork is its successor. Never
//! opens a connection, and never elects: a promotion is somebody's decision. Invariants: a role changes in one save of
//! the facts; what only this side has is kept aside, durably, before it is given up.

mod call;
mod handover;
mod opening;
mod promote;
mod refused;
mod step_back;

pub use call::{Called, called, two_masters};
pub use handover::{
    Candidate, Ended, MOST_RANGES, asked_after, handed_over, heirs, is_ready, places,
};
pub use opening::{
    Listed, Opening, after_hand_over, is_asked_for, may_follow, opening, others, relisted, standing,
};
pub use promote::{
    Heir, Standing as CopyStanding, before_repair, doubts, is_whole, master_facts, stay_master,
};
pub use refused::{Doubt, Refused, Split, how_to_add};
pub use step_back::{OWN_MAP, StepBack, Stepped, own_dirty};

use states::reconnect::{self, Fate};

use crate::units::{Generation, Txid};
use crate::volume::facts::{self, Facts, Lineage, NOTHING};
use crate::wire::message::{Fork, Member, Standing};

/// Of which volume something is decided, and where.
#[derive(Clone, Copy, Debug)]
pub struct Volume<'a> {
    /// The volume.
    pub name: &'a str,
    /// This node.
    pub node: &'a str,
}

/// How one side's history relates to another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The same generations.
    Equal,
    /// Theirs goes on from ours: what ours has after `fork` is not part of it.
    Behind {
        /// The last transaction that they took over.
        fork: Txid,
    },
    /// Ours goes on from theirs.
    Ahead,
    /// Each has generations that the other lacks.
    Diverged {
        /// The last transaction that both had.
        shared: Txid,
    },
    /// No generation in common.
    Unrelated,
}

/// Compares `ours` with `theirs`, oldest first; either may be cut off at its oldest end.
pub fn relation(ours: &[Lineage], theirs: &[Lineage]) -> Relation {
    let place = |id: Generation| theirs.iter().rposition(|l| l.generation == id);
    let common = ours
        .iter()
        .enumerate()
        .rev()
        .find_map(|(at, l)| Some((at, place(l.generation)?)));
    let Some((at, there)) = common else {
        return Relation::Unrelated;
    };
    let agrees = ours[..=at]
        .iter()
        .rev()
        .zip(theirs[..=there].iter().rev())
        .all(|(a, b)| a == b);
    let earliest = |later: &[Lineage]| later.iter().map(|l| l.fork).min();
    let (our_fork, their_fork) = (earliest(&ours[at + 1..]), earliest(&theirs[there + 1..]));
    match (our_fork, their_fork) {
        _ if !agrees => Relation::Diverged { shared: Txid(0) },
        (None, None) => Relation::Equal,
        (None, Some(fork)) => Relation::Behind { fork },
        (Some(_), None) => Relation::Ahead,
        (Some(a), Some(b)) => Relation::Diverged { shared: a.min(b) },
    }
}

/// The generations that `ours` and `theirs` share: what is left of a history that steps back.
pub fn shared_lineage(ours: &[Lineage], theirs: &[Lineage]) -> Vec<Lineage> {
    let known = |l: &&Lineage| theirs.contains(l);
    ours.iter().take_while(known).copied().collect()
}

/// What becomes of transactions that this mirror drops because the master `caller`, of the history `theirs`, does not have
/// them.
pub fn fate(facts: &Facts, theirs: &[Lineage], caller: &str) -> Fate {
    let plain = |lineage: &[Lineage]| -> Vec<reconnect::Lineage> {
        lineage
            .iter()
            .map(|l| reconnect::Lineage {
                generation: l.generation.0,
                fork: l.fork.0,
            })
            .collect()
    };
    let by_sender = !caller.is_empty() && facts.sender == caller;
    reconnect::fate(&plain(theirs), &plain(&facts.generations), by_sender)
}

/// What a peer answered when it was asked for its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The peer.
    pub peer: String,
    /// What it is.
    pub standing: Standing,
    /// A mirror's master, by the name that this node has for it; `None` if it has none.
    pub master: Option<String>,
    /// The key of that master, to say which peer is missing.
    pub master_member: Option<Member>,
    /// Its history.
    pub generations: Vec<Lineage>,
    /// The last transaction that it has.
    pub applied: Txid,
}

/// What a node that was the master does when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is still the master, for all that is known.
    Open,
    /// Another one is, with a history that goes on from this node's.
    Follow {
        /// The new master.
        master: String,
        /// Its history.
        theirs: Vec<Lineage>,
        /// The last transaction that it took over.
        fork: Txid,
    },
    /// A new master is known to exist, but it is no peer of this node.
    Missing {
        /// The new master.
        member: Member,
    },
    /// Another master has a history that this node's can not be brought together with.
    Diverged {
        /// The other master.
        master: String,
        /// The last transaction that both had.
        shared: Txid,
        /// The other's last.
        theirs: Txid,
    },
}

/// Whether it is the master, as far as it knows: two that start at once are each undecided, and one has the longer history.
fn claims(answer: &Answer) -> bool {
    matches!(answer.standing, Standing::Master | Standing::Undecided)
}

/// Judges by what the peers answered. Those that did not answer have no say: electing is not done here.
pub fn judge(ours: &[Lineage], answers: &[Answer]) -> Verdict {
    let goes_on = |a: &Answer| matches!(relation(ours, &a.generations), Relation::Behind { .. });
    // Whoever gave up its history for another one says so itself; its mirrors do not know it yet.
    let given_up = |master: &Option<String>| {
        let gave_up = |a: &Answer| a.standing == Standing::Mirror && !goes_on(a);
        let named = |a: &&Answer| Some(&a.peer) == master.as_ref();
        answers.iter().filter(named).any(gave_up)
    };
    // The one that goes on furthest from ours knows best.
    let ahead = answers
        .iter()
        .filter(|a| claims(a) || (a.standing == Standing::Mirror && !given_up(&a.master)))
        .filter_map(|a| match relation(ours, &a.generations) {
            Relation::Behind { fork } => Some((a, fork)),
            _ => None,
        })
        .max_by_key(|(a, _)| (a.standing == Standing::Master, a.generations.len()));
    if let Some((answer, fork)) = ahead {
        let theirs = answer.generations.clone();
        let master = match claims(answer) {
            true => Some(answer.peer.clone()),
            false => answer.master.clone(),
        };
        return match (master, &answer.master_member) {
            // A copy that was promoted half made is nobody's successor.
            (Some(master), _) if fork == NOTHING => Verdict::Diverged {
                master,
                shared: fork,
                theirs: answer.applied,
            },
            (Some(master), _) => Verdict::Follow {
                master,
                theirs,
                fork,
            },
            (None, Some(member)) => Verdict::Missing {
                member: member.clone(),
            },
            (None, None) => Verdict::Open,
        };
    }
    let other =
        answers
            .iter()
            .filter(|a| claims(a))
            .find_map(|a| match relation(ours, &a.generations) {
                Relation::Diverged { shared } => Some((a, shared)),
                // One generation, and two that opened it: somebody cloned a state directory.
                Relation::Equal if !ours.is_empty() => Some((a, a.applied)),
                _ => None,
            });
    match other {
        Some((answer, shared)) => Verdict::Diverged {
            master: answer.peer.clone(),
            shared,
            theirs: answer.applied,
        },
        None => Verdict::Open,
    }
}

/// A lineage from the wire.
pub fn lineage(forks: &[Fork]) -> Vec<Lineage> {
    forks
        .iter()
        .map(|fork| Lineage {
            generation: Generation(fork.generation),
            fork: Txid(fork.fork),
        })
        .collect()
}

/// A lineage for the wire.
pub fn forks(lineage: &[Lineage]) -> Vec<Fork> {
    lineage
        .iter()
        .map(|lineage| Fork {
            generation: lineage.generation.0,
            fork: lineage.fork.0,
        })
        .collect()
}

impl From<&Member> for facts::Member {
    fn from(member: &Member) -> facts::Member {
        facts::Member {
            name: member.name.clone(),
            address: member.address.clone(),
            fingerprint: member.fingerprint.clone(),
        }
    }
}

impl From<&facts::Member> for Member {
    fn from(member: &facts::Member) -> Member {
        Member {
            name: member.name.clone(),
            address: member.address.clone(),
            fingerprint: member.fingerprint.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
