// A failed unwrap is a failed test.

use std::collections::BTreeSet;

use super::image::{TestFile, TestFs, store_and_check};
use super::*;
use crate::fs::allocation::Allocation;
use crate::fs::blocks::BlocksMut;
use crate::units::{Ino, Txid};

/// Small groups, so that there are many of them.
const SETS: &[(&str, &[&str])] = &[
    ("1 KiB", &["-b", "1024", "-g", "2048", "-N", "2048"]),
    ("2 KiB", &["-b", "2048", "-g", "2048", "-N", "2048"]),
    ("4 KiB", &["-b", "4096", "-g", "1024", "-N", "2048"]),
    ("flex groups of 4", &["-b", "1024", "-g", "2048", "-G", "4"]),
    (
        "no flex_bg",
        &["-b", "1024", "-g", "2048", "-O", "^flex_bg"],
    ),
    (
        "crc16",
        &["-b", "1024", "-g", "2048", "-O", "^metadata_csum,uninit_bg"],
    ),
    (
        "no checksums",
        &[
            "-b",
            "1024",
            "-g",
            "2048",
            "-O",
            "^metadata_csum,^uninit_bg",
        ],
    ),
    ("32 bit", &["-b", "1024", "-g", "2048", "-O", "^64bit"]),
    (
        "32 bit, crc16",
        &[
            "-b",
            "4096",
            "-g",
            "1024",
            "-O",
            "^64bit,^metadata_csum,uninit_bg",
        ],
    ),
    (
        "32 bit, no flex_bg",
        &["-b", "2048", "-g", "1024", "-O", "^64bit,^flex_bg"],
    ),
    (
        "meta_bg",
        &["-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode"],
    ),
    (
        "meta_bg, no flex_bg",
        &[
            "-b",
            "1024",
            "-g",
            "1024",
            "-O",
            "meta_bg,^resize_inode,^flex_bg,^64bit",
        ],
    ),
    (
        "no sparse_super",
        &[
            "-b",
            "1024",
            "-g",
            "2048",
            "-O",
            "^sparse_super,^resize_inode",
        ],
    ),
    (
        "sparse_super2, seed, mmp",
        &[
            "-b",
            "1024",
            "-g",
            "2048",
            "-O",
            "sparse_super2,metadata_csum_seed,mmp,^resize_inode",
        ],
    ),
    (
        "large inodes",
        &["-b", "4096", "-g", "1024", "-I", "1024", "-N", "1000"],
    ),
];

/// A small generator: runs are the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

fn committed(fs: &TestFs) -> impl Fn(BlockNo) -> Result<Image, FsError> + '_ {
    |block| fs.meta.get(block)
}

/// What `allocation` lists, and its opposite as dumpe2fs lists it.
#[track_caller]
fn same_as_dumpe2fs(fs: &mut TestFs) {
    let free = fs.dumpe2fs_free();
    let read = committed(fs);
    let allocation = Allocation::load(fs.meta.sb(), &read).unwrap();
    let count = fs.meta.sb().s_blocks_count();
    let whole = BlockRange::new(BlockNo(0), count);
    let listed = allocation.allocated(&read, whole).unwrap();
    let used: BTreeSet<u64> = listed.iter().flat_map(|r| r.start.0..r.end().0).collect();
    let expected: BTreeSet<u64> = (0..count).filter(|b| !free.contains(b)).collect();
    assert_eq!(used, expected);
    // Any window of it is the same, clipped.
    for (start, len) in [(0, 1), (1, 1), (700, 5000), (2047, 3), (count - 10, 10)] {
        let window = BlockRange::new(BlockNo(start), len);
        let listed = allocation.allocated(&read, window).unwrap();
        let part: Vec<u64> = listed.iter().flat_map(|r| r.start.0..r.end().0).collect();
        let expected: Vec<u64> = used.range(start..start + len).copied().collect();
        assert_eq!(part, expected, "{window}");
    }
}

fn work(args: &[&str], seed: u64, rounds: u32) {
    let mut fs = TestFs::make(32, args);
    same_as_dumpe2fs(&mut fs);
    let mut dice = Dice(seed);
    let mut files: Vec<TestFile> = Vec::new();
    let count = fs.meta.sb().s_blocks_count();
    for round in 0..rounds {
        match dice.roll(10) {
            0 | 1 if files.len() < 40 => {
                let directory = dice.roll(3) == 0;
                files.push(TestFile::create(&mut fs, directory, round * 7919));
            }
            2 if files.len() > 4 => {
                let file = files.swap_remove(dice.roll(files.len() as u64) as usize);
                file.delete(&mut fs);
            }
            3 if !files.is_empty() => {
                let i = dice.roll(files.len() as u64) as usize;
                if !files[i].directory {
                    let (from, len) = (dice.roll(400) as u32, dice.roll(300));
                    let to = u64::from(from) + len;
                    let end = files[i].remove(&mut fs, from, to, usize::MAX).unwrap();
                    assert_eq!(end, None);
                }
            }
            4 => fs.commit(),
            _ if !files.is_empty() => {
                let i = dice.roll(files.len() as u64) as usize;
                if files[i].directory {
                    continue;
                }
                let (goal, max) = (dice.roll(count), 1 + dice.roll(300) as u32);
                let at = files[i].end as u32 + dice.roll(2) as u32;
                fs.meta.touched.clear();
                let taken = fs.alloc_now(goal, 1, max);
                assert!(fs.meta.touched.len() <= ALLOC_BLOCKS_CREDITS);
                match taken {
                    Ok(range) => files[i].insert(&mut fs, at, range, round % 5 == 0).unwrap(),
                    Err(AllocError::Quarantined { blocks }) => {
                        assert_eq!(blocks, fs.allocator.quarantined_blocks());
                        fs.commit();
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            _ => {}
        }
    }
    store_and_check(&mut fs, &files);
    same_as_dumpe2fs(&mut fs);
    let (free, inodes) = (fs.allocator.free_blocks(), fs.allocator.free_inodes());
    let fresh = Allocator::load(&fs.meta).unwrap();
    assert_eq!(fresh.free_blocks(), free);
    assert_eq!(fresh.free_inodes(), inodes);
}

#[test]
fn what_is_allocated_and_freed_is_what_e2fsck_counts() {
    for (i, (name, args)) in SETS.iter().enumerate() {
        eprintln!("{name}");
        work(args, i as u64 + 1, 250);
    }
}

#[test]
fn more_work_on_the_usual_volume() {
    for seed in 100..104 {
        work(SETS[0].1, seed, 600);
    }
}

fn small() -> TestFs {
    TestFs::make(32, SETS[0].1)
}

fn request(goal: u64, min: u32, max: u32, privileged: bool) -> BlockRequest {
    BlockRequest {
        goal: BlockNo(goal),
        min,
        max,
        reach: match privileged {
            true => Reach::Tree,
            false => Reach::Anyone,
        },
    }
}

#[test]
fn freed_blocks_come_back_only_when_released() {
    let mut fs = small();
    let range = fs.alloc_now(9000, 10, 10).unwrap();
    assert_eq!(range.start, BlockNo(9000));
    let free = fs.allocator.free_blocks();
    fs.txid = Txid(5);
    fs.free(range).unwrap();
    assert_eq!(fs.allocator.free_blocks(), free + 10, "statfs counts them");
    assert_eq!(fs.allocator.quarantined_blocks(), 10);
    assert!(
        fs.allocator
            .is_quarantined(BlockRange::new(BlockNo(9009), 3))
    );
    assert!(
        !fs.allocator
            .is_quarantined(BlockRange::new(BlockNo(9010), 3))
    );
    let other = fs.alloc_now(9000, 1, 10).unwrap();
    assert!(!other.overlaps(&range), "{other}");
    assert_eq!(fs.allocator.release(Txid(4)), []);
    assert_eq!(fs.allocator.release(Txid(5)), [range]);
    assert_eq!(fs.allocator.quarantined_blocks(), 0);
    assert_eq!(fs.alloc_now(9000, 10, 10).unwrap(), range);
}

#[test]
fn a_quarantine_of_an_earlier_opening_comes_back() {
    let mut fs = small();
    let used = fs.alloc_now(9004, 2, 2).unwrap();
    assert_eq!(used.start, BlockNo(9004));
    let freed = BlockRange::new(BlockNo(9000), 10);
    for _ in 0..2 {
        fs.allocator
            .quarantine_again(&fs.meta, freed, Txid(3))
            .unwrap();
        assert_eq!(fs.allocator.quarantined_blocks(), 8);
    }
    let next = fs.alloc_now(9000, 1, 4).unwrap();
    assert!(!next.overlaps(&freed), "{next}");
    let released = fs.allocator.release(Txid(3));
    let range = |start, len| BlockRange::new(BlockNo(start), len);
    assert_eq!(released, [range(9000, 4), range(9006, 4)]);
}

#[test]
fn a_volume_that_is_full_only_for_the_quarantine_says_so() {
    let mut fs = small();
    let mut taken = Vec::new();
    while let Ok(range) = fs.alloc_now(0, 1, 5000) {
        taken.push(range);
    }
    assert_eq!(fs.allocator.free_blocks(), 0);
    assert!(matches!(fs.alloc_now(0, 1, 1), Err(AllocError::NoSpace)));
    let range = taken[3];
    fs.free(range).unwrap();
    match fs.alloc_now(0, 1, 1) {
        Err(AllocError::Quarantined { blocks }) => assert_eq!(blocks, range.len),
        other => panic!("{other:?}"),
    }
    fs.commit();
    assert!(range.contains(fs.alloc_now(0, 1, 1).unwrap().start));
}

#[test]
fn a_promise_to_a_write_counts_against_what_others_get() {
    let mut fs = small();
    let reserved = fs.allocator.reserved_blocks() + kept_for_trees(fs.meta.sb());
    let first = fs
        .allocator
        .reserve(&fs.meta, &request(9000, 1, 10, false))
        .unwrap();
    assert_eq!(fs.allocator.quarantined_blocks(), 0);
    let meta = &mut fs.meta;
    while fs
        .allocator
        .alloc_blocks(meta, &request(0, 1, 5000, false))
        .is_ok()
    {}
    assert_eq!(fs.allocator.free_blocks(), reserved + first.len);
    let refused = fs.allocator.reserve(meta, &request(0, 1, 1, false));
    assert!(matches!(refused, Err(AllocError::NoSpace)), "{refused:?}");
    fs.allocator.release(Txid(u64::MAX));
    fs.allocator.take_reserved(meta, first).unwrap();
    assert_eq!(fs.allocator.free_blocks(), reserved);
    fs.free(first).unwrap();
    let meta = &mut fs.meta;
    let refused = fs.allocator.reserve(meta, &request(0, 1, 1, false));
    assert!(refused.is_ok(), "the superuser's blocks are elsewhere");
}

#[test]
fn the_last_blocks_are_the_superusers() {
    let mut fs = small();
    let reserved = fs.allocator.reserved_blocks();
    assert!(reserved > 100);
    let mut taken = Vec::new();
    let meta = &mut fs.meta;
    while let Ok(range) = fs.allocator.alloc_blocks(meta, &request(0, 1, 5000, false)) {
        taken.push(range);
    }
    let for_trees = kept_for_trees(fs.meta.sb());
    assert_eq!(fs.allocator.free_blocks(), reserved + for_trees);
    let meta = &mut fs.meta;
    let root = BlockRequest {
        reach: Reach::Superuser,
        ..request(0, 1, 5000, false)
    };
    while fs.allocator.alloc_blocks(meta, &root).is_ok() {}
    assert_eq!(fs.allocator.free_blocks(), for_trees);
    while fs.alloc_now(0, 1, 5000).is_ok() {}
    assert_eq!(fs.allocator.free_blocks(), 0, "extent trees get all");
}

#[test]
fn what_can_not_be_a_files_is_not_freed() {
    let mut fs = small();
    let range = fs.alloc_now(9000, 10, 10).unwrap();
    let free = fs.allocator.free_blocks();
    let count = fs.meta.sb().s_blocks_count();
    let refused = |fs: &mut TestFs, start: u64, len: u64| {
        let r = fs.free(BlockRange::new(BlockNo(start), len));
        assert!(
            matches!(r, Err(FsError::Corrupt { .. })),
            "{start}+{len}: {r:?}"
        );
    };
    refused(&mut fs, range.start.0, 11); // the last one is free
    refused(&mut fs, range.start.0 - 1, 2);
    refused(&mut fs, 1, 1); // superblock
    refused(&mut fs, 2, 1); // descriptors
    refused(&mut fs, 0, 1); // before the first group
    refused(&mut fs, count - 1, 2);
    refused(&mut fs, u64::MAX, 2);
    refused(&mut fs, 9000, 0);
    refused(&mut fs, count - 1, 1); // free, in a group that was never written perhaps
    assert_eq!(
        fs.allocator.free_blocks(),
        free,
        "nothing was freed in part"
    );
    fs.free(range).unwrap();
    refused(&mut fs, range.start.0, 1); // twice
    fs.allocator.protect(&[BlockRange::new(BlockNo(9100), 4)]);
    let journal = fs.alloc_now(9103, 1, 1).unwrap();
    assert_eq!(journal.start, BlockNo(9103));
    refused(&mut fs, 9103, 1);
}

#[test]
fn long_requests_find_long_runs_and_the_goal_is_honoured() {
    let mut fs = small();
    // Holes of 4 blocks all over one group.
    let group = BlockNo(1 + 11 * 2048);
    for at in (group.0..group.0 + 2048).step_by(8) {
        let range = fs.alloc_now(at, 4, 4).unwrap();
        assert_eq!(range.start.0, at);
    }
    let range = fs.alloc_now(group.0, 1, 1000).unwrap();
    assert_eq!(range.len, 1000, "{range}");
    let range = fs.alloc_now(group.0, 1, 4).unwrap();
    assert_eq!((range.start.0, range.len), (group.0 + 4, 4));
    // A run at the goal is good enough from 16 blocks on.
    let range = fs.alloc_now(group.0 + 3 * 2048 + 2000, 1, 500).unwrap();
    assert_eq!((range.start.0, range.len), (group.0 + 3 * 2048 + 2000, 48));
}

#[test]
fn full_groups_are_not_read() {
    let mut fs = small();
    let mut taken = 0;
    while fs.allocator.free_blocks() > 100 {
        let most = fs.allocator.free_blocks() - 50;
        taken += fs.alloc_now(1, 1, most as u32).unwrap().len;
    }
    assert!(taken > 20_000);
    fs.meta.reads.set(0);
    fs.alloc_now(1, 1, 1).unwrap();
    assert!(fs.meta.reads.get() <= 8, "{}", fs.meta.reads.get());
}

#[test]
fn directories_spread_from_the_top_and_files_stay_with_them() {
    let mut fs = small();
    let group = |fs: &TestFs, ino| fs.allocator.geometry().inode_location(ino).unwrap().0;
    let mut groups = BTreeSet::new();
    let mut last = Ino(2);
    for i in 0..8 {
        let dir = TestFile::create(&mut fs, true, i);
        groups.insert(group(&fs, dir.slot.ino));
        last = dir.slot.ino;
    }
    assert!(groups.len() >= 6, "{groups:?}");
    for directory in [false, true] {
        let slot = fs
            .allocator
            .alloc_inode(
                &mut fs.meta,
                &InodeRequest {
                    parent: last,
                    directory,
                    top_level: false,
                    seed: 3,
                },
            )
            .unwrap();
        assert_eq!(group(&fs, slot.ino), group(&fs, last));
    }
}

#[test]
fn every_inode_can_be_used_and_freed() {
    for args in [SETS[0].1, SETS[4].1, SETS[6].1, SETS[14].1] {
        let mut fs = TestFs::make(16, args);
        let mut fresh = 0;
        let mut inos = BTreeSet::new();
        let most = fs.allocator.free_inodes();
        for seed in 0.. {
            let request = InodeRequest {
                parent: Ino(2),
                directory: false,
                top_level: false,
                seed,
            };
            fs.meta.touched.clear();
            let taken = fs.allocator.alloc_inode(&mut fs.meta, &request);
            assert!(fs.meta.touched.len() < ALLOC_INODE_CREDITS);
            match taken {
                Ok(slot) => {
                    assert!(slot.ino.0 >= 11 && inos.insert(slot.ino));
                    fresh += u64::from(slot.fresh_block);
                    if slot.fresh_block {
                        fs.meta.create(slot.block).unwrap();
                    }
                    assert_eq!(
                        fs.allocator.inode_place(slot.ino),
                        Some((slot.block, slot.offset))
                    );
                }
                Err(AllocError::NoSpace) => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(inos.len() as u64, most);
        let sb = fs.meta.sb();
        let per_block = sb.block_size() / u32::from(sb.inode_size());
        let blocks = u64::from(sb.s_inodes_count() / per_block);
        if sb.has_group_desc_csum() {
            // All but the blocks with the reserved inodes.
            assert!(fresh >= blocks - 4, "{fresh} of {blocks}");
        } else {
            assert_eq!(fresh, 0);
        }
        for ino in inos {
            assert!(fs.allocator.inode_in_use(&fs.meta, ino).unwrap());
            fs.allocator.free_inode(&mut fs.meta, ino, false).unwrap();
            assert!(!fs.allocator.inode_in_use(&fs.meta, ino).unwrap());
            let again = fs.allocator.free_inode(&mut fs.meta, ino, false);
            assert!(matches!(
                again,
                Err(AllocError::Fs(FsError::Corrupt { .. }))
            ));
        }
        for bad in [Ino(0), Ino(2), Ino(8), Ino(u32::MAX)] {
            assert!(fs.allocator.free_inode(&mut fs.meta, bad, false).is_err());
        }
        assert_eq!(fs.allocator.free_inodes(), most);
        fs.fsck();
    }
}

#[test]
fn damaged_descriptors_and_bitmaps_are_corrupt() {
    let mut fs = small();
    let corrupt =
        |r: Result<(), FsError>| assert!(matches!(r, Err(FsError::Corrupt { .. })), "{r:?}");
    let (block, offset) = fs.allocator.geometry().desc_location(GroupNo(3));
    // Any bit of a descriptor.
    for byte in 0..64 {
        fs.meta.modify(block).unwrap()[offset + byte] ^= 0x10;
        corrupt(Allocator::load(&fs.meta).map(|_| ()));
        corrupt(Allocation::load(fs.meta.sb(), &committed(&fs)).map(|_| ()));
        fs.meta.modify(block).unwrap()[offset + byte] ^= 0x10;
    }
    // A descriptor that took over another group's bitmap, checksums and all.
    let good = fs.meta.get(block).unwrap();
    let (_, other) = fs.allocator.geometry().desc_location(GroupNo(4));
    let sb = fs.meta.sb().clone();
    let mut desc = GroupDesc::decode(&sb, GroupNo(4), &good[other..]).unwrap();
    let stolen = desc.encode(&sb, GroupNo(3)).to_vec();
    fs.meta.modify(block).unwrap()[offset..offset + 64].copy_from_slice(&stolen);
    corrupt(Allocator::load(&fs.meta).map(|_| ()));
    fs.meta.modify(block).unwrap().copy_from_slice(&good);
    // A bit of a bitmap.
    let goal = 1 + 12 * 2048;
    fs.alloc_now(goal, 1, 1).unwrap();
    let desc = fs.allocator.groups[12].desc;
    fs.meta.modify(desc.bg_block_bitmap()).unwrap()[200] ^= 1;
    fs.allocator = Allocator::load(&fs.meta).unwrap();
    corrupt(fs.alloc_now(goal, 1, 1).map(|_| ()).map_err(FsError::from));
    {
        let read = committed(&fs);
        let allocation = Allocation::load(fs.meta.sb(), &read).unwrap();
        corrupt(allocation.group(&read, GroupNo(12)).map(|_| ()));
        assert!(allocation.group(&read, GroupNo(1)).is_ok());
        let whole = BlockRange::new(BlockNo(0), 30_000);
        let seen: Vec<_> = allocation.ranges(&read, whole).collect();
        assert_eq!(seen.iter().filter(|r| r.is_err()).count(), 1);
        assert!(seen.last().unwrap().is_err(), "the iterator ends there");
    }
    fs.meta.modify(desc.bg_block_bitmap()).unwrap()[200] ^= 1;
    let desc = fs.allocator.groups[0].desc;
    fs.meta.modify(desc.bg_inode_bitmap()).unwrap()[2] ^= 1;
    fs.allocator = Allocator::load(&fs.meta).unwrap();
    assert!(fs.alloc_now(goal, 1, 1).is_ok());
    corrupt(fs.allocator.inode_in_use(&fs.meta, Ino(12)).map(|_| ()));
}
