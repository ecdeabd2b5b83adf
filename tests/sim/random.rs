//! Random walks: everything that can happen to two nodes, in random order, from a seed. A failing run names its seed;
//! `LOCKSTEP_SIM_FROM=SEED LOCKSTEP_SIM_SEEDS=1 cargo test --release --test sim random` replays it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use lockstepfs::fs::{FallocMode, FsError, New, RenameFlags, SetAttr};
use lockstepfs::mirror::master::Request;
use lockstepfs::units::Ino;
use states::State;

use crate::world::World;

const ROOT: Ino = Ino(2);

/// What the workload knows.
#[derive(Default)]
struct Known {
    /// Files whose contents a sync acknowledged, and that nobody touched since.
    durable: BTreeMap<String, Vec<u8>>,
    /// Files written since the last sync.
    fresh: BTreeMap<String, Vec<u8>>,
    /// How many of the counted files were made.
    counted: u64,
    /// How many of these a sync covers.
    counted_durable: u64,
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str, default: u64| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let from = number("LOCKSTEP_SIM_FROM", 1);
    from..from + number("LOCKSTEP_SIM_SEEDS", 12)
}

#[test]
fn random_walks_keep_the_invariants() {
    for seed in seeds() {
        let walked = catch_unwind(AssertUnwindSafe(|| walk(seed, false)));
        if let Err(panic) = walked {
            eprintln!(
                "seed {seed} failed: LOCKSTEP_SIM_FROM={seed} LOCKSTEP_SIM_SEEDS=1 cargo test --release --test sim random"
            );
            std::panic::resume_unwind(panic);
        }
    }
}

/// A mirror that acknowledges before its flush is done must be found out.
#[test]
fn acknowledging_before_the_flush_is_found() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = (1..40).any(|seed| {
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| walk(seed, true))) else {
            return false;
        };
        // For the right reason, not for any.
        let message = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        message.contains("was acknowledged, the mirror has")
    });
    std::panic::set_hook(quiet);
    assert!(
        found,
        "forty seeds did not find a mirror that acknowledges before it flushes"
    );
}

fn bytes_of(world: &World, len: u64) -> Vec<u8> {
    let start = world.random.next_u64();
    (0..len)
        .map(|i| (start.wrapping_add(i * 0x9e37_79b9) >> 7) as u8)
        .collect()
}

fn check_present(world: &World, known: &Known) {
    let fs = world.fs();
    for (name, contents) in &known.durable {
        let attr = fs
            .lookup(ROOT, name.as_bytes())
            .unwrap_or_else(|error| panic!("{name} was acknowledged and is gone: {error}"));
        let mut bytes = vec![0; contents.len() + 1];
        let read = fs.read(attr.ino, attr.generation, 0, &mut bytes).unwrap();
        assert!(
            bytes[..read] == contents[..],
            "{name} was acknowledged and is different"
        );
    }
    for n in 0..known.counted_durable {
        fs.lookup(ROOT, format!("count-{n}").as_bytes())
            .unwrap_or_else(|error| panic!("count-{n} was acknowledged and is gone: {error}"));
    }
}

/// What the mirror shows is a state that the master had: of the files made one after the other, a prefix.
fn check_prefix(world: &World, known: &Known) {
    let Some(fs) = world.follower.as_ref().and_then(|follower| follower.fs()) else {
        return;
    };
    let has = |n: u64| fs.lookup(ROOT, format!("count-{n}").as_bytes()).is_ok();
    let shown = (0..known.counted)
        .find(|n| !has(*n))
        .unwrap_or(known.counted);
    for n in shown..known.counted {
        assert!(!has(n), "the mirror shows count-{n} but not count-{shown}");
    }
}

fn work(world: &World, known: &mut Known) {
    let fs = world.fs();
    let random = &world.random;
    let new = New {
        mode: 0o100644,
        ..New::default()
    };
    let name = format!("f{}", random.below(24));
    let result: Result<(), FsError> = (|| {
        match random.below(10) {
            0 => {
                fs.create(ROOT, format!("count-{}", known.counted).as_bytes(), &new)?;
                known.counted += 1;
            }
            1..=4 => {
                let ino = match fs.lookup(ROOT, name.as_bytes()) {
                    Ok(attr) => attr.ino,
                    Err(_) => fs.create(ROOT, name.as_bytes(), &new)?.ino,
                };
                known.durable.remove(&name);
                known.fresh.remove(&name);
                let len = match random.below(3) {
                    0 => random.below(6000) + 1,
                    1 => random.below(200_000) + 1,
                    _ => random.below(1 << 20) + 1,
                };
                let contents = bytes_of(world, len);
                fs.setattr(
                    ino,
                    &SetAttr {
                        size: Some(0),
                        ..SetAttr::default()
                    },
                )?;
                fs.write(ino, 0, &contents)?;
                known.fresh.insert(name.clone(), contents);
            }
            5 | 6 => {
                // An overwrite in the middle of what is there.
                let attr = fs.lookup(ROOT, name.as_bytes())?;
                known.durable.remove(&name);
                if let Some(contents) = known.fresh.get_mut(&name) {
                    let at = random.below(attr.size.max(1));
                    let bytes = bytes_of(world, random.below(60_000) + 1);
                    fs.write(attr.ino, at, &bytes)?;
                    let end = at as usize + bytes.len();
                    contents.resize(contents.len().max(end), 0);
                    contents[at as usize..end].copy_from_slice(&bytes);
                }
            }
            7 => {
                known.durable.remove(&name);
                known.fresh.remove(&name);
                fs.unlink(ROOT, name.as_bytes())?;
            }
            8 => {
                let to = format!("f{}", random.below(24));
                known.durable.remove(&name);
                known.durable.remove(&to);
                known.fresh.remove(&name);
                known.fresh.remove(&to);
                let flags = RenameFlags::default();
                fs.rename(ROOT, name.as_bytes(), ROOT, to.as_bytes(), flags)?;
            }
            _ => {
                let attr = fs.lookup(ROOT, name.as_bytes())?;
                known.durable.remove(&name);
                known.fresh.remove(&name);
                let mode = match random.below(3) {
                    0 => FallocMode::PunchHole,
                    1 => FallocMode::ZeroRange { keep_size: false },
                    _ => FallocMode::Allocate { keep_size: true },
                };
                fs.fallocate(
                    attr.ino,
                    mode,
                    random.below(200_000),
                    random.below(200_000) + 1,
                )?;
            }
        }
        Ok(())
    })();
    match result {
        Ok(()) | Err(FsError::Refused(_) | FsError::NoSpace) => {}
        Err(error) => panic!("an operation failed: {error}"),
    }
}

fn sync(world: &World, known: &mut Known) {
    world.fs().sync().unwrap();
    known.durable.append(&mut known.fresh);
    known.counted_durable = known.counted;
}

fn walk(seed: u64, planted: bool) {
    let mut world = World::new(seed, (6 + seed % 6) << 20);
    world.set_lying_mirror(planted);
    let mut known = Known::default();
    for _ in 0..10 {
        work(&world, &mut known);
    }
    world.create_mirror();
    for _ in 0..250 {
        for _ in 0..world.random.below(4) {
            work(&world, &mut known);
        }
        for _ in 0..world.random.below(6) {
            world.step();
        }
        if world.random.chance(20) {
            sync(&world, &mut known);
        }
        match world.random.below(60) {
            0 => world.cut_link(),
            1..=3 => world.cut = false,
            4 if world.state() != State::Idle && world.state() != State::Error => {
                world.request(Request::Pause);
            }
            5..=7 if world.state() == State::Idle => world.request(Request::Continue),
            8 => {
                known.fresh.clear();
                let before = known.counted;
                world.crash_master();
                world.start_master();
                check_present(&world, &known);
                // Those that were not acknowledged may be gone: count on from what is there.
                known.counted = (0..before)
                    .find(|n| {
                        world
                            .fs()
                            .lookup(ROOT, format!("count-{n}").as_bytes())
                            .is_err()
                    })
                    .unwrap_or(before);
                known.counted_durable = known.counted_durable.min(known.counted);
            }
            9 => {
                world.crash_mirror();
                world.start_mirror();
            }
            10 => {
                sync(&world, &mut known);
                world.restart_master();
                check_present(&world, &known);
            }
            11 => world.restart_mirror(),
            12 if world.state() != State::Idle => world.request(Request::Restart),
            _ => {}
        }
        check_prefix(&world, &known);
        if !planted {
            world.check_now();
        }
    }
    // Faults stop: everything must reach INSYNC and be equal.
    world.cut = false;
    if world.state() == State::Idle {
        world.request(Request::Continue);
    }
    sync(&world, &mut known);
    world.settle();
    world.assert_equal();
    check_present(&world, &known);
    check_prefix(&world, &known);
    if !planted {
        world.check_parts(seed % 4 == 1);
    }
}
