//! A node of a demonstration: its directory, its daemon as a child of this process, its commands.
//!
//! Owns the daemon and its end. Daemons have process groups of their own, so that Ctrl-C reaches the demonstration alone,
//! which then ends them in order. Invariant: a node that is dropped runs no daemon and has no mount, unless it was let go.

use super::super::Failed;
use super::super::client::get;
use super::super::exit::Exit;
use super::interrupt::Interrupt;
use super::place::mounts_below;
use crate::node::mounts::take_away;
use crate::node::protocol::{Request, Status, VolumeStatus};
use crate::node::state_dir::StateDir;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A daemon answers within this.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// A daemon ends within this: it drains to mirrors for at most 10 s.
const STOPPED_WITHIN: Duration = Duration::from_secs(25);
/// Lines of a log that are shown after a failure.
const LINES_SHOWN: usize = 6;

/// One node.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: &'static str,
    /// Where its daemon listens.
    pub address: String,
    /// Its state directory.
    pub state: StateDir,
    dir: PathBuf,
    program: PathBuf,
    path: OsString,
    daemon: Option<Child>,
}

/// PATH, and where e2fsprogs is although PATH may lack it; `first` comes before all others.
pub fn search_path(first: Option<&Path>) -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = first.map(Path::to_owned).into_iter();
    let dirs = dirs.chain(std::env::split_paths(&path));
    let dirs = dirs.chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    // Only a directory with a colon in its name can not be joined: then it is left as it was.
    std::env::join_paths(dirs).unwrap_or(path)
}

/// Where a program is.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = search_path(None);
    let mut files = std::env::split_paths(&path).map(|dir| dir.join(name));
    files.find(|file| file.is_file())
}

/// An address of this machine that nobody listens on now.
fn free_address() -> io::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

impl Node {
    /// Makes the node below `place`. Its daemon looks for programs in `first` before all other places.
    pub fn init(name: &'static str, place: &Path, first: Option<&Path>) -> Result<Node, Failed> {
        let dir = place.join(name);
        let failed = |e: io::Error| Failed::here(dir.display(), e);
        std::fs::create_dir_all(dir.join("mnt")).map_err(failed)?;
        let node = Node {
            name,
            address: free_address().map_err(|e| Failed::here("a port on 127.0.0.1", e))?,
            state: StateDir::at(dir.join("state")),
            program: std::env::current_exe().map_err(|e| Failed::here("this program", e))?,
            path: search_path(first),
            daemon: None,
            dir,
        };
        let store = node.store().display().to_string();
        node.run(&[
            "node",
            "init",
            "--name",
            name,
            "--listen",
            &node.address,
            "--store",
            &store,
        ])?;
        Ok(node)
    }

    /// Its store directory.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Where its volume is mounted.
    pub fn mnt(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// A file beside its state, its store and its mount.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The daemon's process id.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// `lockstep --state DIR ...`, as a reader would type it.
    pub fn typed(&self, rest: &str) -> String {
        let (program, state) = (self.program.display(), self.state.path().display());
        format!("{program} --state {state} {rest}")
    }

    /// One of its commands, to be run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--state")
            .arg(self.state.path())
            .args(arguments)
            .env("PATH", &self.path)
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Runs a command to its end; what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String, Failed> {
        let done = self.command(arguments).output();
        let done = done.map_err(|e| Failed::here(self.program.display(), e))?;
        if done.status.success() {
            return Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned());
        }
        let said = String::from_utf8_lossy(&done.stderr);
        let mut lines = said.lines().map(str::trim);
        let message = lines.next().unwrap_or_default();
        let message = message.trim_start_matches("lockstep: ");
        let next = lines.find_map(|l| l.strip_prefix("next: "));
        let words = arguments.join(" ");
        let mut failed = Failed::new(
            Exit::Failure,
            format!("{}: lockstep {words}: {message}", self.name),
            next.unwrap_or("lockstep demo --keep leaves the logs to be read"),
        );
        if let Some(code) = done.status.code()
            && let Some(exit) = Exit::ALL
                .into_iter()
                .find(|e| i32::from(e.status()) == code)
        {
            failed.exit = exit;
        }
        Err(failed)
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self, interrupt: &Interrupt) -> Result<(), Failed> {
        let path = self.file("log");
        let failed = |e: io::Error| Failed::here(path.display(), e);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(failed)?;
        let errors = log.try_clone().map_err(failed)?;
        let mut run = self.command(&["node", "run"]);
        let daemon = run.stdout(log).stderr(errors).spawn();
        let daemon = daemon.map_err(|e| Failed::here(self.program.display(), e))?;
        self.daemon = Some(daemon);
        let mut ended = None;
        let status = Request::Status { volume: None };
        let ready = interrupt.wait(READY_WITHIN, || {
            let daemon = self.daemon.as_mut();
            ended = daemon.and_then(|d| d.try_wait().ok().flatten());
            Ok(ended.is_some() || get::<Status>(&self.state, &status).is_ok())
        })?;
        let trouble = match ended {
            Some(status) => {
                self.daemon = None;
                format!("the daemon of {} ended: {status}", self.name)
            }
            None if !ready => format!("the daemon of {} does not answer", self.name),
            None => return Ok(()),
        };
        Err(Failed::new(
            Exit::NotRunning,
            trouble,
            "lockstep demo --keep leaves the logs to be read",
        ))
    }

    /// Ends the daemon with SIGTERM; an error unless it ended well.
    pub fn stop(&mut self) -> Result<(), Failed> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        // One that has ended by itself takes no signal.
        let _ = kill_process(Pid::from_child(&daemon), Signal::TERM);
        let end = Instant::now() + STOPPED_WITHIN;
        let trouble = loop {
            match daemon.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => break format!("ended badly: {status}"),
                Ok(None) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(None) => {
                    let _ = daemon.kill();
                    let _ = daemon.wait();
                    break format!("did not end within {} s", STOPPED_WITHIN.as_secs());
                }
                Err(e) => break format!("can not be waited for: {e}"),
            }
        };
        Err(Failed::new(
            Exit::Failure,
            format!("the daemon of {} {trouble}", self.name),
            "lockstep demo --keep leaves the logs to be read",
        ))
    }

    /// Leaves the daemon running for good.
    pub fn let_go(mut self) {
        drop(self.daemon.take());
        std::mem::forget(self);
    }

    /// How the volume stands on this node.
    pub fn volume(&self, name: &str) -> Result<VolumeStatus, Failed> {
        let request = Request::Status {
            volume: Some(name.to_owned()),
        };
        let status: Status = get(&self.state, &request)?;
        let found = status.volumes.into_iter().find(|v| v.name == name);
        found.ok_or_else(|| crate::node::refusal::Refusal::no_volume(name).into())
    }

    /// The last warnings and errors in its log.
    pub fn complaints(&self) -> Vec<String> {
        let log = std::fs::read(self.file("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let bad = |l: &&str| {
            [" WARN ", "ERROR ", "panicked"]
                .iter()
                .any(|w| l.contains(w))
        };
        let mut lines: Vec<String> = log.lines().filter(bad).map(str::to_owned).collect();
        lines.drain(..lines.len().saturating_sub(LINES_SHOWN));
        lines
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(failed) = self.stop() {
            eprintln!("lockstep: {}", failed.message);
        }
        // A daemon that was killed leaves its mount behind.
        for dir in mounts_below(&self.dir) {
            // What can not be taken away is named by the place, which then stays.
            let _ = take_away(&dir);
        }
    }
}
