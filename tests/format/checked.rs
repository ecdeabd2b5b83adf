//! The engine's own check against e2fsck: nothing is found where e2fsck is content, and what e2fsck finds is found.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use lockstepfs::fs::check::{self, Options, Report};
use lockstepfs::io::Disk;
use lockstepfs::io::sim::SimDisk;

use crate::engine;
use crate::testkit::{
    self, FEATURE_SETS, FeatureSet, LEGACY, LoopMount, e2fsck, mke2fs, mutate_tree, populate_tree,
};

/// The check of an image file, through its journal.
pub fn checked(image: &Path, block_size: u32) -> Report {
    let volume = engine::volume(vec![engine::file_disk(image, true)], block_size);
    check::volume(&volume, &Options::default())
}

/// Fails unless the check finds nothing.
pub fn assert_clean(name: &str, report: &Report) {
    assert!(
        report.is_clean(),
        "{name}: {:#?}, {:?}",
        report.findings,
        report.unchecked
    );
}

#[test]
fn nothing_is_found_on_what_mke2fs_made_and_the_kernel_filled() {
    if !testkit::need_loop() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    for set in FEATURE_SETS.iter().chain(LEGACY) {
        let image = dir.path().join(set.name);
        mke2fs(&image, 96 << 20, set).expect("mke2fs");
        assert_clean(set.name, &checked(&image, set.block_size));
        if set.mounts {
            let mount = LoopMount::new(&image).expect("mount");
            populate_tree(mount.dir(), 11, 250).expect("populate");
            mutate_tree(mount.dir(), 12, 200).expect("changes");
            drop(mount);
        }
        e2fsck(&image).unwrap_or_else(|e| panic!("{}: {e}", set.name));
        let report = checked(&image, set.block_size);
        assert_clean(set.name, &report);
        assert!(
            report.inodes > 10 && report.blocks > 100 && report.directories > 0,
            "{report:?}"
        );
        std::fs::remove_file(&image).expect("removed");
    }
}

#[test]
fn a_log_that_the_kernel_left_is_checked_as_it_would_be_after_replay_and_nothing_is_written() {
    if !testkit::need_loop() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    for set in FEATURE_SETS
        .iter()
        .filter(|set| set.mounts && set.name != "mmp")
    {
        let image = dir.path().join(set.name);
        let copy = dir.path().join("copy");
        mke2fs(&image, 64 << 20, set).expect("mke2fs");
        let mount = LoopMount::with_options(&image, "commit=300").expect("mount");
        populate_tree(mount.dir(), 9, 60).expect("populate");
        // A commit. Syncing the whole mount would also write home what is in the log.
        let last = File::create(mount.dir().join("last")).expect("created");
        last.sync_all().expect("synced");
        std::fs::copy(&image, &copy).expect("copied");
        drop((last, mount));
        let before = SimDisk::load(&copy).expect("loaded");
        let through_log = checked(&copy, set.block_size);
        assert_clean(set.name, &through_log);
        let after = SimDisk::load(&copy).expect("loaded");
        assert_eq!(before.first_difference(&after), None, "{}", set.name);
        // At home is the volume that mke2fs made, or some of what came after: so it was the log that was looked at.
        let disk = Arc::new(before) as Arc<dyn Disk>;
        let home = check::run(
            &*engine::volume(vec![disk], set.block_size),
            &Options::default(),
        );
        let less = home.inodes < through_log.inodes;
        assert!(less || !home.is_clean(), "{}: {home:?}", set.name);
        std::fs::remove_file(&image).expect("removed");
    }
}

/// A directory deep and wide enough for an index of several levels, where blocks are small.
#[test]
fn large_directories_of_the_kernel_and_of_e2fsck_are_sound() {
    if !testkit::need_loop() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["debian-12-1k", "large-dir", "no-csum", "gdt-csum-1k"] {
        let set = FEATURE_SETS
            .iter()
            .find(|set| set.name == name)
            .expect("a set");
        let image = dir.path().join(name);
        let more = FeatureSet {
            extra: &["-N", "24000"],
            ..*set
        };
        mke2fs(&image, 96 << 20, &more).expect("mke2fs");
        let mount = LoopMount::new(&image).expect("mount");
        let crowd = mount.path("crowd");
        std::fs::create_dir(&crowd).expect("made");
        for n in 0..20_000 {
            let name = format!("{n}-a-name-that-is-long-enough-to-fill-blocks-soon");
            std::fs::File::create(crowd.join(name)).expect("created");
        }
        drop(mount);
        assert_clean(name, &checked(&image, set.block_size));
        // Another program's index over the same names.
        testkit::run_for(120, "e2fsck", &["-fyD", &image.to_string_lossy()]).expect("e2fsck");
        assert_clean(name, &checked(&image, set.block_size));
        std::fs::remove_file(&image).expect("removed");
    }
}
