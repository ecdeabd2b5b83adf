//! Against what others wrote: logs of ours replayed by e2fsck, logs of the kernel replayed by us and by e2fsck.

use std::path::Path;
use std::sync::Arc;

use super::rig;
use crate::ext4;
use crate::io::Disk;
use crate::io::sim::SimDisk;
use crate::journal::{Journal, LogMap, Transaction};
use crate::units::{BlockNo, BlockRange, Txid, coalesce};
use crate::volume::Volume;

#[path = "../../../tests/testkit/mod.rs"]
mod testkit;

/// Where the journal inode's data is, as debugfs has it: not the blocks of its extent tree.
fn journal_map(image: &Path) -> LogMap {
    let blocks = testkit::run("debugfs", &["-R", "blocks <8>", image.to_str().unwrap()]).unwrap();
    let ranges: Vec<BlockRange> = blocks
        .split_whitespace()
        .map(|b| BlockRange::new(BlockNo(b.parse().unwrap()), 1))
        .collect();
    LogMap(coalesce(ranges))
}

fn open(disk: &Arc<SimDisk>, map: &LogMap, base: u64) -> Journal {
    let mut raw = [0; 1024];
    disk.read_at(&mut raw, 1024).unwrap();
    let size = 1024 << u32::from_le_bytes(raw[0x18..0x1c].try_into().unwrap());
    let disk: Arc<dyn Disk> = disk.clone();
    let volume = Arc::new(Volume::new(vec![disk], size).unwrap());
    Journal::load(volume, map.clone(), Txid(base)).unwrap()
}

fn set_recover(disk: &SimDisk, on: bool) {
    let mut raw = [0; 1024];
    disk.read_at(&mut raw, 1024).unwrap();
    let mut sb = ext4::Superblock::decode(&raw).unwrap();
    sb.set_incompat(0x4, on).unwrap();
    disk.write_at(sb.encode(), 1024).unwrap();
}

/// Every block but the superblock's and the journal's is the same.
fn assert_same_homes(a: &SimDisk, b: &SimDisk, map: &LogMap, block_size: usize) {
    let journal = map.0.clone();
    let blocks = a.len() / block_size as u64;
    let (mut x, mut y) = (vec![0; block_size], vec![0; block_size]);
    for block in 0..blocks {
        let at = block * block_size as u64;
        if at <= 1024 || journal.iter().any(|r| r.contains(BlockNo(block))) {
            continue;
        }
        a.read_at(&mut x, at).unwrap();
        b.read_at(&mut y, at).unwrap();
        assert!(x == y, "block {block} differs");
    }
}

/// Blocks at the volume's end that belong to no file.
fn free_blocks(disk: &SimDisk, size: usize, map: &LogMap) -> Vec<u64> {
    let blocks = disk.len() / size as u64;
    (blocks - 900..blocks - 100)
        .filter(|b| !map.0.iter().any(|r| r.contains(BlockNo(*b))))
        .collect()
}

fn image_of(size: usize, value: u64) -> crate::journal::Image {
    let mut bytes = vec![value as u8; size];
    bytes[8..16].copy_from_slice(&value.to_be_bytes());
    if value.is_multiple_of(5) {
        bytes[..4].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
    }
    bytes.into()
}

#[test]
fn e2fsck_replays_our_log_as_we_do() {
    if !testkit::need_tool("mke2fs") || !testkit::need_tool("e2fsck") {
        return;
    }
    for (size, features, sequence) in [
        (1024_usize, "", 1_u64),
        (4096, "", 1),
        (4096, "^64bit,^metadata_csum", 1),
        (2048, "", 0xffff_fff8),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        testkit::mke2fs_with(&path, 24 << 20, features, size as u32).unwrap();
        let map = journal_map(&path);
        let disk = Arc::new(SimDisk::load(&path).unwrap());
        set_recover(&disk, true);
        let journal = open(&disk, &map, sequence - 1);
        journal
            .begin_segment(rig::GENERATION, Txid(sequence))
            .unwrap();
        let homes = free_blocks(&disk, size, &map);
        let random = crate::io::sim::SimRandom::new(size as u64);
        let pick = || homes[random.below(homes.len() as u64) as usize];
        for t in sequence..sequence + 120 {
            let mut txn = Transaction {
                txid: Txid(t),
                ..Transaction::default()
            };
            for i in 0..random.below(20) {
                txn.images
                    .insert(BlockNo(pick()), image_of(size, t * 50 + i));
            }
            // More than one descriptor's worth.
            if t % 40 == 3 {
                for block in homes.iter().take(200) {
                    txn.images.insert(BlockNo(*block), image_of(size, t));
                }
            }
            for _ in 0..random.below(6) {
                let block = BlockNo(pick());
                if !txn.images.contains_key(&block) {
                    txn.freed.push(BlockRange::new(block, 1));
                }
            }
            journal.commit(&mut txn).unwrap();
            if t % 17 == 0 {
                journal.checkpoint(60).unwrap();
            }
            if t % 30 != 0 {
                continue;
            }
            let theirs = dir.path().join("theirs");
            disk.save(&theirs).unwrap();
            testkit::recover_journal(&theirs).unwrap();
            testkit::e2fsck(&theirs).unwrap();
            let theirs = SimDisk::load(&theirs).unwrap();
            let ours = Arc::new(disk.snapshot());
            assert_eq!(open(&ours, &map, t).recover().unwrap().last, Some(Txid(t)));
            assert_same_homes(&ours, &theirs, &map, size);
        }
        journal.close().unwrap();
        set_recover(&disk, false);
        let closed = dir.path().join("closed");
        disk.save(&closed).unwrap();
        testkit::e2fsck(&closed).unwrap();
    }
}

#[test]
fn the_kernel_mounts_what_we_closed_and_replays_what_we_did_not() {
    if !testkit::need_loop() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    testkit::mke2fs_with(&path, 24 << 20, "", 4096).unwrap();
    let map = journal_map(&path);
    let disk = Arc::new(SimDisk::load(&path).unwrap());
    set_recover(&disk, true);
    let journal = open(&disk, &map, 0);
    journal.begin_segment(rig::GENERATION, Txid(1)).unwrap();
    let homes = free_blocks(&disk, 4096, &map);
    for t in 1..30 {
        let mut txn = Transaction {
            txid: Txid(t),
            ..Transaction::default()
        };
        for i in 0..10 {
            let block = homes[((t * 7 + i) % homes.len() as u64) as usize];
            txn.images
                .insert(BlockNo(block), image_of(4096, t * 20 + i));
        }
        journal.commit(&mut txn).unwrap();
    }
    let dirty = dir.path().join("dirty");
    disk.save(&dirty).unwrap();
    testkit::LoopMount::new(&dirty).unwrap().unmount().unwrap();
    testkit::e2fsck(&dirty).unwrap();
    let kernel = SimDisk::load(&dirty).unwrap();
    let ours = Arc::new(disk.snapshot());
    open(&ours, &map, 0).recover().unwrap();
    for block in homes {
        let (mut a, mut b) = ([0; 4096], [0; 4096]);
        ours.read_at(&mut a, block * 4096).unwrap();
        kernel.read_at(&mut b, block * 4096).unwrap();
        assert!(a == b, "block {block}");
    }
    journal.close().unwrap();
    set_recover(&disk, false);
    let clean = dir.path().join("clean");
    disk.save(&clean).unwrap();
    testkit::LoopMount::read_only(&clean)
        .unwrap()
        .unmount()
        .unwrap();
    // The kernel writes through its own journal, and we go on with what it left.
    let mount = testkit::LoopMount::new(&clean).unwrap();
    std::fs::write(mount.path("file"), b"by the kernel").unwrap();
    mount.unmount().unwrap();
    let after = Arc::new(SimDisk::load(&clean).unwrap());
    let journal = open(&after, &map, 29);
    assert!(!journal.needs_recovery());
    set_recover(&after, true);
    journal.begin_segment(rig::GENERATION, Txid(100)).unwrap();
    let home = free_blocks(&after, 4096, &map)[5];
    let mut txn = Transaction {
        txid: Txid(100),
        images: [(BlockNo(home), image_of(4096, 9))].into(),
        ..Transaction::default()
    };
    journal.commit(&mut txn).unwrap();
    let again = dir.path().join("again");
    after.save(&again).unwrap();
    testkit::recover_journal(&again).unwrap();
    testkit::e2fsck(&again).unwrap();
    let again = SimDisk::load(&again).unwrap();
    let mut bytes = [0; 4096];
    again.read_at(&mut bytes, home * 4096).unwrap();
    assert_eq!(bytes[..], image_of(4096, 9)[..]);
}

#[test]
fn logs_that_the_kernel_left_are_replayed_as_e2fsck_does() {
    if !testkit::need_loop() {
        return;
    }
    for (features, options, size) in [
        ("", "", 4096_u32),
        ("", "", 1024),
        ("^metadata_csum,^64bit", "", 4096),
        ("^metadata_csum", "journal_checksum", 4096),
        ("", "data=journal", 4096),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        testkit::mke2fs_with(&path, 64 << 20, features, size).unwrap();
        let map = journal_map(&path);
        // The kernel's thread that zeroes inode tables would write while the image is copied: such a cut never happens.
        let options = match options {
            "" => "noinit_itable,commit=300".to_string(),
            other => format!("noinit_itable,commit=300,{other}"),
        };
        let mount = testkit::LoopMount::with_options(&path, &options).unwrap();
        for round in 0..6 {
            for i in 0..60 {
                std::fs::create_dir_all(mount.path(&format!("d{round}/{i}"))).unwrap();
                std::fs::write(mount.path(&format!("d{round}/{i}/f")), vec![i as u8; 3000])
                    .unwrap();
            }
            if round > 1 {
                // Freed directory blocks: revokes.
                std::fs::remove_dir_all(mount.path(&format!("d{}", round - 2))).unwrap();
            }
            std::fs::File::open(mount.path(&format!("d{round}")))
                .unwrap()
                .sync_all()
                .unwrap();
        }
        // The file as it is now is what a power cut would leave.
        let cut = dir.path().join("cut");
        std::fs::copy(&path, &cut).unwrap();
        mount.unmount().unwrap();

        let ours = Arc::new(SimDisk::load(&cut).unwrap());
        let journal = open(&ours, &map, 0);
        assert!(journal.needs_recovery(), "{features} {options}");
        let recovery = journal.recover().unwrap();
        assert!(recovery.blocks_replayed > 0, "{recovery:?}");
        set_recover_off_after_replay(&ours);
        testkit::recover_journal(&cut).unwrap();
        let theirs = SimDisk::load(&cut).unwrap();
        assert_same_homes(&ours, &theirs, &map, size as usize);
        let checked = dir.path().join("checked");
        ours.save(&checked).unwrap();
        testkit::e2fsck(&checked).unwrap_or_else(|e| panic!("{features} {options}: {e}"));
    }
}

/// The superblock may have come from the log: it is read again, then RECOVER goes.
fn set_recover_off_after_replay(disk: &SimDisk) {
    set_recover(disk, false);
}
