// A failed unwrap is a failed test.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};

use proptest::prelude::*;

use super::*;
use crate::fs::alloc::image::{TestFile, TestFs, store_and_check};
use crate::fs::blocks::BlocksMut;

/// Per file block: the volume block and whether it is unwritten.
type Model = BTreeMap<u32, (u64, bool)>;

fn contents(fs: &TestFs, file: &TestFile) -> Model {
    let mut found = Model::new();
    let from = FileBlock(0);
    for_each(fs, file.owner, &file.root, from, 1 << 32, &mut |e| {
        for i in 0..e.range.len {
            let old = found.insert(e.file.0 + i as u32, (e.range.start.0 + i, e.unwritten));
            assert_eq!(old, None);
        }
        Ok(true)
    })
    .unwrap();
    found
}

/// Looks every block up by `map`, in pieces of `step`.
fn mapped(fs: &TestFs, file: &TestFile, end: u32, step: u32) -> Model {
    let mut found = Model::new();
    let mut at = 0;
    while at < end {
        match map(fs, file.owner, &file.root, FileBlock(at), step).unwrap() {
            Mapping::Hole(len) => at += len,
            Mapping::Mapped {
                block,
                len,
                unwritten,
            } => {
                for i in 0..len {
                    found.insert(at + i, (block.0 + u64::from(i), unwritten));
                }
                at += len;
            }
        }
    }
    found
}

fn has_neighbours_that_could_be_one(fs: &TestFs, file: &TestFile) -> bool {
    let mut last: Option<Extent> = None;
    let mut found = false;
    let from = FileBlock(0);
    for_each(fs, file.owner, &file.root, from, 1 << 32, &mut |e| {
        found |= last.is_some_and(|l| l.joined(&e).is_some());
        last = Some(e);
        Ok(true)
    })
    .unwrap();
    found
}

#[derive(Clone, Debug)]
enum Op {
    Insert {
        at: u32,
        len: u32,
        unwritten: bool,
        goal: u64,
    },
    Convert {
        at: u32,
        len: u32,
    },
    Remove {
        at: u32,
        len: u32,
        budget: usize,
    },
    Commit,
}

const SPAN: u32 = 600;

fn op() -> impl Strategy<Value = Op> {
    let place = (0u32..SPAN, prop_oneof![1u32..4, 1u32..200]);
    prop_oneof![
        6 => (place.clone(), any::<bool>(), 0u64..16384).prop_map(|((at, len), unwritten, goal)| Op::Insert { at, len, unwritten, goal }),
        3 => place.clone().prop_map(|(at, len)| Op::Convert { at, len }),
        3 => (place, prop_oneof![1usize..12, Just(usize::MAX)]).prop_map(|((at, len), budget)| Op::Remove { at, len, budget }),
        1 => Just(Op::Commit),
    ]
}

/// Images to start from; made once.
static PLAIN: LazyLock<Mutex<TestFs>> =
    LazyLock::new(|| Mutex::new(TestFs::make(16, &["-b", "1024"])));
static NO_CHECKSUMS: LazyLock<Mutex<TestFs>> = LazyLock::new(|| {
    Mutex::new(TestFs::make(
        16,
        &["-b", "1024", "-O", "^metadata_csum,^64bit"],
    ))
});

fn run(fs: &mut TestFs, ops: &[Op]) {
    let mut file = TestFile::create(fs, false, 0x1234_5678);
    let mut model = Model::new();
    for op in ops {
        match *op {
            Op::Insert {
                at,
                len,
                unwritten,
                goal,
            } => {
                // Only into holes, one run at a time.
                let room = (at..at + len)
                    .take_while(|b| !model.contains_key(b))
                    .count();
                if room == 0 {
                    continue;
                }
                let goal = match at.checked_sub(1).and_then(|b| model.get(&b)) {
                    // Often where it can be merged.
                    Some(&(block, _)) if goal % 2 == 0 => block + 1,
                    _ => goal,
                };
                let range = fs.alloc(BlockNo(goal), 1, room as u32).unwrap();
                fs.meta.touched.clear();
                let credits = insert_credits(&file.root);
                file.insert(fs, at, range, unwritten).unwrap();
                assert!(fs.meta.touched.len() <= credits);
                for (i, block) in range.blocks().enumerate() {
                    model.insert(at + i as u32, (block.0, unwritten));
                }
            }
            Op::Convert { at, len } => {
                file.convert(fs, at, len).unwrap();
                for (_, (_, unwritten)) in model.range_mut(at..at + len) {
                    *unwritten = false;
                }
            }
            Op::Remove { at, len, budget } => {
                let mut to = u64::from(at + len);
                while let Some(stopped) = file.remove(fs, at, to, budget).unwrap() {
                    assert!(u64::from(stopped) < to, "no progress");
                    to = stopped.into();
                    fs.commit();
                }
                model.retain(|b, _| !(at..at + len).contains(b));
            }
            Op::Commit => fs.commit(),
        }
        assert_eq!(contents(fs, &file), model);
        let data = model.len();
        let nodes = metadata_blocks(fs, file.owner, &file.root).unwrap().len();
        assert_eq!(file.blocks, (data + nodes) as u64);
    }
    assert_eq!(mapped(fs, &file, SPAN + 200, 7), model);
    store_and_check(fs, &[file]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_edits_is_what_a_map_of_blocks_says(
        ops in proptest::collection::vec(op(), 1..150),
    ) {
        let mut fs = PLAIN.lock().unwrap_or_else(|e| e.into_inner()).copy();
        run(&mut fs, &ops);
    }

    #[test]
    fn also_without_checksums(ops in proptest::collection::vec(op(), 1..100)) {
        let mut fs = NO_CHECKSUMS.lock().unwrap_or_else(|e| e.into_inner()).copy();
        run(&mut fs, &ops);
    }
}

/// A file of `count` single blocks with a hole behind each, inserted in the order of `key`.
fn scattered(fs: &mut TestFs, count: u32, order: impl Fn(u32) -> u32) -> (TestFile, Model) {
    let mut file = TestFile::create(fs, false, 7);
    let mut at: Vec<u32> = (0..count).collect();
    at.sort_by_key(|&i| order(i));
    let mut model = Model::new();
    for i in at {
        let range = fs.alloc(BlockNo(0), 1, 1).unwrap();
        fs.meta.touched.clear();
        let credits = insert_credits(&file.root);
        file.insert(fs, i * 2, range, i % 3 == 0).unwrap();
        assert!(fs.meta.touched.len() <= credits);
        model.insert(i * 2, (range.start.0, i % 3 == 0));
    }
    (file, model)
}

/// Metadata blocks that a step of a long removal may change.
const BUDGET: usize = 16;

fn deep(count: u32, depth_at_least: usize, order: impl Fn(u32) -> u32) {
    let mut fs = TestFs::make(64, &["-b", "1024"]);
    let free = fs.allocator.free_blocks();
    let (mut file, model) = scattered(&mut fs, count, order);
    assert!(depth(&file.root) >= depth_at_least, "{}", depth(&file.root));
    assert_eq!(contents(&fs, &file), model);
    assert_eq!(mapped(&fs, &file, count * 2, 1 << 20), model);
    file.store(&mut fs);
    store_and_check(&mut fs, std::slice::from_ref(&file));

    // A third goes from the middle, the rest in small steps.
    fs.allocator.reload(&fs.meta).unwrap();
    file.remove(&mut fs, count / 2, u64::from(count), usize::MAX)
        .unwrap();
    let left: Model = model
        .into_iter()
        .filter(|(b, _)| !(count / 2..count).contains(b))
        .collect();
    assert_eq!(contents(&fs, &file), left);
    fs.commit();
    let mut to = 1 << 32;
    let mut steps = 0;
    loop {
        fs.meta.touched.clear();
        let stopped = file.remove(&mut fs, 0, to, BUDGET).unwrap();
        assert!(fs.meta.touched.len() <= BUDGET, "{:?}", fs.meta.touched);
        let Some(stopped) = stopped else { break };
        assert!(u64::from(stopped) < to);
        to = stopped.into();
        steps += 1;
        fs.commit();
    }
    assert!(steps > 20, "{steps}");
    assert_eq!((file.blocks, depth(&file.root)), (0, 0));
    assert_eq!(fs.allocator.free_blocks(), free);
    file.end = 0;
    file.store(&mut fs);
    fs.fsck();
}

#[test]
fn a_deep_tree_grows_and_goes_in_order() {
    deep(29_000, 3, |i| i);
}

#[test]
fn a_deep_tree_grows_and_goes_backwards() {
    deep(12_000, 3, |i| u32::MAX - i);
}

#[test]
fn a_deep_tree_grows_and_goes_in_any_order() {
    deep(20_000, 3, |i| i.wrapping_mul(2_654_435_761).rotate_left(7));
}

#[test]
fn long_extents_stop_at_what_ee_len_can_say() {
    let mut fs = TestFs::make(160, &["-b", "1024", "-O", "^resize_inode", "-G", "64"]);
    for unwritten in [false, true] {
        let mut file = TestFile::create(&mut fs, false, 1);
        let mut at = 0;
        let mut goal = 9000;
        while at < 70_000 {
            let range = fs.alloc_now(goal, 1, 70_000 - at).unwrap();
            goal = range.end().0;
            file.insert(&mut fs, at, range, unwritten).unwrap();
            at += range.len as u32;
        }
        let limit = u64::from(Extent::limit(unwritten));
        let mut longest = 0;
        let from = FileBlock(0);
        for_each(&fs, file.owner, &file.root, from, 1 << 32, &mut |e| {
            longest = longest.max(e.range.len);
            Ok(true)
        })
        .unwrap();
        // Pieces of 8192 blocks: the fourth does not fit into an unwritten extent any more.
        assert_eq!(longest, if unwritten { 24_576 } else { limit });
        if unwritten {
            file.convert(&mut fs, 100, 40_000).unwrap();
        }
        assert_eq!(contents(&fs, &file).len(), 70_000);
        store_and_check(&mut fs, std::slice::from_ref(&file));
        fs.allocator.reload(&fs.meta).unwrap();
        file.remove_all(&mut fs);
        file.end = 0;
        file.store(&mut fs);
        fs.commit();
        fs.debugfs(&format!("unlink f{0}\n", file.slot.ino));
        fs.allocator.reload(&fs.meta).unwrap();
        file.delete(&mut fs);
        fs.fsck();
    }
}

#[test]
fn writing_through_a_preallocated_range_keeps_the_tree_small() {
    let mut fs = PLAIN.lock().unwrap_or_else(|e| e.into_inner()).copy();
    let mut file = TestFile::create(&mut fs, false, 1);
    let range = fs.alloc_now(5000, 400, 400).unwrap();
    file.insert(&mut fs, 0, range, true).unwrap();
    for at in (0..400).step_by(10) {
        file.convert(&mut fs, at, 10).unwrap();
        assert!(!has_neighbours_that_could_be_one(&fs, &file));
        assert_eq!(depth(&file.root), 0);
    }
    assert_eq!(node::entries(&file.root), 1);
    store_and_check(&mut fs, &[file]);
}

#[test]
fn a_full_volume_leaves_the_tree_as_it_was() {
    let mut fs = PLAIN.lock().unwrap_or_else(|e| e.into_inner()).copy();
    let mut file = TestFile::create(&mut fs, false, 1);
    for i in 0..4 {
        let range = fs.alloc_now(3000 + u64::from(i) * 10, 1, 1).unwrap();
        file.insert(&mut fs, i * 2, range, true).unwrap();
    }
    let last = fs.alloc_now(3200, 3, 3).unwrap();
    let mut hog = TestFile::create(&mut fs, false, 2);
    let mut at = 0;
    while let Ok(range) = fs.alloc_now(0, 1, 1 << 20) {
        // The hog's own nodes need space too: it stops while a little is left.
        if fs.allocator.free_blocks() < 8 {
            fs.free(range).unwrap();
            break;
        }
        hog.insert(&mut fs, at, range, true).unwrap();
        at += range.len as u32;
    }
    let mut taken = Vec::new();
    fs.commit();
    while let Ok(range) = fs.alloc_now(0, 1, 1) {
        taken.push(range);
    }
    let before = file.root;
    let refused = file.insert(&mut fs, 100, last, false);
    assert!(matches!(refused, Err(FsError::NoSpace)), "{refused:?}");
    let refused = file.convert(&mut fs, 0, 1);
    assert!(refused.is_ok(), "no node was needed: {refused:?}");
    assert_eq!(node::entries(&before), 4);
    assert_eq!(contents(&fs, &file).len(), 4);
    for range in taken.into_iter().chain([last]) {
        fs.free(range).unwrap();
    }
    store_and_check(&mut fs, &[file, hog]);
}

#[test]
fn a_tree_that_points_into_metadata_is_corrupt() {
    let mut fs = PLAIN.lock().unwrap_or_else(|e| e.into_inner()).copy();
    let mut file = TestFile::create(&mut fs, false, 1);
    // The group descriptors follow the superblock.
    let gdt = BlockRange::new(BlockNo(2), 1);
    file.insert(&mut fs, 0, gdt, false).unwrap();
    let corrupt = |r: Result<(), FsError>| assert!(matches!(r, Err(FsError::Corrupt { .. })));
    corrupt(map(&fs, file.owner, &file.root, FileBlock(0), 1).map(|_| ()));
    corrupt(file.remove(&mut fs, 0, 1, 100).map(|_| ()));
    // A root that says depth 1, its child being the descriptors.
    file.root[6] = 1;
    file.root[16..20].copy_from_slice(&2u32.to_le_bytes());
    file.root[20..24].copy_from_slice(&[0; 4]);
    corrupt(map(&fs, file.owner, &file.root, FileBlock(0), 1).map(|_| ()));
}

#[test]
fn a_changed_byte_in_a_node_is_seen() {
    let mut fs = PLAIN.lock().unwrap_or_else(|e| e.into_inner()).copy();
    let (file, _) = scattered(&mut fs, 50, |i| i);
    let nodes = metadata_blocks(&fs, file.owner, &file.root).unwrap();
    assert_eq!(nodes.len(), 1);
    fs.modify(nodes[0]).unwrap()[100] ^= 1;
    let found = map(&fs, file.owner, &file.root, FileBlock(0), 1);
    assert!(matches!(found, Err(FsError::Corrupt { .. })), "{found:?}");
    let other = Owner {
        generation: 8,
        ..file.owner
    };
    fs.modify(nodes[0]).unwrap()[100] ^= 1;
    assert!(map(&fs, file.owner, &file.root, FileBlock(0), 1).is_ok());
    assert!(map(&fs, other, &file.root, FileBlock(0), 1).is_err());
}

/// Blocks of any bytes, without checksums: what a hostile image can hold.
struct Hostile {
    sb: Superblock,
    blocks: Vec<Image>,
    left: u32,
}

impl Blocks for Hostile {
    fn sb(&self) -> &Superblock {
        &self.sb
    }

    fn get(&self, block: BlockNo) -> Result<Image, FsError> {
        Ok(self.blocks[block.0 as usize % self.blocks.len()].clone())
    }
}

impl BlocksMut for Hostile {
    fn modify(&mut self, block: BlockNo) -> Result<&mut [u8], FsError> {
        let n = self.blocks.len();
        Ok(Arc::make_mut(&mut self.blocks[block.0 as usize % n]))
    }

    fn create(&mut self, block: BlockNo) -> Result<&mut [u8], FsError> {
        let bytes = self.modify(block)?;
        bytes.fill(0);
        Ok(bytes)
    }

    fn alloc(&mut self, goal: BlockNo, _: u32, _: u32) -> Result<BlockRange, FsError> {
        self.left = self.left.checked_sub(1).ok_or(FsError::NoSpace)?;
        Ok(BlockRange::new(BlockNo(goal.0 % 16000 + 100), 1))
    }

    fn free(&mut self, _: BlockRange) -> Result<(), FsError> {
        Ok(())
    }

    fn now(&self) -> (i64, u32) {
        (0, 0)
    }
}

/// A node that is nearly right: header in order, entries with small numbers.
fn hostile_node(depth: u16, max: u16, numbers: Vec<u32>, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let entries = (numbers.len() / 3).min(usize::from(max));
    bytes[0..2].copy_from_slice(&0xF30Au16.to_le_bytes());
    bytes[2..4].copy_from_slice(&(entries as u16).to_le_bytes());
    bytes[4..6].copy_from_slice(&max.to_le_bytes());
    bytes[6..8].copy_from_slice(&depth.to_le_bytes());
    let mut key = 0u32;
    for (i, n) in numbers.chunks_exact(3).take(entries).enumerate() {
        let at = 12 * (i + 1);
        key = key.saturating_add(n[0]);
        bytes[at..at + 4].copy_from_slice(&key.to_le_bytes());
        if depth > 0 {
            bytes[at + 4..at + 8].copy_from_slice(&(n[1] % 8 + 100).to_le_bytes());
        } else {
            bytes[at + 4..at + 6].copy_from_slice(&(n[2] as u16).to_le_bytes());
            bytes[at + 8..at + 12].copy_from_slice(&(n[1] % 16000).to_le_bytes());
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_an_edit_panic_or_loop(
        root in (0u16..7, 0u16..6, proptest::collection::vec(0u32..40, 0..15)),
        nodes in proptest::collection::vec((0u16..5, prop_oneof![1u16..4, Just(84), any::<u16>()], proptest::collection::vec(0u32..40, 0..30)), 8),
        flips in proptest::collection::vec((0usize..8, 0usize..1024, any::<u8>()), 0..4),
        at in 0u32..300, len in 1u32..200, budget in 1usize..30,
    ) {
        let sb = NO_CHECKSUMS.lock().unwrap_or_else(|e| e.into_inner()).meta.sb_clone();
        let mut blocks: Vec<Vec<u8>> = nodes.into_iter().map(|(d, m, n)| hostile_node(d, m, n, 1024)).collect();
        for (node, byte, value) in flips {
            blocks[node][byte] = value;
        }
        let blocks: Vec<Image> = blocks.into_iter().map(Image::from).collect();
        let mut start = [0; 60];
        start.copy_from_slice(&hostile_node(root.0, root.1.min(4), root.2, 60));
        let owner = Owner { ino: Ino(12), generation: 0 };
        let fresh = || Hostile { sb: sb.clone(), blocks: blocks.clone(), left: 40 };
        let at = FileBlock(at);
        let _ = map(&fresh(), owner, &start, at, len);
        let _ = for_each(&fresh(), owner, &start, FileBlock(0), 1 << 32, &mut |_| Ok(true));
        let _ = metadata_blocks(&fresh(), owner, &start);
        let range = BlockRange::new(BlockNo(900), u64::from(len));
        let _ = insert(&mut fresh(), owner, &mut start.clone(), at, range, budget % 2 == 0);
        let _ = convert(&mut fresh(), owner, &mut start.clone(), at, len);
        let _ = remove(&mut fresh(), owner, &mut start.clone(), at, u64::from(at.0 + len), budget);
        let _ = remove(&mut fresh(), owner, &mut start.clone(), FileBlock(0), 1 << 32, budget);
    }
}
