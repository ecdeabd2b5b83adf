use super::*;
use proptest::prelude::*;

#[test]
fn names() {
    assert_eq!(split_name(b"user.a"), Some((1, &b"a"[..])));
    assert_eq!(split_name(b"user."), None);
    assert_eq!(split_name(b"system.posix_acl_access"), Some((2, &b""[..])));
    assert_eq!(
        split_name(b"system.posix_acl_accessory"),
        Some((7, &b"posix_acl_accessory"[..]))
    );
    assert_eq!(
        split_name(b"security.capability"),
        Some((6, &b"capability"[..]))
    );
    assert_eq!(split_name(b"nonsense"), None);
    for name in [
        &b"user.a"[..],
        b"trusted.b",
        b"system.posix_acl_default",
        b"system.x",
    ] {
        let (index, rest) = split_name(name).unwrap();
        assert_eq!(full_name(index, rest).unwrap(), name);
    }
    assert_eq!(full_name(99, b"x"), None);
}

#[test]
fn an_ibody_of_literal_bytes() {
    let mut set = XattrSet::default();
    set.set(index::USER, b"abc", b"hello").unwrap();
    let mut ibody = [0xEE; 64];
    set.encode_ibody(&mut ibody).unwrap();
    let mut expected = [0; 64];
    expected[..4].copy_from_slice(&[0, 0, 2, 0xEA]);
    // The value is at 56 of the inode's room, 52 from the first entry.
    expected[4..20].copy_from_slice(&[3, 1, 52, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    expected[20..23].copy_from_slice(b"abc");
    expected[56..61].copy_from_slice(b"hello");
    assert_eq!(ibody, expected);
    assert_eq!(XattrSet::from_ibody(&ibody).unwrap(), set);
    assert_eq!(
        find_in_ibody(&ibody, index::USER, b"abc").unwrap(),
        Some(&b"hello"[..])
    );
    set.remove(index::USER, b"abc").unwrap();
    set.encode_ibody(&mut ibody).unwrap();
    assert_eq!(ibody, [0; 64]);
}

#[test]
fn blocks_are_sorted_by_index_length_and_name() {
    let mut set = XattrSet::default();
    for (index, name) in [(6, "a"), (1, "zz"), (1, "b"), (1, "aaa"), (1, "a")] {
        set.set(index, name.as_bytes(), b"v").unwrap();
    }
    let mut block = vec![0; 1024];
    set.encode_block(&mut block, 1).unwrap();
    let order: Vec<_> = block_entries(&block)
        .unwrap()
        .map(|e| e.map(|e| (e.index, e.name)).unwrap())
        .collect();
    assert_eq!(
        order,
        [
            (1, &b"a"[..]),
            (1, b"b"),
            (1, b"zz"),
            (1, b"aaa"),
            (6, b"a")
        ]
    );
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let mut set = XattrSet::default();
    set.set(1, b"a", &[7; 60]).unwrap();
    let mut ibody = [0xEE; 64];
    assert!(matches!(
        set.encode_ibody(&mut ibody),
        Err(Refused::NoRoom { need: 88 })
    ));
    assert_eq!(ibody, [0xEE; 64]);
    assert!(set.fits_ibody(88) && !set.fits_ibody(87));
}

#[test]
fn a_block_filled_to_the_last_byte() {
    let mut set = XattrSet::default();
    set.set(1, b"abcd", &[9; 1024 - 32 - 4 - 20]).unwrap();
    let mut block = vec![0; 1024];
    set.encode_block(&mut block, 3).unwrap();
    assert_eq!(XattrSet::from_block(&block).unwrap(), set);
    assert_eq!(h_refcount(&block).unwrap(), 3);
    set.set(1, b"abcde", b"").unwrap();
    assert!(set.encode_block(&mut block, 3).is_err());
}

#[test]
fn overlapping_values_are_corrupt() {
    let mut set = XattrSet::default();
    set.set(1, b"a", &[1; 40]).unwrap();
    set.set(1, b"b", &[2; 40]).unwrap();
    let mut ibody = [0; 136];
    set.encode_ibody(&mut ibody).unwrap();
    let offset: u16 = get(&ibody, 4 + 2);
    put(&mut ibody, 24 + 2, offset);
    assert!(
        XattrSet::from_ibody(&ibody).is_ok(),
        "sharing alone loses nothing"
    );
    for at in [4, 24] {
        put(&mut ibody, at + 2, 44u16);
        put(&mut ibody, at + 8, 88u32);
    }
    assert!(XattrSet::from_ibody(&ibody).is_err());
}

proptest! {
    #[test]
    fn any_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..300), entries in prop::collection::vec((0u8..9, 0u16..300, 0u32..100), 0..6), magic: bool) {
        if magic && bytes.len() >= 64 {
            put(&mut bytes, 0, EXT4_XATTR_MAGIC);
            put(&mut bytes, 8, 1u32);
            for first in [4, 32] {
                let mut at = first;
                for &(len, offset, size) in &entries {
                    if at + 16 > bytes.len() { break; }
                    bytes[at] = len;
                    put(&mut bytes, at + 2, offset);
                    put(&mut bytes, at + 4, 0u32);
                    put(&mut bytes, at + 8, size);
                    at += align(16 + usize::from(len));
                }
                if at + 4 <= bytes.len() { put(&mut bytes, at, 0u32); }
            }
        }
        for set in [XattrSet::from_ibody(&bytes), XattrSet::from_block(&bytes)].into_iter().flatten() {
            let mut again = vec![0; 2000];
            set.encode_ibody(&mut again).unwrap();
            prop_assert_eq!(XattrSet::from_ibody(&again).unwrap(), set);
        }
        let _ = find_in_ibody(&bytes, 1, b"x");
        let _ = find_in_block(&bytes, 1, b"x");
        let _ = h_refcount(&bytes);
    }

    #[test]
    fn as_a_map(ops in prop::collection::vec((0u8..5, 0usize..60, any::<bool>()), 0..60)) {
        let mut set = XattrSet::default();
        let mut model = std::collections::BTreeMap::new();
        let mut block = vec![0; 1024];
        for (n, len, insert) in ops {
            let name = vec![b'n'; usize::from(n) + 1];
            if insert {
                let value = vec![n; len];
                let before = set.set(n, &name, &value).unwrap();
                prop_assert_eq!(before, model.insert((n, name), value));
            } else {
                prop_assert_eq!(set.remove(n, &name), model.remove(&(n, name)));
            }
            set.encode_block(&mut block, 1).unwrap();
            let read = XattrSet::from_block(&block).unwrap();
            let read: std::collections::BTreeMap<_, _> = read.iter().map(|a| ((a.index, a.name.clone()), a.value.clone())).collect();
            prop_assert_eq!(&read, &model);
        }
    }
}
