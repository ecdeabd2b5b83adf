//! After both daemons stop, the copies are ordinary ext4 images, clean and equal, for everybody.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::cluster::{Cluster, VOLUME, write_durably};
use crate::copies::{assert_equal_blocks, image_of, kernel_tree};
use crate::sizes::choose;
use crate::testkit::{
    Compare, e2fsck, mutate_tree, need_fuse, need_loop, need_tool, populate_tree, run, wait_until,
};

#[test]
fn stopped_copies_are_clean_equal_and_mounted_by_the_kernel() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    let mut cluster = Cluster::local();
    cluster.replicated(choose(300, 2048), &[]);
    populate_tree(&cluster.alpha.mnt(), 11, choose(1500, 20_000)).unwrap();
    mutate_tree(&cluster.alpha.mnt(), 12, choose(500, 4000)).unwrap();
    let shown = cluster.assert_same_trees();
    // In both orders, and once more after a restart.
    for first in [0, 1] {
        let nodes = cluster.nodes();
        nodes[first].stop();
        nodes[1 - first].stop();
        let [master, mirror] = cluster.parts();
        for part in [&master, &mirror] {
            e2fsck(part).unwrap();
            kernel_tree(part).assert_same(&shown, Compare::ALL);
            e2fsck(part).unwrap();
        }
        assert_equal_blocks(&master, &mirror);
        cluster.start();
        cluster.insync();
        cluster.verify();
        assert_eq!(cluster.bytes_bulk(), 0, "nothing is copied again");
    }
}

#[test]
fn several_parts_are_copied_and_equal() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    for (block, sizes) in [("4096", [96_u64, 40, 130]), ("1024", [20, 33, 50])] {
        let mut cluster = Cluster::local();
        let mut args: Vec<String> = ["volume", "create", VOLUME, "--block-size", block]
            .map(String::from)
            .into();
        let mut ours = Vec::new();
        for (n, size) in sizes.iter().enumerate() {
            let path = cluster.path(&format!("piece{n}"));
            args.extend(["--part".to_owned(), format!("{}={size}M", path.display())]);
            ours.push(path);
        }
        cluster.alpha.ok(&args);
        cluster.mount_master();
        populate_tree(&cluster.alpha.mnt(), 13, 400).unwrap();
        cluster.mirror(&[]);
        cluster.insync();
        cluster.mount_mirror();
        cluster.beta.wait_mounted(VOLUME, Duration::from_secs(10));
        mutate_tree(&cluster.alpha.mnt(), 14, 200).unwrap();
        let shown = cluster.assert_same_trees();
        cluster.verify();
        cluster.stop();
        let theirs: Vec<_> = (0..sizes.len())
            .map(|n| cluster.beta.store().join(format!("{VOLUME}/part{n}")))
            .collect();
        for (one, two) in ours.iter().zip(&theirs) {
            let len = |path| std::fs::metadata(path).unwrap().len();
            assert_eq!(len(one), len(two));
        }
        let master = image_of(&ours, &cluster.path("joined-master"));
        let mirror = image_of(&theirs, &cluster.path("joined-mirror"));
        for image in [&master, &mirror] {
            e2fsck(image).unwrap();
            kernel_tree(image).assert_same(&shown, Compare::ALL);
        }
        assert_equal_blocks(&master, &mirror);
    }
}

/// Where a file's first block is: byte in the image.
fn home_of(image: &std::path::Path, name: &str) -> u64 {
    let text = run(
        "debugfs",
        &[
            "-R".as_ref(),
            format!("blocks /{name}").as_ref(),
            image.as_os_str(),
        ],
    )
    .unwrap();
    let block: u64 = text.split_whitespace().next().unwrap().parse().unwrap();
    let super_block = run("dumpe2fs", &["-h".as_ref(), image.as_os_str()]).unwrap();
    let line = super_block.lines().find(|l| l.starts_with("Block size:"));
    let size: u64 = line.unwrap()["Block size:".len()..].trim().parse().unwrap();
    block * size
}

fn flip(image: &std::path::Path, at: u64) {
    let file = File::options().read(true).write(true).open(image).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 0x10;
    file.write_all_at(&byte, at).unwrap();
}

#[test]
fn a_byte_flipped_in_the_mirrors_part_is_found() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::local();
    cluster.replicated(64, &[]);
    let text = vec![b'a'; 40_000];
    write_durably(&cluster.alpha.path("file"), &text);
    cluster.settle();
    cluster.verify();
    cluster.stop();
    let [_, mirror] = cluster.parts();
    let at = home_of(&mirror, "file") + 77;

    // While the mirror is up, behind its back.
    cluster.start();
    cluster.insync();
    cluster.verify();
    flip(&mirror, at);
    let (status, said) = cluster.alpha.refused(&["verify", VOLUME, "beta"]);
    assert_eq!(status, 6, "{said}");
    assert!(said.contains("file /file, bytes 0 to "), "{said}");
    // A restart alone is no reason to compare; the operator's is.
    flip(&mirror, at);
    cluster.verify();

    // While it is down: seen as a change from outside and repaired at once, or found by verify.
    cluster.stop();
    flip(&mirror, at);
    cluster.start();
    cluster.insync();
    let out = cluster.alpha.run(&["verify", VOLUME]);
    match out.status.code() {
        Some(6) => {}
        Some(0) => {
            let repaired = cluster
                .alpha
                .events()
                .iter()
                .any(|e| e.to_string().contains("OUTOFSYNC"));
            assert!(repaired, "neither found nor repaired");
            let read = || std::fs::read(cluster.beta.path("file")).is_ok_and(|b| b == text);
            assert!(wait_until(Duration::from_secs(10), read));
        }
        _ => panic!("{out:?}"),
    }
}

#[test]
fn a_byte_flipped_in_either_copy_is_named_and_repaired_from_the_other() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::local();
    cluster.replicated(64, &[]);
    let text = vec![b'a'; 40_000];
    write_durably(&cluster.alpha.path("file"), &text);
    cluster.settle();
    // So that everything is at home, and debugfs sees it.
    cluster.stop();
    let [master, mirror] = cluster.parts();
    let at = home_of(&mirror, "file") + 4096 * 3 + 77;
    cluster.start();
    cluster.insync();

    let named = || {
        let (status, said) = cluster.alpha.refused(&["verify", VOLUME, "beta"]);
        assert_eq!(status, 6, "{said}");
        assert!(said.contains("file /file, bytes 12288 to 16383"), "{said}");
    };
    flip(&mirror, at);
    named();
    cluster.alpha.ok(&["verify", VOLUME, "beta", "--repair"]);
    cluster.insync();
    cluster.verify();
    let sent = cluster.bytes_bulk();
    assert!(sent <= 1 << 20, "{sent} bytes for one block");

    flip(&master, at);
    named();
    let (status, said) = cluster
        .alpha
        .refused(&["verify", VOLUME, "--repair=master"]);
    assert_eq!(status, 3, "which mirror? {said}");
    let said = cluster
        .alpha
        .ok(&["verify", VOLUME, "beta", "--repair=master"]);
    assert!(said.contains("1 blocks of files were replaced"), "{said}");
    cluster.verify();
    assert_eq!(std::fs::read(cluster.alpha.path("file")).unwrap(), text);
    assert_eq!(std::fs::read(cluster.beta.path("file")).unwrap(), text);
    let last = cluster.alpha.events().pop().unwrap();
    assert!(last.to_string().contains("equal"), "{last}");
}
