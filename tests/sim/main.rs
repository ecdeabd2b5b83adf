//! Simulation: the real engine, journal, sequencer, follower, bulk replicator and dirty maps on simulated disks, clocks
//! and links, single-threaded, from a seed. Nothing of the product is replaced but the devices.

mod world;

mod basic;

mod sync;

mod random;
mod staged;
