//! Changes of role that power interrupts, at any write and flush. A node that is promoted is a mirror still, with a state
//! that its master had, or the master, with all of it; and the command may be given again. One that steps back shows
//! nothing on the way that no master confirmed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lockstepfs::io::sim::Fault;
use lockstepfs::io::{Clock, Disk};
use lockstepfs::mirror::MirrorError;
use lockstepfs::mirror::master::Request;
use lockstepfs::mirror::open::{MapStore, MasterOptions, OpenMaster, open_master};
use lockstepfs::mirror::policy::{Resync, SyncMode, Wishes};
use lockstepfs::mirror::roles::{
    CopyStanding, StepBack, Stepped, before_repair, doubts, is_whole, master_facts,
};
use lockstepfs::units::{Generation, Ino, Txid};
use lockstepfs::volume::Volume;
use lockstepfs::volume::facts::{FactStore, Facts, Lineage, NOTHING, Role};
use states::{Cause, State};

use crate::outside::half_made;
use crate::world::{BLOCK, World};

/// A mirror, in sync mode, that has transactions of which it was not told that they are committed: the first ones of a
/// master that was opened again. Its master is gone.
fn unconfirmed(seed: u64) -> World {
    let mut world = World::new(seed, 8 << 20);
    let file = |world: &World, name: &str| world.file(name, &vec![seed as u8; 60_000]);
    file(&world, "first");
    world.create_mirror();
    world.mirror.as_mut().unwrap().set_wishes(Wishes {
        mode: Some(SyncMode::Sync),
        ..Wishes::default()
    });
    world.settle();
    file(&world, "second");
    world.settle();
    world.restart_master();
    world.committing = true;
    world.until(State::InSync);
    let shared = world.master.as_ref().unwrap().shared.clone();
    shared.journal.on_prepared(Some(Box::new(|| {})));
    for n in 0..8 {
        file(&world, &format!("f{n}"));
    }
    let commit = shared.fs.begin_commit().unwrap().unwrap();
    for _ in 0..16 {
        world.step();
    }
    let follower = world.follower.as_ref().unwrap();
    assert!(follower.durable() == commit.txid() && follower.applied() < commit.txid());
    drop(commit);
    drop(shared);
    world.crash_master();
    world
}

/// Gives up what `theirs`, the history of `master`, lacks: on the master's node, or on the mirror's. The volume is closed.
pub fn step_back(
    world: &World,
    role: Role,
    master: &str,
    theirs: &[Lineage],
    discard: bool,
) -> Result<Stepped, MirrorError> {
    let (node, disk, facts, maps) = match role {
        Role::Master => ("a", &world.master_disk, &world.master_facts, &world.maps),
        Role::Mirror => {
            let disk = &world.mirror_parts.disk;
            ("b", disk, &world.mirror_facts, &world.mirror_maps)
        }
    };
    let disk = Arc::clone(disk) as Arc<dyn Disk>;
    let stepping = StepBack {
        volume: &Arc::new(Volume::new(vec![disk], BLOCK).unwrap()),
        facts: &**facts,
        maps: &**maps,
        lost: &*world.lost,
        node,
        master,
        theirs,
        discard,
    };
    let mut facts = facts.load().unwrap();
    match discard {
        true => stepping.rejoin(&mut facts),
        false => stepping.carry_out(&mut facts),
    }
}

/// The history of one that was promoted after transaction `fork` of the node with these `facts`.
fn promoted_after(facts: &dyn FactStore, fork: Txid) -> Vec<Lineage> {
    let mut theirs = facts.load().unwrap().generations;
    let generation = Generation(77);
    theirs.push(Lineage { generation, fork });
    theirs
}

/// `promote`, as the daemon does it.
fn promote(world: &mut World) -> Result<OpenMaster, MirrorError> {
    if let Some(mut follower) = world.follower.take() {
        follower.close()?;
    }
    let facts = world.mirror_facts.load().unwrap();
    let again = facts.role == Role::Master;
    if !again {
        let stands = CopyStanding::default();
        doubts("a", &facts, stands, false).expect("nothing speaks against it");
    }
    open_promoted(world, facts, again)
}

/// Opens the mirror's copy as the master's, `again` if the facts say that it is.
fn open_promoted(world: &World, facts: Facts, again: bool) -> Result<OpenMaster, MirrorError> {
    let disk = Arc::clone(&world.mirror_parts.disk) as Arc<dyn Disk>;
    let volume = Arc::new(Volume::new(vec![disk], BLOCK).unwrap());
    let peers = BTreeMap::from([("a".to_string(), None)]);
    let maps = Arc::clone(&world.mirror_maps) as Arc<dyn MapStore>;
    let next = match again {
        true => facts,
        false => master_facts(&volume, &facts, &*maps, &peers)?,
    };
    let options = MasterOptions {
        node: "b".to_string(),
        facts: Arc::clone(&world.mirror_facts) as Arc<dyn FactStore>,
        maps,
        clock: Arc::clone(&world.clock) as Arc<dyn Clock>,
        random: Arc::new(world.random.fork()),
        cache_bytes: 8 << 20,
        commit_interval: std::time::Duration::from_secs(1),
    };
    open_master(volume, next, &options)
}

/// What goes wrong with the node while it is promoted.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Write(u32),
    Flush(u32),
    Facts(u32),
}

fn cut_at(cut: Cut) -> bool {
    let (Cut::Write(at) | Cut::Flush(at) | Cut::Facts(at)) = cut;
    let mut world = unconfirmed(10 + u64::from(at));
    let follower = world.follower.as_ref().unwrap();
    let (shown, durable) = (follower.applied(), follower.durable());
    let disk = Arc::clone(&world.mirror_parts.disk);
    match cut {
        Cut::Write(at) => disk.inject(Fault::WritesAfter(at.into())),
        Cut::Flush(at) => disk.inject(Fault::FlushesAfter(at.into())),
        Cut::Facts(at) => world.mirror_facts.fail_saves_after(at),
    }
    let promoted = promote(&mut world).is_ok();
    world.crash_mirror();
    disk.heal();
    world.mirror_facts.fail_saves(false);
    let facts = world.mirror_facts.load().unwrap();
    if facts.role == Role::Mirror {
        // It starts, as what it was.
        world.start_mirror();
        world.check_now();
        let follower = world.follower.as_ref().unwrap();
        assert!(!follower.facts().tainted, "{cut:?}: {:?}", follower.facts());
        assert_eq!(follower.durable(), durable, "{cut:?}");
        assert_eq!(follower.applied(), shown, "{cut:?}: no master confirmed it");
    } else {
        assert!(facts.generations.len() > 2, "{cut:?}: {facts:?}");
    }
    let open = promote(&mut world).unwrap();
    let known = open.shared.facts.lock().peers["a"].clone();
    assert!(
        !known.record.changed_outside,
        "{cut:?}: the others would be compared"
    );
    assert!(open.shared.fork >= durable, "{cut:?}: {}", open.shared.fork);
    let found = open.shared.fs.lookup(Ino(2), b"f7");
    assert!(found.is_ok(), "{cut:?}: what it acknowledged is gone");
    world.master = Some(open);
    world.check_now();
    promoted
}

#[test]
fn a_promotion_that_power_interrupts_leaves_a_mirror_or_a_master_and_may_be_given_again() {
    for kind in [Cut::Write as fn(u32) -> Cut, Cut::Flush, Cut::Facts] {
        let done = (0..400).find(|at| cut_at(kind(*at)));
        assert!(done.is_some_and(|at| at > 1), "{done:?}");
    }
}

/// The mirror steps back for a master that had less than it shows. `true`: it did.
fn steps_back(seed: u64, fault: Option<Fault>) -> bool {
    let mut world = unconfirmed(seed);
    world.lost.expected.store(true, Ordering::Relaxed);
    let mut follower = world.follower.take().unwrap();
    let (shown, durable) = (follower.applied(), follower.durable());
    follower.close().unwrap();
    drop(follower);
    let disk = Arc::clone(&world.mirror_parts.disk);
    fault.into_iter().for_each(|fault| disk.inject(fault));
    let theirs = promoted_after(&*world.mirror_facts, Txid(shown.0 - 1));
    let stepped = step_back(&world, Role::Mirror, "c", &theirs, false);
    world.crash_mirror();
    disk.heal();
    world.acknowledged = 0;
    let facts = world.mirror_facts.load().unwrap();
    if facts.applied >= facts.consistent_at {
        world.start_mirror();
        world.check_now();
        let follower = world.follower.as_ref().unwrap();
        assert_eq!(
            follower.applied(),
            shown,
            "{fault:?}: no master confirmed it"
        );
    }
    if let Err(MirrorError::Refused { detail, .. }) = &stepped {
        panic!("{fault:?}: {detail}");
    }
    if let Ok(stepped) = &stepped {
        assert_eq!((stepped.shared.0, stepped.last), (shown.0 - 1, durable));
        let kept = world.lost.kept.lock();
        let unconfirmed = stepped.kept.iter().find(|id| kept[*id].0.last == durable.0);
        assert!(unconfirmed.is_some(), "{:?}", stepped.kept);
    }
    stepped.is_ok()
}

#[test]
fn a_mirror_that_power_interrupts_while_it_steps_back_shows_nothing_that_was_not_confirmed() {
    for fault in [Fault::WritesAfter as fn(u64) -> Fault, Fault::FlushesAfter] {
        let done = (0..400).find(|at| steps_back(500 + at, Some(fault(*at))));
        assert!(done.is_some_and(|at| at > 1), "{done:?}");
    }
}

/// Two mirrors cracked, one was half repaired when the other was promoted: the old master knows what it changed since by the
/// map of the promoted one, for the other's has lost the blocks that were sent.
#[test]
fn an_old_master_knows_what_it_changed_though_another_mirror_has_half_of_it() {
    let mut world = World::new(90, 8 << 20);
    let write = |world: &World, name: &str| {
        world.file(name, &vec![9; 3 << 20]);
        world.fs().sync().unwrap();
    };
    write(&world, "first");
    world.create_mirror();
    world.mirror.as_mut().unwrap().set_wishes(Wishes {
        resync: Some(Resync::Direct),
        ..Wishes::default()
    });
    world.settle();
    let master = world.master.clone().unwrap();
    let shared = master.shared.clone();
    let promoted = master.add_mirror("c", None).unwrap();
    let fork = shared.journal.last_committed();
    world.cut_link();
    write(&world, "second");
    world.crack();
    let last = shared.journal.last_committed();
    let mut state = promoted.state.lock();
    let crack = state.crack(&shared.journal, promoted.id, shared.generation, last);
    crack.unwrap();
    let marked = state.map.count();
    drop(state);
    world.cut = false;
    world.until(State::OutOfSync);
    let slot = Arc::clone(world.mirror.as_ref().unwrap().slot());
    while slot.state.lock().map.count() + 8 > marked {
        world.step();
    }
    slot.state.lock().map.flush().unwrap();
    assert_eq!(world.state(), State::OutOfSync);
    world.cut_link();
    world.mirror = None;
    world.master.take().unwrap().close().unwrap();
    drop((master, shared, slot, promoted));
    let theirs = promoted_after(&*world.master_facts, fork);
    world.lost.expected.store(true, Ordering::Relaxed);
    let stepped = step_back(&world, Role::Master, "c", &theirs, false).unwrap();
    assert!(
        stepped.dirty_blocks >= marked,
        "{} of {marked} blocks are known",
        stepped.dirty_blocks
    );
}

/// What was overwritten at home while there was no mirror is in no log and in no map.
#[test]
fn a_master_does_not_step_back_by_its_log_over_a_time_without_mirrors() {
    for made_again in [false, true] {
        for orderly in [false, true] {
            let mut world = World::new(91, 8 << 20);
            let first = world.file("first", &[1; 60_000]);
            world.create_mirror();
            world.settle();
            world.delete_mirror().unwrap();
            let master = world.master.clone().unwrap();
            let fork = master.shared.journal.last_committed();
            world.fs().write(first, 0, &[2; 60_000]).unwrap();
            world.fs().sync().unwrap();
            if made_again {
                master.add_mirror("b", None).unwrap();
                world.file("second", &[3; 60_000]);
                world.fs().sync().unwrap();
            }
            drop(master);
            match orderly {
                true => world.master.take().unwrap().close().unwrap(),
                false => world.crash_master(),
            }
            let theirs = promoted_after(&*world.master_facts, fork);
            world.lost.expected.store(true, Ordering::Relaxed);
            let refused = step_back(&world, Role::Master, "b", &theirs, false);
            assert!(
                matches!(&refused, Err(MirrorError::Refused { detail, .. }) if detail.contains("is not recorded any more")),
                "{refused:?}"
            );
            let stepped = step_back(&world, Role::Master, "b", &theirs, true).unwrap();
            assert!(stepped.compare, "{stepped}");
        }
    }
}

/// A repair was cut short on the mirror when another node, which had less, was made the master. The refusal names
/// `rejoin --discard`, and that is enough.
#[test]
fn half_a_repair_is_given_up_for_a_new_master_that_had_less() {
    for seed in 0..4 {
        let mut world = World::new(60 + seed, 8 << 20);
        let write = |world: &World, name: &str| {
            world.file(name, &vec![seed as u8; 3 << 20]);
            world.fs().sync().unwrap();
        };
        write(&world, "first");
        world.create_mirror();
        world.mirror.as_mut().unwrap().set_wishes(Wishes {
            resync: Some(Resync::Direct),
            ..Wishes::default()
        });
        world.settle();
        let (disk, facts) = (
            world.master_disk.snapshot(),
            world.master_facts.load().unwrap(),
        );
        write(&world, "second");
        world.settle();
        world.cut_link();
        write(&world, "third");
        world.crack();
        world.cut = false;
        world.until(State::OutOfSync);
        while world.follower.as_ref().unwrap().is_consistent() {
            world.step();
        }
        if seed % 2 == 1 {
            world.step();
        }
        world.crash_mirror();
        world.start_mirror();
        assert!(!world.follower.as_ref().unwrap().is_consistent());
        world.take_over("c", disk, &facts);
        world.until(State::Error);
        let reason = world.mirror.as_ref().unwrap().status(world.now()).reason;
        assert!(reason.contains("rejoin data c --discard b"), "{reason}");
        // As the refusal says.
        world.follower.take().unwrap().close().unwrap();
        let theirs = world.master_facts.load().unwrap().generations;
        step_back(&world, Role::Mirror, "c", &theirs, true).unwrap();
        world.start_mirror();
        world.request(Request::Restart);
        world.settle();
        world.assert_equal();
        world.check_parts(false);
    }
}

#[test]
fn a_copy_that_was_promoted_half_made_takes_nothing_over() {
    let mut world = half_made(420, false);
    world.follower.take().unwrap().close().unwrap();
    let mut facts = world.mirror_facts.load().unwrap();
    assert!(facts.applied > Txid(0) && !is_whole(&facts));
    {
        let disk = Arc::clone(&world.mirror_parts.disk) as Arc<dyn Disk>;
        let volume = Volume::new(vec![disk], BLOCK).unwrap();
        before_repair(&volume, &mut facts, &*world.mirror_facts).unwrap();
    }
    let promoted = open_promoted(&world, facts, false).unwrap();
    let theirs = promoted.shared.facts.lock().generations.clone();
    assert_eq!(theirs.last().unwrap().fork, NOTHING);
    world.crash_master();
    let had = world.master_disk.snapshot();
    let facts = world.master_facts.load().unwrap();
    let refused = step_back(&world, Role::Master, "b", &theirs, false);
    let Err(MirrorError::Refused { cause, detail }) = refused else {
        panic!("a whole copy is given up for half of one: {refused:?}");
    };
    assert!(cause == Cause::Diverged && detail.contains("half made"));
    assert!(world.master_disk.same_contents(&had));
    assert_eq!(world.master_facts.load().unwrap(), facts);
    // Unless somebody says so.
    let stepped = step_back(&world, Role::Master, "b", &theirs, true).unwrap();
    assert!(stepped.compare);
}

/// Another node may be made the master that lacks what a repair brought before it was cut short: the mirror knows how far
/// that reached, acknowledged or not, though power went.
#[test]
fn how_far_a_repair_reached_is_known_before_anything_of_it_is_home() {
    for power in [false, true] {
        let mut world = World::new(71, 8 << 20);
        let ino = world.file("file", &vec![1; 3 << 20]);
        world.create_mirror();
        world.mirror.as_mut().unwrap().set_wishes(Wishes {
            resync: Some(Resync::Direct),
            ..Wishes::default()
        });
        world.settle();
        let reach = |world: &World| world.follower.as_ref().unwrap().described().reach;
        assert_eq!(reach(&world), 0);
        world.cut_link();
        world.fs().write(ino, 0, &vec![2; 3 << 20]).unwrap();
        world.fs().sync().unwrap();
        world.crack();
        let journal = Arc::clone(&world.master.as_ref().unwrap().shared.journal);
        let last = journal.last_committed().0;
        world.cut = false;
        world.until(State::OutOfSync);
        while world.mirror_facts.load().unwrap().reach == Txid(0) {
            world.step();
        }
        match power {
            true => world.crash_mirror(),
            false => drop(world.follower.take().unwrap().close().unwrap()),
        }
        world.start_mirror();
        let known = reach(&world);
        assert!(known >= last && (power || known == last), "{known} {last}");
        world.settle();
        assert_eq!(world.mirror_facts.load().unwrap().reach, Txid(0));
    }
}
