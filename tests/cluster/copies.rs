//! Copies of a volume on disk, judged by others: e2fsck, dumpe2fs, debugfs and the kernel.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::cluster::Cluster;
use crate::testkit::{LoopMount, Tree, e2fsck, join_parts, recover_journal, run, tree_digest};

/// What dumpe2fs and debugfs say of an image.
#[derive(Debug)]
pub struct Layout {
    /// Bytes of a block.
    pub block_size: u64,
    /// Blocks.
    pub blocks: u64,
    free: Vec<RangeInclusive<u64>>,
    journal: Vec<RangeInclusive<u64>>,
    /// The block of the multiple mount protection, if there is one.
    mmp: Option<u64>,
    /// First blocks of the groups: where superblocks may be.
    first: BTreeSet<u64>,
}

impl Layout {
    /// Reads it.
    pub fn of(image: &Path) -> Layout {
        let text = run("dumpe2fs", &[image]).unwrap();
        let field = |name: &str| -> Option<u64> {
            let line = text.lines().find(|l| l.starts_with(name))?;
            line[name.len()..].trim().parse().ok()
        };
        let mut free = Vec::new();
        let mut first = BTreeSet::new();
        for line in text.lines().map(str::trim) {
            if let Some(list) = line.strip_prefix("Free blocks: ") {
                free.extend(list.split(',').filter_map(range));
            }
            // "Group 0: (Blocks 1-8192) ..."; other lines begin with the word, too.
            if let Some((_, blocks)) = line.split_once(": (Blocks ") {
                let (blocks, _) = blocks.split_once(')').unwrap();
                first.insert(*range(blocks).unwrap().start());
            }
        }
        let blocks = run(
            "debugfs",
            &["-R".as_ref(), "blocks <8>".as_ref(), image.as_os_str()],
        );
        let mut journal: Vec<RangeInclusive<u64>> = Vec::new();
        for block in blocks.unwrap().split_whitespace() {
            let block: u64 = block.parse().unwrap();
            match journal.last_mut() {
                Some(last) if *last.end() + 1 == block => *last = *last.start()..=block,
                _ => journal.push(block..=block),
            }
        }
        assert!(!journal.is_empty(), "{}: no journal", image.display());
        Layout {
            block_size: field("Block size:").unwrap(),
            blocks: field("Block count:").unwrap(),
            free,
            journal,
            mmp: field("MMP block number:"),
            first,
        }
    }

    /// The allocated blocks outside the journal.
    pub fn compared(&self) -> Vec<u64> {
        let mut take = vec![true; usize::try_from(self.blocks).unwrap()];
        for range in self.free.iter().chain(&self.journal) {
            for block in range.clone() {
                take[block as usize] = false;
            }
        }
        if let Some(mmp) = self.mmp {
            take[mmp as usize] = false;
        }
        (0..self.blocks).filter(|b| take[*b as usize]).collect()
    }

    /// Bytes allocated outside the journal.
    pub fn allocated_bytes(&self) -> u64 {
        self.compared().len() as u64 * self.block_size
    }
}

fn range(text: &str) -> Option<RangeInclusive<u64>> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    Some(from.parse().unwrap()..=to.parse().unwrap())
}

/// Fields of the superblock that are each side's own: RECOVER, mount and write times, the mount count, the checksum.
/// (offset, bytes)
const EXEMPT: &[(usize, usize)] = &[
    (0x2c, 4),
    (0x30, 4),
    (0x34, 2),
    (0x40, 4),
    (0xc8, 4),
    (0x274, 3),
    (0x3fc, 4),
];
/// `s_feature_incompat`, and RECOVER in it.
const INCOMPAT: usize = 0x60;
const RECOVER: u8 = 0x04;
/// The superblock, in its block: the first 1024 bytes of a volume are nobody's.
const SUPER: usize = 1024;

fn masked(block: u64, size: u64, bytes: &mut [u8]) {
    let at = match (size, block) {
        (1024, 1) => 0,
        (1024, _) => return,
        (_, 0) => SUPER,
        _ => return,
    };
    for (from, len) in EXEMPT {
        bytes[at + from..at + from + len].fill(0);
    }
    bytes[at + INCOMPAT] &= !RECOVER;
}

/// Fails the test unless all allocated blocks outside the journal are equal, but for the fields named above.
#[track_caller]
pub fn assert_equal_blocks(master: &Path, mirror: &Path) {
    let layout = Layout::of(master);
    let size = layout.block_size;
    let (one, two) = (File::open(master).unwrap(), File::open(mirror).unwrap());
    assert_eq!(
        one.metadata().unwrap().len(),
        two.metadata().unwrap().len(),
        "sizes"
    );
    let (mut a, mut b) = (vec![0; size as usize], vec![0; size as usize]);
    let mut differ = Vec::new();
    for block in layout.compared() {
        one.read_exact_at(&mut a, block * size).unwrap();
        two.read_exact_at(&mut b, block * size).unwrap();
        if a == b {
            continue;
        }
        masked(block, size, &mut a);
        masked(block, size, &mut b);
        if let Some(at) = a.iter().zip(&b).position(|(x, y)| x != y) {
            let first = if layout.first.contains(&block) {
                ", first of its group"
            } else {
                ""
            };
            differ.push(format!("block {block}{first}, at byte {at}"));
        }
    }
    assert!(
        differ.is_empty(),
        "{} allocated blocks differ:\n{}",
        differ.len(),
        differ[..differ.len().min(30)].join("\n")
    );
}

/// One image of several parts (the only part itself, if there is one).
pub fn image_of(parts: &[PathBuf], scratch: &Path) -> PathBuf {
    if let [only] = parts {
        return only.clone();
    }
    join_parts(parts, scratch).unwrap();
    scratch.to_owned()
}

/// What the kernel shows of an image that was closed cleanly; it is mounted read-only and left as it is.
#[track_caller]
pub fn kernel_tree(image: &Path) -> Tree {
    let mount = LoopMount::read_only(image).unwrap();
    let tree = tree_digest(mount.dir()).unwrap();
    mount.unmount().unwrap();
    tree
}

/// A sparse copy of an image, as it is at this moment.
pub fn copy_of(image: &Path, to: &Path) -> PathBuf {
    run(
        "cp",
        &[
            "--sparse=always".as_ref(),
            image.as_os_str(),
            to.as_os_str(),
        ],
    )
    .unwrap();
    to.to_owned()
}

/// Recovers a copy by mounting it with the kernel; the copy has to be clean then. What it shows.
#[track_caller]
pub fn recovered_by_kernel(copy: &Path) -> Tree {
    let mount = LoopMount::new(copy).unwrap();
    let tree = tree_digest(mount.dir()).unwrap();
    mount.unmount().unwrap();
    e2fsck(copy).unwrap();
    tree
}

impl Cluster {
    /// Stops what still runs; e2fsck finds nothing in any copy. What a daemon that was killed left in its log, e2fsck replays
    /// first, in a copy of the copy.
    #[track_caller]
    pub fn end_clean(mut self) {
        for node in self.nodes() {
            if node.runs() {
                node.stop();
            }
        }
        let mut judged = 0;
        for part in self.parts().into_iter().filter(|part| part.exists()) {
            judged += 1;
            match e2fsck(&part) {
                Err(said) if said.contains("skipping journal recovery") => {
                    let copy = copy_of(&part, &self.path("judged"));
                    recover_journal(&copy).unwrap();
                    e2fsck(&copy).unwrap();
                }
                clean => clean.unwrap(),
            }
        }
        assert!(judged > 0, "there is nothing to be judged");
    }
}

#[test]
fn a_block_that_differs_is_noticed_and_what_is_exempt_is_not() {
    if !crate::testkit::need_loop() {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    for block_size in [1024, 4096] {
        crate::testkit::mke2fs_with(&one, 32 << 20, "", block_size).unwrap();
        let mount = LoopMount::new(&one).unwrap();
        std::fs::write(mount.path("file"), vec![1; 100_000]).unwrap();
        mount.unmount().unwrap();
        copy_of(&one, &two);
        assert_equal_blocks(&one, &two);
        let file = File::options().write(true).open(&two).unwrap();
        // The mount count and the checksum; and a block that is not allocated.
        file.write_all_at(&[77], 1024 + 0x34).unwrap();
        file.write_all_at(&[77], 1024 + 0x3fc).unwrap();
        let free = *Layout::of(&one).free.last().unwrap().start();
        file.write_all_at(&[77], free * u64::from(block_size))
            .unwrap();
        assert_equal_blocks(&one, &two);
        // The volume's name; and the last byte of a file's block.
        for at in [
            1024 + 0x78,
            Layout::of(&one).compared()[40] * u64::from(block_size) + 1,
        ] {
            let mut byte = [0];
            File::open(&two)
                .unwrap()
                .read_exact_at(&mut byte, at)
                .unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            let seen = std::panic::catch_unwind(|| assert_equal_blocks(&one, &two));
            assert!(seen.is_err(), "byte {at}");
            file.write_all_at(&byte, at).unwrap();
        }
        assert_equal_blocks(&one, &two);
    }
}
