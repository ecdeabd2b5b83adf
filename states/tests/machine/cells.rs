//! Every cell by itself.

use crate::{EVENTS, every_facts, for_everything};
use states::table::{TABLE, Then, cell};
use states::{Cause, Command, Event, EventKind, Facts, Next, Refusal, State, Step, step};

#[test]
fn every_kind_of_event_is_among_those_tested() {
    let kinds: Vec<_> = EVENTS.iter().map(|event| event.kind()).collect();
    assert_eq!(kinds, EventKind::ALL);
}

#[test]
fn every_cell_is_written_out_and_in_order() {
    let mut rows = TABLE.iter().peekable();
    for &state in State::ALL {
        for &event in EventKind::ALL {
            let mut count = 0;
            while rows
                .next_if(|row| row.from == state && row.event == event)
                .is_some()
            {
                count += 1;
            }
            assert!(
                count > 0,
                "{state} {event}: no row, or not where it belongs"
            );
        }
    }
    assert_eq!(rows.next(), None);
}

#[test]
fn in_every_cell_exactly_one_guard_holds_whatever_the_facts_are() {
    let all = every_facts();
    for &state in State::ALL {
        for &event in EventKind::ALL {
            for facts in &all {
                let holding: Vec<_> = cell(state, event)
                    .filter(|row| row.guard.holds(facts))
                    .map(|row| row.guard)
                    .collect();
                assert_eq!(holding.len(), 1, "{state} {event} {facts:?}: {holding:?}");
            }
        }
    }
}

#[test]
fn every_row_can_apply() {
    let all = every_facts();
    for row in TABLE {
        assert!(all.iter().any(|facts| row.guard.holds(facts)), "{row:?}");
        assert!(!row.why.is_empty() && !row.why.ends_with('.'), "{row:?}");
    }
}

#[test]
fn facts_are_never_refused_and_a_refusal_does_nothing() {
    for row in TABLE {
        if let Then::Refuse(_) = row.then {
            assert!(row.event.is_request(), "{row:?}");
            assert_eq!(row.commands, [], "{row:?}");
        }
    }
}

#[test]
fn step_returns_the_row_whose_guard_holds() {
    for_everything(|state, facts, event| {
        let row = cell(state, event.kind())
            .find(|row| row.guard.holds(facts))
            .unwrap();
        match step(state, facts, event) {
            Err(refusal) => assert_eq!(row.then, Then::Refuse(refusal)),
            Ok(transition) => {
                assert_eq!(transition.from, state);
                assert_eq!(transition.event, event.kind());
                assert_eq!(transition.commands, row.commands);
                assert_eq!(transition.why, row.why);
                let next = match row.then {
                    Then::Stay => Next::Stay,
                    Then::Go(to) => Next::Enter(to),
                    Then::Gone => Next::Gone,
                    Then::Refuse(_) => panic!("{row:?} was not refused"),
                };
                assert_eq!(transition.next, next);
            }
        }
    });
}

#[test]
fn error_is_entered_with_its_cause_and_nothing_else_is() {
    for_everything(|state, facts, event| {
        let Ok(transition) = step(state, facts, event) else {
            return;
        };
        let entered = transition.next == Next::Enter(State::Error);
        let expected = match event {
            _ if !entered => None,
            Event::Started => facts.error,
            Event::NoRoom => Some(Cause::NoRoomForBuffer),
            _ => event.cause(),
        };
        assert_eq!(transition.cause, expected, "{transition}");
        assert_eq!(transition.cause.is_some(), entered, "{transition}");
        let recorded = transition.commands.contains(&Command::RecordError);
        assert_eq!(recorded, entered && event != Event::Started, "{transition}");
    });
}

#[test]
fn a_state_is_left_with_all_that_it_began_stopped() {
    for row in TABLE {
        if row.event == EventKind::Started {
            // The process has just begun: nothing runs.
            continue;
        }
        let has = |command| row.commands.contains(&command);
        let leaves = match row.then {
            Then::Stay | Then::Refuse(_) => continue,
            Then::Go(to) => Some(to),
            Then::Gone => None,
        };
        if row.from.is_copying() && leaves != Some(State::InSync) {
            assert!(has(Command::StopCopy), "{row:?}");
        }
        if row.from == State::InSync {
            assert!(has(Command::StopSequencing), "{row:?}");
        }
        let linked = !matches!(
            row.from,
            State::New | State::LinkDown | State::Idle | State::Error
        );
        match leaves {
            None | Some(State::New | State::Idle | State::Error) if linked => {
                let retries = row.from == State::Reset && row.event == EventKind::RetryDue;
                assert!(has(Command::CloseLink) || retries, "{row:?}");
            }
            Some(State::LinkDown) => {
                assert!(
                    has(Command::CloseLink) && has(Command::ReconnectLater),
                    "{row:?}"
                );
            }
            _ => {}
        }
    }
}

#[test]
fn a_state_is_entered_with_what_it_is_for() {
    for row in TABLE {
        let Then::Go(to) = row.then else { continue };
        let has = |command| row.commands.contains(&command);
        let begins = match to {
            State::New => has(Command::SecureBuffer),
            State::Init => has(Command::Connect),
            State::MakeParts => has(Command::MakeParts),
            State::Ready => has(Command::Decide),
            State::Replicate => has(Command::BeginCopy),
            State::OutOfSync => has(Command::BeginResync),
            State::InSync => has(Command::BeginSequencing) && has(Command::OpenMirror),
            State::LinkDown => has(Command::ReconnectLater),
            State::Idle => has(Command::RecordPause) || row.event == EventKind::Started,
            State::Reset => row.commands.iter().any(
                |command| matches!(command, Command::RetryLater(step) if step.state() == row.from),
            ),
            State::Error => has(Command::RecordError) || row.event == EventKind::Started,
        };
        assert!(begins, "{row:?}");
    }
}

#[test]
fn an_unconfirmed_suffix_is_dropped_before_anything_is_sent() {
    for row in TABLE.iter().filter(|row| row.from == State::Ready) {
        if let Then::Go(State::InSync | State::OutOfSync) = row.then {
            assert_eq!(row.commands[0], Command::DropUnconfirmed, "{row:?}");
        }
    }
}

#[test]
fn every_state_derives_the_same_state_when_the_node_starts() {
    for facts in every_facts() {
        let derived = step(State::New, &facts, Event::Started).unwrap();
        let expected = if facts.error.is_some() {
            State::Error
        } else if facts.paused {
            State::Idle
        } else if !facts.secured {
            State::New
        } else {
            State::Init
        };
        assert_eq!(derived.next, Next::Enter(expected));
        for &state in State::ALL {
            let here = step(state, &facts, Event::Started).unwrap();
            assert_eq!((here.next, here.commands), (derived.next, derived.commands));
        }
    }
}

#[test]
fn every_working_state_can_be_paused_and_only_those() {
    for &state in State::ALL {
        let result = step(state, &Facts::default(), Event::Pause);
        let paused = result.is_ok_and(|transition| {
            transition.next == Next::Enter(State::Idle)
                && transition.commands.contains(&Command::RecordPause)
        });
        assert_eq!(paused, state.is_working(), "{state}");
    }
}

#[test]
fn a_mirror_can_be_deleted_in_every_state() {
    for &state in State::ALL {
        let transition = step(state, &Facts::default(), Event::Delete).unwrap();
        assert_eq!(transition.next, Next::Gone);
        assert_eq!(transition.state(), None);
        assert_eq!(transition.commands.last(), Some(&Command::Forget));
    }
}

#[test]
fn a_crack_moves_only_a_mirror_in_sync() {
    for_everything(|state, facts, event| {
        if event == Event::Cracked {
            let transition = step(state, facts, event).unwrap();
            let expected = match state {
                State::InSync => Next::Enter(State::OutOfSync),
                _ => Next::Stay,
            };
            assert_eq!(transition.next, expected, "{transition}");
        }
    });
}

#[test]
fn a_lost_link_leaves_no_state_that_needs_one() {
    for_everything(|state, facts, event| {
        if event != Event::LinkLost {
            return;
        }
        let facts = Facts {
            linked: false,
            ..*facts
        };
        let after = step(state, &facts, event).unwrap().state().unwrap();
        let may_be = matches!(
            after,
            State::New | State::LinkDown | State::Idle | State::Reset | State::Error
        );
        assert!(may_be, "{state} -> {after}");
        if after == State::Reset {
            assert_eq!(facts.retry, Step::New);
        }
    });
}

#[test]
fn the_first_severe_cause_stands() {
    for event in EVENTS {
        if event.cause().is_some() {
            let transition = step(State::Error, &Facts::default(), event).unwrap();
            assert_eq!(
                (transition.next, transition.commands),
                (Next::Stay, &[][..])
            );
        }
    }
}

#[test]
fn bits_left_at_the_end_of_a_copy_make_one_more_pass_and_never_two_at_once() {
    for_everything(|state, facts, event| {
        let reports = [Event::CopyFinished, Event::CaughtUp, Event::Cracked];
        if !state.is_copying() || !facts.linked || !reports.contains(&event) {
            return;
        }
        let bits = facts.dirty || facts.cracked || event == Event::Cracked;
        let transition = step(state, facts, event).unwrap();
        let begins = transition.commands.contains(&Command::BeginPass);
        assert_eq!(begins, bits && !facts.copying, "{transition} {facts:?}");
    });
}

#[test]
fn a_severe_failure_stops_every_state() {
    for_everything(|state, facts, event| {
        let stops = match event {
            Event::SevereFailure(_) => true,
            // Not in an earlier life, and not while nobody wants anything of the mirror.
            Event::MirrorFailed(_) => !matches!(state, State::New | State::Idle),
            Event::NoRoom => {
                state == State::New || state == State::Reset && facts.retry == Step::New
            }
            _ => return,
        };
        let expected = match state {
            State::Error => Next::Stay,
            _ if stops => Next::Enter(State::Error),
            _ => Next::Stay,
        };
        assert_eq!(
            step(state, facts, event).unwrap().next,
            expected,
            "{state} {event:?}"
        );
    });
}

#[test]
fn a_minor_failure_is_tried_again_at_its_step_or_over_a_new_link() {
    for &state in State::ALL {
        let event = Event::MinorFailure(states::MinorCause::BadFrame);
        let transition = step(state, &Facts::default(), event).unwrap();
        let expected = match state {
            State::New | State::Init | State::MakeParts | State::Ready => Next::Enter(State::Reset),
            State::Replicate | State::InSync | State::OutOfSync => Next::Enter(State::LinkDown),
            _ => Next::Stay,
        };
        assert_eq!(transition.next, expected, "{transition}");
        assert_eq!(transition.minor_cause, event.minor_cause());
    }
}

#[test]
fn requests_are_refused_only_where_they_would_say_nothing_or_hide_something() {
    for_everything(|state, facts, event| {
        let expected = match (event, state) {
            (Event::Pause, State::Idle) => Some(Refusal::AlreadyPaused),
            (Event::Pause, State::Error) => Some(Refusal::PauseInError),
            (Event::Continue, State::Idle) => None,
            (Event::Continue, State::Error) => Some(Refusal::ContinueInError),
            (Event::Continue, _) => Some(Refusal::NotPaused),
            (Event::Restart, State::New) => Some(Refusal::AlreadyNew),
            (Event::Restart, State::Idle) => Some(Refusal::RestartWhilePaused),
            _ => None,
        };
        let result = step(state, facts, event);
        assert_eq!(result.err(), expected, "{state} {event:?}");
        if let (Event::Restart, Ok(transition)) = (event, result) {
            assert_eq!(transition.next, Next::Enter(State::New));
            let forgets = transition.commands.contains(&Command::ForgetError)
                && transition.commands.contains(&Command::ForgetPause);
            assert_eq!(forgets, state == State::Error, "{transition}");
        }
        if let (Event::Continue, Ok(transition)) = (event, result) {
            assert!(
                transition.commands.contains(&Command::ForgetPause),
                "{transition}"
            );
        }
    });
}

#[test]
fn contact_that_nobody_wants_is_hung_up() {
    for_everything(|state, facts, event| {
        if event != Event::Contact {
            return;
        }
        let transition = step(state, facts, event).unwrap();
        let unwanted = matches!(state, State::New | State::Idle | State::Error);
        let hangs_up = transition.commands.contains(&Command::CloseLink);
        assert_eq!(hangs_up, unwanted, "{transition}");
        assert_eq!(
            transition.next == Next::Stay,
            state != State::LinkDown,
            "{transition}"
        );
    });
}
