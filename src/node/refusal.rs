//! The answer no: a code for programs, a sentence for people, and what to do next.
//!
//! Owns the list of codes, from which the command line chooses its exit status. A refusal is an answer, not a failure
//! of the daemon: nothing was changed.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What kind of no it is. Stable: programs compare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// No volume, peer or mirror of that name.
    NotFound,
    /// The name is taken.
    Exists,
    /// The request itself makes no sense: a bad name, size or path.
    Invalid,
    /// Not in this state, or not on this node.
    NotAllowed,
    /// Another operation is under way on the same volume.
    Busy,
    /// The medium or the system said no.
    Io,
    /// What is on the disk can not be used, wholly or safely.
    Unusable,
    /// The time given, or the daemon's own limit, has passed.
    Timeout,
    /// The mirror is in ERROR while another state was waited for.
    ErrorState,
    /// Copies differ, or a check found damage.
    Differ,
    /// This build or this machine can not do it.
    Unsupported,
    /// The daemon stops.
    Stopping,
}

/// A request that was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// What is wrong, one sentence without a full stop.
    pub message: String,
    /// What to do next: a command, mostly.
    pub remedy: String,
}

impl Refusal {
    /// A refusal with its remedy.
    pub fn new(code: Code, message: impl Into<String>, remedy: impl Into<String>) -> Refusal {
        Refusal {
            code,
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    /// The system or the medium failed.
    pub fn io(what: impl fmt::Display, error: impl fmt::Display) -> Refusal {
        Refusal::new(
            Code::Io,
            format!("{what}: {error}"),
            "mend the cause and give the command again",
        )
    }

    /// There is no such volume.
    pub fn no_volume(name: &str) -> Refusal {
        Refusal::new(
            Code::NotFound,
            format!("there is no volume {name} on this node"),
            "lockstep volume list",
        )
    }

    /// There is no such peer.
    pub fn no_peer(name: &str) -> Refusal {
        Refusal::new(
            Code::NotFound,
            format!("there is no peer {name}"),
            "lockstep peer list, or: lockstep peer add NAME ADDR:PORT --fingerprint FP",
        )
    }

    /// There is no such mirror.
    pub fn no_mirror(volume: &str, peer: &str) -> Refusal {
        Refusal::new(
            Code::NotFound,
            format!("volume {volume} has no mirror on {peer}"),
            format!("lockstep status {volume}, or: lockstep mirror create {volume} {peer}"),
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; next: {}", self.message, self.remedy)
    }
}

impl std::error::Error for Refusal {}

/// Checks the name of a node, a peer or a volume: it becomes a directory, a column of a table and a mount's source.
pub fn check_name(kind: &str, name: &str) -> Result<(), Refusal> {
    let mut chars = name.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphanumeric());
    let rest = chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if first && rest && name.len() <= 64 {
        return Ok(());
    }
    Err(Refusal::new(
        Code::Invalid,
        format!("{name:?} can not be the name of a {kind}"),
        "use 1 to 64 letters, digits, '.', '_' and '-', the first a letter or a digit",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_directory_or_a_table_are_refused() {
        for good in ["a", "alpha-1", "0", "x.y_z", &"n".repeat(64)] {
            assert!(check_name("volume", good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "-x",
            "a b",
            "é",
            "a\n",
            &"n".repeat(65),
        ] {
            assert!(check_name("volume", bad).is_err(), "{bad}");
        }
    }
}
