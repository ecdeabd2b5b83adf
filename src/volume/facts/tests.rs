use super::*;

pub(super) fn sample() -> Facts {
    let mut facts = Facts::blank(u128::MAX - 5, "home", Role::Master);
    facts.description = Some(Description {
        block_size: 4096,
        parts: vec![1 << 30, 1 << 20],
    });
    facts.generations = vec![
        Lineage {
            generation: Generation(7),
            fork: Txid(0),
        },
        Lineage {
            generation: Generation(1 << 127),
            fork: Txid(u64::MAX),
        },
    ];
    facts.high_txid = Txid(u64::MAX);
    facts.segments = vec![Segment {
        generation: Generation(7),
        first_txid: Txid(1 << 60),
        first_block: LogBlock(u32::MAX),
    }];
    facts.tail = Some(MirrorTail {
        log_block: LogBlock(3),
        txid: Txid(9),
        generation: Generation(7),
    });
    facts.head = Some(LogHead {
        log_block: LogBlock(4),
        txid: Txid(10),
        chain: u64::MAX,
    });
    facts.stamps = Some(OutsideStamps {
        s_mnt_count: 3,
        s_mtime: -1,
        s_wtime: i64::MAX,
        s_lastcheck: 0,
        journal_sequence: u32::MAX,
        ctimes: vec![None, Some(1_700_000_000_123_456_789), Some(i128::MIN)],
    });
    facts.copy = Copy::Partial {
        cursor: BlockNo(123),
        txid: Txid(4),
    };
    facts.peers.insert(
        "b\"ü\n".into(),
        PeerFacts {
            acked: Txid(40),
            cracked: true,
            record: PeerRecord {
                paused: true,
                error: Some(("unrelated".into(), "no history in common".into())),
                ..PeerRecord::default()
            },
        },
    );
    facts.peers.insert("c".into(), PeerFacts::default());
    facts
}

#[test]
fn facts_survive_json() {
    let facts = sample();
    let text = serde_json::to_string(&facts).unwrap();
    assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), facts);
    let blank = Facts::blank(1, "x", Role::Mirror);
    let text = serde_json::to_string(&blank).unwrap();
    assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), blank);
}

#[test]
fn numbers_out_of_range_and_bad_digits_are_errors() {
    let text = serde_json::to_string(&sample()).unwrap();
    for (from, to) in [
        ("\"log_block\":3", "\"log_block\":4294967296"),
        ("\"role\":\"master\"", "\"role\":\"boss\""),
        (
            "\"chain\":\"ffffffffffffffff\"",
            "\"chain\":\"+fffffffffffffff\"",
        ),
        ("\"chain\":\"ffffffffffffffff\"", "\"chain\":\"ff\""),
    ] {
        assert!(text.contains(from), "{from} in {text}");
        let damaged = text.replacen(from, to, 1);
        assert!(serde_json::from_str::<Facts>(&damaged).is_err(), "{to}");
    }
}
