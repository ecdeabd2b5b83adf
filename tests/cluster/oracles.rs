//! Programs that nobody here wrote judge the master's mount, while a mirror follows.

use std::path::Path;

use crate::cluster::{Cluster, VOLUME};
use crate::copies::assert_equal_blocks;
use crate::sizes::{choose, full};
use crate::testkit::{command, e2fsck, need_fuse, need_root, need_tool, run_for, said};

/// A volume with a mirror, for something that works it hard; in the end all of it has to be equal and clean.
fn judged(work: impl FnOnce(&Path)) {
    let mut cluster = Cluster::local();
    cluster.replicated(512, &[]);
    let dir = cluster.alpha.path("work");
    std::fs::create_dir(&dir).unwrap();
    work(&dir);
    // A mirror that could not keep up has cracked, and is repaired by then.
    cluster.insync();
    cluster
        .beta
        .wait_mounted(VOLUME, std::time::Duration::from_secs(20));
    cluster.assert_same_trees();
    cluster.verify();
    cluster.stop();
    let [master, mirror] = cluster.parts();
    e2fsck(&master).unwrap();
    e2fsck(&mirror).unwrap();
    assert_equal_blocks(&master, &mirror);
    for log in [cluster.alpha.log(), cluster.beta.log()] {
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[test]
fn fsx_finds_nothing() {
    if !(need_fuse() && need_tool("mke2fs") && need_tool("fsx")) {
        return;
    }
    judged(|dir| {
        for seed in 1..=choose(4, 40) {
            let (file, seed) = (dir.join(format!("fsx{seed}")), seed.to_string());
            let args = [
                "-N".as_ref(),
                "4000".as_ref(),
                "-S".as_ref(),
                seed.as_ref(),
                file.as_os_str(),
            ];
            let out = run_for(120, "fsx", &args).unwrap();
            assert!(out.status.success(), "seed {seed}: {}", said(&out));
        }
    });
}

#[test]
fn pjdfstest_finds_nothing() {
    if !(need_root() && need_fuse() && need_tool("mke2fs") && need_tool("pjdfstest")) {
        return;
    }
    judged(|dir| {
        // Three users that every Debian has.
        let config = dir.join("config.toml");
        let text = "[settings]\nnaptime = 0.01\n[features]\n[dummy_auth]\n\
                    entries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"], [\"bin\", \"bin\"]]\n";
        std::fs::write(&config, text).unwrap();
        // By a short path: those of sockets have 107 bytes.
        let short = tempfile::tempdir().unwrap();
        let link = short.path().join("w");
        std::os::unix::fs::symlink(dir, &link).unwrap();
        let args = [
            "-c".as_ref(),
            config.as_os_str(),
            "-p".as_ref(),
            link.as_os_str(),
        ];
        let out = run_for(180, "pjdfstest", &args).unwrap();
        let text = said(&out);
        let summary = text.lines().find(|l| l.starts_with("Summary:"));
        let summary = summary.unwrap_or_else(|| panic!("{text}"));
        assert!(summary.contains(" 0 failed"), "{text}");
        // As many as on the kernel's ext4, but for features that are not asked for.
        let passed = summary.split(", ").find_map(|p| p.strip_suffix(" passed"));
        assert!(passed.unwrap().parse::<u32>().unwrap() >= 340, "{summary}");
    });
}

#[test]
fn stress_ng_finds_nothing() {
    // A minute and more, and a full disk for much of it: with the long campaigns.
    if !full() {
        return;
    }
    if !(need_root() && need_fuse() && need_tool("mke2fs") && need_tool("stress-ng")) {
        return;
    }
    judged(|dir| {
        let out = command("timeout")
            .args([
                "-k",
                "10",
                "500",
                "stress-ng",
                "--class",
                "filesystem",
                "--verify",
                "--timeout",
                "2",
            ])
            .args(["--seq", "2", "--temp-path"])
            .arg(dir)
            .current_dir(dir)
            .output()
            .unwrap();
        let text = said(&out);
        let failed: Vec<_> = text
            .lines()
            .filter(|l| l.contains("fail:") || l.contains("unsuccessful"))
            .collect();
        // 3: a stressor found too little room.
        assert!(
            matches!(out.status.code(), Some(0 | 3)) && failed.is_empty(),
            "{}\n{}",
            out.status,
            failed.join("\n")
        );
    });
}

#[test]
fn fio_reads_what_it_wrote() {
    if !(need_fuse() && need_tool("mke2fs") && need_tool("fio")) {
        return;
    }
    judged(|dir| {
        let seconds = format!("--runtime={}", choose(4, 60));
        let out = command("timeout")
            .args([
                "-k",
                "10",
                "300",
                "fio",
                "--name=judge",
                "--rw=randwrite",
                "--bsrange=1k-128k",
                "--size=48M",
            ])
            .args([
                "--numjobs=3",
                "--verify=crc32c",
                "--verify_state_save=0",
                "--verify_fatal=1",
                "--do_verify=1",
                "--verify_state_save=0",
                "--fsync=32",
                "--group_reporting",
            ])
            .args(["--time_based=0", &seconds])
            .arg(format!("--directory={}", dir.display()))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}\n{}", out.status, said(&out));
    });
}
