//! Mounts of a master's volume: what is written there is on the parts, and the mount outlives whatever happens to it.

use crate::node::{Node, mounted};
use crate::testkit::{command, e2fsck, need_fuse};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// A running node with a volume of 64 MiB in one part.
fn node() -> Node {
    let node = Node::running("alpha");
    let part = format!("{}=64M", node.path("p0").display());
    node.ok(&["volume", "create", "data", "--part", &part]);
    node
}

fn mount(node: &Node) {
    node.ok(&["mount", "data", node.mnt().to_str().unwrap()]);
}

fn write(path: &Path, text: &str) {
    let mut file = File::create(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn what_is_written_survives_a_stop_and_a_kill() {
    if !need_fuse() {
        return;
    }
    let mut node = node();
    mount(&node);
    let mnt = node.mnt();
    let (source, options) = mounted(&mnt).unwrap();
    assert_eq!(source, "lockstep:data");
    assert!(options.starts_with("rw"), "{options}");
    write(&mnt.join("first"), "1");
    node.stop();
    assert_eq!(mounted(&mnt), None);
    e2fsck(&node.path("p0")).unwrap();
    node.start();
    node.until("mounted again", |s| s["volumes"][0]["mounted"] == true);
    assert_eq!(std::fs::read_to_string(mnt.join("first")).unwrap(), "1");
    write(&mnt.join("second"), "2");
    node.crash();
    assert!(
        std::fs::metadata(&mnt).is_err(),
        "a dead mount stays behind"
    );
    node.start();
    node.until("mounted again", |s| s["volumes"][0]["mounted"] == true);
    assert_eq!(std::fs::read_to_string(mnt.join("second")).unwrap(), "2");
    node.stop();
    e2fsck(&node.path("p0")).unwrap();
}

#[test]
fn mounting_is_idempotent_and_says_what_stands_against_it() {
    if !need_fuse() {
        return;
    }
    let node = node();
    mount(&node);
    mount(&node);
    let other = node.path("other");
    std::fs::create_dir(&other).unwrap();
    let error = node.fails(3, &["mount", "data", other.to_str().unwrap()]);
    assert!(error.contains("lockstep umount data"), "{error}");
    let error = node.fails(3, &["mount", "data", "/no/such/directory"]);
    assert!(error.contains("mkdir -p"), "{error}");
    for command in [["volume", "check"], ["volume", "delete"]] {
        let error = node.fails(3, &[command[0], command[1], "data"]);
        assert!(error.contains("is mounted"), "{error}");
    }
    let busy = File::open(node.mnt().join("lost+found")).unwrap();
    let error = node.fails(3, &["umount", "data"]);
    assert!(error.contains("fuser"), "{error}");
    drop(busy);
    node.ok(&["umount", "data"]);
    assert_eq!(mounted(&node.mnt()), None);
    assert!(node.ok(&["umount", "data"]).contains("is not mounted"));
    node.ok(&["volume", "check", "data"]);
    node.ok(&["mount", "data", other.to_str().unwrap(), "--read-only"]);
    assert!(mounted(&other).unwrap().1.starts_with("ro"));
    let refused = File::create(other.join("x")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    node.ok(&["umount", "data"]);
}

#[test]
fn a_mount_comes_back_after_somebodys_lazy_umount() {
    if !need_fuse() {
        return;
    }
    let mut node = node();
    mount(&node);
    let mnt = node.mnt();
    write(&mnt.join("file"), "here");
    let busy = File::open(mnt.join("file")).unwrap();
    let status = command("umount").arg("-l").arg(&mnt).status().unwrap();
    assert!(status.success());
    node.until("mounted again", |_| mounted(&mnt).is_some());
    assert_eq!(std::fs::read_to_string(mnt.join("file")).unwrap(), "here");
    drop(busy);
    node.stop();
    e2fsck(&node.path("p0")).unwrap();
}

#[test]
fn a_volume_that_can_only_be_read_is_mounted_only_so() {
    if !need_fuse() {
        return;
    }
    let node = Node::running("alpha");
    let path = node.path("image");
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let made = command("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-O", "bigalloc"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(made.success());
    let adopted = node.run(&["volume", "adopt", "data", "--part", path.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&adopted.stderr).into_owned();
    if !adopted.status.success() {
        // Refused altogether, naming the feature, is as good.
        assert!(text.contains("bigalloc"), "{text}");
        return;
    }
    let mnt = node.mnt();
    let error = node.fails(3, &["mount", "data", mnt.to_str().unwrap()]);
    assert!(error.contains("bigalloc"), "{error}");
    node.ok(&["mount", "data", mnt.to_str().unwrap(), "--read-only"]);
    node.ok(&["umount", "data"]);
}
