//! Power cuts: whatever instant they choose, recovery (ours and e2fsck's) gives a clean volume that holds everything which
//! was synced, at a state the engine had between two operations.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lockstepfs::io::Disk;
use lockstepfs::io::sim::{Recording, SimDisk, SimRandom, Survivors};

use crate::engine;
use crate::model::Model;
use crate::testkit::tree::{Compare, Tree};
use crate::testkit::{DEBIAN_12, FEATURE_SETS, FeatureSet, Rng, e2fsck, mke2fs, recover_journal};

/// What was there when a sync returned.
struct Synced {
    tree: Tree,
    /// Commits up to then: more than one since the sync before, and states between the two are possible.
    commits: u64,
}

/// Runs random operations with a sync now and then, recording all that reaches the disk, and cuts the power at `cuts`
/// instants.
fn power_cuts(set: &FeatureSet, seed: u64, syncs: u64, cuts: usize, mirrored: bool) {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    mke2fs(&image, 48 << 20, set).expect("mke2fs");
    let disk = Arc::new(SimDisk::load(&image).expect("loaded"));
    let recording = Recording::new();
    let recorded: Arc<dyn Disk> = recording.wrap(disk).expect("wrapped");

    let mut synced: Vec<Synced> = Vec::new();
    {
        let volume = engine::volume(vec![recorded], set.block_size);
        let fs =
            engine::open_master_with(volume, engine::simulated(seed)).expect("the engine opens");
        fs.set_mirrored(mirrored).expect("set");
        let commits = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&commits);
        fs.on_commit(Box::new(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        }));
        let mut rng = Rng(seed);
        let mut model = Model::new(&fs);
        model.max_bytes = 200_000;
        for mark in 0..syncs {
            for _ in 0..rng.below(12) {
                model.step(&fs, &mut rng);
                if rng.chance(10) {
                    fs.journal()
                        .checkpoint(rng.below(60) as usize)
                        .expect("checkpoint");
                }
            }
            fs.sync().expect("synced");
            recording.mark(mark);
            synced.push(Synced {
                tree: engine::tree(&fs).expect("listed"),
                commits: commits.load(Ordering::Relaxed),
            });
        }
        fs.close().expect("closed");
    }

    let random = SimRandom::new(seed);
    let events = recording.len();
    for cut in 0..cuts {
        // The first and the last instants always, others as the seed has it.
        let n = match cut {
            0 => events,
            1 => 0,
            _ => random.below(events as u64 + 1) as usize,
        };
        let survivors = match random.below(4) {
            0 => Survivors::None,
            1 => Survivors::All,
            _ => Survivors::Random(&random),
        };
        let disk = recording.image_at(n, survivors).remove(0);
        let what = format!(
            "{}, seed {seed}, cut after {n} of {events} events",
            set.name
        );
        let last = recording.marks_before(n).last().copied();
        check_cut(&what, dir.path(), set, &disk, last, &synced, mirrored);
    }
}

fn check_cut(
    what: &str,
    dir: &Path,
    set: &FeatureSet,
    disk: &Arc<SimDisk>,
    last: Option<u64>,
    synced: &[Synced],
    mirrored: bool,
) {
    // As e2fsck recovers it.
    let theirs = dir.join("theirs");
    disk.save(&theirs).expect("saved");
    recover_journal(&theirs).unwrap_or_else(|e| panic!("{what}: {e}"));
    e2fsck(&theirs).unwrap_or_else(|e| panic!("{what}, recovered by e2fsck: {e}"));
    let their_tree = engine::tree(&engine::open_read_only(&theirs, set.block_size))
        .unwrap_or_else(|e| panic!("{what}: {e}"));

    // As we recover it.
    let volume = engine::volume(vec![Arc::clone(disk) as Arc<dyn Disk>], set.block_size);
    let fs = engine::open_master(volume).unwrap_or_else(|e| panic!("{what}: {e}"));
    let tree = engine::tree(&fs).unwrap_or_else(|e| panic!("{what}: {e}"));
    fs.close().unwrap_or_else(|e| panic!("{what}: {e}"));
    let ours = dir.join("ours");
    disk.save(&ours).expect("saved");
    e2fsck(&ours).unwrap_or_else(|e| panic!("{what}, recovered by us: {e}"));
    for path in [&theirs, &ours] {
        std::fs::remove_file(path).expect("removed");
    }

    // What was synced is there; what came after it, wholly or not at all. Overwrites that went straight home may be there
    // before their transaction, so contents are compared where all went through the log.
    let same = same_trees(&their_tree, &tree);
    let Some(last) = last.map(|mark| mark as usize) else {
        return;
    };
    let next = synced.get(last + 1);
    if !same {
        // A commit block of which the power cut left the first sector: for us it is whole, for e2fsck it never was.
        let few = next.is_some_and(|next| next.commits == synced[last].commits + 1);
        assert!(
            !few || same_trees(&their_tree, &synced[last].tree),
            "{what}: e2fsck's state"
        );
    }
    if !mirrored || next.is_some_and(|next| next.commits > synced[last].commits + 1) {
        return;
    }
    let before = synced[last].tree.differences(&tree, Compare::ALL);
    let after = next.map(|next| next.tree.differences(&tree, Compare::ALL));
    assert!(
        before.is_empty() || after.as_ref().is_some_and(Vec::is_empty),
        "{what}: neither the state of sync {last}:\n{}\nnor the next:\n{}",
        before.join("\n"),
        after.unwrap_or_default().join("\n"),
    );
}

fn same_trees(one: &Tree, other: &Tree) -> bool {
    one.differences(other, Compare::ALL).is_empty()
}

#[test]
#[ignore = "takes minutes: many seeds, every feature set"]
fn power_cuts_at_length() {
    // The simulated clock does not move, so a volume with MMP would be in use for ever.
    let sets: Vec<&FeatureSet> = FEATURE_SETS
        .iter()
        .filter(|set| set.name != "quota" && set.name != "mmp")
        .collect();
    for seed in 1000..1048_u64 {
        let set = sets[seed as usize % sets.len()];
        eprintln!("seed {seed}: {}", set.name);
        power_cuts(set, seed, 25, 40, seed % 3 != 0);
    }
}

#[test]
fn a_power_cut_loses_nothing_that_was_synced() {
    let named = |name: &str| FEATURE_SETS.iter().find(|set| set.name == name);
    for (seed, name) in ["debian-12", "debian-12-1k", "upstream-1k", "gdt-csum-1k"]
        .iter()
        .enumerate()
    {
        let set = named(name).expect("a feature set");
        power_cuts(set, seed as u64, 12, 25, true);
    }
    power_cuts(&DEBIAN_12, 50, 12, 25, false);
}
