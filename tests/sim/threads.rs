//! Committing and streaming at once, in two threads as in a daemon: what one does between two steps of the other. The
//! other simulations have one thread, and no such steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lockstepfs::fs::{Fs, FsError, New, RenameFlags};
use lockstepfs::mirror::policy::{SyncMode, Wishes};
use lockstepfs::mirror::rate::Rate;
use lockstepfs::mirror::slot::Slot;
use lockstepfs::mirror::stream::{Phase, Stream};
use lockstepfs::units::{BlockNo, Ino};
use states::State;

use crate::world::World;

const ROOT: Ino = Ino(2);
const MIB: u64 = 1 << 20;

/// Transactions go out while they are being committed.
fn in_sync_mode(world: &mut World) {
    world.mirror.as_mut().unwrap().set_wishes(Wishes {
        mode: Some(SyncMode::Sync),
        ..Wishes::default()
    });
    let journal = &world.master.as_ref().unwrap().shared.journal;
    journal.on_prepared(Some(Box::new(|| {})));
}

/// Tells a thread to stop when this one is done with it, or has failed.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Overwrites, new names and removals, each fsynced, until told to stop.
fn write(fs: &Fs, ino: Ino, stop: &AtomicBool, written: &AtomicU64) {
    let new = New {
        mode: 0o100644,
        ..New::default()
    };
    let piece = vec![7; 64 << 10];
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let at = n * 37 % 128 * piece.len() as u64;
        fs.write(ino, at, &n.to_le_bytes().repeat(piece.len() / 8))
            .unwrap();
        let name = |n: u64| format!("name-{n}").into_bytes();
        let made = fs.create(ROOT, &name(n), &new).unwrap().ino;
        fs.write(made, 0, &piece[..(n % 9 * 4096) as usize])
            .unwrap();
        if let Some(old) = n.checked_sub(40) {
            fs.unlink(ROOT, &name(old)).unwrap();
        }
        fs.sync().unwrap();
        written.store(n, Ordering::Relaxed);
    }
}

#[test]
fn a_stream_beside_a_committer_copies_replays_and_survives_cracks() {
    let mut cracks = 0;
    for seed in 0..12 {
        let mut world = World::new(900 + seed, 8 << 20);
        let new = New {
            mode: 0o100644,
            ..New::default()
        };
        let ino = world.fs().create(ROOT, b"f", &new).unwrap().ino;
        world
            .fs()
            .write(ino, 0, &vec![1; 8 * MIB as usize])
            .unwrap();
        world.create_mirror();
        if seed % 2 == 1 {
            in_sync_mode(&mut world);
        }
        let fs = Arc::clone(&world.master.as_ref().unwrap().shared.fs);
        let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| write(&fs, ino, &stop, &written));
            let _stopping = Stopping(&stop);
            for round in 1.. {
                if written.load(Ordering::Relaxed) >= 400 || writer.is_finished() {
                    break;
                }
                // What is decided at a contact is decided beside the writer, too.
                if seed >= 6 && round % 150 == 0 {
                    world.cut_link();
                    world.cut = false;
                }
                world.step();
            }
        });
        let slot = Arc::clone(world.mirror.as_ref().unwrap().slot());
        cracks += slot.state.lock().cracks;
        let failed = |(_, to, _): &&(State, State, String)| *to == State::Error;
        assert!(
            world.trace.iter().find(failed).is_none(),
            "{:#?}",
            world.trace
        );
        world.settle();
        world.assert_equal();
    }
    assert!(cracks > 0, "the writer never was faster than the stream");
}

/// The steps between which a crack of a moment is all but never seen: after the decision and before the stream begins; and
/// after the stream began with what the log still held of what was given up before.
#[test]
fn a_crack_around_the_beginning_of_a_stream_costs_no_map() {
    for before_decision in [false, true] {
        let mut world = World::new(940, 8 << 20);
        let new = New {
            mode: 0o100644,
            ..New::default()
        };
        let ino = world.fs().create(ROOT, b"f", &new).unwrap().ino;
        world.create_mirror();
        world.settle();
        world.cut_link();
        let slot = Arc::clone(world.mirror.as_ref().unwrap().slot());
        let shared = world.master.as_ref().unwrap().shared.clone();
        let cracks = |slot: &Slot| slot.state.lock().cracks;
        let had = slot.state.lock().acked;
        let mut decided = cracks(&slot);
        while cracks(&slot) == 0 {
            world.fs().write(ino, 0, &vec![1; MIB as usize]).unwrap();
            world.fs().sync().unwrap();
        }
        assert!(!shared.journal.covers(had), "{had} is still in the log");
        let mut phase = Phase::Sequencing;
        if before_decision {
            decided = cracks(&slot);
            let (cursor, first) = (BlockNo(0), false);
            phase = Phase::Copy { cursor, first };
        }
        let mut stream = Stream::new(
            Arc::clone(&shared.volume),
            Arc::clone(&shared.journal),
            Arc::clone(&slot),
            shared.generation,
            shared.log.clone(),
            Rate::new(None),
        );
        stream.begin(phase, had, decided).unwrap();
        for _ in 0..3 {
            stream.next(world.now()).unwrap();
        }
        assert!(!slot.state.lock().map_lost, "begun with {phase:?}");
        world.cut = false;
        world.settle();
        world.assert_equal();
    }
}

const PIECE: usize = 64 << 10;

/// In every transaction: the whole of `f` overwritten, `g` replaced by a new file, and the one name in `d` changed.
/// Never further ahead of the reader than a few rounds.
fn replace(fs: &Fs, f: Ino, d: Ino, rounds: u64, seen: &AtomicU64, stop: &AtomicBool) {
    let new = New {
        mode: 0o100644,
        ..New::default()
    };
    let rename = |from: Ino, old: &str, to: Ino, new: &str| {
        let (old, new) = (old.as_bytes(), new.as_bytes());
        fs.rename(from, old, to, new, RenameFlags::default())
            .unwrap();
    };
    for n in 1..=rounds {
        while seen.load(Ordering::Relaxed) + 8 < n && !stop.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let text = n.to_le_bytes().repeat(PIECE / 8);
        fs.write(f, 0, &text).unwrap();
        let next = fs.create(ROOT, b"next", &new).unwrap().ino;
        fs.write(next, 0, &text).unwrap();
        rename(ROOT, "next", ROOT, "g");
        rename(d, &format!("n{}", n - 1), d, &format!("n{n}"));
        fs.sync().unwrap();
    }
}

/// One request each: whatever it sees is of one transaction.
fn look(fs: &Fs, f: Ino, d: Ino) -> Result<u64, FsError> {
    let mut text = vec![0; PIECE];
    let mut uniform = |ino: Ino, generation: u32| {
        let read = fs.read(ino, generation, 0, &mut text)?;
        assert_eq!(read, PIECE);
        assert!(text.chunks(8).all(|word| word == &text[..8]), "two states");
        Ok(u64::from_le_bytes(text[..8].try_into().unwrap()))
    };
    let attr = fs.getattr(f)?;
    uniform(f, attr.generation)?;
    let attr = fs.lookup(ROOT, b"g")?;
    match uniform(attr.ino, attr.generation) {
        // Between the two requests it was replaced.
        Ok(_) | Err(FsError::Stale) => {}
        Err(error) => return Err(error),
    }
    let mut names = Vec::new();
    fs.readdir(d, 0, &mut |entry| {
        names.push(String::from_utf8(entry.name.to_vec()).unwrap());
        true
    })?;
    names.retain(|name| name != "." && name != "..");
    assert_eq!(names.len(), 1, "{names:?}");
    Ok(names[0][1..].parse().unwrap())
}

#[test]
fn a_reader_beside_the_follower_sees_one_state() {
    read_beside(World::new(950, 16 << 20), false);
}

#[test]
fn a_reader_beside_the_follower_of_sync_mode_sees_one_state() {
    read_beside(World::new(951, 16 << 20), true);
}

fn read_beside(mut world: World, sync: bool) {
    let file = New {
        mode: 0o100644,
        ..New::default()
    };
    let fs = Arc::clone(&world.master.as_ref().unwrap().shared.fs);
    let f = fs.create(ROOT, b"f", &file).unwrap().ino;
    // In pieces that are not neighbours on the disk: what one look at the log shows is of one state in any case.
    let apart = fs.create(ROOT, b"apart", &file).unwrap().ino;
    for at in (0..PIECE as u64).step_by(4096) {
        for ino in [f, apart] {
            fs.write(ino, at, &[0; 4096]).unwrap();
            fs.sync().unwrap();
        }
    }
    let g = fs.create(ROOT, b"g", &file).unwrap().ino;
    fs.write(g, 0, &vec![0; PIECE]).unwrap();
    let dir = New {
        mode: 0o040755,
        ..New::default()
    };
    let d = fs.create(ROOT, b"d", &dir).unwrap().ino;
    fs.create(d, b"n0", &file).unwrap();
    world.create_mirror();
    world.settle();
    if sync {
        in_sync_mode(&mut world);
    }
    let mirror = world.follower.as_ref().unwrap().fs().unwrap();
    let rounds = 400;
    let (stop, seen, wrote) = (
        AtomicBool::new(false),
        AtomicU64::new(0),
        AtomicBool::new(false),
    );
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            replace(&fs, f, d, rounds, &seen, &stop);
            wrote.store(true, Ordering::Release);
        });
        let reader = scope.spawn(|| {
            let mut last = 0;
            while last < rounds && !stop.load(Ordering::Relaxed) {
                let now = look(&mirror, f, d).unwrap();
                assert!(now >= last, "from {last} back to {now}");
                seen.store(now, Ordering::Relaxed);
                last = now;
            }
        });
        // Whoever fails first stops the others.
        while !reader.is_finished() {
            world.step();
            let failed = world.state() != State::InSync || writer.is_finished();
            stop.store(
                failed && seen.load(Ordering::Relaxed) + 9 < rounds,
                Ordering::Relaxed,
            );
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        reader.join().unwrap();
    });
    assert_eq!(seen.into_inner(), rounds);
    world.settle();
    world.assert_equal();
}
