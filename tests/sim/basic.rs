//! The walk from NEW to INSYNC, and what can come in between.

use std::sync::Arc;

use lockstepfs::fs::New;
use lockstepfs::io::sim::Fault;
use lockstepfs::mirror::master::Request;
use lockstepfs::units::Ino;
use states::State;

use crate::world::World;

const ROOT: Ino = Ino(2);

fn file(world: &World, name: &str, bytes: &[u8]) -> Ino {
    let new = New {
        mode: 0o100644,
        ..New::default()
    };
    let attr = world.fs().create(ROOT, name.as_bytes(), &new).unwrap();
    world.fs().write(attr.ino, 0, bytes).unwrap();
    attr.ino
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

#[test]
fn a_first_copy_and_live_changes() {
    let mut world = World::new(1, 8 << 20);
    for n in 0..20 {
        file(&world, &format!("early-{n}"), &pattern(n, 50_000));
    }
    world.fs().sync().unwrap();
    world.create_mirror();
    world.until(State::Replicate);
    for n in 0..20 {
        file(&world, &format!("during-{n}"), &pattern(n, 70_000));
        world.step();
    }
    world.settle();
    world.assert_equal();
    for n in 0..50 {
        file(
            &world,
            &format!("live-{n}"),
            &pattern(n, 3000 * usize::from(n) + 1),
        );
        if n % 3 == 0 {
            world
                .fs()
                .unlink(ROOT, format!("early-{}", n / 3).as_bytes())
                .unwrap();
        }
        world.step();
    }
    world.settle();
    world.assert_equal();
    let copy = world.follower.as_ref().unwrap().fs().unwrap();
    let attr = copy.lookup(ROOT, b"live-49").unwrap();
    let mut bytes = vec![0; 200_000];
    let read = copy.read(attr.ino, attr.generation, 0, &mut bytes).unwrap();
    assert_eq!(bytes[..read], pattern(49, 3000 * 49 + 1));
    assert!(copy.lookup(ROOT, b"early-0").is_err());
}

#[test]
fn a_link_cut_is_healed_by_replay() {
    let mut world = World::new(2, 8 << 20);
    let ino = file(&world, "f", &pattern(1, 300_000));
    world.create_mirror();
    world.settle();
    let bulk = world
        .mirror
        .as_ref()
        .unwrap()
        .status(world.now())
        .bytes_bulk;
    world.cut_link();
    assert_eq!(world.state(), State::LinkDown);
    for n in 0..10u8 {
        world
            .fs()
            .write(ino, u64::from(n) * 4096, &pattern(n + 100, 4096))
            .unwrap();
        world.fs().sync().unwrap();
        file(&world, &format!("new-{n}"), &pattern(n, 100_000));
        world.step();
    }
    world.cut = false;
    world.settle();
    world.assert_equal();
    assert_eq!(
        world
            .mirror
            .as_ref()
            .unwrap()
            .status(world.now())
            .bytes_bulk,
        bulk
    );
}

#[test]
fn a_crack_is_mended_from_the_dirty_map() {
    let mut world = World::new(3, 8 << 20);
    let ino = file(&world, "f", &pattern(1, 24 << 20));
    world.create_mirror();
    world.settle();
    world.request(Request::Pause);
    assert_eq!(world.state(), State::Idle);
    for n in 0..20u64 {
        world
            .fs()
            .write(ino, n << 20, &pattern(n as u8 + 50, 1 << 20))
            .unwrap();
        world.fs().sync().unwrap();
        world.step();
    }
    assert!(world.mirror.as_ref().unwrap().status(world.now()).cracked);
    let before = world.mirror.as_ref().unwrap().status(world.now());
    world.request(Request::Continue);
    world.until(State::OutOfSync);
    world.settle();
    world.assert_equal();
    let after = world.mirror.as_ref().unwrap().status(world.now());
    let sent = after.bytes_bulk - before.bytes_bulk;
    assert!(
        ((20 << 20)..(23 << 20)).contains(&sent),
        "{sent} bytes for 20 MiB of changes"
    );
    assert!(!after.cracked);
}

#[test]
fn either_node_may_lose_power() {
    let mut world = World::new(4, 8 << 20);
    let ino = file(&world, "f", &pattern(1, 300_000));
    world.create_mirror();
    world.settle();
    let bulk = world
        .mirror
        .as_ref()
        .unwrap()
        .status(world.now())
        .bytes_bulk;
    for round in 0..6u8 {
        world
            .fs()
            .write(ino, 4096 * u64::from(round), &pattern(round, 5000))
            .unwrap();
        file(&world, &format!("r{round}"), &pattern(round, 60_000));
        world.fs().sync().unwrap();
        for _ in 0..round {
            world.step();
        }
        file(&world, &format!("unsynced{round}"), &pattern(round, 60_000));
        if round % 2 == 0 {
            world.crash_master();
            world.start_master();
        } else {
            world.crash_mirror();
            world.start_mirror();
        }
        world.settle();
        world.assert_equal();
        let status = world.mirror.as_ref().unwrap().status(world.now());
        let expected = if round == 0 { 0 } else { status.bytes_bulk };
        assert_eq!(
            status.bytes_bulk, expected,
            "round {round}: {:#?}",
            world.trace
        );
        let _ = bulk;
    }
}

#[test]
fn a_failing_disk_on_the_mirror_stops_only_the_mirror() {
    for fault in [Fault::WritesAfter(2), Fault::FlushesAfter(0)] {
        let mut world = World::new(5, 8 << 20);
        let ino = file(&world, "f", &pattern(1, 300_000));
        world.create_mirror();
        world.settle();
        let disk = Arc::clone(&world.mirror_parts.disk);
        disk.inject(fault);
        for n in 0..5u8 {
            let at = u64::from(n) * 4096;
            world.fs().write(ino, at, &pattern(n, 4096)).unwrap();
            world.fs().sync().unwrap();
            for _ in 0..20 {
                world.step();
            }
        }
        world.until(State::Error);
        let status = world.mirror.as_ref().unwrap().status(world.now());
        assert!(
            status.reason.contains("disk of the mirror's node"),
            "{}",
            status.reason
        );
        disk.heal();
        world.request(Request::Restart);
        world.settle();
        world.assert_equal();
        assert_eq!(
            world
                .mirror
                .as_ref()
                .unwrap()
                .status(world.now())
                .bytes_bulk,
            status.bytes_bulk,
            "what it had is used again"
        );
    }
}

#[test]
fn a_local_write_never_fails_for_what_a_mirror_still_needs() {
    let mut world = World::new(6, 8 << 20);
    file(&world, "first", &pattern(1, 50 << 20));
    world.create_mirror();
    world.settle();
    world.request(Request::Pause);
    world.fs().unlink(ROOT, b"first").unwrap();
    world.fs().sync().unwrap();
    // There is room for this only where the mirror's copy of the first file is.
    let ino = file(&world, "second", &[]);
    for at in 0..50u64 {
        let written = world.fs().write(ino, at << 20, &pattern(at as u8, 1 << 20));
        assert_eq!(written.unwrap(), 1 << 20);
    }
    world.fs().sync().unwrap();
    assert!(world.mirror.as_ref().unwrap().status(world.now()).cracked);
    world.request(Request::Continue);
    world.settle();
    world.assert_equal();
}

#[test]
fn a_master_that_loses_power_again_and_again_only_replays() {
    for seed in 0..12 {
        let mut world = World::new(100 + seed, 8 << 20);
        // Also on a volume on which nothing was ever committed.
        if seed % 2 == 0 {
            file(&world, "f", &pattern(1, 100_000));
        }
        world.create_mirror();
        world.settle();
        for round in 0..12u8 {
            for n in 0..world.random.below(6) {
                file(&world, &format!("r{round}-{n}"), &pattern(round, 40_000));
                if world.random.chance(50) {
                    world.fs().sync().unwrap();
                }
                for _ in 0..world.random.below(12) {
                    world.step();
                }
            }
            world.crash_master();
            world.start_master();
            if world.random.chance(60) {
                world.settle();
                world.assert_equal();
                let status = world.mirror.as_ref().unwrap().status(world.now());
                assert_eq!(
                    status.bytes_bulk, 0,
                    "seed {seed}, round {round}: {:#?}",
                    world.trace
                );
            }
        }
    }
}

#[test]
fn a_mirror_made_again_has_what_was_overwritten_while_there_was_none() {
    let mut world = World::new(7, 8 << 20);
    let ino = file(&world, "f", &pattern(1, 300_000));
    world.create_mirror();
    world.settle();
    world.delete_mirror().unwrap();
    // Straight home, and in no transaction.
    world.fs().write(ino, 0, &pattern(9, 200_000)).unwrap();
    world.fs().sync().unwrap();
    world.cut = false;
    world.create_mirror();
    world.settle();
    world.assert_equal();
}

#[test]
fn a_mirror_that_loses_power_before_its_first_transaction_only_replays() {
    let mut world = World::new(8, 8 << 20);
    file(&world, "f", &pattern(1, 300_000));
    world.create_mirror();
    world.settle();
    let before = world.mirror.as_ref().unwrap().status(world.now());
    world.crash_mirror();
    world.start_mirror();
    world.settle();
    world.assert_equal();
    let after = world.mirror.as_ref().unwrap().status(world.now());
    assert_eq!(after.bytes_read, before.bytes_read, "{:#?}", world.trace);
    assert!(
        world.trace.iter().all(|(_, to, _)| *to != State::OutOfSync),
        "{:#?}",
        world.trace
    );
}
