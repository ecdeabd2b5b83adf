//! Openings and closings of either side, cut or failing anywhere: the state keeps its name, and nothing is compared as a
//! whole that a replay brings.

use std::sync::Arc;

use lockstepfs::io::Disk;
use lockstepfs::io::sim::Fault;
use lockstepfs::mirror::master::Request;
use lockstepfs::mirror::open::OpenMaster;
use lockstepfs::units::{Ino, Txid};
use lockstepfs::volume::facts::{FactStore, Role};
use lockstepfs::wire::message::{Message, Mode};
use states::State;

use crate::promoted::step_back;
use crate::sync::sync_world;
use crate::world::World;

const ROOT: Ino = Ino(2);

fn file(world: &World, name: &str) {
    world.file(name, &[7; 50_000]);
    world.fs().sync().unwrap();
}

/// A volume with a mirror that is in sync.
fn mirrored(seed: u64) -> World {
    let mut world = World::new(seed, 8 << 20);
    file(&world, "first");
    world.create_mirror();
    world.settle();
    world
}

/// Comes into sync, and neither copied nor compared anything since the first copy.
fn only_replays(world: &mut World) {
    world.settle();
    world.assert_equal();
    let again = |(_, to, _): &(State, State, String)| *to == State::OutOfSync;
    assert!(!world.trace.iter().any(again), "{:#?}", world.trace);
    assert!(
        !world.trace.iter().any(|(_, to, _)| *to == State::Reset),
        "{:#?}",
        world.trace
    );
}

/// A mirror that has a transaction of which its facts do not know yet.
fn ahead_of_its_facts(seed: u64) -> World {
    for seed in seed..seed + 50 {
        let mut world = mirrored(seed);
        world.check_now();
        file(&world, "second");
        world.settle();
        let durable = world.follower.as_ref().unwrap().durable();
        if world.mirror_facts.load().unwrap().applied < durable {
            return world;
        }
    }
    panic!("the facts always knew");
}

/// That mirror loses its power after `ending`. It comes back under the name of what it has.
fn facts_can_not_be_saved(seed: u64, ending: impl Fn(&mut World, u32)) {
    for saves in 0..3 {
        let mut world = ahead_of_its_facts(seed);
        ending(&mut world, saves);
        world.crash_mirror();
        world.mirror_facts.fail_saves(false);
        // Looks whether all that was acknowledged is there.
        world.start_mirror();
        world.check_now();
        only_replays(&mut world);
    }
}

#[test]
fn a_mirror_whose_facts_can_not_be_saved_after_recovery_keeps_the_name_of_its_state() {
    facts_can_not_be_saved(70, |world, saves| {
        world.crash_mirror();
        // The log is home by the time at which this fails, or not.
        world.mirror_facts.fail_saves_after(saves);
        let opened = world.try_start_mirror();
        assert!(opened.is_err() || saves == 2, "{saves} saves");
    });
}

#[test]
fn a_mirror_that_brought_home_what_it_could_not_note_keeps_the_name_of_its_state() {
    let mut world = mirrored(184);
    world.mirror_facts.fail_saves(true);
    file(&world, "second");
    world.settle();
    // All of it goes home: the log is live, and has nothing to replay.
    let shown = world.follower.as_ref().unwrap().fs().unwrap();
    while shown.commit_step(world.now()).unwrap().checkpointing {}
    drop(shown);
    world.crash_mirror();
    assert!(world.try_start_mirror().is_err());
    world.follower = None;
    world.mirror_facts.fail_saves(false);
    world.start_mirror();
    world.check_now();
    only_replays(&mut world);
}

#[test]
fn what_a_mirror_can_not_note_as_confirmed_does_not_go_home_however_often_it_is_tried() {
    let mut world = sync_world(185, false);
    let large = world.file("large", &[1; 50_000]);
    world.settle();
    let before = world.fs().committed();
    world.fs().write(large, 0, &[2; 50_000]).unwrap();
    let fs = Arc::clone(&world.master.as_ref().unwrap().shared.fs);
    let commit = fs.begin_commit().unwrap().unwrap();
    world.committing = true;
    while world.follower.as_ref().unwrap().durable() < commit.txid() {
        world.step();
    }
    world.mirror_facts.fail_saves(true);
    commit.finish().unwrap();
    world.committing = false;
    // The mirror's log knows of the transaction, not that it was confirmed.
    while world.follower.as_ref().unwrap().applied() == before {
        world.step();
    }
    assert!(world.follower.as_mut().unwrap().tick().is_err());
    let shown = world.follower.as_ref().unwrap().fs().unwrap();
    for _ in 0..3 {
        assert!(shown.commit_step(world.now()).is_err());
    }
    drop(shown);
    world.crash_mirror();
    world.mirror_facts.fail_saves(false);
    world.start_mirror();
    let follower = world.follower.as_ref().unwrap();
    assert_eq!(follower.applied(), before);
    let mut found = vec![0; 50_000];
    let attr = follower.fs().unwrap().lookup(ROOT, b"large").unwrap();
    let fs = follower.fs().unwrap();
    fs.read(attr.ino, attr.generation, 0, &mut found).unwrap();
    assert!(found == [1; 50_000]);
    only_replays(&mut world);
}

#[test]
fn a_mirror_whose_facts_can_not_be_saved_when_it_closes_keeps_the_name_of_its_state() {
    facts_can_not_be_saved(71, |world, saves| {
        world.mirror_facts.fail_saves_after(saves);
        let closed = world.follower.as_mut().unwrap().close();
        assert!(closed.is_err() || saves > 1, "{saves} saves");
    });
}

/// A master whose only mirror was deleted; the last transaction that the copy there may have.
fn without_mirrors(seed: u64) -> (World, OpenMaster, Txid) {
    let mut world = mirrored(seed);
    file(&world, "second");
    world.settle();
    world.delete_mirror().unwrap();
    let master = world.master.clone().unwrap();
    let had = master.shared.journal.last_committed();
    (world, master, had)
}

/// The copy that was kept is of this master's history.
fn made_again(world: &mut World, had: Txid) {
    let fork = world.master.as_ref().unwrap().shared.fork;
    assert!(fork >= had, "{had} became {fork}");
    world.cut = false;
    world.create_mirror();
    world.settle();
    world.assert_equal();
}

#[test]
fn a_master_without_mirrors_whose_closing_is_cut_does_not_go_back_in_its_history() {
    for saves in 0..4 {
        let (mut world, master, had) = without_mirrors(72);
        world.master_facts.fail_saves_after(saves);
        let closed = master.close();
        assert!(closed.is_err() || saves > 1, "{saves} saves");
        drop(master);
        world.crash_master();
        world.master_facts.fail_saves(false);
        world.start_master();
        made_again(&mut world, had);
    }
}

#[test]
fn a_master_without_mirrors_that_loses_power_knows_what_a_former_mirror_has() {
    for readable in [true, false] {
        let (mut world, master, had) = without_mirrors(73);
        // Everything goes home: the log does not say any more what there was, but to who reads it from the mirror tail on.
        while !master.shared.journal.checkpoint(1 << 20).unwrap().done {}
        master.shared.volume.flush().unwrap();
        let first = master.shared.log[0].start.0 + 1;
        drop(master);
        world.crash_master();
        if !readable {
            world
                .master_disk
                .write_at(&[0x5a; 8192], first * 4096)
                .unwrap();
            world.master_disk.flush().unwrap();
        }
        world.start_master();
        made_again(&mut world, had);
    }
}

#[test]
fn what_was_overwritten_while_there_was_no_mirror_reaches_every_former_one() {
    for others_first in [false, true] {
        let mut world = mirrored(279);
        world.delete_mirror().unwrap();
        let first = world.fs().lookup(ROOT, b"first").unwrap().ino;
        world.fs().write(first, 8192, &[9; 12_288]).unwrap();
        world.fs().sync().unwrap();
        if others_first {
            world
                .master
                .as_ref()
                .unwrap()
                .add_mirror("c", None)
                .unwrap();
        }
        world.cut = false;
        world.create_mirror();
        world.settle();
        world.assert_equal();
    }
}

#[test]
fn a_mirror_that_received_nothing_in_a_session_only_replays_after_it() {
    let mut world = mirrored(74);
    for _ in 0..3 {
        world.restart_master();
        only_replays(&mut world);
    }
    for _ in 0..3 {
        world.crash_master();
        world.start_master();
        only_replays(&mut world);
    }
    assert_eq!(world.fs().committed(), world.fs().sync().unwrap());
}

#[test]
fn a_mirror_that_was_away_for_several_openings_only_replays() {
    let mut world = mirrored(75);
    world.cut_link();
    // The id of what is committed now is far from the last that the mirror has: nothing lies between the two.
    for name in ["second", "third", "fourth"] {
        world.restart_master();
        file(&world, name);
        world.restart_master();
    }
    world.cut = false;
    only_replays(&mut world);
}

#[test]
fn the_facts_of_a_master_know_its_chain_after_an_opening_that_committed_nothing() {
    let mut world = mirrored(76);
    file(&world, "second");
    world.settle();
    for _ in 0..2 {
        world.crash_master();
        world.start_master();
        let facts = world.master_facts.load().unwrap();
        let journal = Arc::clone(&world.master.as_ref().unwrap().shared.journal);
        assert_eq!(facts.chain, journal.chain());
        assert_ne!(facts.chain, 0);
    }
    only_replays(&mut world);
}

#[test]
fn a_mirror_whose_disk_fails_at_the_first_transaction_of_a_new_opening_was_not_changed_from_outside()
 {
    for writes in 0..4 {
        let mut world = mirrored(77);
        world.restart_master();
        world.settle();
        file(&world, "second");
        world.mirror_parts.disk.inject(Fault::WritesAfter(writes));
        for _ in 0..2000 {
            world.step();
        }
        world.crash_mirror();
        world.mirror_parts.disk.heal();
        world.start_mirror();
        assert!(!world.mirror_facts.load().unwrap().tainted);
        if world.state() == State::Error {
            world.request(Request::Restart);
        }
        only_replays(&mut world);
    }
}

#[test]
fn a_staged_resync_that_its_master_ends_leaves_nothing_behind() {
    for says_farewell in [true, false] {
        let world = mirrored(78);
        let mut follower = world.follower.unwrap();
        let generations = Vec::new();
        let begin = || Message::Begin {
            mode: Mode::Staged { bytes: 1 << 20 },
            generations: generations.clone(),
            from: follower_at(&world.master),
            compare: true,
            drop_after: None,
        };
        follower.frame(begin(), Vec::new()).unwrap();
        if says_farewell {
            let reason = State::OutOfSync.to_string();
            follower.frame(Message::Bye { reason }, Vec::new()).unwrap();
        }
        follower.frame(begin(), Vec::new()).unwrap();
    }
}

fn follower_at(master: &Option<lockstepfs::mirror::open::OpenMaster>) -> u64 {
    let master = master.as_ref().unwrap();
    let Txid(at) = master.shared.journal.last_committed();
    at
}

/// The mirror was deleted, and another one, of which nothing is heard, keeps the log of what the copy lacks. And a file.
fn log_kept_for_another(seed: u64) -> (World, Ino) {
    let mut world = mirrored(seed);
    let large = world.file("large", &[]);
    world.settle();
    let master = world.master.clone().unwrap();
    master.add_mirror("c", None).unwrap();
    world.delete_mirror().unwrap();
    file(&world, "second");
    (world, large)
}

#[test]
fn a_mirror_made_again_that_cracks_before_it_is_heard_of_gets_what_came_before_its_map() {
    let (mut world, large) = log_kept_for_another(81);
    world.create_mirror();
    world.fs().write(large, 0, &[1; 50_000]).unwrap();
    world.fs().sync().unwrap();
    world.crack();
    let slot = Arc::clone(world.mirror.as_ref().unwrap().slot());
    let coverage = slot.state.lock().map.coverage().unwrap();
    assert!(coverage.from_txid > world.follower.as_ref().unwrap().durable());
    world.cut = false;
    world.settle();
    world.assert_equal();
}

#[test]
fn a_mirror_made_again_that_cracks_while_it_catches_up_gets_what_it_lacks() {
    for cracks in [false, true] {
        let (mut world, large) = log_kept_for_another(79);
        world.cut = false;
        world.create_mirror();
        world.until(State::InSync);
        let slot = Arc::clone(world.mirror.as_ref().unwrap().slot());
        // Of what it lacks, nothing was sent yet; now the log has no room for it any more.
        for n in 0..if cracks { 12 } else { 0 } {
            world.fs().write(large, 0, &vec![n; 1 << 20]).unwrap();
            world.fs().sync().unwrap();
        }
        assert_eq!(slot.state.lock().cracks > 0, cracks);
        world.step();
        world.settle();
        world.assert_equal();
    }
}

/// The mirror was deleted, and another one has everything since: what a file was in, freed, is free to be used again while
/// the log still has both transactions.
fn freed_and_let_go(seed: u64) -> World {
    let mut world = mirrored(seed);
    let master = world.master.clone().unwrap();
    let other = master.add_mirror("c", None).unwrap();
    world.delete_mirror().unwrap();
    file(&world, "passing");
    world.fs().unlink(ROOT, b"passing").unwrap();
    let freed = world.fs().sync().unwrap();
    master.shared.journal.set_consumer(other.id, freed);
    let now = world.now();
    world.fs().commit_step_within(now, 0).unwrap();
    assert_eq!(master.shared.journal.released(), freed);
    world.cut = false;
    world
}

/// Comes into sync by the log alone, and nothing in the log was found to be other than it should be.
fn catches_up(world: &mut World) {
    world.until(State::InSync);
    let slot = Arc::clone(world.mirror.as_ref().unwrap().slot());
    world.settle();
    assert_eq!(slot.state.lock().cracks, 0);
    world.assert_equal();
}

#[test]
fn a_mirror_made_again_is_not_sent_what_a_change_that_is_not_committed_wrote_over() {
    let mut world = freed_and_let_go(82);
    let freed = world.fs().committed();
    world.committing = true;
    world.create_mirror();
    world.file("running", &[9; 50_000]);
    while world.follower.as_ref().unwrap().applied() < freed {
        world.step();
    }
    world.committing = false;
    assert_eq!(world.fs().committed(), freed);
    catches_up(&mut world);
}

#[test]
fn a_mirror_made_again_is_not_sent_what_the_log_has_of_a_later_time() {
    let mut world = freed_and_let_go(83);
    let again = world.file("again", &[8; 50_000]);
    let used_again = world.fs().sync().unwrap();
    world.fs().write(again, 0, &[9; 50_000]).unwrap();
    let later = world.fs().sync().unwrap();
    world.create_mirror();
    while world.follower.as_ref().unwrap().applied() < used_again {
        world.step();
    }
    let follower = world.follower.as_ref().unwrap();
    assert!(follower.applied() < later, "the moment has passed");
    let mut found = vec![0; 50_000];
    let fs = follower.fs().unwrap();
    let attr = fs.lookup(ROOT, b"again").unwrap();
    fs.read(attr.ino, attr.generation, 0, &mut found).unwrap();
    assert!(found == [8; 50_000]);
    catches_up(&mut world);
}

#[test]
fn a_mirror_that_could_not_be_made_holds_nothing() {
    let mut world = World::new(80, 8 << 20);
    file(&world, "first");
    let master = world.master.clone().unwrap();
    world.master_facts.fail_saves(true);
    assert!(master.add_mirror("b", None).is_err());
    world.master_facts.fail_saves(false);
    assert!(master.slots.all().is_empty());
    assert!(master.shared.facts.lock().peers.is_empty());
    world.create_mirror();
    world.settle();
    world.assert_equal();
}

/// The state disk is full. The mirror is one still, of a volume that has a mirror: nothing is overwritten at home.
#[test]
fn a_mirror_whose_deletion_could_not_be_saved_lacks_nothing_when_it_is_back() {
    for made_again in [false, true] {
        let mut world = mirrored(584);
        file(&world, "second");
        world.settle();
        world.master_facts.fail_saves(true);
        assert!(world.delete_mirror().is_err());
        let master = world.master.clone().unwrap();
        assert!(master.add_mirror("c", None).is_err());
        let first = world.fs().lookup(ROOT, b"first").unwrap().ino;
        world.fs().write(first, 8192, &[9; 12_288]).unwrap();
        world.fs().sync().unwrap();
        assert_eq!(master.slots.all().len(), 1, "the log is kept for it");
        world.cut = false;
        match made_again {
            true => {
                world.master_facts.fail_saves(false);
                world.create_mirror();
                assert_eq!(master.slots.all().len(), 1, "it has one place");
                world.settle();
                world.assert_equal();
            }
            false => {
                drop(master);
                world.crash_master();
                world.master_facts.fail_saves(false);
                world.start_master();
                only_replays(&mut world);
            }
        }
    }
}

#[test]
fn a_log_that_one_opening_went_round_several_times_is_resumed() {
    for laps in [1, 2, 5] {
        let mut world = mirrored(95 + laps);
        world.restart_master();
        for _ in 0..3 {
            let master = world.master.clone().unwrap();
            let file = master.shared.fs.lookup(Ino(2), b"first").unwrap().ino;
            let (journal, fs) = (&master.shared.journal, &master.shared.fs);
            let bytes = journal.stats().size_blocks * u64::from(master.shared.volume.block_size());
            // A little more than whole laps: by value, since there is a mirror.
            for n in 0..(laps * bytes + bytes / 3) / 100_000 {
                fs.write(file, 0, &vec![n as u8; 100_000]).unwrap();
                world.settle();
            }
            drop(master);
            world.restart_master();
            only_replays(&mut world);
        }
    }
}

#[test]
fn a_mirror_that_differs_under_the_names_of_its_masters_history_is_compared_when_it_is_given_up() {
    let mut world = mirrored(287);
    file(&world, "second");
    world.settle();
    world.cut_link();
    world.follower.take().unwrap().close().unwrap();
    let mut facts = world.mirror_facts.load().unwrap();
    facts.chain ^= 1;
    facts.head.as_mut().unwrap().chain ^= 1;
    world.mirror_facts.save(&facts).unwrap();
    world.start_mirror();
    world.cut = false;
    world.until(State::Error);
    world.follower.take().unwrap().close().unwrap();
    // As the reason of the error says.
    let theirs = world.master_facts.load().unwrap().generations;
    let stepped = step_back(&world, Role::Mirror, "a", &theirs, true).unwrap();
    assert!(stepped.compare, "{stepped}");
    world.start_mirror();
    world.request(Request::Restart);
    world.settle();
    world.assert_equal();
}
