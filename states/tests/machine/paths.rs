//! Ways through the table: what can be reached, and what can not.

use crate::{EVENTS, every_facts, for_everything};
use states::table::{TABLE, Then};
use states::{Command, Event, Facts, Next, State, step};
use std::collections::BTreeSet;

/// The states that can be reached from `from` over events that `allowed` lets pass, under any facts.
fn reachable(from: State, allowed: impl Fn(&Event, &Facts) -> bool) -> BTreeSet<&'static str> {
    let all = every_facts();
    let mut reached = BTreeSet::from([from.word()]);
    let mut open = vec![from];
    while let Some(state) = open.pop() {
        for facts in &all {
            for event in EVENTS.iter().filter(|event| allowed(event, facts)) {
                let next = step(state, facts, *event).ok().and_then(|t| t.state());
                if let Some(next) = next
                    && reached.insert(next.word())
                {
                    open.push(next);
                }
            }
        }
    }
    reached
}

#[test]
fn every_state_is_reached_from_new() {
    let not_started = |event: &Event, _: &Facts| *event != Event::Started;
    assert_eq!(reachable(State::New, not_started).len(), State::ALL.len());
}

#[test]
fn insync_is_entered_only_where_the_facts_permit_it() {
    for_everything(|state, facts, event| {
        let Ok(transition) = step(state, facts, event) else {
            return;
        };
        if transition.next == Next::Enter(State::InSync) {
            assert!(facts.linked, "{transition}");
            assert!(
                !facts.dirty && !facts.cracked && !facts.copying,
                "{transition}"
            );
            assert!(facts.acknowledged >= facts.consistent_at, "{transition}");
            assert!(state == State::Ready || state.is_copying(), "{transition}");
        }
    });
}

#[test]
fn no_path_of_any_events_leads_into_insync_unless_the_facts_permit_it() {
    let unless_permitted = |_: &Event, facts: &Facts| !facts.permit_insync();
    for &from in State::ALL.iter().filter(|&&state| state != State::InSync) {
        assert!(
            !reachable(from, unless_permitted).contains("INSYNC"),
            "{from}"
        );
    }
}

#[test]
fn no_state_is_a_trap_but_those_that_wait_for_the_operator() {
    // Facts alone lead to INSYNC, short of a start of the node.
    let facts_only =
        |event: &Event, _: &Facts| !event.kind().is_request() && *event != Event::Started;
    for &from in State::ALL {
        let leads = reachable(from, facts_only).contains("INSYNC");
        // A late failure may stop a paused mirror; nothing but a request sets it going.
        assert_eq!(leads, from.is_working(), "{from}");
    }
    // With requests, every state does.
    for &from in State::ALL {
        let short_of_a_start = |event: &Event, _: &Facts| *event != Event::Started;
        assert!(
            reachable(from, short_of_a_start).contains("INSYNC"),
            "{from}"
        );
    }
}

/// A caller that carries out every command with success: the shortest life of a mirror after `state`.
#[derive(Clone)]
struct World {
    state: State,
    facts: Facts,
    trace: Vec<&'static str>,
}

impl World {
    fn new() -> World {
        World {
            state: State::New,
            facts: Facts::default(),
            trace: vec!["NEW"],
        }
    }

    /// Takes the event and all that follows from it by success.
    fn happens(&mut self, event: Event) {
        let mut events = std::collections::VecDeque::from([event]);
        let mut steps = 0;
        while let Some(event) = events.pop_front() {
            steps += 1;
            assert!(steps < 100, "it goes round in circles: {:?}", self.trace);
            let transition = step(self.state, &self.facts, event).unwrap();
            let Some(state) = transition.state() else {
                return;
            };
            if state != self.state {
                self.trace.push(state.word());
            }
            self.state = state;
            for command in transition.commands {
                events.extend(self.carry_out(*command));
            }
        }
    }

    fn carry_out(&mut self, command: Command) -> Option<Event> {
        let facts = &mut self.facts;
        match command {
            Command::SecureBuffer => {
                facts.secured = true;
                return Some(Event::Secured);
            }
            Command::Connect => {
                facts.linked = true;
                return Some(Event::Connected);
            }
            Command::MakeParts => return Some(Event::PartsReady),
            Command::Decide => {
                let decided = if facts.copying {
                    states::Decided::Replicate
                } else if facts.dirty || facts.cracked {
                    states::Decided::OutOfSync
                } else {
                    states::Decided::InSync
                };
                return Some(Event::Decided(decided));
            }
            Command::BeginCopy | Command::BeginResync | Command::BeginPass => {
                facts.copying = false;
                facts.cracked = false;
                facts.dirty = false;
                facts.acknowledged = facts.consistent_at;
                return Some(Event::CopyFinished);
            }
            Command::CloseLink => facts.linked = false,
            Command::ReconnectLater => {
                facts.linked = true;
                return Some(Event::Contact);
            }
            Command::RetryLater(step) => {
                facts.retry = step;
                return Some(Event::RetryDue);
            }
            Command::RecordPause => facts.paused = true,
            Command::ForgetPause => facts.paused = false,
            Command::RecordError => facts.error = Some(states::Cause::MirrorDiskFull),
            Command::ForgetError => facts.error = None,
            Command::DropUnconfirmed
            | Command::StopCopy
            | Command::BeginSequencing
            | Command::StopSequencing
            | Command::OpenMirror
            | Command::ForgetBackoff
            | Command::Forget => {}
        }
        None
    }
}

fn in_sync() -> World {
    let mut world = World::new();
    world.facts.copying = true;
    world.facts.consistent_at = 1;
    world.happens(Event::Started);
    assert_eq!(world.state, State::InSync);
    world.trace.clear();
    world
}

#[test]
fn a_new_mirror_walks_to_insync() {
    let mut world = World::new();
    world.facts.copying = true;
    world.facts.consistent_at = 1;
    world.happens(Event::Started);
    let walk = ["NEW", "INIT", "MAKEPARTS", "READY", "REPLICATE", "INSYNC"];
    assert_eq!(world.trace, walk);
}

#[test]
fn a_crack_is_repaired() {
    let mut world = in_sync();
    world.facts.cracked = true;
    world.facts.dirty = true;
    world.happens(Event::Cracked);
    assert_eq!(world.trace, ["OUTOFSYNC", "INSYNC"]);
}

#[test]
fn a_crack_while_paused_is_repaired_after_the_pause() {
    let mut world = in_sync();
    world.happens(Event::Pause);
    world.facts.cracked = true;
    world.facts.dirty = true;
    world.happens(Event::Cracked);
    assert_eq!(world.trace, ["IDLE"]);
    world.happens(Event::Continue);
    let walk = ["IDLE", "INIT", "MAKEPARTS", "READY", "OUTOFSYNC", "INSYNC"];
    assert_eq!(world.trace, walk);
}

#[test]
fn a_lost_link_is_taken_up_by_replay() {
    let mut world = in_sync();
    world.facts.linked = false;
    world.happens(Event::LinkLost);
    let walk = ["LINKDOWN", "INIT", "MAKEPARTS", "READY", "INSYNC"];
    assert_eq!(world.trace, walk);
}

#[test]
fn a_minor_failure_repeats_its_step() {
    for (state, word) in [
        (State::New, "NEW"),
        (State::Init, "INIT"),
        (State::MakeParts, "MAKEPARTS"),
        (State::Ready, "READY"),
    ] {
        let mut world = in_sync();
        world.state = state;
        world.happens(Event::MinorFailure(states::MinorCause::PeerStarting));
        assert_eq!(world.trace[..2], ["RESET", word]);
        assert_eq!(world.state, State::InSync);
    }
}

#[test]
fn an_error_lasts_until_a_restart_and_over_a_start_of_the_node() {
    let mut world = in_sync();
    world.happens(Event::MirrorFailed(states::Cause::MirrorDiskFull));
    world.happens(Event::Contact);
    world.happens(Event::Started);
    assert_eq!(world.trace, ["ERROR"]);
    world.happens(Event::Restart);
    let walk = ["ERROR", "NEW", "INIT", "MAKEPARTS", "READY", "INSYNC"];
    assert_eq!(world.trace, walk);
}

#[test]
fn any_two_events_in_any_state_are_recovered_from() {
    for &state in State::ALL {
        for first in EVENTS {
            for second in EVENTS {
                let mut world = in_sync();
                world.state = state;
                world.facts.paused = state == State::Idle;
                world.facts.error = (state == State::Error).then_some(states::Cause::NameTaken);
                for event in [first, second] {
                    if step(world.state, &world.facts, event).is_ok() && event != Event::Delete {
                        world.facts.linked = event != Event::LinkLost;
                        world.happens(event);
                    }
                }
                // What was under way before the two events goes on.
                world.happens(match world.state {
                    State::Idle => Event::Continue,
                    State::Error => Event::Restart,
                    State::LinkDown => Event::Contact,
                    State::New => Event::Secured,
                    State::Reset => Event::RetryDue,
                    _ => Event::LinkLost,
                });
                assert_eq!(world.state, State::InSync, "{state} {first:?} {second:?}");
            }
        }
    }
}

#[test]
fn every_command_is_used() {
    for command in Command::ALL {
        assert!(
            TABLE.iter().any(|row| row.commands.contains(command)),
            "{command}"
        );
    }
    for refusal in states::Refusal::ALL {
        assert!(
            TABLE.iter().any(|row| row.then == Then::Refuse(*refusal)),
            "{refusal}"
        );
    }
    for guard in states::Guard::ALL {
        assert!(TABLE.iter().any(|row| row.guard == *guard), "{guard}");
    }
}
