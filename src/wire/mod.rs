//! Frames between nodes: a fixed prefix, an rkyv header, a raw payload; versions and limits.
//!
//! Owns the bytes that two nodes exchange. Never opens a socket and never waits: callers bring readers and writers.

pub mod frame;

pub mod control;

pub mod message;
