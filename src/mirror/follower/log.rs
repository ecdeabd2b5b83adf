//! Opening this side's log and leaving it, and what becomes of transactions in it that the master has not confirmed.
//!
//! Owns the order of steps: what is not known to be confirmed stays in the log, not visible, until the master says that
//! it is in its history, or that it is not; only then is the log continued.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use states::reconnect::Fate;

use super::session::Start;
use super::{Env, Follower, Following, Output, Phase, SELF, protocol};
use crate::fs::{Fs, FsOptions, FsRole, How, open_volume_noting};
use crate::journal::{Journal, JournalError, Recovery, ResumeEnd, Transaction};
use crate::mirror::floor::Heir;
use crate::mirror::keeper::{FollowerKeeper, note_recovery};
use crate::mirror::lost::{Gone, Unshown, keep_aside};
use crate::mirror::ranges::RangeSet;
use crate::mirror::roles::{Relation, fate, relation};
use crate::mirror::{MirrorError, committed, guard, stamps};
use crate::units::{BlockRange, Generation, Txid, planted};
use crate::volume::facts::{Facts, Lineage, MirrorTail};

impl Follower {
    /// An orderly end: everything that may be is brought home, and the kernel could mount the copy. What the master has not
    /// confirmed stays in the log, as after a power cut.
    pub fn close(&mut self) -> Result<Vec<Output>, MirrorError> {
        self.current = None;
        self.drop_staged();
        let mut out = Vec::new();
        self.idle_into(&mut out)?;
        self.note_reach()?;
        if let Phase::Following(following) = &self.phase
            && !following.unshown.is_empty()
        {
            if !following.held {
                let applied = following.applied;
                self.note_applied(applied)?;
            }
            self.phase = Phase::Idle;
            return Ok(out);
        }
        self.stop_following()?;
        Ok(out)
    }

    /// Empties the log and leaves it.
    pub(super) fn stop_following(&mut self) -> Result<Vec<BlockRange>, MirrorError> {
        let Phase::Following(following) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Ok(Vec::new());
        };
        let volume = self.volume()?;
        let last = following.applied;
        let chain = committed::chain_at(&following.journal, last);
        following.journal.set_consumer(SELF, last);
        let head = following.journal.close()?;
        guard::clear_recover(&volume)?;
        let mut facts = self.facts.lock();
        facts.applied = last;
        facts.confirmed = facts.confirmed.max(last);
        facts.chain = chain.unwrap_or(facts.chain);
        facts.high_txid = facts.high_txid.max(last);
        facts.head = Some(head);
        facts.set_stamps(Some(stamps::read(&volume)?));
        self.env.facts.save(&facts)?;
        Ok(following.journal.map().0.clone())
    }

    /// Opens the complete, consistent copy: recovers its log, and follows from there. Transactions that the master has not
    /// confirmed are kept back.
    pub(super) fn follow(&mut self, out: &mut Vec<Output>) -> Result<(), MirrorError> {
        let volume = self.volume()?;
        self.finish_switch()?;
        // A power cut between the facts and the guard: the facts were first.
        guard::lower_if_raised(&volume)?;
        let mut facts = self.facts.lock().clone();
        let base = facts.high_txid.max(facts.applied);
        let how = How::Confirmed(facts.confirmed);
        let mut unnoted = None;
        let opened =
            open_volume_noting(
                Arc::clone(&volume),
                base,
                how,
                &mut |found| match note_recovery(&mut facts, &*self.env.facts, found) {
                    Ok(()) => {
                        *self.facts.lock() = facts.clone();
                        Ok(())
                    }
                    Err(error) => {
                        let why = JournalError::Keeper(error.to_string());
                        unnoted = Some(error);
                        Err(why)
                    }
                },
            );
        if let Some(error) = unnoted {
            return Err(error.into());
        }
        let opened = opened?;
        // After the recovery: the log may bring the mount count of a master that was opened again.
        if facts.stamps.is_some()
            && let Some(what) = stamps::differ(&facts, &stamps::read(&volume)?)
        {
            tracing::warn!(volume = %self.name, %what, "this copy was changed from outside: it will be compared");
            facts.tainted = true;
        }
        let journal = Arc::clone(&opened.journal);
        let heir = Heir::open(&*self.env.maps, &facts, volume.blocks_count())?;
        let heir = Arc::new(heir);
        let unconfirmed = opened
            .recovered
            .is_some_and(|recovery| recovery.unconfirmed > 0);
        let mut unshown = VecDeque::new();
        if unconfirmed {
            if facts.applied == journal.last_published() {
                // The log says it only of what was replayed, and what was shown before a power cut may be home already.
                journal.set_published_chain(facts.chain);
            }
            for info in journal
                .info_after(journal.last_published())
                .unwrap_or_default()
            {
                unshown.push_back(journal.load_transaction(info.txid)?);
            }
            tracing::info!(volume = %self.name, shown = %journal.last_published(), durable = %journal.last_committed(),
                "the last transactions were not confirmed: the master will say what becomes of them");
            facts.head = None;
            facts.set_stamps(Some(stamps::read_open(&volume)?));
            facts.high_txid = facts.high_txid.max(journal.last_committed());
            self.env.facts.save(&facts)?;
            *self.facts.lock() = facts;
        } else {
            journal.limit_home(facts.confirmed.max(facts.applied));
            *self.facts.lock() = facts;
            self.continue_log(&journal, &heir, opened.recovered.as_ref())?;
        }
        let applied = match unconfirmed {
            // What went home says so in the facts; what is kept back may say less.
            true => journal.last_published().max(self.facts.lock().applied),
            false => self.facts.lock().applied,
        };
        let fs = Arc::new(Fs::open(
            opened,
            FsOptions {
                role: FsRole::Mirror,
                clock: Arc::clone(&self.env.clock),
                random: Arc::clone(&self.env.random),
                cache_bytes: self.env.cache_bytes,
                commit_interval: Duration::from_secs(1),
            },
        )?);
        out.push(Output::Opened(Arc::clone(&fs)));
        self.phase = Phase::Following(Following {
            fs,
            heir,
            applied,
            durable: unshown.back().map_or(applied, |txn| txn.txid),
            confirmed: applied,
            journal,
            pending: Vec::new(),
            pending_bytes: 0,
            unshown_freed: freed(&unshown),
            unsure_freed: RangeSet::default(),
            held: !unshown.is_empty(),
            unshown,
            seq: 0,
        });
        Ok(())
    }

    /// The log is clean, and everything in it is home: from here on it is continued.
    fn continue_log(
        &self,
        journal: &Arc<Journal>,
        heir: &Arc<Heir>,
        recovery: Option<&Recovery>,
    ) -> Result<(), MirrorError> {
        let volume = self.volume()?;
        let mut facts = self.facts.lock().clone();
        let mut kept = None;
        // Since the log was begun nothing was appended: it does not say where it ends, or that it ends where it begins. One that
        // ends elsewhere was recovered by an opening that could not save what it found.
        let untouched = |tail: &MirrorTail| {
            let empty = journal.clean_end().is_none_or(|end| end == tail.log_block);
            recovery.is_none() && tail.txid > facts.applied && empty
        };
        if let Some(tail) = facts.tail.filter(|tail| !untouched(tail)) {
            // What was acknowledged after the facts were saved last: in the log, home or not.
            let end = match facts.head {
                Some(head) => ResumeEnd::Clean(head),
                None => ResumeEnd::Recovered,
            };
            match journal.resume(&facts.segments, &tail, end) {
                Ok(infos) => {
                    kept = Some(Txid(tail.txid.0.saturating_sub(1)));
                    let stale = planted::is("stale-facts");
                    if let Some(info) = infos
                        .last()
                        .filter(|info| info.txid >= facts.applied && !stale)
                    {
                        facts.applied = info.txid;
                        facts.chain = info.chain;
                    }
                }
                Err(error) if facts.tainted => {
                    tracing::warn!(volume = %self.name, %error, "the log can not be resumed");
                }
                Err(error) => {
                    tracing::warn!(volume = %self.name, %error, "the log can not be resumed: this copy will be compared");
                    facts.tainted = true;
                }
            }
        }
        if let Some(recovery) = recovery
            && let (Some(last), Some(chain)) = (recovery.last, recovery.chain)
            && last > facts.applied
            && !planted::is("stale-facts")
        {
            facts.applied = last;
            facts.chain = chain;
        }
        // Before the parts are written: cut between the two, nobody else did.
        facts.head = None;
        facts.set_stamps(Some(stamps::read_open(&volume)?));
        facts.confirmed = facts.confirmed.max(facts.applied);
        self.env.facts.save(&facts)?;
        guard::set_recover(&volume)?;
        let (applied, chain, floor) = (facts.applied, facts.chain, facts.floor);
        let generation = generation(&facts);
        *self.facts.lock() = facts;
        journal.confirmed_durably(applied);
        journal.set_consumer(SELF, applied);
        heir.attach(journal, kept.unwrap_or(applied), floor, applied);
        journal.set_keeper(Arc::new(FollowerKeeper::new(
            Arc::clone(&self.facts),
            Arc::clone(&self.env.facts),
            Arc::downgrade(journal),
            SELF,
            Arc::clone(heir),
        )));
        journal.begin_segment(generation, applied.max(journal.last_committed()).next())?;
        journal.set_chain(chain);
        Ok(())
    }

    /// What is held back is in the history of the master, `theirs`, by name; but somebody else had its volume, so it has all of it
    /// dropped, and the copy compared. (One that it has dropped without that is one that it has not committed yet.)
    pub(super) fn is_doubted(&self, start: &Start, theirs: &[Lineage]) -> bool {
        let Phase::Following(following) = &self.phase else {
            return false;
        };
        if !start.compare {
            return false;
        }
        let Some(last) = following.unshown.back() else {
            return false;
        };
        let named = match relation(&self.facts.lock().generations, theirs) {
            Relation::Equal => true,
            Relation::Behind { fork } => last.txid <= fork,
            Relation::Ahead | Relation::Diverged { .. } | Relation::Unrelated => false,
        };
        named && start.drop_after == Some(following.applied)
    }

    /// A stream begins: the master's history, `theirs`, holds what is here, but for what comes after `start.drop_after`, which is
    /// erased; before that it is kept aside, if it may have been acknowledged by another master. Then the log is continued,
    /// if it was opened with such transactions in it.
    pub(super) fn settle_unconfirmed(
        &mut self,
        start: &Start,
        theirs: &[Lineage],
        out: &mut Vec<Output>,
    ) -> Result<(), MirrorError> {
        let Phase::Following(following) = &mut self.phase else {
            return Ok(());
        };
        let keep = start.drop_after.unwrap_or(following.durable);
        if keep < following.applied {
            return Err(protocol(&format!(
                "transactions after {keep} are to be dropped, but {} was confirmed and shown",
                following.applied
            )));
        }
        self.show(keep, out)?;
        let doubted = self.is_doubted(start, theirs);
        let Phase::Following(following) = &mut self.phase else {
            return Ok(());
        };
        if !following.unshown.is_empty() {
            keep_unshown(
                &self.env,
                &self.facts.lock(),
                following,
                theirs,
                &self.caller,
                doubted,
                out,
            )?;
            {
                let mut facts = self.facts.lock();
                name(&mut facts, &following.journal, following.applied);
                facts.confirmed = facts.confirmed.max(facts.applied);
                // Whoever is the master now issues its own ids from the fork on.
                facts.high_txid = facts.applied;
                self.env.facts.save(&facts)?;
            }
            following.journal.discard_unpublished()?;
            following.unshown.clear();
            following.unshown_freed = RangeSet::default();
        }
        following.durable = following.applied;
        following.confirmed = following.applied;
        if std::mem::take(&mut following.held) {
            let (journal, heir) = (Arc::clone(&following.journal), Arc::clone(&following.heir));
            let applied = following.applied;
            {
                // Before the log is emptied: it is what says so until now.
                let mut facts = self.facts.lock();
                name(&mut facts, &journal, applied);
                facts.confirmed = facts.confirmed.max(applied);
                self.env.facts.save(&facts)?;
            }
            journal.confirmed_durably(applied);
            journal.close()?;
            self.continue_log(&journal, &heir, None)?;
        }
        Ok(())
    }
}

/// Keeps aside what is dropped for the master `caller`, unless its own sender says that it never came about: one that can
/// not vouch for its history (`doubted`) does not know.
pub(super) fn keep_unshown(
    env: &Env,
    facts: &Facts,
    following: &Following,
    theirs: &[Lineage],
    caller: &str,
    doubted: bool,
    out: &mut Vec<Output>,
) -> Result<(), MirrorError> {
    let unshown = &following.unshown;
    let (Some(first), Some(last)) = (unshown.front(), unshown.back()) else {
        return Ok(());
    };
    let kept = match fate(facts, theirs, caller) {
        Fate::Erased if !doubted => None,
        Fate::Erased | Fate::KeptAside => {
            Some(keep_last(env, facts, following, caller, last.txid)?)
        }
    };
    let what = format!(
        "transactions {} to {}, which no master confirmed, are not in the history of {caller}: they are dropped",
        first.txid, last.txid
    );
    tracing::warn!(volume = %facts.name, kept_aside = kept, "{what}");
    if let Some(id) = kept {
        let text = format!("{what}, and kept aside as {id}");
        out.push(Output::KeptAside(id, text));
    }
    Ok(())
}

fn keep_last(
    env: &Env,
    facts: &Facts,
    following: &Following,
    caller: &str,
    last: Txid,
) -> Result<String, MirrorError> {
    let unshown = Unshown::new(Arc::clone(&following.journal), &following.unshown);
    let unshown = Arc::new(unshown);
    let gone = Gone {
        name: &facts.name,
        volume_id: facts.volume_id,
        node: &env.node,
        master: caller,
        shared: following.applied,
        last,
        generation: generation(facts),
    };
    let log = &following.journal.map().0;
    keep_aside(&*env.lost, unshown.clone(), &gone, unshown.changed(), log)
}

/// The state is that of `applied`. Where the log was opened at what had not been confirmed, it does not tell the chain hash there
/// before it is read again from its tail on.
fn name(facts: &mut Facts, journal: &Journal, applied: Txid) {
    match committed::chain_at(journal, applied) {
        Some(chain) => facts.chain = chain,
        None if facts.applied != applied => facts.chain = 0,
        None => {}
    }
    facts.applied = applied;
}

/// The generation of the copy's newest history.
pub(super) fn generation(facts: &Facts) -> Generation {
    facts
        .generations
        .last()
        .map_or(Generation(0), |lineage| lineage.generation)
}

/// What transactions that are not shown free.
pub(super) fn freed<'a>(txns: impl IntoIterator<Item = &'a Transaction>) -> RangeSet {
    let ranges = txns.into_iter().flat_map(|txn| txn.freed.iter().copied());
    ranges.collect()
}
