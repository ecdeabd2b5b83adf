//! Lockstep: a file-system-level replicator for Linux.
//!
//! A master serves an ext4 volume through FUSE and logs every transaction into the volume's jbd2 journal; mirrors follow
//! the same log. Layers, lowest first; imports point down only (`tests/tidy` holds the table of allowed edges).

pub mod units;

pub mod io;

pub mod volume;

pub mod ext4;

pub mod journal;

pub mod fs;

pub mod wire;

pub mod mirror;

pub mod fuse;

pub mod node;

pub mod cli;
