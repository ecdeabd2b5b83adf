use super::tools::*;
use super::*;
use crate::io::Disk;
use crate::io::file::{FileDisk, OpenMode};
use crate::io::sim::{SimDisk, Survivors};
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;

#[test]
fn the_default_buffer_follows_the_rule() {
    let of = |bytes, block| default_buffer_bytes(bytes, block) / MIB;
    assert_eq!(of(10 * GIB, 4096), 1024);
    assert_eq!(of(GIB, 4096), 102);
    assert_eq!(of(GIB, 1024), 102);
    assert_eq!(of(512 * MIB, 4096), 51);
    assert_eq!(of(100 * GIB, 4096), 4096, "at most 4 GiB");
    assert_eq!(of(1 << 50, 4096), 4096);
    assert_eq!(of(16 * MIB, 4096), 4, "1,024 blocks");
    assert_eq!(of(16 * MIB, 1024), 1);
    assert_eq!(of(0, 2048), 2);
    for exponent in 0..63 {
        for block in [1024_u32, 2048, 4096] {
            let bytes = default_buffer_bytes(1 << exponent, block);
            assert_eq!(bytes % MIB, 0);
            let blocks = bytes / u64::from(block);
            assert!((MIN_BUFFER_BLOCKS..=MAX_BUFFER_BLOCKS).contains(&blocks));
        }
    }
}

#[test]
fn an_explicit_buffer_is_rounded_up_and_bounded() {
    let of = |bytes, block| buffer_mib(Buffer::Bytes(bytes), 1 << 50, block);
    assert_eq!(of(4 * MIB + 1, 4096).unwrap(), 5);
    assert_eq!(of(MIB, 1024).unwrap(), 1);
    assert!(matches!(
        of(4 * MIB - 1, 4096),
        Err(MkfsError::Buffer { .. })
    ));
    assert_eq!(of(40_000 * MIB, 4096).unwrap(), 40_000);
    assert!(of(40_000 * MIB + 1, 4096).is_err());
    assert!(of(10_000 * MIB + 1, 1024).is_err());
    assert!(buffer_mib(Buffer::Bytes(60 * MIB), 100 * MIB, 1024).is_err());
}

#[test]
fn answers_of_e2fsprogs_are_read() {
    let range = |start, len| Some(BlockRange::new(BlockNo(start), len));
    let line = " 0/ 0   1/  1     0 -  2047 16385 - 18432   2048 ";
    assert_eq!(leaf_extent(line), range(16385, 2048));
    assert_eq!(
        leaf_extent(" 0/ 1   1/  1     0 - 1048575  9270           1048576"),
        None
    );
    assert_eq!(
        leaf_extent("Level Entries       Logical      Physical Length Flags"),
        None
    );
    assert_eq!(
        inode_table("  Inode table at 275-786 (+274)"),
        range(275, 512)
    );
    assert_eq!(inode_table("  Inode bitmap at 267 (+266)"), None);
    assert_eq!(
        uuid_text(0x1234_5678),
        "00000000-0000-0000-0000-000012345678"
    );
}

#[test]
fn a_missing_tool_names_its_package() {
    assert_eq!(find_tool("no-such-tool", OsStr::new("/bin:/usr/bin")), None);
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("mke2fs");
    std::fs::write(&plain, "").unwrap();
    let found = find_tool("mke2fs", dir.path().as_os_str());
    assert_ne!(found, Some(plain.clone()), "it is not executable");
    std::fs::set_permissions(&plain, PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(find_tool("mke2fs", dir.path().as_os_str()), Some(plain));
    let said = MkfsError::ToolMissing { tool: "mke2fs" }.to_string();
    assert_eq!(
        said,
        "mke2fs is not installed; it is in the package e2fsprogs"
    );
}

fn sims(lens: &[u64]) -> (Vec<Arc<SimDisk>>, Vec<Arc<dyn Disk>>) {
    let sims: Vec<_> = lens.iter().map(|l| Arc::new(SimDisk::new(*l))).collect();
    let disks = sims.iter().map(|d| d.clone() as Arc<dyn Disk>).collect();
    (sims, disks)
}

/// The parts' bytes in one file, checked by e2fsck; what dumpe2fs says of it.
fn checked(volume: &Volume) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let file = File::create(&path).unwrap();
    file.set_len(volume.len()).unwrap();
    let mut buf = vec![0; MIB as usize];
    for at in (0..volume.len()).step_by(MIB as usize) {
        let n = MIB.min(volume.len() - at) as usize;
        volume.read_bytes(at, &mut buf[..n]).unwrap();
        if buf[..n].iter().any(|b| *b != 0) {
            file.write_all_at(&buf[..n], at).unwrap();
        }
    }
    let mut e2fsck = tool("e2fsck").unwrap();
    e2fsck.arg("-fn").arg(&path);
    run("e2fsck", e2fsck).unwrap();
    let mut dumpe2fs = tool("dumpe2fs").unwrap();
    dumpe2fs.arg("-h").arg(&path);
    let mut debugfs = tool("debugfs").unwrap();
    debugfs.args(["-R", "stat <2>"]).arg(&path);
    run("dumpe2fs", dumpe2fs).unwrap() + &run("debugfs", debugfs).unwrap()
}

fn value<'a>(dump: &'a str, key: &str) -> &'a str {
    let line = dump.lines().find_map(|l| l.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').trim()
}

#[test]
fn a_file_system_spans_the_parts() {
    for block_size in [1024_u32, 2048, 4096] {
        let (sims, disks) = sims(&[5 * MIB, 28 * MIB + 8192, 31 * MIB - 8192]);
        // What was there before must not show.
        for sim in &sims {
            sim.write_at(&vec![0xa5; 5 << 20], 0).unwrap();
        }
        let volume = Volume::new(disks, block_size).unwrap();
        let mut options = MkfsOptions::new(0xdead_beef);
        options.label = Some("0123456789abcdef".into());
        options.root_owner = Some((1234, 5678));
        let made = make(&volume, &options).unwrap();
        assert_eq!(made.buffer_bytes, 6 * MIB);
        let journal: u64 = made.journal.iter().map(|r| r.len).sum();
        assert_eq!(journal * u64::from(block_size), 6 * MIB);
        let dump = checked(&volume);
        assert_eq!(
            value(&dump, "Block count"),
            (volume.blocks_count()).to_string()
        );
        assert_eq!(value(&dump, "Block size"), block_size.to_string());
        assert_eq!(value(&dump, "Filesystem volume name"), "0123456789abcdef");
        assert_eq!(value(&dump, "Filesystem UUID"), uuid_text(0xdead_beef));
        let root = dump.lines().find(|l| l.starts_with("User:")).unwrap();
        let owner: Vec<&str> = root.split_whitespace().take(4).collect();
        assert_eq!(owner, ["User:", "1234", "Group:", "5678"]);
        // A power cut after mkfs takes nothing away.
        for sim in &sims {
            let cut = sim.after_crash(Survivors::None);
            assert!(cut.same_contents(sim));
        }
    }
}

#[test]
fn the_superblock_comes_last() {
    use crate::io::sim::Recording;
    let recording = Recording::new();
    let sim = Arc::new(SimDisk::new(16 * MIB));
    let disk = recording.wrap(sim).unwrap();
    let volume = Volume::new(vec![disk], 1024).unwrap();
    make(&volume, &MkfsOptions::new(1)).unwrap();
    let all = recording
        .image_at(recording.len(), Survivors::None)
        .remove(0);
    for n in 0..recording.len() {
        let cut = recording.image_at(n, Survivors::All).remove(0);
        let mut magic = [0; 2];
        cut.read_at(&mut magic, 1024 + 56).unwrap();
        if magic == [0x53, 0xef] {
            assert_eq!(cut.first_difference(&all), None, "after event {n}");
        }
    }
}

#[test]
fn files_stay_sparse_and_the_journal_is_preallocated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("part");
    let mode = OpenMode {
        create_len: Some(2 * GIB),
        read_only: false,
    };
    let disk = Arc::new(FileDisk::open(&path, mode).unwrap());
    let volume = Volume::new(vec![disk], 4096).unwrap();
    let made = make(&volume, &MkfsOptions::new(1)).unwrap();
    assert_eq!(made.buffer_bytes, 204 * MIB);
    let taken = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap()) * 512;
    assert!(taken < 230 * MIB, "{taken}");
    // Nothing of the scratch file is left.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    drop(volume);
    let mut e2fsck = tool("e2fsck").unwrap();
    e2fsck.arg("-fn").arg(&path);
    run("e2fsck", e2fsck).unwrap();
}

#[test]
fn what_can_not_be_made_is_refused() {
    let (_, disks) = sims(&[4095 * 1024]);
    let volume = Volume::new(disks, 1024).unwrap();
    let made = make(&volume, &MkfsOptions::new(1));
    assert!(matches!(made, Err(MkfsError::TooSmall { found: 4095 })));
    let (_, disks) = sims(&[4096 * 1024]);
    let volume = Volume::new(disks, 1024).unwrap();
    let mut options = MkfsOptions::new(1);
    options.label = Some("0123456789abcdefg".into());
    assert!(matches!(
        make(&volume, &options),
        Err(MkfsError::Label { .. })
    ));
    options.label = None;
    options.features = Some("no_such_feature".into());
    match make(&volume, &options) {
        Err(MkfsError::Tool {
            tool: "mke2fs",
            message,
        }) => {
            assert!(message.contains("no_such_feature"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    options.features = None;
    options.scratch = Some("/nonexistent".into());
    assert!(matches!(
        make(&volume, &options),
        Err(MkfsError::Scratch { .. })
    ));
    // The smallest volume there is.
    make(&volume, &MkfsOptions::new(1)).unwrap();
    checked(&volume);
}

/// Detaches the loop device when the test ends, however it ends.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn a_device_full_of_garbage_gets_a_clean_journal_and_clean_inode_tables() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backing");
    std::fs::write(&path, vec![0xa5; 48 << 20]).unwrap();
    let attached = Command::new("losetup")
        .args(["-f", "--show"])
        .arg(&path)
        .output();
    let device = match attached {
        Ok(out) if out.status.success() => {
            Loop(String::from_utf8(out.stdout).unwrap().trim().to_owned())
        }
        other => {
            use std::io::Write;
            let strict = std::env::var_os("LOCKSTEP_NO_SKIP").is_some_and(|v| v == "1");
            assert!(!strict, "no loop device: {other:?}");
            writeln!(io::stderr(), "SKIPPED: no loop device: {other:?}").unwrap();
            return;
        }
    };
    let disk = FileDisk::open(&device.0, OpenMode::default()).unwrap();
    let file = Arc::new(SimDisk::new(16 * MIB));
    let volume = Volume::new(vec![file, Arc::new(disk)], 1024).unwrap();
    let made = make(&volume, &MkfsOptions::new(1)).unwrap();
    checked(&volume);
    // All of the journal behind its superblock is zeros.
    let mut dirty = 0;
    for range in &made.journal {
        for block in range.blocks() {
            let mut buf = [0; 1024];
            volume.read(block, &mut buf).unwrap();
            dirty += usize::from(buf != [0; 1024]);
        }
    }
    assert_eq!(dirty, 1);
    // A free block keeps what it had.
    let mut last = [0; 1024];
    volume
        .read(BlockNo(volume.blocks_count() - 100), &mut last)
        .unwrap();
    assert_eq!(last, [0xa5; 1024]);
}
