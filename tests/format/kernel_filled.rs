//! Images that the kernel filled.

use crate::engine;
use crate::testkit::{
    self, Compare, FEATURE_SETS, FeatureSet, LEGACY, LoopMount, mke2fs, populate_tree, tree_digest,
};

fn filled(set: &FeatureSet, dir: &std::path::Path) -> std::path::PathBuf {
    let image = dir.join(set.name);
    mke2fs(&image, 96 << 20, set).expect("mke2fs");
    let mount = LoopMount::new(&image).expect("mount");
    populate_tree(mount.dir(), 7, 120).expect("populate");
    drop(mount);
    image
}

#[test]
fn the_engine_and_the_kernel_see_the_same_tree_on_every_feature_set() {
    if !testkit::need_loop() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    for set in FEATURE_SETS.iter().chain(LEGACY).filter(|set| set.mounts) {
        let image = filled(set, dir.path());
        let mount = LoopMount::read_only(&image).expect("mount");
        let kernel = tree_digest(mount.dir()).expect("the kernel's tree");
        let space = rustix::fs::statvfs(mount.dir()).expect("statvfs");
        drop(mount);
        let fs = engine::open_read_only(&image, set.block_size);
        let ours = fs.statfs().expect("statfs");
        assert_eq!(
            (ours.blocks, ours.bfree, ours.bavail, ours.files, ours.ffree),
            (
                space.f_blocks,
                space.f_bfree,
                space.f_bavail,
                space.f_files,
                space.f_ffree
            ),
            "{}",
            set.name
        );
        let ours = engine::tree(&fs).unwrap_or_else(|e| panic!("{}: {e}", set.name));
        eprintln!("{}: {} names", set.name, ours.0.len());
        kernel.assert_same(&ours, Compare::ALL);
        std::fs::remove_file(&image).expect("removed");
    }
}

#[test]
fn a_journal_that_the_kernel_left_dirty_is_replayed_in_memory_and_in_place() {
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
        populate_tree(mount.dir(), 9, 40).expect("populate");
        // Makes all of it durable, the metadata in the journal only; the copy is what a power cut leaves.
        let top = std::fs::File::open(mount.dir()).expect("the top");
        rustix::fs::syncfs(&top).expect("syncfs");
        let kernel = tree_digest(mount.dir()).expect("the kernel's tree");
        std::fs::copy(&image, &copy).expect("copied");
        drop(top);
        drop(mount);

        let fs = engine::open_read_only(&copy, set.block_size);
        engine::tree(&fs)
            .unwrap_or_else(|e| panic!("{}: {e}", set.name))
            .assert_same(&kernel, Compare::ALL);
        drop(fs);

        let fs = engine::open_image(&copy, set.block_size);
        engine::tree(&fs)
            .unwrap_or_else(|e| panic!("{}: {e}", set.name))
            .assert_same(&kernel, Compare::ALL);
        fs.close().expect("closed");
        drop(fs);
        testkit::e2fsck(&copy).unwrap_or_else(|e| panic!("{}: {e}", set.name));
        std::fs::remove_file(&image).expect("removed");
    }
}
