//! What the command line and the daemon say to each other: one JSON value a line over the control socket.
//!
//! Owns the requests, the lines of an answer and the shape of `status --json`. Never opens a socket. One connection
//! carries one request. The answer is any number of `item` and `note` lines, `alive` lines while nothing else is ready
//! (so that a client can tell a daemon at work from one that hangs), and one last line: `done` or `refused`.

use super::refusal::Refusal;
use crate::mirror::master::Tuning;
pub use crate::mirror::policy::{Compress, OnFull, Policy, Resync, SyncMode, Wishes};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The version of the requests and of the JSON that `--json` shows. Fields are added without changing it.
pub const VERSION: u32 = 1;
/// Longest line, bytes, in either direction: the status of some thousands of volumes.
pub const MAX_LINE: usize = 4 << 20;
/// A client hears something at least this often.
pub const ALIVE_EVERY: Duration = Duration::from_secs(1);

/// A part in `volume create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPart {
    /// Absolute path of a file, created if missing, or of a block device.
    pub path: PathBuf,
    /// Bytes.
    pub bytes: u64,
}

/// What is to be done with a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MirrorAction {
    /// Stop shipping; the buffer fills.
    Pause,
    /// Go on after a pause.
    Continue,
    /// Walk again from NEW, reusing what the mirror has.
    Restart,
    /// Forget the mirror; its parts stay where they are.
    Delete,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
#[expect(missing_docs, reason = "each is a command; lockstep(8) explains it")]
pub enum Request {
    Status {
        volume: Option<String>,
    },
    PeerAdd {
        name: String,
        address: String,
        fingerprint: String,
    },
    PeerList,
    PeerRemove {
        name: String,
    },
    VolumeCreate {
        name: String,
        parts: Vec<NewPart>,
        block_size: Option<u32>,
        buffer: Option<u64>,
    },
    VolumeAdopt {
        name: String,
        parts: Vec<PathBuf>,
        buffer: Option<u64>,
    },
    VolumeList,
    VolumeShow {
        name: String,
    },
    VolumeCheck {
        name: String,
    },
    VolumeTune {
        name: String,
        buffer: u64,
    },
    VolumeDelete {
        name: String,
        keep_parts: bool,
    },
    Mount {
        name: String,
        dir: PathBuf,
        read_only: bool,
    },
    Umount {
        name: String,
    },
    MirrorCreate {
        name: String,
        peer: String,
        rate: Option<u64>,
        #[serde(default)]
        wishes: Wishes,
    },
    MirrorSet {
        name: String,
        peer: String,
        wishes: Wishes,
    },
    Mirror {
        name: String,
        peer: String,
        action: MirrorAction,
    },
    Events {
        follow: bool,
    },
    Wait {
        name: String,
        peer: String,
        state: String,
        timeout_ms: Option<u64>,
    },
    Verify {
        name: String,
        peer: Option<String>,
        repair: Option<Repair>,
        rate: Option<u64>,
    },
    Promote {
        name: String,
        force: bool,
    },
    Compare {
        name: String,
        peer: String,
    },
    LostList {
        name: Option<String>,
    },
    LostShow {
        name: String,
        id: String,
    },
    LostExtract {
        name: String,
        id: String,
        dir: PathBuf,
    },
    Switchover {
        name: String,
        peer: String,
    },
    Rejoin {
        name: String,
        master: String,
        discard: Option<String>,
    },
}

/// Which copy `verify` repairs from the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Repair {
    /// The mirror's, from the master's.
    Mirror,
    /// The master's, from the mirror's.
    Master,
}

impl Request {
    /// The daemon's own limit for the request; `None` where the answer goes on for as long as the client wants.
    pub fn deadline(&self) -> Option<Duration> {
        match self {
            Request::Events { follow: true } => None,
            Request::Wait {
                timeout_ms: None, ..
            } => None,
            // The wait's own limit comes first; this is the limit of the daemon's answer to it.
            Request::Wait {
                timeout_ms: Some(ms),
                ..
            } => Some(Duration::from_millis(*ms) + Duration::from_secs(5)),
            // These read or write whole volumes: 100 MB/s over 8 TiB is a day.
            Request::VolumeCreate { .. }
            | Request::VolumeAdopt { .. }
            | Request::VolumeTune { .. }
            | Request::VolumeCheck { .. }
            | Request::Promote { .. }
            | Request::Rejoin { .. }
            | Request::Switchover { .. }
            | Request::LostExtract { .. }
            | Request::Verify { .. } => Some(Duration::from_secs(86_400)),
            _ => Some(Duration::from_secs(60)),
        }
    }
}

/// A line of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// One of several results.
    Item(Value),
    /// Progress, for people.
    Note(String),
    /// The daemon is at it.
    Alive,
    /// The last line: it was done.
    Done(Value),
    /// The last line: it was not.
    Refused(Refusal),
}

/// `status --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// `VERSION`.
    pub version: u32,
    /// The node's name.
    pub node: String,
    /// By name.
    pub volumes: Vec<VolumeStatus>,
}

/// How a volume stands, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// It is not open.
    #[default]
    Closed,
    /// It is being opened: of a master, it is not known yet whether it still is the master.
    Opening,
    /// It is open.
    Open,
    /// A mirror that is not consistent yet.
    Waiting,
    /// It could not be opened; or its disk failed since, and it can only be read.
    Failed,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// One volume in `status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// `master` or `mirror`.
    pub role: String,
    /// How it stands.
    pub condition: Condition,
    /// Why it is not open; empty when it is.
    pub reason: String,
    /// Whether it is mounted at this moment.
    pub mounted: bool,
    /// Whether the mount, or the volume if there is none, refuses writes.
    pub read_only: bool,
    /// Where it is mounted or waits to be.
    pub mount_point: Option<PathBuf>,
    /// On a mirror: the moment on the master that its copy shows, RFC 3339; null on a master and while inconsistent.
    pub consistent_as_of: Option<String>,
    /// Bytes of all parts.
    pub size: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes of the log in use.
    pub buffer_used: u64,
    /// Bytes of the log.
    pub buffer_size: u64,
    /// Remarks: a small buffer, a feature that makes it read-only, a mount that failed.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// On a master one for each mirror; on a mirror one, whose peer is the master.
    pub mirrors: Vec<MirrorStatus>,
}

/// One mirror in `status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MirrorStatus {
    /// The other node.
    pub peer: String,
    /// The state's word.
    pub state: String,
    /// Why it is in that state: cause and remedy in ERROR and RESET.
    pub reason: String,
    /// Order was given up for the dirty map, and no pass over it has begun.
    pub cracked: bool,
    /// Bytes that the mirror lacks.
    pub bytes_to_go: u64,
    /// Bytes sent by the bulk replicator since the node started.
    pub bytes_bulk: u64,
    /// Bytes sent by sequencing since the node started.
    pub bytes_sequenced: u64,
    /// Bytes a second, lately.
    pub rate: u64,
    /// Seconds to go at that rate; null where it means nothing.
    pub eta_s: Option<u64>,
    /// Bytes of the buffer that this mirror still needs.
    pub buffer_used: u64,
    /// Bytes of the buffer.
    pub buffer_size: u64,
    /// Last transaction committed on the master.
    pub txid_committed: u64,
    /// Last transaction that the mirror acknowledged.
    pub txid_acked: u64,
    /// Age of the oldest transaction that the mirror lacks, s; 0 when it lacks none.
    pub lag_s: f64,
    /// How the mirror is treated; null on a mirror.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// It is in sync mode and not in INSYNC: writes are acknowledged without it, or wait for it.
    #[serde(default)]
    pub degraded: bool,
    /// What an administrator tunes by; null on a mirror.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<Box<Tuning>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::refusal::Code;

    #[test]
    fn the_lines_look_like_this() {
        let request = Request::MirrorCreate {
            name: "data".into(),
            peer: "beta".into(),
            rate: None,
            wishes: Wishes::default(),
        };
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(
            json,
            r#"{"do":"mirror-create","name":"data","peer":"beta","rate":null,"wishes":{}}"#
        );
        let lines = [
            (Line::Alive, r#""alive""#),
            (Line::Note("x".into()), r#"{"note":"x"}"#),
            (Line::Done(Value::Null), r#"{"done":null}"#),
            (
                Line::Refused(Refusal::new(Code::NotFound, "m", "r")),
                r#"{"refused":{"code":"not-found","message":"m","remedy":"r"}}"#,
            ),
        ];
        for (line, text) in lines {
            assert_eq!(serde_json::to_string(&line).unwrap(), text);
            assert_eq!(serde_json::from_str::<Line>(text).unwrap(), line);
        }
    }

    #[test]
    fn a_condition_is_spelled_alike_for_people_and_programs() {
        for (condition, word) in [
            (Condition::Closed, "closed"),
            (Condition::Opening, "opening"),
            (Condition::Open, "open"),
            (Condition::Waiting, "waiting"),
            (Condition::Failed, "failed"),
        ] {
            assert_eq!(condition.to_string(), word);
            assert_eq!(serde_json::to_value(condition).unwrap(), word);
            assert_eq!(
                serde_json::from_value::<Condition>(word.into()).unwrap(),
                condition
            );
        }
    }

    #[test]
    fn every_request_has_a_limit_but_those_that_go_on() {
        assert_eq!(Request::Events { follow: true }.deadline(), None);
        assert!(Request::Events { follow: false }.deadline().is_some());
        assert!(Request::Status { volume: None }.deadline().is_some());
    }
}
