//! Spellings: stable, distinct, and read back.

use states::reconnect::{Rule, Split};
use states::{Cause, Command, EventKind, Guard, MinorCause, Refusal, State, Step, UnknownWord};
use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::str::FromStr;

fn round_trip<T>(all: &[T])
where
    T: Copy + Debug + Display + PartialEq + FromStr<Err = UnknownWord>,
{
    let mut words = BTreeSet::new();
    for value in all {
        let word = value.to_string();
        assert_eq!(word.parse::<T>(), Ok(*value));
        assert_eq!(format!("{value:>30}").trim_start(), word);
        assert!(words.insert(word.clone()), "{word} stands for two values");
        assert!(word.parse::<T>().is_ok() && format!("{word} ").parse::<T>().is_err());
    }
    assert!("".parse::<T>().is_err());
}

#[test]
fn every_word_is_read_back() {
    round_trip(State::ALL);
    round_trip(Step::ALL);
    round_trip(EventKind::ALL);
    round_trip(Guard::ALL);
    round_trip(Cause::ALL);
    round_trip(MinorCause::ALL);
    round_trip(Refusal::ALL);
    round_trip(Rule::ALL);
    round_trip(Split::ALL);
}

#[test]
fn an_unknown_word_says_what_it_should_have_been() {
    let error = "SYNCED".parse::<State>().unwrap_err();
    assert_eq!(error.to_string(), "no such state");
    let error = "insync".parse::<State>().unwrap_err();
    assert_eq!(error.to_string(), "no such state");
}

#[test]
fn the_states_have_the_operators_names() {
    let words: Vec<_> = State::ALL.iter().map(|state| state.word()).collect();
    let expected = "NEW INIT MAKEPARTS READY REPLICATE INSYNC OUTOFSYNC LINKDOWN IDLE RESET ERROR";
    assert_eq!(words.join(" "), expected);
    for step in Step::ALL {
        assert_eq!(step.word(), step.state().word());
    }
}

#[test]
fn codes_are_in_kebab_case() {
    let codes = Cause::ALL.iter().map(|c| c.word());
    let codes = codes.chain(MinorCause::ALL.iter().map(|c| c.word()));
    let codes = codes.chain(Refusal::ALL.iter().map(|r| r.word()));
    let codes = codes.chain(EventKind::ALL.iter().map(|e| e.word()));
    let codes = codes.chain(Command::ALL.iter().map(|c| c.word()));
    for code in codes {
        let kebab = |c: char| c.is_ascii_lowercase() || c == '-';
        assert!(code.chars().all(kebab) && !code.starts_with('-'), "{code}");
    }
}

#[test]
fn causes_and_refusals_are_told_apart_by_code_and_by_sentence() {
    let mut texts = BTreeSet::new();
    for cause in Cause::ALL {
        assert!(
            texts.insert(cause.word()) && texts.insert(cause.sentence()),
            "{cause}"
        );
        assert!(texts.insert(cause.remedy()), "{cause}");
        assert!(
            cause.remedy().to_lowercase().contains("restart the mirror"),
            "{cause}"
        );
    }
    for cause in MinorCause::ALL {
        assert!(
            texts.insert(cause.word()) && texts.insert(cause.sentence()),
            "{cause}"
        );
        assert!(texts.insert(cause.remedy()), "{cause}");
    }
    for refusal in Refusal::ALL {
        assert!(
            texts.insert(refusal.word()) && texts.insert(refusal.sentence()),
            "{refusal}"
        );
        if !refusal.already_there() {
            assert!(
                refusal.sentence().contains("use `lockstep mirror"),
                "{refusal}"
            );
        }
    }
    assert!(texts.iter().all(|text| !text.contains("  ")));
    let sentences = texts.iter().filter(|text| text.contains(' '));
    assert!(sentences.into_iter().all(|text| text.ends_with('.')));
}

#[test]
fn a_transition_is_traced_in_one_line() {
    let facts = states::Facts::default();
    let event = states::Event::MirrorFailed(Cause::MirrorDiskFull);
    let line = states::step(State::InSync, &facts, event)
        .unwrap()
        .to_string();
    let why = "the mirror can not go on until somebody mends it";
    assert_eq!(
        line,
        format!("INSYNC mirror-failed -> ERROR: {why} (mirror-disk-full)")
    );
    let event = states::Event::MinorFailure(MinorCause::TimedOut);
    let line = states::step(State::Init, &facts, event)
        .unwrap()
        .to_string();
    let why = "connecting may well succeed next time";
    assert_eq!(
        line,
        format!("INIT minor-failure -> RESET: {why} (timed-out)")
    );
    let line = states::step(State::Idle, &facts, states::Event::Delete)
        .unwrap()
        .to_string();
    assert!(line.starts_with("IDLE delete -> gone: "), "{line}");
}
