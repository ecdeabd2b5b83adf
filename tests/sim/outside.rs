//! Who wrote to a copy: an opening, or a change of role, that is cut at any write, flush or save is told from what the kernel or
//! e2fsck does. The first leads to no comparison and keeps nothing from being promoted; the second always does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lockstepfs::ext4::Superblock;
use lockstepfs::io::Disk;
use lockstepfs::io::sim::{Fault, SimDisk};
use lockstepfs::mirror::master::Request;
use lockstepfs::mirror::open::OpenMaster;
use lockstepfs::mirror::policy::{Resync, Wishes};
use lockstepfs::mirror::roles::{
    Heir, StepBack, Stepped, before_repair, is_whole, master_facts, places,
};
use lockstepfs::mirror::stamps;
use lockstepfs::units::{BlockNo, Generation, Txid};
use lockstepfs::volume::Volume;
use lockstepfs::volume::facts::{Copy, FactStore, Facts, Lineage, MemoryFacts, Role};
use lockstepfs::wire::message::Member;
use states::State;

use crate::testkit::{FEATURE_SETS, mke2fs};
use crate::world::{BLOCK, World};

/// Where an opening, or what else a node does, ends.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Write(u32),
    Flush(u32),
    Save(u32),
}

const KINDS: [fn(u32) -> Cut; 3] = [Cut::Write, Cut::Flush, Cut::Save];

impl Cut {
    fn make(self, disk: &SimDisk, facts: &MemoryFacts) {
        match self {
            Cut::Write(at) => disk.inject(Fault::WritesAfter(at.into())),
            Cut::Flush(at) => disk.inject(Fault::FlushesAfter(at.into())),
            Cut::Save(at) => facts.fail_saves_after(at),
        }
    }

    fn mend(disk: &SimDisk, facts: &MemoryFacts) {
        disk.heal();
        facts.fail_saves(false);
    }
}

/// Cuts at every place there is, until it is `done` without being cut; how often it was cut.
fn cut_everywhere(mut done: impl FnMut(Cut) -> bool) {
    for kind in KINDS {
        let ended = (0..60).find(|at| done(kind(*at)));
        assert!(ended.is_some_and(|at| at > 0), "{:?}: {ended:?}", kind(0));
    }
}

/// A volume whose mirror has all but the last file.
fn behind(seed: u64) -> World {
    let mut world = World::new(seed, 8 << 20);
    world.file("first", &[7; 50_000]);
    world.create_mirror();
    world.settle();
    world.cut_link();
    world.file("second", &[8; 50_000]);
    world.fs().sync().unwrap();
    world
}

/// The master leaves, in order or not.
fn leave(world: &mut World, in_order: bool) {
    world.cut_link();
    world.mirror = None;
    match world.master.take() {
        Some(master) if in_order => master.close().unwrap(),
        _ => world.crash_master(),
    }
}

fn resyncs(world: &World) -> usize {
    let again = |(_, to, _): &&(State, State, String)| *to == State::OutOfSync;
    world.trace.iter().filter(again).count()
}

/// What the kernel writes when it mounts the volume.
fn mounted_by_the_kernel(disk: &SimDisk) {
    let mut raw = vec![0; 1024];
    disk.read_at(&mut raw, 1024).unwrap();
    let mut superblock = Superblock::decode(&raw).unwrap();
    superblock.set_s_mnt_count(superblock.s_mnt_count() + 1);
    superblock.set_mtime(1_800_000_777);
    disk.write_at(superblock.encode(), 1024).unwrap();
    disk.flush().unwrap();
}

fn opening_is_cut(seed: u64, cut: Cut, in_order: bool, mounted: bool) -> bool {
    let mut world = behind(seed);
    leave(&mut world, in_order);
    cut.make(&world.master_disk, &world.master_facts);
    let opened = world.try_start_master().is_ok();
    world.crash_master();
    Cut::mend(&world.master_disk, &world.master_facts);
    if mounted {
        mounted_by_the_kernel(&world.master_disk);
    }
    world.start_master();
    world.cut = false;
    world.settle();
    world.assert_equal();
    let expected = usize::from(mounted);
    assert_eq!(resyncs(&world), expected, "{cut:?}: {:#?}", world.trace);
    opened
}

#[test]
fn a_masters_opening_may_be_cut_anywhere_and_nothing_is_compared() {
    for in_order in [false, true] {
        cut_everywhere(|cut| opening_is_cut(410, cut, in_order, false));
    }
}

/// The claim of the multiple-mount protection is the first thing that an opening writes.
#[test]
fn an_opening_that_is_cut_after_it_claimed_the_volume_was_no_change_from_outside() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let set = FEATURE_SETS.iter().find(|set| set.name == "mmp").unwrap();
    mke2fs(&image, 32 << 20, set).expect("mke2fs");
    let bytes = std::fs::read(&image).unwrap();
    cut_everywhere(|cut| {
        let mut world = World::new(414, 8 << 20);
        leave(&mut world, true);
        let disk = SimDisk::named("protected", bytes.len() as u64);
        disk.write_at(&bytes, 0).unwrap();
        disk.flush().unwrap();
        world.master_disk = Arc::new(disk);
        let fresh = Facts::blank(4712, "data", Role::Master);
        world.master_facts.save(&fresh).unwrap();
        world.start_master();
        leave(&mut world, true);
        cut.make(&world.master_disk, &world.master_facts);
        let opened = world.try_start_master().is_ok();
        world.crash_master();
        Cut::mend(&world.master_disk, &world.master_facts);
        let facts = world.master_facts.load().unwrap();
        let disk = Arc::clone(&world.master_disk) as Arc<dyn Disk>;
        let volume = Volume::new(vec![disk], BLOCK).unwrap();
        assert_eq!(stamps::outside(&facts, &volume).unwrap(), None, "{cut:?}");
        opened
    });
}

#[test]
fn a_mount_by_the_kernel_after_an_opening_that_was_cut_is_seen() {
    cut_everywhere(|cut| opening_is_cut(411, cut, true, true));
}

#[test]
fn a_mirrors_opening_may_be_cut_anywhere_and_it_may_still_be_promoted() {
    cut_everywhere(|cut| {
        let mut world = behind(412);
        world.follower.take().unwrap().close().unwrap();
        cut.make(&world.mirror_parts.disk, &world.mirror_facts);
        let opened = world.try_start_mirror().is_ok();
        world.crash_mirror();
        Cut::mend(&world.mirror_parts.disk, &world.mirror_facts);
        world.start_mirror();
        let facts = world.follower.as_ref().unwrap().facts();
        assert!(!facts.tainted, "{cut:?}: {facts:?}");
        world.cut = false;
        world.settle();
        world.assert_equal();
        assert_eq!(resyncs(&world), 0, "{cut:?}: {:#?}", world.trace);
        opened
    });
}

/// The master, closed, becomes a mirror of one that went on from `fork`.
fn step_back(world: &World, fork: Txid) -> Result<Stepped, lockstepfs::mirror::MirrorError> {
    let disk = Arc::clone(&world.master_disk) as Arc<dyn Disk>;
    let mut facts = world.master_facts.load().unwrap();
    let mut theirs = facts.generations.clone();
    let generation = Generation(99);
    theirs.push(Lineage { generation, fork });
    StepBack {
        volume: &Arc::new(Volume::new(vec![disk], BLOCK).unwrap()),
        facts: &*world.master_facts,
        maps: &*world.maps,
        lost: &*world.lost,
        node: "a",
        master: "b",
        theirs: &theirs,
        discard: false,
    }
    .rejoin(&mut facts)
}

#[test]
fn an_old_master_that_is_cut_while_it_steps_back_needs_no_operator() {
    let mut gave_up = BTreeMap::new();
    for (in_order, gives_up) in [(true, true), (true, false), (false, true), (false, false)] {
        cut_everywhere(|cut| {
            let mut world = behind(413);
            world.lost.expected.store(true, Ordering::Relaxed);
            let at = |master: &Option<OpenMaster>| {
                master.as_ref().unwrap().shared.journal.last_committed()
            };
            let fork = match gives_up {
                true => world.follower.as_ref().unwrap().applied(),
                false => at(&world.master),
            };
            leave(&mut world, in_order);
            cut.make(&world.master_disk, &world.master_facts);
            let done = step_back(&world, fork).is_ok();
            world.crash_master();
            Cut::mend(&world.master_disk, &world.master_facts);
            if !done {
                let stepped = step_back(&world, fork);
                let stepped = stepped.unwrap_or_else(|error| panic!("{cut:?}: {error}"));
                assert!(!stepped.compare, "{cut:?}: {stepped}");
                let facts = world.master_facts.load().unwrap();
                assert_eq!(facts.own_dirty, gives_up, "{cut:?}: {facts:?}");
                *gave_up.entry(gives_up).or_insert(0) += 1;
            }
            done
        });
    }
    assert!(gave_up.values().all(|times| *times > 2), "{gave_up:?}");
}

/// What the kernel writes into a file's blocks, and into the superblock, of a volume that is closed.
fn written_by_the_kernel(disk: &SimDisk, needle: &[u8]) {
    let mut block = vec![0; BLOCK as usize];
    for at in (0..disk.len()).step_by(block.len()) {
        disk.read_at(&mut block, at).unwrap();
        if block.starts_with(needle) {
            block.fill(0x77);
            disk.write_at(&block, at).unwrap();
        }
    }
    mounted_by_the_kernel(disk);
}

#[test]
fn a_former_mirror_made_again_after_a_change_from_outside_gets_it_though_others_kept_the_log() {
    let mut world = behind(415);
    world.cut = false;
    world.settle();
    // Another mirror, of which nothing is heard.
    let master = world.master.clone().unwrap();
    master.add_mirror("c", None).unwrap();
    world.cut_link();
    world.request(Request::Delete);
    let slot = Arc::clone(world.mirror.take().unwrap().slot());
    master.remove_mirror(&slot).unwrap();
    drop((master, slot));
    leave(&mut world, true);
    written_by_the_kernel(&world.master_disk, &[8; 64]);
    world.start_master();
    world.mirror = None;
    world.cut = false;
    world.create_mirror();
    world.settle();
    world.assert_equal();
}

/// A repair that is under way on the mirror, or a first copy.
pub fn half_made(seed: u64, first: bool) -> World {
    let mut world = World::new(seed, 8 << 20);
    world.file("first", &vec![7; 3 << 20]);
    world.create_mirror();
    world.mirror.as_mut().unwrap().set_wishes(Wishes {
        resync: Some(Resync::Direct),
        ..Wishes::default()
    });
    if !first {
        world.settle();
        world.cut_link();
        world.file("second", &vec![8; 3 << 20]);
        world.crack();
        world.cut = false;
    }
    let far = |world: &World| {
        let facts = world.follower.as_ref().unwrap().facts();
        match facts.copy {
            Copy::Blank => false,
            Copy::Partial { cursor, .. } => cursor > BlockNo(600),
            Copy::Complete => !is_whole(&facts),
        }
    };
    while !far(&world) {
        world.step();
    }
    world.cut_link();
    world
}

#[test]
fn a_promotion_by_force_that_comes_to_nothing_leaves_a_copy_that_is_guarded_and_trusted_in_nothing()
{
    for first in [true, false] {
        let mut world = half_made(416 + u64::from(first), first);
        world.follower.take().unwrap().close().unwrap();
        let mut facts = world.mirror_facts.load().unwrap();
        let disk = Arc::clone(&world.mirror_parts.disk);
        let volume = Volume::new(vec![Arc::clone(&disk) as Arc<dyn Disk>], BLOCK).unwrap();
        before_repair(&volume, &mut facts, &*world.mirror_facts).unwrap();
        // As e2fsck does, in blocks that are counted as copied, or not as different.
        let block = vec![0x66; BLOCK as usize];
        for at in [40, 300, 500] {
            disk.write_at(&block, at * u64::from(BLOCK)).unwrap();
        }
        disk.flush().unwrap();
        world.crash_mirror();
        world.start_mirror();
        let mut raw = vec![0; 1024];
        disk.read_at(&mut raw, 1024).unwrap();
        assert!(Superblock::decode(&raw).unwrap().has_guard());
        world.cut = false;
        world.settle();
        world.assert_equal();
        world.check_parts(false);
    }
}

#[test]
fn every_other_copy_is_compared_with_one_that_was_promoted_by_force() {
    let mut world = half_made(418, false);
    world.follower.take().unwrap().close().unwrap();
    let disk = Arc::clone(&world.mirror_parts.disk) as Arc<dyn Disk>;
    let volume = Arc::new(Volume::new(vec![disk], BLOCK).unwrap());
    let mut facts = world.mirror_facts.load().unwrap();
    // However the copy came to be so, and whatever is recorded beside it.
    facts.set_stamps(Some(stamps::read(&volume).unwrap()));
    let peers = BTreeMap::from([("a".to_string(), None)]);
    let next = master_facts(&volume, &facts, &*world.mirror_maps, &peers).unwrap();
    assert!(stamps::outside(&next, &volume).unwrap().is_some());
}

#[test]
fn a_mirror_that_was_not_compared_yet_with_what_changed_outside_is_compared_by_whom_it_is_handed_to()
 {
    let mut world = behind(419);
    leave(&mut world, true);
    mounted_by_the_kernel(&world.master_disk);
    world.start_master();
    let master = world.master.clone().unwrap();
    let txid = master.shared.journal.last_committed();
    let member = |name: &str| Member {
        name: name.to_string(),
        ..Member::default()
    };
    let slots = master.slots.all();
    let (places, _) = places(&master.shared, &slots, "c", txid, member("a"), member);
    assert!(
        places
            .iter()
            .any(|place| place.member.name == "b" && place.lost)
    );
    let heir = Heir {
        position: txid,
        through: txid,
        lost: true,
        ..Heir::default()
    };
    let peers = BTreeMap::from([("b".to_string(), Some(heir))]);
    let facts = world.master_facts.load().unwrap();
    let volume = Arc::clone(&master.shared.volume);
    let next = master_facts(&volume, &facts, &*world.mirror_maps, &peers).unwrap();
    assert!(next.peers["b"].record.changed_outside);
}
