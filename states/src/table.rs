//! The table: what every event does in every state. Owns the rows and the codes of refusals. Never executes anything.
//!
//! A row says: in this state, at this event, if this guard holds over the facts, go there, and do that, because. Every
//! cell (a state and an event) is written out, also where the mirror stays and where a request is refused; within a
//! cell exactly one guard holds, whatever the facts are. Tests prove both.
//!
//! The listing, the drawing and the table of lockstep-states(7) are generated from here: see [`crate::listing`].

use crate::command::Command;
use crate::event::EventKind;
use crate::facts::Guard;
use crate::spelled::spelled;
use crate::state::{State, Step};

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// In this state,
    pub from: State,
    /// at this event,
    pub event: EventKind,
    /// if this holds,
    pub guard: Guard,
    /// this follows,
    pub then: Then,
    /// and this is to be done, in this order,
    pub commands: &'static [Command],
    /// because.
    pub why: &'static str,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The mirror stays in its state.
    Stay,
    /// It enters a state.
    Go(State),
    /// It ceases to be.
    Gone,
    /// The request is refused: nothing changes, and nothing is done.
    Refuse(Refusal),
}

spelled! {
    /// Why a request is refused.
    pub enum Refusal as "refusal" {
        /// A pause of a mirror that is paused.
        AlreadyPaused = "already-paused",
        /// A restart of a mirror that is at its start.
        AlreadyNew = "already-new",
        /// A continuation of a mirror that is at work.
        NotPaused = "not-paused",
        /// A pause of a mirror that a severe failure stopped.
        PauseInError = "pause-in-error",
        /// A continuation of a mirror that a severe failure stopped.
        ContinueInError = "continue-in-error",
        /// A restart of a mirror that is paused.
        RestartWhilePaused = "restart-while-paused",
    }
}

impl Refusal {
    /// Whether the mirror already is as the request wants it, so that a caller may take the refusal for a success.
    /// The others are not allowed.
    pub const fn already_there(self) -> bool {
        matches!(
            self,
            Refusal::AlreadyPaused | Refusal::AlreadyNew | Refusal::NotPaused
        )
    }

    /// The refusal in one sentence, with what to do next where there is something to do.
    pub const fn sentence(self) -> &'static str {
        match self {
            Refusal::AlreadyPaused => "The mirror is already paused.",
            Refusal::AlreadyNew => "The mirror is already at its start.",
            Refusal::NotPaused => "The mirror is not paused: it is already at work.",
            Refusal::PauseInError => {
                "The mirror was stopped by a severe failure, so there is nothing to pause: mend its cause and use `lockstep mirror restart`, or remove it with `lockstep mirror delete`."
            }
            Refusal::ContinueInError => {
                "The mirror was stopped by a severe failure, not by a pause: mend its cause, then use `lockstep mirror restart`."
            }
            Refusal::RestartWhilePaused => {
                "The mirror is paused, and a restart would end the pause: use `lockstep mirror continue` first."
            }
        }
    }
}

impl core::error::Error for Refusal {}

/// The rows of one cell, in the table's order.
pub fn cell(from: State, event: EventKind) -> impl Iterator<Item = &'static Row> {
    TABLE
        .iter()
        .filter(move |row| row.from == from && row.event == event)
}

macro_rules! rows {
    ($($from:ident {
        $($event:ident $(if $guard:ident)? => $then:ident $($to:ident)?, [$($command:ident $(($step:ident))?),*], $why:literal;)+
    })+) => {
        &[$($(Row {
            from: State::$from,
            event: EventKind::$event,
            guard: rows!(@guard $($guard)?),
            then: rows!(@then $then $($to)?),
            commands: &[$(Command::$command $((Step::$step))?),*],
            why: $why,
        },)+)+]
    };
    (@guard) => { Guard::Always };
    (@guard $guard:ident) => { Guard::$guard };
    (@then stay) => { Then::Stay };
    (@then gone) => { Then::Gone };
    (@then go $to:ident) => { Then::Go(State::$to) };
    (@then refuse $refusal:ident) => { Then::Refuse(Refusal::$refusal) };
}

/// Every row, by state and event.
#[rustfmt::skip]
pub const TABLE: &[Row] = rows! {
    // The buffer is being secured. There is no link yet, and nothing that needs one.
    New {
        Started if ErrorRecorded          => go Error,                  [],                                             "a severe failure outlasts a restart of the node";
        Started if PauseRecorded          => go Idle,                   [],                                             "a pause outlasts a restart of the node";
        Started if FreshStart             => go New,                    [SecureBuffer],                                 "every walk to a copy begins with a secured buffer";
        Started if SecuredStart           => go Init,                   [Connect],                                      "the buffer is still secured; every later step is walked again";
        Secured                           => go Init,                   [Connect],                                      "what is committed from now on is held or recorded for the mirror";
        NoRoom                            => go Error,                  [RecordError],                                  "without a buffer no order can be kept";
        Contact                           => stay,                      [CloseLink],                                    "too early: the buffer comes first";
        Connected                         => stay,                      [],                                             "late: it is agreed again on the next link";
        PartsReady                        => stay,                      [],                                             "late: the parts are validated again on the next link";
        DecidedReplicate                  => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedOutOfSync                  => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedInSync                     => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedError                      => stay,                      [],                                             "late: it is decided again on the next link";
        CopyFinished                      => stay,                      [],                                             "late: it is seen again when the histories are compared";
        CaughtUp                          => stay,                      [],                                             "late: it is seen again when the histories are compared";
        Cracked                           => stay,                      [],                                             "shown beside the word; READY decides with it in view";
        LinkLost                          => stay,                      [],                                             "nothing here needs a link";
        MinorFailure                      => go Reset,                  [RetryLater(New)],                              "securing the buffer may well succeed next time";
        SevereFailure                     => go Error,                  [RecordError],                                  "it fails again until somebody mends it";
        MirrorFailed                      => stay,                      [],                                             "of an earlier life: the mirror says so again at contact";
        RetryDue                          => stay,                      [],                                             "late: a wait of a RESET that is over";
        Pause                             => go Idle,                   [RecordPause],                                  "the operator's wish";
        Continue                          => refuse NotPaused,          [],                                             "already at work";
        Restart                           => refuse AlreadyNew,         [],                                             "already there";
        Delete                            => gone,                      [Forget],                                       "the operator's wish; what the mirror has stays where it is";
    }

    // The two nodes connect and come to an agreement.
    Init {
        Started if ErrorRecorded          => go Error,                  [],                                             "a severe failure outlasts a restart of the node";
        Started if PauseRecorded          => go Idle,                   [],                                             "a pause outlasts a restart of the node";
        Started if FreshStart             => go New,                    [SecureBuffer],                                 "every walk to a copy begins with a secured buffer";
        Started if SecuredStart           => go Init,                   [Connect],                                      "the buffer is still secured; every later step is walked again";
        Secured                           => stay,                      [],                                             "the buffer was secured before";
        NoRoom                            => stay,                      [],                                             "the buffer was secured before";
        Contact                           => stay,                      [],                                             "connecting is under way";
        Connected                         => go MakeParts,              [ForgetBackoff, MakeParts],                     "both sides agree; the parts come next";
        PartsReady                        => stay,                      [],                                             "late: the parts are validated again on the next link";
        DecidedReplicate                  => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedOutOfSync                  => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedInSync                     => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedError                      => stay,                      [],                                             "late: it is decided again on the next link";
        CopyFinished                      => stay,                      [],                                             "late: it is seen again when the histories are compared";
        CaughtUp                          => stay,                      [],                                             "late: it is seen again when the histories are compared";
        Cracked                           => stay,                      [],                                             "shown beside the word; READY decides with it in view";
        LinkLost                          => go LinkDown,               [CloseLink, ReconnectLater],                    "the mirror's node can not be reached";
        MinorFailure                      => go Reset,                  [CloseLink, RetryLater(Init)],                  "connecting may well succeed next time";
        SevereFailure                     => go Error,                  [CloseLink, RecordError],                       "it fails again until somebody mends it";
        MirrorFailed                      => go Error,                  [CloseLink, RecordError],                       "the mirror can not go on until somebody mends it";
        RetryDue                          => stay,                      [],                                             "late: a wait of a RESET that is over";
        Pause                             => go Idle,                   [CloseLink, RecordPause],                       "the operator's wish";
        Continue                          => refuse NotPaused,          [],                                             "already at work";
        Restart                           => go New,                    [CloseLink, SecureBuffer],                      "the operator's wish; what the mirror has is used again";
        Delete                            => gone,                      [CloseLink, Forget],                            "the operator's wish; what the mirror has stays where it is";
    }

    // The mirror makes or validates its parts.
    MakeParts {
        Started if ErrorRecorded          => go Error,                  [],                                             "a severe failure outlasts a restart of the node";
        Started if PauseRecorded          => go Idle,                   [],                                             "a pause outlasts a restart of the node";
        Started if FreshStart             => go New,                    [SecureBuffer],                                 "every walk to a copy begins with a secured buffer";
        Started if SecuredStart           => go Init,                   [Connect],                                      "the buffer is still secured; every later step is walked again";
        Secured                           => stay,                      [],                                             "the buffer was secured before";
        NoRoom                            => stay,                      [],                                             "the buffer was secured before";
        Contact                           => stay,                      [],                                             "already in contact";
        Connected                         => stay,                      [],                                             "agreed before";
        PartsReady                        => go Ready,                  [Decide],                                       "the parts are equal in number and size; their contents come next";
        DecidedReplicate                  => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedOutOfSync                  => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedInSync                     => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedError                      => stay,                      [],                                             "late: it is decided again on the next link";
        CopyFinished                      => stay,                      [],                                             "late: it is seen again when the histories are compared";
        CaughtUp                          => stay,                      [],                                             "late: it is seen again when the histories are compared";
        Cracked                           => stay,                      [],                                             "shown beside the word; READY decides with it in view";
        LinkLost                          => go LinkDown,               [CloseLink, ReconnectLater],                    "the parts are made or validated on the next link";
        MinorFailure                      => go Reset,                  [RetryLater(MakeParts)],                        "making the parts may well succeed next time";
        SevereFailure                     => go Error,                  [CloseLink, RecordError],                       "it fails again until somebody mends it";
        MirrorFailed                      => go Error,                  [CloseLink, RecordError],                       "the mirror can not go on until somebody mends it";
        RetryDue                          => stay,                      [],                                             "late: a wait of a RESET that is over";
        Pause                             => go Idle,                   [CloseLink, RecordPause],                       "the operator's wish";
        Continue                          => refuse NotPaused,          [],                                             "already at work";
        Restart                           => go New,                    [CloseLink, SecureBuffer],                      "the operator's wish; what the mirror has is used again";
        Delete                            => gone,                      [CloseLink, Forget],                            "the operator's wish; what the mirror has stays where it is";
    }

    // Both histories are compared.
    Ready {
        Started if ErrorRecorded          => go Error,                  [],                                             "a severe failure outlasts a restart of the node";
        Started if PauseRecorded          => go Idle,                   [],                                             "a pause outlasts a restart of the node";
        Started if FreshStart             => go New,                    [SecureBuffer],                                 "every walk to a copy begins with a secured buffer";
        Started if SecuredStart           => go Init,                   [Connect],                                      "the buffer is still secured; every later step is walked again";
        Secured                           => stay,                      [],                                             "the buffer was secured before";
        NoRoom                            => stay,                      [],                                             "the buffer was secured before";
        Contact                           => stay,                      [],                                             "already in contact";
        Connected                         => stay,                      [],                                             "agreed before";
        PartsReady                        => stay,                      [],                                             "the parts stood before";
        DecidedReplicate                  => go Replicate,              [BeginCopy],                                    "the mirror holds no complete copy";
        DecidedOutOfSync                  => go OutOfSync,              [DropUnconfirmed, BeginResync],                 "the mirror's copy differs, and the log alone does not make it equal";
        DecidedInSync if Permitted        => go InSync,                 [DropUnconfirmed, BeginSequencing, OpenMirror], "the copy is a state the master had, and the log holds the rest";
        DecidedInSync if Owing            => go OutOfSync,              [DropUnconfirmed, BeginResync],                 "it cracked or became dirty after the comparison";
        DecidedInSync if Unlinked         => go LinkDown,               [CloseLink, ReconnectLater],                    "INSYNC is never said over a dead link";
        DecidedError                      => go Error,                  [CloseLink, RecordError],                       "whose changes are given up is for the operator to say";
        CopyFinished                      => stay,                      [],                                             "late: it is seen again when the histories are compared";
        CaughtUp                          => stay,                      [],                                             "late: it is seen again when the histories are compared";
        Cracked                           => stay,                      [],                                             "shown beside the word; the decision is checked against it";
        LinkLost                          => go LinkDown,               [CloseLink, ReconnectLater],                    "the histories are compared on the next link";
        MinorFailure                      => go Reset,                  [RetryLater(Ready)],                            "comparing the histories may well succeed next time";
        SevereFailure                     => go Error,                  [CloseLink, RecordError],                       "it fails again until somebody mends it";
        MirrorFailed                      => go Error,                  [CloseLink, RecordError],                       "the mirror can not go on until somebody mends it";
        RetryDue                          => stay,                      [],                                             "late: a wait of a RESET that is over";
        Pause                             => go Idle,                   [CloseLink, RecordPause],                       "the operator's wish";
        Continue                          => refuse NotPaused,          [],                                             "already at work";
        Restart                           => go New,                    [CloseLink, SecureBuffer],                      "the operator's wish; what the mirror has is used again";
        Delete                            => gone,                      [CloseLink, Forget],                            "the operator's wish; what the mirror has stays where it is";
    }

    // A first copy is being made.
    Replicate {
        Started if ErrorRecorded          => go Error,                  [],                                             "a severe failure outlasts a restart of the node";
        Started if PauseRecorded          => go Idle,                   [],                                             "a pause outlasts a restart of the node";
        Started if FreshStart             => go New,                    [SecureBuffer],                                 "every walk to a copy begins with a secured buffer";
        Started if SecuredStart           => go Init,                   [Connect],                                      "the buffer is still secured; every later step is walked again";
        Secured                           => stay,                      [],                                             "the buffer was secured before";
        NoRoom                            => stay,                      [],                                             "the buffer was secured before";
        Contact                           => stay,                      [],                                             "already in contact";
        Connected                         => stay,                      [],                                             "agreed before";
        PartsReady                        => stay,                      [],                                             "the parts stood before";
        DecidedReplicate                  => stay,                      [],                                             "decided before, on this link";
        DecidedOutOfSync                  => stay,                      [],                                             "decided before, on this link";
        DecidedInSync                     => stay,                      [],                                             "decided before, on this link";
        DecidedError                      => stay,                      [],                                             "decided before, on this link";
        CopyFinished if Permitted         => go InSync,                 [BeginSequencing, OpenMirror],                  "the copy is now a state the master had";
        CopyFinished if Copying           => stay,                      [],                                             "late: another pass has begun";
        CopyFinished if BitsLeft          => stay,                      [BeginPass],                                    "what became dirty behind the cursor is copied, too";
        CopyFinished if Behind            => stay,                      [],                                             "the mirror has yet to apply what was committed while it was copied";
        CopyFinished if Unlinked          => go LinkDown,               [StopCopy, CloseLink, ReconnectLater],          "INSYNC is never said over a dead link";
        CaughtUp if Permitted             => go InSync,                 [BeginSequencing, OpenMirror],                  "the copy is now a state the master had";
        CaughtUp if Copying               => stay,                      [],                                             "consistent only once the cursor is at its end, too";
        CaughtUp if BitsLeft              => stay,                      [BeginPass],                                    "what became dirty behind the cursor is copied, too";
        CaughtUp if Behind                => stay,                      [],                                             "the point of consistency has moved on";
        CaughtUp if Unlinked              => go LinkDown,               [StopCopy, CloseLink, ReconnectLater],          "INSYNC is never said over a dead link";
        Cracked if MidPass                => stay,                      [],                                             "the next pass takes the new bits";
        Cracked if PassEnded              => stay,                      [BeginPass],                                    "only waiting to be consistent: one more pass takes the new bits";
        LinkLost                          => go LinkDown,               [StopCopy, CloseLink, ReconnectLater],          "the copy goes on at its acknowledged cursor";
        MinorFailure                      => go LinkDown,               [StopCopy, CloseLink, ReconnectLater],          "a new link is the retry: nothing durable is lost by it";
        SevereFailure                     => go Error,                  [StopCopy, CloseLink, RecordError],             "it fails again until somebody mends it";
        MirrorFailed                      => go Error,                  [StopCopy, CloseLink, RecordError],             "the mirror can not go on until somebody mends it";
        RetryDue                          => stay,                      [],                                             "late: a wait of a RESET that is over";
        Pause                             => go Idle,                   [StopCopy, CloseLink, RecordPause],             "the operator's wish; the cursor is kept";
        Continue                          => refuse NotPaused,          [],                                             "already at work";
        Restart                           => go New,                    [StopCopy, CloseLink, SecureBuffer],            "the operator's wish; what the mirror has is used again";
        Delete                            => gone,                      [StopCopy, CloseLink, Forget],                  "the operator's wish; what the mirror has stays where it is";
    }

    // Transactions are shipped in order.
    InSync {
        Started if ErrorRecorded          => go Error,                  [],                                             "a severe failure outlasts a restart of the node";
        Started if PauseRecorded          => go Idle,                   [],                                             "a pause outlasts a restart of the node";
        Started if FreshStart             => go New,                    [SecureBuffer],                                 "every walk to a copy begins with a secured buffer";
        Started if SecuredStart           => go Init,                   [Connect],                                      "the buffer is still secured; every later step is walked again";
        Secured                           => stay,                      [],                                             "the buffer was secured before";
        NoRoom                            => stay,                      [],                                             "the buffer was secured before";
        Contact                           => stay,                      [],                                             "already in contact";
        Connected                         => stay,                      [],                                             "agreed before";
        PartsReady                        => stay,                      [],                                             "the parts stood before";
        DecidedReplicate                  => stay,                      [],                                             "decided before, on this link";
        DecidedOutOfSync                  => stay,                      [],                                             "decided before, on this link";
        DecidedInSync                     => stay,                      [],                                             "decided before, on this link";
        DecidedError                      => stay,                      [],                                             "decided before, on this link";
        CopyFinished                      => stay,                      [],                                             "said before";
        CaughtUp                          => stay,                      [],                                             "being caught up is what INSYNC means";
        Cracked                           => go OutOfSync,              [StopSequencing, BeginResync],                  "the log no longer holds what the mirror lacks; its map does";
        LinkLost                          => go LinkDown,               [StopSequencing, CloseLink, ReconnectLater],    "the log holds what the mirror lacks from now on";
        MinorFailure                      => go LinkDown,               [StopSequencing, CloseLink, ReconnectLater],    "a new link is the retry: nothing durable is lost by it";
        SevereFailure                     => go Error,                  [StopSequencing, CloseLink, RecordError],       "it fails again until somebody mends it";
        MirrorFailed                      => go Error,                  [StopSequencing, CloseLink, RecordError],       "the mirror can not go on until somebody mends it";
        RetryDue                          => stay,                      [],                                             "late: a wait of a RESET that is over";
        Pause                             => go Idle,                   [StopSequencing, CloseLink, RecordPause],       "the operator's wish";
        Continue                          => refuse NotPaused,          [],                                             "already at work";
        Restart                           => go New,                    [StopSequencing, CloseLink, SecureBuffer],      "the operator's wish; what the mirror has is used again";
        Delete                            => gone,                      [StopSequencing, CloseLink, Forget],            "the operator's wish; what the mirror has stays where it is";
    }

    // A copy is being repaired.
    OutOfSync {
        Started if ErrorRecorded          => go Error,                  [],                                             "a severe failure outlasts a restart of the node";
        Started if PauseRecorded          => go Idle,                   [],                                             "a pause outlasts a restart of the node";
        Started if FreshStart             => go New,                    [SecureBuffer],                                 "every walk to a copy begins with a secured buffer";
        Started if SecuredStart           => go Init,                   [Connect],                                      "the buffer is still secured; every later step is walked again";
        Secured                           => stay,                      [],                                             "the buffer was secured before";
        NoRoom                            => stay,                      [],                                             "the buffer was secured before";
        Contact                           => stay,                      [],                                             "already in contact";
        Connected                         => stay,                      [],                                             "agreed before";
        PartsReady                        => stay,                      [],                                             "the parts stood before";
        DecidedReplicate                  => stay,                      [],                                             "decided before, on this link";
        DecidedOutOfSync                  => stay,                      [],                                             "decided before, on this link";
        DecidedInSync                     => stay,                      [],                                             "decided before, on this link";
        DecidedError                      => stay,                      [],                                             "decided before, on this link";
        CopyFinished if Permitted         => go InSync,                 [BeginSequencing, OpenMirror],                  "the copy is now a state the master had";
        CopyFinished if Copying           => stay,                      [],                                             "late: another pass has begun";
        CopyFinished if BitsLeft          => stay,                      [BeginPass],                                    "what became dirty behind the cursor is copied, too";
        CopyFinished if Behind            => stay,                      [],                                             "the mirror has yet to apply what was committed while it was copied";
        CopyFinished if Unlinked          => go LinkDown,               [StopCopy, CloseLink, ReconnectLater],          "INSYNC is never said over a dead link";
        CaughtUp if Permitted             => go InSync,                 [BeginSequencing, OpenMirror],                  "the copy is now a state the master had";
        CaughtUp if Copying               => stay,                      [],                                             "consistent only once the cursor is at its end, too";
        CaughtUp if BitsLeft              => stay,                      [BeginPass],                                    "what became dirty behind the cursor is copied, too";
        CaughtUp if Behind                => stay,                      [],                                             "the point of consistency has moved on";
        CaughtUp if Unlinked              => go LinkDown,               [StopCopy, CloseLink, ReconnectLater],          "INSYNC is never said over a dead link";
        Cracked if MidPass                => stay,                      [],                                             "the next pass takes the new bits";
        Cracked if PassEnded              => stay,                      [BeginPass],                                    "only waiting to be consistent: one more pass takes the new bits";
        LinkLost                          => go LinkDown,               [StopCopy, CloseLink, ReconnectLater],          "the repair goes on with the bits still set";
        MinorFailure                      => go LinkDown,               [StopCopy, CloseLink, ReconnectLater],          "a new link is the retry: nothing durable is lost by it";
        SevereFailure                     => go Error,                  [StopCopy, CloseLink, RecordError],             "it fails again until somebody mends it";
        MirrorFailed                      => go Error,                  [StopCopy, CloseLink, RecordError],             "the mirror can not go on until somebody mends it";
        RetryDue                          => stay,                      [],                                             "late: a wait of a RESET that is over";
        Pause                             => go Idle,                   [StopCopy, CloseLink, RecordPause],             "the operator's wish; the bits are kept";
        Continue                          => refuse NotPaused,          [],                                             "already at work";
        Restart                           => go New,                    [StopCopy, CloseLink, SecureBuffer],            "the operator's wish; what the mirror has is used again";
        Delete                            => gone,                      [StopCopy, CloseLink, Forget],                  "the operator's wish; what the mirror has stays where it is";
    }

    // Contact is sought. The log holds what the mirror lacks for as long as it can.
    LinkDown {
        Started if ErrorRecorded          => go Error,                  [],                                             "a severe failure outlasts a restart of the node";
        Started if PauseRecorded          => go Idle,                   [],                                             "a pause outlasts a restart of the node";
        Started if FreshStart             => go New,                    [SecureBuffer],                                 "every walk to a copy begins with a secured buffer";
        Started if SecuredStart           => go Init,                   [Connect],                                      "the buffer is still secured; every later step is walked again";
        Secured                           => stay,                      [],                                             "the buffer was secured before";
        NoRoom                            => stay,                      [],                                             "the buffer was secured before";
        Contact if BufferSecured          => go Init,                   [Connect],                                      "nothing that was agreed on an earlier link holds on this one";
        Contact if BufferMissing          => go New,                    [SecureBuffer],                                 "the buffer was given back meanwhile";
        Connected                         => stay,                      [],                                             "late: it is agreed again on the next link";
        PartsReady                        => stay,                      [],                                             "late: the parts are validated again on the next link";
        DecidedReplicate                  => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedOutOfSync                  => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedInSync                     => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedError                      => stay,                      [],                                             "late: it is decided again on the next link";
        CopyFinished                      => stay,                      [],                                             "late: it is seen again when the histories are compared";
        CaughtUp                          => stay,                      [],                                             "late: it is seen again when the histories are compared";
        Cracked                           => stay,                      [],                                             "shown beside the word; OUTOFSYNC begins at the next contact";
        LinkLost                          => stay,                      [],                                             "known: contact is being sought";
        MinorFailure                      => stay,                      [],                                             "seeking contact is the retry";
        SevereFailure                     => go Error,                  [RecordError],                                  "it fails again until somebody mends it";
        MirrorFailed                      => go Error,                  [RecordError],                                  "the last thing the mirror said before it hung up";
        RetryDue                          => stay,                      [],                                             "late: a wait of a RESET that is over";
        Pause                             => go Idle,                   [RecordPause],                                  "the operator's wish";
        Continue                          => refuse NotPaused,          [],                                             "already at work";
        Restart                           => go New,                    [SecureBuffer],                                 "the operator's wish; what the mirror has is used again";
        Delete                            => gone,                      [Forget],                                       "the operator's wish; what the mirror has stays where it is";
    }

    // The operator paused the mirror. The log holds what it lacks for as long as it can.
    Idle {
        Started if ErrorRecorded          => go Error,                  [],                                             "a severe failure outlasts a restart of the node";
        Started if PauseRecorded          => go Idle,                   [],                                             "a pause outlasts a restart of the node";
        Started if FreshStart             => go New,                    [SecureBuffer],                                 "every walk to a copy begins with a secured buffer";
        Started if SecuredStart           => go Init,                   [Connect],                                      "the buffer is still secured; every later step is walked again";
        Secured                           => stay,                      [],                                             "kept for when replication goes on";
        NoRoom                            => stay,                      [],                                             "found again when replication goes on";
        Contact                           => stay,                      [CloseLink],                                    "a pause outlasts contact";
        Connected                         => stay,                      [],                                             "late: it is agreed again on the next link";
        PartsReady                        => stay,                      [],                                             "late: the parts are validated again on the next link";
        DecidedReplicate                  => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedOutOfSync                  => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedInSync                     => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedError                      => stay,                      [],                                             "late: it is decided again on the next link";
        CopyFinished                      => stay,                      [],                                             "late: it is seen again when the histories are compared";
        CaughtUp                          => stay,                      [],                                             "late: it is seen again when the histories are compared";
        Cracked                           => stay,                      [],                                             "shown beside the word; OUTOFSYNC begins at the next contact";
        LinkLost                          => stay,                      [],                                             "a paused mirror needs no link";
        MinorFailure                      => stay,                      [],                                             "nothing is to be tried again while paused";
        SevereFailure                     => go Error,                  [RecordError],                                  "a pause does not hide a severe failure";
        MirrorFailed                      => stay,                      [],                                             "the mirror says so again when replication goes on";
        RetryDue                          => stay,                      [],                                             "late: a wait of a RESET that is over";
        Pause                             => refuse AlreadyPaused,      [],                                             "already there";
        Continue if BufferSecured         => go Init,                   [ForgetPause, Connect],                         "the operator's wish; histories are compared before anything is sent";
        Continue if BufferMissing         => go New,                    [ForgetPause, SecureBuffer],                    "the pause came before the buffer was secured";
        Restart                           => refuse RestartWhilePaused, [],                                             "a restart would undo the pause without saying so";
        Delete                            => gone,                      [Forget],                                       "the operator's wish; what the mirror has stays where it is";
    }

    // A minor failure is waited out.
    Reset {
        Started if ErrorRecorded          => go Error,                  [],                                             "a severe failure outlasts a restart of the node";
        Started if PauseRecorded          => go Idle,                   [],                                             "a pause outlasts a restart of the node";
        Started if FreshStart             => go New,                    [SecureBuffer],                                 "every walk to a copy begins with a secured buffer";
        Started if SecuredStart           => go Init,                   [Connect],                                      "the buffer is still secured; every later step is walked again";
        Secured                           => stay,                      [],                                             "late: the retry finds it secured";
        NoRoom if RetriesNew              => go Error,                  [CloseLink, RecordError],                       "the failure was not minor after all";
        NoRoom if RetriesAtPeer           => stay,                      [],                                             "the buffer was secured before";
        Contact                           => stay,                      [],                                             "the wait is for the step, not for contact";
        Connected                         => stay,                      [],                                             "late: it is agreed again on the next link";
        PartsReady                        => stay,                      [],                                             "late: the parts are validated again on the next link";
        DecidedReplicate                  => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedOutOfSync                  => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedInSync                     => stay,                      [],                                             "late: it is decided again on the next link";
        DecidedError                      => stay,                      [],                                             "late: it is decided again on the next link";
        CopyFinished                      => stay,                      [],                                             "late: it is seen again when the histories are compared";
        CaughtUp                          => stay,                      [],                                             "late: it is seen again when the histories are compared";
        Cracked                           => stay,                      [],                                             "shown beside the word; READY decides with it in view";
        LinkLost if RetriesNew            => stay,                      [],                                             "securing the buffer needs no link";
        LinkLost if RetriesAtPeer         => go LinkDown,               [CloseLink, ReconnectLater],                    "the step can not be tried again before there is contact";
        MinorFailure                      => stay,                      [],                                             "the wait for the retry is under way";
        SevereFailure                     => go Error,                  [CloseLink, RecordError],                       "it fails again until somebody mends it";
        MirrorFailed                      => go Error,                  [CloseLink, RecordError],                       "the mirror can not go on until somebody mends it";
        RetryDue if RetriesNew            => go New,                    [SecureBuffer],                                 "the buffer is secured again";
        RetryDue if RetriesInit           => go Init,                   [Connect],                                      "the connection is made again";
        RetryDue if RetriesMakeParts      => go MakeParts,              [MakeParts],                                    "the parts are made or validated again";
        RetryDue if RetriesReady          => go Ready,                  [Decide],                                       "the histories are compared again";
        RetryDue if RetriesUnlinked       => go LinkDown,               [CloseLink, ReconnectLater],                    "contact comes first";
        Pause                             => go Idle,                   [CloseLink, RecordPause],                       "the operator's wish";
        Continue                          => refuse NotPaused,          [],                                             "already at work";
        Restart                           => go New,                    [CloseLink, SecureBuffer],                      "the operator's wish; what the mirror has is used again";
        Delete                            => gone,                      [CloseLink, Forget],                            "the operator's wish; what the mirror has stays where it is";
    }

    // A severe failure is recorded. The log holds what the mirror lacks for as long as it can.
    Error {
        Started if ErrorRecorded          => go Error,                  [],                                             "a severe failure outlasts a restart of the node";
        Started if PauseRecorded          => go Idle,                   [],                                             "a pause outlasts a restart of the node";
        Started if FreshStart             => go New,                    [SecureBuffer],                                 "every walk to a copy begins with a secured buffer";
        Started if SecuredStart           => go Init,                   [Connect],                                      "the buffer is still secured; every later step is walked again";
        Secured                           => stay,                      [],                                             "kept for when replication goes on";
        NoRoom                            => stay,                      [],                                             "the first cause stands: what follows may come from it";
        Contact                           => stay,                      [CloseLink],                                    "contact does not mend a severe failure";
        Connected                         => stay,                      [],                                             "late: it is agreed again on the next link";
        PartsReady                        => stay,                      [],                                             "late: the parts are validated again on the next link";
        DecidedReplicate                  => stay,                      [],                                             "late: it is decided again after a restart";
        DecidedOutOfSync                  => stay,                      [],                                             "late: it is decided again after a restart";
        DecidedInSync                     => stay,                      [],                                             "late: it is decided again after a restart";
        DecidedError                      => stay,                      [],                                             "the first cause stands: what follows may come from it";
        CopyFinished                      => stay,                      [],                                             "late: it is seen again after a restart";
        CaughtUp                          => stay,                      [],                                             "late: it is seen again after a restart";
        Cracked                           => stay,                      [],                                             "shown beside the word; taken up after a restart";
        LinkLost                          => stay,                      [],                                             "a stopped mirror needs no link";
        MinorFailure                      => stay,                      [],                                             "the severe failure stands";
        SevereFailure                     => stay,                      [],                                             "the first cause stands: what follows may come from it";
        MirrorFailed                      => stay,                      [],                                             "the first cause stands: what follows may come from it";
        RetryDue                          => stay,                      [],                                             "late: a wait of a RESET that is over";
        Pause                             => refuse PauseInError,       [],                                             "a stopped mirror can not be paused";
        Continue                          => refuse ContinueInError,    [],                                             "going on would fail again: a restart says that it is mended";
        Restart                           => go New,                    [ForgetError, ForgetPause, SecureBuffer],       "the operator says that it is mended; what the mirror has is used again";
        Delete                            => gone,                      [Forget],                                       "the operator's wish; what the mirror has stays where it is";
    }
};
