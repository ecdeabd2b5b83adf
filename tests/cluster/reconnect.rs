//! The cases of lockstep-semantics(7), "Who is the master", that are not changes of role: who comes back first, and what
//! others did to the parts or to the state directory meanwhile.

use std::path::Path;
use std::time::Duration;

use crate::cluster::{Cluster, VOLUME, write_durably};
use crate::copies::copy_of;
use crate::roles::{assert_role, end_with, give_up_first, insync, settle};
use crate::testkit::{LoopMount, command, need_fuse, need_loop, need_netns, run, said, wait_until};
use crate::writer::Writer;

fn replicated() -> Cluster {
    let cluster = Cluster::linked();
    cluster.replicated(256, &["--buffer", "32M"]);
    cluster
}

#[test]
fn both_were_down_and_either_comes_back_first() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = replicated();
    let writer = Writer::start(cluster.alpha.path("writer"), 1);
    writer.wait_for(60, Duration::from_secs(60));
    let acknowledged = writer.stop();
    cluster.settle();
    for mirror_first in [true, false] {
        let (alpha, beta) = (&mut cluster.alpha, &mut cluster.beta);
        alpha.kill();
        beta.kill();
        let order = if mirror_first {
            [beta, alpha]
        } else {
            [alpha, beta]
        };
        for node in order {
            node.start();
            node.wait_mounted(VOLUME, Duration::from_secs(30));
            acknowledged.assert_kept(&node.path("writer"));
        }
        assert_role(&cluster.alpha, "master");
        assert_role(&cluster.beta, "mirror");
        insync(&cluster.alpha, &cluster.beta);
        assert_eq!(cluster.bytes_bulk(), 0, "replay, not a copy");
        let compared = cluster.alpha.ok(&["mirror", "compare", VOLUME, "beta"]);
        assert!(compared.contains("rule 7"), "{compared}");
    }
    end_with(cluster);
}

#[test]
fn a_killed_master_that_the_kernel_wrote_to_is_compared() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = replicated();
    for n in 0..200 {
        write_durably(&cluster.alpha.path(format!("file{n}")), &[n; 50_000]);
    }
    cluster.settle();
    cluster.alpha.kill();
    // Replays the log, which takes with it what the mirror was sent last.
    let mount = LoopMount::new(&cluster.parts()[0]).unwrap();
    std::fs::write(mount.path("by-the-kernel"), vec![3; 100_000]).unwrap();
    mount.unmount().unwrap();
    cluster.alpha.start();
    cluster.alpha.wait_mounted(VOLUME, Duration::from_secs(20));
    insync(&cluster.alpha, &cluster.beta);
    cluster.settle();
    let shown = std::fs::read(cluster.beta.path("by-the-kernel")).unwrap();
    assert_eq!(shown, vec![3; 100_000]);
    end_with(cluster);
}

#[test]
fn an_old_master_that_others_wrote_to_does_not_rejoin_by_itself() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    written_to(|part| {
        let mount = LoopMount::new(part).unwrap();
        std::fs::write(mount.path("by-the-kernel"), vec![3; 100_000]).unwrap();
        mount.unmount().unwrap();
    });
    written_to(|part| {
        let repaired = command("e2fsck").args(["-f", "-y"]).arg(part).output();
        let repaired = repaired.unwrap();
        assert!(
            repaired.status.code().is_some_and(|c| c < 4),
            "{}",
            said(&repaired)
        );
    });
}

fn written_to(change: impl Fn(&Path)) {
    let mut cluster = replicated();
    std::fs::write(cluster.alpha.path("file"), b"before").unwrap();
    cluster.settle();
    cluster.alpha.kill();
    cluster.beta.ok(&["promote", VOLUME]);
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(20));
    let [part, _] = cluster.parts();
    change(&part);
    cluster.alpha.start();
    let refused = wait_until(Duration::from_secs(30), || {
        cluster.alpha.volume(VOLUME)["condition"] == "failed"
    });
    let shown = cluster.alpha.volume(VOLUME).to_string();
    assert!(refused && shown.contains("changed from outside"), "{shown}");
    give_up_first(&cluster);
    cluster.alpha.wait_mounted(VOLUME, Duration::from_secs(20));
    settle(&cluster.beta, &cluster.alpha, ".settled");
    assert!(!cluster.alpha.path("by-the-kernel").exists());
    std::mem::swap(&mut cluster.alpha, &mut cluster.beta);
    end_with(cluster);
}

/// A directory, with everything in it, in place of another one.
pub fn copy_dir(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    run("cp", &["-a".as_ref(), from.as_os_str(), to.as_os_str()]).unwrap();
}

#[test]
fn a_master_put_back_from_a_backup_opens_nothing_by_itself() {
    if !(need_fuse() && need_netns() && need_loop()) {
        return;
    }
    let mut cluster = replicated();
    std::fs::write(cluster.alpha.path("file"), b"old").unwrap();
    cluster.settle();
    cluster.alpha.stop();
    let [part, _] = cluster.parts();
    let backup = cluster.path("backup");
    copy_dir(&cluster.alpha.state(), &backup);
    let image = copy_of(&part, &cluster.path("image"));
    cluster.alpha.start();
    cluster.alpha.wait_mounted(VOLUME, Duration::from_secs(30));
    std::fs::write(cluster.alpha.path("file"), b"new").unwrap();
    insync(&cluster.alpha, &cluster.beta);
    cluster.settle();
    cluster.alpha.stop();
    copy_dir(&backup, &cluster.alpha.state());
    copy_of(&image, &part);
    cluster.alpha.start();
    let refused = wait_until(Duration::from_secs(30), || {
        cluster.alpha.volume(VOLUME)["condition"] == "failed"
    });
    let shown = cluster.alpha.volume(VOLUME).to_string();
    assert!(
        refused && shown.contains("from a backup or a clone"),
        "{shown}"
    );
    // What the mirror has is to be kept.
    cluster.beta.ok(&["promote", VOLUME]);
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(20));
    assert_eq!(std::fs::read(cluster.beta.path("file")).unwrap(), b"new");
    give_up_first(&cluster);
    std::mem::swap(&mut cluster.alpha, &mut cluster.beta);
    end_with(cluster);
}
