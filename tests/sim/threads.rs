//! Committing and streaming at once, in two threads as in a daemon: what one does between two steps of the other. The
//! other simulations have one thread, and no such steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lockstepfs::fs::{Fs, New};
use lockstepfs::units::Ino;
use states::State;

use crate::world::World;

const ROOT: Ino = Ino(2);
const MIB: u64 = 1 << 20;

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
    for seed in 0..6 {
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
        let fs = Arc::clone(&world.master.as_ref().unwrap().shared.fs);
        let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| write(&fs, ino, &stop, &written));
            while written.load(Ordering::Relaxed) < 400 && !writer.is_finished() {
                world.step();
            }
            stop.store(true, Ordering::Relaxed);
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
