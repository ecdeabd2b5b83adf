use super::*;
use std::process::Command;
use std::sync::Arc;

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn create(path: &Path, len: u64) -> FileDisk {
    FileDisk::open(
        path,
        OpenMode {
            create_len: Some(len),
            read_only: false,
        },
    )
    .unwrap()
}

#[test]
fn a_created_file_is_sparse_private_and_reads_zeros() {
    let dir = scratch();
    let path = dir.path().join("part");
    let disk = create(&path, 1 << 30);
    assert_eq!(disk.len(), 1 << 30);
    assert!(disk.is_hole(0, 1 << 30));
    let found = std::fs::metadata(&path).unwrap();
    assert_eq!(found.mode() & 0o777, 0o600);
    assert!(found.blocks() < 64, "{} sectors", found.blocks());
    let mut buf = [1; 512];
    disk.read_at(&mut buf, (1 << 30) - 512).unwrap();
    assert_eq!(buf, [0; 512]);
}

#[test]
fn what_was_written_is_read_and_zeroed_ranges_are_holes() {
    let dir = scratch();
    let disk = create(&dir.path().join("part"), 1 << 20);
    disk.write_at(&[9; 300_000], 4096).unwrap();
    disk.flush().unwrap();
    assert!(!disk.is_hole(0, 8192));
    assert!(!disk.is_hole(4096, 4096));
    disk.zero(8192, 65536).unwrap();
    assert!(disk.is_hole(8192, 65536));
    let mut buf = vec![1; 65536 + 8192];
    disk.read_at(&mut buf, 4096).unwrap();
    assert_eq!(buf[..4096], [9; 4096]);
    assert!(buf[4096..4096 + 65536].iter().all(|b| *b == 0));
    assert_eq!(buf[4096 + 65536..], [9; 4096]);
}

#[test]
fn zeroing_an_unaligned_range_leaves_its_neighbours() {
    let dir = scratch();
    let disk = create(&dir.path().join("part"), 1 << 16);
    disk.write_at(&[9; 1 << 16], 0).unwrap();
    disk.zero(1000, 9000).unwrap();
    let mut buf = vec![1; 1 << 16];
    disk.read_at(&mut buf, 0).unwrap();
    for (at, byte) in buf.iter().enumerate() {
        let expected = if (1000..10_000).contains(&at) { 0 } else { 9 };
        assert_eq!(*byte, expected, "at {at}");
    }
}

#[test]
fn preallocation_keeps_contents_and_size() {
    let dir = scratch();
    let path = dir.path().join("part");
    let disk = create(&path, 1 << 20);
    disk.write_at(b"kept", 100).unwrap();
    match disk.preallocate(0, 1 << 20) {
        Ok(()) => {
            assert!(std::fs::metadata(&path).unwrap().blocks() >= (1 << 20) / 512);
            // Written, too: nothing is left for the first write to make of it.
            assert!((0..256).all(|n| !disk.is_hole(n << 12, 1 << 12)));
        }
        Err(e) => assert_eq!(e.kind(), io::ErrorKind::Unsupported),
    }
    let mut buf = [0; 4];
    disk.read_at(&mut buf, 100).unwrap();
    assert_eq!(&buf, b"kept");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
}

#[test]
fn ranges_past_the_end_are_errors_and_change_nothing() {
    let dir = scratch();
    let path = dir.path().join("part");
    let disk = create(&path, 8192);
    let mut buf = [0; 512];
    assert!(disk.read_at(&mut buf, 8192 - 511).is_err());
    assert!(disk.write_at(&buf, 8192 - 511).is_err());
    assert!(disk.zero(8000, 193).is_err());
    assert!(disk.preallocate(8000, 193).is_err());
    assert!(disk.read_at(&mut buf, u64::MAX - 5).is_err());
    assert!(!disk.is_hole(8192, 1));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 8192);
}

#[test]
fn a_second_opening_says_in_use() {
    let dir = scratch();
    let path = dir.path().join("part");
    let disk = create(&path, 8192);
    let again = FileDisk::open(&path, OpenMode::default());
    assert!(matches!(again, Err(OpenError::InUse { .. })), "{again:?}");
    let reader = OpenMode {
        read_only: true,
        ..OpenMode::default()
    };
    assert!(matches!(
        FileDisk::open(&path, reader),
        Err(OpenError::InUse { .. })
    ));
    drop(disk);
    let one = FileDisk::open(&path, reader).unwrap();
    let two = FileDisk::open(&path, reader).unwrap();
    assert!(one.write_at(b"x", 0).is_err(), "a reader wrote");
    assert!(matches!(
        FileDisk::open(&path, OpenMode::default()),
        Err(OpenError::InUse { .. })
    ));
    drop((one, two));
    FileDisk::open(&path, OpenMode::default()).unwrap();
}

#[test]
fn missing_wrong_and_differently_sized_stores_are_named() {
    let dir = scratch();
    let path = dir.path().join("part");
    let missing = FileDisk::open(&path, OpenMode::default()).unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    assert!(matches!(
        FileDisk::open(dir.path(), OpenMode::default()),
        Err(OpenError::NotAStore { .. })
    ));
    drop(create(&path, 8192));
    let other = FileDisk::open(
        &path,
        OpenMode {
            create_len: Some(4096),
            read_only: false,
        },
    );
    assert!(matches!(
        other,
        Err(OpenError::SizeDiffers {
            expected: 4096,
            found: 8192,
            ..
        })
    ));
    // The same size is the same store, as it is.
    create(&path, 8192);
}

#[test]
fn a_fifo_is_refused_without_waiting_for_its_other_end() {
    let dir = scratch();
    let path = dir.path().join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    assert!(matches!(
        FileDisk::open(&path, OpenMode::default()),
        Err(OpenError::NotAStore { .. })
    ));
}

/// Detaches the loop device when the test ends, however it ends.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

fn attach(path: &Path) -> Option<Loop> {
    let made = Command::new("losetup")
        .args(["-f", "--show"])
        .arg(path)
        .output();
    match made {
        Ok(out) if out.status.success() => Some(Loop(
            String::from_utf8(out.stdout).unwrap().trim().to_owned(),
        )),
        other => {
            let strict = std::env::var_os("LOCKSTEP_NO_SKIP").is_some_and(|v| v == "1");
            assert!(!strict, "no loop device: {other:?}");
            use std::io::Write;
            // Past the test harness, which would swallow what a passing test prints.
            writeln!(io::stderr(), "SKIPPED: no loop device: {other:?}").unwrap();
            None
        }
    }
}

#[test]
fn a_file_behind_a_loop_device_is_in_use() {
    let dir = scratch();
    let path = dir.path().join("part");
    drop(create(&path, 1 << 20));
    let Some(device) = attach(&path) else { return };
    match FileDisk::open(&path, OpenMode::default()) {
        Err(OpenError::InUse { by: Some(by), .. }) => assert!(by.contains(&device.0), "{by}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_block_device_is_a_disk() {
    let dir = scratch();
    let path = dir.path().join("part");
    drop(create(&path, 1 << 20));
    let Some(device) = attach(&path) else { return };
    let disk = FileDisk::open(&device.0, OpenMode::default()).unwrap();
    assert!(disk.is_device());
    assert_eq!(disk.len(), 1 << 20);
    assert_eq!(disk.changed_at(), None);
    disk.write_at(&[5; 16384], 4096).unwrap();
    disk.zero(8192, 4096).unwrap();
    // Not a multiple of a sector: written, not discarded.
    disk.zero(12288, 100).unwrap();
    disk.preallocate(0, 1 << 20).unwrap();
    disk.flush().unwrap();
    let mut buf = vec![1; 16384];
    disk.read_at(&mut buf, 4096).unwrap();
    assert_eq!(buf[..4096], [5; 4096]);
    assert!(buf[4096..8292].iter().all(|b| *b == 0));
    assert!(buf[8292..].iter().all(|b| *b == 5));
    assert!(matches!(
        FileDisk::open(&device.0, OpenMode::default()),
        Err(OpenError::InUse { .. })
    ));
}

#[test]
fn a_change_moves_the_stamp() {
    let dir = scratch();
    let path = dir.path().join("part");
    let disk = create(&path, 8192);
    let before = disk.changed_at().unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    assert!(disk.changed_at().unwrap() >= before);
}

#[test]
fn threads_share_one_disk() {
    let dir = scratch();
    let disk = Arc::new(create(&dir.path().join("part"), 1 << 20));
    let workers: Vec<_> = (0..4_u8)
        .map(|n| {
            let disk = disk.clone();
            std::thread::spawn(move || {
                for i in 0..64 {
                    let at = (u64::from(n) * 64 + i) * 4096;
                    disk.write_at(&[n + 1; 4096], at).unwrap();
                    let _ = disk.is_hole(0, 4096);
                    let mut back = [0; 4096];
                    disk.read_at(&mut back, at).unwrap();
                    assert_eq!(back, [n + 1; 4096]);
                }
                disk.flush().unwrap();
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
}

#[test]
fn clock_and_random_are_alive() {
    let clock = SystemClock::new();
    assert!(clock.now().secs > 1_700_000_000);
    assert!(clock.monotonic() <= clock.monotonic());
    assert_ne!(SystemRandom.u128(), SystemRandom.u128());
}
