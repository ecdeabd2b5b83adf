use std::collections::BTreeSet;
use std::fs;

use proptest::prelude::*;

use super::*;
use crate::fs::dir::fixture::{FIRST_INO, TestImage, TestVolume};

/// A volume with its orphan file, if it has one.
struct Store {
    volume: TestVolume,
    file: Vec<BlockNo>,
}

impl Store {
    fn open(image: TestImage) -> Store {
        let volume = TestVolume::open(image);
        let mut file = Vec::new();
        let inum = volume.sb.s_orphan_file_inum();
        if volume.sb.has_orphan_file() {
            let said = volume.image.debugfs(&format!("blocks <{inum}>\n"));
            let list = said
                .lines()
                .rfind(|line| !line.contains("debugfs"))
                .unwrap();
            file = list
                .split_ascii_whitespace()
                .map(|word| BlockNo(word.parse().unwrap()))
                .collect();
            let size = volume.inode(Ino(inum)).i_size(&volume.sb);
            assert_eq!(file.len() as u64, size / u64::from(volume.sb.block_size()));
        }
        Store { volume, file }
    }

    fn block(&mut self, at: BlockNo) -> &mut [u8] {
        let size = self.volume.sb.block_size() as usize;
        &mut self.volume.bytes[at.0 as usize * size..][..size]
    }
}

impl OrphanStore for Store {
    fn sb(&self) -> &Superblock {
        &self.volume.sb
    }
    fn set_s_last_orphan(&mut self, ino: u32) -> Result<(), FsError> {
        self.volume.sb.set_s_last_orphan(ino);
        self.volume.put_sb();
        Ok(())
    }
    fn set_orphan_present(&mut self, present: bool) -> Result<(), FsError> {
        self.volume
            .sb
            .set_ro_compat(ORPHAN_PRESENT, present)
            .unwrap();
        self.volume.put_sb();
        Ok(())
    }
    fn i_dtime(&self, ino: Ino) -> Result<u32, FsError> {
        Ok(self.volume.inode(ino).i_dtime())
    }
    fn set_i_dtime(&mut self, ino: Ino, value: u32) -> Result<(), FsError> {
        let mut inode = self.volume.inode(ino);
        inode.set_i_dtime(value);
        self.volume.put_inode(ino, &mut inode);
        Ok(())
    }
    fn orphan_file(&self) -> Result<(u32, u32), FsError> {
        let inode = self.volume.inode(Ino(self.volume.sb.s_orphan_file_inum()));
        Ok((inode.i_generation(), self.file.len() as u32))
    }
    fn orphan_block(&self, block: FileBlock) -> Result<(BlockNo, Image), FsError> {
        let at = self.file[block.0 as usize];
        let size = self.volume.sb.block_size() as usize;
        Ok((at, self.volume.bytes[at.0 as usize * size..][..size].into()))
    }
    fn modify_orphan_block(&mut self, block: FileBlock) -> Result<(BlockNo, &mut [u8]), FsError> {
        let at = self.file[block.0 as usize];
        Ok((at, self.block(at)))
    }
}

/// An image with so many files that have no name and no links, and are no orphans yet, and the number of the first one.
fn nameless(features: &str, files: u32) -> (Store, u32) {
    let image = TestImage::new(features, 1024, "16M");
    let first = if image.sb().has_orphan_file() {
        FIRST_INO + 1
    } else {
        FIRST_INO
    };
    let data = image.temp.path().join("data");
    fs::write(&data, [1; 3000]).unwrap();
    let mut script = String::new();
    for i in 0..files {
        let ino = first + i;
        script += &format!(
            "write {} f{i}\nunlink f{i}\nsif <{ino}> links_count 0\n",
            data.display()
        );
    }
    image.debugfs(&script);
    (Store::open(image), first)
}

const FEATURES: [&str; 4] = [
    "has_journal",
    "has_journal,^metadata_csum",
    "has_journal,orphan_file",
    "has_journal,orphan_file,^metadata_csum",
];

#[test]
fn orphans_come_and_go_in_any_order_and_the_kernel_deletes_the_rest() {
    for features in FEATURES {
        let files = 700;
        let (mut store, first) = nameless(features, files);
        let mut orphans = Orphans::open(&store).unwrap();
        assert!(orphans.is_empty());
        let mut model = BTreeSet::new();
        let mut state = 7u64;
        for round in 0..6000u32 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let ino = Ino(first + (state >> 33) as u32 % files);
            // More come than go, then all go, then they come again.
            let adds = match round {
                0..2500 => 3,
                2500..4500 => 0,
                _ => 4,
            };
            if (state >> 20) % 4 < adds {
                orphans.add(&mut store, ino).unwrap();
                model.insert(ino);
            } else {
                orphans.remove(&mut store, ino).unwrap();
                model.remove(&ino);
            }
            if round % 250 == 0 {
                let present = store.sb().has_ro_compat(ORPHAN_PRESENT);
                let again = Orphans::open(&store).unwrap();
                let expected: Vec<Ino> = model.iter().copied().collect();
                assert_eq!(again.list(), expected);
                assert_eq!(orphans.list(), expected);
                assert_eq!(present, again.slots_taken > 0);
                orphans = again;
            }
        }
        // A list has an end to be deleted, everything in it: those that are not in it get a name back by e2fsck only.
        for i in 0..files {
            orphans.add(&mut store, Ino(first + i)).unwrap();
        }
        assert_eq!(store.sb().has_orphan_file(), orphans.slots_taken > 0);
        store.volume.write_out();
        let Some(mounted) = store.volume.image.mount() else {
            return;
        };
        drop(mounted);
        store.volume.image.check();
        let store = Store::open(store.volume.image);
        assert!(Orphans::open(&store).unwrap().is_empty());
        assert_eq!(
            store.sb().s_free_inodes_count(),
            store.sb().s_inodes_count() - first + 1
        );
    }
}

#[test]
fn what_the_kernel_left_is_read() {
    for features in FEATURES {
        let image = TestImage::new(features, 1024, "16M");
        let Some(mounted) = image.mount() else {
            return;
        };
        let mut open = Vec::new();
        let mut expected = BTreeSet::new();
        for i in 0..50 {
            use std::os::unix::fs::MetadataExt;
            let path = mounted.dir().join(format!("f{i}"));
            let file = fs::File::create(&path).unwrap();
            if i % 3 != 0 {
                expected.insert(Ino(file.metadata().unwrap().ino() as u32));
                fs::remove_file(&path).unwrap();
            }
            open.push(file);
        }
        for file in &open {
            file.sync_all().unwrap();
        }
        // As after a crash: the files are still open.
        let crashed = TestImage::new("^has_journal", 1024, "1M");
        fs::copy(&image.path, &crashed.path).unwrap();
        drop(open);
        drop(mounted);
        // Replays the journal, and no more.
        crashed.debugfs("jr\n");
        let mut store = Store::open(crashed);
        let mut orphans = Orphans::open(&store).unwrap();
        let list: BTreeSet<Ino> = orphans.list().into_iter().collect();
        assert_eq!(list, expected, "{features}");
        for ino in expected {
            orphans.remove(&mut store, ino).unwrap();
            orphans.remove(&mut store, ino).unwrap();
        }
        assert!(Orphans::open(&store).unwrap().is_empty());
        assert!(!store.sb().has_ro_compat(ORPHAN_PRESENT));
        assert_eq!(store.sb().s_last_orphan(), 0);
    }
}

#[test]
fn a_bit_that_says_otherwise_than_the_file_is_settled() {
    let (mut store, first) = nameless("has_journal,orphan_file", 3);
    store.set_orphan_present(true).unwrap();
    let mut orphans = Orphans::open(&store).unwrap();
    orphans.settle(&mut store).unwrap();
    assert!(!store.sb().has_ro_compat(ORPHAN_PRESENT));
    orphans.add(&mut store, Ino(first)).unwrap();
    store.set_orphan_present(false).unwrap();
    orphans.settle(&mut store).unwrap();
    assert!(store.sb().has_ro_compat(ORPHAN_PRESENT));
}

#[test]
fn damage_is_an_error_and_never_a_walk_without_end() {
    let (mut store, first) = nameless("has_journal,^metadata_csum", 20);
    let mut orphans = Orphans::open(&store).unwrap();
    for i in 0..20 {
        orphans.add(&mut store, Ino(first + i)).unwrap();
    }
    for (ino, next) in [(first + 5, first + 9), (first + 3, 5), (first + 2, 1 << 31)] {
        let before = store.i_dtime(Ino(ino)).unwrap();
        store.set_i_dtime(Ino(ino), next).unwrap();
        assert_eq!(Orphans::open(&store).unwrap_err().errno(), libc::EUCLEAN);
        store.set_i_dtime(Ino(ino), before).unwrap();
    }
    Orphans::open(&store).unwrap();
    for features in [
        "has_journal,orphan_file",
        "has_journal,orphan_file,^metadata_csum",
    ] {
        let (store, first) = nameless(features, 20);
        let store = std::cell::RefCell::new(store);
        let whole = store.borrow().volume.bytes.clone();
        proptest!(ProptestConfig::with_cases(300), |(
            spots in proptest::collection::vec((any::<u8>(), 0..1024usize, any::<u8>()), 1..5),
        )| {
            let mut store = store.borrow_mut();
            let store = &mut *store;
            store.volume.bytes.copy_from_slice(&whole);
            for (block, byte, value) in spots {
                let at = store.file[usize::from(block) % store.file.len()];
                store.block(at)[byte] = value;
            }
            if let Ok(mut orphans) = Orphans::open(store) {
                let _ = orphans.add(store, Ino(first));
                let _ = orphans.remove(store, Ino(first));
            }
        });
    }
}
