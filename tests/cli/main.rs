//! The command line from outside: help, exit status, output, man pages, and daemons that are really run.

mod daemon;
mod golden;
mod man;
mod node;
