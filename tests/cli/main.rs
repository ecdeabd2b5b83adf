//! The command line from outside: help, exit status, output, man pages, and daemons that are really run.

#[path = "../testkit/mod.rs"]
mod testkit;

mod checked;
mod daemon;
mod golden;
mod man;
mod mounts;
mod node;
mod replicate;
