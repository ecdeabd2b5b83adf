//! What can go wrong in replication, on either side.

use states::Cause;

use crate::fs::FsError;
use crate::journal::JournalError;
use crate::mirror::dirty::DirtyError;
use crate::units::Txid;
use crate::volume::VolumeError;
use crate::volume::facts::FactsError;

/// An error of a stream or of a copy.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The dirty map.
    #[error(transparent)]
    Dirty(#[from] DirtyError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The engine.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The parts.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The fact file.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// What only this side has could not be kept aside.
    #[error("keeping aside what only this copy has, as {id}: {source}")]
    Lost {
        /// Under which name.
        id: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The log does not hold what comes after a transaction.
    #[error("the log no longer holds what follows transaction {0}")]
    LogLost(Txid),
    /// The staging log of a resync can not be read or written.
    #[error("staging log {name}: {source}")]
    StagingIo {
        /// The file.
        name: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The staging log of a resync is damaged: the copy can not become consistent by it.
    #[error("staging log {name} is damaged: {detail}; the next resync copies again")]
    Staging {
        /// The file.
        name: String,
        /// Where and what.
        detail: String,
    },
    /// A resync can not be staged (any more): the next one goes home directly.
    #[error("no room to stage this resync: {0}")]
    NoStaging(String),
    /// The peer broke the protocol.
    #[error("protocol violation by the peer: {0}")]
    Protocol(String),
    /// The peer, or this side, refuses with a cause of the state table.
    #[error("{}: {detail}", .cause.sentence())]
    Refused {
        /// The cause.
        cause: Cause,
        /// Names and numbers.
        detail: String,
    },
}

/// The cause in the state table that a failure of the mirror's own disk or copy has.
pub fn disk_cause(error: &MirrorError) -> Cause {
    match error {
        MirrorError::Refused { cause, .. } => *cause,
        MirrorError::Journal(error) => journal_cause(error),
        MirrorError::Volume(error) => volume_cause(error),
        MirrorError::Fs(FsError::Io { source, .. }) => io_cause(source),
        MirrorError::Dirty(DirtyError::Io { source, .. }) => io_cause(source),
        MirrorError::Lost { source, .. } => io_cause(source),
        MirrorError::Facts(FactsError::Io { source, .. }) => io_cause(source),
        MirrorError::StagingIo { source, .. } => io_cause(source),
        MirrorError::Fs(_)
        | MirrorError::Dirty(_)
        | MirrorError::Facts(_)
        | MirrorError::LogLost(_)
        | MirrorError::Staging { .. }
        | MirrorError::NoStaging(_)
        | MirrorError::Protocol(_) => Cause::MirrorDamaged,
    }
}

fn journal_cause(error: &JournalError) -> Cause {
    match error {
        JournalError::Io { source, .. } => volume_cause(source),
        JournalError::Aborted(first) => journal_cause(first),
        _ => Cause::MirrorDamaged,
    }
}

fn volume_cause(error: &VolumeError) -> Cause {
    match error.is_full() {
        true => Cause::MirrorDiskFull,
        false => Cause::MirrorDiskFailing,
    }
}

fn io_cause(error: &std::io::Error) -> Cause {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Cause::MirrorDiskFull
        }
        _ => Cause::MirrorDiskFailing,
    }
}
