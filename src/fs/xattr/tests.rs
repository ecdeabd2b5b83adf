use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::ext4::acl::{AclEntry, Tag};
use crate::fs::dir::fixture::{FIRST_INO, TestVolume};

impl TestVolume {
    /// Stores an inode that changed by so many blocks.
    fn store(&mut self, ino: Ino, inode: &mut Inode, change: Change) {
        let sectors = i64::from(self.sb.block_size() / 512) * change.blocks;
        let blocks = inode
            .i_blocks(&self.sb)
            .checked_add_signed(sectors)
            .unwrap();
        inode.set_i_blocks(&self.sb, blocks).unwrap();
        self.put_inode(ino, inode);
    }

    fn set(&mut self, ino: Ino, name: &str, value: &[u8], mode: XattrMode) -> Result<(), FsError> {
        let mut inode = self.inode(ino);
        let change = set(
            self,
            &mut inode,
            ino,
            BlockNo(1000),
            name.as_bytes(),
            value,
            mode,
        )?;
        self.store(ino, &mut inode, change);
        Ok(())
    }

    fn remove(&mut self, ino: Ino, name: &str) -> Result<(), FsError> {
        let mut inode = self.inode(ino);
        let change = remove(self, &mut inode, ino, name.as_bytes())?;
        self.store(ino, &mut inode, change);
        Ok(())
    }

    fn get(&self, ino: Ino, name: &str) -> Option<Vec<u8>> {
        get(self, &self.inode(ino), ino, name.as_bytes()).unwrap()
    }
}

/// Attributes of a file as the kernel shows them.
fn kernel_attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    list[..len]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65_536];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(len);
            (String::from_utf8(name.to_vec()).unwrap(), value)
        })
        .collect()
}

fn our_attributes(volume: &TestVolume, ino: Ino) -> BTreeMap<String, Vec<u8>> {
    let names = list(volume, &volume.inode(ino), ino).unwrap();
    let count = names.len();
    let all: BTreeMap<String, Vec<u8>> = names
        .into_iter()
        .map(|name| {
            let name = String::from_utf8(name).unwrap();
            let value = volume.get(ino, &name).unwrap();
            (name, value)
        })
        .collect();
    assert_eq!(all.len(), count, "a name is listed twice");
    all
}

const FILES: u32 = 4;

fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

#[test]
fn any_sequence_of_changes_is_what_a_map_would_do_and_the_kernel_agrees() {
    for (seed, (features, block_size, inode_size)) in [
        ("^has_journal", 4096, 256),
        ("^has_journal", 1024, 256),
        ("^has_journal,^metadata_csum", 1024, 512),
        ("^has_journal,^extents,^64bit", 2048, 128),
    ]
    .into_iter()
    .enumerate()
    {
        let mut volume = TestVolume::new(features, block_size, inode_size, FILES);
        let mut below = numbers(seed as u64 + 1);
        let mut model: BTreeMap<u32, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
        let mut full = 0;
        for round in 0..2500u32 {
            let ino = FIRST_INO + below(u64::from(FILES)) as u32;
            let space = ["user", "trusted", "security"][below(3) as usize];
            let which = below(8);
            let name = format!(
                "{space}.{}",
                "name".repeat(which as usize) + &which.to_string()
            );
            let attributes = model.entry(ino).or_default();
            let known = attributes.contains_key(&name);
            if below(3) == 0 {
                match volume.remove(Ino(ino), &name) {
                    Ok(()) => assert!(attributes.remove(&name).is_some()),
                    Err(why) => {
                        assert_eq!(why.errno(), libc::ENODATA);
                        assert!(!known);
                    }
                }
            } else {
                let longest = [8, 40, 300, 3000][below(4) as usize];
                let value = vec![round as u8; below(longest) as usize];
                let mode =
                    [XattrMode::Any, XattrMode::Create, XattrMode::Replace][below(3) as usize];
                match volume.set(Ino(ino), &name, &value, mode) {
                    Ok(()) => {
                        assert!(mode != XattrMode::Create || !known);
                        assert!(mode != XattrMode::Replace || known);
                        attributes.insert(name, value);
                    }
                    Err(why) if why.errno() == libc::ENOSPC => full += 1,
                    Err(why) if why.errno() == libc::EEXIST => assert!(known),
                    Err(why) => {
                        assert_eq!(why.errno(), libc::ENODATA);
                        assert!(!known);
                    }
                }
            }
            assert_eq!(our_attributes(&volume, Ino(ino)), model[&ino]);
            if round % 500 == 0 {
                volume.save();
            }
        }
        assert!(full > 0);
        volume.save();
        let Some(mounted) = volume.image.mount() else {
            return;
        };
        for (ino, attributes) in &model {
            let path = mounted.dir().join(format!("f{}", ino - FIRST_INO));
            assert_eq!(&kernel_attributes(&path), attributes);
        }
    }
}

#[test]
fn a_block_that_the_kernel_shares_is_copied_and_freed_with_its_last_owner() {
    let mut volume = TestVolume::new("^has_journal", 1024, 256, FILES);
    let Some(mounted) = volume.image.mount() else {
        return;
    };
    let value = [7; 500];
    for i in 0..3 {
        let path = mounted.dir().join(format!("f{i}"));
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&path, "user.large", &value, flags).unwrap();
        rustix::fs::setxattr(&path, "user.small", b"1", flags).unwrap();
    }
    drop(mounted);
    volume = TestVolume::open(volume.image);
    let shared = volume.inode(Ino(12)).i_file_acl(&volume.sb).unwrap();
    for i in 12..15 {
        let inode = volume.inode(Ino(i));
        assert_eq!(
            inode.i_file_acl(&volume.sb),
            Some(shared),
            "the kernel shares"
        );
        assert_eq!(volume.get(Ino(i), "user.large").unwrap(), value);
        assert_eq!(volume.get(Ino(i), "user.small").unwrap(), b"1");
    }
    let count = |volume: &TestVolume| {
        let inode = volume.inode(Ino(13));
        read_block(volume, &inode, Ino(13))
            .unwrap()
            .map(|block| block.refcount)
    };
    assert_eq!(count(&volume), Some(3));
    volume
        .set(Ino(12), "user.large", &[8; 501], XattrMode::Replace)
        .unwrap();
    assert_ne!(volume.inode(Ino(12)).i_file_acl(&volume.sb), Some(shared));
    assert_eq!(count(&volume), Some(2));
    volume.save();
    assert_eq!(volume.get(Ino(13), "user.large").unwrap(), value);
    volume.remove(Ino(14), "user.large").unwrap();
    assert_eq!(count(&volume), Some(1));
    assert_eq!(volume.get(Ino(14), "user.small").unwrap(), b"1");
    volume.save();
    let mut inode = volume.inode(Ino(13));
    let change = release(&mut volume, &mut inode, Ino(13)).unwrap();
    volume.store(Ino(13), &mut inode, change);
    assert!(volume.free.contains(&shared.0));
    volume.save();
    assert_eq!(volume.inode(Ino(13)).i_blocks(&volume.sb), 0);
}

#[test]
fn names_and_values_that_can_not_be_are_refused_as_by_the_kernel() {
    let mut volume = TestVolume::new("^has_journal", 1024, 256, 1);
    let long = format!("user.{}", "x".repeat(251));
    for (name, value, errno) in [
        ("user.", &b""[..], libc::EINVAL),
        ("", b"", libc::ERANGE),
        (long.as_str(), b"", libc::ERANGE),
        ("other.x", b"", libc::EOPNOTSUPP),
        ("system.data", b"", libc::EOPNOTSUPP),
        ("user.x", &[0; 65_537], libc::E2BIG),
        ("user.x", &[0; 2000], libc::ENOSPC),
        ("system.posix_acl_access", b"abc", libc::EINVAL),
        ("system.posix_acl_access", &[9, 0, 0, 0], libc::EOPNOTSUPP),
        (
            "system.posix_acl_access",
            &[2, 0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0],
            libc::EINVAL,
        ),
    ] {
        let refused = volume
            .set(Ino(12), name, value, XattrMode::Any)
            .unwrap_err();
        assert_eq!(refused.errno(), errno, "{name}");
    }
    assert!(our_attributes(&volume, Ino(12)).is_empty());
    volume
        .set(Ino(12), &long[..255], b"v", XattrMode::Create)
        .unwrap();
    assert_eq!(volume.get(Ino(12), &long[..255]).unwrap(), b"v");
    volume
        .set(Ino(12), "user.empty", b"", XattrMode::Create)
        .unwrap();
    assert_eq!(volume.get(Ino(12), "user.empty").unwrap(), b"");
    let again = volume.set(Ino(12), "user.empty", b"", XattrMode::Create);
    assert_eq!(again.unwrap_err().errno(), libc::EEXIST);
    volume.save();
}

fn acl(entries: &[(Tag, u16)]) -> Acl {
    let entries = entries
        .iter()
        .map(|&(tag, perm)| AclEntry { tag, perm })
        .collect();
    Acl::new(entries).unwrap()
}

fn some_acls() -> Vec<Acl> {
    vec![
        acl(&[(Tag::UserObj, 7), (Tag::GroupObj, 5), (Tag::Other, 4)]),
        acl(&[
            (Tag::UserObj, 6),
            (Tag::User(1000), 7),
            (Tag::GroupObj, 4),
            (Tag::Mask, 5),
            (Tag::Other, 1),
        ]),
        acl(&[
            (Tag::UserObj, 7),
            (Tag::User(1000), 6),
            (Tag::User(1001), 1),
            (Tag::GroupObj, 7),
            (Tag::Group(50), 3),
            (Tag::Mask, 7),
            (Tag::Other, 0),
        ]),
        acl(&[
            (Tag::UserObj, 7),
            (Tag::GroupObj, 7),
            (Tag::Mask, 2),
            (Tag::Other, 7),
        ]),
    ]
}

#[test]
fn access_control_lists_do_what_the_kernels_do() {
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
    let volume = TestVolume::new("^has_journal", 4096, 256, 1);
    let Some(mounted) = volume.image.mount() else {
        return;
    };
    let flags = rustix::fs::XattrFlags::empty();
    let mut expected = Vec::new();
    let mut count = 0;
    let kernel_dir = mounted.dir().join("d");
    for list in some_acls() {
        for mode in [0o755u32, 0o640, 0o070, 0o777] {
            // Set a list, then change the mode.
            let path = mounted.dir().join(format!("k{count}"));
            fs::write(&path, b"").unwrap();
            rustix::fs::setxattr(&path, "system.posix_acl_access", &list.to_user(), flags).unwrap();
            let set_mode = fs::metadata(&path).unwrap().mode();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let after_chmod = kernel_attributes(&path);
            // Make files and directories in a directory with a default list.
            rustix::fs::setxattr(
                &kernel_dir,
                "system.posix_acl_default",
                &list.to_user(),
                flags,
            )
            .unwrap();
            let file = kernel_dir.join(format!("f{count}"));
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&file)
                .unwrap();
            let sub = kernel_dir.join(format!("d{count}"));
            rustix::fs::mkdir(&sub, rustix::fs::Mode::from_raw_mode(mode)).unwrap();
            let of = |path: &Path| (fs::metadata(path).unwrap().mode(), kernel_attributes(path));
            expected.push((
                list.clone(),
                mode,
                set_mode,
                after_chmod,
                of(&file),
                of(&sub),
            ));
            count += 1;
        }
    }
    drop(mounted);
    volume.image.check();
    let mut volume = TestVolume::new("^has_journal", 4096, 256, 1);
    for (list, mode, set_mode, after_chmod, file, sub) in expected {
        let ino = Ino(12);
        let goal = BlockNo(1000);
        let mut inode = volume.inode(ino);
        inode.set_i_mode(0o100_644);
        let user = list.to_user();
        let name = b"system.posix_acl_access";
        set(
            &mut volume,
            &mut inode,
            ino,
            goal,
            name,
            &user,
            XattrMode::Any,
        )
        .unwrap();
        assert_eq!(u32::from(inode.i_mode()), set_mode);
        chmod(&mut volume, &mut inode, ino, goal, mode as u16).unwrap();
        assert_eq!(u32::from(inode.i_mode()), 0o100_000 | mode);
        volume.store(ino, &mut inode, Change::default());
        assert_eq!(our_attributes(&volume, ino), after_chmod);
        volume.remove(ino, "system.posix_acl_access").unwrap();
        assert!(our_attributes(&volume, ino).is_empty());

        for (kind, expected) in [(0o100_000, file), (0o040_000, sub)] {
            let mut inode = Inode::new(&volume.sb);
            inode.set_i_mode(kind | mode as u16);
            inherit(&mut volume, &mut inode, ino, goal, Some(&list), 0o022).unwrap();
            assert_eq!(u32::from(inode.i_mode()), expected.0, "{list:?} {mode:o}");
            let names = super::list(&volume, &inode, ino).unwrap();
            let ours: BTreeMap<String, Vec<u8>> = names
                .into_iter()
                .map(|name| {
                    let value = super::get(&volume, &inode, ino, &name).unwrap().unwrap();
                    (String::from_utf8(name).unwrap(), value)
                })
                .collect();
            assert_eq!(ours, expected.1, "{list:?} {mode:o}");
        }
    }
    // Without a default list, the umask.
    let mut inode = Inode::new(&volume.sb);
    inode.set_i_mode(0o100_666);
    inherit(&mut volume, &mut inode, Ino(12), BlockNo(0), None, 0o027).unwrap();
    assert_eq!(inode.i_mode(), 0o100_640);
    // A default list is for directories.
    let default = b"system.posix_acl_default";
    let list = some_acls()[1].to_user();
    let refused = set(
        &mut volume,
        &mut inode,
        Ino(12),
        BlockNo(0),
        default,
        &list,
        XattrMode::Any,
    );
    assert_eq!(refused.unwrap_err().errno(), libc::EACCES);
}

#[test]
fn damage_anywhere_never_panics() {
    let mut volume = TestVolume::new("^has_journal,^metadata_csum", 1024, 256, 1);
    let ino = Ino(12);
    for i in 0..12 {
        volume
            .set(
                ino,
                &format!("user.{i}"),
                &vec![i; 10 * usize::from(i)],
                XattrMode::Any,
            )
            .unwrap();
    }
    let acl = some_acls()[2].to_user();
    volume
        .set(ino, "system.posix_acl_access", &acl, XattrMode::Any)
        .unwrap();
    let at = volume.inode(ino).i_file_acl(&volume.sb).unwrap();
    let whole = volume.bytes.clone();
    let spots = || proptest::collection::vec((0..1024usize, any::<u8>()), 0..6);
    let volume = std::cell::RefCell::new(volume);
    proptest!(ProptestConfig::with_cases(1500), |(
        in_inode in spots(),
        in_block in spots(),
        noise in proptest::option::weighted(0.2, proptest::collection::vec(any::<u8>(), 1024)),
    )| {
        let mut volume = volume.borrow_mut();
        let volume = &mut *volume;
        volume.bytes.copy_from_slice(&whole);
        let mut inode = volume.inode(ino);
        let body = inode.ibody_mut();
        for (byte, value) in in_inode {
            let len = body.len();
            body[byte % len] = value;
        }
        let block = volume.modify(at).unwrap();
        if let Some(noise) = noise {
            // Behind the magic, or it is refused at once.
            block[8..].copy_from_slice(&noise[8..]);
            block[8..12].copy_from_slice(&1u32.to_le_bytes());
        }
        for (byte, value) in in_block {
            block[byte] = value;
        }
        let _ = list(volume, &inode, ino);
        for name in [&b"user.7"[..], b"user.1", b"system.posix_acl_access"] {
            let _ = get(volume, &inode, ino, name);
        }
        let _ = chmod(volume, &mut inode, ino, BlockNo(0), 0o700);
        let _ = set(volume, &mut inode, ino, BlockNo(0), b"user.3", b"new", XattrMode::Any);
        let _ = set(volume, &mut inode, ino, BlockNo(0), b"user.3", &[5; 600], XattrMode::Any);
        let _ = remove(volume, &mut inode, ino, b"user.9");
        volume.free.remove(&at.0);
        let _ = release(volume, &mut inode, ino);
        volume.free.remove(&at.0);
    });
}
