//! Frames between nodes: a fixed prefix, an rkyv header, a raw payload; versions and limits.

pub mod message;
