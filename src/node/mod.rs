//! The daemon: catalogue, control socket, mounts, roles, events, TLS keys.
//!
//! Owns threads and timers, with `fuse` the only layer that does. Never decides about replication: it drives the step
//! functions of `mirror` and does what they ask for.

pub mod refusal;

mod staging;
pub mod state_dir;

pub mod config;

pub mod keys;

pub mod catalogue;

pub mod history;

pub mod tls;

pub mod trunk;

pub mod link;

pub mod trunks;

pub mod listen;

pub mod protocol;

pub mod control;

pub mod peers;

pub mod mounts;

pub mod host;

pub mod registry;

mod tools;

mod stores;

mod lost;

mod timer;

pub mod driver;

pub mod master;

pub mod follow;

pub mod engine;

mod verify;

mod roles;

mod volumes;

mod mirrors;

mod requests;

mod metrics;

pub mod daemon;

pub mod pair;

#[cfg(test)]
mod link_tests;

#[cfg(test)]
mod trunk_tests;
