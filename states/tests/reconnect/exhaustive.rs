//! Every small case.

use crate::oracle::{Case, Points, TXIDS};
use states::reconnect::{
    Chain, Conflict, Copy, CopyFrom, Decision, DirtyMap, Fate, Lineage, Master, Mirror, Repair,
    Role, decide, fate, last_shared,
};
use states::{Cause, Decided};

const VOLUME: u128 = 77;

/// Compares the decision with the rule expected, and checks what must never be.
fn check(case: &Case<'_>) {
    let Case {
        master,
        mirror,
        chain,
        ..
    } = case;
    let outcome = decide(master, mirror, *chain);
    let rule = outcome.rule.number();
    let context = || format!("{outcome:?}\n{master:#?}\n{mirror:#?}\n{chain:?}");
    assert_eq!(rule, case.expected_rule(), "{}", context());

    let shared = last_shared(master, mirror);
    let past_fork = case.is_past_fork();
    match outcome.decision {
        Decision::Replicate { from } => {
            let trusted =
                !past_fork && !case.is_overrun() && !case.is_tainted() && !case.is_map_lost();
            let expected = match mirror.copy {
                Copy::Partial { cursor, txid } if trusted && case.is_recorded() => {
                    CopyFrom::Resume { cursor, txid }
                }
                _ => CopyFrom::Start,
            };
            assert_eq!(from, expected, "{}", context());
            assert_ne!(mirror.copy, Copy::Complete, "{}", context());
            assert_eq!(Decided::from(&outcome), Decided::Replicate);
        }
        Decision::Error(Conflict::Unrelated) => {
            assert_eq!(rule, 2, "{}", context());
            assert_eq!(shared, None, "{}", context());
            assert_eq!(Decided::from(&outcome), Decided::Error(Cause::Unrelated));
        }
        Decision::Error(Conflict::Diverged(divergence)) => {
            assert_eq!(rule, 3, "{}", context());
            assert!(divergence.shared <= divergence.master, "{}", context());
            assert!(divergence.shared <= divergence.mirror, "{}", context());
            assert!(Some(divergence.shared) <= shared, "{}", context());
            assert_eq!(Decided::from(&outcome), Decided::Error(Cause::Diverged));
        }
        Decision::OutOfSync { by } => {
            let by_map = match by {
                Repair::ByChecksum => false,
                Repair::ByMap { log_after } => {
                    assert!(case.is_recorded() && !case.is_map_lost(), "{}", context());
                    assert!(!case.is_tainted(), "{}", context());
                    // What the maps do not tell, the log does.
                    assert!(Some(log_after) >= shared, "{}", context());
                    let logged = master.log_after.is_some_and(|after| after <= log_after);
                    assert!(logged || log_after >= master.committed, "{}", context());
                    true
                }
            };
            assert_eq!(by_map, rule == 6, "{}", context());
            assert_eq!(Decided::from(&outcome), Decided::OutOfSync);
        }
        Decision::InSyncByReplay { after } => {
            assert!(
                !case.has_dirty_bits() && !case.is_map_lost(),
                "{}",
                context()
            );
            assert!(!case.is_tainted() && case.is_logged(), "{}", context());
            assert_eq!(Some(after), shared, "{}", context());
            assert!(
                mirror.consistent_at.is_some_and(|at| after >= at),
                "{}",
                context()
            );
            assert!(after <= master.committed, "{}", context());
            assert!(
                !past_fork || outcome.drop_unconfirmed_after.is_some(),
                "{}",
                context()
            );
            assert_eq!(Decided::from(&outcome), Decided::InSync);
        }
    }
    if let Some(after) = outcome.drop_unconfirmed_after {
        // Nothing is dropped that anybody has seen, and what is left is of the master's history.
        assert!(!mirror.may_rejoin, "{}", context());
        assert!(
            after >= mirror.confirmed.max(mirror.applied),
            "{}",
            context()
        );
        assert!(
            after < mirror.durable && after <= master.committed,
            "{}",
            context()
        );
        let expected = match master.changed_outside {
            true => Some(mirror.confirmed.max(mirror.applied)).min(shared),
            false => shared.filter(|_| past_fork),
        };
        assert_eq!(Some(after), expected, "{}", context());
        // Who sent it did not commit it, or it is not erased without a trace.
        let sender = mirror.history.last().map(|l| l.generation);
        let later = master.history.iter().rev();
        let later = later.take_while(|l| Some(l.generation) != sender).count();
        for by_sender in [false, true] {
            let expected = match later {
                0 => Fate::Erased,
                1 if by_sender => Fate::Erased,
                _ => Fate::KeptAside,
            };
            let found = fate(master.history, mirror.history, by_sender);
            assert_eq!(found, expected, "{}", context());
        }
    }
    let kept = matches!(
        outcome.decision,
        Decision::OutOfSync { .. } | Decision::InSyncByReplay { .. }
    );
    let dropped = outcome.drop_unconfirmed_after.is_some();
    let unconfirmed = mirror.confirmed.max(mirror.applied) < mirror.durable;
    let doubtful = master.changed_outside && unconfirmed;
    assert_eq!(
        dropped,
        kept && (past_fork || doubtful) && !mirror.may_rejoin,
        "{}",
        context()
    );
}

fn lineage(generation: u128, fork: u64) -> Lineage {
    Lineage { generation, fork }
}

/// A, and B and C upon it, with every fork.
fn own_histories() -> Vec<Vec<Lineage>> {
    let mut all = vec![vec![lineage(0, 0)]];
    for b in 0..=3 {
        all.push(vec![lineage(0, 0), lineage(1, b)]);
        for c in 0..=3 {
            all.push(vec![lineage(0, 0), lineage(1, b), lineage(2, c)]);
        }
    }
    all
}

/// Those, and others: opened alone, of another origin, none.
fn their_histories() -> Vec<Vec<Lineage>> {
    let mut all = own_histories();
    all.extend((0..=3).map(|d| vec![lineage(0, 0), lineage(3, d)]));
    all.push(vec![lineage(4, 0)]);
    all.push(vec![]);
    all
}

fn copies() -> Vec<(Copy, u64)> {
    let mut all = vec![(Copy::Blank, 0)];
    for txid in TXIDS {
        all.push((Copy::Complete, txid));
        all.push((Copy::Partial { cursor: 9, txid }, 0));
    }
    all
}

fn position((copy, durable): (Copy, u64)) -> u64 {
    match copy {
        Copy::Partial { txid, .. } => txid,
        _ => durable,
    }
}

fn maps() -> Vec<Option<DirtyMap>> {
    let mut all = vec![None];
    for from_txid in TXIDS {
        for through_txid in TXIDS {
            for bits_set in [0, 3] {
                for lost in [false, true] {
                    all.push(Some(DirtyMap {
                        bits_set,
                        from_txid,
                        through_txid,
                        lost,
                    }));
                }
            }
        }
    }
    all
}

fn few_maps() -> [Option<DirtyMap>; 4] {
    let map = DirtyMap {
        bits_set: 0,
        from_txid: 0,
        through_txid: 4,
        lost: false,
    };
    [
        None,
        Some(map),
        Some(DirtyMap { bits_set: 1, ..map }),
        Some(DirtyMap { lost: true, ..map }),
    ]
}

fn chains() -> Vec<Option<Chain>> {
    let equal = Chain {
        at: 0,
        mirror: 1,
        master: Some(1),
    };
    let unequal = TXIDS.map(|at| {
        Some(Chain {
            at,
            mirror: 1,
            master: Some(2),
        })
    });
    let mut all = vec![
        None,
        Some(equal),
        Some(Chain {
            master: None,
            ..equal
        }),
    ];
    all.extend(unequal);
    all
}

fn some_master(history: &[Lineage]) -> Master<'_> {
    Master {
        volume: VOLUME,
        history,
        committed: 0,
        log_after: Some(0),
        map: None,
        changed_outside: false,
    }
}

fn some_mirror(history: &[Lineage]) -> Mirror<'_> {
    Mirror {
        volume: VOLUME,
        role: Role::Mirror,
        history,
        applied: 0,
        durable: 0,
        confirmed: 0,
        copy: Copy::Complete,
        consistent_at: Some(0),
        reach: 0,
        tainted: false,
        map: None,
        may_rejoin: false,
    }
}

#[test]
fn every_small_history() {
    let (own, theirs) = (own_histories(), their_histories());
    for history in &own {
        for their_history in &theirs {
            for committed in TXIDS {
                let master = Master {
                    committed,
                    ..some_master(history)
                };
                let master_points = Points::of(history, committed);
                for of in copies() {
                    let mirror_points = Points::of(their_history, position(of));
                    for confirmed in TXIDS {
                        // Less than, equal to, and more than what is confirmed.
                        for applied in [0, confirmed, 4] {
                            for flags in 0..8 {
                                let mirror = Mirror {
                                    copy: of.0,
                                    durable: of.1,
                                    confirmed,
                                    applied,
                                    role: if flags & 1 == 0 {
                                        Role::Mirror
                                    } else {
                                        Role::Master
                                    },
                                    may_rejoin: flags & 2 != 0,
                                    consistent_at: (flags & 4 == 0).then_some(0),
                                    ..some_mirror(their_history)
                                };
                                check(&Case {
                                    master,
                                    mirror,
                                    chain: None,
                                    master_points,
                                    mirror_points,
                                });
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn every_small_chain() {
    let (own, theirs) = (own_histories(), their_histories());
    for history in &own {
        for their_history in &theirs {
            for committed in TXIDS {
                let master_points = Points::of(history, committed);
                for of in copies() {
                    let mirror_points = Points::of(their_history, position(of));
                    for chain in chains() {
                        for volume in [VOLUME, VOLUME + 1] {
                            let master = Master {
                                committed,
                                ..some_master(history)
                            };
                            let mirror = Mirror {
                                volume,
                                copy: of.0,
                                durable: of.1,
                                ..some_mirror(their_history)
                            };
                            check(&Case {
                                master,
                                mirror,
                                chain,
                                master_points,
                                mirror_points,
                            });
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn every_small_log_and_map() {
    let history = [lineage(0, 0)];
    let maps = maps();
    for committed in TXIDS {
        let master_points = Points::of(&history, committed);
        for of in copies() {
            let mirror_points = Points::of(&history, position(of));
            for log_after in TXIDS.map(Some).chain([None]) {
                for &map in &maps {
                    for their_map in few_maps() {
                        for consistent_at in TXIDS.map(Some).chain([None]) {
                            for flags in 0..4 {
                                let master = Master {
                                    committed,
                                    log_after,
                                    map,
                                    changed_outside: flags & 1 != 0,
                                    ..some_master(&history)
                                };
                                let mirror = Mirror {
                                    copy: of.0,
                                    durable: of.1,
                                    consistent_at,
                                    tainted: flags & 2 != 0,
                                    map: their_map,
                                    ..some_mirror(&history)
                                };
                                check(&Case {
                                    master,
                                    mirror,
                                    chain: None,
                                    master_points,
                                    mirror_points,
                                });
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn pick<T: core::marker::Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

#[test]
fn a_million_cases_of_everything_at_once() {
    let (own, theirs) = (own_histories(), their_histories());
    let own: Vec<&[Lineage]> = own.iter().map(Vec::as_slice).collect();
    let theirs: Vec<&[Lineage]> = theirs.iter().map(Vec::as_slice).collect();
    let (maps, chains, copies) = (maps(), chains(), copies());
    let mut random = Random(1);
    let mut rules = [0; 9];
    for _ in 0..1_000_000 {
        let history = random.pick(&own);
        let their_history = if random.below(2) == 0 {
            history
        } else {
            random.pick(&theirs)
        };
        let (copy, durable) = random.pick(&copies);
        let rarely = |random: &mut Random| random.below(8) == 0;
        let master = Master {
            volume: VOLUME,
            history,
            committed: random.below(5),
            log_after: random.below(6).checked_sub(1),
            map: if random.below(2) == 0 {
                None
            } else {
                random.pick(&maps)
            },
            changed_outside: rarely(&mut random),
        };
        let mirror = Mirror {
            volume: VOLUME + u128::from(rarely(&mut random)),
            role: if rarely(&mut random) {
                Role::Master
            } else {
                Role::Mirror
            },
            history: their_history,
            applied: random.below(5),
            durable,
            confirmed: random.below(5),
            copy,
            consistent_at: random.below(6).checked_sub(1),
            reach: random.below(6),
            tainted: rarely(&mut random),
            map: if random.below(2) == 0 {
                None
            } else {
                random.pick(&few_maps())
            },
            may_rejoin: random.below(2) == 0,
        };
        let chain = random.pick(&chains);
        let case = Case {
            master,
            mirror,
            chain,
            master_points: Points::of(history, master.committed),
            mirror_points: Points::of(their_history, position((copy, durable))),
        };
        check(&case);
        rules[usize::from(case.expected_rule())] += 1;
    }
    assert!(rules[1..].iter().all(|count| *count > 1000), "{rules:?}");
}
