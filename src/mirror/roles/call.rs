//! A master calls for a volume of this node: whether it is listened to.
//!
//! Owns the rule that the longer history is the master's, whatever this node's list says. Never opens or changes
//! anything: it says what has to be.

use states::Cause;

use super::{Answer, Listed, Relation, Split, Volume, relation};
use crate::units::Txid;
use crate::volume::facts::{Copy, Facts, Lineage, NOTHING};
use crate::wire::message::Standing;

/// What a call comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Called {
    /// It goes to the mirror that is listed.
    Listen,
    /// This node is listed as the master, and has not opened the volume: it is to be opened as if this answer had come. If
    /// it is a mirror afterwards, the call goes on.
    OpenAsked(Answer),
    /// The caller is the master from now on, in place of the one that is listed: its history goes on from ours after
    /// `fork`.
    Follow {
        /// The last transaction that it took over.
        fork: Txid,
    },
    /// It is refused, for good.
    Refuse(Cause, String),
}

/// The master `caller`, of the history `theirs`, calls for a volume with these facts; `None`: the volume that is listed
/// here is another one, or nothing is known of it. `open` is the last transaction of one that is open as its master here.
pub fn called(
    at: &Volume<'_>,
    facts: Option<&Facts>,
    listed: &Listed,
    open: Option<Txid>,
    caller: &str,
    theirs: Vec<Lineage>,
) -> Called {
    let (name, ours) = (at.name, at.node);
    let Some(facts) = facts else {
        return match listed {
            Listed::Mirror(master) if master == caller => Called::Listen,
            Listed::Mirror(master) => another_mirror(at, master),
            Listed::Master => Called::Refuse(
                Cause::NameTaken,
                format!("{ours} has another volume {name}"),
            ),
        };
    };
    match (listed, relation(&facts.generations, &theirs)) {
        (Listed::Master, Relation::Behind { fork: shared } | Relation::Diverged { shared }) => {
            match open {
                Some(last) => Called::Refuse(Cause::Diverged, choice(at, caller, last, shared)),
                // Not open: whoever calls is asked no more.
                None => Called::OpenAsked(Answer {
                    peer: caller.to_owned(),
                    standing: Standing::Master,
                    master: None,
                    master_member: None,
                    generations: theirs,
                    applied: shared,
                }),
            }
        }
        (Listed::Master, Relation::Ahead) => Called::Refuse(
            Cause::TwoMasters,
            format!(
                "{ours} was made the master of {name} in place of {caller}; on {caller}: lockstep rejoin {name} {ours}, which keeps aside what only {caller} has, or restart its daemon"
            ),
        ),
        (Listed::Master, Relation::Equal | Relation::Unrelated) => two_masters(at),
        (Listed::Mirror(master), _) if master == caller => Called::Listen,
        (Listed::Mirror(master), Relation::Behind { fork: NOTHING })
            if facts.copy != Copy::Blank =>
        {
            Called::Refuse(
                Cause::Diverged,
                format!(
                    "{name} on {ours} is a mirror of the one on {master}; the copy of {caller} was half made when it was promoted, and takes nothing over; to keep the copy of {master}, on {caller}: lockstep rejoin {name} {master} --discard {caller}; to keep the copy of {caller}, on {ours}: lockstep rejoin {name} {caller} --discard {ours}; to keep that of {ours}, on {ours}: lockstep promote {name}"
                ),
            )
        }
        (Listed::Mirror(_), Relation::Behind { fork }) => Called::Follow { fork },
        // It holds nothing of anybody's yet.
        (Listed::Mirror(_), _) if facts.generations.is_empty() => Called::Follow { fork: Txid(0) },
        (Listed::Mirror(master), Relation::Ahead) => Called::Refuse(
            Cause::TwoMasters,
            format!(
                "{name} on {ours} follows {master}, whose history goes on from that of {caller}: {caller} is its master no more; on {caller}: lockstep rejoin {name} {master}; to keep the copy of {caller}, on {ours}: lockstep rejoin {name} {caller} --discard {ours}"
            ),
        ),
        // The copy is of the caller's history, and the one that is listed has called since: nobody here knows who is the
        // master.
        (Listed::Mirror(master), Relation::Equal) => Called::Refuse(
            Cause::TwoMasters,
            format!(
                "{name} on {ours} follows {master}, which was made the master, too; if {master} is its master, on {caller}: lockstep rejoin {name} {master}; if {caller} is, on {ours}: lockstep rejoin {name} {caller}"
            ),
        ),
        (Listed::Mirror(master), Relation::Diverged { shared }) => Called::Refuse(
            Cause::Diverged,
            format!(
                "{name} on {ours} follows {master}, and has a history that left that of {caller} after transaction {shared}; to keep the copy of {master}, on {caller}: lockstep rejoin {name} {master} --discard {caller}; to keep the copy of {caller}, on {ours}: lockstep rejoin {name} {caller} --discard {ours}"
            ),
        ),
        (Listed::Mirror(master), Relation::Unrelated) => another_mirror(at, master),
    }
}

fn another_mirror(at: &Volume<'_>, master: &str) -> Called {
    let (name, ours) = (at.name, at.node);
    Called::Refuse(
        Cause::NameTaken,
        format!("{name} on {ours} is a mirror of the one on {master}"),
    )
}

/// A volume that was opened for the call, and is its master's still.
pub fn two_masters(at: &Volume<'_>) -> Called {
    let (name, ours) = (at.name, at.node);
    Called::Refuse(
        Cause::TwoMasters,
        format!("{ours} is a master of {name}, too"),
    )
}

/// Two masters, of which the operator keeps one.
fn choice(at: &Volume<'_>, caller: &str, last: Txid, shared: Txid) -> String {
    let split = Split {
        master: caller.to_owned(),
        shared,
        ours: Some(last),
        theirs: None,
    };
    let (name, ours) = (at.name, at.node);
    format!(
        "{}. to keep the copy of {caller}, on {ours}: lockstep rejoin {name} {caller} --discard {ours}; to keep the copy of {ours}, on {caller}: lockstep rejoin {name} {ours} --discard {caller}",
        split.spell(at)
    )
}
