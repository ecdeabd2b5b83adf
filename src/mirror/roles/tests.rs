use super::*;

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
