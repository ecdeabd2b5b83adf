//! Damaged blocks give errors, and what ends a log ordinarily does not.

use std::sync::Arc;

use super::rig::*;
use crate::io::Disk;
use crate::io::sim::SimDisk;
use crate::journal::format::put_be32;
use crate::journal::superblock::INCOMPAT_CSUM_V3;
use crate::journal::{CorruptKind, Journal, JournalError, ResumeEnd};
use crate::units::{BlockNo, LogBlock, Txid};

/// The disk's byte of a log block (positions begin at log block 1).
fn byte_of(log_block: u64) -> u64 {
    let at = if log_block < 300 {
        LOG_START + 8 + log_block
    } else {
        LOG_START + 310 + log_block - 300
    };
    at * BLOCK as u64
}

fn flip(disk: &SimDisk, byte: u64) {
    let mut b = [0];
    disk.read_at(&mut b, byte).unwrap();
    b[0] ^= 0x10;
    disk.write_at(&b, byte).unwrap();
}

/// Three transactions: descriptor, two images, revoke, commit each.
fn three() -> (Arc<SimDisk>, Journal) {
    let (disk, journal) = fresh();
    for t in 1..4 {
        commit(&journal, t, &[(t * 10, t), (t * 10 + 1, t)]);
    }
    (disk, journal)
}

#[test]
fn every_block_of_a_committed_transaction_is_missed_when_damaged() {
    let (disk, _journal) = three();
    for (log_block, what) in [
        (6, "descriptor"),
        (7, "image"),
        (8, "image"),
        (9, "revoke"),
        (10, "commit"),
    ] {
        for at in [16, 200, 1020] {
            if what == "commit" && at > 64 {
                // The kernel too takes a commit block's first bytes alone.
                continue;
            }
            let broken = Arc::new(disk.snapshot());
            flip(&broken, byte_of(log_block) + at);
            let journal = load(&broken, 0);
            let error = journal.recover().unwrap_err();
            assert!(
                matches!(error, JournalError::Corrupt { block: LogBlock(b), .. } if (6..=10).contains(&b)),
                "{what}: {error}"
            );
            assert!(journal.needs_recovery());
            assert_eq!(
                home(&broken, 10),
                [0; BLOCK],
                "nothing goes home before all is verified"
            );
            let read_only = load(&broken, 0);
            assert!(read_only.recover_overlay().is_err());
        }
    }
}

#[test]
fn an_image_that_is_superseded_may_rot() {
    let (disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1)]);
    commit(&journal, 2, &[(10, 2)]);
    flip(&disk, byte_of(2) + 100);
    assert_eq!(load(&disk, 0).recover().unwrap().last, Some(Txid(2)));
    assert_eq!(home(&disk, 10), image(2)[..]);
}

#[test]
fn a_header_of_another_tid_or_type_ends_the_log() {
    let (disk, _journal) = three();
    for (at, value) in [(0, 1), (4, 9), (8, 77)] {
        let ended = Arc::new(disk.snapshot());
        let mut block = vec![0; BLOCK];
        ended.read_at(&mut block, byte_of(6)).unwrap();
        put_be32(&mut block, at, value);
        ended.write_at(&block, byte_of(6)).unwrap();
        let recovery = load(&ended, 0).recover().unwrap();
        assert_eq!(recovery.last, Some(Txid(1)));
    }
}

#[test]
fn a_transaction_without_a_commit_block_never_was() {
    let (disk, _journal) = three();
    disk.write_at(&vec![0; BLOCK], byte_of(15)).unwrap();
    assert_eq!(load(&disk, 0).recover().unwrap().last, Some(Txid(2)));
    assert_eq!(home(&disk, 30), [0; BLOCK]);
}

#[test]
fn the_tid_behind_a_crash_is_skipped_however_far_a_group_got() {
    let (disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1)]);
    journal
        .append(&[txn(2, &[(11, 2)]), txn(3, &[(12, 2)]), txn(4, &[(13, 2)])])
        .unwrap();
    // Of the group's commit blocks only the later ones got to the disk. Transactions of one image take four blocks.
    disk.write_at(&vec![0; BLOCK], byte_of(8)).unwrap();
    let again = load(&disk, 0);
    assert_eq!(again.recover().unwrap().last, Some(Txid(1)));
    // tids 2, 3 and 4 are in the log.
    assert_eq!(again.s_sequence(), 5);
    again.begin_segment(GENERATION, Txid(3)).unwrap();
    commit(&again, 3, &[(20, 1)]);
    assert_eq!(load(&disk, 0).recover().unwrap().transactions, 1);
    assert_eq!(home(&disk, 12), [0; BLOCK]);
}

#[test]
fn a_tag_beyond_the_volume_is_corrupt() {
    let (disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1)]);
    let format = journal.state.read().format;
    let mut block = vec![0; BLOCK];
    disk.read_at(&mut block, byte_of(1)).unwrap();
    let mut tags = format.decode_tags(&block);
    tags[0].block = BlockNo(1 << 50);
    disk.write_at(&format.encode_descriptor(1, &tags), byte_of(1))
        .unwrap();
    let error = load(&disk, 0).recover().unwrap_err();
    assert!(matches!(
        error,
        JournalError::Corrupt {
            kind: CorruptKind::Field("t_blocknr"),
            ..
        }
    ));
}

#[test]
fn what_can_not_be_replayed_is_refused_by_name() {
    for (bit, name) in [(0x4, "async_commit"), (0x20, "fast_commit"), (0x40, "0x40")] {
        let (disk, journal) = fresh();
        commit(&journal, 1, &[(10, 1)]);
        let byte = byte_of(0);
        let mut raw = [0; 1024];
        disk.read_at(&mut raw, byte).unwrap();
        put_be32(&mut raw, 0x28, 0x13 | bit);
        put_be32(&mut raw, 0xfc, 0);
        let sum = crate::journal::format::crc32c_raw(!0, &raw);
        put_be32(&mut raw, 0xfc, sum);
        disk.write_at(&raw, byte).unwrap();
        let error = Journal::load(volume_of(disk.clone()), map(), Txid(0))
            .and_then(|j| j.recover())
            .unwrap_err();
        assert!(
            matches!(&error, JournalError::Unsupported(what) if what.contains(name)),
            "{error}"
        );
    }
    assert_eq!(INCOMPAT_CSUM_V3, 0x10);
}

#[test]
fn a_log_full_of_headers_ends() {
    let (disk, journal) = fresh();
    commit(&journal, 1, &[(10, 1)]);
    let format = journal.state.read().format;
    let endless = format.encode_revoke(2, &[], &[]);
    for log_block in 5..u64::from(LOG_BLOCKS) {
        disk.write_at(&endless, byte_of(log_block)).unwrap();
    }
    assert_eq!(load(&disk, 0).recover().unwrap().transactions, 1);
}

#[test]
fn random_damage_never_panics_and_never_mixes_states() {
    let (disk, _journal) = three();
    let random = crate::io::sim::SimRandom::new(11);
    for _ in 0..400 {
        let broken = Arc::new(disk.snapshot());
        for _ in 0..1 + random.below(3) {
            let byte = byte_of(random.below(18)) + random.below(BLOCK as u64);
            broken.write_at(&[random.next_u64() as u8], byte).unwrap();
        }
        let Ok(journal) = Journal::load(volume_of(broken.clone()), map(), Txid(0)) else {
            continue;
        };
        let Ok(recovery) = journal.recover() else {
            continue;
        };
        let last = recovery.last.map_or(0, |t| t.0);
        for t in 1..4 {
            let expected = if t <= last {
                image(t)
            } else {
                vec![0; BLOCK].into()
            };
            assert_eq!(home(&broken, t * 10), expected[..]);
        }
    }
}

#[test]
fn what_can_not_be_resumed_is_an_error_and_never_wrong_data() {
    let (disk, journal) = three();
    let (segment, _) = journal.state.read().segments[0];
    let tail = crate::volume::facts::MirrorTail {
        log_block: segment.first_block,
        txid: Txid(1),
        generation: GENERATION,
    };
    let head = journal.close().unwrap();
    let resume = |disk: &Arc<SimDisk>, tail, end| load(disk, 3).resume(&[segment], tail, end);
    assert_eq!(
        resume(&disk, &tail, ResumeEnd::Clean(head)).unwrap().len(),
        3
    );
    assert_eq!(resume(&disk, &tail, ResumeEnd::Recovered).unwrap().len(), 3);
    for log_block in [1, 4, 6, 9, 15] {
        let broken = Arc::new(disk.snapshot());
        flip(&broken, byte_of(log_block) + 20);
        assert!(resume(&broken, &tail, ResumeEnd::Clean(head)).is_err());
    }
    let mut wrong = head;
    wrong.log_block = LogBlock(11);
    wrong.txid = Txid(2);
    assert!(
        resume(&disk, &tail, ResumeEnd::Clean(wrong)).is_err(),
        "the log goes on"
    );
    wrong = head;
    wrong.chain ^= 1;
    assert!(resume(&disk, &tail, ResumeEnd::Clean(wrong)).is_err());
    let mut later = tail;
    later.log_block = LogBlock(3);
    assert!(resume(&disk, &later, ResumeEnd::Clean(head)).is_err());
    // A rotten image is found when it is asked for.
    let broken = Arc::new(disk.snapshot());
    flip(&broken, byte_of(7) + 100);
    let journal = load(&broken, 3);
    journal
        .resume(&[segment], &tail, ResumeEnd::Clean(head))
        .unwrap();
    assert!(journal.load_transaction(Txid(1)).is_ok());
    assert!(matches!(
        journal.load_transaction(Txid(2)),
        Err(JournalError::Corrupt { .. })
    ));
}
