//! Why a change of role is refused: each reason in a sentence, and what the operator does next.

use super::Volume;
use crate::units::{BlockNo, Txid};
use crate::volume::facts::{Member, NOTHING};

/// A change of role that is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Two nodes have each been the master alone.
    Diverged(Split),
    /// A mirror's history goes on from this one, and names this node as its master.
    OlderCopy,
    /// The new master is no peer of this node.
    NoPeer(Member),
    /// A mirror that holds nothing.
    NoCopy {
        /// Its master.
        master: String,
    },
    /// A mirror whose master is there.
    Linked {
        /// Its master.
        master: String,
    },
    /// A mirror whose copy is not what a master had.
    Doubtful {
        /// Its master.
        master: String,
        /// What speaks against it.
        doubts: Vec<Doubt>,
    },
    /// A master that told another node to be it, and does not know what became of that.
    HandingOver {
        /// The other node.
        to: String,
    },
    /// A resync staged is half-way home.
    Switching,
    /// The node that is to be followed is a mirror.
    NoMaster {
        /// That node.
        peer: String,
    },
    /// The node that is to be followed is asking others whether it is the master.
    Undecided {
        /// That node.
        peer: String,
    },
    /// The node that is to be followed has no such volume.
    Absent {
        /// That node.
        peer: String,
    },
}

/// Two histories that went on alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The other master.
    pub master: String,
    /// The last transaction that both have.
    pub shared: Txid,
    /// The last of this node; `None` while its log is not read.
    pub ours: Option<Txid>,
    /// The last of the other; `None` when it was not asked.
    pub theirs: Option<Txid>,
}

impl Split {
    /// In plain words, what it would cost.
    pub fn spell(&self, at: &Volume<'_>) -> String {
        let loss = |last: Option<Txid>| match last {
            Some(last) if last > self.shared => {
                format!("loses transactions {} to {last}", self.shared.next())
            }
            // Not open, or not asked: its log is not read for this.
            _ => format!("loses all transactions after {}", self.shared),
        };
        let (name, ours, master) = (at.name, at.node, &self.master);
        let both = match self.shared {
            NOTHING => {
                "no transaction is known to be in both: a copy was promoted half made".to_owned()
            }
            shared => format!("both have everything up to transaction {shared}"),
        };
        format!(
            "volume {name}: {ours} and {master} have each been its master; {both}; \
             keeping the copy of {master} {} of {ours}, keeping the copy of {ours} {} of {master}",
            loss(self.ours),
            loss(self.theirs)
        )
    }
}

/// What speaks against a promotion, and what it would cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The master is connected.
    Linked {
        /// The master.
        master: String,
    },
    /// A first copy ended early.
    Partial {
        /// The first block that it did not reach.
        cursor: BlockNo,
        /// Of so many.
        total: u64,
    },
    /// A repair ended early.
    Inconsistent {
        /// What the master said last.
        bytes_to_go: u64,
    },
    /// Something else wrote to it.
    Tainted,
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Doubt::Linked { master } => {
                write!(f, "its master {master} is connected, and goes on writing")
            }
            Doubt::Partial { cursor, total } => write!(
                f,
                "the first copy is incomplete: blocks from {cursor} of {total} on were never copied and are lost; what is there is repaired by e2fsck as far as it can be"
            ),
            Doubt::Inconsistent { bytes_to_go } => write!(
                f,
                "the copy is being repaired, and is no state that the master ever had: {bytes_to_go} bytes were known to be missing; files may hold a mixture of old and new; e2fsck repairs the metadata as far as it can be"
            ),
            Doubt::Tainted => {
                f.write_str("the copy was changed from outside, by the kernel or by e2fsck")
            }
        }
    }
}

/// The command that makes a member a peer.
pub fn how_to_add(member: &Member) -> String {
    let or = |text: &str, unknown: &str| match text.is_empty() {
        true => unknown.to_owned(),
        false => text.to_owned(),
    };
    format!(
        "lockstep peer add {} {} --fingerprint {}",
        member.name,
        or(&member.address, "ADDR:PORT"),
        or(&member.fingerprint, "FP")
    )
}

impl Refused {
    /// What is wrong.
    pub fn why(&self, at: &Volume<'_>) -> String {
        let (name, ours) = (at.name, at.node);
        match self {
            Refused::Diverged(split) => split.spell(at),
            Refused::OlderCopy => format!(
                "a mirror of {name} has a history that goes on from this one: the state directory of {ours} is an older copy of itself, from a backup or a clone"
            ),
            Refused::NoPeer(member) => format!(
                "{} was made the master of {name}, and is no peer of this node",
                member.name
            ),
            Refused::NoCopy { .. } => format!("there is no copy of {name} here yet"),
            Refused::Linked { master } => Doubt::Linked {
                master: master.clone(),
            }
            .to_string(),
            Refused::Doubtful { doubts, .. } => {
                let doubts: Vec<String> = doubts.iter().map(ToString::to_string).collect();
                doubts.join("; ")
            }
            Refused::HandingOver { to } => {
                format!("{to} may be the master of {name}, and does not say")
            }
            Refused::Switching => "what a resync staged is being brought home".to_owned(),
            Refused::NoMaster { peer } => format!("{peer} is a mirror of {name}, not its master"),
            Refused::Undecided { peer } => {
                format!(
                    "{peer} is starting, and has not found out yet whether it is the master of {name}"
                )
            }
            Refused::Absent { peer } => format!("{peer} has no volume {name} of this id"),
        }
    }

    /// What to do next.
    pub fn remedy(&self, at: &Volume<'_>) -> String {
        let (name, ours) = (at.name, at.node);
        match self {
            Refused::Diverged(Split { master, .. }) => {
                format!(
                    "lockstep rejoin {name} {master} --discard {ours}, to keep the volume of {master}; to keep that of {ours}, on {master}: lockstep rejoin {name} {ours} --discard {master}; if {ours} is to go on without asking, on {ours}: lockstep promote {name}"
                )
            }
            Refused::OlderCopy => format!(
                "put the newer one back; or, to keep what the mirror has, there: lockstep promote {name} --force; to keep what is here: lockstep promote {name} --force"
            ),
            Refused::NoPeer(member) => format!(
                "{}; then: lockstep mount {name} DIR, or restart the daemon",
                how_to_add(member)
            ),
            Refused::NoCopy { master } => format!("lockstep status {name}, on {master}"),
            Refused::Linked { master } => format!(
                "lockstep switchover {name} PEER, on {master}; lockstep promote {name} --force makes two masters"
            ),
            Refused::Doubtful { master, .. } => format!(
                "wait for {master}; or, to take what is there: lockstep promote {name} --force"
            ),
            Refused::HandingOver { to } => {
                format!("start {to}; if it is lost for good: lockstep promote {name} --force")
            }
            Refused::Switching => {
                format!("lockstep status {name}; then give the command again")
            }
            Refused::NoMaster { peer } => format!("lockstep promote {name}, on {peer}"),
            Refused::Undecided { peer } => {
                format!("lockstep status {name}, on {peer}; then give the command again")
            }
            Refused::Absent { peer } => format!("lockstep volume list, on {peer}"),
        }
    }
}
