//! What holds for the sources as a whole, and for what the tests share. Each rule has a positive control: a text that
//! breaks it and must be found.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

#[path = "../testkit/mod.rs"]
mod testkit;

mod kit;
mod layers;
mod manifest;
mod rules;
mod source;
