//! How a mirror stands, for people and for the mirror's own node.

use std::time::Duration;

use states::State;

use super::Mirror;
use crate::mirror::counters::Histogram;
use crate::mirror::floor;
use crate::mirror::gate::Waits;
use crate::mirror::policy::Policy;
use crate::units::Txid;
use crate::wire::message::MasterStatus;

/// How a mirror stands.
#[derive(Clone, Debug)]
pub struct Status {
    /// The state.
    pub state: State,
    /// Why, in a sentence; for ERROR with the remedy.
    pub reason: String,
    /// Order was given up for the dirty map.
    pub cracked: bool,
    /// Bytes that the mirror lacks.
    pub bytes_to_go: u64,
    /// Bulk bytes sent.
    pub bytes_bulk: u64,
    /// Sequenced bytes sent.
    pub bytes_sequenced: u64,
    /// Bytes read from the volume for the bulk replicator.
    pub bytes_read: u64,
    /// Bytes a second, lately.
    pub rate: u64,
    /// Seconds until `bytes_to_go` is 0 at that rate.
    pub eta_s: Option<u64>,
    /// Last transaction committed here.
    pub txid_committed: Txid,
    /// Last transaction acknowledged by the mirror.
    pub txid_acked: Txid,
    /// Seconds since the oldest transaction that the mirror lacks was committed.
    pub lag_s: f64,
    /// How it is treated.
    pub policy: Policy,
    /// It is in sync mode and not in INSYNC: writes are acknowledged without it, or wait for it (strict).
    pub degraded: bool,
    /// What it is tuned by.
    pub counters: Tuning,
}

/// What an administrator tunes a mirror with, since the node opened the volume.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Tuning {
    /// Transactions that it lacks.
    pub queue: u64,
    /// Bytes of the buffer that it holds.
    pub queue_bytes: u64,
    /// Bytes of blocks sent with transactions.
    pub bytes_sequenced: u64,
    /// Transactions sent.
    pub transactions: u64,
    /// Bytes of blocks sent by the bulk replicator.
    pub bytes_bulk: u64,
    /// Transactions sent again.
    pub retransmitted: u64,
    /// Transactions sent while they were being committed.
    pub sent_early: u64,
    /// Times that order was given up for the dirty map.
    pub cracks: u64,
    /// From a commit to the mirror's acknowledgement.
    pub time_in_queue: Histogram,
    /// From a frame to its acknowledgement.
    pub round_trip: Histogram,
    /// How long the mirror took to make transactions durable.
    pub mirror_flush: Histogram,
    /// How payloads are packed at present.
    pub compress: String,
    /// Bytes of payload that were packed, and what they became.
    pub packed_from_bytes: u64,
    /// See `packed_from_bytes`.
    pub packed_bytes: u64,
    /// Limits and those who waited.
    pub waits: Waits,
}

impl Mirror {
    /// How the mirror stands.
    pub fn status(&self, now: Duration) -> Status {
        let (cracked, cracks, acked) = {
            let state = self.slot.state.lock();
            (state.cracked, state.cracks, state.acked)
        };
        let committed = self.shared.journal.last_committed();
        let bytes_to_go = match self.streaming {
            true => self.stream.bytes_to_go(),
            false => self.slot.state.lock().left() * u64::from(self.shared.volume.block_size()),
        };
        let rate = self.progress.rate();
        let degraded = self.policy.is_sync() && self.state != State::InSync;
        let mut reason = self.reason.clone();
        if degraded {
            let ending = match self.policy.strict && self.record.once_insync {
                true if self.state == State::Idle => {
                    "durability is degraded: the operator let this sync mirror go"
                }
                true => "durability is degraded: writers wait for this sync mirror (strict)",
                false => "durability is degraded: writes are acknowledged without this sync mirror",
            };
            if !reason.is_empty() {
                reason.push_str("; ");
            }
            reason.push_str(ending);
        }
        let (queue, queue_bytes) = self.queue(acked);
        let sent = &self.stream.counters;
        let counters = Tuning {
            queue,
            queue_bytes,
            bytes_sequenced: sent.bytes_sequenced,
            transactions: sent.transactions,
            bytes_bulk: sent.bytes_bulk,
            retransmitted: sent.retransmitted,
            sent_early: sent.sent_early,
            cracks,
            time_in_queue: self.time_in_queue.clone(),
            round_trip: self.stream.round_trip.clone(),
            mirror_flush: self.mirror_flush.clone(),
            compress: self.packer.chosen().to_string(),
            packed_from_bytes: self.packer.raw_bytes,
            packed_bytes: self.packer.packed_bytes,
            waits: self.shared.gate.waits(&self.peer),
        };
        Status {
            state: self.state,
            reason,
            cracked,
            bytes_to_go,
            bytes_bulk: self.stream.counters.bytes_bulk,
            bytes_sequenced: self.stream.counters.bytes_sequenced,
            bytes_read: self.stream.counters.bytes_read,
            rate,
            eta_s: (rate > 0 && bytes_to_go > 0).then(|| bytes_to_go.div_ceil(rate)),
            txid_committed: committed,
            // A sync mirror may have what is only being committed here.
            txid_acked: acked.min(committed),
            lag_s: match self.commits.front() {
                Some((_, at)) if acked < committed => now.saturating_sub(*at).as_secs_f64(),
                _ => 0.0,
            },
            policy: self.policy.clone(),
            degraded,
            counters,
        }
    }

    pub(super) fn master_status(&self, now: Duration) -> MasterStatus {
        let status = self.status(now);
        let stats = self.shared.journal.stats();
        let block_size = u64::from(self.shared.volume.block_size());
        MasterStatus {
            state: status.state.to_string(),
            reason: status.reason,
            bytes_to_go: status.bytes_to_go,
            txid_committed: status.txid_committed.0,
            committed_at: 0,
            cracked: status.cracked,
            buffer_used: stats.used_blocks * block_size,
            buffer_size: stats.size_blocks * block_size,
            bytes_bulk: status.bytes_bulk,
            bytes_sequenced: status.bytes_sequenced,
            rate: status.rate,
            eta_s: status.eta_s,
            floor: floor::lowest(&self.shared.slots).0,
            members: self.shared.members.lock().clone(),
        }
    }
}
