//! Whole worlds from seeds. A seed that fails is replayed, and cut short, by
//! `cargo run --release --example simulate -- --from SEED --seeds 1`.

use crate::simulate::run::{rule, run, shrink};
use crate::simulate::script::Script;

fn keeps_the_invariants(roles: bool) {
    for seed in 1..=24 {
        let (_, violation) = run(&Script::new(seed, roles));
        if let Some(violation) = violation {
            panic!("seed {seed}: {}", violation.message);
        }
    }
}

#[test]
fn random_worlds_keep_the_invariants() {
    keeps_the_invariants(false);
}

#[test]
fn random_worlds_with_promotions_rejoins_and_switchovers_keep_the_invariants() {
    keeps_the_invariants(true);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 7] {
        let (first, _) = run(&Script::new(seed, false));
        let (second, _) = run(&Script::new(seed, false));
        assert_eq!(first.to_string(), second.to_string(), "seed {seed}");
    }
}

#[test]
fn a_failing_run_is_cut_short() {
    let script = Script::new(1, false);
    let violation = crate::simulate::run::Violation {
        message: "I0: none such".to_string(),
        trace: Vec::new(),
    };
    // It does not fail at all: nothing can be left out, and the search ends.
    assert_eq!(shrink(&script, &violation, 3).0.len(), script.steps.len());
    assert_eq!(rule(&violation.message), "I0");
}
