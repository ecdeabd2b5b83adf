//! Many volumes between the same nodes, in both directions, over one connection a pair.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::{COPY_SECONDS, Cluster, free_address};
use crate::copies::assert_equal_blocks;
use crate::daemon::Node;
use crate::sizes::choose;
use crate::testkit::{e2fsck, need_fuse, need_netns, need_tool, wait_until};
use crate::writer::Writer;

/// An fsync that takes longer than this waited for something other than a busy disk.
const UNAFFECTED: Duration = Duration::from_secs(3);

/// Makes a volume with a mirror and mounts it; its mount point.
fn volume(master: &Node, name: &str, mirror: &str) -> PathBuf {
    let part = format!("{}=200M", master.dir.join(name).display());
    master.ok(&["volume", "create", name, "--part", &part, "--buffer", "64M"]);
    let dir = master.dir.join(format!("mnt-{name}"));
    std::fs::create_dir(&dir).unwrap();
    master.ok(&["mount", name, dir.to_str().unwrap()]);
    master.ok(&["mirror", "create", name, mirror]);
    dir
}

/// Both copies of a volume, of which no daemon runs any more, are sound and equal.
#[track_caller]
fn end_well(name: &str, master: &Path, mirror: &Path) {
    let copies = [master.join(name), mirror.join(name).join("part0")];
    for copy in &copies {
        e2fsck(copy).unwrap();
    }
    assert_equal_blocks(&copies[0], &copies[1]);
}

/// TCP connections of a node's daemon to other nodes, either way.
fn connections(node: &Node) -> usize {
    let pid = node.pid().as_raw_nonzero();
    let sockets: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
        .filter_map(|to| {
            let inode = to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    table
        .lines()
        .filter(|line| {
            // sl local remote state queues timers retransmits uid timeout inode
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(3) == Some(&"01")
                && fields
                    .get(9)
                    .is_some_and(|i| sockets.iter().any(|s| s == i))
        })
        .count()
}

#[test]
fn four_volumes_in_both_directions_share_one_connection() {
    if !(need_fuse() && need_netns() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::linked();
    let (alpha, beta) = (&cluster.alpha, &cluster.beta);
    let volumes = [
        ("one", alpha, "beta"),
        ("two", alpha, "beta"),
        ("three", beta, "alpha"),
        ("four", beta, "alpha"),
    ];
    let pause = Duration::from_millis(20);
    let writers: Vec<Writer> = volumes
        .iter()
        .zip(51..)
        .map(|((name, master, mirror), seed)| {
            let dir = volume(master, name, mirror);
            Writer::paced(dir.join("writer"), seed, pause)
        })
        .collect();
    let insync = || {
        for (name, master, mirror) in &volumes {
            master.wait(name, mirror, "INSYNC", COPY_SECONDS);
        }
    };
    let one_each = || {
        assert_eq!((connections(alpha), connections(beta)), (1, 1));
    };
    insync();
    one_each();
    let hosts = cluster.hosts.as_ref().unwrap();
    for _ in 0..choose(2, 10) {
        for writer in &writers {
            writer.wait_for(30, Duration::from_secs(30));
        }
        hosts.cut().unwrap();
        for (name, master, mirror) in &volumes {
            master.wait(name, mirror, "LINKDOWN", 20);
        }
        hosts.mend().unwrap();
        insync();
        one_each();
    }
    for (writer, (name, master, _)) in writers.into_iter().zip(&volumes) {
        let acknowledged = writer.stop();
        let worst = acknowledged.worst;
        assert!(worst < UNAFFECTED, "{name}: an operation took {worst:?}");
        master.ok(&["verify", name]);
    }
    one_each();
    let places = volumes.map(|(name, master, mirror)| {
        let other = if mirror == "beta" { beta } else { alpha };
        (name, master.dir.clone(), other.store())
    });
    cluster.stop();
    for (name, master, store) in places {
        end_well(name, &master, &store);
    }
}

#[test]
fn two_masters_are_mirrored_on_one_node() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::local();
    let mut gamma = Node::init(cluster.path("gamma"), "gamma", &free_address(), None);
    gamma.start();
    cluster.acquaint(&gamma, &cluster.beta);
    let masters = [
        (&cluster.alpha, ["north", "south"]),
        (&gamma, ["east", "west"]),
    ];
    let mut writers = Vec::new();
    for (master, names) in &masters {
        for name in names {
            let dir = volume(master, name, "beta");
            let seed = 60 + writers.len() as u64;
            let pause = Duration::from_millis(20);
            writers.push((name, master, Writer::paced(dir.join("writer"), seed, pause)));
        }
    }
    let insync = || {
        for (master, names) in &masters {
            for name in names {
                master.wait(name, "beta", "INSYNC", COPY_SECONDS);
            }
        }
    };
    insync();
    let counts = || {
        let nodes = [&cluster.alpha, &cluster.beta, &gamma];
        nodes.map(connections)
    };
    assert_eq!(counts(), [1, 2, 1]);
    // The mirrors' node stops answering: both masters go on by themselves, and find it again.
    cluster.beta.freeze(true);
    for (master, names) in &masters {
        for name in names {
            master.wait(name, "beta", "LINKDOWN", 30);
        }
    }
    for (_, _, writer) in &writers {
        writer.wait_for(20, Duration::from_secs(30));
    }
    cluster.beta.freeze(false);
    insync();
    // What the two gave up may linger over there until it is read.
    let settled = wait_until(Duration::from_secs(10), || counts() == [1, 2, 1]);
    assert!(settled, "{:?}", counts());
    for (name, master, writer) in writers {
        let acknowledged = writer.stop();
        let worst = acknowledged.worst;
        assert!(worst < UNAFFECTED, "{name}: an operation took {worst:?}");
        master.ok(&["verify", name]);
    }
    let places = masters.map(|(master, names)| (names, master.dir.clone()));
    gamma.stop();
    cluster.stop();
    for (names, master) in places {
        for name in names {
            end_well(name, &master, &cluster.beta.store());
        }
    }
}
