//! `lockstep demo`: everything on this machine, in a temporary directory, with a figure at each step.
//!
//! Owns what it starts and makes, and takes all of it away again, also after Ctrl-C and after a failure. Speaks to its
//! daemons as any operator does: through commands and the control protocol.

mod faults;
mod interrupt;
mod nodes;
mod place;
mod relay;
mod report;
mod sizes;
mod source;
mod story;
mod writer;

use super::Failed;
use super::args::DemoArgs;
use super::exit::Exit;

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
    story::tell(args, interrupt)
}
