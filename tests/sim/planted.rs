//! Bugs on purpose, one at a time: the simulator finds each of them within a bounded number of seeds, and for the right
//! reason. Runs with the feature `planted` only.

use lockstepfs::units::planted;

use crate::simulate::run::{rule, run};
use crate::simulate::script::Script;

/// Seeds within which a bug has to be found.
const SEEDS: u64 = 500;

/// The invariants of which a bug may be the end. A seed in which another one is noticed first does not count.
fn reasons(bug: &str) -> &'static [&'static str] {
    match bug {
        // What was acknowledged is gone, or its node can not be opened.
        "ack-before-flush" => &["I3", "I7"],
        "drop-dirty-bit" => &["I1", "I2", "I3"],
        "skip-revoke" => &["I1", "I3"],
        "apply-out-of-order" => &["I1", "I3"],
        // A mirror is told to drop what it has, and acknowledged, of a history that seems to end before.
        "forget-fork" => &["I1", "I3", "I4", "I6"],
        "reuse-pinned" => &["I1"],
        "stale-facts" => &["I3", "I4"],
        "no-guard" => &["I10"],
        "switch-early" => &["I7"],
        "clear-on-send" => &["I1", "I2"],
        "ack-without-mirror" => &["I4"],
        "drop-without-keeping" => &["lost"],
        other => panic!("what does {other} break?"),
    }
}

#[test]
fn every_planted_bug_is_found_for_the_right_reason() {
    let mut missed = Vec::new();
    for bug in planted::ALL {
        let found = (1..=SEEDS).find_map(|seed| {
            let script = Script::new(seed, *bug == "drop-without-keeping");
            planted::plant(Some(bug));
            let (_, violation) = run(&script);
            planted::plant(None);
            let violation = violation.filter(|v| reasons(bug).contains(&rule(&v.message)))?;
            // A seed that fails without the bug says nothing of it.
            let (_, without) = run(&script);
            without.is_none().then_some((seed, violation.message))
        });
        match found {
            Some((seed, message)) => println!("{bug}: seed {seed}: {message}"),
            None => missed.push(format!("{bug}: not found in {SEEDS} seeds")),
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
