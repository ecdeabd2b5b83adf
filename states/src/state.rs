//! The states, in the operator's words. Owns their names and the one function that spells them. Never says how one
//! leads to another: that is the table's. States have no order, and nothing compares them by one.

use crate::spelled::spelled;

spelled! {
    /// Where one mirror of one volume stands.
    pub enum State as "state" {
        /// The mirror was created or restarted; its buffer is being secured in the master's volume.
        New = "NEW",
        /// The master looks for the mirror's node: they connect, authenticate, agree on versions and lineage.
        Init = "INIT",
        /// The mirror makes parts equal to the master's in number and size, or validates those it has.
        MakeParts = "MAKEPARTS",
        /// Parts stand; the master compares both histories and decides what is to be done.
        Ready = "READY",
        /// A first copy is being made: every allocated block, while the master stays live.
        Replicate = "REPLICATE",
        /// The mirror is at or past the point from which its copy is a state the master had; transactions are shipped
        /// in order.
        InSync = "INSYNC",
        /// The mirror has a copy, but the log no longer holds what it lacks: the copy is repaired.
        OutOfSync = "OUTOFSYNC",
        /// Contact is lost; the buffer fills, and contact is sought.
        LinkDown = "LINKDOWN",
        /// Paused by the operator; the buffer fills.
        Idle = "IDLE",
        /// A minor failure in NEW, INIT, MAKEPARTS or READY; after a wait that step is tried again.
        Reset = "RESET",
        /// A severe failure; everything waits for the operator.
        Error = "ERROR",
    }
}

impl State {
    /// What is meant, in one sentence, for people.
    pub const fn meaning(self) -> &'static str {
        match self {
            State::New => {
                "The mirror was created or restarted. Its buffer is being secured in the master's volume."
            }
            State::Init => {
                "The two nodes connect, authenticate each other, and agree on versions and on the lineage of the volume."
            }
            State::MakeParts => {
                "The mirror makes parts equal in number and size to the master's, or, on a later start, validates each of those it has."
            }
            State::Ready => {
                "The parts stand. The master compares both histories and decides whether to copy, to repair or to replay."
            }
            State::Replicate => {
                "The mirror holds no complete copy. The allocated blocks are copied while the master stays live; the copy is not readable yet."
            }
            State::InSync => {
                "The mirror's copy is, at every instant, a state that the master has had. Committed transactions reach it in order; it can be mounted read-only."
            }
            State::OutOfSync => {
                "The mirror holds a copy, but the log no longer holds what it lacks. The blocks recorded as different are copied; where there is no record, the allocated ones are compared by checksum."
            }
            State::LinkDown => {
                "Contact is lost. The buffer fills, writers are unaffected, and contact is sought again and again."
            }
            State::Idle => {
                "Replication is paused by the operator. As LINKDOWN, but nobody seeks contact."
            }
            State::Reset => {
                "A minor failure came up in NEW, INIT, MAKEPARTS or READY. That step is tried again after a wait, which grows."
            }
            State::Error => {
                "A severe failure came up. Status names its cause and its remedy; replication goes on after the remedy and a restart, and what the mirror has is used again."
            }
        }
    }

    /// Whether replication is at work or on its way: every state but IDLE and ERROR, which wait for the operator.
    pub const fn is_working(self) -> bool {
        !matches!(self, State::Idle | State::Error)
    }

    /// Whether blocks are being copied outside the order of transactions, so that the copy is inconsistent.
    pub const fn is_copying(self) -> bool {
        matches!(self, State::Replicate | State::OutOfSync)
    }
}

spelled! {
    /// A step on the way to a copy which RESET can try again. It is named after the state in which it is taken.
    pub enum Step as "step" {
        /// Securing the buffer.
        New = "NEW",
        /// Connecting.
        Init = "INIT",
        /// Making or validating the parts.
        MakeParts = "MAKEPARTS",
        /// Comparing the histories.
        Ready = "READY",
    }
}

impl Step {
    /// The state in which the step is taken.
    pub const fn state(self) -> State {
        match self {
            Step::New => State::New,
            Step::Init => State::Init,
            Step::MakeParts => State::MakeParts,
            Step::Ready => State::Ready,
        }
    }
}
