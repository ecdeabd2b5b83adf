//! What the master's volume was at every transaction boundary: a digest of each block by txid, and the files.
//!
//! Owns the memory of the right answers. It learns a transaction in the hook that the engine calls after the commit,
//! before anything else can happen, from the journal's own copy of it and from what is read back through the log.
//! Invariant: digests of one block ascend by txid; what a master lost with its power is forgotten here too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockstepfs::journal::Journal;
use lockstepfs::mirror::committed::Committed;
use lockstepfs::mirror::master::MasterVolume;
use lockstepfs::mirror::shipment::touched;
use lockstepfs::units::{BlockNo, BlockRange, Txid};
use xxhash_rust::xxh3::xxh3_64;

/// The files of a volume: contents by path.
pub type Files = BTreeMap<String, Arc<Vec<u8>>>;

/// The files as they were at a transaction boundary.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub files: Files,
    /// An operation on these was under way: they may be anything that it goes through.
    pub unsure: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Golden {
    versions: BTreeMap<BlockNo, Vec<(Txid, u64)>>,
    by_txid: BTreeMap<Txid, Vec<BlockNo>>,
    freed: BTreeMap<Txid, Vec<BlockRange>>,
    pub snapshots: BTreeMap<Txid, Snapshot>,
    /// Blocks of the journal, and the superblock: each side's own.
    exempt: Vec<BlockRange>,
    block_size: usize,
    /// The last transaction that is known.
    pub last: Txid,
    /// From here on every change is known; none while no mirror exists, for overwrites go straight home then.
    pub since: Option<Txid>,
    /// A transaction that is being committed: a mirror may have it already.
    pub pending: Option<Txid>,
    /// The files as they are now, and those that an operation is changing.
    pub now: Option<Snapshot>,
    /// The master's disk broke its word: what each transaction was can not be told any more, in this run.
    pub blind: bool,
    /// Bytes of blocks that transactions changed so far.
    pub changed_bytes: u64,
}

impl Golden {
    pub fn new(block_size: usize) -> Golden {
        Golden {
            block_size,
            now: Some(Snapshot {
                files: Files::new(),
                unsure: BTreeSet::new(),
            }),
            ..Golden::default()
        }
    }

    /// The files as they are now.
    pub fn files(&mut self) -> &mut Snapshot {
        self.now.as_mut().expect("always there")
    }

    fn is_exempt(&self, block: BlockNo) -> bool {
        self.exempt.iter().any(|range| range.contains(block))
    }

    fn try_digest(&self, journal: &Journal, block: BlockNo) -> Option<u64> {
        let mut bytes = vec![0; self.block_size];
        journal.read(block, &mut bytes).ok()?;
        Some(xxh3_64(&bytes))
    }

    fn digest(&self, journal: &Journal, block: BlockNo) -> u64 {
        self.try_digest(journal, block)
            .unwrap_or_else(|| panic!("reading {block} through the log"))
    }

    /// Every allocated block, as read through the log.
    fn allocated(&self, journal: &Arc<Journal>, blocks: u64) -> Vec<BlockNo> {
        let all = BlockRange::new(BlockNo(0), blocks);
        let committed = Committed::load(Arc::clone(journal), self.block_size)
            .unwrap_or_else(|error| panic!("the bitmaps can not be read: {error}"));
        let ranges = committed
            .allocated(all)
            .unwrap_or_else(|error| panic!("the bitmaps can not be read: {error}"));
        ranges
            .iter()
            .flat_map(|range| range.blocks())
            .filter(|block| !self.is_exempt(*block))
            .collect()
    }

    /// A mirror exists from now on: what is there now is the base.
    pub fn begin(&mut self, journal: &Arc<Journal>, blocks: u64, log: &[BlockRange]) {
        if self.blind {
            return;
        }
        self.exempt = log.to_vec();
        self.exempt
            .push(BlockRange::new(BlockNo(1024 / self.block_size as u64), 1));
        let at = journal.last_committed();
        self.versions.clear();
        self.by_txid.clear();
        self.freed.clear();
        for block in self.allocated(journal, blocks) {
            let digest = self.digest(journal, block);
            self.versions.insert(block, vec![(at, digest)]);
        }
        self.since = Some(at);
        self.last = self.last.max(at);
        // Until now data that was overwritten went straight home, ahead of its transaction.
        let now = self.files().clone();
        self.snapshots.insert(at, now);
    }

    /// Whether it is known what every transaction after `txid` changed.
    pub fn knows_since(&self, txid: Txid) -> bool {
        self.since.is_some_and(|since| since <= txid)
    }

    /// No mirror is left: overwrites go straight home.
    pub fn end(&mut self) {
        self.since = None;
    }

    /// The first half of a commit is done.
    pub fn prepared(&mut self, txid: Txid) {
        self.pending = Some(txid);
    }

    /// The newest transaction, not after `txid`, that is part of the history, or may become part of it.
    pub fn newest_until(&self, txid: Txid) -> Txid {
        if self.pending == Some(txid) {
            return txid;
        }
        let known = self.snapshots.range(..=txid).next_back();
        known.map_or(Txid(0), |(known, _)| *known)
    }

    /// A transaction was committed a moment ago.
    pub fn committed(&mut self, journal: &Arc<Journal>, txid: Txid) {
        self.pending = None;
        let now = self.files().clone();
        self.snapshots.insert(txid, now);
        self.last = txid;
        let Ok(txn) = journal.load_transaction(txid) else {
            // Its disk fails: from here on nobody can say what each block was.
            self.since = None;
            return;
        };
        let mut changed = Vec::new();
        for range in touched(&txn) {
            changed.extend(range.blocks().filter(|block| !self.is_exempt(*block)));
        }
        self.changed_bytes += (changed.len() * self.block_size) as u64;
        if self.since.is_none() {
            return;
        }
        for block in &changed {
            let Some(digest) = self.try_digest(journal, *block) else {
                self.since = None;
                return;
            };
            self.versions
                .entry(*block)
                .or_default()
                .push((txid, digest));
        }
        self.by_txid.insert(txid, changed);
        self.freed.insert(txid, txn.freed);
    }

    /// Bytes of blocks that transactions after `txid` changed.
    pub fn changed_after(&self, txid: Txid) -> u64 {
        let after = (std::ops::Bound::Excluded(txid), std::ops::Bound::Unbounded);
        let blocks = self.by_txid.range(after).map(|(_, blocks)| blocks.len());
        (blocks.sum::<usize>() * self.block_size) as u64
    }

    fn at(&self, block: BlockNo, txid: Txid) -> Option<u64> {
        let versions = self.versions.get(&block)?;
        let at = versions.partition_point(|(t, _)| *t <= txid);
        at.checked_sub(1).map(|at| versions[at].1)
    }

    /// The history ends at `txid`: a master lost what came after it, or another one goes on from there.
    pub fn cut(&mut self, txid: Txid) {
        for versions in self.versions.values_mut() {
            versions.retain(|(t, _)| *t <= txid);
        }
        self.versions.retain(|_, versions| !versions.is_empty());
        self.by_txid.retain(|t, _| *t <= txid);
        self.freed.retain(|t, _| *t <= txid);
        self.snapshots.retain(|t, _| *t <= txid);
    }

    /// Another node goes on from `fork`, with a copy that showed it.
    pub fn branch(&mut self, fork: Txid) {
        self.cut(fork);
        if fork > self.last {
            // Its master never heard that it was durable: its files are those of now.
            return;
        }
        match self.snapshots.range(..=fork).next_back() {
            Some((_, snapshot)) if self.since.is_some_and(|since| since <= fork) => {
                let now = snapshot.clone();
                self.now = Some(now.clone());
                self.snapshots.insert(fork, now);
            }
            // A copy from before the base, or of a history that nobody followed.
            _ => self.end(),
        }
        self.last = self.last.min(fork);
    }

    /// The files at a transaction.
    pub fn files_at(&self, txid: Txid) -> Option<&Snapshot> {
        let since = self.since?;
        if self.blind || txid < since || txid > self.last {
            return None;
        }
        let known = self.snapshots.range(..=txid).next_back();
        known.map(|(_, snapshot)| snapshot)
    }

    /// The blocks that transactions after `from`, up to `to`, changed and did not free, and their digests then; and whether it is
    /// known of each of them what it freed.
    pub fn changed_between(&self, from: Txid, to: Txid) -> (BTreeMap<BlockNo, u64>, bool) {
        let range = (
            std::ops::Bound::Excluded(from),
            std::ops::Bound::Included(to),
        );
        let mut changed = BTreeSet::new();
        let mut exact = true;
        for (txid, blocks) in self.by_txid.range(range) {
            changed.extend(blocks);
            exact &= self.freed.contains_key(txid);
            let freed = self.freed.get(txid).into_iter().flatten();
            for block in freed.flat_map(|range| range.blocks()) {
                changed.remove(&block);
            }
        }
        let known = |block| Some((block, self.at(block, to)?));
        (changed.into_iter().filter_map(known).collect(), exact)
    }

    /// A master was opened again. A transaction that it was committing when the power went may be there or not;
    /// everything else must be as it was. What the opening itself committed is learnt. `highest`: the last id that
    /// may have been issued, if the copy was a master's before.
    pub fn reopened(&mut self, shared: &MasterVolume, highest: Option<Txid>) {
        let (journal, fork) = (&shared.journal, shared.fork);
        let since = journal.info_after(shared.log_position(fork));
        let own: Vec<Txid> = since.iter().flatten().map(|info| info.txid).collect();
        let unknown = fork > self.last;
        let committing = self.pending.take().is_some();
        self.cut(fork);
        let newest = self.snapshots.iter().next_back();
        let now = match newest {
            Some((txid, snapshot)) if *txid == fork => snapshot.clone(),
            // No transaction has the highest id of all: the log was empty, and the last state goes by it.
            Some((_, snapshot)) if Some(fork) == highest && !committing => snapshot.clone(),
            _ => self.files().clone(),
        };
        self.snapshots.insert(fork, now);
        self.last = fork;
        if self.since.is_some() {
            self.learn(journal, shared.volume.blocks_count(), fork, &own, unknown);
        }
        // Ids between the fork and where the log began were never issued: they name the same state.
        for txid in own.into_iter().chain([shared.opened_at]) {
            let now = self.snapshots[&fork].clone();
            self.snapshots.insert(txid, now);
            self.last = self.last.max(txid);
        }
    }

    fn learn(
        &mut self,
        journal: &Arc<Journal>,
        blocks: u64,
        fork: Txid,
        own: &[Txid],
        unknown: bool,
    ) {
        let mut opening = BTreeSet::new();
        for txid in own {
            let txn = journal
                .load_transaction(*txid)
                .unwrap_or_else(|error| panic!("transaction {txid} can not be read back: {error}"));
            opening.extend(touched(&txn).flat_map(|range| range.blocks()));
            self.freed.insert(*txid, txn.freed);
        }
        if unknown && let Ok(txn) = journal.load_transaction(fork) {
            self.freed.insert(fork, txn.freed);
        }
        let mut wrong = Vec::new();
        let mut learnt = Vec::new();
        for block in self.allocated(journal, blocks) {
            let digest = self.digest(journal, block);
            if opening.contains(&block) {
                learnt.push((block, digest, own.last().copied().unwrap_or(fork)));
            } else if self.at(block, fork) != Some(digest) {
                match unknown {
                    true => learnt.push((block, digest, fork)),
                    false => wrong.push(block),
                }
            }
        }
        assert!(
            wrong.is_empty(),
            "I3: the master came back at transaction {fork} with other contents in {}",
            spell(&wrong)
        );
        for (block, digest, txid) in learnt {
            self.versions.entry(block).or_default().push((txid, digest));
            self.by_txid.entry(txid).or_default().push(block);
        }
    }

    /// The copy behind `journal`, which shows transaction `at`, is what the master had then: all of it, or only the blocks that
    /// changed after `seen`.
    pub fn compare(
        &self,
        journal: &Arc<Journal>,
        blocks: u64,
        at: Txid,
        seen: Option<Txid>,
        who: &str,
    ) -> u64 {
        let Some(since) = self.since else { return 0 };
        if at < since || at > self.last {
            return 0;
        }
        let only: Option<BTreeSet<BlockNo>> = seen.filter(|seen| *seen >= since).map(|seen| {
            self.by_txid
                .range((
                    std::ops::Bound::Excluded(seen),
                    std::ops::Bound::Included(at),
                ))
                .flat_map(|(_, blocks)| blocks.iter().copied())
                .collect()
        });
        let mut wrong = Vec::new();
        let mut compared = 0;
        for block in self.allocated(journal, blocks) {
            if only.as_ref().is_some_and(|only| !only.contains(&block)) {
                continue;
            }
            compared += 1;
            if self.at(block, at) != Some(self.digest(journal, block)) {
                wrong.push(block);
            }
        }
        assert!(
            wrong.is_empty(),
            "I1: {who} shows transaction {at}, which differs from what the master had then in {}",
            spell(&wrong)
        );
        compared
    }
}

fn spell(blocks: &[BlockNo]) -> String {
    let some: Vec<String> = blocks.iter().take(6).map(|b| b.to_string()).collect();
    format!("{} blocks: {} ...", blocks.len(), some.join(", "))
}
