//! The reconnect decision in words, without acting on it.

use states::reconnect::{Conflict, CopyFrom, Decision, DirtyMap, Repair, Role};

use super::Mirror;
use crate::units::Txid;
use crate::wire::message::{Fork, History};

fn named(lineage: &[Fork]) -> String {
    let last = lineage.iter().rev().take(4).rev();
    let all: Vec<String> = last
        .map(|l| format!("{:08x} from {}", (l.generation >> 96) as u32, l.fork))
        .collect();
    all.join(", ")
}

impl Mirror {
    /// What would be done if the mirror said `theirs` now. `master`: it is one itself.
    pub fn compared(&self, theirs: &History, master: bool) -> Vec<String> {
        let role = if master { Role::Master } else { Role::Mirror };
        let map = (theirs.dirty_blocks > 0).then_some(DirtyMap {
            bits_set: theirs.dirty_blocks,
            from_txid: theirs.durable,
            through_txid: theirs.durable,
            lost: theirs.dirty_blocks == u64::MAX,
        });
        let outcome = self.compare(theirs, role, map);
        let (peer, ours, name) = (&self.peer, &self.shared.node, &self.shared.name);
        let committed = self.shared.journal.last_committed();
        let mut lines = vec![
            format!(
                "{name}: {ours} has transaction {committed}, {peer} has {}",
                theirs.durable
            ),
            format!("generations here: {}", named(&self.lineage())),
            format!("generations there: {}", named(&theirs.generations)),
            outcome.to_string(),
        ];
        lines.push(match outcome.decision {
            Decision::Replicate { from: CopyFrom::Start } => {
                "every allocated block would be copied".to_string()
            }
            Decision::Replicate {
                from: CopyFrom::Resume { cursor, .. },
            } => format!("allocated blocks from {cursor} on would be copied"),
            Decision::OutOfSync {
                by: Repair::ByChecksum,
            } => "all allocated blocks would be compared by checksum, and those that differ copied"
                .to_string(),
            Decision::OutOfSync {
                by: Repair::ByMap { log_after },
            } => {
                let marked = self.slot.state.lock().map.count();
                format!(
                    "the blocks that are recorded as different would be copied ({marked} here, {} there), and what was changed after transaction {log_after}",
                    theirs.dirty_blocks
                )
            }
            Decision::InSyncByReplay { after } => {
                let log = self.shared.log_position(Txid(after));
                let count = self.shared.journal.info_after(log).map_or(0, |infos| infos.len());
                format!("{count} transactions after {after} would be shipped; no block is copied")
            }
            Decision::Error(Conflict::Unrelated) => "nothing would be touched".to_string(),
            Decision::Error(Conflict::Diverged(split)) => format!(
                "nothing would be touched; both have everything up to transaction {shared}. To keep the copy of {ours}, which loses transactions {next} to {theirs} of {peer}, on {peer}: lockstep rejoin {name} {ours} --discard {peer}. To keep the copy of {peer}, which loses transactions {next} to {master} of {ours}: lockstep promote {name}, on {peer}, then on {ours}: lockstep rejoin {name} {peer} --discard {ours}",
                shared = split.shared,
                next = split.shared + 1,
                theirs = split.mirror,
                master = split.master,
            ),
        });
        if let Some(after) = outcome.drop_unconfirmed_after {
            lines.push(format!(
                "transactions after {after} on {peer} were never confirmed, and would be dropped; before that {peer} keeps them aside if another node sent them"
            ));
        }
        lines
    }
}
