//! What nodes say to each other: the header of every frame. Owns the vocabulary and its version; the payload beside a
//! header is raw bytes whose length the header implies. Never carries a path: a master does not name files on another
//! machine.
//!
//! A channel that begins with `RoleQuery` carries one question and its answer; one that begins with `Prepare` hands
//! a volume over. Any other serves one mirror of one volume; the master opens it. The order of a session is: `Hello`/`Welcome`,
//! `MakeParts`/`PartsReady`, `Ask`/`History`, `Begin`/`Ready`, then the stream: `Bulk` and transactions from the master,
//! `Ack` from the mirror. Frames of the stream carry a sequence number; an `Ack` names the last one that is durable.

#![allow(
    missing_docs,
    reason = "rkyv derives twins of these types whose fields have no docs"
)]

use rkyv::{Archive, Deserialize, Serialize};

/// The version of this vocabulary; both sides must have the same.
pub const PROTOCOL_VERSION: u32 = 2;

/// The most bytes of payload in one frame of the stream: other volumes on the same connection wait for a whole frame.
pub const MAX_STREAM_PAYLOAD: usize = 1 << 20;

/// `len` blocks from `start` on.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First block of the volume.
    pub start: u64,
    /// Number of blocks, at least 1.
    pub len: u64,
}

/// A generation and the transaction at which it forks from the one before.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The generation's random id.
    pub generation: u128,
    /// The last transaction of the generation before it.
    pub fork: u64,
}

/// How much of a copy there is.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Nothing.
    Blank,
    /// A first copy that was interrupted: the blocks before `cursor` are as of `txid`.
    Partial {
        /// First block that is not there yet.
        cursor: u64,
        /// The transaction up to which the stream was applied.
        txid: u64,
    },
    /// All of it, consistent or not.
    Complete,
}

/// What a mirror knows of itself: its half of the reconnect decision (design: the inputs of the pure function).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// The volume it is a copy of; 0 when blank.
    pub volume_id: u128,
    /// Oldest first.
    pub generations: Vec<Fork>,
    /// The last transaction in its copy.
    pub applied: u64,
    /// The last transaction in its journal.
    pub durable: u64,
    /// The last transaction that the master has confirmed to it.
    pub confirmed: u64,
    /// How much there is.
    pub copy: CopyState,
    /// The transaction up to which it must have applied to be a state that the master had.
    pub consistent_at: u64,
    /// Changed from outside since it was last closed.
    pub tainted: bool,
    /// Bytes that a staged resync may take there.
    pub staging_room: u64,
    /// The transaction chain hash at `durable`.
    pub chain: u64,
    /// Blocks that it knows to differ from its own history (0 while nothing was kept aside).
    pub dirty_blocks: u64,
    /// While its copy is no state of a master: no later transaction than this is in any block that another node than the one
    /// that asks has written there.
    pub reach: u64,
}

/// Why a stream begins, as the mirror must treat it.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// First copy, from `cursor` on.
    Replicate {
        /// First block to be copied.
        cursor: u64,
    },
    /// A complete copy of which some blocks are replaced, at home.
    OutOfSync,
    /// The same, but kept outside the parts until it is whole: the copy stays what it was meanwhile.
    Staged {
        /// Bytes that are expected.
        bytes: u64,
    },
    /// Nothing but transactions.
    InSync,
}

/// An inode or a name that a transaction touched.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// The inode's attributes or contents.
    Inode(u32),
    /// A name in a directory.
    Entry(u32, Vec<u8>),
    /// More than can be listed.
    Everything,
}

/// What the master tells a mirror about itself now and then, for the mirror's status.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
pub struct MasterStatus {
    /// The state of this mirror, in its one spelling.
    pub state: String,
    /// Why it is in that state.
    pub reason: String,
    /// Bytes that the mirror still lacks.
    pub bytes_to_go: u64,
    /// Last transaction committed on the master.
    pub txid_committed: u64,
    /// Time of day of that, in nanoseconds since 1970.
    pub committed_at: i128,
    /// Whether the mirror has cracked.
    pub cracked: bool,
    /// Bytes of the buffer in use.
    pub buffer_used: u64,
    /// Size of the buffer, in bytes.
    pub buffer_size: u64,
    /// Bulk bytes sent since the master's node started.
    pub bytes_bulk: u64,
    /// Sequenced bytes sent since the master's node started.
    pub bytes_sequenced: u64,
    /// What goes over the line now, bytes a second.
    pub rate: u64,
    /// Seconds until `bytes_to_go` is done at this rate, where there is one.
    pub eta_s: Option<u64>,
    /// The lowest transaction that every mirror of the volume has: the log is kept from here on, for whoever is promoted.
    pub floor: u64,
    /// Every node that has a part in the volume, the master among them.
    pub members: Vec<Member>,
}

/// A node that has a part in a volume: its master, or one of its mirrors.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
pub struct Member {
    /// Its name, as the node that speaks knows it.
    pub name: String,
    /// Where it listens, as far as that is known.
    pub address: String,
    /// Its key, by which it is recognised whatever it is called.
    pub fingerprint: String,
}

/// What a node is for a volume.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has no such volume.
    Absent,
    /// Its master.
    Master,
    /// A mirror.
    Mirror,
    /// It was its master when it stopped, and has not found out yet whether it still is.
    Undecided,
}

/// Where a mirror stands, as a master that hands over knows it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which node.
    pub member: Member,
    /// It has everything up to this transaction, ...
    pub position: u64,
    /// ... and the blocks in which it differs from the state at the hand-over are in the map that goes with this.
    pub through: u64,
    /// There is no such map: it is to be compared.
    pub lost: bool,
}

/// How a payload is packed.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// A block of lz4.
    Lz4,
    /// A frame of zstd.
    Zstd,
}

/// The header of a frame.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Master: who is calling, and for which volume.
    Hello {
        /// `PROTOCOL_VERSION`.
        version: u32,
        /// The calling node's name.
        node: String,
        /// The volume's name.
        volume: String,
        /// The volume's id.
        volume_id: u128,
        /// The master's lineage, oldest first: by it a mirror of another master knows its new one.
        generations: Vec<Fork>,
    },
    /// Mirror: the call is taken.
    Welcome {
        /// `PROTOCOL_VERSION`.
        version: u32,
        /// The answering node's name.
        node: String,
    },
    /// Either side: can not go on. `severe` leads to ERROR with the cause `code`, otherwise to RESET.
    Refused {
        /// A cause of the state table (`states::Cause`), kebab-case.
        code: String,
        /// What exactly, with names and numbers.
        detail: String,
        /// Whether trying again is of no use until somebody mends it.
        severe: bool,
    },
    /// Master: make, or validate, parts of these sizes.
    MakeParts {
        /// Bytes a block.
        block_size: u32,
        /// Bytes of each part, in order.
        parts: Vec<u64>,
        /// Take over a copy that this node keeps of another volume with this name: never, unless asked for.
        discard: bool,
    },
    /// Mirror: the parts are there.
    PartsReady,
    /// Master: what do you have?
    Ask,
    /// Mirror, before its `History`: blocks in which its copy differs from the state that its history names.
    Dirty {
        /// Which blocks.
        ranges: Vec<Range>,
        /// What differs is not known: it is to be compared.
        lost: bool,
    },
    /// Mirror: this.
    History(History),
    /// Master: the stream begins. Payload: the 1024 bytes of the volume's superblock.
    Begin {
        /// How to treat the stream.
        mode: Mode,
        /// The master's lineage, oldest first; to be durable before anything of the stream is.
        generations: Vec<Fork>,
        /// The last transaction that the mirror has and keeps; later ones in its journal are dropped.
        from: u64,
        /// Compare first: the mirror will be asked for hashes.
        compare: bool,
        /// What the mirror holds after this transaction was never confirmed, nor is it in the master's history: it is
        /// erased, durably, before anything else.
        drop_after: Option<u64>,
    },
    /// Mirror: ready for the stream.
    Ready,
    /// Master: blocks, home to home. Payload: the blocks of `data`, one range after the other.
    Bulk {
        /// Sequence number in the stream.
        seq: u64,
        /// Ranges whose bytes are in the payload.
        data: Vec<Range>,
        /// Ranges that read as zeros.
        zero: Vec<Range>,
        /// The cursor behind this frame (a block).
        cursor: u64,
        /// No later transaction is in these blocks.
        reach: u64,
    },
    /// Master: the payload of the next frame that has one is packed.
    Packed {
        /// How.
        codec: Codec,
        /// Bytes that it has unpacked, at most `MAX_STREAM_PAYLOAD`.
        len: u64,
    },
    /// Master: a transaction begins, or several merged into one (`first` < `last`).
    TxnBegin {
        /// First transaction of the merge.
        first: u64,
        /// Last transaction of the merge: the id under which it is committed.
        last: u64,
        /// Generation of `last`.
        generation: u128,
        /// Ranges that become unwritten: zeros.
        zeroed: Vec<Range>,
        /// Ranges that become free.
        freed: Vec<Range>,
        /// What a mount must forget.
        touched: Vec<Touched>,
    },
    /// Master: blocks by value. Payload: one block each.
    TxnBlocks {
        /// Where each belongs.
        blocks: Vec<u64>,
    },
    /// Master: fresh data, to go home before the commit. Payload: the blocks of the ranges.
    TxnFresh {
        /// Where it belongs.
        ranges: Vec<Range>,
    },
    /// Master: the transaction is whole. Without this frame a mirror discards it.
    TxnEnd {
        /// Sequence number in the stream.
        seq: u64,
        /// As in `TxnBegin`.
        last: u64,
        /// The transaction chain hash at `last`.
        chain: u64,
        /// The last transaction that is committed on the master: `last` or later, unless this one was sent while it was
        /// being committed.
        confirmed: u64,
    },
    /// Master: everything up to `txid` is committed here, and may be shown.
    Confirm {
        /// The last such transaction that was sent.
        txid: u64,
    },
    /// Master: the copy is whole once everything up to `consistent_at` is applied. Payload: the jbd2 superblock.
    CopyEnd {
        /// Sequence number in the stream.
        seq: u64,
        /// The transaction from which on the copy is a state that the master had.
        consistent_at: u64,
        /// The transaction chain hash there.
        chain: u64,
        /// The journal file's blocks, in order.
        log: Vec<Range>,
    },
    /// Mirror: everything up to `seq` is durable.
    Ack {
        /// Sequence number in the stream.
        seq: u64,
        /// The last transaction that is durable.
        txid: u64,
        /// The durable cursor while copying.
        cursor: u64,
        /// Whether the copy is a state that the master had, and complete.
        consistent: bool,
        /// How long the mirror took to make it durable, us.
        flush_us: u64,
    },
    /// Master: hash these blocks as they are after everything sent so far.
    Hash {
        /// Names the answer.
        id: u64,
        /// Which blocks.
        ranges: Vec<Range>,
    },
    /// Mirror: the hashes. Payload: one xxh3 (64 bits, little-endian) a block.
    Hashes {
        /// Of which question.
        id: u64,
    },
    /// Master: what does your copy have in these blocks? At most `MAX_STREAM_PAYLOAD` bytes of them.
    Fetch {
        /// Names the answer.
        id: u64,
        /// Which blocks.
        ranges: Vec<Range>,
    },
    /// Mirror: this. Payload: the blocks of the ranges.
    Fetched {
        /// Of which question.
        id: u64,
    },
    /// Master: how it stands.
    Status(MasterStatus),
    /// First on a connection of its own: what are you for this volume? Nothing changes by it.
    RoleQuery {
        /// `PROTOCOL_VERSION`.
        version: u32,
        /// The calling node's name.
        node: String,
        /// The volume's name.
        volume: String,
        /// The volume's id.
        volume_id: u128,
        /// What the calling node is.
        standing: Standing,
        /// The answer is to have the copy's history with it.
        history: bool,
        /// The hand-over with this token is void, if it has not been carried out.
        revoke: Option<u64>,
    },
    /// The answer.
    RoleAnswer {
        /// What the answering node is.
        standing: Standing,
        /// A mirror's master.
        master: Option<Member>,
        /// Its lineage, oldest first.
        generations: Vec<Fork>,
        /// The last transaction that it has.
        applied: u64,
        /// Its half of the reconnect decision, if that was asked for and it has one.
        history: Option<Box<History>>,
    },
    /// Master, first on a connection of its own: could you be the master, with everything up to `txid`?
    Prepare {
        /// `PROTOCOL_VERSION`.
        version: u32,
        /// The volume's name.
        volume: String,
        /// The volume's id.
        volume_id: u128,
        /// Names this hand-over.
        token: u64,
        /// The last transaction.
        txid: u64,
        /// The transaction chain hash there.
        chain: u64,
    },
    /// Mirror: yes (`refusal` is empty), or why not.
    Prepared {
        /// Which hand-over.
        token: u64,
        /// Why not.
        refusal: String,
    },
    /// Master, before `HandOver`: blocks in which one of the other mirrors differs.
    HandOverMap {
        /// Its index in `HandOver::places`.
        place: u32,
        /// Which blocks.
        ranges: Vec<Range>,
    },
    /// Master: be the master. This node writes no more.
    HandOver {
        /// Which hand-over.
        token: u64,
        /// The other nodes of the volume, this one among them.
        places: Vec<Place>,
    },
    /// The new master: it is done (`refusal` is empty), or why not; then nothing was changed.
    HandedOver {
        /// Which hand-over.
        token: u64,
        /// Why not.
        refusal: String,
        /// Its lineage, oldest first.
        generations: Vec<Fork>,
    },
    /// Either side: are you there?
    Ping {
        /// Comes back in the answer.
        token: u64,
    },
    /// Either side: yes.
    Pong {
        /// From the question.
        token: u64,
    },
    /// Either side: an orderly end, with its reason.
    Bye {
        /// For the log and the status.
        reason: String,
    },
}

impl From<crate::units::BlockRange> for Range {
    fn from(range: crate::units::BlockRange) -> Range {
        Range {
            start: range.start.0,
            len: range.len,
        }
    }
}

impl From<Range> for crate::units::BlockRange {
    fn from(range: Range) -> crate::units::BlockRange {
        crate::units::BlockRange::new(crate::units::BlockNo(range.start), range.len)
    }
}
