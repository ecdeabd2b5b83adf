use super::*;
use proptest::prelude::*;

#[test]
fn a_leaf_of_literal_bytes() {
    let mut root = [0u8; 60];
    root[..12].copy_from_slice(&[0x0A, 0xF3, 2, 0, 4, 0, 0, 0, 9, 0, 0, 0]);
    root[12..24].copy_from_slice(&[0, 0, 0, 0, 5, 0, 1, 0, 0x10, 0, 0, 0]);
    root[24..36].copy_from_slice(&[5, 0, 0, 0, 2, 0x80, 0, 0, 0x20, 0, 0, 0]);
    let node = ExtentNode::decode(&root, 1 << 40).unwrap();
    let extents = vec![
        Extent {
            ee_block: FileBlock(0),
            len_blocks: 5,
            start: BlockNo(0x1_0000_0010),
            unwritten: false,
        },
        Extent {
            ee_block: FileBlock(5),
            len_blocks: 2,
            start: BlockNo(0x20),
            unwritten: true,
        },
    ];
    assert_eq!(node.entries, Entries::Leaf(extents.clone()));
    assert_eq!(node.eh_generation, 9);
    assert_eq!(node.encode_root(), root);
    assert_eq!(extents[1].map(FileBlock(6)), Some(BlockNo(0x21)));
    assert_eq!(extents[1].map(FileBlock(7)), None);
    assert_eq!(node.position(FileBlock(4)), Some(0));
    assert_eq!(node.position(FileBlock(1000)), Some(1));
}

#[test]
fn an_extent_of_32768_blocks_is_written() {
    let mut slot = [0; 12];
    put(&mut slot, 4, 32768u16);
    assert!(!Extent::read(&slot).unwritten);
    assert_eq!(Extent::read(&slot).len_blocks, 32768);
    put(&mut slot, 4, 32769u16);
    assert!(Extent::read(&slot).unwritten);
    assert_eq!(Extent::read(&slot).len_blocks, 1);
}

#[test]
fn overlapping_extents_are_corrupt() {
    let mut node = ExtentNode::empty(ROOT_MAX);
    let extent = |block, len| Extent {
        ee_block: FileBlock(block),
        len_blocks: len,
        start: BlockNo(100),
        unwritten: false,
    };
    node.entries = Entries::Leaf(vec![extent(0, 5), extent(4, 1)]);
    assert!(ExtentNode::decode(&node.encode_root(), 1000).is_err());
    node.entries = Entries::Leaf(vec![extent(0, 5), extent(u32::MAX, 1)]);
    assert!(ExtentNode::decode(&node.encode_root(), 1000).is_ok());
    assert!(ExtentNode::decode(&node.encode_root(), 104).is_err());
    node.entries = Entries::Leaf(vec![extent(u32::MAX, 2)]);
    assert!(ExtentNode::decode(&node.encode_root(), 1000).is_err());
}

#[test]
fn slots_of_a_block() {
    assert_eq!(block_max(1024), 84);
    assert_eq!(block_max(2048), 169);
    assert_eq!(block_max(4096), 340);
}

#[test]
fn block_checksum_round_trip() {
    for size in [1024, 2048, 4096] {
        let mut block = vec![0; size];
        ExtentNode::empty(block_max(size as u32)).encode(&mut block);
        update_block(7, &mut block).unwrap();
        verify_block(7, &block).unwrap();
        assert!(verify_block(8, &block).is_err());
        block[10] ^= 1;
        assert!(verify_block(7, &block).is_err());
    }
}

proptest! {
    #[test]
    fn any_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..300), magic: bool, depth in 0u8..7) {
        if magic && bytes.len() >= 12 {
            bytes[..2].copy_from_slice(&[0x0A, 0xF3]);
            bytes[3] = 0;
            bytes[5] = 0;
            bytes[6] = depth;
            bytes[7] = 0;
        }
        if let Ok(node) = ExtentNode::decode(&bytes, u64::from(u32::MAX)) {
            let mut again = bytes.clone();
            node.encode(&mut again);
            prop_assert_eq!(&again, &bytes);
        }
        let _ = verify_block(1, &bytes);
        let _ = update_block(1, &mut bytes);
    }
}
