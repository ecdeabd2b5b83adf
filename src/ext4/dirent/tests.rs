use super::*;
use proptest::prelude::*;

const LAYOUT: DirLayout = DirLayout {
    inodes_count: 1000,
    filetype: true,
    tail: true,
};

fn names(layout: &DirLayout, block: &[u8]) -> Vec<Vec<u8>> {
    layout
        .entries(block)
        .map(|e| e.unwrap())
        .filter(|e| e.ino.is_some())
        .map(|e| e.name.to_vec())
        .collect()
}

#[test]
fn a_new_directory_of_literal_bytes() {
    let mut block = vec![0xAA; 1024];
    LAYOUT.init_dir(&mut block, Ino(12), Ino(2));
    assert_eq!(&block[..12], [12, 0, 0, 0, 12, 0, 1, 2, b'.', 0, 0, 0]);
    // 1024 - 12 - 12 = 1000 = 0x3e8
    assert_eq!(
        &block[12..24],
        [2, 0, 0, 0, 0xE8, 3, 2, 2, b'.', b'.', 0, 0]
    );
    assert_eq!(&block[1012..1020], [0, 0, 0, 0, 12, 0, 0, 0xDE]);
    LAYOUT.check(&block).unwrap();
    assert!(LAYOUT.is_empty(&block).unwrap());
    LAYOUT.update(5, &mut block).unwrap();
    LAYOUT.verify(5, &block).unwrap();
    assert!(LAYOUT.verify(6, &block).is_err());
}

#[test]
fn the_tail_is_never_taken_for_slack() {
    for tail in [false, true] {
        let layout = DirLayout { tail, ..LAYOUT };
        let mut block = vec![0; 1024];
        layout.init_dir(&mut block, Ino(12), Ino(2));
        let mut n = 0;
        loop {
            match layout.insert(
                &mut block,
                format!("f{n:06}").as_bytes(),
                Ino(20),
                FileType::Regular,
            ) {
                Ok(_) => n += 1,
                Err(EditError::Refused(Refused::NoRoom { need: 16 })) => break,
                Err(other) => panic!("{other}"),
            }
            layout.check(&block).unwrap();
        }
        assert_eq!(n, (layout.usable(1024) - 24) / 16);
        layout.update(1, &mut block).unwrap();
        layout.verify(1, &block).unwrap();
    }
}

#[test]
fn removing_merges_into_the_entry_before() {
    let mut block = vec![0; 1024];
    LAYOUT.init_empty(&mut block);
    for name in ["a", "b", "c"] {
        LAYOUT
            .insert(&mut block, name.as_bytes(), Ino(20), FileType::Symlink)
            .unwrap();
    }
    let removed = LAYOUT.remove(&mut block, b"b").unwrap();
    assert_eq!(removed.file_type, FileType::Symlink);
    assert_eq!(LAYOUT.entry(&block, 0).unwrap().rec_len, 24);
    LAYOUT.remove(&mut block, b"a").unwrap();
    assert_eq!(LAYOUT.entry(&block, 0).unwrap().ino, None);
    assert_eq!(names(&LAYOUT, &block), [b"c"]);
    assert_eq!(
        LAYOUT.remove(&mut block, b"b"),
        Err(EditError::Refused(Refused::NotFound))
    );
    LAYOUT
        .insert(&mut block, b"longer name", Ino(21), FileType::Regular)
        .unwrap();
    assert_eq!(names(&LAYOUT, &block), [&b"longer name"[..], b"c"]);
    assert_eq!(
        LAYOUT.insert(&mut block, b"c", Ino(21), FileType::Regular),
        Err(EditError::Refused(Refused::Exists))
    );
}

#[test]
fn names_that_must_not_be_stored() {
    let mut block = vec![0; 1024];
    LAYOUT.init_empty(&mut block);
    for name in [&b""[..], &[b'x'; 256], b"a/b", b"a\0"] {
        assert!(matches!(
            LAYOUT.insert(&mut block, name, Ino(20), FileType::Regular),
            Err(EditError::Refused(Refused::BadName { .. }))
        ));
    }
    LAYOUT
        .insert(&mut block, &[b'x'; 255], Ino(20), FileType::Regular)
        .unwrap();
}

#[test]
fn record_lengths_of_large_blocks() {
    for (len, size) in [
        (65536, 65536),
        (65532, 65536),
        (12, 65536),
        (131072, 131072),
        (65540, 131072),
    ] {
        assert_eq!(rec_len_from_disk(rec_len_to_disk(len, size), size), len);
    }
}

#[test]
fn an_index_node_is_one_unused_entry() {
    let mut block = vec![0; 4096];
    put(&mut block, 4, 4096u16);
    let all: Vec<_> = LAYOUT.entries(&block).map(|e| e.unwrap()).collect();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].ino, None);
}

#[test]
fn packing_is_dense() {
    let mut block = vec![0; 1024];
    let entries = [
        (Ino(20), FileType::Regular, &b"one"[..]),
        (Ino(21), FileType::Fifo, b"three"),
    ];
    LAYOUT.pack(&mut block, &entries).unwrap();
    LAYOUT.check(&block).unwrap();
    assert_eq!(names(&LAYOUT, &block), [&b"one"[..], b"three"]);
    assert_eq!(LAYOUT.entry(&block, 12).unwrap().rec_len, 1000);
    LAYOUT.pack(&mut block, &[]).unwrap();
    assert_eq!(names(&LAYOUT, &block), Vec::<Vec<u8>>::new());
}

proptest! {
    #[test]
    fn any_bytes(mut block in prop::collection::vec(any::<u8>(), 0..200), lens in prop::collection::vec(0u8..20, 0..20), tail: bool, offset in 0usize..300) {
        // Plausible record lengths, so that the walk gets somewhere.
        let mut at = 0;
        for len in lens {
            if at + 8 > block.len() { break; }
            let len = usize::from(len) * 4;
            put(&mut block, at, u32::from(len % 16 != 0));
            put(&mut block, at + 4, len as u16);
            block[at + 6] %= 16;
            at += len.max(4);
        }
        let layout = DirLayout { tail, ..LAYOUT };
        for entry in layout.entries(&block) {
            let _ = entry.map(|e| e.name.len());
        }
        let _ = layout.entry(&block, offset);
        let _ = layout.entry(&block, usize::MAX - offset);
        let _ = layout.check(&block);
        let _ = layout.verify(1, &block);
        let _ = layout.update(1, &mut block);
        let _ = layout.is_empty(&block);
        if tail && block.len() < TAIL_SIZE { return Ok(()); }
        let _ = layout.insert(&mut block, b"name", Ino(5), FileType::Regular);
        let _ = layout.remove(&mut block, b"name");
    }

    #[test]
    fn as_a_set_of_names(ops in prop::collection::vec((any::<bool>(), 0u8..12, 1usize..40), 0..200), tail: bool) {
        let layout = DirLayout { tail, ..LAYOUT };
        let mut block = vec![0; 1024];
        layout.init_empty(&mut block);
        let mut model = std::collections::BTreeSet::new();
        for (insert, which, len) in ops {
            let name = vec![b'a' + which; len];
            if insert {
                match layout.insert(&mut block, &name, Ino(5), FileType::Regular) {
                    Ok(_) => prop_assert!(model.insert(name)),
                    Err(EditError::Refused(Refused::Exists)) => prop_assert!(model.contains(&name)),
                    Err(EditError::Refused(Refused::NoRoom { .. })) => prop_assert!(!layout.has_room(&block, len).unwrap()),
                    Err(other) => prop_assert!(false, "{}", other),
                }
            } else {
                prop_assert_eq!(layout.remove(&mut block, &name).is_ok(), model.remove(&name));
            }
            layout.check(&block).unwrap();
            let mut now = names(&layout, &block);
            now.sort();
            prop_assert_eq!(now, model.iter().cloned().collect::<Vec<_>>());
        }
    }
}
