//! The power goes at every write and every flush, and what was not flushed survives in part and in any order: every
//! acknowledged transaction is there, whole, and what else is there is a prefix of what was submitted.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::rig::*;
use crate::io::Disk;
use crate::io::sim::{Recording, SimDisk, SimRandom, Survivors};
use crate::journal::{Journal, Reference, Transaction};
use crate::units::{BlockNo, BlockRange, Txid};

/// Contents that must be seen after some transaction; blocks that are missing may hold anything.
type Expected = BTreeMap<u64, u64>;

/// A small file system's behaviour: by value, by reference into blocks freed long enough ago, frees.
struct Workload {
    random: SimRandom,
    next: u64,
    now: Expected,
    /// After each transaction.
    states: BTreeMap<u64, Expected>,
    /// Free blocks, freed by a published transaction.
    free: Vec<u64>,
}

const HOME: u64 = 200;

impl Workload {
    fn new(seed: u64) -> Workload {
        Workload {
            random: SimRandom::new(seed),
            next: 1,
            now: Expected::new(),
            states: [(0, Expected::new())].into(),
            free: (HOME..HOME + 40).collect(),
        }
    }

    /// The next transaction; what it refers to is written home now.
    fn make(&mut self, journal: &Journal) -> Transaction {
        let txid = self.next;
        self.next += 1;
        let mut out = txn(txid, &[]);
        let mut freed_now = Vec::new();
        for i in 0..self.random.below(12) {
            let block = self.random.below(HOME);
            let value = txid * 100 + i;
            out.images.insert(BlockNo(block), image(value));
            self.now.insert(block, value);
        }
        for _ in 0..self.random.below(3) {
            let used: Vec<u64> = self.now.keys().copied().collect();
            if used.is_empty() {
                break;
            }
            let block = used[self.random.below(used.len() as u64) as usize];
            if out.images.contains_key(&BlockNo(block)) || block < HOME / 2 {
                continue;
            }
            out.freed.push(BlockRange::new(BlockNo(block), 1));
            self.now.remove(&block);
            freed_now.push(block);
        }
        for i in 0..self.random.below(3).min(self.free.len() as u64) {
            let at = self.random.below(self.free.len() as u64) as usize;
            let block = self.free.swap_remove(at);
            if out.images.contains_key(&BlockNo(block)) {
                continue;
            }
            let value = txid * 100 + 50 + i;
            write_home(journal, block, value);
            out.refs.push(Reference {
                range: BlockRange::new(BlockNo(block), 1),
                xxh3: value,
            });
            self.now.insert(block, value);
        }
        self.states.insert(txid, self.now.clone());
        // A block by value may have been free: it is not any more.
        self.free.retain(|b| !self.now.contains_key(b));
        self.free.extend(freed_now);
        out
    }

    fn run(&mut self, journal: &Journal, recording: &Recording, steps: u64) {
        for _ in 0..steps {
            match self.random.below(10) {
                0..=4 => {
                    let mut txn = self.make(journal);
                    journal.commit(&mut txn).unwrap();
                    recording.mark(txn.txid.0);
                }
                5..=6 => {
                    // References of a group must not use what the group itself freed.
                    let mut group = Vec::new();
                    for _ in 0..1 + self.random.below(4) {
                        let mut txn = self.make(journal);
                        let freed: Vec<u64> = txn.freed.iter().map(|r| r.start.0).collect();
                        self.free.retain(|b| !freed.contains(b));
                        txn.chain = txn.txid.0;
                        group.push(txn);
                    }
                    journal.append(&group).unwrap();
                    let last = group.last().unwrap().txid;
                    recording.mark(last.0);
                    journal.publish(last);
                }
                7..=8 => {
                    journal
                        .checkpoint(1 + self.random.below(30) as usize)
                        .unwrap();
                }
                _ => checkpoint_all(journal),
            }
        }
    }
}

fn check(disk: &Arc<SimDisk>, workload: &Workload, acked: u64, base: u64, what: &str) -> u64 {
    let journal = load(disk, base);
    let recovered = journal
        .recover()
        .unwrap_or_else(|e| panic!("{what}: {e}"))
        .last;
    // Everything may have been home already: then what is there is what was acknowledged last.
    let last = recovered.map_or(acked, |t| t.0);
    assert!(
        last >= acked,
        "{what}: {acked} was acknowledged, {last} is there"
    );
    for (block, value) in &workload.states[&last] {
        assert_eq!(
            home(disk, *block),
            image(*value)[..],
            "{what}: block {block} after {last}"
        );
    }
    last
}

fn recorded(disk: Arc<SimDisk>) -> (Arc<Recording>, Arc<dyn Disk>) {
    let recording = Arc::new(Recording::new());
    let wrapped = recording.wrap(disk).unwrap();
    (recording, wrapped)
}

fn cut_everywhere(seed: u64, steps: u64, every: usize) {
    let (recording, disk) = recorded(fresh_disk());
    let journal = load_on(volume_of(disk), 0);
    journal.begin_segment(GENERATION, Txid(1)).unwrap();
    let mut workload = Workload::new(seed);
    workload.run(&journal, &recording, steps);
    drop(journal);
    let random = SimRandom::new(seed + 1000);
    for n in (0..=recording.len()).step_by(every) {
        let acked = recording.marks_before(n).last().copied().unwrap_or(0);
        for survivors in [
            Survivors::None,
            Survivors::All,
            Survivors::Random(&random),
            Survivors::Random(&random),
        ] {
            let cut = recording.image_at(n, survivors).remove(0);
            check(
                &cut,
                &workload,
                acked,
                0,
                &format!("seed {seed}, cut {n}, {survivors:?}"),
            );
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_wherever_the_power_goes() {
    for seed in 0..4 {
        cut_everywhere(seed, 60, 1);
    }
}

#[test]
fn a_wrapped_log_is_as_safe() {
    // Enough blocks to go round three times.
    cut_everywhere(77, 420, 11);
}

#[test]
fn space_is_not_reused_before_the_tail_is_durable() {
    let (recording, disk) = recorded(fresh_disk());
    let journal = load_on(volume_of(disk), 0);
    journal.begin_segment(GENERATION, Txid(1)).unwrap();
    let mut workload = Workload::new(3);
    let mut full_at = Vec::new();
    while full_at.len() < 6 {
        let mut txn = workload.make(&journal);
        if journal.stats().used_blocks > 1000 {
            // One step: the tail that it writes to the superblock is not flushed yet, and what is behind it is not home.
            journal.checkpoint(120).unwrap();
            // More than is free without it.
            for block in 0..60 {
                let value = txn.txid.0 * 100 + block;
                txn.images.insert(BlockNo(block), image(value));
                workload.now.insert(block, value);
            }
            workload.states.insert(txn.txid.0, workload.now.clone());
            full_at.push(recording.len());
        }
        journal.commit(&mut txn).unwrap();
        recording.mark(txn.txid.0);
    }
    drop(journal);
    let random = SimRandom::new(8);
    for at in full_at {
        for n in at - 4..(at + 30).min(recording.len()) {
            let acked = recording.marks_before(n).last().copied().unwrap_or(0);
            for _ in 0..6 {
                let cut = recording.image_at(n, Survivors::Random(&random)).remove(0);
                check(&cut, &workload, acked, 0, &format!("full at {at}, cut {n}"));
            }
        }
    }
}

#[test]
fn a_second_crash_after_a_first_is_as_safe() {
    let random = SimRandom::new(5);
    for seed in 0..30 {
        let (recording, disk) = recorded(fresh_disk());
        let journal = load_on(volume_of(disk), 0);
        journal.begin_segment(GENERATION, Txid(1)).unwrap();
        let mut workload = Workload::new(seed);
        workload.run(&journal, &recording, 40);
        drop(journal);
        let n = random.below(recording.len() as u64) as usize;
        let acked = recording.marks_before(n).last().copied().unwrap_or(0);
        let mut cut = recording.image_at(n, Survivors::Random(&random)).remove(0);
        let mut last = check(&cut, &workload, acked, 0, "first");
        for life in 2..5 {
            // The next life begins from the state that was recovered.
            workload.now = workload.states[&last].clone();
            workload.free = (HOME..HOME + 40)
                .filter(|b| !workload.now.contains_key(b))
                .collect();
            workload.next = last + 2;
            workload.states = [(last, workload.now.clone())].into();
            let (recording, disk) = recorded(cut.clone());
            let journal = load_on(volume_of(disk), last);
            journal.begin_segment(GENERATION, Txid(last + 2)).unwrap();
            workload.run(&journal, &recording, 20);
            drop(journal);
            let n = random.below(recording.len() as u64 + 1) as usize;
            let acked = recording.marks_before(n).last().copied().unwrap_or(last);
            cut = recording.image_at(n, Survivors::Random(&random)).remove(0);
            last = check(
                &cut,
                &workload,
                acked,
                last,
                &format!("seed {seed}, life {life}, cut {n}"),
            );
        }
    }
}

#[test]
fn recovery_that_is_cut_is_begun_again() {
    let (disk, journal) = fresh();
    let mut workload = Workload::new(9);
    let (quiet, _) = recorded(fresh_disk());
    workload.run(&journal, &quiet, 30);
    drop(journal);
    let expected = Arc::new(disk.snapshot());
    let last = load(&expected, 0).recover().unwrap().last;
    let (recording, wrapped) = recorded(Arc::new(disk.snapshot()));
    load_on(volume_of(wrapped), 0).recover().unwrap();
    let random = SimRandom::new(3);
    for n in 0..=recording.len() {
        let cut = recording.image_at(n, Survivors::Random(&random)).remove(0);
        let again = load(&cut, 0);
        if again.needs_recovery() {
            assert_eq!(again.recover().unwrap().last, last);
        }
        for block in 0..HOME + 40 {
            assert_eq!(
                home(&cut, block),
                home(&expected, block),
                "cut {n}, block {block}"
            );
        }
    }
}
