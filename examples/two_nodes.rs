//! Two nodes in one process: a volume, its mirror, a link that is cut. No daemon, no mount, no privileges; the engine, the
//! journal and the replication are the real ones, over files in a temporary directory.
//!
//!     cargo run --release --example two_nodes

use std::error::Error;
use std::time::Duration;

use lockstepfs::node::pair::Pair;

/// Everything here takes less.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let mut pair = Pair::create(dir.path(), 128 << 20, 8 << 20)?;

    pair.make_dir("letters")?;
    pair.write("letters/first", 0, b"written before there was a mirror")?;
    pair.create_mirror()?;
    pair.settle(LIMIT)?;
    for change in pair.changes() {
        println!("{:>9}  {}", change.to.word(), change.why);
    }
    show(&pair, "letters/first")?;

    // One transaction at a time, in the master's order.
    pair.write("letters/second", 0, b"written while the mirror follows")?;
    pair.settle(LIMIT)?;
    show(&pair, "letters/second")?;

    // The journal keeps what the mirror lacks; nothing is copied again.
    let copied = pair.status()?.bytes_bulk;
    pair.cut()?;
    pair.write("letters/third", 0, b"written while the link was cut")?;
    pair.sync()?;
    println!(
        "link cut: the mirror has {:?}",
        pair.read_mirror("letters/third")?
    );
    pair.mend();
    pair.settle(LIMIT)?;
    show(&pair, "letters/third")?;
    let status = pair.status()?;
    println!(
        "{} bytes were copied at first, {} later; {} were replayed in order",
        copied,
        status.bytes_bulk - copied,
        status.bytes_sequenced
    );

    let verdict = pair.verify(LIMIT)?;
    println!(
        "verify: {} blocks compared, {} ranges differ",
        verdict.blocks,
        verdict.differing.len()
    );
    Ok(pair.close()?)
}

fn show(pair: &Pair, path: &str) -> Result<(), Box<dyn Error>> {
    let bytes = pair.read_mirror(path)?.ok_or("it is not there")?;
    println!("on the mirror, {path}: {}", String::from_utf8_lossy(&bytes));
    Ok(())
}
