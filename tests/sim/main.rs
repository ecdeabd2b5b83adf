//! Simulation: the real engine, journal, sequencer, follower, bulk replicator and dirty maps on simulated disks, clocks
//! and links, single-threaded, from a seed. Nothing of the product is replaced but the devices. Directed walks of two nodes
//! (`world`), and the simulator of `examples/simulate` with everything that can go wrong.

#[path = "../testkit/mod.rs"]
mod testkit;

mod world;

mod basic;

mod sync;

mod held;
mod outside;
mod promoted;
mod random;
mod staged;
mod threads;

mod reopened;
mod simulate;

mod walks;

#[cfg(feature = "planted")]
mod planted;
