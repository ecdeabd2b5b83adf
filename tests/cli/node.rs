//! A node in a temporary directory, driven through the real binary. Its daemon is ended by its id when dropped.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a daemon may take to answer after its start, or to end.
const LIMIT: Duration = Duration::from_secs(30);

pub struct Node {
    dir: TempDir,
    port: u16,
    daemon: Option<Child>,
}

pub fn lockstep() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
    command
        .env_remove("LOCKSTEP_STATE")
        .env("LOCKSTEP_LOG", "debug,sled=warn,fuser=warn,rustls=warn")
        .stdin(Stdio::null());
    command
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

impl Node {
    /// A node with a key and a configuration, its daemon not running.
    pub fn init(name: &str) -> Node {
        let node = Node {
            dir: TempDir::new().unwrap(),
            port: free_port(),
            daemon: None,
        };
        let store = node.path("store");
        node.ok(&[
            "node",
            "init",
            "--name",
            name,
            "--listen",
            &node.address(),
            "--store",
            store.to_str().unwrap(),
        ]);
        node
    }

    /// Another value for a key of the configuration, from the next start on.
    pub fn configure(&self, line: &str) {
        let path = self.state().join("lockstep.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{line}\n{text}")).unwrap();
    }

    /// The mount point, which exists.
    pub fn mnt(&self) -> PathBuf {
        let dir = self.path("mnt");
        // A dead mount can not be looked at, and is there.
        let _ = std::fs::create_dir(&dir);
        dir
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["status", "--json"])).unwrap()
    }

    /// Waits until the status has what is looked for.
    pub fn until(&self, what: &str, mut found: impl FnMut(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let status = self.status();
            if found(&status) {
                return status;
            }
            assert!(
                start.elapsed() < LIMIT,
                "never {what}: {status:#}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A node whose daemon answers.
    pub fn running(name: &str) -> Node {
        let mut node = Node::init(name);
        node.start();
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn start(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let mut command = lockstep();
        command.arg("--state").arg(self.state());
        let child = command
            .args(["node", "run"])
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.daemon = Some(child);
        let start = Instant::now();
        while !self.run(&["status"]).status.success() {
            let daemon = self.daemon.as_mut().unwrap();
            if let Some(status) = daemon.try_wait().unwrap() {
                panic!("the daemon ended ({status}):\n{}", self.log());
            }
            assert!(start.elapsed() < LIMIT, "no answer:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&mut self, signal: &str) -> std::process::ExitStatus {
        let mut daemon = self.daemon.take().expect("it runs");
        let id = daemon.id().to_string();
        Command::new("kill").args([signal, &id]).status().unwrap();
        let start = Instant::now();
        loop {
            if let Some(status) = daemon.try_wait().unwrap() {
                return status;
            }
            if start.elapsed() > LIMIT {
                let _ = daemon.kill();
                panic!("the daemon does not end on {signal}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// An orderly end.
    pub fn stop(&mut self) {
        let status = self.signal("-TERM");
        assert!(status.success(), "{status}:\n{}", self.log());
    }

    /// kill -9.
    pub fn crash(&mut self) {
        self.signal("-KILL");
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = lockstep();
        command.arg("--state").arg(self.state());
        command.args(arguments).output().unwrap()
    }

    /// Runs a command that must succeed; its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let out = self.run(arguments);
        let (stdout, stderr) = texts(&out);
        assert!(
            out.status.success(),
            "lockstep {arguments:?}: {}\n{stdout}{stderr}\n{}",
            out.status,
            self.log()
        );
        stdout
    }

    /// Runs a command that must end with `exit`; its standard error.
    pub fn fails(&self, exit: i32, arguments: &[&str]) -> String {
        let out = self.run(arguments);
        let (stdout, stderr) = texts(&out);
        assert_eq!(
            out.status.code(),
            Some(exit),
            "lockstep {arguments:?}\n{stdout}{stderr}\n{}",
            self.log()
        );
        stderr
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Temporary names and ports out of a text, so that it can be compared.
    pub fn clean(&self, text: &str) -> String {
        text.replace(&self.dir.path().display().to_string(), "DIR")
            .replace(&self.port.to_string(), "PORT")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // What a killed daemon leaves behind, or a failed test.
        for dir in ["mnt", "other"] {
            let dir = self.path(dir);
            if mounted(&dir).is_some() {
                let _ = crate::testkit::command("umount")
                    .arg("-l")
                    .arg(&dir)
                    .status();
            }
        }
    }
}

/// What is mounted on a directory: source and options.
pub fn mounted(dir: &Path) -> Option<(String, String)> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let dir = dir.to_str().unwrap();
    let line = table
        .lines()
        .rev()
        .find(|l| l.split(' ').nth(1) == Some(dir))?;
    let words: Vec<&str> = line.split(' ').collect();
    Some((words[0].to_owned(), words[3].to_owned()))
}

pub fn texts(out: &Output) -> (String, String) {
    (
        String::from_utf8_lossy(&out.stdout).into_owned(),
        String::from_utf8_lossy(&out.stderr).into_owned(),
    )
}

/// Compares with the golden file, or writes it when LOCKSTEP_BLESS is set.
pub fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/cli/golden")
        .join(name);
    if std::env::var_os("LOCKSTEP_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == found,
        "{} differs; LOCKSTEP_BLESS=1 writes it anew. Found:\n{found}\nExpected:\n{expected}",
        path.display()
    );
}
