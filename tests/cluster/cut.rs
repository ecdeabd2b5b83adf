//! The cable is cut for some seconds while files are written: writers do not notice, and the mirror catches up by replay.

use std::time::Duration;

use crate::cluster::{Cluster, VOLUME};
use crate::testkit::{need_fuse, need_netns, need_tool};
use crate::writer::Writer;

/// An fsync that takes longer than this waited for something other than a busy disk.
const UNAFFECTED: Duration = Duration::from_secs(3);

#[test]
fn a_cut_link_is_linkdown_then_insync_by_replay() {
    if !(need_fuse() && need_netns() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::linked();
    // Room for what is written meanwhile: otherwise it cracks, which is another test.
    cluster.replicated(800, &["--buffer", "256M"]);
    let pause = Duration::from_millis(10);
    let writer = Writer::paced(cluster.alpha.path("writer"), 31, pause);
    writer.wait_for(50, Duration::from_secs(30));
    let bulk = cluster.bytes_bulk();
    let hosts = cluster.hosts.as_ref().unwrap();
    hosts.cut().unwrap();
    cluster.alpha.wait(VOLUME, "beta", "LINKDOWN", 20);
    // Never a stale INSYNC: not in status, not for those who wait, on neither side.
    let (status, said) =
        cluster
            .alpha
            .refused(&["wait", VOLUME, "beta", "INSYNC", "--timeout", "1"]);
    assert_eq!(status, 4, "{said}");
    cluster.beta.wait(VOLUME, "alpha", "LINKDOWN", 20);
    writer.wait_for(50, Duration::from_secs(30));
    let mirror = cluster.alpha.mirror(VOLUME, "beta");
    assert!(mirror["buffer_used"].as_u64().unwrap() > 0, "{mirror}");
    assert!(mirror["lag_s"].as_f64().unwrap() > 0.0, "{mirror}");
    hosts.mend().unwrap();
    cluster.insync();
    assert_eq!(cluster.bytes_bulk(), bulk, "replay, not a copy");
    let acknowledged = writer.stop();
    assert!(
        acknowledged.worst < UNAFFECTED,
        "an operation took {:?}",
        acknowledged.worst
    );
    cluster.assert_same_trees();
    acknowledged.assert_kept(&cluster.beta.path("writer"));
    cluster.verify();
    cluster.end_clean();
}

#[test]
fn a_mirror_that_stops_answering_is_linkdown_and_control_goes_on() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let cluster = Cluster::local();
    cluster.replicated(128, &[]);
    cluster.beta.freeze(true);
    let writer = Writer::start(cluster.alpha.path("writer"), 32);
    cluster.alpha.wait(VOLUME, "beta", "LINKDOWN", 30);
    writer.wait_for(30, Duration::from_secs(30));
    cluster.beta.freeze(false);
    cluster.insync();
    let acknowledged = writer.stop();
    cluster.assert_same_trees();
    acknowledged.assert_kept(&cluster.beta.path("writer"));
    cluster.verify();
    cluster.end_clean();
}
