//! A staged resync: the copy stays what it was until one switch, wherever that is cut.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use lockstepfs::io::sim::Fault;
use lockstepfs::mirror::master::Request;
use lockstepfs::units::{Ino, Txid};
use lockstepfs::volume::facts::FactStore;
use states::State;

use crate::world::World;

const ROOT: Ino = Ino(2);
const MIB: usize = 1 << 20;

/// A volume with a file of 16 MiB, and a mirror that has nothing yet.
fn created(seed: u64) -> (World, Ino) {
    let mut world = World::new(seed, 8 << 20);
    let ino = world.file("f", &vec![1; 16 * MIB]);
    world.create_mirror();
    (world, ino)
}

/// A mirror that cracked while it was paused: 12 MiB of a file were overwritten, and it goes on now.
fn cracked(seed: u64) -> World {
    let (mut world, ino) = created(seed);
    crack(&mut world, ino);
    world
}

fn crack(world: &mut World, ino: Ino) {
    world.settle();
    world.request(Request::Pause);
    for n in 0..12 {
        world.fs().write(ino, n << 20, &vec![2; MIB]).unwrap();
        world.fs().sync().unwrap();
        world.step();
    }
    assert!(world.mirror.as_ref().unwrap().status(world.now()).cracked);
    world.request(Request::Continue);
    world.until(State::OutOfSync);
}

/// What the mirror shows of the file: one byte a MiB, which are all alike in a state that the master had.
fn shown(world: &World) -> Option<Vec<u8>> {
    let fs = world.follower.as_ref()?.fs()?;
    let attr = fs.lookup(ROOT, b"f").unwrap();
    let byte = |n: u64| {
        let mut byte = [0];
        fs.read(attr.ino, attr.generation, n << 20, &mut byte)
            .unwrap();
        byte[0]
    };
    Some((0..12).map(byte).collect())
}

fn bulk(world: &World) -> u64 {
    let status = world.mirror.as_ref().unwrap().status(world.now());
    status.bytes_bulk
}

#[test]
fn the_old_state_is_readable_until_the_new_one_is() {
    let mut world = cracked(41);
    let withdrawn = world.withdrawn;
    let before = bulk(&world);
    let mut seen = 0;
    while world.state() == State::OutOfSync {
        if world.withdrawn == withdrawn {
            assert_eq!(shown(&world).unwrap(), [1; 12]);
            seen += 1;
        }
        world.step();
    }
    assert!(seen > 10, "looked {seen} times");
    world.settle();
    world.assert_equal();
    assert_eq!(shown(&world).unwrap(), [2; 12]);
    assert!(bulk(&world) - before < 13 << 20);
}

#[test]
fn a_lost_link_leaves_the_old_state_and_the_next_resync_brings_all() {
    for steps in (0..80).step_by(9) {
        let mut world = cracked(42);
        for _ in 0..steps {
            world.step();
        }
        world.cut_link();
        if let Some(shown) = shown(&world) {
            assert!(shown == [1; 12] || shown == [2; 12], "{shown:?}");
        }
        world.cut = false;
        world.settle();
        world.assert_equal();
    }
}

/// If the mirror is promoted before the switch, this side will have to give up what it filled the freed blocks with.
#[test]
fn what_is_freed_while_a_resync_is_staged_is_recorded() {
    let mut world = World::new(47, 8 << 20);
    world.file("freed", &vec![1; MIB]);
    let large = world.file("large", &vec![1; 16 * MIB]);
    world.create_mirror();
    crack(&mut world, large);
    let slot = Arc::clone(world.mirror.as_ref().unwrap().slot());
    let before = bulk(&world);
    while bulk(&world) < before + (2 << 20) {
        world.step();
    }
    world.fs().unlink(ROOT, b"freed").unwrap();
    world.fs().sync().unwrap();
    let shared = world.master.as_ref().unwrap().shared.clone();
    let freed = shared.journal.last_committed();
    while slot.state.lock().acked < freed {
        world.step();
        assert_eq!(world.state(), State::OutOfSync);
    }
    let ranges = shared.journal.load_transaction(freed).unwrap().freed;
    assert!(!ranges.is_empty());
    for range in ranges {
        let map = &mut slot.state.lock().map;
        let recorded = map.next_set(range.start, range.len).unwrap();
        assert_eq!(recorded, Some(range));
    }
    world.settle();
    world.assert_equal();
}

#[test]
fn a_mirror_that_cracks_again_gets_what_was_given_up_before_though_the_log_still_has_it() {
    for steps in 0..40 {
        let mut world = World::new(46, 8 << 20);
        let ino = world.file("f", &vec![1; 4 * MIB]);
        world.create_mirror();
        world.settle();
        world.cut_link();
        for n in 2..6 {
            world.fs().write(ino, 0, &vec![n; MIB / 2]).unwrap();
            world.fs().sync().unwrap();
        }
        world.crack();
        world.cut = false;
        world.until(State::OutOfSync);
        for _ in 0..steps {
            world.step();
        }
        world.crack();
        world.settle();
        world.assert_equal();
    }
}

#[test]
fn without_room_it_goes_home_directly() {
    let mut world = cracked(44);
    // The room is gone when it is to be used: this session ends, the next one goes home.
    world.cut_link();
    world.staging.room.store(0, Ordering::Relaxed);
    world.cut = false;
    world.until(State::OutOfSync);
    for _ in 0..8 {
        world.step();
    }
    assert!(
        shown(&world).is_none(),
        "it is not consistent, and not shown"
    );
    world.settle();
    world.assert_equal();
}

#[test]
fn the_switch_may_be_cut_at_any_write() {
    let mut cuts = 0;
    for writes in 0.. {
        let mut world = cracked(45);
        let disk = Arc::clone(&world.mirror_parts.disk);
        // Nothing goes to the parts before the switch.
        disk.inject(Fault::WritesAfter(writes));
        while world.state() == State::OutOfSync {
            world.step();
        }
        if world.state() == State::InSync {
            break;
        }
        cuts += 1;
        world.crash_mirror();
        disk.heal();
        world.start_mirror();
        let shown = shown(&world).expect("old or new, but a state that the master had");
        assert!(shown == [1; 12] || shown == [2; 12], "{writes}: {shown:?}");
        if world.state() == State::Error {
            world.request(Request::Restart);
        }
        world.settle();
        world.assert_equal();
    }
    assert!(cuts > 5, "{cuts} cuts");
}

#[test]
fn a_crack_at_any_step_of_a_resync_is_made_good_on_the_same_link() {
    for steps in (0..64).step_by(3) {
        let mut world = cracked(46);
        for _ in 0..steps {
            world.step();
        }
        let in_sync = world.state() == State::InSync;
        let shared = world.master.as_ref().unwrap().shared.clone();
        let ino = shared.fs.lookup(ROOT, b"f").unwrap().ino;
        for n in 0..12 {
            shared.fs.write(ino, n << 20, &vec![3; MIB / 4]).unwrap();
        }
        shared.fs.sync().unwrap();
        world.crack();
        let links = world.trace.len();
        world.settle();
        world.assert_equal();
        let lost = world.trace[links..]
            .iter()
            .any(|(_, to, _)| *to == State::LinkDown);
        assert!(
            !lost || in_sync,
            "{steps} steps: {:#?}",
            &world.trace[links..]
        );
    }
}

#[test]
fn what_changes_while_it_is_under_way_is_sent_again_and_nothing_else_is() {
    for steps in 0..32 {
        let mut world = cracked(47);
        let shared = world.master.as_ref().unwrap().shared.clone();
        let ino = shared.fs.lookup(ROOT, b"f").unwrap().ino;
        let overwrite = |at: u64, with: u8| {
            shared.fs.write(ino, at, &vec![with; MIB / 4]).unwrap();
            shared.fs.sync().unwrap();
        };
        let before = bulk(&world);
        // Nothing of the pass is acknowledged while what is behind its cursor is marked again.
        world.mute = true;
        while bulk(&world) < before + 5 * MIB as u64 {
            world.step();
        }
        overwrite(0, 3);
        world.crack();
        for _ in 0..steps {
            world.step();
        }
        overwrite(9 * MIB as u64, 4);
        for _ in 0..4 {
            world.step();
        }
        world.mute = false;
        while world.hear() {}
        world.settle();
        world.assert_equal();
        let sent = bulk(&world) - before;
        assert!(sent < 13 * MIB as u64, "{steps} steps: {sent} bytes");
    }
}

/// The copy is made, or repaired, at home, and this has begun.
fn half_made(mut world: World) -> World {
    world.cut_link();
    world.staging.room.store(0, Ordering::Relaxed);
    world.cut = false;
    let begun = |world: &World| {
        let facts = world.mirror_facts.load();
        facts.is_ok_and(|facts| facts.consistent_at == Txid(u64::MAX))
    };
    while !begun(&world) {
        world.step();
    }
    world
}

/// Every opening finds a map in the place of the lost one, but the first.
#[test]
fn a_lost_map_is_known_to_be_lost_until_the_copy_was_compared() {
    for (file, orderly) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut world = half_made(cracked(25));
        world.cut_link();
        world.crash_master();
        world.maps.lose("b", file);
        world.start_master();
        for _ in 0..2 {
            match orderly {
                true => world.restart_master(),
                false => {
                    world.crash_master();
                    world.start_master();
                }
            }
        }
        world.cut = false;
        world.settle();
        world.assert_equal();
        // Once is enough.
        let before = world.trace.len();
        world.restart_master();
        world.settle();
        let again = |(_, to, _): &(State, State, String)| *to == State::OutOfSync;
        assert!(!world.trace[before..].iter().any(again));
    }
}

/// A crack that is in the map, more that could not be, and, once power had failed, others that are again. Where all are, over
/// orderly restarts, the map is enough.
#[test]
fn a_map_with_a_gap_in_it_is_not_believed_though_it_reaches_to_the_end() {
    for fails in [false, true] {
        let mut world = World::new(26, 8 << 20);
        let ino = world.file("f", &vec![1; 4 * MIB]);
        world.create_mirror();
        world.settle();
        world.cut_link();
        let crack = |world: &World, at: u64| {
            world.fs().write(ino, at << 20, &vec![2; MIB / 4]).unwrap();
            world.fs().sync().unwrap();
            world.crack();
        };
        crack(&world, 0);
        let map = world.maps.of("b");
        if fails {
            map.inject(Fault::WritesAfter(0));
        }
        // Round the log: the facts know how far the mirror's place is.
        (0..40).for_each(|n| crack(&world, 1 + n.min(1)));
        for _ in 0..2 {
            match fails {
                true => {
                    world.crash_master();
                    map.heal();
                    world.start_master();
                }
                false => world.restart_master(),
            }
            crack(&world, 3);
        }
        world.cut = false;
        world.settle();
        world.assert_equal();
        let rule = if fails { "rule 5" } else { "rule 6" };
        let by =
            |(_, to, why): &(State, State, String)| *to == State::OutOfSync && why.contains(rule);
        assert!(world.trace.iter().any(by), "{:#?}", world.trace);
    }
}

#[test]
fn a_mirror_made_again_over_a_half_repaired_copy_gets_what_only_the_old_map_knew() {
    let mut world = half_made(cracked(281));
    let master = world.master.clone().unwrap();
    master.add_mirror("c", None).unwrap();
    drop(master);
    world.delete_mirror().unwrap();
    world.cut = false;
    world.create_mirror();
    world.settle();
    world.assert_equal();
}

/// The master of a half-made copy loses its power, and with it what it had marked last.
fn forgets_its_marks(begun: fn() -> World) {
    for (steps, later) in (0..32).flat_map(|steps| (1..5).map(move |later| (steps, later))) {
        let mut world = half_made(begun());
        let shared = world.master.as_ref().unwrap().shared.clone();
        let ino = shared.fs.lookup(ROOT, b"f").unwrap().ino;
        shared.fs.write(ino, 0, &vec![3; MIB / 4]).unwrap();
        shared.fs.sync().unwrap();
        world.crack();
        for _ in 0..steps {
            world.step();
        }
        // Behind what is marked: not sent before the cursor comes there. The acknowledgement of its transaction is lost.
        world.mute = true;
        shared.fs.write(ino, 14 << 20, &vec![4; MIB / 4]).unwrap();
        shared.fs.sync().unwrap();
        for _ in 0..later {
            world.step();
        }
        drop(shared);
        world.crash_master();
        world.mute = false;
        world.start_master();
        world.settle();
        world.assert_equal();
    }
}

#[test]
fn a_half_made_repair_whose_master_forgets_its_newest_marks_gets_what_they_said() {
    forgets_its_marks(|| cracked(488));
}

#[test]
fn a_half_made_first_copy_whose_master_forgets_its_newest_marks_gets_what_they_said() {
    forgets_its_marks(|| created(488).0);
}
