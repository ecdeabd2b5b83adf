//! What two nodes that meet again have to do to be equal: a pure function of what each side has recorded. Owns the
//! rules and their order. Never asks, waits or remembers, and never concludes that nothing is to be done while a dirty
//! bit is recorded anywhere.
//!
//! # History
//! A *generation* is a random id that a master mints durably at every read-write opening, before its first commit. It
//! is recorded with its *fork*: the last txid recovered, on which it builds. A transaction is named by its generation
//! and its txid; one of an earlier generation is of a history only up to the forks of all later ones. So a txid that was
//! issued twice, a restored backup, a cloned state directory and two promotions are all seen.
//!
//! # Positions
//! The mirror's position is the last complete transaction in its own log; while a first copy is under way, the txid
//! that was acknowledged together with the cursor. In synchronous modes it may be ahead of what the master has
//! committed. Such a suffix is *unconfirmed*: it was neither shown nor written home, and where the master turns out not
//! to have it, it is dropped. Whoever sent it may have committed and acknowledged it without saying so any more: unless it is
//! that one that lacks it, it is kept aside first ([`fate`]).

use crate::spelled::spelled;
use core::fmt;

/// One generation of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lineage {
    /// The random id of one read-write opening.
    pub generation: u128,
    /// The last txid, of earlier generations, on which this one builds.
    pub fork: u64,
}

/// How far the mirror's parts hold a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Copy {
    /// Nothing has ever been copied.
    Blank,
    /// A first copy was interrupted.
    Partial {
        /// The first block that the copy has not passed.
        cursor: u64,
        /// The txid that was acknowledged together with the cursor.
        txid: u64,
    },
    /// A first copy was completed once.
    Complete,
}

/// What a dirty map says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirtyMap {
    /// How many bits are set.
    pub bits_set: u64,
    /// The map records every block changed by a transaction after this txid,
    pub from_txid: u64,
    /// up to and including this one.
    pub through_txid: u64,
    /// The map is damaged, or lacks something it should have recorded: it says nothing.
    pub lost: bool,
}

/// As what a node has opened, or last served, the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It writes, or wrote.
    Master,
    /// It follows.
    Mirror,
}

/// What the master knows, of itself and for this mirror. It is to be read after the mirror's side has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Master<'a> {
    /// The volume's id.
    pub volume: u128,
    /// The generations, oldest first; the last is the one now open. May be cut off at its oldest end.
    pub history: &'a [Lineage],
    /// The last transaction that is durable here.
    pub committed: u64,
    /// The log holds every transaction after this txid; none if it holds nothing. (Not the oldest txid held: gaps
    /// between txids are legal.)
    pub log_after: Option<u64>,
    /// The dirty map kept for this mirror; none if nothing was ever given up for it.
    pub map: Option<DirtyMap>,
    /// The volume was changed by somebody else (the kernel, e2fsck) since this mirror was last compared or copied.
    pub changed_outside: bool,
}

/// What the mirror has recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirror<'a> {
    /// The volume's id.
    pub volume: u128,
    /// As what the node last served the volume.
    pub role: Role,
    /// The generations, oldest first. May be cut off at its oldest end. A generation is recorded before anything of it
    /// is: the first before the first block is copied, each later one before its first transaction is appended.
    pub history: &'a [Lineage],
    /// The last transaction that its mount shows, or that may be written home.
    pub applied: u64,
    /// The last complete transaction in its own log; while a repair is under way, which goes past the log, the txid
    /// that was last acknowledged.
    pub durable: u64,
    /// The last transaction of which a master said that it is committed. A master's own are all confirmed.
    pub confirmed: u64,
    /// How far its parts hold a copy.
    pub copy: Copy,
    /// The txid from which its copy is a state the master had; none while a copy or a repair is incomplete, for it is
    /// known only when the cursor comes to its end.
    pub consistent_at: Option<u64>,
    /// While its copy is incomplete, or being repaired: no later transaction is in any block that another master wrote there,
    /// acknowledged or not.
    pub reach: u64,
    /// The copy was changed by somebody else (the kernel, e2fsck).
    pub tainted: bool,
    /// The dirty map kept at the mirror: what it had as a master, or knows to be damaged.
    pub map: Option<DirtyMap>,
    /// It is an old master that may rejoin: not mounted, not opened read-write since it stopped, and what only it has
    /// is completely kept aside and recorded in its map.
    pub may_rejoin: bool,
}

/// The hash over the chain of all transactions up to one txid, as each side has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    /// The txid up to which the hashes go. It has a meaning on both sides only up to [`last_shared`].
    pub at: u64,
    /// The mirror's hash.
    pub mirror: u64,
    /// The master's hash; none if it no longer knows it, which is not a difference.
    pub master: Option<u64>,
}

/// What becomes of an unconfirmed suffix that is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It was acknowledged to nobody.
    Erased,
    /// It may have been acknowledged by a master that is gone.
    KeptAside,
}

/// What becomes of an unconfirmed suffix that `master` does not have; both histories, oldest first. `by_sender`: the node
/// that calls as the master now is the one that sent the suffix.
///
/// The generation that sent it, the mirror's last, acknowledges only what it has committed. So the suffix is nobody's loss
/// if that generation still runs, or if the same node opened the volume next and did not find it in its own log. With any
/// other node's generation in between, the sender's log is not known. Nor is it where somebody else had the sender's volume:
/// whoever knows that keeps the suffix aside, whatever this says.
pub fn fate(master: &[Lineage], mirror: &[Lineage], by_sender: bool) -> Fate {
    let sent = mirror.last().map(|l| l.generation);
    match master.iter().rev().position(|l| Some(l.generation) == sent) {
        Some(0) => Fate::Erased,
        Some(1) if by_sender => Fate::Erased,
        _ => Fate::KeptAside,
    }
}

/// Where a copy begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CopyFrom {
    /// At the first block.
    Start,
    /// Where it was interrupted. Blocks behind the cursor that changed after `txid` are copied again.
    Resume {
        /// The first block that has not been passed.
        cursor: u64,
        /// The txid that was acknowledged together with the cursor.
        txid: u64,
    },
}

/// How a copy that differs is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Repair {
    /// All allocated chunks are compared by their checksums.
    ByChecksum,
    /// The blocks in the union of both maps are copied.
    ByMap {
        /// The log holds what changed after this txid: those blocks are added to the maps, or shipped in order.
        log_after: u64,
    },
}

/// Why the two histories can not be brought together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Conflict {
    /// Another volume, or no generation in common.
    Unrelated,
    /// Each side has what the other lacks.
    Diverged(Divergence),
}

spelled! {
    /// How it was seen that the histories diverged.
    pub enum Split as "split" {
        /// Both record the same generation, but not the same history up to it.
        LineagesDiffer = "lineages-differ",
        /// The mirror's side was opened read-write by itself.
        OpenedAlone = "opened-alone",
        /// The mirror's side served as a master, and may not rejoin by itself.
        TwoMasters = "two-masters",
        /// The mirror's side has shown or confirmed transactions that the master does not have.
        PastFork = "past-fork",
        /// The same txid stands for different contents.
        ChainsDiffer = "chains-differ",
    }
}

/// What each side would lose if the other were kept: the transactions after `shared`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Divergence {
    /// How it was seen.
    pub split: Split,
    /// The newest generation that both have.
    pub generation: u128,
    /// The last txid that both are known to share. (With `ChainsDiffer` and `LineagesDiffer` they may share more.)
    pub shared: u64,
    /// The master's last txid: it would lose `shared+1 ..= master`.
    pub master: u64,
    /// The mirror's last txid: it would lose `shared+1 ..= mirror`.
    pub mirror: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// A first copy is made, or gone on with.
    Replicate {
        /// Where it begins.
        from: CopyFrom,
    },
    /// The operator has to decide.
    Error(Conflict),
    /// The copy is repaired.
    OutOfSync {
        /// How.
        by: Repair,
    },
    /// The transactions that the mirror lacks are shipped; it is in sync meanwhile.
    InSyncByReplay {
        /// Every transaction after this txid is shipped.
        after: u64,
    },
}

spelled! {
    /// The rules, in their order: the first that applies decides.
    pub enum Rule as "rule" {
        /// Rule 1.
        Blank = "blank",
        /// Rule 2.
        Unrelated = "unrelated",
        /// Rule 3.
        Diverged = "diverged",
        /// Rule 4.
        FirstCopy = "first-copy",
        /// Rule 5.
        Untraceable = "untraceable",
        /// Rule 6.
        Dirty = "dirty",
        /// Rule 7.
        Replay = "replay",
        /// Rule 8.
        Uncovered = "uncovered",
    }
}

impl Rule {
    /// The rule's number, from 1.
    pub const fn number(self) -> u8 {
        match self {
            Rule::Blank => 1,
            Rule::Unrelated => 2,
            Rule::Diverged => 3,
            Rule::FirstCopy => 4,
            Rule::Untraceable => 5,
            Rule::Dirty => 6,
            Rule::Replay => 7,
            Rule::Uncovered => 8,
        }
    }

    /// Why the rule decides as it does, in one line.
    pub const fn explanation(self) -> &'static str {
        match self {
            Rule::Blank => "the mirror is blank: everything allocated is copied",
            Rule::Unrelated => "another volume, or no history in common: nothing is touched",
            Rule::Diverged => "each side has changes that the other lacks: the operator chooses",
            Rule::FirstCopy => {
                "the first copy is incomplete: it goes on as far as it can be trusted"
            }
            Rule::Untraceable => {
                "which blocks differ is not recorded: allocated chunks are compared by checksum"
            }
            Rule::Dirty => "blocks are recorded as different: those are copied",
            Rule::Replay => "the log holds all that the mirror lacks: it is replayed",
            Rule::Uncovered => {
                "the log no longer holds what the mirror lacks: allocated chunks are compared by checksum"
            }
        }
    }
}

/// The decision, with its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// What is to be done.
    pub decision: Decision,
    /// The rule that decided.
    pub rule: Rule,
    /// The mirror's transactions after this txid were never confirmed, and the master does not have them, or may not: the mirror
    /// erases them, durably, before anything else; by [`fate`], after keeping them aside.
    pub drop_unconfirmed_after: Option<u64>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rule {}: {}",
            self.rule.number(),
            self.rule.explanation()
        )
    }
}

/// The newest generation that both sides have, and what follows it on either side.
struct Common {
    generation: u128,
    /// The last txid of that generation, or of earlier ones, that is in the master's history and in its log or home.
    limit: u64,
    /// The master has later generations.
    superseded: bool,
    /// The last txid at which the mirror's own later generations leave the common history; none if there are none.
    left_at: Option<u64>,
    /// All older generations that both still record are equal.
    agrees: bool,
}

impl Common {
    fn of(master: &Master<'_>, mirror: &Mirror<'_>) -> Option<Common> {
        let place = |id: u128| master.history.iter().rposition(|l| l.generation == id);
        let (theirs, ours) = mirror
            .history
            .iter()
            .enumerate()
            .rev()
            .find_map(|(at, l)| Some((at, place(l.generation)?)))?;
        let (past, later) = master.history.split_at(ours + 1);
        let (their_past, their_later) = mirror.history.split_at(theirs + 1);
        let earliest_fork = |later: &[Lineage]| later.iter().map(|l| l.fork).min();
        Some(Common {
            generation: mirror.history[theirs].generation,
            limit: earliest_fork(later).map_or(master.committed, |f| f.min(master.committed)),
            superseded: !later.is_empty(),
            left_at: earliest_fork(their_later),
            agrees: past
                .iter()
                .rev()
                .zip(their_past.iter().rev())
                .all(|(a, b)| a == b),
        })
    }
}

/// The mirror's position; none if it is blank.
fn position(mirror: &Mirror<'_>) -> Option<u64> {
    match mirror.copy {
        Copy::Blank => None,
        Copy::Partial { txid, .. } => Some(txid),
        Copy::Complete => Some(mirror.durable),
    }
}

/// The last txid that both sides have in common, going by their histories: the one at which to compare the hashes of
/// their chains. None if there is none: the mirror is blank, or the two are unrelated.
pub fn last_shared(master: &Master<'_>, mirror: &Mirror<'_>) -> Option<u64> {
    let position = position(mirror)?;
    if master.volume != mirror.volume {
        return None;
    }
    let common = Common::of(master, mirror)?;
    Some(
        position
            .min(common.limit)
            .min(common.left_at.unwrap_or(u64::MAX)),
    )
}

/// What is to be done so that `mirror` becomes equal to `master`. The first rule that applies decides; every input is
/// decided.
pub fn decide(master: &Master<'_>, mirror: &Mirror<'_>, chain: Option<Chain>) -> Outcome {
    let outcome = |rule, decision| Outcome {
        decision,
        rule,
        drop_unconfirmed_after: None,
    };

    // 1. A blank mirror has nothing that could contradict anything.
    let Some(position) = position(mirror) else {
        let from = CopyFrom::Start;
        return outcome(Rule::Blank, Decision::Replicate { from });
    };

    // 2. Nothing is done to what is not ours.
    let common = Common::of(master, mirror).filter(|_| master.volume == mirror.volume);
    let Some(common) = common else {
        return outcome(Rule::Unrelated, Decision::Error(Conflict::Unrelated));
    };

    // 3. What only the mirror has is dropped if nobody ever saw it, or kept aside; else it is not ours to give up.
    let past_fork = position > common.limit;
    if let Some(divergence) = divergence(master, mirror, chain, &common, position) {
        let conflict = Conflict::Diverged(divergence);
        return outcome(Rule::Diverged, Decision::Error(conflict));
    }
    let kept_aside = past_fork && mirror.may_rejoin;
    let position = position.min(common.limit);

    let bits = |map: Option<DirtyMap>| map.is_some_and(|m| m.bits_set > 0);
    let lost = |map: Option<DirtyMap>| map.is_some_and(|m| m.lost);
    let untraceable =
        mirror.tainted || master.changed_outside || lost(master.map) || lost(mirror.map);
    let covered = covered_after(master, position);

    // What was not acknowledged goes home, too: another master may have brought what this one never had.
    let reached = common.superseded && mirror.reach > common.limit;

    // 4. A first copy goes on where it was, if all that changed behind its cursor is known. It is written home without
    // the mirror's log: what it has past the fork can not be dropped, so it starts again.
    if let Copy::Partial { cursor, txid } = mirror.copy {
        let from = if past_fork || reached || untraceable || covered.is_none() {
            CopyFrom::Start
        } else {
            CopyFrom::Resume { cursor, txid }
        };
        return outcome(Rule::FirstCopy, Decision::Replicate { from });
    }
    // Whoever changed the master's volume may have ended its log earlier: what was not confirmed may be in no state of it.
    let firm = mirror.confirmed.max(mirror.applied);
    let doubtful = master.changed_outside && !mirror.may_rejoin && firm < position;
    let drop_unconfirmed_after = match past_fork && !kept_aside {
        _ if doubtful => Some(firm),
        true => Some(position),
        false => None,
    };
    let outcome = |rule, decision| Outcome {
        decision,
        rule,
        drop_unconfirmed_after,
    };

    // 5. Blocks of a state that the master no longer has are home, and nobody recorded which: the copy was to become
    // consistent at a lost txid, or was being repaired, without its log, from beyond the fork.
    let inconsistent = mirror.consistent_at.is_none_or(|at| position < at);
    let gone = match mirror.consistent_at {
        Some(at) => at > common.limit,
        None => reached || (past_fork && !kept_aside),
    };
    let differs = bits(master.map) || bits(mirror.map) || kept_aside || inconsistent;
    let needs_map = differs || master.map.is_some();
    let by = Repair::ByChecksum;
    if untraceable || gone {
        return outcome(Rule::Untraceable, Decision::OutOfSync { by });
    }
    let Some(log_after) = covered else {
        let rule = if needs_map {
            Rule::Untraceable
        } else {
            Rule::Uncovered
        };
        return outcome(rule, Decision::OutOfSync { by });
    };

    // 6. Never "nothing to do" while a dirty bit is recorded anywhere.
    if differs {
        let by = Repair::ByMap { log_after };
        return outcome(Rule::Dirty, Decision::OutOfSync { by });
    }

    // 7. The log alone holds all that is lacking.
    if log_after == position {
        let after = position;
        return outcome(Rule::Replay, Decision::InSyncByReplay { after });
    }

    // 8. A map without a bit that stands in for the log is no evidence.
    outcome(Rule::Uncovered, Decision::OutOfSync { by })
}

/// What stands against bringing the two together, if anything does (rule 3).
fn divergence(
    master: &Master<'_>,
    mirror: &Mirror<'_>,
    chain: Option<Chain>,
    common: &Common,
    position: u64,
) -> Option<Divergence> {
    // While it copies, a mirror writes home without its log, and shows nothing: only what was confirmed counts.
    let firm = match mirror.copy {
        Copy::Complete => mirror.confirmed.max(mirror.applied),
        Copy::Partial { .. } | Copy::Blank => mirror.confirmed,
    };
    let past_fork = position > common.limit && firm > common.limit;
    // A hash beyond the shared history is of transactions that are dropped, or of re-issued txids.
    let chains_differ = chain
        .filter(|c| c.at <= common.limit)
        .is_some_and(|c| c.master.is_some_and(|hash| hash != c.mirror));
    let split = if !common.agrees {
        Split::LineagesDiffer
    } else if common.left_at.is_some() {
        Split::OpenedAlone
    } else if mirror.role == Role::Master && !mirror.may_rejoin {
        Split::TwoMasters
    } else if past_fork && !mirror.may_rejoin {
        Split::PastFork
    } else if chains_differ {
        Split::ChainsDiffer
    } else {
        return None;
    };
    let known = match (split, chain) {
        (Split::LineagesDiffer, _) => 0,
        // They differ somewhere up to the hash: shared for sure is what the last generation before it builds on.
        (Split::ChainsDiffer, Some(chain)) => master
            .history
            .iter()
            .map(|l| l.fork)
            .filter(|fork| *fork < chain.at)
            .max()
            .unwrap_or(0),
        _ => common.left_at.unwrap_or(u64::MAX),
    };
    Some(Divergence {
        split,
        generation: common.generation,
        shared: known.min(common.limit).min(position),
        master: master.committed,
        mirror: position,
    })
}

/// The txid after which the log holds everything, if the mirror's map accounts for all between `position` and it; none
/// if neither does. It is `position` itself where the log alone suffices.
fn covered_after(master: &Master<'_>, position: u64) -> Option<u64> {
    let in_log = |after: u64| {
        after >= master.committed || master.log_after.is_some_and(|held| held <= after)
    };
    if in_log(position) {
        return Some(position);
    }
    let map = master.map.filter(|map| !map.lost)?;
    let through = map.through_txid;
    (map.from_txid <= position && in_log(through)).then_some(through)
}
