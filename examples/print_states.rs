//! Prints what every event does in every state of a mirror; with `--dot`, the drawing for Graphviz.
//!
//!     cargo run --example print_states
//!     cargo run --example print_states -- --dot | dot -Tsvg -o replication.svg

use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut text = String::new();
    match std::env::args().nth(1).as_deref() {
        None => states::listing::write_listing(&mut text)?,
        Some("--dot") => states::listing::write_drawing(&mut text)?,
        Some(other) => {
            return Err(format!("unknown argument {other}: try --dot, or nothing").into());
        }
    }
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
