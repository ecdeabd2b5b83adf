//! Images that the engine writes, judged by e2fsck and by the kernel.

use lockstepfs::fs::{FallocMode, New};

use crate::engine;
use crate::model::Model;
use crate::testkit::{
    self, Compare, DEBIAN_12, FEATURE_SETS, FeatureSet, LoopMount, Rng, e2fsck, mke2fs, tree_digest,
};

/// Random operations with a commit or a checkpoint now and then; the image is closed, checked, opened anew, and in the end
/// shown to the kernel.
fn random_operations(set: &FeatureSet, seed: u64, rounds: usize, steps: usize, mirrored: bool) {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    mke2fs(&image, 64 << 20, set).expect("mke2fs");
    let mut rng = Rng(seed);
    let mut model = None;
    let name = set.name;
    let mut ours = None;
    for round in 0..rounds {
        let fs = engine::open_image(&image, set.block_size);
        fs.set_mirrored(mirrored).expect("set");
        let model = model.get_or_insert_with(|| Model::new(&fs));
        let mut history = Vec::new();
        for step in 0..steps {
            let before = history.len();
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                history.push(model.step(&fs, &mut rng));
                match rng.below(40) {
                    0 => drop(fs.sync().expect("synced")),
                    1 => drop(
                        fs.commit_step(std::time::Duration::MAX / 2)
                            .expect("stepped"),
                    ),
                    _ => {}
                }
            }));
            if let Err(panic) = done {
                eprintln!("{name}, seed {seed}, round {round}, step {step}; before it:");
                for line in &history[before.saturating_sub(12)..] {
                    eprintln!("  {line}");
                }
                std::panic::resume_unwind(panic);
            }
        }
        model.assert_same(&fs);
        ours = Some(engine::tree(&fs).expect("listed"));
        fs.close().expect("closed");
        drop(fs);
        e2fsck(&image).unwrap_or_else(|e| panic!("{name}, seed {seed}, round {round}: {e}"));
    }
    if set.mounts && testkit::need_loop() {
        let mount = LoopMount::read_only(&image).expect("the kernel mounts it");
        let kernel = tree_digest(mount.dir()).expect("the kernel's tree");
        drop(mount);
        // Once read, the kernel calls blocks data that were allocated ahead.
        let compare = Compare {
            holes: false,
            ..Compare::ALL
        };
        ours.expect("there was a round")
            .assert_same(&kernel, compare);
    }
}

#[test]
fn random_operations_agree_with_a_model_and_leave_a_clean_volume() {
    for seed in 0..4 {
        random_operations(&DEBIAN_12, seed, 3, 400, seed % 2 == 1);
    }
}

#[test]
fn random_operations_on_every_feature_set() {
    let writable = |set: &&FeatureSet| set.name != "quota";
    for (seed, set) in FEATURE_SETS.iter().filter(writable).enumerate() {
        random_operations(set, 100 + seed as u64, 2, 250, seed % 2 == 0);
    }
}

#[test]
fn random_operations_on_a_volume_that_is_full_most_of_the_time() {
    for (seed, name) in ["debian-12-1k", "debian-12", "no-csum", "inode-128"]
        .iter()
        .enumerate()
    {
        let set = FEATURE_SETS
            .iter()
            .find(|set| set.name == *name)
            .expect("a feature set");
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        mke2fs(&image, 9 << 20, set).expect("mke2fs");
        let mut rng = Rng(seed as u64 + 900);
        let fs = engine::open_image(&image, set.block_size);
        fs.set_mirrored(seed % 2 == 0).expect("set");
        let mut model = Model::new(&fs);
        // Takes most of the space for as long as the volume is open.
        let new = New {
            mode: 0o100_600,
            ..New::default()
        };
        let ballast = fs.create(engine::ROOT, b"ballast", &new).expect("created");
        fs.hold(ballast.ino);
        let bytes = fs.statfs().expect("statfs").bfree * u64::from(set.block_size) - (400 << 10);
        fs.fallocate(
            ballast.ino,
            FallocMode::Allocate { keep_size: true },
            0,
            bytes,
        )
        .expect("allocated");
        fs.unlink(engine::ROOT, b"ballast").expect("removed");
        model.tight = true;
        model.max_bytes = 2_000_000;
        for step in 0..1500 {
            let what = model.step(&fs, &mut rng);
            if step % 100 == 99 {
                eprintln!("{name}, step {step}: {what}, {} refused", model.refused);
                model.assert_same(&fs);
            }
        }
        assert!(model.refused > 20, "{name}: it was full");
        model.assert_same(&fs);
        fs.close().expect("closed");
        drop(fs);
        e2fsck(&image).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}
