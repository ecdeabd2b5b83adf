//! Files, directories and metadata of a volume that mke2fs filled, looked for by their blocks, which debugfs tells.

use std::process::Command;
use std::sync::Arc;

use super::*;
use crate::io::file::{FileDisk, OpenMode};
use crate::volume::Volume;
use crate::volume::mkfs::tools::tool;

fn run(command: &mut Command) -> String {
    let out = command.output().expect("e2fsprogs is installed");
    assert!(out.status.success(), "{out:?}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

struct Image {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    volume: Volume,
}

fn image() -> Image {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    std::fs::write(tree.join("a/b/large"), vec![7; 50_000]).unwrap();
    std::fs::hard_link(tree.join("a/b/large"), tree.join("a/b/other")).unwrap();
    std::fs::write(tree.join("small"), b"small").unwrap();
    std::os::unix::fs::symlink("x".repeat(200), tree.join("link")).unwrap();
    for n in 0..100 {
        std::fs::write(tree.join(format!("a/file {n}")), b"x").unwrap();
    }
    let path = dir.path().join("image");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(20 << 20)
        .unwrap();
    let mut mke2fs = tool("mke2fs").unwrap();
    let args = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        "1024",
        "-O",
        "metadata_csum,64bit",
        "-d",
    ];
    run(mke2fs.args(args).arg(&tree).arg(&path));
    let mode = OpenMode {
        create_len: None,
        read_only: true,
    };
    let disk = Arc::new(FileDisk::open(&path, mode).unwrap());
    let volume = Volume::new(vec![disk], 1024).unwrap();
    Image {
        _dir: dir,
        path,
        volume,
    }
}

impl Image {
    fn debugfs(&self, request: &str) -> String {
        run(tool("debugfs")
            .unwrap()
            .args(["-R", request])
            .arg(&self.path))
    }

    /// The blocks of a path, as debugfs lists them.
    fn blocks(&self, path: &str) -> Vec<u64> {
        let listed = self.debugfs(&format!("blocks {path}"));
        listed
            .split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect()
    }

    fn ask(&self, blocks: &[u64]) -> Vec<String> {
        let wanted: Vec<_> = blocks
            .iter()
            .map(|b| BlockRange::new(BlockNo(*b), 1))
            .collect();
        let found = owners(&self.volume, &wanted, 1000).unwrap();
        assert!(!found.cut);
        found
            .owned
            .iter()
            .map(|owned| owned.owner.to_string())
            .collect()
    }
}

#[test]
fn blocks_are_named_by_file_and_bytes() {
    let image = image();
    let large = image.blocks("/a/b/large");
    assert_eq!(large.len(), 49);
    assert_eq!(
        image.ask(&large[3..4]),
        ["file /a/b/large, bytes 3072 to 4095"]
    );
    assert_eq!(image.ask(&large), ["file /a/b/large, bytes 0 to 50175"]);
    assert_eq!(
        image.ask(&image.blocks("/small")),
        ["file /small, bytes 0 to 1023"]
    );
    assert_eq!(
        image.ask(&image.blocks("/link")),
        ["file /link, bytes 0 to 1023"]
    );
    assert_eq!(image.ask(&image.blocks("/a/b")), ["directory /a/b"]);
    assert_eq!(image.ask(&image.blocks("/")), ["directory /"]);
    let journal = image.blocks("<8>");
    assert_eq!(image.ask(&journal[10..11]), ["the journal"]);
}

#[test]
fn metadata_and_free_blocks_are_named() {
    let image = image();
    assert_eq!(
        image.ask(&[0, 1]),
        ["the boot block", "superblock copy of group 0"]
    );
    assert_eq!(image.ask(&[2]), ["group descriptors in group 0"]);
    let stats = image.debugfs("stats -h");
    assert!(stats.contains("metadata_csum"), "{stats}");
    let place = |what: &str| -> u64 {
        let dump = run(tool("dumpe2fs").unwrap().arg(&image.path));
        let at = dump.find(what).unwrap() + what.len();
        let digits: String = dump[at..]
            .trim_start()
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        digits.parse().unwrap()
    };
    assert_eq!(
        image.ask(&[place("Block bitmap at")]),
        ["block bitmap of group 0"]
    );
    assert_eq!(
        image.ask(&[place("Inode bitmap at")]),
        ["inode bitmap of group 0"]
    );
    let table = place("Inode table at");
    assert_eq!(
        image.ask(&[table + 1]),
        ["inode table of group 0, inodes 5 to 8"]
    );
    assert_eq!(image.ask(&[20_000]), ["free"]);
}

#[test]
fn a_wish_for_everything_is_answered_for_every_block_and_can_be_cut() {
    let image = image();
    let all = BlockRange::new(BlockNo(0), image.volume.blocks_count());
    let found = owners(&image.volume, &[all], 100_000).unwrap();
    let mut next = 0;
    for owned in &found.owned {
        assert_eq!(owned.blocks.start.0, next, "{owned:?}");
        assert_ne!(owned.owner, Owner::Unknown, "{owned:?}");
        assert!(owned.blocks.len > 0, "{owned:?}");
        next = owned.blocks.end().0;
    }
    assert_eq!(next, all.len);
    let cut = owners(&image.volume, &[all], 3).unwrap();
    assert!(cut.cut);
    assert!(cut.owned.iter().any(|owned| owned.owner == Owner::Unknown));
}
