//! The client's end of the control socket.
//!
//! Owns one connection for one request. Never waits for ever: a daemon from which not even `alive` comes for
//! `SILENCE` does not answer.

use super::exit::Exit;
use super::{Failed, say};
use crate::node::control::reachable;
use crate::node::protocol::{Line, MAX_LINE, Request};
use crate::node::state_dir::StateDir;
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Ten times `ALIVE_EVERY`.
const SILENCE: Duration = Duration::from_secs(10);

/// The command with which the reader would reach the same node.
pub fn command(state: &StateDir, rest: &str) -> String {
    let path = state.path().display().to_string();
    if path == crate::node::state_dir::DEFAULT_STATE_DIR {
        format!("lockstep {rest}")
    } else {
        format!("lockstep --state {path} {rest}")
    }
}

fn not_running(state: &StateDir) -> Failed {
    if state.config().exists() {
        Failed::new(
            Exit::NotRunning,
            format!("the daemon of {} is not running", state.path().display()),
            command(state, "node run"),
        )
    } else {
        Failed::new(
            Exit::NotRunning,
            format!("there is no node at {}", state.path().display()),
            command(state, "node init --name NAME --listen ADDR:PORT"),
        )
    }
}

/// A connection on which a request has been sent.
pub struct Asked {
    lines: io::Take<BufReader<UnixStream>>,
    _writer: UnixStream,
}

/// Sends a request. `Ok(None)`: no daemon runs.
pub fn ask_if_running(state: &StateDir, request: &Request) -> Result<Option<Asked>, Failed> {
    let failed = |e: io::Error| Failed::here(state.socket().display(), e);
    let (path, _dir) = match reachable(&state.socket()) {
        Ok(reached) => reached,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Failed::new(
                Exit::Refused,
                format!("{}: permission denied", state.socket().display()),
                "give the command as the user who runs the daemon",
            ));
        }
        Err(e) => return Err(failed(e)),
    };
    let reader = stream.try_clone().map_err(failed)?;
    reader.set_read_timeout(Some(SILENCE)).map_err(failed)?;
    let mut text = serde_json::to_vec(request).map_err(|e| Failed::here("request", e))?;
    text.push(b'\n');
    stream.write_all(&text).map_err(failed)?;
    Ok(Some(Asked {
        lines: BufReader::new(reader).take(0),
        _writer: stream,
    }))
}

/// Sends a request; an error when no daemon runs.
pub fn ask(state: &StateDir, request: &Request) -> Result<Asked, Failed> {
    ask_if_running(state, request)?.ok_or_else(|| not_running(state))
}

impl Asked {
    /// The next line but `alive`. An error when the daemon is gone or silent.
    pub fn next(&mut self) -> Result<Line, Failed> {
        loop {
            let mut text = Vec::new();
            self.lines.set_limit(MAX_LINE as u64);
            let read = self.lines.read_until(b'\n', &mut text);
            match read {
                Ok(n) if n > 0 && text.ends_with(b"\n") => {}
                Ok(_) => {
                    return Err(Failed::new(
                        Exit::NotRunning,
                        "the daemon ended before it answered",
                        "see its log; then: lockstep status",
                    ));
                }
                Err(e) => {
                    return Err(Failed::new(
                        Exit::NotRunning,
                        format!("the daemon does not answer: {e}"),
                        "see its log; then: lockstep status",
                    ));
                }
            }
            match serde_json::from_slice(&text) {
                Ok(Line::Alive) => {}
                Ok(line) => return Ok(line),
                Err(e) => return Err(Failed::here("the daemon's answer", e)),
            }
        }
    }

    /// Reads to the end. Items go to `item`, notes to the standard error.
    pub fn finish(
        mut self,
        mut item: impl FnMut(Value) -> Result<(), Failed>,
    ) -> Result<Value, Failed> {
        loop {
            match self.next()? {
                Line::Item(value) => item(value)?,
                Line::Note(text) => eprintln!("{text}"),
                Line::Alive => {}
                Line::Done(value) => return Ok(value),
                Line::Refused(refusal) => return Err(refusal.into()),
            }
        }
    }
}

/// Asks, shows notes, and gives the last line's value.
pub fn call(state: &StateDir, request: &Request) -> Result<Value, Failed> {
    ask(state, request)?.finish(say)
}

/// The same, with the value as its type.
pub fn get<T: serde::de::DeserializeOwned>(
    state: &StateDir,
    request: &Request,
) -> Result<T, Failed> {
    let value = call(state, request)?;
    serde_json::from_value(value).map_err(|e| Failed::here("the daemon's answer", e))
}
