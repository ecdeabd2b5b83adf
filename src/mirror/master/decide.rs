//! The decision at READY, and the beginning of the stream that follows from it.

use std::sync::Arc;
use std::time::Duration;

use states::reconnect::{self, Conflict, CopyFrom, Decision, Outcome, Repair};
use states::{Cause, Decided, Event, MinorCause};

use super::{Action, Mirror, STEP_TIMEOUT};
use crate::mirror::MirrorError;
use crate::mirror::committed::chain_at;
use crate::mirror::policy::Resync;
use crate::mirror::ranges::RangeSet;
use crate::mirror::stream::Phase;
use crate::units::{BlockNo, Txid};
use crate::volume::facts::MapKnows;
use crate::wire::message::{CopyState, Fork, History, Message, Mode, PROTOCOL_VERSION, Range};

/// Runs of blocks that a mirror may name as different; beyond it a comparison takes less memory.
const MAX_DIRTY_RANGES: usize = 1 << 18;

impl Mirror {
    pub(super) fn decide(&mut self, history: History, now: Duration, out: &mut Vec<Action>) {
        let heard = {
            let mut state = self.slot.state.lock();
            self.decided_at = state.cracks;
            state.heard(Txid(history.consistent_at))
        };
        if let Err(error) = heard {
            return self.failed(error, now, out);
        }
        let map = self.their_map(&history);
        let outcome = self.compare(&history, reconnect::Role::Mirror, map);
        tracing::info!(volume = %self.shared.name, peer = %self.peer, "{outcome}: {:?}", outcome.decision);
        self.detail = match outcome.decision {
            Decision::Error(Conflict::Diverged(split)) => format!(
                "{}: both have everything up to transaction {}; keeping the master's copy loses {} to {} of the mirror, keeping the mirror's loses {} to {} of the master; to keep the master's, on {peer}: lockstep rejoin {} {} --discard {peer}",
                split.split,
                split.shared,
                split.shared + 1,
                split.mirror,
                split.shared + 1,
                split.master,
                self.shared.name,
                self.shared.node,
                peer = self.peer
            ),
            _ => outcome.to_string(),
        };
        let decided = Decided::from(&outcome);
        self.drop_after = outcome.drop_unconfirmed_after;
        let durable = match (history.copy, outcome.drop_unconfirmed_after) {
            (CopyState::Partial { txid, .. }, _) => txid,
            // What it has beyond is of no history.
            (_, Some(after)) => after,
            _ => history.durable,
        };
        self.outcome = Some(outcome);
        let acked = self.shared.log_position(Txid(durable));
        let acked = acked.min(self.shared.journal.last_committed());
        let journal = &self.shared.journal;
        {
            let mut state = self.slot.state.lock();
            // What a half-made copy lacks of the transactions that it names is in the map, which may have lost its newest marks
            // with this side's power: they are made again by sending what came after the map.
            let acked = match half_made(&history) {
                true => acked.min(state.position),
                false => acked,
            };
            state.claim(journal, self.slot.id, acked);
        }
        let whole = history.copy == CopyState::Complete && history.consistent_at <= history.applied;
        self.holds = match whole && !history.tainted {
            true => acked,
            false => Txid(0),
        };
        self.truth.consistent_at = match history.copy {
            CopyState::Complete => history.consistent_at,
            _ => u64::MAX,
        };
        self.their = Some(history);
        self.fire(Event::Decided(decided), now, out);
    }

    pub(super) fn compare(
        &self,
        theirs: &History,
        role: reconnect::Role,
        their_map: Option<reconnect::DirtyMap>,
    ) -> Outcome {
        let forks = |forks: &[Fork]| -> Vec<reconnect::Lineage> {
            forks
                .iter()
                .map(|fork| reconnect::Lineage {
                    generation: fork.generation,
                    fork: fork.fork,
                })
                .collect()
        };
        let ours = forks(&self.lineage());
        let their_forks = forks(&theirs.generations);
        let journal = &self.shared.journal;
        let state = self.slot.state.lock();
        let at = match theirs.copy {
            CopyState::Partial { txid, .. } => txid,
            _ => theirs.durable,
        };
        let log_after = [state.position, Txid(at)]
            .into_iter()
            .filter(|txid| self.shared.log_covers(*txid))
            .min();
        let map = match (state.map.coverage(), state.map_lost) {
            (None, false) => None,
            (coverage, lost) => Some(reconnect::DirtyMap {
                bits_set: state.map.count(),
                from_txid: coverage.map_or(0, |c| c.from_txid.0),
                through_txid: coverage.map_or(0, |c| c.through_txid.0),
                lost,
            }),
        };
        let master = reconnect::Master {
            volume: self.shared.facts.lock().volume_id,
            history: &ours,
            committed: journal.last_committed().0,
            log_after: log_after.map(|txid| txid.0),
            map,
            changed_outside: self.record.changed_outside
                || self.was_another_maps(theirs, their_map),
        };
        let mirror = reconnect::Mirror {
            volume: theirs.volume_id,
            role,
            history: &their_forks,
            applied: theirs.applied,
            durable: theirs.durable,
            confirmed: theirs.confirmed,
            copy: match theirs.copy {
                CopyState::Blank => reconnect::Copy::Blank,
                CopyState::Partial { cursor, txid } => reconnect::Copy::Partial { cursor, txid },
                CopyState::Complete => reconnect::Copy::Complete,
            },
            consistent_at: (theirs.consistent_at != u64::MAX).then_some(theirs.consistent_at),
            reach: theirs.reach,
            tainted: theirs.tainted,
            map: their_map,
            may_rejoin: false,
        };
        let chain = reconnect::last_shared(&master, &mirror)
            // While a copy is made, its hash is still that of the copy before; and the mirror may not know it.
            .filter(|shared| *shared == theirs.durable && theirs.consistent_at != u64::MAX)
            .filter(|_| theirs.chain != 0)
            .map(|at| reconnect::Chain {
                at,
                mirror: theirs.chain,
                master: chain_at(journal, Txid(at)),
            });
        tracing::debug!(volume = %self.shared.name, peer = %self.peer, ?master, ?mirror, ?chain, "compared");
        reconnect::decide(&master, &mirror, chain)
    }

    pub(super) fn hello(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.step_deadline = Some(now + STEP_TIMEOUT);
        let volume_id = self.shared.facts.lock().volume_id;
        out.push(Action::Send(
            Message::Hello {
                version: PROTOCOL_VERSION,
                node: self.shared.node.clone(),
                volume: self.shared.name.clone(),
                volume_id,
                generations: self.lineage(),
            },
            Vec::new(),
        ));
    }

    /// The mirror's side says no.
    pub(super) fn refused(
        &mut self,
        code: &str,
        detail: String,
        severe: bool,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        self.detail = format!("{} says: {detail}", self.peer);
        self.step_deadline = None;
        let event = match (severe, code.parse::<Cause>()) {
            (true, Ok(cause)) if self.streaming => Event::MirrorFailed(cause),
            (true, Ok(cause)) => Event::SevereFailure(cause),
            (true, Err(_)) => Event::SevereFailure(Cause::MirrorDamaged),
            (false, _) => Event::MinorFailure(code.parse().unwrap_or(MinorCause::BadFrame)),
        };
        self.fire(event, now, out);
    }

    /// What the mirror said to differ from its own history, before it said what that is.
    pub(super) fn note_their_dirty(
        &mut self,
        ranges: &[Range],
        lost: bool,
    ) -> Result<(), MirrorError> {
        let blocks = self.shared.volume.blocks_count();
        let Some(dirty) = self.their_dirty.as_mut().filter(|_| !lost) else {
            self.their_dirty = None;
            return Ok(());
        };
        for range in ranges {
            if range
                .start
                .checked_add(range.len)
                .is_none_or(|end| end > blocks)
            {
                return Err(MirrorError::Protocol(format!(
                    "{} dirty blocks from {} on do not lie in the volume",
                    range.len, range.start
                )));
            }
            dirty.insert((*range).into());
        }
        if dirty.len() > MAX_DIRTY_RANGES {
            self.their_dirty = None;
        }
        Ok(())
    }

    fn their_map(&self, theirs: &History) -> Option<reconnect::DirtyMap> {
        let counted = self.their_dirty.as_ref().map(RangeSet::count);
        // What it counted and what arrived must agree: a map of which a part is missing is lost.
        let lost = counted != Some(theirs.dirty_blocks);
        (lost || theirs.dirty_blocks > 0).then_some(reconnect::DirtyMap {
            bits_set: theirs.dirty_blocks,
            from_txid: theirs.durable,
            through_txid: theirs.durable,
            lost,
        })
    }

    pub(super) fn lineage(&self) -> Vec<Fork> {
        self.shared
            .facts
            .lock()
            .generations
            .iter()
            .map(|lineage| Fork {
                generation: lineage.generation.0,
                fork: lineage.fork.0,
            })
            .collect()
    }

    pub(super) fn begin(
        &mut self,
        mode: Mode,
        from: Txid,
        compare: bool,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        self.packed = None;
        if matches!(mode, Mode::Replicate { .. } | Mode::OutOfSync) {
            // What it had acknowledged is of no use either until the end.
            self.holds = Txid(0);
            self.show_gate();
        }
        let mut superblock = vec![0; 1024];
        // The mirror guards its half-made copy with it.
        if let Err(error) = self.shared.volume.read_bytes(1024, &mut superblock) {
            return self.failed(error.into(), now, out);
        }
        out.push(Action::Send(
            Message::Begin {
                mode,
                generations: self.lineage(),
                from: from.0,
                compare,
                drop_after: self.drop_after.take(),
            },
            superblock,
        ));
        self.streaming = true;
        self.status_at = Duration::ZERO;
    }

    pub(super) fn begin_copy(&mut self, now: Duration, out: &mut Vec<Action>) {
        let from = match self.outcome.as_ref().map(|outcome| outcome.decision) {
            Some(Decision::Replicate { from }) => from,
            _ => CopyFrom::Start,
        };
        self.truth.copying = true;
        let journal = Arc::clone(&self.shared.journal);
        let (cursor, from, cracks) = {
            let mut state = self.slot.state.lock();
            let cracks = state.cracks;
            match from {
                CopyFrom::Start => {
                    let committed = journal.last_committed();
                    let reset = state.reset(&journal, self.slot.id, committed);
                    if let Err(error) = reset {
                        tracing::error!(%error, "the dirty map can not be written");
                        state.map_lost = true;
                    }
                    (BlockNo(0), committed, cracks)
                }
                CopyFrom::Resume { cursor, .. } => {
                    let covers = self.shared.log_covers(state.acked);
                    let from = state.beside_copy(state.acked, covers);
                    (BlockNo(cursor), from, cracks)
                }
            }
        };
        if let Err(error) = self.stream.begin(
            Phase::Copy {
                cursor,
                first: true,
            },
            self.shared.log_position(from),
            cracks,
        ) {
            return self.failed(error, now, out);
        }
        self.begin(Mode::Replicate { cursor: cursor.0 }, from, false, now, out);
    }

    /// The copy is half made, by a map that is no more: nobody knows where it differs.
    fn was_another_maps(&self, copy: &History, own: Option<reconnect::DirtyMap>) -> bool {
        half_made(copy)
            && match self.record.map_knows {
                MapKnows::Everything => false,
                MapKnows::Nothing => true,
                // An old master that stepped back brings its own.
                MapKnows::Heir => own.is_none(),
            }
    }

    /// The mirror acknowledged: what it had before does not matter once all of it is being copied, or was compared.
    pub(super) fn note_replaced(&mut self, in_sync: bool) {
        let decision = self.outcome.as_ref().map(|outcome| outcome.decision);
        let from = CopyFrom::Start;
        let anew = decision == Some(Decision::Replicate { from });
        if in_sync || anew {
            self.map_knows_all();
        }
        if self.record.changed_outside && (in_sync || anew) {
            self.record.changed_outside = false;
            self.save();
        }
    }

    /// From here on what is half made of the copy is so by this map.
    fn map_knows_all(&mut self) {
        if self.record.map_knows != MapKnows::Everything {
            self.record.map_knows = MapKnows::Everything;
            self.save();
        }
    }

    pub(super) fn begin_resync(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.truth.copying = true;
        let by = match self.outcome.take().map(|outcome| outcome.decision) {
            Some(Decision::OutOfSync { by }) => Some(by),
            _ => None,
        };
        if matches!(by, Some(Repair::ByMap { .. })) {
            self.map_knows_all();
        }
        let journal = Arc::clone(&self.shared.journal);
        let generation = self.shared.generation;
        let (phase, from, cracks) = {
            let mut state = self.slot.state.lock();
            let cracks = state.cracks;
            let by_checksum = state.map_lost || by == Some(Repair::ByChecksum);
            if by_checksum {
                let committed = journal.last_committed();
                if let Err(error) = state.reset(&journal, self.slot.id, committed) {
                    tracing::error!(%error, "the dirty map can not be written");
                }
                state.map.cover(generation, committed, committed);
                (Phase::Compare { cursor: BlockNo(0) }, committed, cracks)
            } else {
                let covers = self.shared.log_covers(state.acked);
                let from = state.beside_copy(state.acked, covers);
                if state.map.coverage().is_none() {
                    state.map.cover(generation, from, from);
                }
                // The mirror keeps its own record until the copy is whole: it is added again after a failure.
                let theirs = self.their_dirty.take().unwrap_or_default();
                for range in theirs.iter() {
                    if let Err(error) = state.map.set(range) {
                        tracing::error!(%error, "the dirty map can not be written");
                        state.map_lost = true;
                    }
                }
                let phase = Phase::Copy {
                    cursor: BlockNo(0),
                    first: false,
                };
                (phase, from, cracks)
            }
        };
        let compare = matches!(phase, Phase::Compare { .. });
        self.truth.consistent_at = u64::MAX;
        let position = self.shared.log_position(from);
        if let Err(error) = self.stream.begin(phase, position, cracks) {
            return self.failed(error, now, out);
        }
        let mode = match self.stage(compare) {
            Ok(mode) => mode,
            Err(error) => return self.failed(error, now, out),
        };
        self.begin(mode, from, compare, now, out);
    }

    /// Whether the resync is staged: where the mirror has a copy worth keeping, and room.
    fn stage(&mut self, compare: bool) -> Result<Mode, MirrorError> {
        let Some(their) = &self.their else {
            return Ok(Mode::OutOfSync);
        };
        if self.policy().resync == Resync::Direct {
            return Ok(Mode::OutOfSync);
        }
        let mut state = self.slot.state.lock();
        let left = state.left() * u64::from(self.shared.volume.block_size());
        let bytes = match compare {
            true => self.stream.allocated_bytes(),
            false => left,
        };
        let whole = their.copy == CopyState::Complete && their.consistent_at <= their.applied;
        if !whole || their.tainted || their.staging_room < bytes {
            let room = their.staging_room;
            tracing::info!(volume = %self.shared.name, peer = %self.peer, whole, room, bytes,
                "this resync goes home directly");
            return Ok(Mode::OutOfSync);
        }
        match self.shared.todo(&self.peer) {
            Ok(todo) => {
                state.begin_staged(todo)?;
                Ok(Mode::Staged { bytes })
            }
            Err(error) => {
                tracing::warn!(volume = %self.shared.name, peer = %self.peer, %error,
                    "this resync goes home directly: there is no room here for its map");
                Ok(Mode::OutOfSync)
            }
        }
    }

    pub(super) fn begin_sequencing(&mut self, now: Duration, out: &mut Vec<Action>) {
        let Some(Decision::InSyncByReplay { after }) =
            self.outcome.take().map(|outcome| outcome.decision)
        else {
            // Out of a copy: the stream is in sequence already.
            return;
        };
        self.map_knows_all();
        let position = self.shared.log_position(Txid(after));
        let begun = self
            .stream
            .begin(Phase::Sequencing, position, self.decided_at);
        if let Err(error) = begun {
            return self.failed(error, now, out);
        }
        self.begin(Mode::InSync, Txid(after), false, now, out);
    }
}

/// A first copy, or a repair that goes straight home, was interrupted.
fn half_made(copy: &History) -> bool {
    match copy.copy {
        CopyState::Blank => false,
        CopyState::Partial { .. } => true,
        CopyState::Complete => copy.consistent_at == u64::MAX,
    }
}
