use super::*;

fn spec(path: PathBuf, len: u64) -> PartSpec {
    PartSpec {
        path,
        len: Some(len),
    }
}

#[test]
fn fresh_parts_are_created_sparse_and_opened_again_as_ours() {
    let dir = tempfile::tempdir().unwrap();
    let specs = [
        spec(dir.path().join("a"), 1 << 30),
        spec(dir.path().join("b"), 8192),
    ];
    let parts = open_parts(&specs, 4096, Expect::Fresh, None).unwrap();
    let lens: Vec<u64> = parts.iter().map(|p| p.len()).collect();
    assert_eq!(lens, [1 << 30, 8192]);
    let again = open_parts(&specs, 4096, Expect::Ours, None);
    assert!(matches!(
        again,
        Err(PartsError::Open {
            part: 0,
            source: OpenError::InUse { .. }
        })
    ));
    parts[1].write_at(b"x", 0).unwrap();
    drop(parts);
    open_parts(&specs, 4096, Expect::Ours, None).unwrap();
    open_parts(&specs, 4096, Expect::Present, None).unwrap();
    open_parts(&specs, 4096, Expect::ReadOnly, None).unwrap();
    let refused = open_parts(&specs, 4096, Expect::Fresh, None).unwrap_err();
    assert!(
        matches!(refused, PartsError::Occupied { part: 1, .. }),
        "{refused}"
    );
    // The untouched one is as good as new.
    open_parts(&specs[..1], 4096, Expect::Fresh, None).unwrap();
}

#[test]
fn what_a_failed_attempt_created_is_gone_again() {
    let dir = tempfile::tempdir().unwrap();
    let foreign = dir.path().join("foreign");
    std::fs::write(&foreign, [1; 8192]).unwrap();
    let specs = [
        spec(dir.path().join("a"), 8192),
        spec(foreign.clone(), 8192),
    ];
    assert!(open_parts(&specs, 4096, Expect::Fresh, None).is_err());
    assert!(!specs[0].path.exists());
    assert_eq!(std::fs::read(&foreign).unwrap(), [1; 8192]);
    // Under the same name twice.
    let twice = [specs[0].clone(), specs[0].clone()];
    assert!(matches!(
        open_parts(&twice, 4096, Expect::Fresh, None),
        Err(PartsError::Open {
            part: 1,
            source: OpenError::InUse { .. }
        })
    ));
    assert!(!specs[0].path.exists());
}

#[test]
fn missing_and_wrongly_sized_parts_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let missing = open_parts(&[spec(path.clone(), 8192)], 4096, Expect::Present, None);
    assert!(matches!(&missing, Err(PartsError::Open { part: 0, source }) if source.is_not_found()));
    assert!(!path.exists());
    let odd = open_parts(&[spec(path.clone(), 8192 + 512)], 4096, Expect::Fresh, None);
    assert!(matches!(
        odd,
        Err(PartsError::NotWholeBlocks { part: 0, .. })
    ));
    let unsized_one = PartSpec {
        path: path.clone(),
        len: None,
    };
    let no_size = open_parts(
        std::slice::from_ref(&unsized_one),
        4096,
        Expect::Fresh,
        None,
    );
    assert!(matches!(no_size, Err(PartsError::NoSize { part: 0, .. })));
    std::fs::write(&path, [1; 5000]).unwrap();
    let odd = open_parts(
        std::slice::from_ref(&unsized_one),
        4096,
        Expect::Present,
        None,
    );
    assert!(matches!(
        odd,
        Err(PartsError::NotWholeBlocks { len: 5000, .. })
    ));
    let other = open_parts(&[spec(path.clone(), 8192)], 4096, Expect::Present, None);
    assert!(matches!(
        other,
        Err(PartsError::Open {
            source: OpenError::SizeDiffers {
                expected: 8192,
                found: 5000,
                ..
            },
            ..
        })
    ));
    // An empty file is a part to be made, but not one to be adopted.
    std::fs::write(&path, []).unwrap();
    assert!(open_parts(&[spec(path.clone(), 8192)], 4096, Expect::Present, None).is_err());
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    open_parts(&[spec(path, 8192)], 4096, Expect::Ours, None).unwrap();
    assert!(matches!(
        open_parts(&[], 4096, Expect::Ours, None),
        Err(PartsError::Count { .. })
    ));
    assert!(matches!(
        open_parts(&[], 512, Expect::Ours, None),
        Err(PartsError::BlockSize { .. })
    ));
}

#[test]
fn too_little_room_is_said_before_anything_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let specs = [spec(dir.path().join("a"), 8192)];
    let refused = open_parts(&specs, 4096, Expect::Fresh, Some(u64::MAX)).unwrap_err();
    assert!(matches!(refused, PartsError::NoRoom { .. }), "{refused}");
    assert!(!specs[0].path.exists());
    open_parts(&specs, 4096, Expect::Fresh, Some(8192)).unwrap();
}

#[test]
fn descriptions_are_compared_by_block_number_and_sizes() {
    let of = |block_size, parts: &[u64]| Description {
        block_size,
        parts: parts.to_vec(),
    };
    let ours = of(4096, &[8192, 4096]);
    assert_eq!(ours.compare(&ours), Ok(()));
    assert_eq!(
        ours.compare(&of(1024, &[8192, 4096])),
        Err(Differs::BlockSize {
            expected: 4096,
            found: 1024
        })
    );
    assert_eq!(
        ours.compare(&of(4096, &[8192])),
        Err(Differs::Count {
            expected: 2,
            found: 1
        })
    );
    let differs = ours.compare(&of(4096, &[8192, 8192])).unwrap_err();
    assert_eq!(differs.to_string(), "part 2 has 8192 bytes, not 4096");
    assert_eq!(ours.total(), Some(12288));
    ours.check().unwrap();
    assert!(of(4096, &[]).check().is_err());
    assert!(of(4096, &[1 << 63, 1 << 63]).check().is_err());
    assert!(of(4096, &[4095]).check().is_err());
    assert!(of(8192, &[8192]).check().is_err());
}

#[test]
fn an_open_volume_describes_itself() {
    let disks: Vec<Arc<dyn Disk>> = vec![
        Arc::new(crate::io::sim::SimDisk::new(8192)),
        Arc::new(crate::io::sim::SimDisk::new(4096)),
    ];
    let volume = Volume::new(disks, 2048).unwrap();
    let found = Description::of(&volume);
    assert_eq!(
        found,
        Description {
            block_size: 2048,
            parts: vec![8192, 4096]
        }
    );
}
