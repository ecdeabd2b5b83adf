//! What the rules are for, told one by one.

use states::reconnect::*;

const A: Lineage = Lineage {
    generation: 0xa,
    fork: 0,
};

fn master(history: &[Lineage], committed: u64) -> Master<'_> {
    Master {
        volume: 1,
        history,
        committed,
        log_after: Some(0),
        map: None,
        changed_outside: false,
    }
}

/// A mirror that holds all up to `durable`, all of it confirmed and shown.
fn mirror(history: &[Lineage], durable: u64) -> Mirror<'_> {
    Mirror {
        volume: 1,
        role: Role::Mirror,
        history,
        applied: durable,
        durable,
        confirmed: durable,
        copy: Copy::Complete,
        consistent_at: Some(0),
        reach: 0,
        tainted: false,
        map: None,
        may_rejoin: false,
    }
}

fn upon(generation: u128, fork: u64) -> Lineage {
    Lineage { generation, fork }
}

fn split(outcome: &Outcome) -> Option<Split> {
    match outcome.decision {
        Decision::Error(Conflict::Diverged(divergence)) => Some(divergence.split),
        _ => None,
    }
}

#[test]
fn a_mirror_that_was_away_is_replayed() {
    let outcome = decide(&master(&[A], 500), &mirror(&[A], 100), None);
    assert_eq!(outcome.decision, Decision::InSyncByReplay { after: 100 });
    assert_eq!(outcome.rule, Rule::Replay);
    assert_eq!(outcome.drop_unconfirmed_after, None);
    assert_eq!(
        outcome.to_string(),
        "rule 7: the log holds all that the mirror lacks: it is replayed"
    );
}

#[test]
fn gaps_between_txids_are_no_loss() {
    // 101 to 299 were never issued: the log's first transaction is 300.
    let of = Master {
        log_after: Some(100),
        ..master(&[A], 300)
    };
    let outcome = decide(&of, &mirror(&[A], 100), None);
    assert_eq!(outcome.rule, Rule::Replay);
}

#[test]
fn a_master_that_lost_power_has_its_mirrors_unconfirmed_suffix_dropped() {
    let history = [A, upon(0xb, 100)];
    let ahead = Mirror {
        applied: 99,
        confirmed: 99,
        ..mirror(&[A], 102)
    };
    let outcome = decide(&master(&history, 130), &ahead, None);
    assert_eq!(outcome.decision, Decision::InSyncByReplay { after: 100 });
    assert_eq!(outcome.drop_unconfirmed_after, Some(100));
}

#[test]
fn an_unconfirmed_suffix_is_not_shown_once_somebody_else_had_the_masters_volume() {
    // Which of 100 to 102 the master's log still had when it was replayed, nobody knows.
    let history = [A, upon(0xb, 1000)];
    let of = Master {
        changed_outside: true,
        ..master(&history, 1000)
    };
    let ahead = Mirror {
        applied: 99,
        confirmed: 99,
        ..mirror(&[A], 102)
    };
    let outcome = decide(&of, &ahead, None);
    let by = Repair::ByChecksum;
    assert_eq!(outcome.decision, Decision::OutOfSync { by });
    assert_eq!(outcome.drop_unconfirmed_after, Some(99));
}

#[test]
fn an_unconfirmed_suffix_is_erased_for_its_own_sender_and_kept_aside_for_anybody_else() {
    let sent = [A, upon(0xb, 50)];
    let reopened = [A, upon(0xb, 50), upon(0xc, 100)];
    let twice = [A, upon(0xb, 50), upon(0xc, 100), upon(0xd, 100)];
    // Before its commit was done the link was lost, and found again.
    assert_eq!(fate(&sent, &sent, false), Fate::Erased);
    // Its own master lost power while committing it.
    assert_eq!(fate(&reopened, &sent, true), Fate::Erased);
    // Another mirror was promoted that never had it.
    assert_eq!(fate(&reopened, &sent, false), Fate::KeptAside);
    // So it was, and the old master is master again after it.
    assert_eq!(fate(&twice, &sent, true), Fate::KeptAside);
    // Histories that are cut off, or empty.
    assert_eq!(fate(&twice[2..], &sent, true), Fate::KeptAside);
    assert_eq!(fate(&[], &[], true), Fate::KeptAside);
}

#[test]
fn a_txid_that_was_issued_again_is_not_taken_for_the_first_one() {
    // Both have a 101 and a 102: the mirror's are of the generation before the power cut.
    let history = [A, upon(0xb, 100)];
    let ahead = Mirror {
        applied: 100,
        confirmed: 100,
        ..mirror(&[A], 102)
    };
    let outcome = decide(&master(&history, 102), &ahead, None);
    assert_eq!(outcome.decision, Decision::InSyncByReplay { after: 100 });
    assert_eq!(outcome.drop_unconfirmed_after, Some(100));
    // The master's hash of its own 102 says nothing about the mirror's.
    let chain = Chain {
        at: 102,
        mirror: 1,
        master: Some(2),
    };
    assert_eq!(decide(&master(&history, 102), &ahead, Some(chain)), outcome);
}

#[test]
fn a_mirror_ahead_within_the_generation_drops_what_its_master_has_not_committed() {
    let ahead = Mirror {
        applied: 100,
        confirmed: 100,
        ..mirror(&[A], 101)
    };
    let outcome = decide(&master(&[A], 100), &ahead, None);
    assert_eq!(outcome.decision, Decision::InSyncByReplay { after: 100 });
    assert_eq!(outcome.drop_unconfirmed_after, Some(100));
}

#[test]
fn a_master_restored_from_a_backup_does_not_overwrite_its_mirror() {
    let history = [A, upon(0xb, 60)];
    let outcome = decide(&master(&history, 70), &mirror(&[A], 100), None);
    let expected = Divergence {
        split: Split::PastFork,
        generation: 0xa,
        shared: 60,
        master: 70,
        mirror: 100,
    };
    assert_eq!(
        outcome.decision,
        Decision::Error(Conflict::Diverged(expected))
    );
}

#[test]
fn a_backup_older_than_the_last_opening_is_seen_too() {
    // The backup, of txid 40, was taken before generation b began at 50.
    let restored = [A, upon(0xc, 40)];
    let followed = [A, upon(0xb, 50)];
    let outcome = decide(&master(&restored, 45), &mirror(&followed, 80), None);
    assert_eq!(split(&outcome), Some(Split::OpenedAlone));
}

#[test]
fn what_was_shown_is_not_dropped_even_if_nobody_confirmed_it() {
    let history = [A, upon(0xb, 100)];
    let shown = Mirror {
        confirmed: 100,
        applied: 101,
        ..mirror(&[A], 101)
    };
    let outcome = decide(&master(&history, 110), &shown, None);
    assert_eq!(split(&outcome), Some(Split::PastFork));
}

#[test]
fn two_promotions_diverge() {
    let one = [A, upon(0xb, 100)];
    let other = [A, upon(0xc, 100)];
    let outcome = decide(&master(&one, 120), &mirror(&other, 110), None);
    let Decision::Error(Conflict::Diverged(divergence)) = outcome.decision else {
        panic!("{outcome:?}");
    };
    assert_eq!(divergence.split, Split::OpenedAlone);
    assert_eq!(
        (divergence.shared, divergence.master, divergence.mirror),
        (100, 120, 110)
    );
}

#[test]
fn a_cloned_state_directory_is_seen_by_its_chain() {
    let chain = Chain {
        at: 80,
        mirror: 1,
        master: Some(2),
    };
    let outcome = decide(&master(&[A], 100), &mirror(&[A], 80), Some(chain));
    assert_eq!(split(&outcome), Some(Split::ChainsDiffer));
    // That the master has forgotten its hash is no difference.
    let chain = Chain {
        master: None,
        ..chain
    };
    let outcome = decide(&master(&[A], 100), &mirror(&[A], 80), Some(chain));
    assert_eq!(outcome.rule, Rule::Replay);
}

#[test]
fn an_old_master_rejoins_only_when_all_it_had_is_kept_aside() {
    let history = [A, upon(0xb, 100)];
    let old = Mirror {
        role: Role::Master,
        ..mirror(&[A], 105)
    };
    let promoted = master(&history, 120);
    assert_eq!(
        split(&decide(&promoted, &old, None)),
        Some(Split::TwoMasters)
    );

    let rejoins = Mirror {
        may_rejoin: true,
        ..old
    };
    let outcome = decide(&promoted, &rejoins, None);
    let by = Repair::ByMap { log_after: 100 };
    assert_eq!(outcome.decision, Decision::OutOfSync { by });
    assert_eq!(outcome.drop_unconfirmed_after, None);

    // It was opened again after it stopped: what it wrote then is nowhere aside.
    let reopened = [A, upon(0xc, 105)];
    let outcome = decide(
        &promoted,
        &Mirror {
            history: &reopened,
            ..rejoins
        },
        None,
    );
    assert_eq!(split(&outcome), Some(Split::OpenedAlone));
}

#[test]
fn an_old_master_with_nothing_of_its_own_is_replayed() {
    let history = [A, upon(0xb, 100)];
    let old = Mirror {
        role: Role::Master,
        may_rejoin: true,
        ..mirror(&[A], 100)
    };
    let outcome = decide(&master(&history, 120), &old, None);
    assert_eq!(outcome.decision, Decision::InSyncByReplay { after: 100 });
}

#[test]
fn a_dirty_bit_on_either_side_forbids_a_mere_replay() {
    let map = DirtyMap {
        bits_set: 1,
        from_txid: 0,
        through_txid: 0,
        lost: false,
    };
    let (ours, theirs) = (master(&[A], 100), mirror(&[A], 100));
    let by = Repair::ByMap { log_after: 100 };
    let outcome = decide(
        &Master {
            map: Some(map),
            ..ours
        },
        &theirs,
        None,
    );
    assert_eq!(outcome.decision, Decision::OutOfSync { by });
    let outcome = decide(
        &ours,
        &Mirror {
            map: Some(map),
            ..theirs
        },
        None,
    );
    assert_eq!(outcome.decision, Decision::OutOfSync { by });
}

#[test]
fn a_crack_is_repaired_by_its_map_and_the_log_behind_it() {
    let map = DirtyMap {
        bits_set: 10,
        from_txid: 100,
        through_txid: 300,
        lost: false,
    };
    let of = Master {
        map: Some(map),
        log_after: Some(300),
        ..master(&[A], 350)
    };
    let outcome = decide(&of, &mirror(&[A], 100), None);
    let by = Repair::ByMap { log_after: 300 };
    assert_eq!(outcome.decision, Decision::OutOfSync { by });
    // A map that does not reach the log counts as lost, and so does one that begins too late.
    for map in [
        DirtyMap {
            through_txid: 299,
            ..map
        },
        DirtyMap {
            from_txid: 101,
            ..map
        },
        DirtyMap { lost: true, ..map },
    ] {
        let outcome = decide(
            &Master {
                map: Some(map),
                ..of
            },
            &mirror(&[A], 100),
            None,
        );
        let by = Repair::ByChecksum;
        assert_eq!(outcome.decision, Decision::OutOfSync { by });
        assert_eq!(outcome.rule, Rule::Untraceable);
    }
}

#[test]
fn a_first_copy_goes_on_where_it_was() {
    let copy = Copy::Partial {
        cursor: 4096,
        txid: 100,
    };
    let half = Mirror {
        copy,
        ..mirror(&[A], 0)
    };
    let from = CopyFrom::Resume {
        cursor: 4096,
        txid: 100,
    };
    let outcome = decide(&master(&[A], 300), &half, None);
    assert_eq!(outcome.decision, Decision::Replicate { from });
    // What changed behind the cursor is not known any more.
    let forgot = Master {
        log_after: Some(200),
        ..master(&[A], 300)
    };
    let from = CopyFrom::Start;
    assert_eq!(
        decide(&forgot, &half, None).decision,
        Decision::Replicate { from }
    );
}

#[test]
fn a_first_copy_past_the_fork_starts_again() {
    // It was written home without a log: nothing of it can be dropped.
    let copy = Copy::Partial {
        cursor: 4096,
        txid: 101,
    };
    let half = Mirror {
        copy,
        ..mirror(&[A], 0)
    };
    let history = [A, upon(0xb, 100)];
    let outcome = decide(&master(&history, 300), &half, None);
    let from = CopyFrom::Start;
    assert_eq!(outcome.decision, Decision::Replicate { from });
    assert_eq!(outcome.drop_unconfirmed_after, None);
}

#[test]
fn a_blank_mirror_is_copied_whatever_else_it_says() {
    let blank = Mirror {
        copy: Copy::Blank,
        volume: 2,
        tainted: true,
        ..mirror(&[], 7)
    };
    let outcome = decide(&master(&[A], 100), &blank, None);
    let from = CopyFrom::Start;
    assert_eq!(outcome.decision, Decision::Replicate { from });
    assert_eq!(outcome.rule, Rule::Blank);
}

#[test]
fn a_volume_of_another_origin_is_not_touched() {
    let stranger = [upon(0xf, 0)];
    let outcome = decide(&master(&[A], 100), &mirror(&stranger, 50), None);
    assert_eq!(outcome.decision, Decision::Error(Conflict::Unrelated));
    let other = Mirror {
        volume: 2,
        ..mirror(&[A], 50)
    };
    assert_eq!(
        decide(&master(&[A], 100), &other, None).rule,
        Rule::Unrelated
    );
}

#[test]
fn a_change_from_outside_is_looked_for_by_checksum() {
    let by = Repair::ByChecksum;
    let (ours, theirs) = (master(&[A], 100), mirror(&[A], 100));
    let outcome = decide(
        &Master {
            changed_outside: true,
            ..ours
        },
        &theirs,
        None,
    );
    assert_eq!(outcome.decision, Decision::OutOfSync { by });
    let outcome = decide(
        &ours,
        &Mirror {
            tainted: true,
            ..theirs
        },
        None,
    );
    assert_eq!(outcome.decision, Decision::OutOfSync { by });
}

#[test]
fn a_history_that_was_cut_off_at_its_oldest_end_is_still_known() {
    let whole = [A, upon(0xb, 10), upon(0xc, 20)];
    let outcome = decide(&master(&whole[1..], 50), &mirror(&whole, 40), None);
    assert_eq!(outcome.rule, Rule::Replay);
    let outcome = decide(&master(&whole, 50), &mirror(&whole[2..], 40), None);
    assert_eq!(outcome.rule, Rule::Replay);
}

#[test]
fn an_interrupted_repair_goes_on_with_the_bits_that_are_left() {
    let map = DirtyMap {
        bits_set: 3,
        from_txid: 100,
        through_txid: 300,
        lost: false,
    };
    let of = Master {
        map: Some(map),
        log_after: Some(300),
        ..master(&[A], 350)
    };
    let half = Mirror {
        consistent_at: None,
        ..mirror(&[A], 320)
    };
    let by = Repair::ByMap { log_after: 320 };
    assert_eq!(
        decide(&of, &half, None).decision,
        Decision::OutOfSync { by }
    );
    // The last bit was cleared, but the mirror never heard that its copy is consistent.
    let of = Master {
        map: Some(DirtyMap { bits_set: 0, ..map }),
        ..of
    };
    assert_eq!(
        decide(&of, &half, None).decision,
        Decision::OutOfSync { by }
    );
}

#[test]
fn what_another_master_brought_and_nobody_acknowledged_is_looked_for() {
    // B was repairing the copy at 100, and had committed 120, when C was made the master from 100 on.
    let ours = [A, upon(2, 90), upon(3, 100)];
    let theirs = [A, upon(2, 90)];
    let map = Some(DirtyMap {
        bits_set: 3,
        from_txid: 90,
        through_txid: 130,
        lost: false,
    });
    let master = Master {
        map,
        ..master(&ours, 130)
    };
    let half = Mirror {
        consistent_at: None,
        reach: 120,
        ..mirror(&theirs, 100)
    };
    let by = |outcome: Outcome| match outcome.decision {
        Decision::OutOfSync { by } => by,
        other => panic!("{other:?}"),
    };
    assert_eq!(by(decide(&master, &half, None)), Repair::ByChecksum);
    let first = Mirror {
        copy: Copy::Partial {
            cursor: 7,
            txid: 100,
        },
        ..half
    };
    let start = Decision::Replicate {
        from: CopyFrom::Start,
    };
    assert_eq!(decide(&master, &first, None).decision, start);
    // All of it is in the new master's history; or nobody took over meanwhile.
    let within = Mirror { reach: 100, ..half };
    let by_map = |repair| matches!(repair, Repair::ByMap { .. });
    assert!(by_map(by(decide(&master, &within, None))));
    let same = Master {
        history: &theirs,
        ..master
    };
    assert!(by_map(by(decide(&same, &half, None))));
}
