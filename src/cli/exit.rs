//! The exit status: one list, which lockstep(8) and every page's EXIT STATUS repeat.

use crate::node::refusal::Code;
use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Something failed: a disk, a file, an error in lockstep.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Refused: nothing was changed. The message says what to do next.
    Refused = 3,
    /// The time has passed.
    Timeout = 4,
    /// The mirror is in ERROR while another state was waited for.
    ErrorState = 5,
    /// Copies differ, or a check found damage.
    Differ = 6,
    /// The daemon is not running, or does not answer.
    NotRunning = 7,
}

impl Exit {
    /// Every status, in order.
    pub const ALL: [Exit; 8] = [
        Exit::Ok,
        Exit::Failure,
        Exit::Usage,
        Exit::Refused,
        Exit::Timeout,
        Exit::ErrorState,
        Exit::Differ,
        Exit::NotRunning,
    ];

    /// The number.
    pub fn status(self) -> u8 {
        self as u8
    }

    /// What it means, as the man pages say it.
    pub fn meaning(self) -> &'static str {
        match self {
            Exit::Ok => "Done.",
            Exit::Failure => "Something failed: a disk, a file, an error in lockstep.",
            Exit::Usage => "The command line is wrong.",
            Exit::Refused => "Refused; nothing was changed. The message says what to do next.",
            Exit::Timeout => "The time has passed.",
            Exit::ErrorState => "The mirror is in ERROR while another state was waited for.",
            Exit::Differ => "Copies differ, or a check found damage.",
            Exit::NotRunning => "The daemon is not running, or does not answer.",
        }
    }

    /// The status for a refusal.
    pub fn of(code: Code) -> Exit {
        match code {
            Code::NotFound
            | Code::Exists
            | Code::Invalid
            | Code::NotAllowed
            | Code::Busy
            | Code::Unusable
            | Code::Unsupported => Exit::Refused,
            Code::Io => Exit::Failure,
            Code::Timeout => Exit::Timeout,
            Code::ErrorState => Exit::ErrorState,
            Code::Differ => Exit::Differ,
            Code::Stopping => Exit::NotRunning,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.status())
    }
}
