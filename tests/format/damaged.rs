//! Volumes with damage: an error, never a panic, never a walk without end; and never a write that makes it worse than it was
//! in what is left whole.

use std::collections::HashSet;
use std::sync::Arc;

use lockstepfs::fs::{
    FallocMode, FileKind, Fs, FsError, FsRole, How, New, RenameFlags, SetAttr, open_volume,
};
use lockstepfs::io::Disk;
use lockstepfs::io::sim::SimDisk;
use lockstepfs::units::{Generation, Ino, Txid};

use crate::engine::{self, ROOT};
use crate::testkit::{FEATURE_SETS, FeatureSet, Rng, mke2fs};

/// A small volume with something of everything, filled by the engine.
pub fn filled(set: &FeatureSet) -> SimDisk {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    mke2fs(&image, 24 << 20, set).expect("mke2fs");
    let fs = engine::open_image(&image, set.block_size);
    let new = New {
        mode: 0o100_644,
        ..New::default()
    };
    let top = fs
        .create(
            ROOT,
            b"dir",
            &New {
                mode: 0o040_755,
                ..new
            },
        )
        .expect("created");
    for i in 0..300_u64 {
        let name = format!("a file with a name that fills its block {i}");
        let attr = fs.create(top.ino, name.as_bytes(), &new).expect("created");
        if i % 10 == 0 {
            for piece in 0..12 {
                fs.write(attr.ino, piece * 9000, b"a piece")
                    .expect("written");
            }
            fs.setxattr(attr.ino, b"user.long", &[3; 400], Default::default())
                .expect("set");
        }
    }
    fs.symlink(ROOT, b"link", &[b'x'; 200], 0, 0).expect("made");
    fs.close().expect("closed");
    drop(fs);
    SimDisk::load(&image).expect("loaded")
}

/// Reads what can be read.
fn look_at_everything(fs: &Fs) {
    let mut seen = HashSet::new();
    let mut todo = vec![ROOT];
    let mut buf = vec![0; 50_000];
    while let Some(ino) = todo.pop() {
        if !seen.insert(ino) {
            continue;
        }
        let Ok(attr) = fs.getattr(ino) else { continue };
        let _ = fs.listxattr(ino);
        let _ = fs.getxattr(ino, b"user.long");
        match attr.kind() {
            FileKind::Directory => {
                let mut names = 0;
                let _ = fs.readdir(ino, 0, &mut |entry| {
                    todo.push(entry.ino);
                    names += 1;
                    names < 10_000
                });
                let _ = fs.lookup(ino, b"a file with a name that fills its block 77");
            }
            FileKind::Symlink => drop(fs.readlink(ino)),
            _ => {
                for at in [0, 40_000, attr.size.saturating_sub(100)] {
                    let _ = fs.read(ino, attr.generation, at, &mut buf);
                }
                let _ = fs.seek(ino, 0, lockstepfs::fs::Whence::Hole);
            }
        }
    }
    let _ = fs.statfs();
}

/// Changes what can be changed.
fn change_something(fs: &Fs, rng: &mut Rng) -> Result<(), FsError> {
    let new = New {
        mode: 0o100_644,
        ..New::default()
    };
    let dir = fs.lookup(ROOT, b"dir")?.ino;
    for i in 0..40 {
        let name = format!("a file with a name that fills its block {}", rng.below(300));
        let known = fs.lookup(dir, name.as_bytes());
        let ino = known
            .as_ref()
            .map_or(Ino(12 + rng.below(300) as u32), |attr| attr.ino);
        let size = SetAttr {
            size: Some(rng.below(90_000)),
            ..SetAttr::default()
        };
        let _ = match rng.below(8) {
            0 => fs
                .create(dir, format!("new {i}").as_bytes(), &new)
                .map(drop),
            1 => fs.unlink(dir, name.as_bytes()),
            2 => fs.rename(
                dir,
                name.as_bytes(),
                ROOT,
                format!("moved {i}").as_bytes(),
                RenameFlags::default(),
            ),
            3 => fs.write(ino, rng.below(100_000), &[1; 3000]).map(drop),
            4 => fs.write(ino, rng.below(100_000), &[1; 60_000]).map(drop),
            5 => fs.setattr(ino, &size).map(drop),
            6 => fs.fallocate(
                ino,
                FallocMode::ZeroRange { keep_size: false },
                rng.below(90_000),
                30_000,
            ),
            _ => fs.removexattr(ino, b"user.long"),
        };
        if rng.chance(10) {
            let _ = fs.sync();
        }
    }
    Ok(())
}

fn damage(set: &FeatureSet, seeds: std::ops::Range<u64>) {
    let whole = filled(set);
    // Where damage hurts: everything that is not zeros in the first megabytes, but for the journal's bulk.
    let mut targets = Vec::new();
    let mut page = [0; 1024];
    for at in (0..whole.len()).step_by(1024) {
        whole.read_at(&mut page, at).expect("read");
        if page.iter().any(|b| *b != 0) {
            targets.push(at);
        }
    }
    for seed in seeds {
        let mut rng = Rng(seed);
        let disk = Arc::new(whole.snapshot());
        for _ in 0..1 + rng.below(6) {
            let block = *rng.pick(&targets);
            for _ in 0..1 + rng.below(8) {
                let at = block + rng.below(1024);
                let byte = *rng.pick(&[0, 1, 0x7f, 0x80, 0xff, rng.0 as u8]);
                disk.write_at(&[byte], at).expect("written");
            }
        }
        disk.flush().expect("flushed");
        for how in [How::ReadOnly, How::ReadWrite] {
            let volume = engine::volume(
                vec![Arc::new(disk.snapshot()) as Arc<dyn Disk>],
                set.block_size,
            );
            let Ok(opened) = open_volume(volume, Txid(0), how) else {
                continue;
            };
            let role = match how {
                How::ReadOnly => FsRole::ReadOnly,
                How::ReadWrite | How::Confirmed(_) => FsRole::Master,
            };
            let first = opened.journal.last_committed().next();
            if how == How::ReadWrite && opened.journal.begin_segment(Generation(1), first).is_err()
            {
                continue;
            }
            let Ok(fs) = Fs::open(opened, engine::options(role)) else {
                continue;
            };
            look_at_everything(&fs);
            if how == How::ReadWrite {
                let _ = change_something(&fs, &mut rng);
                look_at_everything(&fs);
                let _ = fs.close();
            }
        }
    }
}

#[test]
fn damage_gives_errors_and_nothing_else() {
    for name in ["no-csum", "debian-12-1k", "inode-128", "upstream-1k"] {
        let set = FEATURE_SETS
            .iter()
            .find(|set| set.name == name)
            .expect("a feature set");
        damage(set, 0..60);
    }
}
