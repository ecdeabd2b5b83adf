//! What the test binaries share: asking for what a test needs, making and checking images, mounting them with the
//! kernel, comparing trees, network namespaces. Knows nothing of the product: what it says of an image is somebody else's
//! word. Everything made here goes away when its guard is dropped, also by a panic.
//!
//! A binary includes it with `#[path = "../testkit/mod.rs"] mod testkit;`. A test that needs what is not everywhere begins
//! with `if !testkit::need_loop() { return; }`.

#![allow(dead_code, reason = "no test binary uses all of it")]

pub mod image;
pub mod mount;
pub mod net;
pub mod populate;
pub mod tree;

#[allow(unused_imports, reason = "no test binary uses all of it")]
pub use {
    image::{
        DEBIAN_12, FEATURE_SETS, FeatureSet, LEGACY, e2fsck, join_parts, mke2fs, mke2fs_with,
        recover_journal, split_parts,
    },
    mount::LoopMount,
    net::{Namespace, Namespaces},
    populate::{Rng, mutate_tree, populate_tree},
    tree::{Compare, Tree, tree_digest},
};

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Says loudly that a test does not run; fails it where nothing may be skipped (`LOCKSTEP_NO_SKIP=1`).
pub fn skip(why: &str) {
    let strict = std::env::var_os("LOCKSTEP_NO_SKIP").is_some_and(|v| v == "1");
    assert!(!strict, "LOCKSTEP_NO_SKIP=1, and {why}");
    let test = std::thread::current();
    // Past the harness, which swallows what a passing test prints.
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED {}: {why}",
        test.name().unwrap_or("test")
    );
}

/// Whether the test may go on: it has what it needs, or says that it is skipped.
#[must_use]
pub fn need(what: bool, why: &str) -> bool {
    if !what {
        skip(why);
    }
    what
}

/// Whether the test runs as root.
#[must_use]
pub fn need_root() -> bool {
    need(is_root(), "it needs root")
}

/// Whether FUSE file systems can be mounted.
#[must_use]
pub fn need_fuse() -> bool {
    let device = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    need(device.is_ok(), "it needs /dev/fuse")
        && need(
            is_root() || find("fusermount3").is_some(),
            "it needs root or fusermount3",
        )
}

/// Whether images can be mounted by the kernel through a loop device.
#[must_use]
pub fn need_loop() -> bool {
    need_root()
        && need(
            Path::new("/dev/loop-control").exists(),
            "it needs loop devices",
        )
        && need_tool("losetup")
        && need_tool("mke2fs")
}

/// Whether network namespaces can be made.
#[must_use]
pub fn need_netns() -> bool {
    need_root()
        && need(
            Path::new("/proc/self/ns/net").exists(),
            "it needs network namespaces",
        )
        && need_tool("ip")
        && need_tool("nsenter")
}

/// Whether a program is installed.
#[must_use]
pub fn need_tool(name: &str) -> bool {
    need(find(name).is_some(), &format!("it needs {name}"))
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where a program is; sbin is looked into whatever PATH says.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A command for a program, with messages in English and nothing to read.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(find(name).unwrap_or_else(|| name.into()));
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Runs a program, killing it after `seconds`; its output, or what went wrong.
pub fn run_for<S: AsRef<OsStr>>(seconds: u32, name: &str, args: &[S]) -> Result<Output, String> {
    let program = find(name).ok_or_else(|| format!("{name} is not installed"))?;
    command("timeout")
        .args(["-k", "5", &seconds.to_string()])
        .arg(program)
        .args(args)
        .output()
        .map_err(|e| format!("{name}: {e}"))
}

/// Runs a program to its successful end; what it printed.
pub fn run<S: AsRef<OsStr>>(name: &str, args: &[S]) -> Result<String, String> {
    let out = run_for(60, name, args)?;
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        Err(format!("{name}: {}: {}", out.status, said(&out)))
    }
}

/// Everything that a program printed.
pub fn said(out: &Output) -> String {
    let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&out.stderr));
    text
}

/// Looks again until `done` or the deadline; whether it is done. For what the kernel or another process finishes in
/// its own time and gives no event for.
#[must_use]
pub fn wait_until(deadline: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
