//! Running out of blocks and inodes, and what must survive it; names without number; inodes that outlive their names.

use lockstepfs::fs::{FallocMode, FsError, New, SetAttr};

use crate::engine::{self, ROOT};
use crate::testkit::{DEBIAN_12, FEATURE_SETS, e2fsck, mke2fs, run};

const FILE: New = New {
    mode: 0o100_644,
    umask: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
};

fn set(name: &str) -> &'static crate::testkit::FeatureSet {
    FEATURE_SETS
        .iter()
        .find(|set| set.name == name)
        .expect("a feature set")
}

#[test]
fn a_full_volume_refuses_and_recovers_when_something_is_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, mirrored) in [
        ("debian-12", false),
        ("debian-12-1k", true),
        ("gdt-csum-1k", false),
    ] {
        let set = set(name);
        let image = dir.path().join(name);
        mke2fs(&image, 16 << 20, set).expect("mke2fs");
        let fs = engine::open_image(&image, set.block_size);
        fs.set_mirrored(mirrored).expect("set");
        let mut files = Vec::new();
        let filled = 'fill: loop {
            let name = format!("file-{}", files.len());
            let attr = match fs.create(ROOT, name.as_bytes(), &FILE) {
                Ok(attr) => attr,
                Err(e) => break 'fill e,
            };
            files.push((name, attr.ino));
            for piece in 0..7_u64 {
                let len = 50_000 + piece as usize * 10_000;
                match fs.write(attr.ino, piece * 90_000, &vec![piece as u8 + 1; len]) {
                    Ok(done) if done == len => {}
                    Ok(done) => assert!(done > 0),
                    Err(e) => break 'fill e,
                }
            }
        };
        assert!(matches!(filled, FsError::NoSpace), "{name}: {filled}");
        let left = fs.statfs().expect("statfs");
        // Extent trees keep a fiftieth.
        let kept = u64::from(set.block_size == 1024) * 3 + 1;
        assert!(
            (left.bfree.saturating_sub(kept * 82)) < 10 && left.bavail == 0,
            "{name}: all was used, {} left",
            left.bfree
        );
        let (_, first) = files[0];
        let more = fs.fallocate(
            first,
            FallocMode::Allocate { keep_size: true },
            1 << 20,
            1 << 20,
        );
        assert!(matches!(more, Err(FsError::NoSpace)), "{name}");
        // Refused operations have left nothing behind, and what was removed can be used at once, without a commit between.
        for (name, _) in &files {
            fs.unlink(ROOT, name.as_bytes()).expect("removed");
        }
        let attr = fs.create(ROOT, b"again", &FILE).expect("created");
        let len = 6 << 20;
        assert_eq!(
            fs.write(attr.ino, 0, &vec![9; len]).expect("written"),
            len,
            "{name}"
        );
        fs.close().expect("closed");
        drop(fs);
        e2fsck(&image).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn running_out_of_inodes_is_no_error_of_the_volume() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    run(
        "mke2fs",
        &[
            "-q",
            "-t",
            "ext4",
            "-N",
            "200",
            &image.to_string_lossy(),
            "16M",
        ],
    )
    .expect("mke2fs");
    let block_size = 1024;
    let fs = engine::open_image(&image, block_size);
    let mut made = 0;
    let refused = loop {
        let new = New {
            mode: if made % 3 == 0 { 0o040_755 } else { 0o100_644 },
            ..FILE
        };
        match fs.create(ROOT, format!("name-{made}").as_bytes(), &new) {
            Ok(_) => made += 1,
            Err(e) => break e,
        }
    };
    assert!(matches!(refused, FsError::NoSpace), "{refused}");
    assert_eq!(fs.statfs().expect("statfs").ffree, 0);
    fs.unlink(ROOT, b"name-1").expect("removed");
    fs.create(ROOT, b"once more", &FILE).expect("created");
    fs.close().expect("closed");
    drop(fs);
    e2fsck(&image).expect("clean");
}

#[test]
fn an_unlinked_file_lives_as_long_as_it_is_referred_to() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["debian-12", "upstream-1k"] {
        let set = set(name);
        let image = dir.path().join(name);
        mke2fs(&image, 32 << 20, set).expect("mke2fs");
        let fs = engine::open_image(&image, set.block_size);
        let before = fs.statfs().expect("statfs");
        let attr = fs.create(ROOT, b"held", &FILE).expect("created");
        fs.hold(attr.ino);
        fs.write(attr.ino, 0, &vec![1; 3 << 20]).expect("written");
        fs.unlink(ROOT, b"held").expect("removed");
        fs.sync().expect("synced");
        fs.write(attr.ino, 1 << 20, b"still here").expect("written");
        let held = fs.getattr(attr.ino).expect("it is there");
        assert_eq!(held.nlink, 0);
        assert_eq!(
            engine::contents(&fs, &held).expect("read")[1 << 20..][..5],
            *b"still"
        );
        fs.forget(attr.ino, 1);
        assert!(
            matches!(fs.getattr(attr.ino), Err(FsError::Stale)),
            "{name}"
        );
        // The number is used again; the old file is not the new one.
        let other = fs.create(ROOT, b"other", &FILE).expect("created");
        assert_eq!(other.ino, attr.ino, "{name}");
        let read = fs.read(attr.ino, attr.generation, 0, &mut [0; 4]);
        assert!(matches!(read, Err(FsError::Stale)), "{name}");
        fs.unlink(ROOT, b"other").expect("removed");
        let after = fs.statfs().expect("statfs");
        assert_eq!(
            (before.bfree, before.ffree),
            (after.bfree, after.ffree),
            "{name}"
        );

        // Held at the end of the opening: it goes with it.
        let attr = fs.create(ROOT, b"held again", &FILE).expect("created");
        fs.hold(attr.ino);
        fs.write(attr.ino, 0, &vec![1; 1 << 20]).expect("written");
        fs.unlink(ROOT, b"held again").expect("removed");
        fs.close().expect("closed");
        drop(fs);
        e2fsck(&image).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn orphans_of_a_crash_are_deleted_by_the_next_opening() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["debian-12-1k", "upstream"] {
        let set = set(name);
        let image = dir.path().join(name);
        mke2fs(&image, 64 << 20, set).expect("mke2fs");
        let fs = engine::open_image(&image, set.block_size);
        let free = fs.statfs().expect("statfs").bfree;
        for i in 0..20_u64 {
            let name = format!("held-{i}");
            let attr = fs.create(ROOT, name.as_bytes(), &FILE).expect("created");
            fs.hold(attr.ino);
            // With holes, so that the tree gets deep.
            for piece in 0..40 {
                fs.write(attr.ino, piece * 20_000, b"x").expect("written");
            }
            fs.unlink(ROOT, name.as_bytes()).expect("removed");
        }
        fs.sync().expect("synced");
        // The process dies here.
        std::mem::forget(fs);
        let copy = dir.path().join("copy");
        std::fs::copy(&image, &copy).expect("copied");
        let fs = engine::open_image(&copy, set.block_size);
        assert_eq!(fs.statfs().expect("statfs").bfree, free, "{name}");
        fs.close().expect("closed");
        drop(fs);
        e2fsck(&copy).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn a_fragmented_file_is_cut_over_several_transactions() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    let set = set("debian-12-1k");
    mke2fs(&image, 64 << 20, set).expect("mke2fs");
    let fs = engine::open_image(&image, set.block_size);
    let free = fs.statfs().expect("statfs").bfree;
    let attr = fs.create(ROOT, b"file", &FILE).expect("created");
    for i in 0..6000_u64 {
        fs.write(attr.ino, i * 3 * 1024, &[1; 1024])
            .expect("written");
    }
    let size = SetAttr {
        size: Some(1500),
        ..SetAttr::default()
    };
    let cut = fs.setattr(attr.ino, &size).expect("cut");
    assert_eq!((cut.size, cut.blocks), (1500, 2));
    fs.unlink(ROOT, b"file").expect("removed");
    assert_eq!(fs.statfs().expect("statfs").bfree, free);
    fs.close().expect("closed");
    drop(fs);
    e2fsck(&image).expect("clean");
}

#[test]
fn a_directory_of_twenty_thousand_names_is_indexed_and_stays_clean() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    mke2fs(&image, 256 << 20, &DEBIAN_12).expect("mke2fs");
    let fs = engine::open_image(&image, 4096);
    let top = fs
        .create(
            ROOT,
            b"crowd",
            &New {
                mode: 0o040_755,
                ..FILE
            },
        )
        .expect("created");
    let count = 20_000_usize;
    for i in 0..count {
        fs.create(
            top.ino,
            format!("a name of some length {i}").as_bytes(),
            &FILE,
        )
        .unwrap_or_else(|e| panic!("{i}: {e}"));
    }
    for i in (0..count).step_by(3) {
        fs.unlink(top.ino, format!("a name of some length {i}").as_bytes())
            .unwrap_or_else(|e| panic!("{i}: {e}"));
    }
    let mut names = 0_usize;
    fs.readdir(top.ino, 0, &mut |_| {
        names += 1;
        true
    })
    .expect("listed");
    assert_eq!(names, 2 + count - count.div_ceil(3));
    fs.close().expect("closed");
    drop(fs);
    e2fsck(&image).expect("clean");
}
