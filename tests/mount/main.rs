//! The engine mounted for real, and judged by programs that nobody here wrote: file system exercisers, POSIX suites, a
//! database, the kernel's ext4 and e2fsck. Needs root, FUSE and loop devices.

#[path = "../testkit/mod.rs"]
mod testkit;

mod rig;

mod exercisers;
mod killed;
mod names;
mod requests;
mod room;
mod semantics;
mod trees;
