use super::*;
use proptest::prelude::*;

const LAYOUT: DirLayout = DirLayout {
    inodes_count: 1000,
    filetype: true,
    tail: true,
};

#[test]
fn limits_as_in_the_kernel() {
    let plain = DirLayout {
        tail: false,
        ..LAYOUT
    };
    assert_eq!(
        (root_limit(&LAYOUT, 4096), node_limit(&LAYOUT, 4096)),
        (507, 510)
    );
    assert_eq!(
        (root_limit(&plain, 4096), node_limit(&plain, 4096)),
        (508, 511)
    );
    assert_eq!(
        (root_limit(&LAYOUT, 1024), node_limit(&LAYOUT, 1024)),
        (123, 126)
    );
}

#[test]
fn a_root_of_literal_bytes() {
    let mut block = vec![0xEE; 1024];
    init_root(
        &LAYOUT,
        &mut block,
        Ino(12),
        Ino(2),
        HashVersion::Tea,
        FileBlock(1),
    );
    assert_eq!(&block[..12], [12, 0, 0, 0, 12, 0, 1, 2, b'.', 0, 0, 0]);
    assert_eq!(
        &block[12..24],
        [2, 0, 0, 0, 0xF4, 3, 2, 2, b'.', b'.', 0, 0]
    );
    assert_eq!(
        &block[24..40],
        [0, 0, 0, 0, 2, 8, 0, 0, 123, 0, 1, 0, 1, 0, 0, 0]
    );
    update(&LAYOUT, 9, &mut block).unwrap();
    verify(&LAYOUT, 9, &block).unwrap();
    assert!(is_index_block(&block));
    let root = DxBlock::decode_root(&LAYOUT, false, &block).unwrap();
    assert_eq!(root.info.unwrap().hash_version, HashVersion::Tea);
    assert_eq!(
        root.entries,
        [DxEntry {
            hash: 0,
            block: FileBlock(1)
        }]
    );
    assert!(DxBlock::decode_node(&LAYOUT, &block).is_err());
}

#[test]
fn the_entry_for_a_hash() {
    let entry = |hash, block| DxEntry {
        hash,
        block: FileBlock(block),
    };
    let mut block = vec![0; 1024];
    init_node(
        &LAYOUT,
        &mut block,
        vec![entry(0, 1), entry(10, 2), entry(20, 3), entry(21, 4)],
    );
    let node = DxBlock::decode_node(&LAYOUT, &block).unwrap();
    let positions: Vec<usize> = [0, 9, 10, 19, 20, 21, u32::MAX]
        .map(|h| node.position(h))
        .to_vec();
    assert_eq!(positions, [0, 0, 1, 1, 2, 3, 3]);
    assert!(is_index_block(&block));
    // A linear directory block is not taken for either.
    LAYOUT.init_dir(&mut block, Ino(12), Ino(2));
    assert!(!is_index_block(&block));
}

#[test]
fn unsorted_hashes_and_wrong_counts_are_corrupt() {
    let entry = |hash, block| DxEntry {
        hash,
        block: FileBlock(block),
    };
    let mut block = vec![0; 1024];
    init_node(
        &LAYOUT,
        &mut block,
        vec![entry(0, 1), entry(10, 2), entry(8, 3)],
    );
    assert!(DxBlock::decode_node(&LAYOUT, &block).is_err());
    init_node(&LAYOUT, &mut block, vec![entry(0, 1)]);
    put(&mut block, 10, 0u16);
    assert!(DxBlock::decode_node(&LAYOUT, &block).is_err());
    put(&mut block, 10, 127u16);
    assert!(DxBlock::decode_node(&LAYOUT, &block).is_err());
}

proptest! {
    #[test]
    fn any_bytes(mut block in prop::collection::vec(any::<u8>(), 0..200), as_root: bool, plausible: bool) {
        if plausible && block.len() >= 40 {
            let len = block.len();
            let start = if as_root {
                LAYOUT.init_dir(&mut block[..40], Ino(1), Ino(2));
                put(&mut block, 16, (len - 12) as u16);
                block[24..29].fill(0);
                block[29] = 8;
                block[30] = 0;
                32
            } else {
                block[..8].fill(0);
                put(&mut block, 4, len as u16);
                8
            };
            put(&mut block, start, limit(&LAYOUT, len, start));
        }
        let mut again = block.clone();
        if let Ok(root) = DxBlock::decode_root(&LAYOUT, true, &block) {
            root.encode(&mut again);
        }
        if let Ok(node) = DxBlock::decode_node(&LAYOUT, &block) {
            let _ = node.position(5);
            node.encode(&mut again);
        }
        let _ = verify(&LAYOUT, 1, &block);
        let _ = update(&LAYOUT, 1, &mut block);
        let _ = is_index_block(&block);
    }
}
