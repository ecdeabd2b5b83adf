//! The handshake, as the mirror answers it: versions, parts, history, and how a stream begins.

use states::Cause;

use super::{Copying, Follower, Output, Phase, protocol, refused};
use crate::ext4::Superblock;
use crate::mirror::roles::{Relation, StepBack, lineage, own_dirty, relation};
use crate::mirror::{MirrorError, guard};
use crate::units::{BlockNo, Txid};
use crate::volume::facts::{Copy, Lineage, Member, Role};
use crate::wire::message::{
    self as wire, Fork, History, MasterStatus, Message, Mode, PROTOCOL_VERSION,
};

/// Runs of blocks in one `Dirty` frame: 16 bytes each, well below a header's limit.
const DIRTY_RANGES: usize = 16 << 10;
/// Nodes of a volume that are remembered: eight mirrors and their master, twice over.
const MAX_MEMBERS: usize = 18;

/// How a stream begins.
pub(super) struct Start {
    pub mode: Mode,
    pub from: Txid,
    pub compare: bool,
    pub drop_after: Option<Txid>,
}

impl Follower {
    pub(super) fn hello(
        &mut self,
        version: u32,
        volume: &str,
        volume_id: u128,
        master: &str,
        generations: &[Fork],
        out: &mut Vec<Output>,
    ) -> Result<(), MirrorError> {
        if std::mem::take(&mut self.failed) {
            // Whoever mended the disk asks again: the parts are opened anew, and the log is recovered.
            if self.following().is_some() {
                out.push(Output::Withdraw);
            }
            self.phase = Phase::Idle;
            self.current = None;
            self.volume = None;
        }
        master.clone_into(&mut self.caller);
        let theirs = lineage(generations);
        let facts = self.facts.lock();
        let relation = relation(&facts.generations, &theirs);
        let refusal = if version != PROTOCOL_VERSION {
            let detail =
                format!("this node speaks version {PROTOCOL_VERSION}, the master {version}");
            Some((Cause::VersionMismatch, detail))
        } else if facts.role == Role::Master {
            let detail = format!("{} is the master of {volume}", self.env.node);
            Some((Cause::TwoMasters, detail))
        } else if facts.volume_id != 0 && facts.volume_id != volume_id {
            let detail = format!(
                "{volume} on {} has the id {:032x}, the master's has {volume_id:032x}",
                self.env.node, facts.volume_id
            );
            Some((Cause::NameTaken, detail))
        } else if relation == Relation::Ahead && facts.volume_id != 0 {
            let detail = format!(
                "{volume} on {ours} follows a history that goes on from this master's: {master} is its master no more; to keep the copy of {master}, on {ours}: lockstep rejoin {volume} {master} --discard {ours}",
                ours = self.env.node
            );
            Some((Cause::TwoMasters, detail))
        } else {
            None
        };
        drop(facts);
        let refusal = match (refusal, relation) {
            (None, Relation::Behind { fork }) => self.step_back_to(fork, &theirs, master, out)?,
            (refusal, _) => refusal,
        };
        out.push(Output::Send(
            match refusal {
                Some((cause, detail)) => refused(cause, detail),
                None => {
                    self.facts.lock().volume_id = volume_id;
                    Message::Welcome {
                        version: PROTOCOL_VERSION,
                        node: self.env.node.clone(),
                    }
                }
            },
            Vec::new(),
        ));
        Ok(())
    }

    /// A new master's history left this copy's at `fork`. What this copy has beyond it is kept aside.
    fn step_back_to(
        &mut self,
        fork: Txid,
        theirs: &[Lineage],
        master: &str,
        out: &mut Vec<Output>,
    ) -> Result<Option<(Cause, String)>, MirrorError> {
        let Some(volume) = self.volume.clone() else {
            return Ok(None);
        };
        // A copy that is being made, or repaired, has no log to go back in: the histories decide.
        if self.applied() <= fork || !self.is_consistent() {
            return Ok(None);
        }
        if self.following().is_some() {
            out.push(Output::Withdraw);
        }
        out.extend(self.close()?);
        let mut facts = self.facts.lock().clone();
        let stepped = StepBack {
            volume: &volume,
            facts: &*self.env.facts,
            maps: &*self.env.maps,
            lost: &*self.env.lost,
            node: &self.env.node,
            master,
            theirs,
            discard: false,
        }
        .carry_out(&mut facts);
        if stepped.is_err() {
            // The log may be home by now, and the stored facts say so.
            *self.facts.lock() = self.env.facts.load()?;
        }
        let stepped = match stepped {
            Err(MirrorError::Refused { cause, detail }) => {
                self.follow(out)?;
                let (name, ours) = (&self.name, &self.env.node);
                let detail = format!(
                    "{detail}; to keep the copy of {master}, on {ours}: lockstep rejoin {name} {master} --discard {ours}"
                );
                return Ok(Some((cause, detail)));
            }
            other => other?,
        };
        tracing::warn!(volume = %self.name, "{stepped}");
        for id in &stepped.kept {
            out.push(Output::KeptAside(id.clone(), stepped.to_string()));
        }
        *self.facts.lock() = facts;
        if self.is_consistent() {
            self.follow(out)?;
        }
        Ok(None)
    }

    /// What this side has: its dirty blocks, then its history.
    pub(super) fn answer(&mut self, out: &mut Vec<Output>) -> Result<(), MirrorError> {
        let mut history = self.history();
        if self.facts.lock().own_dirty {
            let volume = self.volume()?;
            match own_dirty(&volume, &self.facts.lock(), &*self.env.maps) {
                Ok(dirty) => {
                    history.dirty_blocks = dirty.count();
                    let ranges: Vec<_> = dirty.iter().map(wire::Range::from).collect();
                    for chunk in ranges.chunks(DIRTY_RANGES) {
                        let ranges = chunk.to_vec();
                        let lost = false;
                        out.push(Output::Send(Message::Dirty { ranges, lost }, Vec::new()));
                    }
                }
                Err(error) => {
                    tracing::error!(volume = %self.name, %error, "what differs here is not known any more");
                    let (ranges, lost) = (Vec::new(), true);
                    out.push(Output::Send(Message::Dirty { ranges, lost }, Vec::new()));
                }
            }
        }
        out.push(Output::Send(Message::History(history), Vec::new()));
        Ok(())
    }

    /// The nodes of the volume, as the master names them: whoever takes over finds the others by it.
    pub(super) fn note_members(&mut self, status: &MasterStatus) -> Result<(), MirrorError> {
        let members: Vec<Member> = status.members.iter().map(Member::from).collect();
        let mut facts = self.facts.lock();
        if facts.members != members && members.len() <= MAX_MEMBERS {
            facts.members = members;
            self.env.facts.save(&facts)?;
        }
        Ok(())
    }

    pub(super) fn make_parts(
        &mut self,
        block_size: u32,
        parts: &[u64],
        _discard: bool,
        out: &mut Vec<Output>,
    ) -> Result<(), MirrorError> {
        if let Some(volume) = &self.volume {
            let ours: Vec<u64> = volume.parts().iter().map(|part| part.len()).collect();
            let answer = match ours == parts && volume.block_size() == block_size {
                true => Message::PartsReady,
                false => refused(
                    Cause::PartsRefused,
                    format!("this copy has parts of {ours:?} bytes, the master's of {parts:?}"),
                ),
            };
            out.push(Output::Send(answer, Vec::new()));
            return Ok(());
        }
        let volume_id = self.facts.lock().volume_id;
        let answer = match self
            .env
            .parts
            .make(&self.name, volume_id, block_size, parts)
        {
            Err((cause, detail)) => refused(cause, detail),
            Ok(volume) => {
                self.volume = Some(volume);
                let facts = self.facts.lock();
                self.env.facts.save(&facts)?;
                drop(facts);
                if self.is_consistent() {
                    self.follow(out)?;
                }
                Message::PartsReady
            }
        };
        out.push(Output::Send(answer, Vec::new()));
        Ok(())
    }

    /// What it would say if a master asked.
    pub fn described(&self) -> History {
        let mut history = self.history();
        if let Some(volume) = &self.volume
            && history.dirty_blocks == 0
            && self.facts.lock().own_dirty
        {
            let dirty = own_dirty(volume, &self.facts.lock(), &*self.env.maps);
            history.dirty_blocks = dirty.map_or(u64::MAX, |dirty| dirty.count());
        }
        history
    }

    pub(super) fn history(&self) -> History {
        let (applied, durable, confirmed) = (self.applied(), self.durable(), self.confirmed());
        let staging_room = self.staging_room();
        let facts = self.facts.lock();
        let chain = self.following().map(|following| following.journal.chain());
        History {
            volume_id: facts.volume_id,
            generations: facts
                .generations
                .iter()
                .map(|lineage| Fork {
                    generation: lineage.generation.0,
                    fork: lineage.fork.0,
                })
                .collect(),
            applied: applied.0,
            durable: durable.0,
            confirmed: confirmed.0,
            copy: match facts.copy {
                Copy::Blank => wire::CopyState::Blank,
                Copy::Partial { cursor, txid } => wire::CopyState::Partial {
                    cursor: cursor.0,
                    txid: txid.0,
                },
                Copy::Complete => wire::CopyState::Complete,
            },
            consistent_at: facts.consistent_at.0,
            tainted: facts.tainted,
            chain: chain.unwrap_or(facts.chain),
            staging_room,
            dirty_blocks: 0,
            // What a master has committed it has still when it comes back.
            reach: match facts.sender == self.caller {
                true => 0,
                false => facts.reach.0,
            },
        }
    }

    pub(super) fn begin(
        &mut self,
        start: Start,
        generations: &[Fork],
        superblock: &[u8],
        out: &mut Vec<Output>,
    ) -> Result<(), MirrorError> {
        self.current = None;
        // A resync that was under way on this link ended there: the copy is what it was before.
        self.drop_staged();
        self.idle_into(out)?;
        let lineage = lineage(generations);
        // The master names what is held back here, and can not vouch for it: it is kept until the copy is the master's.
        if !(matches!(start.mode, Mode::Staged { .. }) && self.is_doubted(&start, &lineage)) {
            self.settle_unconfirmed(&start, &lineage, out)?;
        }
        let Start {
            mode,
            from,
            compare,
            ..
        } = start;
        let volume = self.volume()?;
        let home = matches!(mode, Mode::Replicate { .. } | Mode::OutOfSync);
        if home && (superblock.len() != 1024 || Superblock::decode(superblock).is_err()) {
            return Err(protocol("a copy begins with the superblock's 1024 bytes"));
        }
        match mode {
            Mode::InSync => {
                let Phase::Following(following) = &self.phase else {
                    return Err(protocol("sequencing needs a complete, consistent copy"));
                };
                let applied = following.applied;
                if applied != from {
                    return Err(protocol(&format!(
                        "sequencing from transaction {from}, but this copy is at {applied}"
                    )));
                }
                let mut facts = self.facts.lock();
                if facts.generations != lineage || facts.sender != self.caller {
                    facts.generations = lineage;
                    facts.sender.clone_from(&self.caller);
                    self.env.facts.save(&facts)?;
                }
            }
            Mode::Staged { bytes } => self.begin_staged(lineage, from, bytes)?,
            Mode::Replicate { .. } | Mode::OutOfSync => {
                let was_open = matches!(self.phase, Phase::Following(_));
                let log = self.stop_following()?;
                if was_open {
                    out.push(Output::Withdraw);
                }
                let (first, cursor) = match mode {
                    Mode::Replicate { cursor } => (true, BlockNo(cursor)),
                    _ => (false, BlockNo(0)),
                };
                {
                    let mut facts = self.facts.lock();
                    facts.generations = lineage;
                    facts.sender.clone_from(&self.caller);
                    facts.consistent_at = Txid(u64::MAX);
                    facts.applied = from;
                    if compare || first && cursor == BlockNo(0) {
                        // Whatever is there is looked at.
                        facts.reach = Txid(0);
                    }
                    // Until a comparison has found every difference, another one has to.
                    facts.tainted = compare;
                    facts.set_stamps(None);
                    // The log is left alone from here on: it ends before what the copy will be.
                    facts.tail = None;
                    facts.segments.clear();
                    facts.head = None;
                    if first {
                        facts.copy = Copy::Partial { cursor, txid: from };
                    }
                    self.env.facts.save(&facts)?;
                }
                match first && cursor == BlockNo(0) {
                    true => guard::write_guarded(&volume, superblock)?,
                    false => guard::raise(&volume)?,
                }
                self.phase = Phase::Copying(Copying {
                    first,
                    cursor,
                    txid: from,
                    seq: 0,
                    unflushed: 0,
                    reach: self.facts.lock().reach,
                    log,
                });
            }
        }
        self.streaming = true;
        out.push(Output::Send(Message::Ready, Vec::new()));
        Ok(())
    }
}
