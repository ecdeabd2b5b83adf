//! What can go wrong in the journal.

use std::fmt;
use std::sync::Arc;

use crate::units::{BlockNo, LogBlock, Txid};
use crate::volume::VolumeError;

/// What is wrong with a block of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CorruptKind {
    /// Shorter than it has to be.
    Length,
    /// Not jbd2's magic.
    Magic,
    /// Not the type of block that has to be here.
    BlockType,
    /// Not the tid that has to be here.
    Sequence,
    /// The checksum does not match.
    Checksum,
    /// A field has a value that can not be.
    Field(&'static str),
}

impl fmt::Display for CorruptKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CorruptKind::Length => write!(f, "length"),
            CorruptKind::Magic => write!(f, "magic"),
            CorruptKind::BlockType => write!(f, "block type"),
            CorruptKind::Sequence => write!(f, "sequence"),
            CorruptKind::Checksum => write!(f, "checksum"),
            CorruptKind::Field(name) => write!(f, "{name}"),
        }
    }
}

/// An error of the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The medium lies.
    #[error("corrupt journal: log block {block}: {kind}: expected {expected}, found {found}")]
    Corrupt {
        /// Where in the journal file.
        block: LogBlock,
        /// What is wrong.
        kind: CorruptKind,
        /// What had to be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Something valid that this program can not do.
    #[error("journal: not supported: {0}")]
    Unsupported(String),
    /// The disk refused.
    #[error("journal: {context}: {source}")]
    Io {
        /// What was being done.
        context: &'static str,
        /// The volume's error.
        source: VolumeError,
    },
    /// The fact file could not be written, or the caller's keeper failed in another way.
    #[error("journal: saving what is known of the log: {0}")]
    Keeper(String),
    /// The caller's mistake.
    #[error("journal: refused: {0}")]
    Refused(Refused),
    /// An earlier error ended this journal's life; the first cause.
    #[error("the journal was aborted: {0}")]
    Aborted(Arc<JournalError>),
}

/// Why the journal did not do what the caller asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The log is full of what consumers, pins or unpublished transactions need, and making room did not help.
    #[error(
        "the log is full: {needed} blocks needed, {free} free of {size}; oldest transaction still needed {oldest}, last {last}"
    )]
    LogFull {
        /// Blocks that the caller's transactions take.
        needed: u64,
        /// Blocks that may be written.
        free: u64,
        /// Blocks of the log.
        size: u64,
        /// The oldest transaction that holds the log.
        oldest: Txid,
        /// The newest.
        last: Txid,
    },
    /// One transaction is more than half of the log.
    #[error("transaction {txid} takes {blocks} log blocks, more than {limit}")]
    TooLarge {
        /// Which.
        txid: Txid,
        /// What it takes.
        blocks: u64,
        /// What one may take.
        limit: u64,
    },
    /// Transaction ids must increase.
    #[error("transaction {txid} does not follow {last}")]
    OutOfOrder {
        /// What was given.
        txid: Txid,
        /// The last one committed.
        last: Txid,
    },
    /// A block of the transaction is not a block of the volume, or its image has not the block's size.
    #[error("transaction {txid}: block {block} is not a whole block of the volume")]
    BadBlock {
        /// Which transaction.
        txid: Txid,
        /// Which block.
        block: BlockNo,
    },
    /// The transaction is not, or no longer, in the log.
    #[error("transaction {0} is not in the log")]
    NotInLog(Txid),
    /// `begin_segment` has to come first.
    #[error("no segment of the log is open")]
    NoSegment,
    /// `recover` has to come first.
    #[error("the log has to be recovered first")]
    NeedsRecovery,
    /// There are appended transactions that were neither published nor discarded.
    #[error("transactions after {0} are not published")]
    Unpublished(Txid),
    /// What is shown is not durably known to be confirmed, so it can not go home.
    #[error("it is not recorded that transactions up to {0} are confirmed")]
    NotConfirmed(Txid),
    /// The mirror tail or the head does not fit the log.
    #[error("the log can not be resumed: {0}")]
    CanNotResume(&'static str),
}

impl JournalError {
    pub(super) fn corrupt(
        block: LogBlock,
        kind: CorruptKind,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> JournalError {
        JournalError::Corrupt {
            block,
            kind,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    pub(super) fn io(context: &'static str) -> impl FnOnce(VolumeError) -> JournalError {
        move |source| JournalError::Io { context, source }
    }
}

impl From<Refused> for JournalError {
    fn from(refused: Refused) -> JournalError {
        JournalError::Refused(refused)
    }
}
