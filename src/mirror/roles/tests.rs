use super::*;
use crate::units::BlockNo;
use crate::volume::facts::{Copy, HandingOver, Role};
use states::Cause;

fn history(entries: &[(u128, u64)]) -> Vec<Lineage> {
    entries
        .iter()
        .map(|(generation, fork)| Lineage {
            generation: Generation(*generation),
            fork: Txid(*fork),
        })
        .collect()
}

fn answer(peer: &str, standing: Standing, master: Option<&str>, entries: &[(u128, u64)]) -> Answer {
    Answer {
        peer: peer.to_string(),
        standing,
        master: master.map(str::to_string),
        master_member: master.map(|name| Member {
            name: name.to_string(),
            ..Member::default()
        }),
        generations: history(entries),
        applied: Txid(500),
    }
}

const OURS: &[(u128, u64)] = &[(1, 0), (2, 10)];
const PROMOTED: &[(u128, u64)] = &[(1, 0), (2, 10), (3, 100)];

#[test]
fn every_relation_of_two_histories() {
    let ours = history(OURS);
    let with = |entries| relation(&ours, &history(entries));
    assert_eq!(with(OURS), Relation::Equal);
    assert_eq!(with(PROMOTED), Relation::Behind { fork: Txid(100) });
    assert_eq!(relation(&history(PROMOTED), &ours), Relation::Ahead);
    // Promoted twice since, the second time from a node that was further behind.
    let twice = [(1, 0), (2, 10), (3, 100), (4, 90)];
    assert_eq!(with(&twice), Relation::Behind { fork: Txid(90) });
    let alone = history(&[(1, 0), (2, 10), (9, 120)]);
    assert_eq!(
        relation(&alone, &history(PROMOTED)),
        Relation::Diverged { shared: Txid(100) }
    );
    assert_eq!(with(&[(7, 0)]), Relation::Unrelated);
    assert_eq!(
        with(&[(1, 0), (2, 11), (3, 100)]),
        Relation::Diverged { shared: Txid(0) },
        "the same generation, forked elsewhere"
    );
    // Cut off at the oldest end.
    assert_eq!(
        with(&[(2, 10), (3, 100)]),
        Relation::Behind { fork: Txid(100) }
    );
    assert_eq!(shared_lineage(&alone, &history(PROMOTED)), ours);
}

#[test]
fn nobody_who_does_not_answer_and_no_mirror_of_ours_keeps_a_master_from_opening() {
    let ours = history(OURS);
    assert_eq!(judge(&ours, &[]), Verdict::Open);
    let answers = [
        answer("b", Standing::Mirror, Some("a"), OURS),
        answer("c", Standing::Mirror, Some("a"), &[(1, 0)]),
        answer("d", Standing::Absent, None, &[]),
    ];
    assert_eq!(judge(&ours, &answers), Verdict::Open);
    // An old master that does not know of us yet.
    let old = [answer("b", Standing::Master, None, &[(1, 0)])];
    assert_eq!(judge(&ours, &old), Verdict::Open);
}

#[test]
fn a_promoted_peer_is_followed_also_when_only_its_mirror_answers() {
    let ours = history(OURS);
    let follow = |master: &str| Verdict::Follow {
        master: master.to_string(),
        theirs: history(PROMOTED),
        fork: Txid(100),
    };
    let b = answer("b", Standing::Master, None, PROMOTED);
    let c = answer("c", Standing::Mirror, Some("b"), PROMOTED);
    assert_eq!(judge(&ours, &[c.clone(), b]), follow("b"));
    assert_eq!(judge(&ours, std::slice::from_ref(&c)), follow("b"));
    let stranger = Answer { master: None, ..c };
    assert!(matches!(
        judge(&ours, &[stranger]),
        Verdict::Missing { member } if member.name == "b"
    ));
}

#[test]
fn one_that_gave_up_its_history_is_not_followed_because_its_mirror_still_has_it() {
    let ours = history(OURS);
    let c = answer("c", Standing::Mirror, Some("b"), PROMOTED);
    // `rejoin --discard`, on b.
    let b = answer("b", Standing::Mirror, None, OURS);
    assert_eq!(judge(&ours, &[c.clone(), b.clone()]), Verdict::Open);
    assert_eq!(judge(&ours, &[b, c.clone()]), Verdict::Open);
    // It hands over to c, which has not taken over yet.
    let b = answer("b", Standing::Mirror, Some("c"), PROMOTED);
    assert!(matches!(judge(&ours, &[b, c]), Verdict::Follow { .. }));
}

#[test]
fn one_that_is_starting_is_followed_by_another_that_is_and_by_no_command() {
    let ours = history(OURS);
    let b = answer("b", Standing::Undecided, None, PROMOTED);
    let promoted = answer("b", Standing::Master, None, PROMOTED);
    assert!(matches!(
        judge(&ours, std::slice::from_ref(&b)),
        Verdict::Follow { master, .. } if master == "b"
    ));
    // One that knows that it is the master goes before one that does not, whatever that one has.
    let further = [(1, 0), (2, 10), (3, 100), (4, 130)];
    let starts = answer("c", Standing::Undecided, None, &further);
    for answers in [[promoted.clone(), starts.clone()], [starts, promoted]] {
        let verdict = judge(&ours, &answers);
        assert!(matches!(verdict, Verdict::Follow { master, .. } if master == "b"));
    }
    let alone = history(&[(1, 0), (2, 10), (9, 120)]);
    let verdict = judge(&alone, std::slice::from_ref(&b));
    assert!(matches!(verdict, Verdict::Diverged { .. }));
    let refused = may_follow(b).expect_err("it may become a mirror of the one that asks");
    assert!(refused.why(&HERE).contains("has not found out yet"));
}

#[test]
fn two_promotions_and_a_clone_are_seen() {
    let ours = history(&[(1, 0), (2, 10), (9, 120)]);
    let b = answer("b", Standing::Master, None, PROMOTED);
    assert_eq!(
        judge(&ours, &[b]),
        Verdict::Diverged {
            master: "b".to_string(),
            shared: Txid(100),
            theirs: Txid(500)
        }
    );
    let clone = answer("b", Standing::Master, None, &[(1, 0), (2, 10), (9, 120)]);
    assert!(matches!(judge(&ours, &[clone]), Verdict::Diverged { .. }));
}

fn facts(role: Role, entries: &[(u128, u64)]) -> Facts {
    Facts {
        generations: history(entries),
        copy: Copy::Complete,
        applied: Txid(110),
        ..Facts::blank(7, "vol", role)
    }
}

const HERE: Volume<'_> = Volume {
    name: "vol",
    node: "a",
};

#[test]
fn a_caller_is_listened_to_if_its_history_goes_on_from_ours() {
    let alone = [(1, 0), (2, 10), (9, 120)];
    let call = |listed: &Listed, open, ours: &[(u128, u64)]| {
        let facts = facts(Role::Mirror, ours);
        called(&HERE, Some(&facts), listed, open, "b", history(PROMOTED))
    };
    let cause = |said| match said {
        Called::Refuse(cause, _) => Some(cause),
        _ => None,
    };
    let mirror = |master: &str| Listed::Mirror(master.to_owned());
    for ours in [OURS, PROMOTED, &alone, &[(7, 0)]] {
        // The follower looks at the histories itself.
        assert_eq!(call(&mirror("b"), None, ours), Called::Listen);
    }
    assert_eq!(
        call(&mirror("c"), None, OURS),
        Called::Follow { fork: Txid(100) }
    );
    let further = [(1, 0), (2, 10), (3, 100), (4, 130)];
    assert_eq!(
        cause(call(&mirror("c"), None, &further)),
        Some(Cause::TwoMasters)
    );
    assert_eq!(
        cause(call(&mirror("c"), None, &alone)),
        Some(Cause::Diverged)
    );
    // Its parts were made, and nothing came: whoever calls first is its master.
    assert_eq!(
        call(&mirror("c"), None, &[]),
        Called::Follow { fork: Txid(0) }
    );
    // It was called by another master, whose history went on from this one, and took nothing of it.
    let doubted = call(&mirror("c"), None, PROMOTED);
    assert!(
        matches!(&doubted, Called::Refuse(Cause::TwoMasters, text) if text.contains("on a: lockstep rejoin vol b")),
        "{doubted:?}"
    );
    let master = Listed::Master;
    assert!(matches!(
        call(&master, None, OURS),
        Called::OpenAsked(answer) if answer.peer == "b" && answer.generations == history(PROMOTED)
    ));
    let open = Some(Txid(115));
    assert_eq!(cause(call(&master, open, OURS)), Some(Cause::Diverged));
    assert_eq!(cause(call(&master, open, &alone)), Some(Cause::Diverged));
    assert_eq!(
        cause(call(&master, open, &further)),
        Some(Cause::TwoMasters)
    );
    assert_eq!(
        cause(call(&master, open, PROMOTED)),
        Some(Cause::TwoMasters)
    );
    let unknown = |listed| called(&HERE, None, &listed, None, "b", history(PROMOTED));
    assert_eq!(cause(unknown(master)), Some(Cause::NameTaken));
    assert_eq!(cause(unknown(mirror("c"))), Some(Cause::NameTaken));
    assert_eq!(unknown(mirror("b")), Called::Listen);
}

const HALF_MADE: &[(u128, u64)] = &[(1, 0), (2, 10), (3, 0), (4, 120)];

#[test]
fn nobody_who_has_a_copy_follows_one_that_was_promoted_half_made() {
    let ours = history(OURS);
    let diverged = Verdict::Diverged {
        master: "b".to_string(),
        shared: NOTHING,
        theirs: Txid(500),
    };
    let master = [answer("b", Standing::Master, None, HALF_MADE)];
    assert_eq!(judge(&ours, &master), diverged);
    let mirror = [answer("c", Standing::Mirror, Some("b"), HALF_MADE)];
    assert_eq!(judge(&ours, &mirror), diverged);
    // It comes after what it was made from, and is its own master's.
    let whole = [answer("a", Standing::Master, None, OURS)];
    assert_eq!(judge(&history(HALF_MADE), &whole), Verdict::Open);

    let listed = Listed::Mirror("a".to_string());
    let mut facts = facts(Role::Mirror, OURS);
    facts.copy = Copy::Complete;
    let say = |facts: &Facts| called(&HERE, Some(facts), &listed, None, "b", history(HALF_MADE));
    let Called::Refuse(Cause::Diverged, text) = say(&facts) else {
        panic!("a whole copy follows half of one");
    };
    for part in [
        "half made when it was promoted",
        "on b: lockstep rejoin vol a --discard b",
        "on a: lockstep rejoin vol b --discard a",
        "on a: lockstep promote vol",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    facts.copy = Copy::Blank;
    assert_eq!(say(&facts), Called::Follow { fork: NOTHING });
    // One that had nothing yet has lost nothing.
    let opening = |last, whole| Lineage::opening(Generation(5), Txid(last), whole).fork;
    assert_eq!(opening(0, true), Txid(1));
    assert_eq!(opening(7, true), Txid(7));
    assert_eq!(opening(7, false), NOTHING);
}

#[test]
fn two_masters_are_told_what_each_choice_costs_and_the_command_for_it() {
    let facts = facts(Role::Master, &[(1, 0), (2, 10), (9, 120)]);
    let theirs = history(PROMOTED);
    let said = called(
        &HERE,
        Some(&facts),
        &Listed::Master,
        Some(Txid(130)),
        "b",
        theirs,
    );
    let Called::Refuse(Cause::Diverged, text) = said else {
        panic!("{said:?}");
    };
    for part in [
        "everything up to transaction 100",
        "keeping the copy of b loses transactions 101 to 130 of a",
        "on a: lockstep rejoin vol b --discard a",
        "on b: lockstep rejoin vol a --discard b",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_mirror_is_promoted_only_if_nothing_speaks_against_it() {
    let whole = facts(Role::Mirror, OURS);
    let gone = CopyStanding::default();
    let there = CopyStanding {
        linked: true,
        bytes_to_go: 0,
    };
    assert_eq!(doubts("m", &whole, gone, false), Ok(Vec::new()));
    assert!(matches!(
        doubts("m", &whole, there, false),
        Err(Refused::Linked { .. })
    ));
    let mut bad = whole.clone();
    bad.consistent_at = Txid(u64::MAX);
    bad.tainted = true;
    assert!(matches!(
        doubts("m", &bad, gone, false),
        Err(Refused::Doubtful { doubts, .. }) if doubts.len() == 2
    ));
    let forced = doubts("m", &bad, there, true);
    assert_eq!(forced.map(|doubts| doubts.len()), Ok(3));
    bad.copy = Copy::Partial {
        cursor: BlockNo(5),
        txid: Txid(1),
    };
    let forced = doubts("m", &bad, gone, true).expect("forced");
    assert!(matches!(
        forced[0],
        Doubt::Partial {
            cursor: BlockNo(5),
            ..
        }
    ));
    bad.copy = Copy::Blank;
    assert!(matches!(
        doubts("m", &bad, gone, true),
        Err(Refused::NoCopy { .. })
    ));
}

#[test]
fn a_master_that_handed_over_does_not_say_that_it_is_one_before_it_knows() {
    let mut handing = facts(Role::Master, OURS);
    handing.handing_over = Some(HandingOver {
        to: "b".to_owned(),
        token: 4,
    });
    let listed = Listed::Master;
    assert_eq!(standing(&handing, &listed), (Standing::Mirror, Some("b")));
    let over = handing.handing_over.clone().expect("set above");
    let ended = |ended| after_hand_over(&over, ended);
    assert_eq!(ended(Ended::Refused(String::new())), None);
    assert!(matches!(
        ended(Ended::Taken(history(PROMOTED))),
        Some(Opening::StepBack { master, .. }) if master == "b"
    ));
    assert!(matches!(
        ended(Ended::Unknown(String::new())),
        Some(Opening::Undecided { .. })
    ));
    // Only one whose history goes on from ours took it.
    let asked =
        |standing, entries| asked_after(&history(OURS), Some(answer("b", standing, None, entries)));
    assert!(matches!(asked(Standing::Master, PROMOTED), Ended::Taken(_)));
    assert!(matches!(asked(Standing::Master, OURS), Ended::Unknown(_)));
    // It was opened since, and starts again.
    assert!(matches!(
        asked(Standing::Undecided, PROMOTED),
        Ended::Taken(_)
    ));
    assert!(matches!(
        asked(Standing::Undecided, OURS),
        Ended::Unknown(_)
    ));
    assert!(matches!(asked(Standing::Mirror, OURS), Ended::Refused(_)));
    assert!(matches!(
        asked_after(&history(OURS), None),
        Ended::Unknown(_)
    ));
    assert!(stay_master(&mut handing, false).is_err() && handing.handing_over.is_some());
    assert_eq!(stay_master(&mut handing, true), Ok(true));
    assert_eq!(stay_master(&mut handing, false), Ok(false));
    assert_eq!(standing(&handing, &listed), (Standing::Master, None));
}

#[test]
fn the_list_follows_the_facts_after_a_change_that_was_cut() {
    let mut stepped = facts(Role::Mirror, OURS);
    assert_eq!(
        relisted(&stepped, &Listed::Master),
        None,
        "an older version's facts"
    );
    stepped.master = "b".to_owned();
    let mirror = Listed::Mirror("b".to_owned());
    assert_eq!(relisted(&stepped, &Listed::Master), Some(mirror.clone()));
    assert_eq!(relisted(&stepped, &mirror), None);
    assert!(is_asked_for(&stepped, &Listed::Master) && !is_asked_for(&stepped, &mirror));
    let master = facts(Role::Master, OURS);
    assert_eq!(relisted(&master, &mirror), Some(Listed::Master));
    assert!(is_asked_for(&master, &mirror));
    assert!(!is_asked_for(&facts(Role::Master, &[]), &Listed::Master));
}
