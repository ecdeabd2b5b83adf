//! The cases of lockstep-semantics(7), "Who is the master", that somebody has to force, or to untangle: copies that are no
//! whole state, a clone, two promotions, what was given up. (The list of all cases is at the head of `roles`.)

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, VOLUME, free_address, write_durably};
use crate::copies::{copy_of, recovered_by_kernel};
use crate::daemon::Node;
use crate::reconnect::copy_dir;
use crate::roles::{
    Three, assert_role, end_swapped, end_well, end_with, give_up_first, insync, part, settle,
};
use crate::testkit::{LoopMount, Rng, e2fsck, need_fuse, need_loop, need_netns, wait_until};
use crate::writer::Writer;

#[track_caller]
fn linkdown(mirror: &Node, master: &str) {
    let down = wait_until(Duration::from_secs(30), || {
        mirror.mirror(VOLUME, master)["state"] == "LINKDOWN"
    });
    assert!(down, "{}", mirror.ok(&["status"]));
}

#[track_caller]
fn failed(node: &Node) -> String {
    let refused = wait_until(Duration::from_secs(30), || {
        node.volume(VOLUME)["condition"] == "failed"
    });
    let shown = node.volume(VOLUME).to_string();
    assert!(refused, "{shown}");
    shown
}

#[track_caller]
fn promote(node: &Node, more: &[&str]) {
    node.ok(&[&["promote", VOLUME], more].concat());
    node.wait_mounted(VOLUME, Duration::from_secs(20));
    assert_role(node, "master");
}

#[test]
fn half_a_first_copy_is_promoted_by_force_and_repaired() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let cluster = Cluster::linked();
    cluster.volume(256, &[]);
    fill(&cluster, 0);
    cluster.mirror(&["--rate", "20M"]);
    cluster.alpha.wait(VOLUME, "beta", "REPLICATE", 30);
    promoted_half_way(
        cluster,
        0,
        "of 65536 on were never copied and are lost",
        Kept::Promoted,
    );
}

#[test]
fn half_a_repair_is_promoted_by_force_and_repaired() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let cluster = Cluster::linked();
    cluster.volume(256, &["--buffer", "8M"]);
    fill(&cluster, 0);
    cluster.mirror(&["--resync", "direct"]);
    cluster.insync();
    cluster.alpha.ok(&["mirror", "pause", VOLUME, "beta"]);
    fill(&cluster, 100);
    // Their inodes lie before what is copied by then, their blocks behind it.
    for n in 0..40 {
        let dir = cluster.alpha.path(format!("new-{n}"));
        std::fs::create_dir(&dir).unwrap();
        write_durably(&dir.join("file"), b"new");
    }
    let bulk = cluster.bytes_bulk();
    cluster
        .alpha
        .ok(&["mirror", "set", VOLUME, "beta", "--rate", "20M"]);
    cluster.alpha.ok(&["mirror", "continue", VOLUME, "beta"]);
    cluster.alpha.wait(VOLUME, "beta", "OUTOFSYNC", 30);
    promoted_half_way(
        cluster,
        bulk,
        "no state that the master ever had",
        Kept::Whole,
    );
}

/// Files for more than a second at the rates of these tests; written over in place, if they are there.
fn fill(cluster: &Cluster, seed: u8) {
    for n in 0..24 {
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        let file = options.open(cluster.alpha.path(format!("f{n}"))).unwrap();
        file.write_all_at(&vec![seed + n; 4 << 20], 0).unwrap();
        file.sync_all().unwrap();
    }
}

/// Which copy the operator keeps, when the master comes back and has everything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    Whole,
    Promoted,
}

/// The master dies in the middle of a copy. What is there of it is made a file system again, if that is asked for; nothing
/// follows it by itself.
fn promoted_half_way(mut cluster: Cluster, before: u64, loss: &str, kept: Kept) {
    let far = wait_until(Duration::from_secs(30), || {
        cluster.bytes_bulk() - before > 40 << 20
    });
    assert!(far);
    cluster.alpha.kill();
    linkdown(&cluster.beta, "alpha");
    let (status, said) = cluster.beta.refused(&["promote", VOLUME]);
    assert!(status == 3 && said.contains(loss), "{said}");
    let out = cluster.beta.run(&["promote", VOLUME, "--force"]);
    let text = crate::testkit::said(&out);
    assert!(out.status.success() && text.contains(loss), "{text}");
    cluster.mount_mirror();
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(20));
    assert_role(&cluster.beta, "master");
    // What is there can be read, and written.
    for entry in std::fs::read_dir(cluster.beta.mnt()).unwrap() {
        let path = entry.unwrap().path();
        let read = !path.is_file() || std::fs::read(&path).is_ok();
        assert!(read, "{}", path.display());
    }
    write_durably(&cluster.beta.path("after"), b"repaired");
    let ours = part(&cluster.beta);
    cluster.beta.stop();
    e2fsck(&ours).unwrap();
    recovered_by_kernel(&copy_of(&ours, &cluster.path("copy")));
    cluster.beta.start();
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(20));
    // The old master has a copy that is whole, and gives up none of it.
    cluster.alpha.start();
    let shown = failed(&cluster.alpha);
    for part in ["promoted half made", "--discard alpha", "--discard beta"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    if kept == Kept::Promoted {
        give_up_first(&cluster);
        return end_swapped(cluster);
    }
    cluster
        .beta
        .ok(&["rejoin", VOLUME, "alpha", "--discard", "beta"]);
    cluster.alpha.wait_mounted(VOLUME, Duration::from_secs(20));
    insync(&cluster.alpha, &cluster.beta);
    assert_eq!(
        std::fs::read(cluster.alpha.path("f3")).unwrap(),
        vec![103; 4 << 20]
    );
    assert!(!cluster.beta.path("after").exists());
    end_with(cluster);
}

#[test]
fn an_old_master_that_does_not_know_where_it_differs_is_compared() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = Cluster::linked();
    cluster.replicated(256, &["--buffer", "8M"]);
    fill(&cluster, 0);
    cluster.settle();
    cluster.alpha.ok(&["mirror", "pause", VOLUME, "beta"]);
    // More than the log holds; and the map that has the rest is lost with the power.
    fill(&cluster, 100);
    let cracked = wait_until(Duration::from_secs(5), || {
        cluster.alpha.mirror(VOLUME, "beta")["cracked"] == true
    });
    assert!(cracked, "{}", cluster.alpha.ok(&["status"]));
    cluster.alpha.kill();
    let facts = cluster.alpha.state().join("volumes").join(VOLUME);
    std::fs::remove_file(facts.join("map.beta")).unwrap();
    promote(&cluster.beta, &[]);
    write_durably(&cluster.beta.path("by-beta"), b"beta");
    cluster.alpha.start();
    let shown = failed(&cluster.alpha);
    assert!(shown.contains("is not recorded any more"), "{shown}");
    assert!(shown.contains("--discard alpha"), "{shown}");
    give_up_first(&cluster);
    cluster.alpha.wait_mounted(VOLUME, Duration::from_secs(20));
    settle(&cluster.beta, &cluster.alpha, ".settled");
    assert_eq!(std::fs::read(cluster.alpha.path("f3")).unwrap()[0], 3);
    end_swapped(cluster);
}

#[test]
fn a_copy_changed_from_outside_is_promoted_by_force_only() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = Cluster::linked();
    cluster.replicated(128, &[]);
    write_durably(&cluster.alpha.path("file"), b"before");
    cluster.settle();
    let theirs = part(&cluster.beta);
    cluster.alpha.stop();
    cluster.beta.stop();
    let mount = LoopMount::new(&theirs).unwrap();
    std::fs::write(mount.path("by-the-kernel"), vec![3; 100_000]).unwrap();
    mount.unmount().unwrap();
    cluster.beta.start();
    let (status, said) = cluster.beta.refused(&["promote", VOLUME]);
    assert_eq!(status, 3);
    assert!(said.contains("changed from outside"), "{said}");
    promote(&cluster.beta, &["--force"]);
    assert_eq!(
        std::fs::read(cluster.beta.path("by-the-kernel")).unwrap(),
        [3; 100_000]
    );
    write_durably(&cluster.beta.path("after"), b"text");
    // What the kernel wrote is in no log: the old master is compared with it.
    cluster.alpha.start();
    insync(&cluster.beta, &cluster.alpha);
    cluster.alpha.wait_mounted(VOLUME, Duration::from_secs(20));
    settle(&cluster.beta, &cluster.alpha, ".settled");
    assert_eq!(
        std::fs::read(cluster.alpha.path("by-the-kernel")).unwrap(),
        [3; 100_000]
    );
    end_swapped(cluster);
}

#[test]
fn several_parts_change_roles() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = Cluster::linked();
    let mut args = vec!["volume".to_string(), "create".into(), VOLUME.into()];
    for (n, size) in ["96M", "40M", "64M"].iter().enumerate() {
        let path = cluster.path(&format!("part{n}"));
        args.extend(["--part".to_string(), format!("{}={size}", path.display())]);
    }
    cluster.alpha.ok(&args);
    cluster.mount_master();
    cluster.mirror(&[]);
    cluster.insync();
    cluster.mount_mirror();
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(10));
    std::fs::write(cluster.alpha.path("large"), Rng(1).bytes(110 << 20)).unwrap();
    let writer = Writer::start(cluster.alpha.path("kept"), 1);
    writer.wait_for(60, Duration::from_secs(60));
    let kept = writer.stop();
    cluster.settle();
    // What the old master has alone lies in all of its parts.
    cluster.hosts.as_ref().unwrap().cut().unwrap();
    cluster.alpha.wait(VOLUME, "beta", "LINKDOWN", 30);
    for at in (0..110 << 20).step_by(10 << 20) {
        let (name, bytes) = ("large", vec![7; 100_000]);
        write_at(&cluster.alpha.mnt(), &Written { name, at, bytes });
    }
    let writer = Writer::start(cluster.alpha.path("loose"), 2);
    writer.wait_for(60, Duration::from_secs(60));
    cluster.alpha.kill();
    drop(writer.killed());
    cluster.hosts.as_ref().unwrap().mend().unwrap();
    promote(&cluster.beta, &[]);
    kept.assert_kept(&cluster.beta.path("kept"));
    cluster.alpha.start();
    insync(&cluster.beta, &cluster.alpha);
    // And back again, in order.
    let writer = Writer::go_on(cluster.beta.path("kept"), 3, kept);
    writer.wait_for(60, Duration::from_secs(60));
    cluster.beta.ok(&["switchover", VOLUME, "alpha"]);
    let kept = writer.killed();
    cluster.alpha.wait_mounted(VOLUME, Duration::from_secs(20));
    kept.assert_kept(&cluster.alpha.path("kept"));
    end_with(cluster);
}

/// What was written to a file at an offset, and never reached the mirror.
struct Written {
    name: &'static str,
    at: u64,
    bytes: Vec<u8>,
}

fn write_at(dir: &Path, written: &Written) {
    let mut options = File::options();
    options.write(true).create(true).truncate(false);
    let file = options.open(dir.join(written.name)).unwrap();
    file.write_all_at(&written.bytes, written.at).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn what_only_the_old_master_had_is_extracted_byte_by_byte() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = Cluster::linked();
    cluster.replicated(256, &["--buffer", "32M"]);
    let mut rng = Rng(17);
    std::fs::create_dir(cluster.alpha.path("dir")).unwrap();
    for name in ["one", "two", "dir/three"] {
        write_durably(&cluster.alpha.path(name), &rng.bytes(300_000));
    }
    cluster.settle();
    cluster.hosts.as_ref().unwrap().cut().unwrap();
    cluster.alpha.wait(VOLUME, "beta", "LINKDOWN", 30);
    let mut write = |name, at, len| Written {
        name,
        at,
        bytes: rng.bytes(len),
    };
    // Overwrites, an append, new files: one by value, one by reference, one with a hole.
    let all = [
        write("one", 8192, 12_288),
        write("one", 200_704, 4096),
        write("two", 300_000, 70_000),
        write("dir/three", 4096, 4096),
        write("dir/four", 0, 3000),
        write("five", 0, 3 << 20),
        write("six", 1 << 20, 50_000),
    ];
    for written in &all {
        write_at(&cluster.alpha.mnt(), written);
    }
    cluster.alpha.kill();
    cluster.hosts.as_ref().unwrap().mend().unwrap();
    promote(&cluster.beta, &[]);
    write_durably(&cluster.beta.path("by-beta"), b"beta");
    cluster.alpha.start();
    insync(&cluster.beta, &cluster.alpha);

    let alpha = &cluster.alpha;
    let list = alpha.ok(&["lost", "list", VOLUME, "--json"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["lost"].as_array().unwrap().len(), 1, "{list}");
    let id = list["lost"][0]["id"].as_str().unwrap();
    let shown: Value =
        serde_json::from_str(&alpha.ok(&["lost", "show", VOLUME, id, "--json"])).unwrap();
    let to = cluster.path("extracted");
    alpha.ok(&["lost", "extract", VOLUME, id, to.to_str().unwrap()]);
    // Which bytes of which file it says it has.
    let mut said: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    let runs = shown["runs"]
        .as_array()
        .or(shown["lost"]["runs"].as_array());
    for run in runs.unwrap_or_else(|| panic!("{shown}")) {
        if let (Some(path), Some(bytes)) = (run["path"].as_str(), run["bytes"].as_array()) {
            let [from, to] = [&bytes[0], &bytes[1]].map(|n| n.as_u64().unwrap() / 4096);
            said.entry(path.to_owned()).or_default().extend(from..to);
        }
    }
    for Written { name, at, bytes } in &all {
        let extracted = std::fs::read(to.join(name)).unwrap();
        let end = *at as usize + bytes.len();
        assert!(extracted.len() >= end, "{name}: {} bytes", extracted.len());
        assert!(
            extracted[*at as usize..end] == bytes[..],
            "{name} from {at} on"
        );
        let blocks = at / 4096..(end as u64).div_ceil(4096);
        let there = &said[&format!("/{name}")];
        assert!(
            blocks.clone().all(|b| there.contains(&b)),
            "{name}: {blocks:?} in {there:?}"
        );
    }
    // What was not changed is a hole, not a copy of what everybody has.
    assert!(!said["/one"].contains(&0) && !said["/one"].contains(&20));
    assert!(!to.join("by-beta").exists());
    end_swapped(cluster);
}

#[test]
fn a_cloned_state_directory_beside_the_original_opens_nothing() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    let mut cluster = Cluster::local();
    cluster.replicated(128, &[]);
    write_durably(&cluster.alpha.path("file"), b"both");
    cluster.settle();
    let mnt = cluster.alpha.mnt();
    cluster.alpha.ok(&["umount", VOLUME]);
    cluster.alpha.stop();
    let address = free_address();
    let mut clone = Node::init(cluster.path("clone"), "alpha", &address, None);
    copy_dir(&cluster.alpha.state(), &clone.state());
    let config = clone.state().join("lockstep.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains(&cluster.alpha.address), "{text}");
    std::fs::write(&config, text.replace(&cluster.alpha.address, &address)).unwrap();
    let [ours, _] = cluster.parts();
    let image = copy_of(&ours, &cluster.path("image"));
    cluster.alpha.start();
    cluster.alpha.ok(&["mount", VOLUME, mnt.to_str().unwrap()]);
    insync(&cluster.alpha, &cluster.beta);
    let writer = Writer::start(cluster.alpha.path("writer"), 4);
    writer.wait_for(30, Duration::from_secs(60));
    // As on another machine: the clone finds its own part under the same name. The original has its open.
    std::fs::rename(&ours, cluster.path("originals")).unwrap();
    std::fs::rename(&image, &ours).unwrap();
    clone.start();
    let shown = failed(&clone);
    assert!(shown.contains("from a backup or a clone"), "{shown}");
    writer.wait_for(30, Duration::from_secs(60));
    let acknowledged = writer.stop();
    clone.stop();
    std::fs::rename(cluster.path("originals"), &ours).unwrap();
    insync(&cluster.alpha, &cluster.beta);
    cluster.settle();
    acknowledged.assert_kept(&cluster.beta.path("writer"));
    end_with(cluster);
}

#[test]
fn two_promotions_are_seen_and_one_command_decides() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    let Three {
        mut cluster,
        mut gamma,
    } = Three::filled();
    let (alpha, beta) = (&mut cluster.alpha, &mut cluster.beta);
    alpha.kill();
    gamma.kill();
    promote(beta, &[]);
    write_durably(&beta.path("by-beta"), b"beta");
    beta.kill();
    // Nobody tells gamma of it.
    gamma.start();
    promote(&gamma, &[]);
    write_durably(&gamma.path("by-gamma"), b"gamma");
    // Each of the others finds a master, and knows whether its own history goes on in that one's.
    beta.start();
    let shown = failed(beta);
    assert!(shown.contains("have each been its master"), "{shown}");
    assert!(shown.contains("--discard beta"), "{shown}");
    alpha.start();
    insync(&gamma, alpha);
    assert_role(alpha, "mirror");
    beta.ok(&["rejoin", VOLUME, "gamma", "--discard", "beta"]);
    insync(&gamma, beta);
    beta.wait_mounted(VOLUME, Duration::from_secs(20));
    settle(&gamma, beta, ".settled");
    assert!(beta.path("by-gamma").exists() && !beta.path("by-beta").exists());
    // It was given up by name, and is kept all the same.
    let list = beta.ok(&["lost", "list", VOLUME, "--json"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    let id = list["lost"][0]["id"].as_str().unwrap();
    let to = beta.dir.join("extracted");
    beta.ok(&["lost", "extract", VOLUME, id, to.to_str().unwrap()]);
    assert_eq!(std::fs::read(to.join("by-beta")).unwrap()[..4], *b"beta");
    end_well(&mut gamma, &mut [alpha, beta]);
}
