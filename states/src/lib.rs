//! The replication state machine of Lockstep: what a mirror's state is, what may happen to it, and what is then to be
//! done. One machine per mirror; the master runs it.
//!
//! [`table::TABLE`] is the source. Every state meets every event there, in writing, and [`step::step`] looks it up:
//!
//! ```
//! use states::{Command, Event, Facts, State, step};
//!
//! let facts = Facts { linked: true, secured: true, ..Facts::default() };
//! let transition = step(State::Init, &facts, Event::Connected).expect("facts are never refused");
//! assert_eq!(transition.state(), Some(State::MakeParts));
//! assert_eq!(transition.commands, [Command::ForgetBackoff, Command::MakeParts]);
//! ```
//!
//! The machine does nothing itself: no I/O, no clock, no log, no allocation, no panic. The caller keeps the [`Facts`],
//! turns what happens into [`Event`]s, and carries out the [`Command`]s in their order. Facts are persisted, a state
//! never is: when a node starts, [`Event::Started`] derives it.
//!
//! [`reconnect::decide`] is the other pure function: what two nodes that meet again have to do to be equal.
#![no_std]
#![forbid(unsafe_code)]

mod spelled;

pub mod cause;

pub mod state;

pub mod facts;

pub mod event;

pub mod command;

pub mod table;

pub mod step;

pub mod listing;

pub mod reconnect;

pub use cause::{Cause, MinorCause};
pub use command::Command;
pub use event::{Decided, Event, EventKind};
pub use facts::{Facts, Guard};
pub use spelled::UnknownWord;
pub use state::{State, Step};
pub use step::{Next, Transition, step};
pub use table::Refusal;
