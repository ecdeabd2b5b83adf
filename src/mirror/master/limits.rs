//! How a mirror is treated: its policy, and what of its state its volume's writers have to know (`gate`).

use states::State;

use super::{Action, Mirror};
use crate::mirror::policy::{Policy, Wishes};
use crate::mirror::rate::Rate;
use crate::mirror::stream::Frame;
use crate::units::Txid;
use crate::wire::message::Message;

impl Mirror {
    /// What the node's configuration says of mirrors that do not say otherwise.
    pub fn set_defaults(&mut self, defaults: Wishes) {
        self.defaults = defaults;
        self.apply_policy();
    }

    /// The operator asks for something else; what `wishes` do not name stays as it is. In force, and durable, on return.
    pub fn set_wishes(&mut self, wishes: Wishes) {
        self.record.wishes = wishes.or(&self.record.wishes);
        self.save();
        self.apply_policy();
    }

    /// How the mirror is treated.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(super) fn apply_policy(&mut self) {
        let made_with = Wishes {
            rate: self.record.rate,
            ..Wishes::default()
        };
        let wishes = self.record.wishes.clone().or(&made_with);
        self.policy = Policy::resolve(&wishes, &self.defaults);
        let rate = Rate::new(Some(self.policy.rate));
        self.stream.set_policy(self.policy.is_sync(), rate);
        self.packer.set(self.policy.compress);
        self.shared.gate.set_policy(&self.peer, &self.policy);
        self.show_gate();
    }

    /// Tells writers how the mirror stands.
    pub(super) fn show_gate(&self) {
        let gate = &self.shared.gate;
        gate.acked(&self.peer, self.holds);
        gate.set_state(
            &self.peer,
            self.state == State::InSync,
            self.record.once_insync,
            self.state == State::Idle,
        );
    }

    /// Packs a frame's payload where that pays: what is sent now, and what right after it.
    pub(super) fn pack(&mut self, (message, payload): Frame) -> Frame {
        let line = self.stream.is_held_up().then(|| {
            let (raw, packed) = (self.packer.raw_bytes, self.packer.packed_bytes);
            // What the line carries is what was packed, not what it was before.
            let share = if raw > 0 && self.packer.chosen() != "off" {
                packed as f64 / raw as f64
            } else {
                1.0
            };
            (self.progress.rate() as f64 * share) as u64
        });
        let Some((codec, bytes)) = self.packer.pack(&payload, line) else {
            return (message, payload);
        };
        let len = payload.len() as u64;
        self.packed = Some((message, bytes));
        (Message::Packed { codec, len }, Vec::new())
    }

    /// What the mirror lacks, for the limits of its policy.
    pub(super) fn measure(&mut self, out: &mut Vec<Action>) {
        let acked = self.slot.state.lock().acked;
        let queue = self.queue(acked);
        let stats = self.shared.journal.stats();
        let size = stats.size_blocks * u64::from(self.shared.volume.block_size());
        let after = self.shared.log_position(acked);
        let gate = &self.shared.gate;
        if let Some(what) = gate.measured(&self.peer, after, queue, size) {
            out.push(Action::Noted {
                kind: "limit",
                what,
            });
        }
    }

    /// Transactions that the mirror lacks, and the bytes of the log that they take.
    pub(super) fn queue(&self, acked: Txid) -> (u64, u64) {
        let (count, blocks) = self.shared.journal.backlog(self.shared.log_position(acked));
        (count, blocks * u64::from(self.shared.volume.block_size()))
    }
}
