//! Files of every kind, and what the kernel says about them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};

use super::image::{Image, Variant};
use super::walk;
use crate::ext4::acl::{AclEntry, Tag};
use crate::ext4::inode::join_dev;
use crate::ext4::{Acl, FileType, XattrSet, xattr};
use crate::units::Ino;

/// What stat and getxattr say of one inode.
pub struct Facts {
    stat: fs::Metadata,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    path: OsString,
}

/// Fills a directory. `level` 0: only what an ordinary directory and mke2fs can take.
pub fn fill(root: &Path, level: u32) {
    for (name, len) in [("empty", 0), ("one", 1), ("sixty", 60), ("large", 100_000)] {
        fs::write(root.join(name), vec![7u8; len]).unwrap();
    }
    for len in [1, 59, 60, 61, 300] {
        symlink("x".repeat(len), root.join(format!("symlink{len}"))).unwrap();
    }
    fs::hard_link(root.join("one"), root.join("also one")).unwrap();
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    for i in 0..700u64 {
        sparse.write_all_at(&[1], i * 12_288).unwrap();
    }
    let many = root.join("many");
    fs::create_dir(&many).unwrap();
    let long = "n".repeat(110);
    for i in 0..3000 {
        let dir = if i % 10 == 0 {
            root.join("a")
        } else {
            many.clone()
        };
        // A hard link a name: inodes are few, names are what is wanted.
        fs::hard_link(root.join("empty"), dir.join(format!("{i}-{long}-\u{fc}"))).unwrap();
    }
    if level == 0 {
        return;
    }
    for i in (0..3000).step_by(3).filter(|i| i % 10 != 0) {
        fs::remove_file(many.join(format!("{i}-{long}-\u{fc}"))).unwrap();
    }
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    let dev = rustix::fs::makedev;
    use rustix::fs::FileType as T;
    rustix::fs::mknodat(CWD, root.join("fifo"), T::Fifo, mode, 0).unwrap();
    rustix::fs::mknodat(CWD, root.join("socket"), T::Socket, mode, 0).unwrap();
    rustix::fs::mknodat(CWD, root.join("char"), T::CharacterDevice, mode, dev(1, 3)).unwrap();
    rustix::fs::mknodat(
        CWD,
        root.join("block"),
        T::BlockDevice,
        mode,
        dev(259, 70_000),
    )
    .unwrap();
    std::os::unix::fs::chown(root.join("one"), Some(70_001), Some(80_002)).unwrap();
    for (name, secs, nanos) in [
        ("empty", -100, 5),
        ("one", 5_000_000_000, 999_999_999),
        ("sixty", 0, 0),
        ("large", -2_000_000_000, 1),
    ] {
        let time = Timespec {
            tv_sec: secs,
            tv_nsec: nanos,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, root.join(name), &times, AtFlags::empty()).unwrap();
    }
    let set = |file: &str, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(root.join(file), name, value, XattrFlags::empty()).unwrap();
    };
    set("one", "user.small", b"v");
    set("one", "user.empty", b"");
    set("sixty", "user.large", &[9; 500]);
    set("sixty", "trusted.other", &[8; 33]);
    set("sixty", "user.gr\u{fc}n", &[7; 3]);
    set("sixty", "security.something", &[6; 100]);
    set("large", "user.large", &[9; 500]);
    set("a", "user.on a directory", &[1; 40]);
    set("symlink1", "trusted.on a fast symlink", &[1; 400]);
    set("symlink300", "trusted.on a slow symlink", &[1; 400]);
    let entry = |tag, perm| AclEntry { tag, perm };
    let list = Acl::new(vec![
        entry(Tag::UserObj, 6),
        entry(Tag::User(1234), 4),
        entry(Tag::GroupObj, 4),
        entry(Tag::Group(5678), 6),
        entry(Tag::Mask, 6),
        entry(Tag::Other, 0),
    ])
    .unwrap();
    set("one", "system.posix_acl_access", &list.to_user());
    set("a/b", "system.posix_acl_default", &list.to_user());
    fs::create_dir(root.join("a/b/heir")).unwrap();
    fs::write(root.join("a/b/heir/file"), b"x").unwrap();
}

/// What the kernel says about everything below `root`.
pub fn facts(root: &Path) -> BTreeMap<Ino, Facts> {
    // Blocks are allocated late: stat counts them rightly only after that.
    rustix::fs::syncfs(File::open(root).unwrap()).unwrap();
    let mut all = BTreeMap::new();
    let mut stack = vec![root.to_path_buf()];
    while let Some(path) = stack.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        if stat.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        let mut list = vec![0; 4096];
        let len = rustix::fs::llistxattr(&path, &mut list).unwrap();
        let mut xattrs = BTreeMap::new();
        for name in list[..len].split(|&b| b == 0).filter(|n| !n.is_empty()) {
            let mut value = vec![0; 4096];
            let name_str = std::str::from_utf8(name).unwrap();
            let len = rustix::fs::lgetxattr(&path, name_str, &mut value[..]).unwrap();
            value.truncate(len);
            xattrs.insert(name.to_vec(), value);
        }
        let path = path.into_os_string();
        all.insert(Ino(stat.ino() as u32), Facts { stat, xattrs, path });
    }
    all
}

/// Our view of the unmounted image against the kernel's of the mounted one.
pub fn compare(image: &Image, facts: &BTreeMap<Ino, Facts>, variant: &Variant) {
    let sb = image.sb();
    assert!(facts.len() > 20);
    for (&ino, fact) in facts {
        let context = format!("{}: {:?}", variant.name, fact.path);
        let inode = walk::inode(image, &sb, ino);
        let stat = &fact.stat;
        assert_eq!(u32::from(inode.i_mode()), stat.mode(), "{context}");
        assert_eq!(u64::from(inode.i_links_count()), stat.nlink(), "{context}");
        assert_eq!(
            (inode.i_uid(), inode.i_gid()),
            (stat.uid(), stat.gid()),
            "{context}"
        );
        assert_eq!(inode.i_size(&sb), stat.size(), "{context}");
        assert_eq!(inode.i_blocks(&sb), stat.blocks(), "{context}");
        for (ours, secs, nanos) in [
            (inode.i_mtime(), stat.mtime(), stat.mtime_nsec()),
            (inode.i_ctime(), stat.ctime(), stat.ctime_nsec()),
        ] {
            let has_room = sb.inode_size() > 128;
            let expected = if has_room {
                (secs, nanos as u32)
            } else {
                (secs.min(i32::MAX.into()), 0)
            };
            assert_eq!(ours, expected, "{context}");
        }
        let kind = stat.file_type();
        if kind.is_char_device() || kind.is_block_device() {
            let (major, minor) = inode.rdev();
            assert_eq!(rustix::fs::makedev(major, minor), stat.rdev(), "{context}");
            assert_eq!(
                crate::ext4::inode::split_dev(join_dev(major, minor)),
                (major, minor)
            );
        }
        if kind.is_symlink() {
            let target = match inode.symlink_target(&sb).unwrap() {
                Some(target) => target.to_vec(),
                None => {
                    let (blocks, _) = walk::map(image, &sb, ino, &inode);
                    image.block(&sb, blocks[&0])[..inode.i_size(&sb) as usize].to_vec()
                }
            };
            assert_eq!(target.len() as u64, stat.size(), "{context}");
            assert!(target.iter().all(|&b| b == b'x'), "{context}");
        }
        assert_eq!(inode.file_type() == FileType::Directory, kind.is_dir());

        let mut ours = BTreeMap::new();
        let mut sets = vec![XattrSet::from_ibody(inode.ibody()).unwrap()];
        if let Some(at) = inode.i_file_acl(&sb) {
            sets.push(XattrSet::from_block(&image.block(&sb, at)).unwrap());
        }
        for a in sets.iter().flat_map(|s| s.iter()) {
            let name = xattr::full_name(a.index, &a.name).unwrap();
            let value = if name.starts_with(b"system.posix_acl") {
                Acl::from_disk(&a.value).unwrap().to_user()
            } else {
                a.value.clone()
            };
            ours.insert(name, value);
        }
        assert_eq!(
            ours,
            fact.xattrs,
            "{context} {:?}",
            fact.path.as_bytes().len()
        );
    }
}
