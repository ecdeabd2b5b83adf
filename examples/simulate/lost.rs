//! What a node gives up for another master: whether it was kept aside first, byte by byte.
//!
//! Owns the comparison of what was kept with what the copy had, as its history knows it. Does nothing itself.

use lockstepfs::mirror::roles::Stepped;
use lockstepfs::units::Txid;
use xxhash_rust::xxh3::xxh3_64;

use super::device::Kept;
use super::golden::Snapshot;
use super::world::World;

impl World {
    /// A master has stepped back: whatever was acknowledged, and is not in the new master's history, was kept aside.
    pub fn given_up(&mut self, n: usize, v: usize, stepped: &Stepped) {
        let line = self.volumes[v].lines.of(n);
        let known = {
            let golden = line.golden.lock();
            !golden.blind && golden.since.is_some() && !self.nodes[n].faulty
        };
        if !known || stepped.compare {
            return;
        }
        assert!(
            stepped.last >= line.acked || !self.volumes[v].lines.is_master(n),
            "I3: transaction {} of v{v} was acknowledged, and n{n} gives up no more than {}",
            line.acked,
            stepped.last
        );
        let mut reached = stepped.shared;
        for id in &stepped.kept {
            self.kept_aside(n, v, id);
            let kept = self.nodes[n].homes[&v].lost.get(id);
            let index = kept.expect("looked at a moment ago").index;
            if Txid(index.shared) <= reached {
                reached = reached.max(Txid(index.last));
            }
        }
        assert!(
            reached >= stepped.last,
            "lost: n{n} gives up transactions {} to {} of v{v} and keeps nothing aside after {reached}",
            stepped.shared.next(),
            stepped.last
        );
    }

    /// What was kept aside is what the copy had, and nothing of it is missing.
    pub fn kept_aside(&mut self, n: usize, v: usize, id: &str) {
        let Some(kept) = self.nodes[n].homes[&v].lost.get(id) else {
            panic!("lost: what n{n} keeps aside of v{v} as {id} is not there");
        };
        match self.wrong_with(n, v, &kept) {
            Some(what) => panic!("lost: what n{n} kept aside of v{v} as {id} {what}"),
            None => self
                .tally
                .check("transactions kept aside before they were dropped", 1),
        }
    }

    /// What is wrong with something that was kept aside of the history that the copy is of; `None` if nothing is, or if that
    /// history is not known well enough.
    fn wrong_with(&self, n: usize, v: usize, kept: &Kept) -> Option<String> {
        let (shared, last) = (Txid(kept.index.shared), Txid(kept.index.last));
        let golden = self.volumes[v].lines.of(n).golden.lock();
        let (before, then) = (golden.files_at(shared)?, golden.files_at(last)?);
        if self.nodes[n].faulty {
            return None;
        }
        let (changed, exact) = golden.changed_between(shared, last);
        for (block, digest) in changed {
            match kept.block(block.0) {
                Some(bytes) if xxh3_64(bytes) == digest => {}
                Some(_) => {
                    return Some(format!(
                        "has other contents in block {block} than transaction {last} had"
                    ));
                }
                None if !exact => {}
                None => {
                    return Some(format!(
                        "lacks block {block}, which transactions {} to {last} changed",
                        shared.next()
                    ));
                }
            }
        }
        let missing = missing(kept, before, then);
        (!missing.is_empty()).then(|| {
            format!(
                "lacks, of transactions {} to {last}, {}",
                shared.next(),
                missing.join(", ")
            )
        })
    }

    /// Whether a node kept aside, for a master other than `but`, all that transactions of its copy's history after `has` and up
    /// to `to` changed: it was told to give them up, and did nothing before they were safe.
    pub fn was_kept(&self, n: usize, v: usize, has: Txid, to: Txid, but: Option<&str>) -> bool {
        let all = self.nodes[n].homes[&v].lost.all();
        all.iter().any(|kept| {
            let index = &kept.index;
            let reaches = index.shared <= has.0 && index.last >= to.0;
            let line = self.volumes[v].lines.of(n);
            reaches
                && but != Some(index.master.as_str())
                && line.has_generation(&index.generation)
                && self.wrong_with(n, v, kept).is_none()
        })
    }
}

/// Runs of files that changed between two transactions and are not in what was kept, or not with their contents.
fn missing(kept: &Kept, before: &Snapshot, then: &Snapshot) -> Vec<String> {
    let size = kept.index.block_size as usize;
    let mut wrong = Vec::new();
    if !before.unsure.is_empty() {
        // A file that was being written may have been there already, and only its name changed since.
        return wrong;
    }
    for (path, bytes) in &then.files {
        if then.unsure.contains(path) {
            continue;
        }
        let full = format!("/{path}");
        let runs: Vec<_> = (kept.index.runs.iter())
            .filter(|run| run.path.as_deref() == Some(&full))
            .filter_map(|run| Some((run, run.bytes?)))
            .collect();
        for (index, chunk) in bytes.chunks(size).enumerate() {
            let at = (index * size) as u64;
            let hole = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
            // A file that grew or shrank, or was renamed, has its blocks still.
            let same = |old: &[u8]| {
                let old = old.get(at as usize..).unwrap_or_default();
                let both = old.len().min(chunk.len());
                both > 0 && old[..both] == chunk[..both] && hole(&chunk[both..])
            };
            if hole(chunk) || before.files.values().any(|old| same(old)) {
                continue;
            }
            let found = runs
                .iter()
                .find(|(_, (from, to))| (*from..*to).contains(&at));
            let found = found
                .and_then(|(run, (from, _))| kept.block(run.block + (at - from) / size as u64));
            if found.is_none_or(|found| &found[..chunk.len()] != chunk) {
                wrong.push(format!("{path} at byte {at}"));
            }
        }
    }
    wrong.truncate(4);
    wrong
}
