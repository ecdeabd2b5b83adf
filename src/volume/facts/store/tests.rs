use super::super::tests::sample;
use super::super::{Copy, Facts, Role};
use super::*;

#[test]
fn saved_facts_are_loaded_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let file = FactFile::new(dir.path().join("facts"));
    assert!(matches!(file.load(), Err(FactsError::Missing { .. })));
    let mut facts = sample();
    file.save(&facts).unwrap();
    facts.copy = Copy::Complete;
    file.save(&facts).unwrap();
    assert_eq!(file.serial(), Some(2));
    let again = FactFile::new(file.path());
    assert_eq!(again.load().unwrap(), facts);
    again.save(&facts).unwrap();
    assert_eq!(again.serial(), Some(3));
    // A saver that never loaded goes on counting, too.
    let other = FactFile::new(file.path());
    other.save(&facts).unwrap();
    assert_eq!(other.serial(), Some(4));
    other.remove().unwrap();
    other.remove().unwrap();
    assert!(matches!(other.load(), Err(FactsError::Missing { .. })));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_text_form_is_the_documented_one() {
    let facts = Facts::blank(0xab, "home", Role::Mirror);
    let text = String::from_utf8(encode(12, &facts, "").unwrap()).unwrap();
    let (line, json) = text.split_once('\n').unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!(words[..3], ["lockstep-facts", "1", "12"]);
    assert_eq!(words[3].len(), 16);
    assert_eq!(words[4], json.len().to_string());
    assert!(json.starts_with("{\n  \"volume_id\": \"000000000000000000000000000000ab\","));
}

#[test]
fn facts_of_version_1_load_for_ever() {
    // Written by the first version; fields that came later have defaults.
    let json = r#"{"volume_id":"000000000000000000000000000000ab","name":"home","role":"mirror","generations":[],
        "high_txid":5,"segments":[],"tail":null,"head":null,"stamps":null,"copy":{"partial":{"cursor":9,"txid":4}},
        "consistent_at":0,"applied":4,"chain":"0000000000000001","tainted":false,
        "peers":{"b":{"acked":3,"cracked":false}},"of_a_later_version":1}"#;
    let mut text = header(1, json.as_bytes()).into_bytes();
    text.extend_from_slice(json.as_bytes());
    let (serial, facts) = decode(&text, "").unwrap();
    assert_eq!((serial, facts.high_txid.0, facts.applied.0), (1, 5, 4));
    assert_eq!(facts.peers["b"].acked.0, 3);
}

#[test]
fn every_damaged_byte_is_a_named_error() {
    let text = encode(7, &sample(), "p").unwrap();
    decode(&text, "p").unwrap();
    for at in 0..text.len() {
        for flip in [1, 0x20, 0x80, 0xff] {
            let mut damaged = text.clone();
            damaged[at] ^= flip;
            match decode(&damaged, "p") {
                Err(e) => assert!(
                    e.is_corrupt() || matches!(e, FactsError::Version { .. }),
                    "{e}"
                ),
                Ok(_) => panic!("byte {at} changed by {flip:#x} went unnoticed"),
            }
        }
    }
}

#[test]
fn every_truncation_and_addition_is_a_named_error() {
    let text = encode(7, &sample(), "p").unwrap();
    for len in 0..text.len() {
        let e = decode(&text[..len], "p").unwrap_err();
        assert!(
            matches!(e, FactsError::Header { .. } | FactsError::Length { .. }),
            "{len}: {e}"
        );
    }
    let mut longer = text.clone();
    longer.push(b'\n');
    assert!(matches!(
        decode(&longer, "p"),
        Err(FactsError::Length { .. })
    ));
    let mut twice = text.clone();
    twice.extend_from_slice(&text);
    assert!(matches!(
        decode(&twice, "p"),
        Err(FactsError::Length { .. })
    ));
}

#[test]
fn another_version_and_foreign_contents_are_named() {
    let text = String::from_utf8(encode(7, &sample(), "p").unwrap()).unwrap();
    let newer = text.replacen("lockstep-facts 1 ", "lockstep-facts 2 ", 1);
    assert!(matches!(
        decode(newer.as_bytes(), "p"),
        Err(FactsError::Version { found: 2, .. })
    ));
    let json = b"{\"volume_id\":3}";
    let mut foreign = header(1, json).into_bytes();
    foreign.extend_from_slice(json);
    assert!(matches!(
        decode(&foreign, "p"),
        Err(FactsError::Content { .. })
    ));
    assert!(matches!(decode(b"", "p"), Err(FactsError::Header { .. })));
    assert!(matches!(
        decode(&[0xff; 4096], "p"),
        Err(FactsError::Header { .. })
    ));
}

#[test]
fn a_crash_between_any_two_steps_leaves_the_old_or_the_new_facts() {
    let old = sample();
    let mut new = sample();
    new.name = "renamed".into();
    for step in [
        SaveStep::Created,
        SaveStep::Written,
        SaveStep::Flushed,
        SaveStep::Renamed,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let file = FactFile::new(dir.path().join("facts"));
        file.save(&old).unwrap();
        let crashed = file.save_with(&new, &mut |at| match at == step {
            true => Err(io::Error::other("power")),
            false => Ok(()),
        });
        assert!(crashed.is_err());
        let after = FactFile::new(file.path()).load().unwrap();
        let expected = if step == SaveStep::Renamed {
            &new
        } else {
            &old
        };
        assert_eq!(&after, expected, "{step:?}");
        // What the crash left behind is in nobody's way.
        let restarted = FactFile::new(file.path());
        restarted.save(&new).unwrap();
        assert_eq!(restarted.load().unwrap(), new);
        assert!(std::fs::read_dir(dir.path()).unwrap().count() <= 2);
        restarted.remove().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_save_takes_no_space_that_the_one_before_did_not_have() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let file = FactFile::new(dir.path().join("facts"));
    let mut facts = sample();
    file.save(&facts).unwrap();
    file.save(&facts).unwrap();
    let inodes = || {
        let mut inodes: Vec<(u64, u64)> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap())
            .map(|meta| (meta.ino(), meta.len()))
            .collect();
        inodes.sort_unstable();
        inodes
    };
    let before = inodes();
    assert_eq!(before.len(), 2);
    for name in ["short", "quite a bit longer than before"] {
        facts.name = name.into();
        file.save(&facts).unwrap();
        assert_eq!(file.load().unwrap(), facts);
        assert_eq!(inodes(), before);
    }
}

#[test]
fn a_torn_temporary_file_is_never_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = FactFile::new(dir.path().join("facts"));
    file.save(&sample()).unwrap();
    std::fs::write(dir.path().join("facts.new"), b"lockstep-facts 1 99").unwrap();
    assert_eq!(file.load().unwrap(), sample());
}

#[test]
fn memory_keeps_facts_over_a_simulated_crash() {
    let store = MemoryFacts::new();
    assert!(matches!(store.load(), Err(FactsError::Missing { .. })));
    store.save(&sample()).unwrap();
    store.fail_saves(true);
    assert!(store.save(&Facts::blank(1, "x", Role::Master)).is_err());
    assert_eq!(store.load().unwrap(), sample());
    store.fail_saves(false);
    store.lose();
    assert!(store.load().is_err());
}
