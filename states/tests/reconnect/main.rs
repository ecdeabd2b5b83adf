//! The reconnect decision, proved: every small case against an independent statement of the rules, and the stories that
//! the rules are for.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod exhaustive;
mod oracle;
mod stories;
