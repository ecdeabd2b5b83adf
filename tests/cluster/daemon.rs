//! One node: its state directory, its store, its daemon as a child process, and the command line that speaks to it.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::testkit::{command, is_root, said, wait_until};

/// A daemon that does not answer within this is broken; start-up replays at most one journal.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// A clean stop may drain to mirrors (10 s unless configured) and checkpoints all.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// No command of a test takes longer, s.
const COMMAND_SECONDS: u32 = 180;

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// Its directory: `state`, `store`, `mnt` and the log are in it.
    pub dir: PathBuf,
    /// The network namespace it runs in.
    pub namespace: Option<String>,
    daemon: Option<Child>,
}

impl Node {
    /// Makes the node with `node init`. The daemon is not started.
    pub fn init(dir: PathBuf, name: &str, address: &str, namespace: Option<String>) -> Node {
        std::fs::create_dir_all(dir.join("mnt")).unwrap();
        let node = Node {
            name: name.to_owned(),
            address: address.to_owned(),
            dir,
            namespace,
            daemon: None,
        };
        let store = node.store();
        let store = store.to_str().unwrap();
        node.ok(&[
            "node", "init", "--name", name, "--listen", address, "--store", store,
        ]);
        node
    }

    /// Its state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Its store directory.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Where its volume is mounted.
    pub fn mnt(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// A path below its mount.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.mnt().join(relative)
    }

    /// The daemon's process id.
    pub fn pid(&self) -> Pid {
        let daemon = self.daemon.as_ref().expect("the daemon runs");
        Pid::from_child(daemon)
    }

    /// Whether the daemon was started and not stopped.
    pub fn runs(&self) -> bool {
        self.daemon.is_some()
    }

    /// What the daemon wrote to its log so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) {
        assert!(!self.runs(), "{} runs already", self.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let lockstep = env!("CARGO_BIN_EXE_lockstep");
        // Not by `ip netns exec`: it would hide the daemon's mounts from the test.
        let mut run = match &self.namespace {
            Some(name) => {
                let mut nsenter = command("nsenter");
                nsenter
                    .arg(format!("--net=/run/netns/{name}"))
                    .arg(lockstep);
                nsenter
            }
            None => Command::new(lockstep),
        };
        run.arg("--state")
            .arg(self.state())
            .args(["node", "run"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if std::env::var_os("RUST_LOG").is_none() {
            run.env("RUST_LOG", "info");
        }
        self.daemon = Some(run.spawn().unwrap());
        let mut ended = None;
        let answers = wait_until(READY_WITHIN, || {
            ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            ended.is_some() || self.run(&["status", "--json"]).status.success()
        });
        if let Some(status) = ended {
            self.daemon = None;
            panic!("{}: the daemon ended: {status}\n{}", self.name, self.log());
        }
        assert!(answers, "{} does not answer\n{}", self.name, self.log());
    }

    /// SIGTERM; the daemon has to end by itself, and well.
    pub fn stop(&mut self) {
        let status = self.end(Signal::TERM);
        assert!(
            status.success(),
            "{}: stopped with {status}\n{}",
            self.name,
            self.tail()
        );
    }

    /// SIGTERM for a daemon that can not close its volume: it ends by itself, and says that it did not end well.
    pub fn end_failed(&mut self) {
        let status = self.end(Signal::TERM);
        assert!(
            status.code().is_some_and(|code| code != 0),
            "{}: stopped with {status}\n{}",
            self.name,
            self.tail()
        );
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        kill_process(self.pid(), signal).unwrap();
        let daemon = self.daemon.as_mut().unwrap();
        let mut status = None;
        let gone = wait_until(STOPPED_WITHIN, || {
            status = daemon.try_wait().unwrap();
            status.is_some()
        });
        assert!(
            gone,
            "{}: did not end by {signal:?}\n{}",
            self.name,
            self.tail()
        );
        self.daemon = None;
        status.expect("it is gone")
    }

    /// Stops the process where it is, or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        kill_process(self.pid(), signal).unwrap();
    }

    /// Prints the end of the log, for a test that failed.
    pub fn show_log(&self) {
        eprintln!("--- log of {}:\n{}\n---", self.name, self.tail());
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Runs a command of this node.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        command("timeout")
            .args(["-k", "5", &COMMAND_SECONDS.to_string()])
            .arg(env!("CARGO_BIN_EXE_lockstep"))
            .arg("--state")
            .arg(self.state())
            .args(args)
            .output()
            .unwrap()
    }

    /// Runs a command that has to succeed; what it printed.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        let out = self.run(args);
        let words: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        assert!(
            out.status.success(),
            "{}: lockstep {}: {}\n{}\nlog:\n{}",
            self.name,
            words.join(" "),
            out.status,
            said(&out),
            self.tail()
        );
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs a command that has to be refused, or to fail; its exit status and what it said.
    #[track_caller]
    pub fn refused<S: AsRef<OsStr>>(&self, args: &[S]) -> (i32, String) {
        let out = self.run(args);
        let words: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        assert!(!out.status.success(), "lockstep {}", words.join(" "));
        (out.status.code().expect("not killed"), said(&out))
    }

    /// `status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["status", "--json"])).unwrap()
    }

    /// One volume of the status.
    #[track_caller]
    pub fn volume(&self, name: &str) -> Value {
        let status = self.status();
        let volumes = status["volumes"].as_array().unwrap();
        let found = volumes.iter().find(|v| v["name"] == name);
        found
            .unwrap_or_else(|| panic!("{name} is not in {status}"))
            .clone()
    }

    /// One mirror of the status.
    #[track_caller]
    pub fn mirror(&self, volume: &str, peer: &str) -> Value {
        let volume = self.volume(volume);
        let mirrors = volume["mirrors"].as_array().unwrap();
        let found = mirrors.iter().find(|m| m["peer"] == peer);
        found
            .unwrap_or_else(|| panic!("{peer} is not in {volume}"))
            .clone()
    }

    /// Waits with `lockstep wait`.
    #[track_caller]
    pub fn wait(&self, volume: &str, peer: &str, state: &str, seconds: u32) {
        let out = self.run(&[
            "wait",
            volume,
            peer,
            state,
            "--timeout",
            &seconds.to_string(),
        ]);
        assert!(
            out.status.success(),
            "{}: {state} not reached within {seconds} s: {}\n{}\n{}\nlog of {}:\n{}",
            self.name,
            out.status,
            said(&out),
            self.ok(&["status"]),
            self.name,
            self.tail()
        );
    }

    /// Waits until the volume is mounted; how long it took.
    #[track_caller]
    pub fn wait_mounted(&self, volume: &str, within: Duration) -> Duration {
        let began = Instant::now();
        let mounted = wait_until(within, || {
            self.volume(volume)["mounted"] == true && is_mount(&self.mnt())
        });
        assert!(
            mounted,
            "{}: not mounted within {within:?}: {}\n{}",
            self.name,
            self.volume(volume),
            self.tail()
        );
        began.elapsed()
    }

    /// The history of events, as JSON.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let text = self.ok(&["events", "--json"]);
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Node {
    /// Kills the daemon and unmounts what it left; nothing to do is fine.
    pub fn clear(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        while let Some(mount) = mounts_below(&self.dir).pop() {
            let mut unmount = if is_root() {
                let mut umount = command("umount");
                umount.arg("-l");
                umount
            } else {
                let mut fusermount = command("fusermount3");
                fusermount.args(["-u", "-z"]);
                fusermount
            };
            let done = unmount.arg(&mount).output();
            if !done.is_ok_and(|out| out.status.success()) {
                eprintln!("left mounted: {}", mount.display());
                break;
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Whether something is mounted at a directory, also if it is dead.
pub fn is_mount(dir: &Path) -> bool {
    mounts_below(dir).iter().any(|mount| mount == dir)
}

/// What is mounted at a directory or below it, in the order in which it was mounted.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    // The paths of tests have no blanks, which would be escaped here.
    text.lines()
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .filter(|mount| mount.starts_with(dir))
        .collect()
}
