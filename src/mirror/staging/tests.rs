use super::*;
use crate::io::sim::SimDisk;

fn range(start: u64, len: u64) -> BlockRange {
    BlockRange::new(BlockNo(start), len)
}

fn end() -> End {
    End {
        consistent_at: Txid(77),
        log: vec![range(100, 64), range(300, 8)],
        journal_superblock: vec![5; 1024],
    }
}

/// What `redo` hands out, in words.
fn redone(disk: &SimDisk, id: u128) -> Result<(Vec<String>, End), String> {
    let mut steps = Vec::new();
    redo(disk, id, |step| {
        steps.push(match step {
            Step::Data(ranges, bytes) => format!("{ranges:?} {:?}", bytes.first()),
            Step::Zero(ranges) => format!("{ranges:?} zero"),
        });
        Ok(())
    })
    .map(|end| (steps, end))
    .map_err(|error| error.to_string())
}

fn written(disk: &Arc<SimDisk>, id: u128) -> Staging {
    let mut staging = Staging::create(Arc::clone(disk) as Arc<dyn Disk>, id);
    staging
        .data(&[range(7, 1), range(9, 1)], &[1; 2048])
        .unwrap();
    staging.zero(&[range(50, 1000)]).unwrap();
    staging.data(&[range(7, 1)], &[2; 1024]).unwrap();
    staging
}

#[test]
fn a_complete_log_is_redone_in_order_as_often_as_wanted() {
    let disk = Arc::new(SimDisk::new(1 << 20));
    let mut staging = written(&disk, 42);
    staging.end(&end()).unwrap();
    let first = redone(&disk, 42).unwrap();
    assert_eq!(first.0.len(), 3);
    assert!(first.0[0].ends_with("Some(1)") && first.0[2].ends_with("Some(2)"));
    assert!(first.0[1].ends_with("zero"));
    assert_eq!(first.1, end());
    assert_eq!(redone(&disk, 42).unwrap(), first);
}

#[test]
fn an_incomplete_log_and_what_an_earlier_one_left_are_refused() {
    let disk = Arc::new(SimDisk::new(1 << 20));
    let mut earlier = written(&disk, 41);
    earlier.end(&end()).unwrap();
    // A shorter log over a longer, complete one.
    let mut staging = Staging::create(Arc::clone(&disk) as Arc<dyn Disk>, 42);
    staging
        .data(&[range(7, 1), range(9, 1)], &[1; 2048])
        .unwrap();
    staging.flush().unwrap();
    assert!(
        redone(&disk, 42)
            .unwrap_err()
            .contains("not of this staging")
    );
    assert!(redone(&disk, 41).is_err());
}

#[test]
fn every_flipped_byte_is_noticed() {
    let disk = Arc::new(SimDisk::new(64 << 10));
    let mut staging = written(&disk, 42);
    staging.end(&end()).unwrap();
    for at in (0..staging.len()).step_by(13) {
        let mut byte = [0];
        disk.read_at(&mut byte, at).unwrap();
        disk.write_at(&[byte[0] ^ 0x20], at).unwrap();
        assert!(redone(&disk, 42).is_err(), "byte {at}");
        disk.write_at(&byte, at).unwrap();
    }
    assert!(redone(&disk, 42).is_ok());
}

#[test]
fn a_full_log_says_so_before_it_is_written_to() {
    let disk = Arc::new(SimDisk::new(4096));
    let mut staging = Staging::create(Arc::clone(&disk) as Arc<dyn Disk>, 1);
    assert!(staging.fits(1, 1024));
    staging.data(&[range(1, 1)], &[0; 1024]).unwrap();
    assert!(!staging.fits(1, 4096));
    assert!(staging.data(&[range(1, 4)], &[0; 4096]).is_err());
}
