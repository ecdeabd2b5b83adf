//! The command line: commands, tables, progress bars. Speaks only the control protocol of `node`.

use std::process::ExitCode;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
