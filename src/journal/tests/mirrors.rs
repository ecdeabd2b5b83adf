//! Two tails: consumers, pins, space, the keeper.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::rig::*;
use crate::journal::{
    Journal, JournalError, Reference, Refused, ResumeEnd, TailKeeper, chain_hash,
};
use crate::units::{BlockNo, LogBlock, Txid};
use crate::volume::facts::{MirrorTail, Segment};

/// Keeps what it is told in memory; moves consumer 1 to where it is allowed to when room is asked for.
#[derive(Default)]
struct Keeper {
    journal: Mutex<Weak<Journal>>,
    saved: Mutex<Option<(MirrorTail, Vec<Segment>)>>,
    saves: AtomicUsize,
    asked: AtomicUsize,
    /// What room was asked for last.
    oldest: Mutex<Txid>,
    /// How many transactions are given up at a time; 0: none.
    gives_up: u64,
}

impl TailKeeper for Keeper {
    fn save_tail(
        &self,
        tail: Option<MirrorTail>,
        segments: &[Segment],
    ) -> Result<(), JournalError> {
        self.saves.fetch_add(1, Ordering::Relaxed);
        *self.saved.lock() = tail.map(|t| (t, segments.to_vec()));
        Ok(())
    }
    fn make_room(&self, oldest: Txid, last: Txid) -> Result<(), JournalError> {
        assert!(oldest <= last.next());
        self.asked.fetch_add(1, Ordering::Relaxed);
        *self.oldest.lock() = oldest;
        let journal = self.journal.lock().upgrade().unwrap();
        // What a crack does: list what is missing, then let go of it.
        journal.info_after(Txid(oldest.0 - 1)).unwrap();
        if self.gives_up > 0 {
            journal.set_consumer(1, Txid(oldest.0 - 1 + self.gives_up).min(last));
        }
        Ok(())
    }
}

fn kept(gives_up: u64) -> (Arc<crate::io::sim::SimDisk>, Arc<Journal>, Arc<Keeper>) {
    let disk = fresh_disk();
    let journal = Arc::new(load(&disk, 0));
    let keeper = Arc::new(Keeper {
        gives_up,
        ..Keeper::default()
    });
    *keeper.journal.lock() = Arc::downgrade(&journal);
    journal.set_keeper(keeper.clone());
    journal.begin_segment(GENERATION, Txid(1)).unwrap();
    (disk, journal, keeper)
}

fn by_reference(txid: u64, start: u64, len: u64) -> crate::journal::Transaction {
    let mut txn = txn(txid, &[(1, txid)]);
    txn.refs = vec![Reference {
        range: range(start, len),
        xxh3: txid,
    }];
    txn
}

#[test]
fn the_log_keeps_what_a_consumer_needs() {
    let (_disk, journal, keeper) = kept(5);
    journal.set_consumer(1, Txid(0));
    let mut t = 0;
    while keeper.asked.load(Ordering::Relaxed) == 0 {
        t += 1;
        commit(&journal, t, &[(t % 900, t), ((t + 1) % 900, t)]);
        assert!(t < 1000);
    }
    assert!(t > 190, "the whole log was used");
    assert!(!journal.covers(Txid(0)));
    assert!(journal.covers(Txid(5)));
    let infos = journal.info_after(Txid(5)).unwrap();
    assert_eq!(infos.len() as u64, t - 5);
    for info in infos {
        let loaded = journal.load_transaction(info.txid).unwrap();
        assert_eq!(loaded.chain, info.chain);
        assert_eq!(loaded.images.len(), 2);
    }
    assert_eq!(journal.released(), Txid(5));
}

#[test]
fn room_is_asked_of_whoever_is_at_an_id_that_was_never_issued() {
    let (_disk, journal, keeper) = kept(5);
    journal.set_consumer(1, Txid(0));
    commit(&journal, 1, &[(1, 1)]);
    commit(&journal, 100, &[(2, 100)]);
    journal.set_consumer(1, Txid(50));
    let mut t = 100;
    while keeper.asked.load(Ordering::Relaxed) == 0 {
        t += 1;
        commit(&journal, t, &[(t % 900, t), ((t + 1) % 900, t)]);
        assert!(t < 1000);
    }
    assert_eq!(*keeper.oldest.lock(), Txid(100));
}

#[test]
fn tails_are_saved_seldom() {
    let (_disk, journal, keeper) = kept(0);
    journal.set_consumer(1, Txid(0));
    for t in 1..2000 {
        commit(&journal, t, &[(t % 900, t)]);
        journal.set_consumer(1, Txid(t));
        if t % 10 == 0 {
            journal.checkpoint(100).unwrap();
        }
    }
    // 8000 blocks of log went through 1023.
    let saves = keeper.saves.load(Ordering::Relaxed);
    assert!((7..40).contains(&saves), "{saves}");
    assert_eq!(keeper.asked.load(Ordering::Relaxed), 0);
}

#[test]
fn a_log_that_nobody_can_empty_is_an_error_and_no_hang() {
    let (_disk, journal, keeper) = kept(0);
    journal.set_consumer(1, Txid(0));
    let mut t = 1;
    let error = loop {
        match journal.commit(&mut txn(t, &[(t % 900, t)])) {
            Ok(()) => t += 1,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, JournalError::Refused(Refused::LogFull { .. })),
        "{error}"
    );
    assert!(keeper.asked.load(Ordering::Relaxed) > 0);
    assert!(journal.aborted().is_none());
    journal.set_consumer(1, Txid(t - 1));
    commit(&journal, t, &[(7, t)]);
}

#[test]
fn unpublished_transactions_fill_the_log_by_name() {
    let (_disk, journal) = fresh();
    let mut t = 1;
    let error = loop {
        match journal.append(&[txn(t, &[(t % 900, t)])]) {
            Ok(()) => t += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(
        error,
        JournalError::Refused(Refused::LogFull { .. })
    ));
    journal.publish(Txid(t));
    journal.append(&[txn(t, &[(1, t)])]).unwrap();
}

#[test]
fn a_pinned_block_is_not_overwritten_at_home() {
    let (disk, journal, _keeper) = kept(0);
    journal.set_consumer(1, Txid(0));
    write_home(&journal, 50, 500);
    journal.commit(&mut by_reference(1, 50, 2)).unwrap();
    assert!(journal.is_pinned(BlockNo(50)) && journal.is_pinned(BlockNo(51)));
    assert!(!journal.is_pinned(BlockNo(52)));
    commit(&journal, 2, &[(50, 2), (60, 2)]);
    checkpoint_all(&journal);
    assert_eq!(home(&disk, 50), image(500)[..]);
    assert_eq!(home(&disk, 60), image(2)[..]);
    assert_eq!(read(&journal, 50), image(2)[..]);
    assert_eq!(journal.stats().checkpoint_tail, Txid(2));
    assert_eq!(journal.overwritten_by(Txid(1)), None);
    journal.set_consumer(1, Txid(1));
    assert!(!journal.is_pinned(BlockNo(50)));
    checkpoint_all(&journal);
    assert_eq!(home(&disk, 50), image(2)[..]);
    // Whoever still wants transaction 1 has to take 2 with it.
    assert_eq!(journal.overwritten_by(Txid(1)), Some(Txid(2)));
}

#[test]
fn pins_that_hold_the_checkpoint_tail_make_room() {
    let (_disk, journal, keeper) = kept(1000);
    journal.set_consumer(1, Txid(0));
    journal.commit(&mut by_reference(1, 50, 1)).unwrap();
    for t in 2..600 {
        commit(&journal, t, &[(50, t), (t % 900, t)]);
    }
    assert!(keeper.asked.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_crash_keeps_what_mirrors_lack_and_knows_what_it_overwrote() {
    let (disk, journal, keeper) = kept(0);
    journal.set_consumer(1, Txid(0));
    journal.set_consumer(2, Txid(3));
    commit(&journal, 1, &[(10, 1)]);
    journal.commit(&mut by_reference(2, 50, 4)).unwrap();
    commit(&journal, 3, &[(51, 3)]);
    commit(&journal, 4, &[(12, 4)]);
    let mut zero = txn(5, &[(1, 1)]);
    zero.zeroed = vec![range(53, 1)];
    journal.commit(&mut zero).unwrap();
    let chain = journal.chain();
    assert_eq!(journal.released(), Txid(0));
    drop(journal);

    let again = Arc::new(load(&disk, 0));
    again.set_keeper(keeper.clone());
    assert_eq!(again.recover().unwrap().last, Some(Txid(5)));
    let (tail, segments) = keeper.saved.lock().clone().unwrap();
    assert_eq!((tail.log_block, tail.txid), (LogBlock(1), Txid(1)));
    let infos = again
        .resume(&segments, &tail, ResumeEnd::Recovered)
        .unwrap();
    assert_eq!(infos.len(), 5);
    assert_eq!(infos[1].refs_blocks, 4);
    assert_eq!(again.chain(), chain);
    assert_eq!(again.overwritten_by(Txid(1)), None);
    assert_eq!(again.overwritten_by(Txid(2)), Some(Txid(5)));
    let mut chain = 0;
    for info in infos {
        let loaded = again.load_transaction(info.txid).unwrap();
        chain = chain_hash(chain, &loaded);
        assert_eq!(loaded.chain, chain);
    }
    again.set_consumer(1, Txid(0));
    again
        .begin_segment(crate::units::Generation(2), Txid(7))
        .unwrap();
    commit(&again, 7, &[(10, 7)]);
    let (tail, segments) = keeper.saved.lock().clone().unwrap();
    assert_eq!((tail.txid, segments.len()), (Txid(1), 2));
    drop(again);

    // A second crash: the walk crosses the segments.
    let third = load(&disk, 5);
    assert_eq!(third.recover().unwrap().transactions, 1);
    let infos = third
        .resume(&segments, &tail, ResumeEnd::Recovered)
        .unwrap();
    assert_eq!(infos.last().unwrap().txid, Txid(7));
    assert_eq!(infos.len(), 6);
    assert_eq!(infos[5].generation, crate::units::Generation(2));
}

#[test]
fn what_the_master_has_not_confirmed_stays_in_the_log_over_a_crash() {
    for discard in [false, true] {
        let (disk, journal) = fresh();
        commit(&journal, 1, &[(10, 1), (11, 1)]);
        let mut free = txn(3, &[(12, 3)]);
        free.freed = vec![range(11, 1)];
        let both = [txn(2, &[(10, 2)]), free];
        journal.append_confirmed(&both, Txid(1)).unwrap();
        drop(journal);

        let again = load(&disk, 0);
        let recovery = again.recover_confirmed(Txid(1)).unwrap();
        assert_eq!((recovery.transactions, recovery.last), (1, Some(Txid(1))));
        assert_eq!(
            (again.last_published(), again.last_committed()),
            (Txid(1), Txid(3))
        );
        assert_eq!(read(&again, 10), image(1)[..]);
        assert_eq!(home(&disk, 10), image(1)[..]);
        checkpoint_all(&again);
        assert_eq!(home(&disk, 10), image(1)[..]);
        // A power cut now loses none of them.
        let cut = Arc::new(disk.snapshot());
        assert_eq!(load(&cut, 0).recover().unwrap().last, Some(Txid(3)));

        let (last, value) = if discard {
            assert_eq!(again.discard_unpublished().unwrap(), Txid(1));
            (1, image(1))
        } else {
            again.publish(Txid(3));
            again.confirmed_durably(Txid(3));
            (3, image(2))
        };
        assert_eq!(read(&again, 10), value[..]);
        let cut = Arc::new(disk.snapshot());
        assert_eq!(
            load(&cut, 0).recover().unwrap().last,
            (!discard).then_some(Txid(3))
        );
        again.begin_segment(GENERATION, Txid(last + 1)).unwrap();
        assert_eq!(home(&disk, 10), value[..]);
        commit(&again, last + 1, &[(13, 9)]);
        let recovery = load(&disk, 0).recover().unwrap();
        assert_eq!(
            (recovery.transactions, recovery.last),
            (1, Some(Txid(last + 1)))
        );
        assert_eq!(home(&disk, 10), value[..]);
    }
}

#[test]
fn the_log_itself_says_what_was_confirmed() {
    let (disk, journal) = fresh();
    journal.limit_home(Txid(0));
    commit(&journal, 1, &[(10, 1)]);
    for (t, confirmed) in [(2, 1), (3, 2), (4, 2)] {
        let txns = [txn(t, &[(10, t), (20 + t, t)])];
        journal.append_confirmed(&txns, Txid(confirmed)).unwrap();
    }
    drop(journal);
    let again = load(&disk, 0);
    // The facts are older than the log.
    let recovery = again.recover_confirmed(Txid(1)).unwrap();
    assert_eq!((recovery.last, recovery.unconfirmed), (Some(Txid(2)), 2));
    assert_eq!(home(&disk, 10), image(2)[..]);
    again.publish(Txid(3));
    assert_eq!(read(&again, 10), image(3)[..]);
    // Nothing says durably that 3 was confirmed, and there is nobody to say it: it does not go home.
    checkpoint_all(&again);
    assert_eq!(home(&disk, 10), image(2)[..]);
    let cut = load(&Arc::new(disk.snapshot()), 0);
    assert_eq!(
        cut.recover_confirmed(Txid(1)).unwrap().unconfirmed,
        2,
        "the tail did not move over what can not be shown again"
    );
    again.confirmed_durably(Txid(3));
    checkpoint_all(&again);
    assert_eq!(home(&disk, 10), image(3)[..]);
}

#[test]
fn a_long_life_with_crashes_and_a_slow_mirror_resumes_from_every_lap() {
    let disk = fresh_disk();
    let keeper = Arc::new(Keeper::default());
    let mut next = 1;
    let mut last = 0;
    let mut end = None;
    let mut committed = Vec::new();
    let mut needed = Txid(0);
    for life in 0..40_u64 {
        let journal = Arc::new(load(&disk, last));
        *keeper.journal.lock() = Arc::downgrade(&journal);
        journal.set_keeper(keeper.clone());
        if let Some(end) = end {
            if journal.needs_recovery() {
                assert_eq!(journal.recover().unwrap().last, Some(Txid(last)));
            }
            let (tail, segments) = keeper.saved.lock().clone().unwrap();
            let infos = journal.resume(&segments, &tail, end).unwrap();
            let ids: Vec<Txid> = infos.iter().map(|i| i.txid).collect();
            assert!(committed.ends_with(&ids));
            assert!(ids[0] <= needed.next());
            for info in infos {
                journal.load_transaction(info.txid).unwrap();
            }
            // Sometimes the process ends before anything is committed.
            if life % 5 == 3 {
                journal.set_consumer(1, needed);
                journal
                    .begin_segment(
                        crate::units::Generation(u128::from(life) + 1000),
                        Txid(next),
                    )
                    .unwrap();
                journal.close().unwrap();
                continue;
            }
        }
        journal
            .begin_segment(crate::units::Generation(u128::from(life)), Txid(next))
            .unwrap();
        journal.set_consumer(1, needed);
        for _ in 0..37 + life {
            commit(
                &journal,
                next,
                &[(next % 900, next), ((next * 3) % 900, next)],
            );
            committed.push(Txid(next));
            last = next;
            next += 1 + life % 2;
            needed = Txid(last.saturating_sub(45));
            journal.set_consumer(1, needed);
        }
        end = Some(if life % 3 == 0 {
            ResumeEnd::Clean(journal.close().unwrap())
        } else {
            ResumeEnd::Recovered
        });
        next = last + 2;
    }
}

#[test]
fn a_segment_that_ran_more_than_a_lap_is_followed_by_the_next() {
    let (disk, journal, keeper) = kept(0);
    let begun = journal.state.read().head;
    let mut t = 0;
    while journal.state.read().head <= begun + journal.log.capacity() {
        t += 1;
        commit(&journal, t, &[(t % 900, t)]);
        journal.set_consumer(1, Txid(t.saturating_sub(9)));
        checkpoint_all(&journal);
    }
    drop(journal);
    let again = Arc::new(load(&disk, t));
    again.set_keeper(keeper.clone());
    again.recover().unwrap();
    let resume = |journal: &Journal| {
        let (tail, segments) = keeper.saved.lock().clone().unwrap();
        let infos = journal.resume(&segments, &tail, ResumeEnd::Recovered);
        infos.unwrap().last().map(|info| info.txid)
    };
    assert_eq!(resume(&again), Some(Txid(t)));
    again.set_consumer(1, Txid(t - 9));
    again
        .begin_segment(crate::units::Generation(2), Txid(t + 2))
        .unwrap();
    drop(again);
    let third = load(&disk, t);
    third.recover().unwrap();
    assert_eq!(resume(&third), Some(Txid(t)));
}
