//! The table, proved: by going through every state, every event and every combination of facts.

mod cells;
mod goldens;
mod paths;
mod words;

use states::{Cause, Decided, Event, Facts, MinorCause, State, Step};

/// Every combination of facts that any guard can tell apart.
fn every_facts() -> Vec<Facts> {
    let mut all = Vec::new();
    for bits in 0..1u32 << 7 {
        let bit = |n: u32| bits & (1 << n) != 0;
        for (acknowledged, consistent_at) in [(0, 1), (1, 1), (2, 1)] {
            for &retry in Step::ALL {
                all.push(Facts {
                    linked: bit(0),
                    secured: bit(1),
                    paused: bit(2),
                    error: bit(3).then_some(Cause::MirrorDiskFull),
                    cracked: bit(4),
                    dirty: bit(5),
                    copying: bit(6),
                    acknowledged,
                    consistent_at,
                    retry,
                });
            }
        }
    }
    all
}

/// Every event, one of each kind.
const EVENTS: [Event; 22] = [
    Event::Started,
    Event::Secured,
    Event::NoRoom,
    Event::Contact,
    Event::Connected,
    Event::PartsReady,
    Event::Decided(Decided::Replicate),
    Event::Decided(Decided::OutOfSync),
    Event::Decided(Decided::InSync),
    Event::Decided(Decided::Error(Cause::Diverged)),
    Event::CopyFinished,
    Event::CaughtUp,
    Event::Cracked,
    Event::LinkLost,
    Event::MinorFailure(MinorCause::TimedOut),
    Event::SevereFailure(Cause::NameTaken),
    Event::MirrorFailed(Cause::MirrorDiskFailing),
    Event::RetryDue,
    Event::Pause,
    Event::Continue,
    Event::Restart,
    Event::Delete,
];

/// Calls `check` for every state, combination of facts, and event.
fn for_everything(mut check: impl FnMut(State, &Facts, Event)) {
    for facts in every_facts() {
        for &state in State::ALL {
            for event in EVENTS {
                check(state, &facts, event);
            }
        }
    }
}
