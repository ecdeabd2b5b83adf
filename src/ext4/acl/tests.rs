use super::*;
use proptest::prelude::*;

fn list() -> Acl {
    let entry = |tag, perm| AclEntry { tag, perm };
    Acl::new(vec![
        entry(Tag::UserObj, 7),
        entry(Tag::User(1000), 6),
        entry(Tag::GroupObj, 5),
        entry(Tag::Mask, 6),
        entry(Tag::Other, 0),
    ])
    .unwrap()
}

#[test]
fn both_forms_of_literal_bytes() {
    let user: &[u8] = &[
        2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 6, 0, 0xE8, 3, 0, 0, 4, 0, 5, 0, 255,
        255, 255, 255, 16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
    ];
    let disk: &[u8] = &[
        1, 0, 0, 0, 1, 0, 7, 0, 2, 0, 6, 0, 0xE8, 3, 0, 0, 4, 0, 5, 0, 16, 0, 6, 0, 32, 0, 0, 0,
    ];
    assert_eq!(list().to_user(), user);
    assert_eq!(list().to_disk(), disk);
    assert_eq!(Acl::from_user(user).unwrap(), Some(list()));
    assert_eq!(Acl::from_disk(disk).unwrap(), list());
    assert_eq!(Acl::from_user(&[2, 0, 0, 0]).unwrap(), None);
}

#[test]
fn modes() {
    assert_eq!(list().equivalent_mode(), (0o760, false));
    assert_eq!(Acl::from_mode(0o100_751).equivalent_mode(), (0o751, true));
    let mut changed = list();
    changed.chmod(0o640);
    assert_eq!(changed.equivalent_mode(), (0o640, false));
    assert_eq!(
        changed.entries()[2].perm,
        5,
        "the group keeps its bits under a mask"
    );
    let (own, mode) = list().inherit(0o100_644);
    assert_eq!(mode, 0o100_640);
    assert_eq!(own.entries()[3].perm, 4);
    let (own, mode) = Acl::from_mode(0o770).inherit(0o040_777);
    assert_eq!((own.equivalent_mode(), mode), ((0o770, true), 0o040_770));
}

#[test]
fn lists_that_are_not_valid() {
    let entry = |tag, perm| AclEntry { tag, perm };
    let (user, group, other) = (
        entry(Tag::UserObj, 7),
        entry(Tag::GroupObj, 7),
        entry(Tag::Other, 7),
    );
    for bad in [
        vec![],
        vec![user, group],
        vec![user, other, group],
        vec![user, entry(Tag::User(5), 7), group, other],
        vec![
            user,
            group,
            entry(Tag::Group(u32::MAX), 7),
            entry(Tag::Mask, 7),
            other,
        ],
        vec![entry(Tag::UserObj, 8), group, other],
        vec![user, group, other, other],
    ] {
        assert!(Acl::new(bad).is_err());
    }
}

proptest! {
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64), version in 0u8..4) {
        let mut bytes = bytes;
        if bytes.len() >= 4 { bytes[..4].copy_from_slice(&[version, 0, 0, 0]); }
        if let Ok(Some(acl)) = Acl::from_user(&bytes) {
            prop_assert_eq!(Acl::from_user(&acl.to_user()).unwrap(), Some(acl));
        }
        if let Ok(acl) = Acl::from_disk(&bytes) {
            prop_assert_eq!(acl.to_disk(), bytes);
        }
    }
}
