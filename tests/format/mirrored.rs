//! What the engine gives to replication: transactions from which another volume can be kept the same, block for block, and
//! epochs in which a mirror's requests see them.

use std::sync::{Arc, Mutex};

use lockstepfs::fs::allocation::Allocation;
use lockstepfs::fs::{FallocMode, Fs, FsRole, How, New, open_volume, read_superblock, set_recover};
use lockstepfs::io::Disk;
use lockstepfs::io::sim::SimDisk;
use lockstepfs::journal::{Hint, Journal, JournalError, ResumeEnd, TailKeeper, Transaction};
use lockstepfs::units::{BlockNo, Generation, Txid};
use lockstepfs::volume::Volume;
use lockstepfs::volume::facts::{MirrorTail, Segment};
use xxhash_rust::xxh3::xxh3_64;

use crate::engine::{self, ROOT};
use crate::model::Model;
use crate::testkit::tree::Compare;
use crate::testkit::{DEBIAN_12, FEATURE_SETS, FeatureSet, Rng, e2fsck, mke2fs};

const GENERATION: Generation = Generation(77);

/// A volume that follows.
struct Mirror {
    disk: Arc<SimDisk>,
    volume: Arc<Volume>,
    journal: Arc<Journal>,
    fs: Fs,
}

impl Mirror {
    fn new(disk: SimDisk, block_size: u32) -> Mirror {
        let disk = Arc::new(disk);
        let volume = engine::volume(vec![Arc::clone(&disk) as Arc<dyn Disk>], block_size);
        let opened = open_volume(Arc::clone(&volume), Txid(0), How::ReadWrite).expect("opens");
        set_recover(&volume, true).expect("set");
        let journal = Arc::clone(&opened.journal);
        journal.begin_segment(GENERATION, Txid(1)).expect("begun");
        let fs = Fs::open(opened, engine::options(FsRole::Mirror)).expect("the engine opens");
        Mirror {
            disk,
            volume,
            journal,
            fs,
        }
    }

    /// Applies a transaction as a follower does; `home` reads what it refers to from the master.
    fn apply(&self, txn: &Transaction, home: &Volume) -> Vec<Hint> {
        for range in &txn.zeroed {
            self.volume.zero(*range).expect("zeroed");
        }
        for reference in &txn.refs {
            let len = reference.range.len as usize * self.volume.block_size() as usize;
            let mut bytes = vec![0; len];
            home.read(reference.range.start, &mut bytes).expect("read");
            assert_eq!(
                xxh3_64(&bytes),
                reference.xxh3,
                "what {} refers to",
                txn.txid
            );
            self.volume
                .write(reference.range.start, &bytes)
                .expect("written");
        }
        self.journal
            .append(std::slice::from_ref(txn))
            .expect("appended");
        self.fs
            .switch_epoch(std::slice::from_ref(txn))
            .expect("switched")
    }
}

/// Fails unless every allocated block outside the journal is equal, read through each side's log; but for the superblock.
fn assert_equal_blocks(what: &str, master: &Fs, mirror: &Mirror) {
    let sb = read_superblock(&mirror.volume).expect("superblock");
    let block_size = mirror.volume.block_size() as usize;
    let read = |journal: &Journal, block: BlockNo| {
        let mut bytes = vec![0; block_size];
        journal.read(block, &mut bytes).expect("read");
        bytes
    };
    let committed = |block| Ok(read(master.journal(), block).into());
    let allocation = Allocation::load(&sb, &committed).expect("loaded");
    let superblock = BlockNo(1024 / block_size as u64);
    for group in sb.geometry().groups() {
        for range in allocation.group(&committed, group).expect("listed") {
            for block in range.blocks() {
                let in_log = master.journal().map().0.iter().any(|r| r.contains(block));
                if in_log || block == superblock {
                    continue;
                }
                let same = read(master.journal(), block) == read(&mirror.journal, block);
                assert!(same, "{what}: block {block} differs");
            }
        }
    }
}

/// Random operations on a master, every transaction applied to a mirror that began as its copy.
fn follow(set: &FeatureSet, seed: u64, rounds: usize) {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    mke2fs(&image, 48 << 20, set).expect("mke2fs");
    let disk = Arc::new(SimDisk::load(&image).expect("loaded"));
    let mirror = Mirror::new(disk.snapshot(), set.block_size);
    let volume = engine::volume(vec![disk as Arc<dyn Disk>], set.block_size);
    let opened = open_volume(Arc::clone(&volume), Txid(0), How::ReadWrite).expect("opens");
    let journal = Arc::clone(&opened.journal);
    journal.set_consumer(1, Txid(0));
    journal.begin_segment(GENERATION, Txid(1)).expect("begun");
    let fs = Fs::open(opened, engine::options(FsRole::Master)).expect("the engine opens");
    fs.set_mirrored(true).expect("set");
    let mut rng = Rng(seed);
    let mut model = Model::new(&fs);
    model.max_bytes = 300_000;
    let mut applied = Txid(0);
    for round in 0..rounds {
        for _ in 0..60 {
            model.step(&fs, &mut rng);
            if rng.chance(10) {
                fs.sync().expect("synced");
                journal
                    .checkpoint(rng.below(500) as usize)
                    .expect("checkpoint");
            }
        }
        fs.sync().expect("synced");
        for info in journal.info_after(applied).expect("the log has them") {
            let txn = journal.load_transaction(info.txid).expect("loaded");
            let hints = mirror.apply(&txn, &volume);
            assert!(
                !hints.is_empty() || txn.images.len() <= 1,
                "hints of {}",
                txn.txid
            );
            applied = info.txid;
            mirror
                .journal
                .checkpoint(rng.below(500) as usize)
                .expect("checkpoint");
        }
        let what = format!("{}, seed {seed}, round {round}", set.name);
        let tree = engine::tree(&fs).expect("listed");
        engine::tree(&mirror.fs)
            .expect("listed")
            .assert_same(&tree, Compare::ALL);
        assert_equal_blocks(&what, &fs, &mirror);
        journal.set_consumer(1, applied);
    }
    assert!(
        mirror
            .fs
            .write(ROOT, 0, b"x")
            .is_err_and(|e| e.errno() == libc::EROFS)
    );
    let tree = engine::tree(&fs).expect("listed");
    mirror.fs.close().expect("closed");
    let copy = dir.path().join("copy");
    mirror.disk.save(&copy).expect("saved");
    e2fsck(&copy).expect("the mirror is clean");
    let fs = engine::open_read_only(&copy, set.block_size);
    engine::tree(&fs)
        .expect("listed")
        .assert_same(&tree, Compare::ALL);
}

#[test]
fn a_mirror_that_applies_every_transaction_is_equal_block_for_block() {
    for (seed, set) in [DEBIAN_12, FEATURE_SETS[1], FEATURE_SETS[4], FEATURE_SETS[8]]
        .iter()
        .enumerate()
    {
        follow(set, seed as u64, 5);
    }
}

/// What a fact file would hold.
#[derive(Default)]
struct Kept {
    saved: Mutex<Option<(Option<MirrorTail>, Vec<Segment>)>>,
}

impl TailKeeper for Kept {
    fn save_tail(
        &self,
        tail: Option<MirrorTail>,
        segments: &[Segment],
    ) -> Result<(), JournalError> {
        *self.saved.lock().expect("unpoisoned") = Some((tail, segments.to_vec()));
        Ok(())
    }

    fn make_room(&self, _: Txid, _: Txid) -> Result<(), JournalError> {
        panic!("the log is large enough");
    }
}

#[test]
fn freed_blocks_that_a_mirror_needs_stay_out_of_use_across_openings() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    mke2fs(&image, 16 << 20, &DEBIAN_12).expect("mke2fs");
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::load(&image).expect("loaded"));
    let keeper = Arc::new(Kept::default());
    let open = || {
        let volume = engine::volume(vec![Arc::clone(&disk)], 4096);
        let opened = open_volume(volume, Txid(0), How::ReadWrite).expect("opens");
        let journal = Arc::clone(&opened.journal);
        let saved = keeper.saved.lock().expect("unpoisoned").clone();
        if let Some((Some(tail), segments)) = saved {
            journal
                .resume(&segments, &tail, ResumeEnd::Recovered)
                .expect("resumed");
        }
        journal.set_consumer(1, Txid(0));
        journal.set_keeper(Arc::clone(&keeper) as Arc<dyn TailKeeper>);
        let first = Txid(journal.last_committed().0 + 2);
        journal.begin_segment(GENERATION, first).expect("begun");
        let fs = Fs::open(opened, engine::options(FsRole::Master)).expect("the engine opens");
        fs.set_mirrored(true).expect("set");
        (fs, journal)
    };
    let (fs, journal) = open();
    let new = New {
        mode: 0o100_644,
        ..New::default()
    };
    let attr = fs.create(ROOT, b"file", &new).expect("created");
    fs.write(attr.ino, 0, &vec![5; 2 << 20]).expect("written");
    let first = fs.sync().expect("synced");
    let txn = journal.load_transaction(first).expect("loaded");
    let pinned: Vec<_> = txn.refs.iter().map(|r| r.range).collect();
    assert_eq!(pinned.iter().map(|r| r.len).sum::<u64>(), 512);
    fs.unlink(ROOT, b"file").expect("removed");
    fs.sync().expect("synced");

    // Everything that is free but those blocks.
    let fill = |fs: &Fs, name: &[u8]| {
        let attr = fs.create(ROOT, name, &new).expect("created");
        let free = fs.statfs().expect("statfs").bfree;
        let range = FallocMode::Allocate { keep_size: true };
        let mut done = 0;
        while fs
            .fallocate(attr.ino, range, done * 4096, 4096 * 16)
            .is_ok()
        {
            done += 16;
            assert!(done < free, "as much as was free");
        }
        attr
    };
    let untouched = |journal: &Journal| {
        for range in &pinned {
            let mut bytes = vec![0; range.len as usize * 4096];
            journal.read(range.start, &mut bytes).expect("read");
            assert!(bytes.iter().all(|b| *b == 5), "{range} was used again");
        }
    };
    fill(&fs, b"ahead");
    untouched(&journal);
    fs.unlink(ROOT, b"ahead").expect("removed");
    fs.sync().expect("synced");
    // The process dies and the volume is opened again.
    drop(fs);
    drop(journal);
    let (fs, journal) = open();
    assert!(
        journal.covers(Txid(first.0 - 1)),
        "the log still has it all"
    );
    fill(&fs, b"ahead again");
    untouched(&journal);
    fs.unlink(ROOT, b"ahead again").expect("removed");
    fs.sync().expect("synced");
    // Once the mirror has it all, the space is there.
    journal.set_consumer(1, journal.last_committed());
    let attr = fs.create(ROOT, b"all", &new).expect("created");
    let free = fs.statfs().expect("statfs").bfree;
    fs.fallocate(
        attr.ino,
        FallocMode::Allocate { keep_size: true },
        0,
        (free - 8 - fs.volume().blocks_count() / 50) * 4096,
    )
    .expect("allocated");
    fs.close().expect("closed");
}

#[test]
fn a_write_that_needs_what_a_mirror_pins_asks_for_it_and_succeeds() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    mke2fs(&image, 16 << 20, &DEBIAN_12).expect("mke2fs");
    let volume = engine::volume(vec![engine::file_disk(&image, false)], 4096);
    let opened = open_volume(volume, Txid(0), How::ReadWrite).expect("opens");
    let journal = Arc::clone(&opened.journal);
    journal.set_consumer(1, Txid(0));
    journal.begin_segment(GENERATION, Txid(1)).expect("begun");
    let fs = Fs::open(opened, engine::options(FsRole::Master)).expect("the engine opens");
    fs.set_mirrored(true).expect("set");
    let asked = Arc::new(Mutex::new(0));
    let hook = (Arc::clone(&asked), Arc::clone(&journal));
    fs.set_low_space_hook(Box::new(move || {
        *hook.0.lock().expect("unpoisoned") += 1;
        hook.1.remove_consumer(1);
    }));
    let new = New {
        mode: 0o100_644,
        ..New::default()
    };
    let free = fs.statfs().expect("statfs").bfree;
    // All that the superuser may have.
    let len = (free as usize - 64 - 4096 / 50) * 4096;
    for round in 0..2 {
        let attr = fs.create(ROOT, b"file", &new).expect("created");
        let written = fs.write(attr.ino, 0, &vec![round; len]).expect("written");
        assert_eq!(written, len);
        assert_eq!(*asked.lock().expect("unpoisoned"), usize::from(round));
        fs.unlink(ROOT, b"file").expect("removed");
    }
    fs.close().expect("closed");
    drop(fs);
    drop(journal);
    e2fsck(&image).expect("clean");
}
