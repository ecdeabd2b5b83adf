//! Committing, reading, checkpointing, closing, recovering.

use std::sync::Arc;

use super::rig::*;
use crate::io::sim::{Fault, Survivors};
use crate::journal::{Journal, JournalError, Refused, ResumeEnd, Transaction};
use crate::units::{BlockNo, Generation, Txid};

#[test]
fn a_commit_takes_two_flushes_and_a_group_as_well() {
    let (_disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1)]);
    let before = journal.stats().flushes;
    commit(&journal, 2, &[(10, 2), (11, 3)]);
    assert_eq!(journal.stats().flushes - before, 2);
    let group: Vec<Transaction> = (3..40).map(|t| txn(t, &[(t, t)])).collect();
    let before = journal.stats().flushes;
    journal.append(&group).unwrap();
    assert_eq!(journal.stats().flushes - before, 2);
}

#[test]
fn reading_sees_the_last_published_transaction() {
    let (_disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1), (12, 3)]);
    journal
        .append(&[txn(2, &[(10, 2)]), txn(3, &[(11, 4)])])
        .unwrap();
    assert_eq!(read(&journal, 10), image(1)[..]);
    assert_eq!(journal.last_committed(), Txid(3));
    assert_eq!(journal.last_published(), Txid(1));
    journal.publish(Txid(2));
    let mut buf = vec![0; 4 * BLOCK];
    journal.read(BlockNo(9), &mut buf).unwrap();
    assert_eq!(buf[BLOCK..2 * BLOCK], image(2)[..]);
    assert_eq!(buf[2 * BLOCK..3 * BLOCK], [0; BLOCK]);
    assert_eq!(buf[3 * BLOCK..], image(3)[..]);
    journal.publish(Txid(3));
    assert_eq!(read(&journal, 11), image(4)[..]);
    assert!(journal.image(BlockNo(13)).unwrap().is_none());
}

#[test]
fn who_learns_of_a_commit_reads_what_it_wrote() {
    let (_disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1)]);
    std::thread::scope(|scope| {
        let committer = scope.spawn(|| {
            for txid in 2..20_000 {
                commit(&journal, txid, &[(10, txid)]);
                if txid % 64 == 0 {
                    checkpoint_all(&journal);
                }
            }
        });
        while !committer.is_finished() {
            let known = journal.last_committed();
            let seen = u64::from_be_bytes(read(&journal, 10)[8..16].try_into().unwrap());
            assert!(
                seen >= known.0,
                "{known} is committed, its block is of {seen}"
            );
        }
    });
}

#[test]
fn checkpoint_writes_the_newest_published_image_and_moves_the_tail() {
    let (disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1), (11, 1)]);
    commit(&journal, 2, &[(10, 2)]);
    journal.append(&[txn(3, &[(11, 9)])]).unwrap();
    let written = journal.stats().blocks_written;
    checkpoint_all(&journal);
    assert_eq!(journal.stats().blocks_written, written);
    assert_eq!(home(&disk, 10), image(2)[..]);
    assert_eq!(home(&disk, 11), image(1)[..]);
    assert_eq!(journal.stats().checkpoint_tail, Txid(3));
    assert_eq!(journal.stats().overlay_blocks, 0);
    journal.publish(Txid(3));
    checkpoint_all(&journal);
    assert_eq!(home(&disk, 11), image(9)[..]);
    assert_eq!(journal.stats().used_by_replay, 0);
}

#[test]
fn a_superseded_image_lets_the_tail_pass_without_going_home() {
    let (disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1)]);
    commit(&journal, 2, &[(10, 2), (20, 2)]);
    journal.set_consumer(1, Txid(0));
    // Pinned by nobody: only the newest of block 10 goes home.
    journal.checkpoint(1).unwrap();
    assert_eq!(home(&disk, 10), image(2)[..]);
    assert_eq!(journal.stats().checkpoint_tail, Txid(2));
}

#[test]
fn recovery_brings_home_what_was_committed() {
    let (disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1), (11, 3), (12, 10)]);
    commit(&journal, 2, &[(10, 2)]);
    journal.append(&[txn(3, &[(13, 5)])]).unwrap();
    drop(journal);
    let again = load(&disk, 0);
    assert!(again.needs_recovery());
    let recovery = again.recover().unwrap();
    assert_eq!(recovery.transactions, 3);
    assert_eq!(recovery.last, Some(Txid(3)));
    assert_eq!(recovery.blocks_replayed, 4);
    assert!(!again.needs_recovery());
    for (block, value) in [(10, 2), (11, 3), (12, 10), (13, 5)] {
        assert_eq!(home(&disk, block), image(value)[..]);
    }
    assert!(!load(&disk, 0).needs_recovery());
}

#[test]
fn a_read_only_opening_lays_the_log_over_home() {
    let (disk, journal) = fresh();
    commit(&journal, 1, &[(10, 3), (11, 3)]);
    drop(journal);
    let before = disk.snapshot();
    let again = load(&disk, 0);
    assert_eq!(again.recover_overlay().unwrap().last, Some(Txid(1)));
    assert_eq!(read(&again, 10), image(3)[..]);
    assert_eq!(home(&disk, 10), [0; BLOCK]);
    assert!(before.same_contents(&disk));
}

#[test]
fn a_freed_block_does_not_come_back() {
    let (disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1), (11, 1)]);
    let mut free = txn(2, &[(20, 1)]);
    free.freed = vec![range(10, 1), range(11, 1), range(30, 1000)];
    free.images.insert(BlockNo(11), image(4));
    journal.commit(&mut free).unwrap();
    assert!(!journal.has_logged(BlockNo(10)));
    assert!(journal.has_logged(BlockNo(11)));
    // Reused for data that goes straight home.
    write_home(&journal, 10, 77);
    commit(&journal, 3, &[(21, 1)]);
    assert_eq!(read(&journal, 10), image(77)[..]);
    let crashed = disk.snapshot();
    checkpoint_all(&journal);
    assert_eq!(home(&disk, 10), image(77)[..]);
    let crashed = Arc::new(crashed);
    let recovery = load(&crashed, 0).recover().unwrap();
    assert_eq!(recovery.revoked, 1);
    assert_eq!(home(&crashed, 10), image(77)[..]);
    assert_eq!(home(&crashed, 11), image(4)[..]);
}

#[test]
fn a_block_freed_and_used_again_replays_as_its_last_image() {
    let (disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1)]);
    let mut free = txn(3, &[]);
    free.freed = vec![range(10, 1)];
    journal.commit(&mut free).unwrap();
    commit(&journal, 5, &[(10, 5)]);
    assert_eq!(read(&journal, 10), image(5)[..]);
    load(&disk, 0).recover().unwrap();
    assert_eq!(home(&disk, 10), image(5)[..]);
}

#[test]
fn a_group_revokes_what_it_logged_itself() {
    let (disk, journal) = fresh();
    let mut free = txn(2, &[]);
    free.freed = vec![range(10, 1)];
    journal
        .append(&[txn(1, &[(10, 1), (11, 1)]), free, txn(3, &[(12, 1)])])
        .unwrap();
    journal.publish(Txid(3));
    assert_eq!(load(&disk, 0).recover().unwrap().revoked, 1);
    assert_eq!(home(&disk, 10), [0; BLOCK]);
}

#[test]
fn small_logs_wrap_many_times() {
    let (disk, journal) = fresh();
    let mut expected = std::collections::BTreeMap::new();
    for t in 1..400 {
        let images: Vec<(u64, u64)> = (0..(t * 7) % 90 + 1)
            .map(|i| ((t * 13 + i * 5) % 900, t * 1000 + i))
            .collect();
        commit(&journal, t, &images);
        expected.extend(images);
        if t % 50 == 0 {
            let crashed = Arc::new(disk.snapshot());
            let again = load(&crashed, 0);
            assert_eq!(again.recover().unwrap().last, Some(Txid(t)));
            for (block, value) in &expected {
                assert_eq!(
                    home(&crashed, *block),
                    image(*value)[..],
                    "block {block} at {t}"
                );
            }
        }
    }
    for (block, value) in &expected {
        assert_eq!(read(&journal, *block), image(*value)[..]);
    }
}

#[test]
fn a_payload_larger_than_a_block_comes_back() {
    let (_disk, journal) = fresh();
    let mut big = txn(1, &[(10, 1)]);
    big.freed = (0..500).map(|i| range(100 + i * 3, 1)).collect();
    big.hints = (0..300)
        .map(|i| crate::journal::Hint::Entry {
            parent: crate::units::Ino(i),
            name: vec![b'x'; 200],
        })
        .collect();
    journal.commit(&mut big).unwrap();
    assert_eq!(journal.load_transaction(Txid(1)).unwrap(), big);
}

#[test]
fn images_beyond_the_memory_limit_are_read_from_the_log() {
    let (disk, journal) = fresh();
    journal.state.write().overlay = crate::journal::overlay::Overlay::new(3 * BLOCK);
    let images: Vec<(u64, u64)> = (0..40).map(|i| (100 + i, i)).collect();
    commit(&journal, 1, &images);
    for (block, value) in &images {
        assert_eq!(read(&journal, *block), image(*value)[..]);
        assert_eq!(
            journal.image(BlockNo(*block)).unwrap().unwrap()[..],
            image(*value)[..]
        );
    }
    checkpoint_all(&journal);
    for (block, value) in &images {
        assert_eq!(home(&disk, *block), image(*value)[..]);
    }
}

#[test]
fn tids_wrap_within_a_log() {
    let disk = fresh_disk();
    let journal = load(&disk, 0xffff_fff0);
    journal
        .begin_segment(GENERATION, Txid(0xffff_fffd))
        .unwrap();
    for t in 0xffff_fffd..0x1_0000_0005_u64 {
        commit(&journal, t, &[(t & 0xff, t)]);
    }
    let again = load(&disk, 0xffff_fff0);
    assert_eq!(again.recover().unwrap().last, Some(Txid(0x1_0000_0004)));
    assert_eq!(home(&disk, 0x04), image(0x1_0000_0004)[..]);
}

#[test]
fn gaps_in_the_txids_are_free() {
    let (disk, journal) = fresh();
    for t in [3, 9, 1 << 33, (1 << 33) + 70] {
        commit(&journal, t, &[(t & 0xff, t)]);
    }
    let infos = journal.info_after(Txid(0)).unwrap();
    assert_eq!(infos.len(), 4);
    let recovery = load(&disk, 0).recover().unwrap();
    assert_eq!(recovery.transactions, 4);
    assert_eq!(recovery.last, Some(Txid((1 << 33) + 70)));
}

#[test]
fn close_and_resume_go_on_at_the_old_head() {
    let (disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1)]);
    commit(&journal, 2, &[(11, 2)]);
    let tail = journal.state.read().saveable(&journal.log, true).0;
    assert_eq!(tail.txid, Txid(3));
    let segment = journal.state.read().segments[0].0;
    let head = journal.close().unwrap();
    assert_eq!(head.txid, Txid(2));
    drop(journal);

    let again = load(&disk, 2);
    assert!(!again.needs_recovery());
    let first = crate::volume::facts::MirrorTail {
        log_block: segment.first_block,
        txid: Txid(1),
        generation: GENERATION,
    };
    let infos = again
        .resume(&[segment], &first, ResumeEnd::Clean(head))
        .unwrap();
    assert_eq!(infos.iter().map(|i| i.txid.0).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(again.chain(), head.chain);
    again.begin_segment(Generation(2), Txid(5)).unwrap();
    commit(&again, 5, &[(10, 5)]);
    assert_eq!(again.info_after(Txid(0)).unwrap().len(), 3);
    assert!(again.info_after(Txid(0)).unwrap()[2].log_start > segment.first_block);
    let crashed = Arc::new(disk.snapshot());
    let third = load(&crashed, 2);
    let recovery = third.recover().unwrap();
    // What is behind the segment's start is not replayed.
    assert_eq!(recovery.transactions, 1);
    let segments: Vec<_> = again.state.read().segments.iter().map(|s| s.0).collect();
    let infos = third
        .resume(&segments, &first, ResumeEnd::Recovered)
        .unwrap();
    assert_eq!(
        infos.iter().map(|i| i.txid.0).collect::<Vec<_>>(),
        [1, 2, 5]
    );
    assert_eq!(
        third.load_transaction(Txid(2)).unwrap().images,
        txn(2, &[(11, 2)]).images
    );
}

#[test]
fn a_write_error_aborts_and_reading_goes_on() {
    let (disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1)]);
    disk.inject(Fault::WritesAfter(0));
    let error = journal.commit(&mut txn(2, &[(10, 2)])).unwrap_err();
    assert!(matches!(error, JournalError::Aborted(_)), "{error}");
    disk.heal();
    let first = journal.aborted().unwrap();
    let later = journal.commit(&mut txn(3, &[(10, 3)])).unwrap_err();
    assert!(matches!(later, JournalError::Aborted(cause) if Arc::ptr_eq(&cause, &first)));
    assert!(journal.checkpoint(10).is_err());
    assert_eq!(read(&journal, 10), image(1)[..]);
}

#[test]
fn a_flush_error_aborts_and_is_recorded() {
    let (disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1)]);
    disk.inject(Fault::FlushesAfter(1));
    assert!(journal.commit(&mut txn(2, &[(10, 2)])).is_err());
    disk.heal();
    assert!(journal.aborted().is_some());
    disk.crash(Survivors::All);
    let again = load(&disk, 0);
    assert_eq!(again.found_errno(), -5);
    assert!(again.recover().unwrap().last >= Some(Txid(1)));
}

#[test]
fn the_caller_is_told_what_it_did_wrong() {
    let disk = fresh_disk();
    let journal = load(&disk, 0);
    let refused = |result: Result<(), JournalError>| match result {
        Err(JournalError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(journal.append(&[txn(1, &[])])), Refused::NoSegment);
    journal.begin_segment(GENERATION, Txid(10)).unwrap();
    assert!(matches!(
        refused(journal.append(&[txn(9, &[])])),
        Refused::OutOfOrder { .. }
    ));
    assert!(matches!(
        refused(journal.append(&[txn(10, &[(1 << 40, 1)])])),
        Refused::BadBlock { .. }
    ));
    let many: Vec<(u64, u64)> = (0..700).map(|i| (i, i)).collect();
    assert!(matches!(
        refused(journal.append(&[txn(10, &many)])),
        Refused::TooLarge { .. }
    ));
    journal.append(&[txn(10, &[(1, 1)])]).unwrap();
    assert!(matches!(
        journal.close(),
        Err(JournalError::Refused(Refused::Unpublished(_)))
    ));
    assert!(matches!(
        journal.load_transaction(Txid(11)),
        Err(JournalError::Refused(Refused::NotInLog(_)))
    ));
    assert!(journal.aborted().is_none());
}

#[test]
fn what_was_not_confirmed_is_dropped_for_good() {
    let (disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1)]);
    journal
        .append(&[
            txn(2, &[(10, 2), (11, 2)]),
            txn(3, &[(12, 3)]),
            txn(4, &[(13, 3)]),
        ])
        .unwrap();
    assert_eq!(journal.discard_unpublished().unwrap(), Txid(1));
    let again = Arc::new(disk.after_crash(Survivors::None));
    assert_eq!(load(&again, 0).recover().unwrap().last, Some(Txid(1)));
    // Shorter than what was dropped: nothing of that may be taken for what follows.
    commit(&journal, 2, &[(14, 9)]);
    let recovery = load(&disk, 0).recover().unwrap();
    assert_eq!((recovery.transactions, recovery.last), (2, Some(Txid(2))));
    assert_eq!(home(&disk, 12), [0; BLOCK]);
}

#[test]
fn reading_checkpointing_and_committing_run_side_by_side() {
    let (_disk, journal) = fresh();
    let journal: Arc<Journal> = Arc::new(journal);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                journal.checkpoint(16).unwrap();
            }
        });
        scope.spawn(|| {
            let mut buf = vec![0; 16 * BLOCK];
            let mut seen = [0; 16];
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                journal.read(BlockNo(64), &mut buf).unwrap();
                for (block, seen) in buf.chunks_exact(BLOCK).zip(&mut seen) {
                    let value = u64::from_be_bytes(block[8..16].try_into().unwrap());
                    assert!(value >= *seen, "a block went back from {seen} to {value}");
                    assert_eq!(block[8..], image(value)[8..], "a block is torn");
                    *seen = value;
                }
            }
        });
        for t in 1..600 {
            let images: Vec<(u64, u64)> = (0..16).map(|i| (64 + i, t)).collect();
            commit(&journal, t, &images);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
