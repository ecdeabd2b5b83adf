//! What was injected and what was checked, by name. Owns counters only.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub injected: BTreeMap<&'static str, u64>,
    pub checked: BTreeMap<&'static str, u64>,
    /// How often mirrors entered which state.
    pub states: BTreeMap<String, u64>,
    pub simulated: Duration,
    pub runs: u64,
}

impl Tally {
    pub fn inject(&mut self, what: &'static str) {
        *self.injected.entry(what).or_default() += 1;
    }

    pub fn check(&mut self, what: &'static str, times: u64) {
        *self.checked.entry(what).or_default() += times;
    }

    pub fn enter(&mut self, state: impl fmt::Display) {
        *self.states.entry(state.to_string()).or_default() += 1;
    }

    pub fn add(&mut self, other: &Tally) {
        for (what, n) in &other.injected {
            *self.injected.entry(what).or_default() += n;
        }
        for (what, n) in &other.checked {
            *self.checked.entry(what).or_default() += n;
        }
        for (state, n) in &other.states {
            *self.states.entry(state.clone()).or_default() += n;
        }
        self.simulated += other.simulated;
        self.runs += other.runs;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} runs, {:.1} hours of simulated time",
            self.runs,
            self.simulated.as_secs_f64() / 3600.0
        )?;
        for (title, entries) in [("injected", &self.injected), ("checked", &self.checked)] {
            writeln!(f, "{title}:")?;
            for (what, n) in entries {
                writeln!(f, "  {n:>9} {what}")?;
            }
        }
        writeln!(f, "states entered:")?;
        for (state, n) in &self.states {
            writeln!(f, "  {n:>9} {state}")?;
        }
        Ok(())
    }
}
