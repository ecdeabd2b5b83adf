//! What is to be done. Owns the commands that the machine returns. Never does any of it.
//!
//! Commands are carried out in the order in which the table lists them, each begun before the next; those that take
//! time report how they ended with an event. Each is idempotent: stopping what does not run is no failure. A wait may
//! end with the state it belongs to; one that ends later does no harm, for the table says what it then means.

use crate::state::Step;
use core::fmt;

/// Something the caller has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Secures the buffer: registers the mirror with the log and with its own dirty map, durably.
    /// Ends in `Secured`, `NoRoom` or a failure.
    SecureBuffer,
    /// Uses the connection that stands or makes one, authenticates, agrees on versions and lineage.
    /// Ends in `Connected`, `LinkLost` or a failure.
    Connect,
    /// Has the mirror make its parts, or validate those it has. Ends in `PartsReady`, `LinkLost` or a failure.
    MakeParts,
    /// Compares both histories with [`crate::reconnect::decide`]. Ends in `Decided`, `LinkLost` or a failure.
    Decide,
    /// Where the decision names a txid after which the mirror is unconfirmed: has it erase, durably, what is after it,
    /// before anything else is sent.
    DropUnconfirmed,
    /// Starts the first copy, or takes it up at the cursor that the decision names. The mirror's copy is inconsistent,
    /// and its mount withdrawn, from here to `OpenMirror`. Ends in `CopyFinished`.
    BeginCopy,
    /// Starts to repair the copy: by checksums where a decision says so, else over the dirty map. The mirror's copy is
    /// inconsistent from here to `OpenMirror`. Ends in `CopyFinished`.
    BeginResync,
    /// Starts another pass, over the bits recorded since the last began: `cracked` is false and `copying` true from
    /// here on. Ends in `CopyFinished`.
    BeginPass,
    /// Ends the copy where it stands. The acknowledged cursor and the bits still set remain, durably.
    StopCopy,
    /// Ships committed transactions in order, from the mirror's position on.
    BeginSequencing,
    /// Ends the shipping of transactions. The mirror's position remains, and the log goes on holding what it lacks.
    StopSequencing,
    /// Tells the mirror that its copy is a state the master had: it may be marked, and mounted, as such.
    OpenMirror,
    /// Closes the connection, if one stands.
    CloseLink,
    /// Seeks contact with growing waits (at most 0.5 s at first), until there is some. Ends in `Contact`.
    ReconnectLater,
    /// Remembers the step as [`crate::Facts::retry`] and waits, longer each time the same step fails. Ends in
    /// `RetryDue`.
    RetryLater(Step),
    /// Both sides have agreed: the waits of `ReconnectLater` and `RetryLater(INIT)` are short again. (Not at mere
    /// contact: a node that accepts and hangs up is not to be hammered.)
    ForgetBackoff,
    /// Records the transition's cause as [`crate::Facts::error`], durably.
    RecordError,
    /// Clears [`crate::Facts::error`], durably.
    ForgetError,
    /// Sets [`crate::Facts::paused`], durably.
    RecordPause,
    /// Clears [`crate::Facts::paused`], durably.
    ForgetPause,
    /// Forgets the mirror: the log no longer holds anything for it; its map, its facts and its entry are removed.
    Forget,
}

impl Command {
    /// Every command, `RetryLater` once for each step.
    pub const ALL: &'static [Command] = &[
        Command::SecureBuffer,
        Command::Connect,
        Command::MakeParts,
        Command::Decide,
        Command::DropUnconfirmed,
        Command::BeginCopy,
        Command::BeginResync,
        Command::BeginPass,
        Command::StopCopy,
        Command::BeginSequencing,
        Command::StopSequencing,
        Command::OpenMirror,
        Command::CloseLink,
        Command::ReconnectLater,
        Command::RetryLater(Step::New),
        Command::RetryLater(Step::Init),
        Command::RetryLater(Step::MakeParts),
        Command::RetryLater(Step::Ready),
        Command::ForgetBackoff,
        Command::RecordError,
        Command::ForgetError,
        Command::RecordPause,
        Command::ForgetPause,
        Command::Forget,
    ];

    /// The stable spelling, without a step.
    pub const fn word(self) -> &'static str {
        match self {
            Command::SecureBuffer => "secure-buffer",
            Command::Connect => "connect",
            Command::MakeParts => "make-parts",
            Command::Decide => "decide",
            Command::DropUnconfirmed => "drop-unconfirmed",
            Command::BeginCopy => "begin-copy",
            Command::BeginResync => "begin-resync",
            Command::BeginPass => "begin-pass",
            Command::StopCopy => "stop-copy",
            Command::BeginSequencing => "begin-sequencing",
            Command::StopSequencing => "stop-sequencing",
            Command::OpenMirror => "open-mirror",
            Command::CloseLink => "close-link",
            Command::ReconnectLater => "reconnect-later",
            Command::RetryLater(_) => "retry-later",
            Command::ForgetBackoff => "forget-backoff",
            Command::RecordError => "record-error",
            Command::ForgetError => "forget-error",
            Command::RecordPause => "record-pause",
            Command::ForgetPause => "forget-pause",
            Command::Forget => "forget",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::RetryLater(step) => write!(f, "{}({step})", self.word()),
            _ => f.pad(self.word()),
        }
    }
}
