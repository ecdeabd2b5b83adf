//! A staged resync: the copy stays open at the last transaction that it was consistent at, while everything the master
//! sends goes into a staging log; one switch at the end brings it home.
//!
//! The switch, each step durable before the next: the staging log is completed; the copy's own log is brought home and
//! closed (unless it holds back what no master confirmed: then the redo ends it); the facts say that the staging is to be
//! redone (the marker); the mount is withdrawn; the guard; the redo; the new log; the facts of the new state, which take
//! the marker away; the guard goes. A cut before the marker leaves the old state, one behind it is finished at the next
//! opening.

use super::log::keep_unshown;
use super::{Copying, FLUSH_BYTES, Follower, Following, Output, Phase, protocol};
use crate::mirror::staging::{End, Staging, Step, redo};
use crate::mirror::{MirrorError, guard};
use crate::units::{BlockNo, BlockRange, Txid};
use crate::volume::facts::{Lineage, Switch};
use crate::wire::message::{Message, Range};

/// Room beside what the master announced: what it changes while the resync runs.
const SPARE: u64 = 64 << 20;

/// A staged resync under way.
pub(super) struct Staged {
    /// The copy that is served meanwhile.
    pub following: Following,
    /// How far the stream is.
    pub copying: Copying,
    staging: Staging,
    generations: Vec<Lineage>,
}

impl Follower {
    /// Bytes that a resync may stage here now.
    pub(super) fn staging_room(&self) -> u64 {
        match self.no_staging {
            true => 0,
            false => self.env.staging.room(),
        }
    }

    /// Begins to stage what brings the copy from where it is to the master's state. `bytes`: what the master expects.
    pub(super) fn begin_staged(
        &mut self,
        generations: Vec<Lineage>,
        from: Txid,
        bytes: u64,
    ) -> Result<(), MirrorError> {
        let room = self.env.staging.room();
        // Every chunk has a header of its own, and the writers go on.
        let len = (bytes + bytes / 8 + SPARE).min(room);
        let id = self.env.random.u128();
        let disk = match len >= bytes {
            true => self.env.staging.create(len),
            false => Err(std::io::ErrorKind::StorageFull.into()),
        };
        let disk = disk.map_err(|error| self.staging_failed(&error.to_string()))?;
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Following(following) => {
                self.phase = Phase::Staged(Box::new(Staged {
                    following,
                    copying: Copying {
                        first: false,
                        cursor: BlockNo(0),
                        txid: from,
                        seq: 0,
                        unflushed: 0,
                        reach: from,
                        log: Vec::new(),
                    },
                    staging: Staging::create(disk, id),
                    generations,
                }));
                Ok(())
            }
            other => {
                self.phase = other;
                Err(protocol("a staged resync of a copy that is not open"))
            }
        }
    }

    fn staging_failed(&mut self, why: &str) -> MirrorError {
        tracing::warn!(volume = %self.name, why, "this resync can not be staged: the next one goes home directly");
        self.no_staging = true;
        MirrorError::NoStaging(why.to_string())
    }

    /// Stages bytes of blocks, or (with no payload) zeros.
    pub(super) fn stage(&mut self, ranges: &[Range], payload: &[u8]) -> Result<(), MirrorError> {
        if ranges.is_empty() {
            return Ok(());
        }
        let volume = self.volume()?;
        let checked = ranges
            .iter()
            .map(|range| self.checked(*range))
            .collect::<Result<Vec<BlockRange>, _>>()?;
        let blocks: u64 = checked.iter().map(|range| range.len).sum();
        let whole = blocks.checked_mul(u64::from(volume.block_size()));
        if !payload.is_empty() && whole != Some(payload.len() as u64) {
            return Err(protocol("ranges and bytes to be staged do not match"));
        }
        let Phase::Staged(staged) = &mut self.phase else {
            return Err(protocol("a frame of a copy, but no copy is being made"));
        };
        if !staged.staging.fits(checked.len(), payload.len()) {
            return Err(self.staging_failed("more changed meanwhile than there is room for"));
        }
        let written = match payload.is_empty() {
            true => staged.staging.zero(&checked),
            false => staged.staging.data(&checked, payload),
        };
        staged.copying.unflushed += payload.len() as u64 + 1;
        written.map_err(|error| self.staging_failed(&error.to_string()))
    }

    pub(super) fn stage_bulk(
        &mut self,
        seq: u64,
        data: &[Range],
        zero: &[Range],
        cursor: u64,
        payload: &[u8],
        out: &mut Vec<Output>,
    ) -> Result<(), MirrorError> {
        if !payload.is_empty() {
            self.stage(data, payload)?;
        } else if !data.is_empty() {
            return Err(protocol("ranges need more bytes than there are"));
        }
        self.stage(zero, &[])?;
        let Phase::Staged(staged) = &mut self.phase else {
            return Err(protocol("a frame of a copy, but no copy is being made"));
        };
        staged.copying.seq = seq;
        staged.copying.cursor = BlockNo(cursor);
        staged.copying.unflushed += 1;
        match staged.copying.unflushed >= FLUSH_BYTES {
            true => self.flush_staged(out),
            false => Ok(()),
        }
    }

    /// Makes what was staged durable, and says so.
    pub(super) fn flush_staged(&mut self, out: &mut Vec<Output>) -> Result<(), MirrorError> {
        let Phase::Staged(staged) = &mut self.phase else {
            return Ok(());
        };
        let before = self.env.clock.monotonic();
        let flushed = staged.staging.flush();
        let took = self.env.clock.monotonic().saturating_sub(before);
        staged.copying.unflushed = 0;
        let ack = Message::Ack {
            seq: staged.copying.seq,
            txid: staged.copying.txid.0,
            cursor: staged.copying.cursor.0,
            consistent: false,
            flush_us: took.as_micros() as u64,
        };
        flushed.map_err(|error| self.staging_failed(&error.to_string()))?;
        out.push(Output::Send(ack, Vec::new()));
        Ok(())
    }

    /// The resync did not come to its end: the copy is what it was.
    pub(super) fn drop_staged(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Staged(staged) => {
                tracing::info!(volume = %self.name, bytes = staged.staging.len(),
                    "the staged resync ended early: what was staged is dropped");
                self.phase = Phase::Following(staged.following);
                if let Err(error) = self.env.staging.remove() {
                    tracing::warn!(volume = %self.name, %error, "the staging log is left behind");
                }
            }
            other => self.phase = other,
        }
    }

    /// Everything has come. From here on the old state is not opened any more; `complete_switch` follows.
    pub(super) fn switch(
        &mut self,
        seq: u64,
        end: &End,
        chain: u64,
        out: &mut Vec<Output>,
    ) -> Result<(), MirrorError> {
        let Phase::Staged(staged) = &mut self.phase else {
            return Err(protocol("the end of a copy, but no copy is being made"));
        };
        let completed = match staged
            .staging
            .fits(end.log.len(), end.journal_superblock.len())
        {
            true => staged.staging.end(end),
            false => Err(MirrorError::NoStaging("no room for its end".to_string())),
        };
        completed.map_err(|error| self.staging_failed(&error.to_string()))?;
        let Phase::Staged(staged) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Err(protocol("the end of a copy, but no copy is being made"));
        };
        let (id, generations) = (staged.staging.id(), staged.generations);
        let following = staged.following;
        let log = match following.unshown.is_empty() {
            true => {
                self.phase = Phase::Following(following);
                Some(self.stop_following()?)
            }
            // What is held back is the copy's until the marker says that it is not, with its log.
            false => {
                let (caller, doubted) = (&self.caller, true);
                keep_unshown(
                    &self.env,
                    &self.facts.lock(),
                    &following,
                    &generations,
                    caller,
                    doubted,
                    out,
                )?;
                following.journal.bring_home()?;
                None
            }
        };
        {
            let mut facts = self.facts.lock();
            facts.switching = Some(Switch {
                staging: id,
                generations,
                consistent_at: end.consistent_at,
                chain,
                keep_log: log.as_ref() == Some(&end.log),
            });
            self.env.facts.save(&facts)?;
        }
        self.switching = Some(seq);
        out.push(Output::Withdraw);
        Ok(())
    }

    /// Nobody reads the copy any more: the redo, and the copy is opened in its new state.
    pub(super) fn complete_switch(&mut self, out: &mut Vec<Output>) -> Result<(), MirrorError> {
        let Some(seq) = self.switching.take() else {
            return Ok(());
        };
        let before = self.env.clock.monotonic();
        self.follow(out)?;
        let flush_us = self.since(before);
        if let Phase::Following(following) = &mut self.phase {
            following.seq = seq;
        }
        out.push(Output::Send(
            Message::Ack {
                seq,
                txid: self.applied().0,
                cursor: self.volume()?.blocks_count(),
                consistent: true,
                flush_us,
            },
            Vec::new(),
        ));
        Ok(())
    }

    /// Redoes the staging that the facts name, if they name one: as often as it is cut short.
    pub(super) fn finish_switch(&mut self) -> Result<(), MirrorError> {
        let Some(switch) = self.facts.lock().switching.clone() else {
            return Ok(());
        };
        let volume = self.volume()?;
        let found = self.env.staging.open();
        let disk = found
            .map_err(|source| MirrorError::StagingIo {
                name: self.name.clone(),
                source,
            })?
            .ok_or_else(|| MirrorError::Staging {
                name: self.name.clone(),
                detail: "it is not there, and the copy was being switched to it".to_string(),
            })?;
        guard::raise(&volume)?;
        let block_size = volume.block_size() as usize;
        let end = redo(&*disk, switch.staging, |step| match step {
            Step::Zero(ranges) => ranges.iter().try_for_each(|range| Ok(volume.zero(*range)?)),
            Step::Data(ranges, mut bytes) => {
                for range in ranges {
                    let len = range.len as usize * block_size;
                    if bytes.len() < len {
                        return Err(protocol("a staged range without its bytes"));
                    }
                    let (head, tail) = bytes.split_at_mut(len);
                    self.write_home(*range, head, true)?;
                    bytes = tail;
                }
                Ok(())
            }
        })?;
        if !switch.keep_log {
            self.begin_log(&end.log, &end.journal_superblock)?;
            guard::clear_recover(&volume)?;
        }
        volume.flush()?;
        self.became_complete(switch.consistent_at, switch.chain, Some(switch.generations))?;
        if let Err(error) = self.env.staging.remove() {
            tracing::warn!(volume = %self.name, %error, "the staging log is left behind");
        }
        Ok(())
    }
}
