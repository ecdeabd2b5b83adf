//! What holds for the sources as a whole, and for what the tests share.

#[path = "../testkit/mod.rs"]
mod testkit;

mod kit;
