//! Sync mode: what a mirror holds of transactions that are only being committed on its master, when power fails at any
//! moment, on either side.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use lockstepfs::fs::{Commit, Fs, New};
use lockstepfs::mirror::MirrorError;
use lockstepfs::mirror::follower::{Follower, Output};
use lockstepfs::mirror::policy::{Compress, Resync, SyncMode, Wishes};
use lockstepfs::units::{Ino, Txid};
use lockstepfs::volume::facts::FactStore;
use lockstepfs::wire::message::Message;
use states::State;

use crate::world::{BLOCK, SIZE, World};

const ROOT: Ino = Ino(2);
/// Rounds of frames after which a transaction is on the mirror, confirmed and shown; the cuts are between them.
const ROUNDS: u32 = 16;

pub fn create(fs: &Fs, name: &str, len: usize) -> Ino {
    let new = New {
        mode: 0o100644,
        ..New::default()
    };
    let attr = fs.create(ROOT, name.as_bytes(), &new).unwrap();
    fs.write(attr.ino, 0, &vec![7; len]).unwrap();
    attr.ino
}

pub fn sync_world(seed: u64, strict: bool) -> World {
    let mut world = World::new(seed, 8 << 20);
    create(world.fs(), "first", 300_000);
    world.create_mirror();
    world.settle();
    set_sync(&mut world, strict);
    world
}

pub fn set_sync(world: &mut World, strict: bool) {
    world.mirror.as_mut().unwrap().set_wishes(Wishes {
        mode: Some(SyncMode::Sync),
        strict: Some(strict),
        ..Wishes::default()
    });
    listen(world);
}

fn listen(world: &World) {
    let journal = &world.master.as_ref().unwrap().shared.journal;
    journal.on_prepared(Some(Box::new(|| {})));
}

pub fn step(world: &mut World) {
    world.step();
    let Some(follower) = &world.follower else {
        return;
    };
    if let Some(master) = &world.master {
        let committed = master.shared.journal.last_committed();
        assert!(
            follower.applied() <= committed,
            "transaction {} is shown and {committed} is the last that is committed",
            follower.applied()
        );
    }
    assert!(follower.applied() <= follower.durable());
}

fn shows(world: &World, name: &str) -> bool {
    let fs = world.follower.as_ref().unwrap().fs().expect("it is open");
    fs.lookup(ROOT, name.as_bytes()).is_ok()
}

#[test]
fn both_sides_are_made_durable_at_once_and_nothing_is_shown_before_the_commit() {
    let mut world = sync_world(1, false);
    let fs = Arc::clone(&world.master.as_ref().unwrap().shared.fs);
    let gate = Arc::clone(&world.master.as_ref().unwrap().shared.gate);
    for n in 0..8 {
        let name = format!("f{n}");
        // By value and by reference, with blocks that the one before freed.
        create(&fs, &name, if n % 2 == 0 { 3000 } else { 200_000 });
        if n > 2 {
            fs.unlink(ROOT, format!("f{}", n - 2).as_bytes()).unwrap();
        }
        let commit = fs.begin_commit().unwrap().unwrap();
        let txid = commit.txid();
        world.committing = true;
        for _ in 0..ROUNDS {
            step(&mut world);
        }
        let follower = world.follower.as_ref().unwrap();
        assert_eq!(follower.durable(), txid, "sent while it is being committed");
        assert!(follower.applied() < txid && !shows(&world, &name));
        commit.finish().unwrap();
        world.committing = false;
        assert!(
            gate.is_open(txid),
            "acknowledged there before the commit was done here"
        );
        for _ in 0..ROUNDS {
            step(&mut world);
        }
        assert_eq!(world.follower.as_ref().unwrap().applied(), txid);
        assert!(shows(&world, &name));
    }
    world.settle();
    world.assert_equal();
    let early = world.mirror.as_ref().unwrap().status(world.now());
    assert!(early.counters.sent_early >= 8, "{:?}", early.counters);
}

/// What loses power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Master,
    Mirror,
    Both,
    Link,
}

/// One transaction, cut `at` rounds after its blocks were written, before or after its commit.
fn cut(seed: u64, victim: Victim, at: u32, finished: bool) {
    let mut world = sync_world(1000 + seed, false);
    let bulk = world
        .mirror
        .as_ref()
        .unwrap()
        .status(world.now())
        .bytes_bulk;
    let fs = Arc::clone(&world.master.as_ref().unwrap().shared.fs);
    let gate = Arc::clone(&world.master.as_ref().unwrap().shared.gate);
    create(&fs, "before", 50_000);
    fs.sync().unwrap();
    create(
        &fs,
        "cut",
        if seed.is_multiple_of(2) {
            3000
        } else {
            150_000
        },
    );
    let commit: Option<Commit<'_>> = fs.begin_commit().unwrap();
    let commit = commit.unwrap();
    let txid = commit.txid();
    world.committing = true;
    let mut acknowledged = false;
    let mut commit = Some(commit);
    if finished {
        commit.take().unwrap().finish().unwrap();
        world.committing = false;
    }
    for _ in 0..at {
        step(&mut world);
    }
    acknowledged |= finished && gate.is_open(txid);
    drop(commit);
    let had = world.follower.as_ref().unwrap().durable() >= txid;
    let shown = world.follower.as_ref().unwrap().applied();
    let here =
        format!("{victim:?} cut after {at} rounds, finished: {finished}, on the mirror: {had}");
    // A commit that is only half done on a master that lives is one that power interrupts a moment later.
    let master_dies = !finished || matches!(victim, Victim::Master | Victim::Both);
    if matches!(victim, Victim::Mirror | Victim::Both) {
        world.crash_mirror();
    }
    if victim == Victim::Link {
        world.cut_link();
    }
    if matches!(victim, Victim::Mirror | Victim::Both) {
        // It starts alone: what it shows is what it has shown before, and nothing that may yet be dropped.
        world.start_mirror();
        let follower = world.follower.as_ref().unwrap();
        assert!(!follower.facts().tainted, "{here}");
        assert!(
            follower.applied() >= shown || !finished,
            "{here}: it went back"
        );
        if !finished {
            assert!(
                follower.applied() < txid,
                "{here}: it shows what was not committed"
            );
            assert!(!shows(&world, "cut"), "{here}");
        }
        assert!(
            !had || follower.durable() >= txid,
            "{here}: it lost what it acknowledged"
        );
    }
    if acknowledged {
        let follower = world.follower.as_ref().unwrap();
        assert!(
            follower.durable() >= txid,
            "{here}: acknowledged, and not on the mirror"
        );
    }
    drop(fs);
    if master_dies {
        world.crash_master();
        world.start_master();
        listen(&world);
    }
    let survived = world.fs().lookup(ROOT, b"cut").is_ok();
    assert!(survived || !finished, "{here}: a commit was lost");
    world.cut = false;
    world.settle();
    world.assert_equal();
    assert_eq!(shows(&world, "cut"), survived, "{here}");
    assert!(shows(&world, "before"));
    let status = world.mirror.as_ref().unwrap().status(world.now());
    let expected = if master_dies { 0 } else { bulk };
    assert_eq!(
        status.bytes_bulk, expected,
        "{here}: it is dropped or replayed, not copied: {:#?}",
        world.trace
    );
    // And life goes on from there.
    create(world.fs(), "after", 100_000);
    world.settle();
    world.assert_equal();
    assert!(shows(&world, "after"));
    world.check_parts(true);
}

#[test]
fn power_may_fail_at_any_moment_of_a_commit() {
    let mut seed = 0;
    for victim in [Victim::Master, Victim::Mirror, Victim::Both, Victim::Link] {
        for finished in [false, true] {
            for at in 0..ROUNDS {
                // Several survivors of the same cut.
                for _ in 0..2 {
                    seed += 1;
                    cut(seed, victim, at, finished);
                }
            }
        }
    }
}

/// What is decided while a transaction is committed, of which the mirror has all: it is the master's yet to be, nobody's loss.
/// (In this world, keeping something aside that is not expected is a panic.)
#[test]
fn a_contact_in_the_middle_of_a_commit_keeps_nothing_aside() {
    for (seed, cracked) in [(1, false), (2, true)] {
        let mut world = sync_world(5000 + seed, false);
        let fs = Arc::clone(&world.master.as_ref().unwrap().shared.fs);
        create(&fs, "before", 3000);
        world.settle();
        create(&fs, "f", 3000);
        let commit = fs.begin_commit().unwrap().unwrap();
        world.committing = true;
        for _ in 0..ROUNDS {
            step(&mut world);
        }
        let has = world.follower.as_ref().unwrap().durable();
        assert_eq!(has, commit.txid());
        world.cut_link();
        if cracked {
            world.crack();
        }
        world.cut = false;
        let decided = match cracked {
            true => State::OutOfSync,
            false => State::InSync,
        };
        world.until(decided);
        for _ in 0..ROUNDS {
            step(&mut world);
        }
        commit.finish().unwrap();
        world.committing = false;
        world.settle();
        world.assert_equal();
        assert!(shows(&world, "f"));
        world.check_parts(true);
    }
}

/// What a mirror shows may be home, and out of its log, when power fails: what it then gives up again says nothing of it.
#[test]
fn a_mirror_that_drops_the_first_transaction_of_its_log_still_knows_what_it_shows() {
    let mut unnoted = 0;
    for (seed, both) in (0..16).flat_map(|seed| [(seed, true), (seed, false)]) {
        let mut world = sync_world(3000 + seed, false);
        let fs = Arc::clone(&world.master.as_ref().unwrap().shared.fs);
        if seed % 2 == 0 {
            create(&fs, "before", 3000);
            world.settle();
        }
        create(&fs, "cut", 3000);
        let commit = fs.begin_commit().unwrap().unwrap();
        world.committing = true;
        for _ in 0..ROUNDS {
            step(&mut world);
        }
        let had = world.follower.as_ref().unwrap().durable();
        assert_eq!(had, commit.txid());
        drop(commit);
        drop(fs);
        // What the next one confirms goes home, and the log begins behind it; the facts need not know yet.
        let shown = world.follower.as_ref().unwrap().fs().unwrap();
        while shown.commit_step(world.now()).unwrap().checkpointing {}
        drop(shown);
        let noted = world.mirror_facts.load().unwrap().applied;
        unnoted += u32::from(noted < world.follower.as_ref().unwrap().applied());
        world.crash_mirror();
        world.start_mirror();
        world.crash_master();
        world.start_master();
        for _ in 0..ROUNDS {
            step(&mut world);
        }
        assert_ne!(world.mirror_facts.load().unwrap().chain, 0, "seed {seed}");
        // Its history is looked at anew, and there is nothing in its log.
        world.cut_link();
        if both {
            world.crash_mirror();
            world.start_mirror();
        }
        world.cut = false;
        world.settle();
        world.assert_equal();
        world.check_parts(false);
    }
    assert!(unnoted > 4, "the facts were ahead of the log");
}

/// Somebody else may have had the master's volume, so it does not vouch for what it never confirmed; but it was acknowledged.
/// The link is cut; and the last transaction that the mirror has.
fn doubted(seed: u64, held: bool) -> (World, Txid) {
    let mut world = sync_world(seed, false);
    let fs = Arc::clone(&world.master.as_ref().unwrap().shared.fs);
    create(&fs, "cut", 30_000);
    let commit = fs.begin_commit().unwrap().unwrap();
    world.committing = true;
    for _ in 0..ROUNDS {
        step(&mut world);
    }
    // Acknowledged; the mirror does not hear of it.
    let promised = commit.finish().unwrap();
    world.committing = false;
    drop(fs);
    world.cut_link();
    assert!(world.follower.as_ref().unwrap().applied() < promised);
    if held {
        world.crash_mirror();
        world.start_mirror();
    }
    world.crash_master();
    let mut facts = world.master_facts.load().unwrap();
    facts.set_stamps(None);
    world.master_facts.save(&facts).unwrap();
    world.start_master();
    set_sync(&mut world, false);
    world.lost.expected.store(true, Ordering::Relaxed);
    (world, promised)
}

#[test]
fn what_was_acknowledged_and_is_doubted_stays_on_the_mirror_until_it_has_the_masters_copy() {
    for (steps, away, held) in (0..30).step_by(2).flat_map(|steps| {
        [
            (steps, false, true),
            (steps, true, true),
            (steps, true, false),
        ]
    }) {
        let (mut world, promised) = doubted(433, held);
        world.cut = false;
        let has = |world: &World| {
            let follower = world.follower.as_ref().unwrap();
            assert!(!follower.is_consistent() || follower.durable() >= promised);
        };
        for _ in 0..steps {
            world.step();
            has(&world);
        }
        match away {
            true => world.crash_mirror(),
            false => world.cut_link(),
        }
        world.cut = false;
        if away {
            world.start_mirror();
        }
        has(&world);
        while world.state() != State::InSync {
            world.step();
            has(&world);
        }
        assert!(shows(&world, "cut"));
        assert_eq!(kept_of(&world, "/cut", "a")[..30_000], [7; 30_000]);
        world.settle();
        world.assert_equal();
        world.check_parts(false);
    }
}

/// Where the resync goes home at once there is no copy that could hold it meanwhile.
#[test]
fn what_was_acknowledged_and_is_doubted_is_kept_aside_before_a_resync_goes_home() {
    for (seed, held) in [(0, false), (1, true), (2, false), (3, true)] {
        let (mut world, _) = doubted(434 + seed, held);
        match seed < 2 {
            true => world.mirror.as_mut().unwrap().set_wishes(Wishes {
                resync: Some(Resync::Direct),
                ..Wishes::default()
            }),
            false => world.staging.room.store(0, Ordering::Relaxed),
        }
        world.cut = false;
        let begun = (0..10_000).any(|_| {
            step(&mut world);
            !world.follower.as_ref().unwrap().is_consistent()
        });
        assert!(begun, "{:#?}", world.trace);
        assert_eq!(kept_of(&world, "/cut", "a")[..30_000], [7; 30_000]);
        world.settle();
        world.assert_equal();
        assert!(shows(&world, "cut"));
        world.check_parts(false);
    }
}

/// The bytes of a file that were kept aside on the mirror, for a new master.
fn kept_of(world: &World, path: &str, master: &str) -> Vec<u8> {
    let kept = world.lost.kept.lock();
    assert_eq!(kept.len(), 1, "{:?}", kept.keys());
    let (index, bytes) = kept.values().next().unwrap();
    assert!(index.complete && index.node == "b" && index.master == master);
    let size = u64::from(index.block_size);
    let mut found = Vec::new();
    for run in index
        .runs
        .iter()
        .filter(|r| r.path.as_deref() == Some(path))
    {
        for block in run.block..run.block + run.blocks {
            let mut before = 0;
            for (start, len) in &index.ranges {
                if (*start..start + len).contains(&block) {
                    let at = ((before + block - start) * size) as usize;
                    found.extend_from_slice(&bytes[at..at + size as usize]);
                }
                before += len;
            }
        }
    }
    found
}

/// Both mirrors have a write, it is acknowledged, and the master dies before it confirms it. The mirror that is promoted
/// then never had it (it was away): what the other one has of it is kept aside before it is dropped.
#[test]
fn what_was_acknowledged_is_kept_aside_when_another_master_lacks_it() {
    for seed in 0..32 {
        let mut world = sync_world(7000 + seed, false);
        let fs = Arc::clone(&world.master.as_ref().unwrap().shared.fs);
        let old = create(&fs, "old", 50_000);
        fs.sync().unwrap();
        world.settle();
        // The other mirror, as it is now.
        let (disk, facts) = (
            world.master_disk.snapshot(),
            world.master_facts.load().unwrap(),
        );
        let len = if seed % 2 == 0 { 3000 } else { 150_000 };
        create(&fs, "new", len);
        fs.write(old, 4096, &[9; 4096]).unwrap();
        let commit = fs.begin_commit().unwrap().unwrap();
        let txid = commit.txid();
        world.committing = true;
        for _ in 0..ROUNDS {
            step(&mut world);
        }
        commit.finish().unwrap();
        world.committing = false;
        let gate = Arc::clone(&world.master.as_ref().unwrap().shared.gate);
        assert!(gate.is_open(txid), "not acknowledged");
        drop((fs, gate));
        if seed % 4 > 1 {
            world.crash_mirror();
            world.start_mirror();
        }
        let follower = world.follower.as_ref().unwrap();
        assert!(follower.durable() == txid && follower.applied() < txid);
        world.take_over("c", disk, &facts);
        if seed > 3 {
            // Power fails here, too, at some moment of the handshake: it comes to the same.
            for _ in 0..(seed - 4) / 4 {
                step(&mut world);
            }
            world.crash_mirror();
            world.start_mirror();
        }
        // In sync by what the master knows comes before the mirror has heard of it.
        for _ in 0..1000 {
            step(&mut world);
        }
        world.settle();
        world.assert_equal();
        assert!(!shows(&world, "new") && shows(&world, "old"));
        let kept = kept_of(&world, "/new", "c");
        assert_eq!(kept[..len], vec![7; len][..], "seed {seed}");
        assert_eq!(kept_of(&world, "/old", "c"), [9; 4096], "seed {seed}");
        let status = world.mirror.as_ref().unwrap().status(world.now());
        assert_eq!(status.bytes_bulk, 0, "it is dropped, not repaired");
        create(world.fs(), "after", 100_000);
        world.settle();
        world.assert_equal();
        world.check_parts(true);
    }
}

#[test]
fn payloads_are_packed_as_asked_and_arrive_as_they_were() {
    let mut world = World::new(5, 8 << 20);
    create(world.fs(), "first", 3 << 20);
    world.create_mirror();
    let mut saved = Vec::new();
    for (n, compress) in [Compress::Zstd, Compress::Lz4, Compress::Off, Compress::Auto]
        .into_iter()
        .enumerate()
    {
        // In the middle of what is under way, a first copy included.
        world.mirror.as_mut().unwrap().set_wishes(Wishes {
            compress: Some(compress),
            ..Wishes::default()
        });
        for m in 0..6 {
            create(world.fs(), &format!("f{n}-{m}"), 4000 + 100_000 * m);
            for _ in 0..3 {
                world.step();
            }
            if m == 3 {
                world.cut_link();
                world.cut = false;
            }
        }
        world.settle();
        world.assert_equal();
        let counters = world.mirror.as_ref().unwrap().status(world.now()).counters;
        saved.push(counters.packed_from_bytes - counters.packed_bytes);
        let shown = match compress {
            Compress::Zstd => "zstd",
            Compress::Lz4 => "lz4",
            // Nothing holds this line up.
            Compress::Off | Compress::Auto => "off",
        };
        assert_eq!(counters.compress, shown);
    }
    assert!(saved[0] > 1 << 20 && saved[1] > saved[0], "{saved:?}");
    assert_eq!(saved[1], saved[3], "packed though told not to");
    world.check_parts(true);
}

#[test]
fn writers_wait_for_a_strict_mirror_until_it_is_back_or_let_go() {
    let mut world = sync_world(3, true);
    let gate = Arc::clone(&world.master.as_ref().unwrap().shared.gate);
    let degraded = |world: &World| {
        let status = world.mirror.as_ref().unwrap().status(world.now());
        (status.degraded, status.reason)
    };
    assert!(!degraded(&world).0);
    let write = |world: &World, name: &str| -> Txid {
        create(world.fs(), name, 5000);
        world.fs().sync().unwrap();
        world
            .master
            .as_ref()
            .unwrap()
            .shared
            .journal
            .last_committed()
    };
    world.cut_link();
    let txid = write(&world, "waits");
    assert!(!gate.is_open(txid));
    let (shown, reason) = degraded(&world);
    assert!(shown && reason.contains("writers wait"), "{reason}");
    world.cut = false;
    world.settle();
    assert!(gate.is_open(txid), "it is back");
    world.cut_link();
    let txid = write(&world, "let go");
    assert!(!gate.is_open(txid));
    set_sync(&mut world, false);
    assert!(gate.is_open(txid), "--strict no");
    assert!(degraded(&world).1.contains("without this sync mirror"));
    set_sync(&mut world, true);
    assert!(!gate.is_open(txid));
    world.request(lockstepfs::mirror::master::Request::Pause);
    assert_eq!(world.state(), State::Idle);
    assert!(gate.is_open(txid), "mirror pause");
}

/// What a resync brings is of no use before its end: were the master to burn down, the mirror would have what it had.
#[test]
fn writers_wait_for_a_strict_mirror_while_it_is_brought_up_to_date() {
    let mut dropped = 0;
    for lost in 0..8 {
        let mut world = sync_world(11 + lost, true);
        let shared = world.master.as_ref().unwrap().shared.clone();
        world.cut_link();
        for n in 0..12 {
            create(world.fs(), &format!("f{n}"), 200_000);
            world.fs().sync().unwrap();
        }
        let slot = Arc::clone(world.mirror.as_ref().unwrap().slot());
        let txid = shared.journal.last_committed();
        let mut state = slot.state.lock();
        state
            .crack(&shared.journal, slot.id, shared.generation, txid)
            .unwrap();
        drop(state);
        create(world.fs(), "last", 5000);
        world.fs().sync().unwrap();
        let txid = shared.journal.last_committed();
        world.cut = false;
        world.until(State::OutOfSync);
        let mut steps = 0;
        while !shared.gate.is_open(txid) {
            step(&mut world);
            steps += 1;
            if steps == lost {
                world.cut_link();
                // What was staged is dropped, and what was acknowledged of it with it, unless it had come to its end.
                let has_it = world.follower.as_ref().unwrap().durable() >= txid;
                assert!(has_it || !shared.gate.is_open(txid));
                dropped += u32::from(!has_it);
                world.cut = false;
            }
        }
        assert!(world.follower.as_ref().unwrap().durable() >= txid);
        assert!(world.follower.as_ref().unwrap().is_consistent());
        world.settle();
        world.assert_equal();
    }
    assert!(dropped > 2, "the link was lost too late");
}

/// What it had acknowledged is of no use either while a direct resync goes over it.
#[test]
fn writers_wait_for_a_strict_mirror_that_loses_what_it_had_to_a_direct_resync() {
    let mut world = sync_world(12, true);
    let wishes = Wishes {
        mode: Some(SyncMode::Sync),
        strict: Some(true),
        resync: Some(Resync::Direct),
        ..Wishes::default()
    };
    world.mirror.as_mut().unwrap().set_wishes(wishes);
    let shared = world.master.as_ref().unwrap().shared.clone();
    world.settle();
    let had = shared.journal.last_committed();
    assert!(shared.gate.is_open(had));
    create(world.fs(), "lacks", 300_000);
    world.fs().sync().unwrap();
    world.crack();
    world.until(State::OutOfSync);
    assert!(!shared.gate.is_open(had));
    while world.state() == State::OutOfSync {
        step(&mut world);
        let whole = world.follower.as_ref().unwrap().is_consistent();
        assert!(whole || !shared.gate.is_open(had));
    }
    world.settle();
    assert!(shared.gate.is_open(shared.journal.last_committed()));
}

#[test]
fn a_mirror_that_says_nothing_is_lost_after_its_timeout() {
    let mut world = sync_world(4, false);
    let gate = Arc::clone(&world.master.as_ref().unwrap().shared.gate);
    create(world.fs(), "f", 5000);
    world.fs().sync().unwrap();
    let txid = world
        .master
        .as_ref()
        .unwrap()
        .shared
        .journal
        .last_committed();
    assert!(!gate.is_open(txid));
    // The link stands, and nothing comes over it.
    let before = world.now();
    world.mute = true;
    while world.state() == State::InSync {
        assert!(!gate.is_open(txid));
        step(&mut world);
        assert!(world.now() < before + std::time::Duration::from_secs(8));
    }
    assert!(world.now() >= before + std::time::Duration::from_secs(6));
    assert!(gate.is_open(txid), "the local write completes");
    let status = world.mirror.as_ref().unwrap().status(world.now());
    assert!(
        status.degraded && status.reason.contains("nothing was acknowledged"),
        "{}",
        status.reason
    );
    world.mute = false;
    world.settle();
    world.assert_equal();
}

/// A transaction of `blocks` blocks arrives, of which `confirmed` is the last that is committed. What the mirror says to it.
fn arrives(
    follower: &mut Follower,
    txid: Txid,
    blocks: u64,
    confirmed: Txid,
) -> Result<Vec<Output>, MirrorError> {
    let Txid(last) = txid;
    let begin = Message::TxnBegin {
        first: last,
        last,
        generation: 1,
        zeroed: Vec::new(),
        freed: Vec::new(),
        touched: Vec::new(),
    };
    follower.frame(begin, Vec::new())?;
    // Of the end of the volume, where there is nothing.
    let end = follower.fs().unwrap().volume().blocks_count();
    let blocks: Vec<u64> = (end - blocks..end).collect();
    let payload = vec![1; blocks.len() * BLOCK as usize];
    follower.frame(Message::TxnBlocks { blocks }, payload)?;
    let end = Message::TxnEnd {
        seq: last,
        last,
        chain: 1,
        confirmed: confirmed.0,
    };
    follower.frame(end, Vec::new())
}

/// The sender never pauses.
#[test]
fn what_waits_to_be_appended_fits_into_memory_and_a_quarter_of_the_log_however_small_it_is() {
    for (buffer, blocks) in [(8 << 20, 0), (8 << 20, 1), (80 << 20, 0), (80 << 20, 40)] {
        let mut world = World::sized(12, 4 * buffer + SIZE, buffer);
        world.create_mirror();
        world.settle();
        let follower = world.follower.as_mut().unwrap();
        let log = Arc::clone(follower.fs().unwrap().journal());
        let room = (log.stats().size_blocks / 4).min((16 << 20) / u64::from(BLOCK));
        let mut txid = follower.durable();
        for _ in 0..3 {
            let used = log.stats().used_blocks;
            let mut waiting = 1;
            txid = txid.next();
            while arrives(follower, txid, blocks, txid).unwrap().is_empty() {
                waiting += 1;
                assert!(waiting < room, "{waiting} transactions wait");
                txid = txid.next();
            }
            assert_eq!(follower.durable(), txid);
            let taken = log.stats().used_blocks - used;
            assert!(taken <= room, "{taken} blocks at once");
            assert!(waiting > room / 50, "not one by one");
        }
    }
}

/// A master sends what it is committing, one by one: it confirms them, or something is wrong with it.
#[test]
fn a_master_that_confirms_nothing_is_left_before_it_fills_the_memory() {
    let mut world = World::new(13, 8 << 20);
    world.create_mirror();
    world.settle();
    let follower = world.follower.as_mut().unwrap();
    let shown = follower.durable();
    let txids = (1..1000).map(|n| Txid(shown.0 + n));
    let refused = txids
        .map(|txid| (txid, arrives(follower, txid, 0, shown)))
        .find(|(_, said)| said.is_err());
    let (txid, refused) = refused.expect("a thousand wait");
    assert!(txid.0 - shown.0 < 512, "{txid} after {shown}");
    assert!(
        matches!(&refused, Err(MirrorError::Protocol(text)) if text.contains("does not confirm"))
    );
    assert_eq!(follower.applied(), shown);
}
