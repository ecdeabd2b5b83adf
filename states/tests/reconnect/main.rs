//! The reconnect decision, proved: every small case against an independent statement of the rules, and the stories that
//! the rules are for.

mod exhaustive;
mod oracle;
mod stories;
