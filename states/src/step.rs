//! One step of the machine. Owns the lookup in the table. Never reads a clock, never logs, never panics, and remembers
//! nothing: the same state, facts and event give the same transition.

use crate::cause::{Cause, MinorCause};
use crate::command::Command;
use crate::event::{Event, EventKind};
use crate::facts::{Facts, Guard};
use crate::state::State;
use crate::table::{Refusal, Row, Then, cell};
use core::fmt;

/// Where a transition leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The state stays what it was.
    Stay,
    /// A state is entered. (It may be the old one: at `Started` the state is derived anew.)
    Enter(State),
    /// The mirror ceases to be, once the commands are carried out.
    Gone,
}

/// What an event leads to. The caller assigns the state at one place, traces the transition there, and then carries out
/// the commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The state before.
    pub from: State,
    /// What happened.
    pub event: EventKind,
    /// The guard that held.
    pub guard: Guard,
    /// The state after.
    pub next: Next,
    /// What is to be done, in this order.
    pub commands: &'static [Command],
    /// Why, in a few words.
    pub why: &'static str,
    /// The severe cause with which ERROR is entered: given if, and only if, it is entered.
    pub cause: Option<Cause>,
    /// The minor cause that the event carried.
    pub minor_cause: Option<MinorCause>,
}

impl Transition {
    /// The state after; none if the mirror ceases to be.
    pub const fn state(&self) -> Option<State> {
        match self.next {
            Next::Stay => Some(self.from),
            Next::Enter(state) => Some(state),
            Next::Gone => None,
        }
    }
}

/// The line for a trace: old state, event, new state, why.
impl fmt::Display for Transition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> ", self.from, self.event)?;
        match self.next {
            Next::Stay => f.write_str("stay")?,
            Next::Enter(state) => write!(f, "{state}")?,
            Next::Gone => f.write_str("gone")?,
        }
        write!(f, ": {}", self.why)?;
        if let Some(cause) = self.cause {
            write!(f, " ({cause})")?;
        }
        if let Some(cause) = self.minor_cause {
            write!(f, " ({cause})")?;
        }
        Ok(())
    }
}

/// What `event` does to a mirror in `state`, the facts being `facts`.
///
/// Events do not say to which connection they belong. What a closed connection still had to tell is to be thrown away
/// by the caller; the table answers what slips through with a retry at worst.
///
/// # Errors
/// Only requests are refused. A refusal changes nothing.
pub fn step(state: State, facts: &Facts, event: Event) -> Result<Transition, Refusal> {
    let transition = |next, row: &Row| Transition {
        from: state,
        event: event.kind(),
        guard: row.guard,
        next,
        commands: row.commands,
        why: row.why,
        cause: match (next, event) {
            (Next::Enter(State::Error), Event::Started) => facts.error,
            (Next::Enter(State::Error), _) => event.cause(),
            _ => None,
        },
        minor_cause: event.minor_cause(),
    };
    let Some(row) = cell(state, event.kind()).find(|row| row.guard.holds(facts)) else {
        return Ok(transition(Next::Stay, &UNDECIDED));
    };
    match row.then {
        Then::Stay => Ok(transition(Next::Stay, row)),
        Then::Go(to) => Ok(transition(Next::Enter(to), row)),
        Then::Gone => Ok(transition(Next::Gone, row)),
        Then::Refuse(refusal) => Err(refusal),
    }
}

/// What stands in for a cell that no row decides. The tests prove that there is none.
const UNDECIDED: Row = Row {
    from: State::New,
    event: EventKind::Started,
    guard: Guard::Always,
    then: Then::Stay,
    commands: &[],
    why: "undecided",
};
