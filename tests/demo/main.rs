//! `lockstep demo`, as anybody would run it: as root, as an ordinary user, where nothing can be mounted. It ends well,
//! says what it shows, and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "../testkit/mod.rs"]
mod testkit;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testkit::{command, need_fuse, need_root, need_tool, said, wait_until};

/// The whole of it takes less than 60 s with a larger tree on a machine with nothing else to do.
const SECONDS: &str = "240";
/// What everything is begun with.
const SIZE: &str = "16M";

/// A directory for temporary files of its own, on a disk: what is left behind is seen.
fn place() -> TempDir {
    let builder = &mut tempfile::Builder::new();
    let dir = builder
        .prefix("demo-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"));
    dir.unwrap()
}

fn demo(place: &Path, arguments: &[&str]) -> Command {
    let mut demo = command("timeout");
    demo.args(["-k", "30", SECONDS, env!("CARGO_BIN_EXE_lockstep")])
        .args(["demo", "--size", SIZE])
        .args(arguments)
        .env("TMPDIR", place)
        .env_remove("LOCKSTEP_STATE");
    demo
}

/// Processes whose command line names a path below `place`.
fn processes(place: &Path) -> Vec<String> {
    let place = place.to_str().unwrap();
    let entries = std::fs::read_dir("/proc").unwrap();
    let lines = entries.filter_map(|e| std::fs::read(e.unwrap().path().join("cmdline")).ok());
    let lines = lines.map(|l| String::from_utf8_lossy(&l).replace('\0', " "));
    lines.filter(|l| l.contains(place)).collect()
}

fn mounts(place: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let place = place.to_str().unwrap();
    let lines = table.lines().filter(|l| l.contains(place));
    lines.map(str::to_owned).collect()
}

fn left_in(place: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place).unwrap();
    entries.map(|e| e.unwrap().path()).collect()
}

#[track_caller]
fn assert_nothing_left(place: &TempDir) {
    assert_eq!(mounts(place.path()), Vec::<String>::new());
    assert_eq!(processes(place.path()), Vec::<String>::new());
    assert_eq!(left_in(place.path()), Vec::<PathBuf>::new());
}

#[track_caller]
fn assert_says(text: &str, all: &[&str]) {
    for what in all {
        assert!(text.contains(what), "{what:?} is not in:\n{text}");
    }
}

#[test]
fn it_shows_everything_and_leaves_nothing_behind() {
    if !need_fuse() || !need_tool("mke2fs") {
        return;
    }
    let place = place();
    let out = demo(place.path(), &[]).output().unwrap();
    let text = said(&out);
    assert!(out.status.success(), "{}\n{text}", out.status);
    assert_says(
        &text,
        &[
            " 1  two nodes",
            " 4  first copy    NEW INIT MAKEPARTS READY REPLICATE INSYNC",
            "read-only file system",
            " 6  live changes",
            " 7  pause",
            " 8  link cut",
            "replayed from the log, 0 bytes copied",
            "OUTOFSYNC, then INSYNC",
            "provoked: beta checks its copy with an e2fsck that is made to wait",
            "RESET after",
            "11  verify        equal,",
            "e2fsck -fn finds both copies clean",
            "STEP",
        ],
    );
    assert_nothing_left(&place);
}

/// A mount namespace whose /dev has only these devices, for everybody; the command to be run follows. What that leaves
/// mounted there is an error. Copies of mounts that others have outside are taken out first: they would keep those alive.
fn with_devices(names: &str) -> Command {
    let script = "umount -alt fuse,fuse.lockstep; mount -t tmpfs none /dev && for d in $DEVICES; do case $d in \
        null) n='1 3' ;; urandom) n='1 9' ;; fuse) n='10 229' ;; esac; \
        mknod /dev/$d c $n && chmod 666 /dev/$d || exit 90; done; \"$@\"; status=$?; \
        ! grep -F \"$TMPDIR/lockstep-demo\" /proc/self/mountinfo || exit 91; exit $status";
    let mut unshare = command("unshare");
    unshare.args(["-m", "sh", "-c", script, "sh"]);
    unshare.env("DEVICES", names);
    unshare
}

#[test]
fn without_a_fuse_device_it_says_so_and_does_without_mounts() {
    if !need_root() || !need_tool("unshare") || !need_tool("mke2fs") {
        return;
    }
    let place = place();
    let demo = demo(place.path(), &[]);
    let mut unshare = with_devices("null urandom");
    unshare.arg(demo.get_program()).args(demo.get_args());
    let out = unshare.env("TMPDIR", place.path()).output().unwrap();
    let text = said(&out);
    assert!(out.status.success(), "{}\n{text}", out.status);
    assert_says(
        &text,
        &[
            "No mounts: /dev/fuse",
            "NEW INIT MAKEPARTS READY REPLICATE INSYNC",
            "replayed from the log, 0 bytes copied",
            "OUTOFSYNC, then INSYNC",
            "provoked: beta is made to answer that it is busy: RESET (",
            "verify        equal,",
            "e2fsck -fn finds both copies clean",
        ],
    );
    assert_nothing_left(&place);
}

/// Root of a container: there may be a /dev/fuse, and yet mount(2) is not permitted, nor to fusermount3.
fn without_privilege() -> Command {
    let mut setpriv = command("setpriv");
    setpriv.args(["--bounding-set", "-sys_admin"]);
    setpriv
}

#[test]
fn a_fuse_device_that_is_of_no_use_is_found_out() {
    if !need_root() || !need_fuse() || !need_tool("setpriv") || !need_tool("mke2fs") {
        return;
    }
    let place = place();
    let mut refused = without_privilege();
    let demo = demo(place.path(), &["--keep"]);
    refused.arg(demo.get_program()).args(demo.get_args());
    let out = refused.env("TMPDIR", place.path()).output().unwrap();
    let text = said(&out);
    assert!(out.status.success(), "{}\n{text}", out.status);
    assert_says(&text, &["No mounts: mounting on", "both copies clean"]);
    assert_eq!(mounts(place.path()), Vec::<String>::new());
    assert_eq!(processes(place.path()), Vec::<String>::new());
    // What is kept is what was shown: two copies for any ext4 tool.
    let kept = left_in(place.path()).pop().unwrap();
    for name in ["alpha.img", "beta.img"] {
        let mut debugfs = command("debugfs");
        let listed = debugfs.args(["-R", "ls -p /paused"]).arg(kept.join(name));
        let listed = said(&listed.output().unwrap());
        assert!(listed.contains("/0099/"), "{name}: {listed}");
    }
}

#[test]
fn kept_nodes_go_on_until_they_are_ended() {
    if !need_fuse() || !need_tool("mke2fs") {
        return;
    }
    let place = place();
    let out = demo(place.path(), &["--keep"]).output().unwrap();
    let text = said(&out);
    let kill = text.lines().find_map(|l| l.trim().strip_prefix("kill "));
    let (pids, _) = kill.and_then(|k| k.split_once(';')).unwrap_or_default();
    let pids: Vec<Pid> = pids
        .split(' ')
        .filter_map(|p| Pid::from_raw(p.parse().ok()?))
        .collect();
    let tried = (|| {
        let dir = left_in(place.path()).pop()?;
        std::fs::write(dir.join("alpha/mnt/hello"), "hello").ok()?;
        let there = dir.join("beta/mnt/hello");
        let shown = wait_until(Duration::from_secs(20), || {
            std::fs::read(&there).is_ok_and(|c| c == b"hello")
        });
        Some((shown, mounts(place.path()).len()))
    })();
    // Whatever is found: nothing of it may outlive the test.
    for pid in &pids {
        let _ = kill_process(*pid, Signal::TERM);
    }
    let gone = wait_until(Duration::from_secs(40), || {
        processes(place.path()).is_empty()
    });
    assert!(out.status.success(), "{}\n{text}", out.status);
    assert_eq!(pids.len(), 2, "{text}");
    assert!(gone, "{:?}", processes(place.path()));
    assert_eq!(tried, Some((true, 2)), "{text}");
    assert_eq!(mounts(place.path()), Vec::<String>::new());
}

/// Ctrl-C as soon as `begun`. `demo` becomes the demonstration by exec, without a timeout in between: the signal goes to
/// it alone.
#[track_caller]
fn interrupt(mut demo: Command, place: &TempDir, begun: impl Fn() -> bool) {
    let mut demo = demo
        .args(["demo", "--size", SIZE])
        .env("TMPDIR", place.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = wait_until(Duration::from_secs(60), begun);
    kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
    let mut ended = None;
    let over = wait_until(Duration::from_secs(60), || {
        ended = demo.try_wait().unwrap();
        ended.is_some()
    });
    if !over {
        demo.kill().unwrap();
    }
    let mut text = String::new();
    demo.stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert!(begun && over, "{text}");
    assert_eq!(ended.and_then(|s| s.code()), Some(1), "{text}");
    assert_says(&text, &["interrupted"]);
    assert_nothing_left(place);
}

#[test]
fn an_interrupt_cleans_up() {
    if !need_fuse() || !need_tool("mke2fs") {
        return;
    }
    let place = place();
    let demo = Command::new(env!("CARGO_BIN_EXE_lockstep"));
    interrupt(demo, &place, || !mounts(place.path()).is_empty());
}

#[test]
fn an_interrupt_cleans_up_in_the_middle_of_a_first_copy() {
    if !need_fuse() || !need_tool("mke2fs") {
        return;
    }
    let place = place();
    let demo = Command::new(env!("CARGO_BIN_EXE_lockstep"));
    interrupt(demo, &place, || {
        let dir = left_in(place.path()).pop();
        dir.is_some_and(|d| d.join("beta/store/data/part0").exists())
    });
}

#[test]
fn an_interrupt_cleans_up_without_mounts() {
    if !need_root() || !need_tool("setpriv") || !need_tool("mke2fs") {
        return;
    }
    let place = place();
    let mut demo = without_privilege();
    demo.arg(env!("CARGO_BIN_EXE_lockstep"));
    interrupt(demo, &place, || {
        let dir = left_in(place.path()).pop();
        dir.is_some_and(|d| d.join("beta.img").exists())
    });
}

/// Nobody's mounts are made by fusermount3, and taken away by it.
#[test]
fn as_an_ordinary_user() {
    let tools = ["setpriv", "unshare", "mke2fs", "fusermount3"];
    if !need_root() || !need_fuse() || !tools.into_iter().all(need_tool) {
        return;
    }
    // Where that user gets to, and may write.
    let place = tempfile::Builder::new().prefix("demo-").tempdir().unwrap();
    let program = place.path().join("lockstep");
    std::fs::copy(env!("CARGO_BIN_EXE_lockstep"), &program).unwrap();
    let tmp = place.path().join("tmp");
    std::fs::create_dir(&tmp).unwrap();
    for dir in [place.path(), &tmp] {
        std::os::unix::fs::chown(dir, Some(65534), Some(65534)).unwrap();
    }
    let mut demo = with_devices("null urandom fuse");
    let out = demo
        .arg("timeout")
        .args([
            "-k", "30", SECONDS, "setpriv", "--reuid", "65534", "--regid", "65534",
        ])
        .arg("--clear-groups")
        .arg(&program)
        .args(["demo", "--size", SIZE])
        .env("TMPDIR", &tmp)
        .env("HOME", &tmp)
        .output()
        .unwrap();
    let text = said(&out);
    assert!(out.status.success(), "{}\n{text}", out.status);
    assert_says(
        &text,
        &[
            " 1  two nodes",
            "read-only file system",
            "RESET after",
            "both copies clean",
        ],
    );
    assert_eq!(left_in(&tmp), Vec::<PathBuf>::new());
    assert_eq!(processes(&tmp), Vec::<String>::new());
}
