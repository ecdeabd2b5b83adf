//! File systems that others made become volumes, are changed and replicated, and are given back.

use std::time::Duration;

use crate::cluster::{Cluster, VOLUME};
use crate::copies::{assert_equal_blocks, kernel_tree};
use crate::sizes::choose;
use crate::testkit::{
    Compare, FEATURE_SETS, FeatureSet, LoopMount, e2fsck, mke2fs, mke2fs_with, mutate_tree,
    need_fuse, need_loop, populate_tree, run, tree_digest,
};

fn adopted(set: &FeatureSet) {
    let mut cluster = Cluster::local();
    let image = cluster.path("part0");
    mke2fs(&image, 96 << 20, set).unwrap();
    if set.mounts {
        let mount = LoopMount::new(&image).unwrap();
        populate_tree(mount.dir(), 21, 200).unwrap();
        mount.unmount().unwrap();
        e2fsck(&image).unwrap();
    }
    let part = image.to_str().unwrap();
    cluster
        .alpha
        .ok(&["volume", "adopt", VOLUME, "--part", part]);
    cluster.mount_master();
    if !set.mounts {
        populate_tree(&cluster.alpha.mnt(), 21, 200).unwrap();
    }
    mutate_tree(&cluster.alpha.mnt(), 22, 150).unwrap();
    cluster.mirror(&[]);
    cluster.insync();
    cluster.mount_mirror();
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(10));
    mutate_tree(&cluster.alpha.mnt(), 23, 150).unwrap();
    let shown = cluster.assert_same_trees();
    cluster.verify();
    cluster.stop();
    let [master, mirror] = cluster.parts();
    for part in [&master, &mirror] {
        e2fsck(part).unwrap();
        if set.mounts {
            kernel_tree(part).assert_same(&shown, Compare::ALL);
        }
    }
    assert_equal_blocks(&master, &mirror);
    if set.mounts {
        // Given back: the kernel goes on with it.
        let mount = LoopMount::new(&master).unwrap();
        mutate_tree(mount.dir(), 24, 100).unwrap();
        mount.unmount().unwrap();
        e2fsck(&master).unwrap();
    }
}

/// Sets that are tried: those that differ most, or all.
fn tried() -> Vec<&'static FeatureSet> {
    let some = [
        "debian-12",
        "upstream-1k",
        "no-64bit-gdt-csum",
        "meta-bg-no-64bit",
        "mmp",
        "inode-128",
    ];
    let all = choose(false, true);
    FEATURE_SETS
        .iter()
        .filter(|set| set.mounts && (all || some.contains(&set.name)))
        .collect()
}

#[test]
fn what_the_kernel_filled_is_adopted_changed_replicated_and_given_back() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    for set in tried() {
        eprintln!("feature set {}", set.name);
        adopted(set);
    }
}

#[test]
fn a_volume_that_the_kernel_changed_meanwhile_is_compared() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    let mut cluster = Cluster::local();
    cluster.replicated(64, &[]);
    populate_tree(&cluster.alpha.mnt(), 25, 60).unwrap();
    cluster.assert_same_trees();
    cluster.stop();
    let [master, mirror] = cluster.parts();
    let mount = LoopMount::new(&master).unwrap();
    mutate_tree(mount.dir(), 26, 60).unwrap();
    mount.sync().unwrap();
    let changed = tree_digest(mount.dir()).unwrap();
    mount.unmount().unwrap();
    cluster.start();
    cluster.insync();
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(10));
    cluster.verify();
    tree_digest(&cluster.beta.mnt())
        .unwrap()
        .assert_same(&changed, Compare::VISIBLE);
    cluster.stop();
    assert_equal_blocks(&master, &mirror);
}

#[test]
fn what_can_not_be_written_safely_is_refused_by_name() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    let cluster = Cluster::local();
    let features = [
        ("bigalloc", "extent,bigalloc"),
        ("inline_data", "inline_data"),
        ("casefold", "casefold"),
    ];
    for (name, features) in features {
        let image = cluster.path(name);
        mke2fs_with(&image, 64 << 20, features, 4096).unwrap();
        let before = std::fs::read(&image).unwrap();
        let part = image.to_str().unwrap();
        let out = cluster
            .alpha
            .run(&["volume", "adopt", name, "--part", part]);
        let mnt = cluster.alpha.mnt();
        let said = if out.status.success() {
            // Accepted for reading: a mount has to say that it is not read-write.
            cluster
                .alpha
                .refused(&["mount", name, mnt.to_str().unwrap()])
                .1
        } else {
            crate::testkit::said(&out)
        };
        assert!(said.contains(name), "{name}: {said}");
        assert!(
            std::fs::read(&image).unwrap() == before,
            "{name}: it was written to"
        );
    }
    // A bit that nobody knows.
    let image = cluster.path("unknown");
    mke2fs_with(&image, 64 << 20, "", 4096).unwrap();
    run(
        "debugfs",
        &[
            "-w".as_ref(),
            "-R".as_ref(),
            "feature FEATURE_I30".as_ref(),
            image.as_os_str(),
        ],
    )
    .unwrap();
    let part = image.to_str().unwrap();
    let (_, said) = cluster
        .alpha
        .refused(&["volume", "adopt", "unknown", "--part", part]);
    assert!(
        said.contains("0x40000000") || said.contains("40000000") || said.contains("30"),
        "{said}"
    );
}
