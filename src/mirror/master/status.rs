//! How a mirror stands, for people and for the mirror's own node.

use std::time::Duration;

use super::{Mirror, Status};
use crate::mirror::floor;
use crate::wire::message::MasterStatus;

impl Mirror {
    /// How the mirror stands.
    pub fn status(&self, now: Duration) -> Status {
        let (cracked, acked) = {
            let state = self.slot.state.lock();
            (state.cracked, state.acked)
        };
        let committed = self.shared.journal.last_committed();
        let bytes_to_go = match self.streaming {
            true => self.stream.bytes_to_go(),
            false => self.slot.state.lock().left() * u64::from(self.shared.volume.block_size()),
        };
        let rate = self.progress.rate();
        Status {
            state: self.state,
            reason: self.reason.clone(),
            cracked,
            bytes_to_go,
            bytes_bulk: self.stream.counters.bytes_bulk,
            bytes_sequenced: self.stream.counters.bytes_sequenced,
            bytes_read: self.stream.counters.bytes_read,
            rate,
            eta_s: (rate > 0 && bytes_to_go > 0).then(|| bytes_to_go.div_ceil(rate)),
            txid_committed: committed,
            txid_acked: acked,
            lag_s: match self.commits.front() {
                Some((_, at)) if acked < committed => now.saturating_sub(*at).as_secs_f64(),
                _ => 0.0,
            },
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
            floor: floor::lowest(&self.shared.slots).0,
            members: self.shared.members.lock().clone(),
        }
    }
}
