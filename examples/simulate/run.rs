//! One run, from its script to its verdict; and the shortest script that still fails.
//!
//! Owns the end of a run: faults stop, everything must come to INSYNC and be equal in bounded time. A violation is a
//! panic, the product's own assertions included; it is caught here and nowhere else.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use states::State;

use super::drive;
use super::files;
use super::image;
use super::node::Host;
use super::script::{Numbers, Script};
use super::tally::Tally;
use super::world::World;

/// Simulated time within which everything is in sync once faults have stopped.
const LIVENESS: Duration = Duration::from_secs(1800);

/// What broke, and what happened before.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Begins with the name of the invariant.
    pub message: String,
    pub trace: Vec<String>,
}

fn text(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => match panic.downcast::<&'static str>() {
            Ok(text) => (*text).to_string(),
            Err(_) => "a panic without words".to_string(),
        },
    }
}

/// Runs a script to its end.
pub fn run(script: &Script) -> (Tally, Option<Violation>) {
    let mut world = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let world = world.insert(World::new(script));
        for step in &script.steps {
            world.perform(step);
        }
        finish(world, script.seed);
    }));
    let violation = outcome.err().map(|panic| Violation {
        message: text(panic),
        trace: world
            .iter()
            .flat_map(|world| world.trace.iter().cloned())
            .collect(),
    });
    let mut tally = world.as_ref().map(|w| w.tally.clone()).unwrap_or_default();
    tally.runs = 1;
    // Objects of a run that failed in the middle of something may not be fit to be dropped.
    if violation.is_some() {
        std::mem::forget(world);
    }
    (tally, violation)
}

fn settled(world: &mut World) -> bool {
    (0..world.volumes.len()).all(|v| {
        let now = world.now;
        if world.masters(v).len() != 1 {
            return false;
        }
        let Some(n) = world.master_of(v) else {
            return false;
        };
        let Some(Host::Master(host)) = world.host(n, v) else {
            return false;
        };
        let shared = host.open.shared.clone();
        if shared.fs.failure().is_some() {
            // What it shows may never be committed: the operator restarts it.
            return false;
        }
        let at = shared.journal.last_committed();
        let nobody_waits = host.syncs.lock().waiting.is_empty() && host.writing.is_none();
        let peers: Vec<usize> = host.drivers.keys().copied().collect();
        let insync = host.drivers.values().all(|driver| {
            let status = driver.mirror.status(now);
            status.state == State::InSync && status.txid_acked == status.txid_committed
        });
        // What a sync mirror has, it shows once it has heard that its master has it too.
        let shown = |world: &mut World, peer: usize| match world.host(peer, v) {
            Some(Host::Mirror(host)) => shared.log_position(host.follower.applied()) == at,
            _ => false,
        };
        let all = peers.len() == world.volumes[v].shape.mirrors.len();
        all && nobody_waits && insync && peers.into_iter().all(|peer| shown(world, peer))
    })
}

fn finish(world: &mut World, seed: u64) {
    world.calm();
    let until = world.now + LIVENESS;
    let mut operate_at = world.now;
    while world.now < until {
        if operate_at <= world.now {
            world.operate();
            operate_at = world.now + Duration::from_secs(5);
        }
        let ms = world.random.below(40) + 1;
        world.round(ms);
        if !settled(world) {
            continue;
        }
        // What was not committed yet is, now; then once more.
        let quiet = (0..world.volumes.len()).all(|v| world.sync_all(v));
        if quiet {
            (0..world.volumes.len()).for_each(|v| world.one_master(v));
            equal(world);
            at_rest(world, seed);
            return;
        }
    }
    let mut states = Vec::new();
    for v in 0..world.volumes.len() {
        let now = world.now;
        let Some(n) = world.master_of(v) else {
            states.push(format!("v{v} has no master"));
            continue;
        };
        if let Some(Host::Master(host)) = world.host(n, v) {
            for (peer, driver) in &host.drivers {
                let status = driver.mirror.status(now);
                let waiting = host.syncs.lock().waiting.len();
                let held = host.writing.is_some();
                states.push(format!(
                    "v{v} n{n}->n{peer} is {} ({}), {} of {}, {waiting} syncs wait, a change is held back: {held}",
                    status.state, status.reason, status.txid_acked, status.txid_committed
                ));
            }
        }
    }
    panic!(
        "I6: not in sync half an hour after the last fault: {}",
        states.join("; ")
    );
}

/// Everything is equal, block by block and file by file.
fn equal(world: &mut World) {
    for v in 0..world.volumes.len() {
        let Some(n) = world.master_of(v) else {
            continue;
        };
        let Some(Host::Master(host)) = world.host(n, v) else {
            continue;
        };
        let shared = host.open.shared.clone();
        let peers: Vec<usize> = host.drivers.keys().copied().collect();
        let expected = world.volumes[v].lines.of(n).golden.lock().files().clone();
        let who = format!("the master n{n} of v{v}");
        files::compare(&shared.fs, &expected, "I2", &who)
            .unwrap_or_else(|error| panic!("I2: {error}"));
        drive::sound(&shared.journal, &who);
        let blocks = shared.volume.blocks_count();
        let at = shared.journal.last_committed();
        world.volumes[v]
            .lines
            .of(n)
            .golden
            .lock()
            .compare(&shared.journal, blocks, at, None, &who);
        for peer in peers {
            let Some(Host::Mirror(host)) = world.host(peer, v) else {
                panic!("I6: n{peer} does not serve v{v}");
            };
            let fs = host
                .follower
                .fs()
                .unwrap_or_else(|| panic!("I6: n{peer}'s copy of v{v} is not open"));
            // Ids that an opening skipped name the state before it.
            let applied = shared.log_position(host.follower.applied());
            assert_eq!(applied, at, "I2: n{peer} is in sync");
            let who = format!("n{peer}'s copy of v{v}");
            let golden = Arc::clone(&world.volumes[v].lines.of(n).golden);
            let compared = golden.lock().compare(fs.journal(), blocks, at, None, &who);
            files::compare(&fs, &expected, "I2", &who)
                .unwrap_or_else(|error| panic!("I2: {error}"));
            world.tally.check("block of two equal copies", compared);
        }
    }
}

/// Every node stops; on a sample, e2fsck looks at every copy.
fn at_rest(world: &mut World, seed: u64) {
    for n in 0..world.nodes.len() {
        world.stop(n);
    }
    if !seed.is_multiple_of(8) {
        return;
    }
    for n in 0..world.nodes.len() {
        for (v, home) in &world.nodes[n].homes {
            if home.facts.stored().is_none() {
                continue;
            }
            let parts: Vec<_> = home.parts.iter().map(|part| part.snapshot()).collect();
            if let Some(complaints) = image::complaints(&parts) {
                panic!("I3: e2fsck of n{n}'s copy of v{v} at rest:\n{complaints}");
            }
            world.tally.check("copy at rest by e2fsck", 1);
        }
    }
}

/// The numbers of the steps without which the run no longer fails for the same reason.
pub fn shrink(script: &Script, violation: &Violation, budget: usize) -> Numbers {
    let same = |message: &str| rule(message) == rule(&violation.message);
    let mut left = budget;
    let mut fails = |keep: &Numbers| {
        if left == 0 {
            return false;
        }
        left -= 1;
        let (_, found) = run(&script.keep(keep));
        found.is_some_and(|found| same(&found.message))
    };
    let mut keep = Numbers((0..script.steps.len()).collect());
    // Whole kinds of steps first, then ever smaller pieces.
    for (kind, _) in super::script::Kind::ALL {
        let without = Numbers(
            keep.0
                .iter()
                .copied()
                .filter(|n| script.steps[*n].kind != *kind)
                .collect(),
        );
        if without.0.len() < keep.0.len() && fails(&without) {
            keep = without;
        }
    }
    let mut size = keep.0.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < keep.0.len() {
            let mut shorter = keep.clone();
            let end = (at + size).min(keep.0.len());
            shorter.0.drain(at..end);
            if fails(&shorter) {
                keep = shorter;
            } else {
                at = end;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    keep
}

/// The name of the invariant with which a message begins.
pub fn rule(message: &str) -> &str {
    message.split(':').next().unwrap_or(message)
}
