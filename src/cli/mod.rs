//! The command line: commands, tables, progress bars. Speaks only the control protocol of `node`.
//!
//! Owns what people and programs see: tables, JSON, messages, exit status. Never touches a volume. `node init`,
//! `node fingerprint` and, while no daemon runs, `peer` work on the state directory itself.

pub mod args;

pub mod size;

pub mod exit;

mod client;

mod table;

mod commands;

mod watch;

mod demo;

use args::Cli;
use clap::Parser;
use clap::error::ErrorKind;
use exit::Exit;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// A command that did not do what was asked.
#[derive(Debug)]
pub(crate) struct Failed {
    exit: Exit,
    message: String,
    remedy: String,
}

impl Failed {
    fn new(exit: Exit, message: impl Into<String>, remedy: impl Into<String>) -> Failed {
        Failed {
            exit,
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    /// Something in this process failed.
    fn here(what: impl Display, error: impl Display) -> Failed {
        Failed::new(Exit::Failure, format!("{what}: {error}"), "")
    }
}

impl From<crate::node::refusal::Refusal> for Failed {
    fn from(refusal: crate::node::refusal::Refusal) -> Failed {
        Failed {
            exit: Exit::of(refusal.code),
            message: refusal.message,
            remedy: refusal.remedy,
        }
    }
}

/// Prints one line on the standard output. A reader that has left (`| head`) ends the command quietly.
fn say(line: impl Display) -> Result<(), Failed> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
            Err(Failed::new(Exit::Ok, String::new(), String::new()))
        }
        Err(e) => Err(Failed::here("standard output", e)),
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Nothing can be done about an output that does not take the message.
            let _ = e.print();
            return match e.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Ok.into(),
                _ => Exit::Usage.into(),
            };
        }
    };
    match commands::run(cli) {
        Ok(exit) => exit.into(),
        Err(failed) => {
            if !failed.message.is_empty() {
                eprintln!("lockstep: {}", failed.message);
            }
            if !failed.remedy.is_empty() {
                eprintln!("  next: {}", failed.remedy);
            }
            failed.exit.into()
        }
    }
}
