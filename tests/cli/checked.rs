//! `volume check`: what it says of a clean volume and of damaged ones, that it changes nothing, and when it is refused.

use crate::node::{Node, mounted, texts};
use crate::testkit::{command, e2fsck, need_fuse, need_tool};
use std::path::Path;

/// A running node with a volume of two parts, 64 MiB.
fn node() -> Node {
    let node = Node::running("alpha");
    let (a, b) = (node.path("p0"), node.path("p1"));
    let (a, b) = (
        format!("{}=48M", a.display()),
        format!("{}=16M", b.display()),
    );
    node.ok(&["volume", "create", "data", "--part", &a, "--part", &b]);
    node
}

/// Changes the closed volume by debugfs, which makes checksums right again. Everything named here is in the first part.
fn damage(part: &Path, request: &str) {
    let out = command("debugfs")
        .args(["-w", "-R", request])
        .arg(part)
        .output()
        .unwrap();
    let (stdout, stderr) = texts(&out);
    assert!(out.status.success(), "{request}: {stdout}{stderr}");
}

/// The bytes of a part, but for the superblock, which has the times of its openings, and the journal, which has their
/// transactions.
fn contents(part: &Path) -> Vec<u8> {
    let out = command("debugfs")
        .args(["-R", "blocks <8>"])
        .arg(part)
        .output()
        .unwrap();
    let (journal, _) = texts(&out);
    let mut bytes = std::fs::read(part).unwrap();
    // s_log_block_size
    let block_size = 1024 << bytes[1024 + 24];
    let journal = journal
        .split_whitespace()
        .map(|block| block.parse().unwrap());
    let journal: Vec<usize> = journal.collect();
    assert!(!journal.is_empty());
    for block in journal {
        bytes[block * block_size..][..block_size].fill(0);
    }
    bytes[1024..2048].fill(0);
    bytes
}

#[test]
fn a_clean_volume_is_clean_by_both_checks() {
    let node = node();
    let out = node.run(&["volume", "check", "data"]);
    let (stdout, stderr) = texts(&out);
    assert_eq!(out.status.code(), Some(0), "{stdout}{stderr}");
    assert_eq!(stdout, "volume data is clean\n");
    for line in ["own check: clean; ", "e2fsck: Pass 5"] {
        assert!(stderr.contains(line), "{line:?} is not in:\n{stderr}");
    }
    let scratch = std::fs::read_dir(node.state()).unwrap();
    let left: Vec<_> = (scratch.map(|entry| entry.unwrap().file_name()))
        .filter(|name| name.to_string_lossy().contains("e2fsck"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn damage_is_found_with_plain_words_and_left_as_it_is() {
    if !need_tool("debugfs") {
        return;
    }
    for (request, finding, also) in [
        (
            "setb 9000",
            "own check: block bitmap: block bitmap of group 0: in use in the bitmap, expected block 9000 free, as was found",
            "e2fsck: Block bitmap differences:  -9000",
        ),
        (
            "set_inode_field <11> links_count 7",
            "own check: link count: inode 11: 7 links, expected 2 links, as many as there are names",
            "e2fsck: Inode 11 ref count is 7, should be 2.",
        ),
    ] {
        let mut node = Node::running("alpha");
        let part = node.path("p0");
        let spec = format!("{}=64M", part.display());
        node.ok(&["volume", "create", "data", "--part", &spec]);
        node.stop();
        damage(&part, request);
        assert!(e2fsck(&part).is_err(), "{request} damaged nothing");
        let before = contents(&part);
        node.start();
        let said = node.fails(6, &["volume", "check", "data"]);
        for line in [
            finding,
            also,
            "volume data: lockstep's own check found",
            "e2fsck found damage",
            "repair the parts with e2fsck -f while the daemon is stopped, or take the copy of a mirror",
        ] {
            assert!(said.contains(line), "{line:?} is not in:\n{said}");
        }
        node.stop();
        assert!(before == contents(&part), "{request}: repaired, or worse");
    }
}

#[test]
fn a_volume_in_use_is_not_checked_and_it_is_said_what_to_do() {
    if !need_fuse() {
        return;
    }
    let node = node();
    node.ok(&["mount", "data", node.mnt().to_str().unwrap()]);
    let said = node.fails(3, &["volume", "check", "data"]);
    assert!(said.contains("volume data is mounted"), "{said}");
    assert!(said.contains("lockstep umount data"), "{said}");
    assert!(mounted(&node.mnt()).is_some());
    std::fs::write(node.mnt().join("file"), "still there").unwrap();
    node.ok(&["umount", "data"]);
    assert_eq!(
        node.ok(&["volume", "check", "data"]),
        "volume data is clean\n"
    );
    let said = node.fails(3, &["volume", "check", "other"]);
    assert!(said.contains("lockstep volume list"), "{said}");
}
