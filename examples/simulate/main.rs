//! Simulates Lockstep: whole nodes in one thread, on simulated disks, clocks and links, with everything going wrong that can
//! go wrong, from a seed. A run that breaks an invariant is cut short and printed as one line that replays it.
//!
//!     cargo run --release --example simulate -- [--seeds N] [--from SEED] [--seconds S] [--roles] [--keep STEPS]
//!
//! Ends after N seeds or S seconds, whichever is first; exits with 1 when an invariant was violated.

mod device;
mod dispute;
mod drive;
mod files;
mod force;
mod golden;
mod image;
mod lines;
mod lost;
mod net;
mod node;
mod policy;
mod roles;
mod run;
mod script;
mod switchover;
mod sync;
mod tally;
mod verbs;
mod world;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use script::{Numbers, Script};
use tally::Tally;

/// Runs that a failing script is shortened with, at most.
const SHRINK: usize = 400;

/// Simulates Lockstep, with faults, from seeds.
#[derive(Parser)]
#[command(name = "simulate")]
struct Options {
    /// End after this many seeds.
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// The first seed.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    from: u64,
    /// End after this many seconds.
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// Only these steps of the script, as a failing run prints them.
    #[arg(long, value_name = "STEPS")]
    keep: Option<Numbers>,
    /// With promotions, rejoins and switchovers as well.
    #[arg(long)]
    roles: bool,
    /// Do not shorten a run that fails.
    #[arg(long)]
    no_shrink: bool,
    /// Plant a bug, by its name (with the feature `planted`).
    #[cfg(feature = "planted")]
    #[arg(long, value_name = "NAME")]
    plant: Option<String>,
    /// Go on after a run that fails.
    #[arg(long)]
    go_on: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let seeds = match (options.seeds, options.seconds) {
        (Some(seeds), _) => seeds,
        (None, Some(_)) => u64::MAX,
        (None, None) => 100,
    };
    let began = Instant::now();
    let over = |n: u64| {
        let late = |s| began.elapsed() >= Duration::from_secs(s);
        n >= seeds || options.seconds.is_some_and(late)
    };
    // What the product has to say, for somebody who replays a run: RUST_LOG=debug.
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off")),
        )
        .with_ansi(false)
        .without_time()
        .with_writer(std::io::stderr)
        .init();
    std::panic::set_hook(Box::new(|_| {}));
    #[cfg(feature = "planted")]
    lockstepfs::units::planted::plant(options.plant.as_deref().map(|name| {
        let known = lockstepfs::units::planted::ALL.iter();
        known
            .copied()
            .find(|known| *known == name)
            .expect("one of the names in units/planted.rs")
    }));
    let mut total = Tally::default();
    let mut violations = 0;
    let mut n = 0;
    while !over(n) {
        let seed = options.from + n;
        n += 1;
        let mut script = Script::new(seed, options.roles);
        if let Some(keep) = &options.keep {
            script = script.keep(keep);
        }
        let (tally, violation) = run::run(&script);
        total.add(&tally);
        let Some(violation) = violation else { continue };
        violations += 1;
        for line in &violation.trace {
            println!("    {line}");
        }
        println!("seed {seed}: {}", violation.message);
        let keep = match (&options.keep, options.no_shrink) {
            (Some(keep), _) => keep.to_string(),
            (None, true) => String::new(),
            (None, false) => run::shrink(&script, &violation, SHRINK).to_string(),
        };
        let keep = match keep.is_empty() {
            true => String::new(),
            false => format!(" --keep {keep}"),
        };
        let roles = if options.roles { " --roles" } else { "" };
        println!(
            "replay: cargo run --release --example simulate -- --from {seed} --seeds 1{roles}{keep}"
        );
        if !options.go_on {
            break;
        }
    }
    println!("{total}");
    println!(
        "{violations} violations in {:.0} s",
        began.elapsed().as_secs_f64()
    );
    match violations {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
