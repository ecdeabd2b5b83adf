//! Very many names, and damage.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, VOLUME};
use crate::sizes::MIB;
use crate::testkit::{e2fsck, need_fuse, need_tool, populate_tree, run};

#[test]
fn a_hundred_thousand_names_in_one_directory() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::local();
    // For as many inodes; sparse.
    cluster.volume(2048, &[]);
    let dir = cluster.alpha.path("crowd");
    std::fs::create_dir(&dir).unwrap();
    let mut took = Vec::new();
    for thousands in 0..10 {
        let began = Instant::now();
        for n in 0..10_000 {
            File::create(dir.join(format!(
                "a name of middling length {:06}",
                thousands * 10_000 + n
            )))
            .unwrap();
        }
        took.push(began.elapsed());
    }
    eprintln!("each 10,000 of 100,000 names: {took:.2?}");
    let (first, last) = (
        took[..3].iter().sum::<Duration>(),
        took[7..].iter().sum::<Duration>(),
    );
    assert!(
        last < first * 2 + Duration::from_secs(1),
        "creation slows down: {took:?}"
    );
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 100_000);
    cluster.mirror(&[]);
    cluster.insync();
    cluster.mount_mirror();
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(10));
    assert_eq!(
        std::fs::read_dir(cluster.beta.path("crowd"))
            .unwrap()
            .count(),
        100_000
    );
    cluster.stop();
    for part in cluster.parts() {
        e2fsck(&part).unwrap();
        let dump = run(
            "debugfs",
            &[
                "-R".as_ref(),
                "htree_dump /crowd".as_ref(),
                part.as_os_str(),
            ],
        )
        .unwrap();
        assert!(
            dump.contains("Root node dump") && dump.contains("Entry #"),
            "{}",
            &dump[..dump.len().min(400)]
        );
    }
}

fn corrupt(part: &Path, at: u64, len: usize) {
    let file = File::options().read(true).write(true).open(part).unwrap();
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at).unwrap();
    for byte in &mut bytes {
        *byte = byte.wrapping_mul(31).wrapping_add(0x5b);
    }
    file.write_all_at(&bytes, at).unwrap();
}

#[test]
fn damage_is_an_error_and_nothing_worse() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::local();
    cluster.volume(64, &["--block-size", "4096"]);
    for dir in ["one", "two"] {
        let dir = cluster.alpha.path(dir);
        std::fs::create_dir(&dir).unwrap();
        populate_tree(&dir, 41, 30).unwrap();
    }
    // A tree of extents: every second block.
    let holes = File::create(cluster.alpha.path("holes")).unwrap();
    for n in 0..500 {
        holes.write_all_at(&[5; 4096], n * 8192).unwrap();
    }
    drop(holes);
    cluster.alpha.stop();
    let [part, _] = cluster.parts();
    let ask = |request: &str| {
        run(
            "debugfs",
            &["-R".as_ref(), request.as_ref(), part.as_os_str()],
        )
        .unwrap()
    };
    let dir_block: u64 = ask("blocks /one")
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let extents = ask("ex /holes");
    let tree_block: u64 = extents
        .lines()
        .find(|l| l.trim_start().starts_with("0/"))
        .and_then(|l| {
            // Level, entries, logical, physical, length; the last column but one.
            let words: Vec<&str> = l.split_whitespace().collect();
            words[words.len() - 2].parse().ok()
        })
        .unwrap_or_else(|| panic!("{extents}"));
    corrupt(&part, dir_block * 4096, 64);
    corrupt(&part, tree_block * 4096, 64);
    let inode = ask("imap /two");
    let block: u64 = inode
        .split_once("located at block ")
        .and_then(|(_, rest)| rest.split_once(','))
        .map(|(n, _)| n.parse().unwrap())
        .unwrap_or_else(|| panic!("{inode}"));
    let offset = inode
        .rsplit_once("offset 0x")
        .map(|(_, o)| u64::from_str_radix(o.trim(), 16).unwrap());
    corrupt(&part, block * 4096 + offset.unwrap(), 100);

    cluster.alpha.start();
    cluster.alpha.wait_mounted(VOLUME, Duration::from_secs(15));
    let errno = |e: std::io::Error| e.raw_os_error();
    // EUCLEAN or EIO.
    let damaged = |found: Option<i32>| found == Some(117) || found == Some(5);
    let listed = std::fs::read_dir(cluster.alpha.path("one"))
        .and_then(|dir| dir.collect::<Result<Vec<_>, _>>());
    assert!(damaged(listed.map(drop).map_err(errno).unwrap_err()));
    assert!(damaged(
        std::fs::metadata(cluster.alpha.path("two"))
            .map_err(errno)
            .unwrap_err()
    ));
    assert!(damaged(
        std::fs::read(cluster.alpha.path("holes"))
            .map_err(errno)
            .unwrap_err()
    ));
    // The rest works, and the daemon lives.
    let text = vec![1; MIB as usize];
    std::fs::write(cluster.alpha.path("other"), &text).unwrap();
    assert!(std::fs::read(cluster.alpha.path("other")).unwrap() == text);
    cluster.alpha.ok(&["umount", VOLUME]);
    let (status, said) = cluster.alpha.refused(&["volume", "check", VOLUME]);
    assert_eq!(status, 6, "{said}");
    cluster.alpha.stop();
}
