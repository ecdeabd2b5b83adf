//! What the two ends of a connection say about the connection itself: the header of every frame on channel 0. Owns that
//! vocabulary. Never carries a payload, and nothing about a volume: that is `message`, on the other channels.
//!
//! The first frame is the `Call` of the node with the larger fingerprint, whoever dialled. The node with the smaller one
//! answers `Use` or `Spare`: it alone decides which of several connections of the pair is used, so the two never
//! disagree. After `Use`, both sides open channels; the side that dialled gives them odd numbers, the other even ones, in
//! ascending order, none twice.

#![allow(
    missing_docs,
    reason = "rkyv derives twins of these types whose fields have no docs"
)]

use rkyv::{Archive, Deserialize, Serialize};

/// The channel of these frames.
pub const CONTROL: u32 = 0;
/// Longest header of such a frame, bytes: far more than any of them takes.
pub const MAX_CONTROL: usize = 256;
/// Bytes that a side may send on a channel before the other has given credit for more.
pub const WINDOW: u64 = 8 << 20;
/// What a frame costs beside its header and its payload, bytes: memory is taken for the smallest frame, too.
pub const FRAME_COST: u64 = 256;

/// What a frame costs of its channel's credit.
pub fn cost(header_len: usize, payload_len: usize) -> u64 {
    header_len as u64 + payload_len as u64 + FRAME_COST
}

// Credit comes back in quarters: what is left beside one must let the largest frame pass.
const _: () = assert!(
    super::frame::MAX_HEADER as u64 + super::frame::MAX_PAYLOAD as u64 + FRAME_COST
        <= WINDOW - WINDOW / 4
);

/// Why a channel ends.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its user has no more to say.
    Done,
    /// It was not taken: too many are open.
    NoRoom,
    /// Nothing was heard for as long as its user waits.
    Silent,
}

/// The header of a frame on channel 0.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Larger fingerprint: here is a connection.
    Call {
        /// Random number of this run of the node.
        boot: u64,
        /// From who dialled: the token of the last `Use` that had arrived then, 0 for none. A connection with another token
        /// is one that the caller did not know of.
        seen: u64,
    },
    /// Smaller fingerprint: this connection is the one.
    Use {
        /// Names it; random, not 0.
        token: u64,
    },
    /// Smaller fingerprint: there is another connection.
    Spare,
    /// A channel begins.
    Open {
        /// Its number.
        channel: u32,
    },
    /// So much was taken out of a channel's queue, and may be sent again.
    Credit {
        /// The channel.
        channel: u32,
        /// Bytes, as `cost` counts them.
        bytes: u64,
    },
    /// A channel ends: nothing more comes on it, and what comes for it is thrown away.
    End {
        /// The channel.
        channel: u32,
        /// Why.
        why: Ended,
    },
    /// Are you there?
    Ping {
        /// Comes back in the answer.
        token: u64,
    },
    /// Yes.
    Pong {
        /// From the question.
        token: u64,
    },
}
