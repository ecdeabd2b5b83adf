//! What can happen to a mirror. Owns the events and the line between facts and requests.
//!
//! A *fact* has happened and is never refused: where it changes nothing, the table says that the mirror stays. A
//! *request* is an operator's wish and may be refused, each refusal with its own code and sentence.

use crate::cause::{Cause, MinorCause};
use crate::reconnect::{Conflict, Decision, Outcome};
use crate::spelled::spelled;

/// The result of comparing both histories, as far as the table needs it. [`crate::reconnect`] has the whole of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decided {
    /// The mirror holds no complete copy: copy.
    Replicate,
    /// The mirror holds a copy that differs: repair.
    OutOfSync,
    /// The log holds all that the mirror lacks: replay.
    InSync,
    /// Nothing can be done without the operator.
    Error(Cause),
}

impl From<&Outcome> for Decided {
    fn from(outcome: &Outcome) -> Decided {
        match outcome.decision {
            Decision::Replicate { .. } => Decided::Replicate,
            Decision::OutOfSync { .. } => Decided::OutOfSync,
            Decision::InSyncByReplay { .. } => Decided::InSync,
            Decision::Error(Conflict::Unrelated) => Decided::Error(Cause::Unrelated),
            Decision::Error(Conflict::Diverged(_)) => Decided::Error(Cause::Diverged),
        }
    }
}

/// Something that happened to one mirror, or that the operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The master's node started, or the mirror has just been created: the state is derived from the facts.
    Started,
    /// The buffer is secured in the master's volume.
    Secured,
    /// The master's volume has no room for a buffer.
    NoRoom,
    /// A connection to the mirror's node stands again. Nothing has been agreed on it yet.
    Contact,
    /// Both sides are authenticated and agree on versions and lineage.
    Connected,
    /// The mirror made its parts, or found them as they should be.
    PartsReady,
    /// Both histories have been compared.
    Decided(Decided),
    /// The cursor of the copy came to its end, and the mirror has acknowledged all that it passed: bits that are still
    /// set were set behind it.
    CopyFinished,
    /// The mirror acknowledged a position at or past the one from which its copy is consistent.
    CaughtUp,
    /// The log gave up what the mirror lacks: it is recorded, durably, in the mirror's dirty map.
    Cracked,
    /// The connection is dead, or none could be made.
    LinkLost,
    /// Something failed that may well succeed when it is tried again.
    MinorFailure(MinorCause),
    /// Something failed that fails again until somebody mends it.
    SevereFailure(Cause),
    /// The mirror reports that it can not go on: its disk is full or failing, its copy is damaged.
    MirrorFailed(Cause),
    /// The wait of RESET is over.
    RetryDue,
    /// `mirror pause`.
    Pause,
    /// `mirror continue`.
    Continue,
    /// `mirror restart`.
    Restart,
    /// `mirror delete`.
    Delete,
}

impl Event {
    /// The column of the table that the event belongs to.
    pub const fn kind(self) -> EventKind {
        match self {
            Event::Started => EventKind::Started,
            Event::Secured => EventKind::Secured,
            Event::NoRoom => EventKind::NoRoom,
            Event::Contact => EventKind::Contact,
            Event::Connected => EventKind::Connected,
            Event::PartsReady => EventKind::PartsReady,
            Event::Decided(Decided::Replicate) => EventKind::DecidedReplicate,
            Event::Decided(Decided::OutOfSync) => EventKind::DecidedOutOfSync,
            Event::Decided(Decided::InSync) => EventKind::DecidedInSync,
            Event::Decided(Decided::Error(_)) => EventKind::DecidedError,
            Event::CopyFinished => EventKind::CopyFinished,
            Event::CaughtUp => EventKind::CaughtUp,
            Event::Cracked => EventKind::Cracked,
            Event::LinkLost => EventKind::LinkLost,
            Event::MinorFailure(_) => EventKind::MinorFailure,
            Event::SevereFailure(_) => EventKind::SevereFailure,
            Event::MirrorFailed(_) => EventKind::MirrorFailed,
            Event::RetryDue => EventKind::RetryDue,
            Event::Pause => EventKind::Pause,
            Event::Continue => EventKind::Continue,
            Event::Restart => EventKind::Restart,
            Event::Delete => EventKind::Delete,
        }
    }

    /// The severe cause that the event carries.
    pub const fn cause(self) -> Option<Cause> {
        match self {
            Event::SevereFailure(cause)
            | Event::MirrorFailed(cause)
            | Event::Decided(Decided::Error(cause)) => Some(cause),
            Event::NoRoom => Some(Cause::NoRoomForBuffer),
            _ => None,
        }
    }

    /// The minor cause that the event carries.
    pub const fn minor_cause(self) -> Option<MinorCause> {
        match self {
            Event::MinorFailure(cause) => Some(cause),
            _ => None,
        }
    }
}

spelled! {
    /// An event without what it carries: a column of the table.
    pub enum EventKind as "event" {
        /// See [`Event::Started`].
        Started = "started",
        /// See [`Event::Secured`].
        Secured = "secured",
        /// See [`Event::NoRoom`].
        NoRoom = "no-room",
        /// See [`Event::Contact`].
        Contact = "contact",
        /// See [`Event::Connected`].
        Connected = "connected",
        /// See [`Event::PartsReady`].
        PartsReady = "parts-ready",
        /// See [`Decided::Replicate`].
        DecidedReplicate = "decided-replicate",
        /// See [`Decided::OutOfSync`].
        DecidedOutOfSync = "decided-outofsync",
        /// See [`Decided::InSync`].
        DecidedInSync = "decided-insync",
        /// See [`Decided::Error`].
        DecidedError = "decided-error",
        /// See [`Event::CopyFinished`].
        CopyFinished = "copy-finished",
        /// See [`Event::CaughtUp`].
        CaughtUp = "caught-up",
        /// See [`Event::Cracked`].
        Cracked = "cracked",
        /// See [`Event::LinkLost`].
        LinkLost = "link-lost",
        /// See [`Event::MinorFailure`].
        MinorFailure = "minor-failure",
        /// See [`Event::SevereFailure`].
        SevereFailure = "severe-failure",
        /// See [`Event::MirrorFailed`].
        MirrorFailed = "mirror-failed",
        /// See [`Event::RetryDue`].
        RetryDue = "retry-due",
        /// See [`Event::Pause`].
        Pause = "pause",
        /// See [`Event::Continue`].
        Continue = "continue",
        /// See [`Event::Restart`].
        Restart = "restart",
        /// See [`Event::Delete`].
        Delete = "delete",
    }
}

impl EventKind {
    /// Whether it is an operator's wish, which may be refused, and not a fact.
    pub const fn is_request(self) -> bool {
        matches!(
            self,
            EventKind::Pause | EventKind::Continue | EventKind::Restart | EventKind::Delete
        )
    }

    /// What happened, in a few words for people.
    pub const fn meaning(self) -> &'static str {
        match self {
            EventKind::Started => "the master's node started, or the mirror was created",
            EventKind::Secured => "the buffer is secured",
            EventKind::NoRoom => "the volume has no room for a buffer",
            EventKind::Contact => "a connection to the mirror's node stands again",
            EventKind::Connected => {
                "both nodes are authenticated and agree on versions and lineage"
            }
            EventKind::PartsReady => "the mirror made or validated its parts",
            EventKind::DecidedReplicate => "histories compared: the mirror holds no complete copy",
            EventKind::DecidedOutOfSync => "histories compared: the copy has to be repaired",
            EventKind::DecidedInSync => "histories compared: the log holds all that is lacking",
            EventKind::DecidedError => "histories compared: unrelated or diverged",
            EventKind::CopyFinished => {
                "the copy came to its end, and the mirror acknowledged all of it"
            }
            EventKind::CaughtUp => "the mirror applied what makes its copy consistent",
            EventKind::Cracked => "the log gave up what the mirror lacks; its dirty map records it",
            EventKind::LinkLost => "contact is lost, or none could be made",
            EventKind::MinorFailure => "something failed that may succeed next time",
            EventKind::SevereFailure => "something failed that has to be mended",
            EventKind::MirrorFailed => "the mirror reports that it can not go on",
            EventKind::RetryDue => "the wait of RESET is over",
            EventKind::Pause => "request: `lockstep mirror pause`",
            EventKind::Continue => "request: `lockstep mirror continue`",
            EventKind::Restart => "request: `lockstep mirror restart`",
            EventKind::Delete => "request: `lockstep mirror delete`",
        }
    }
}
