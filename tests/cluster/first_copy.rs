//! A first copy, made while the master is written to, ends, and both mounts show the same tree.

use std::time::Duration;

use crate::cluster::{Cluster, VOLUME};
use crate::copies::{Layout, assert_equal_blocks};
use crate::sizes::{MIB, choose};
use crate::testkit::{e2fsck, mutate_tree, need_fuse, need_netns, need_tool, populate_tree};
use crate::writer::Writer;

#[test]
fn a_file_written_on_the_master_is_read_on_the_mirror() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::local();
    cluster.volume(64, &[]);
    std::fs::write(cluster.alpha.path("before"), b"before the mirror").unwrap();
    cluster.mirror(&[]);
    cluster.insync();
    cluster.mount_mirror();
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(10));
    std::fs::write(cluster.alpha.path("after"), b"after the mirror").unwrap();
    cluster.settle();
    let read = |name: &str| std::fs::read(cluster.beta.path(name)).unwrap();
    assert_eq!(read("before"), b"before the mirror");
    assert_eq!(read("after"), b"after the mirror");
    cluster.assert_same_trees();
    cluster.verify();
    cluster.stop();
    let [master, mirror] = cluster.parts();
    e2fsck(&master).unwrap();
    e2fsck(&mirror).unwrap();
    assert_equal_blocks(&master, &mirror);
}

#[test]
fn a_first_copy_under_writers_ends_and_is_equal() {
    if !(need_fuse() && need_netns() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::linked();
    cluster.volume(choose(400, 2048), &[]);
    let tree = cluster.alpha.path("tree");
    std::fs::create_dir(&tree).unwrap();
    populate_tree(&tree, 1, choose(3000, 20_000)).unwrap();
    let writer = Writer::start(cluster.alpha.path("writer"), 2);
    writer.wait_for(20, Duration::from_secs(30));
    cluster.mirror(&[]);
    // More changes, all over the tree, while it is being copied.
    mutate_tree(&tree, 3, choose(600, 4000)).unwrap();
    cluster.insync();
    cluster.mount_mirror();
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(10));
    writer.wait_for(50, Duration::from_secs(30));
    let acknowledged = writer.stop();
    let shown = cluster.assert_same_trees();
    assert!(shown.0.len() > choose(3000, 20_000) / 2);
    acknowledged.assert_kept(&cluster.alpha.path("writer"));
    acknowledged.assert_kept(&cluster.beta.path("writer"));
    cluster.verify();
    // And goes on.
    mutate_tree(&tree, 4, choose(600, 4000)).unwrap();
    cluster.assert_same_trees();
    cluster.verify();
    cluster.stop();
    let [master, mirror] = cluster.parts();
    e2fsck(&master).unwrap();
    e2fsck(&mirror).unwrap();
    assert_equal_blocks(&master, &mirror);
}

#[test]
fn a_first_copy_sends_what_is_allocated_and_no_more() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::local();
    cluster.volume(1024, &[]);
    populate_tree(&cluster.alpha.mnt(), 5, 500).unwrap();
    cluster.mirror(&[]);
    cluster.insync();
    let sent = cluster.bytes_bulk();
    cluster.stop();
    let [master, _] = cluster.parts();
    let allocated = Layout::of(&master).allocated_bytes();
    assert!(
        sent <= allocated + allocated / 10 + MIB,
        "{sent} bytes sent, {allocated} allocated"
    );
    assert!(
        sent >= 10 * MIB,
        "{sent} bytes sent: the counter stands still"
    );
}
