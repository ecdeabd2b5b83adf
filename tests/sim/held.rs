//! What a mirror in sync mode would hold back after a power cut, because nothing durable says that its master confirmed it.

use std::sync::Arc;

use lockstepfs::io::Disk;
use lockstepfs::units::Ino;
use lockstepfs::wire::message::{Message, Range};

use crate::sync::{create, step, sync_world};
use crate::world::{BLOCK, World};

const ROOT: Ino = Ino(2);
const LEN: usize = 1 << 20;

/// The last block of nothing but `byte` on the mirror's disk: the log lies before it.
fn home_of(world: &World, byte: u8) -> Option<u64> {
    let disk = &world.mirror_parts.disk;
    let mut block = vec![0; BLOCK as usize];
    let blocks = disk.len() / u64::from(BLOCK);
    (0..blocks).rev().find(|at| {
        disk.read_at(&mut block, at * u64::from(BLOCK)).unwrap();
        block.iter().all(|b| *b == byte)
    })
}

/// A block of a file that is gone is written over by the next transaction. After a power cut the mirror may be back at the
/// state in which the file is there: then it has its contents.
#[test]
fn what_a_mirror_may_have_to_show_again_is_not_written_over() {
    let mut world = sync_world(14, false);
    let gone = create(world.fs(), "gone", 1);
    world.fs().write(gone, 0, &vec![9; LEN]).unwrap();
    world.fs().sync().unwrap();
    world.settle();
    let block = home_of(&world, 9).expect("the file's contents are home");
    world.committing = true;
    let shared = world.master.as_ref().unwrap().shared.clone();
    let fs = Arc::clone(&shared.fs);
    fs.unlink(ROOT, b"gone").unwrap();
    let commit = fs.begin_commit().unwrap().unwrap();
    let freed = commit.txid();
    while world.follower.as_ref().unwrap().durable() < freed {
        step(&mut world);
    }
    commit.finish().unwrap();
    while world.follower.as_ref().unwrap().applied() < freed {
        step(&mut world);
    }
    let follower = world.follower.as_mut().unwrap();
    let begin = Message::TxnBegin {
        first: freed.next().0,
        last: freed.next().0,
        generation: shared.generation.0,
        zeroed: Vec::new(),
        freed: Vec::new(),
        touched: Vec::new(),
    };
    let ranges = vec![Range {
        start: block,
        len: 1,
    }];
    follower.frame(begin, Vec::new()).unwrap();
    let fresh = Message::TxnFresh { ranges };
    follower.frame(fresh, vec![5; BLOCK as usize]).unwrap();
    assert_eq!(home_of(&world, 5), Some(block));
    world.mirror_parts.disk.flush().unwrap();
    world.crash_mirror();
    world.start_mirror();
    let fs = world.follower.as_ref().unwrap().fs().expect("it is open");
    if let Ok(attr) = fs.lookup(ROOT, b"gone") {
        let mut bytes = vec![0; LEN];
        let read = fs.read(attr.ino, attr.generation, 0, &mut bytes).unwrap();
        assert!(read == LEN && bytes.iter().all(|b| *b == 9), "written over");
    }
}
