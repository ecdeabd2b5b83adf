//! Two nodes, for real: daemons as child processes, a real link, real mounts, copies that e2fsck and the kernel judge.
//!
//! Sized to run in minutes; `LOCKSTEP_FULL=1` gives volumes, trees and rounds their full sizes. What a test needs and does
//! not find, it says, and is skipped (a failure with `LOCKSTEP_NO_SKIP=1`).

#[path = "../testkit/mod.rs"]
mod testkit;

mod cluster;
mod copies;
mod daemon;
mod sizes;
mod writer;

mod adopted;
mod cases;
mod commands;
mod crack;
mod crowd;
mod cut;
mod faults;
mod first_copy;
mod handover;
mod killed;
mod modes;
mod mounts;
mod oracles;
mod recipe;
mod reconnect;
mod roles;
mod severe;
mod stopped;
mod trunk;
mod visible;
