//! `lockstep demo`: everything on this machine, in a temporary directory, with a figure at each step.
//!
//! Owns what it starts and makes, and takes all of it away again, also after Ctrl-C and after a failure. Speaks to its
//! daemons as any operator does: through commands and the control protocol. Where nothing can be mounted it does without
//! mounts, and without daemons.

mod faults;
mod interrupt;
mod nodes;
mod place;
mod relay;
mod report;
mod sizes;
mod source;
mod steps;
mod story;
mod walk;
mod writer;

use super::Failed;
use super::args::DemoArgs;
use super::exit::Exit;
use crate::node::mounts::trouble_mounting;
use place::Place;
use sizes::Sizes;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Runs the demonstration.
pub fn run(args: &DemoArgs) -> Result<Exit, Failed> {
    for program in ["mke2fs", "e2fsck"] {
        if nodes::find(program).is_none() {
            return Err(Failed::new(
                Exit::Refused,
                format!("{program} is not installed"),
                "apt install e2fsprogs",
            ));
        }
    }
    let interrupt = interrupt::Interrupt::listen()?;
    let sizes = Sizes::of(args.size);
    let place = Place::new(sizes.room())?;
    let trial = place.path().join("trial");
    std::fs::create_dir(&trial).map_err(|e| Failed::here(trial.display(), e))?;
    let trouble = trouble_mounting(&trial);
    std::fs::remove_dir(&trial).map_err(|e| Failed::here(trial.display(), e))?;
    match trouble {
        Some(why) => walk::walk(args.keep, sizes, place, interrupt, &why),
        None => story::tell(args.keep, sizes, place, interrupt),
    }
}

/// A promise that was not kept.
fn broken(what: impl Into<String>) -> Failed {
    Failed::new(
        Exit::Failure,
        what,
        "this is an error in lockstep; lockstep demo --keep leaves what there is to be looked at",
    )
}

/// What e2fsck says of a copy that nobody has open.
fn fsck(part: &Path) -> Result<(), Failed> {
    let out = Command::new("e2fsck")
        .env("PATH", nodes::search_path(None))
        .env("LC_ALL", "C")
        .arg("-fn")
        .arg(part)
        // Ctrl-C is for this process alone: a check that it ends would be taken for damage.
        .process_group(0)
        .output()
        .map_err(|e| {
            Failed::new(
                Exit::Failure,
                format!("e2fsck: {e}"),
                "apt install e2fsprogs",
            )
        })?;
    if out.status.success() {
        return Ok(());
    }
    eprintln!("{}", String::from_utf8_lossy(&out.stdout));
    Err(broken(format!("e2fsck finds {} damaged", part.display())))
}
