//! What the guards of the table look at. Owns the facts about one mirror and the named guards over them. Never holds a
//! state: facts are what is true, and what is persisted; the state follows from them and from what happens.

use crate::cause::Cause;
use crate::spelled::spelled;
use crate::state::Step;

/// What is true of one mirror at the moment of an event. The caller updates it *before* it calls [`crate::step()`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// A connection to the mirror's node stands.
    pub linked: bool,
    /// The buffer is secured in the master's volume. Persistent.
    pub secured: bool,
    /// The operator paused the mirror. Persistent; set and cleared by commands.
    pub paused: bool,
    /// The severe failure that is recorded against the mirror. Persistent; set and cleared by commands.
    pub error: Option<Cause>,
    /// The log gave up what the mirror lacks, and no pass over the dirty map has begun since. Derived from the map.
    pub cracked: bool,
    /// A dirty bit is recorded for the mirror, on either side. Persistent, as the map.
    pub dirty: bool,
    /// A pass of the copy is under way: its cursor has not come to its end, or not all that it passed is acknowledged.
    pub copying: bool,
    /// The last transaction that the mirror acknowledged as durable, a txid.
    pub acknowledged: u64,
    /// The txid up to which the mirror must have applied for its copy to be a state the master had: the last one
    /// committed when the last chunk was read. Of no meaning while `copying`.
    pub consistent_at: u64,
    /// The step that RESET tries again; of no meaning in other states. Given by [`crate::Command::RetryLater`].
    pub retry: Step,
}

impl Default for Facts {
    /// The facts of a mirror that has just been created.
    fn default() -> Facts {
        Facts {
            linked: false,
            secured: false,
            paused: false,
            error: None,
            cracked: false,
            dirty: false,
            copying: false,
            acknowledged: 0,
            consistent_at: 0,
            retry: Step::New,
        }
    }
}

impl Facts {
    /// Whether the mirror may be called INSYNC: over a living link, with no copy under way, no dirty bit recorded
    /// anywhere, nothing given up, and at or past the point from which its copy is a state the master had.
    pub const fn permit_insync(&self) -> bool {
        self.linked
            && !self.copying
            && !self.dirty
            && !self.cracked
            && self.acknowledged >= self.consistent_at
    }
}

spelled! {
    /// A named condition over the facts. A row of the table applies where its guard holds.
    pub enum Guard as "guard" {
        /// Holds whatever the facts are.
        Always = "always",
        /// Nothing stands against INSYNC: see [`Facts::permit_insync`].
        Permitted = "permitted",
        /// The link is dead; that it was lost has not been told yet.
        Unlinked = "unlinked",
        /// The link stands, and something stands against INSYNC.
        Owing = "owing",
        /// The link stands, and the cursor is on its way.
        Copying = "copying",
        /// The link stands, the cursor is at its end, and bits were recorded behind it.
        BitsLeft = "bits-left",
        /// The link stands, everything is copied, and the mirror has yet to apply what makes its copy consistent.
        Behind = "behind",
        /// The cursor is on its way.
        MidPass = "mid-pass",
        /// The cursor is at its end.
        PassEnded = "pass-ended",
        /// The buffer is secured.
        BufferSecured = "buffer-secured",
        /// The buffer is not secured.
        BufferMissing = "buffer-missing",
        /// A severe failure is recorded.
        ErrorRecorded = "error-recorded",
        /// No failure is recorded; the operator paused the mirror.
        PauseRecorded = "pause-recorded",
        /// Nothing is recorded against going on, and the buffer is not secured.
        FreshStart = "fresh-start",
        /// Nothing is recorded against going on, and the buffer is secured.
        SecuredStart = "secured-start",
        /// RESET is to secure the buffer again.
        RetriesNew = "retries-new",
        /// RESET is to connect again.
        RetriesInit = "retries-init",
        /// RESET is to make or validate the parts again, and the link stands.
        RetriesMakeParts = "retries-makeparts",
        /// RESET is to compare the histories again, and the link stands.
        RetriesReady = "retries-ready",
        /// RESET is to repeat a step that needs a link, and there is none.
        RetriesUnlinked = "retries-unlinked",
        /// RESET is to repeat a step that deals with the mirror's node.
        RetriesAtPeer = "retries-at-peer",
    }
}

impl Guard {
    /// Whether the guard holds.
    pub const fn holds(self, facts: &Facts) -> bool {
        let bits = facts.dirty || facts.cracked;
        match self {
            Guard::Always => true,
            Guard::Permitted => facts.permit_insync(),
            Guard::Unlinked => !facts.linked,
            Guard::Owing => facts.linked && !facts.permit_insync(),
            Guard::Copying => facts.linked && facts.copying,
            Guard::BitsLeft => facts.linked && !facts.copying && bits,
            Guard::Behind => {
                facts.linked && !facts.copying && !bits && facts.acknowledged < facts.consistent_at
            }
            Guard::MidPass => facts.copying,
            Guard::PassEnded => !facts.copying,
            Guard::BufferSecured => facts.secured,
            Guard::BufferMissing => !facts.secured,
            Guard::ErrorRecorded => facts.error.is_some(),
            Guard::PauseRecorded => facts.error.is_none() && facts.paused,
            Guard::FreshStart => facts.error.is_none() && !facts.paused && !facts.secured,
            Guard::SecuredStart => facts.error.is_none() && !facts.paused && facts.secured,
            Guard::RetriesNew => matches!(facts.retry, Step::New),
            Guard::RetriesInit => matches!(facts.retry, Step::Init),
            Guard::RetriesMakeParts => facts.linked && matches!(facts.retry, Step::MakeParts),
            Guard::RetriesReady => facts.linked && matches!(facts.retry, Step::Ready),
            Guard::RetriesUnlinked => {
                !facts.linked && matches!(facts.retry, Step::MakeParts | Step::Ready)
            }
            Guard::RetriesAtPeer => !matches!(facts.retry, Step::New),
        }
    }

    /// The condition in words, to follow "if".
    pub const fn condition(self) -> &'static str {
        match self {
            Guard::Always => "in any case",
            Guard::Permitted => "consistent, nothing dirty, link up",
            Guard::Unlinked => "the link is dead",
            Guard::Owing => "something is dirty or not yet applied",
            Guard::Copying => "the copy is under way",
            Guard::BitsLeft => "blocks became dirty meanwhile",
            Guard::Behind => "not yet applied far enough",
            Guard::MidPass => "the copy is under way",
            Guard::PassEnded => "the copy has come to its end",
            Guard::BufferSecured => "the buffer is secured",
            Guard::BufferMissing => "the buffer is not secured",
            Guard::ErrorRecorded => "a severe failure is recorded",
            Guard::PauseRecorded => "it was paused",
            Guard::FreshStart => "the buffer is not secured",
            Guard::SecuredStart => "the buffer is secured",
            Guard::RetriesNew => "NEW is to be tried again",
            Guard::RetriesInit => "INIT is to be tried again",
            Guard::RetriesMakeParts => "MAKEPARTS is to be tried again",
            Guard::RetriesReady => "READY is to be tried again",
            Guard::RetriesUnlinked => "the step needs a link and has none",
            Guard::RetriesAtPeer => "the step needs the mirror's node",
        }
    }
}
