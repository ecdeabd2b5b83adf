use super::*;
use crate::io::counting::CountingDisk;
use crate::io::sim::{Fault, SimDisk, Survivors};
use proptest::prelude::*;

fn sims(lens: &[u64]) -> (Vec<Arc<SimDisk>>, Vec<Arc<dyn Disk>>) {
    let sims: Vec<_> = lens.iter().map(|l| Arc::new(SimDisk::new(*l))).collect();
    let disks = sims.iter().map(|d| d.clone() as Arc<dyn Disk>).collect();
    (sims, disks)
}

fn volume(lens: &[u64], block_size: u32) -> (Vec<Arc<SimDisk>>, Volume) {
    let (sims, disks) = sims(lens);
    (sims, Volume::new(disks, block_size).unwrap())
}

#[test]
fn parts_must_be_whole_blocks_and_the_block_one_of_three() {
    let refused = |lens: &[u64], bs| Volume::new(sims(lens).1, bs).unwrap_err();
    assert!(matches!(refused(&[], 1024), VolumeError::NoParts));
    assert!(matches!(
        refused(&[4096], 512),
        VolumeError::BlockSize { found: 512 }
    ));
    assert!(matches!(
        refused(&[65536], 8192),
        VolumeError::BlockSize { .. }
    ));
    assert!(matches!(
        refused(&[4096, 0], 4096),
        VolumeError::PartLength { part: 1, .. }
    ));
    assert!(matches!(
        refused(&[4096, 6144], 4096),
        VolumeError::PartLength { part: 1, .. }
    ));
    assert!(matches!(
        refused(&[1 << 63, 1 << 63], 4096),
        VolumeError::PartLength { part: 1, .. }
    ));
    let (_, v) = volume(&[4096, 6144], 2048);
    assert_eq!(
        (v.blocks_count(), v.len(), v.block_size()),
        (5, 10240, 2048)
    );
}

#[test]
fn a_write_crosses_the_edges_of_parts() {
    let (sims, v) = volume(&[2048, 1024, 4096], 1024);
    let data: Vec<u8> = (0..5 * 1024).map(|n| (n / 1024 + 1) as u8).collect();
    v.write(BlockNo(1), &data).unwrap();
    let mut byte = [0];
    for (part, offset, expected) in [
        (0, 1024, 1),
        (1, 0, 2),
        (2, 0, 3),
        (2, 2048, 5),
        (2, 3072, 0),
    ] {
        sims[part].read_at(&mut byte, offset).unwrap();
        assert_eq!(byte[0], expected);
    }
    let mut back = vec![0; data.len()];
    v.read(BlockNo(1), &mut back).unwrap();
    assert_eq!(back, data);
    let mut few = [0; 2];
    v.read_bytes(3071, &mut few).unwrap();
    assert_eq!(few, [2, 3]);
    assert_eq!(v.locate(BlockNo(2)), Some((1, 0)));
    assert_eq!(v.locate(BlockNo(6)), Some((2, 3072)));
    assert_eq!(v.locate(BlockNo(7)), None);
}

#[test]
fn what_the_caller_got_wrong_is_named() {
    let (_, v) = volume(&[2048, 2048], 1024);
    let mut buf = [0; 1024];
    assert!(matches!(
        v.read(BlockNo(4), &mut buf),
        Err(VolumeError::PastEnd { offset: 4096, .. })
    ));
    assert!(matches!(
        v.read(BlockNo(u64::MAX), &mut buf),
        Err(VolumeError::PastEnd { .. })
    ));
    assert!(matches!(
        v.write(BlockNo(0), &buf[..1000]),
        Err(VolumeError::Unaligned { .. })
    ));
    assert!(v.zero(BlockRange::new(BlockNo(3), 2)).is_err());
    assert!(v.zero(BlockRange::new(BlockNo(1), u64::MAX)).is_err());
    assert!(
        v.preallocate(BlockRange::new(BlockNo(u64::MAX), 1))
            .is_err()
    );
    assert!(!v.is_hole(BlockRange::new(BlockNo(3), 2)));
    v.read(BlockNo(4), &mut []).unwrap();
    let e = v.read_bytes(4095, &mut buf[..2]).unwrap_err();
    assert_eq!(
        e.to_string(),
        "2 bytes at byte 4095 go past the volume's end at 4096"
    );
}

#[test]
fn a_failing_part_is_named() {
    let (sims, v) = volume(&[2048, 2048], 1024);
    sims[1].inject(Fault::Unreadable {
        offset: 1024,
        len: 1024,
    });
    let e = v.read(BlockNo(0), &mut [0; 4096]).unwrap_err();
    assert_eq!(
        e.to_string(),
        "cannot read 2048 bytes at byte 0 of part 2 (sim)"
    );
    sims[1].inject(Fault::FullAfter(0));
    let e = v.write(BlockNo(2), &[1; 1024]).unwrap_err();
    assert!(e.is_full(), "{e}");
}

#[test]
fn a_hole_is_one_in_every_part() {
    let (_, v) = volume(&[8192, 8192], 4096);
    assert!(v.is_hole(BlockRange::new(BlockNo(0), 4)));
    v.write(BlockNo(2), &[1; 4096]).unwrap();
    assert!(!v.is_hole(BlockRange::new(BlockNo(1), 2)));
    assert!(v.is_hole(BlockRange::new(BlockNo(0), 2)));
    v.zero(BlockRange::new(BlockNo(1), 3)).unwrap();
    assert!(v.is_hole(BlockRange::new(BlockNo(0), 4)));
}

fn counted(lens: &[u64]) -> (Vec<Arc<CountingDisk>>, Volume) {
    let disks: Vec<_> = lens
        .iter()
        .map(|l| Arc::new(CountingDisk::new(Arc::new(SimDisk::new(*l)))))
        .collect();
    let parts = disks.iter().map(|d| d.clone() as Arc<dyn Disk>).collect();
    (disks, Volume::new(parts, 1024).unwrap())
}

#[test]
fn only_written_parts_are_flushed_after_the_first_flush() {
    let (disks, v) = counted(&[2048, 2048, 2048]);
    let flushes = || disks.iter().map(|d| d.counts().flushes).collect::<Vec<_>>();
    v.flush().unwrap();
    assert_eq!(
        flushes(),
        [1, 1, 1],
        "what an earlier process left unflushed"
    );
    v.flush().unwrap();
    assert_eq!(flushes(), [1, 1, 1]);
    v.write(BlockNo(2), &[1; 1024]).unwrap();
    v.flush().unwrap();
    assert_eq!(flushes(), [1, 2, 1]);
    v.zero(BlockRange::new(BlockNo(3), 2)).unwrap();
    v.flush().unwrap();
    assert_eq!(flushes(), [1, 3, 2]);
}

#[test]
fn a_flush_that_failed_is_never_followed_by_one_that_succeeds() {
    let (sims, v) = volume(&[2048, 2048], 1024);
    sims[0].inject(Fault::FlushesAfter(0));
    v.write(BlockNo(0), &[1; 1024]).unwrap();
    assert!(matches!(
        v.flush(),
        Err(VolumeError::Io {
            action: "flush",
            part: 0,
            ..
        })
    ));
    sims[0].heal();
    assert!(matches!(v.flush(), Err(VolumeError::Lost { part: 0, .. })));
    v.write(BlockNo(1), &[1; 1024]).unwrap();
    assert!(matches!(v.flush(), Err(VolumeError::Lost { part: 0, .. })));
}

#[test]
fn a_write_that_failed_half_way_is_flushed_all_the_same() {
    let (sims, v) = volume(&[2048, 2048], 1024);
    v.flush().unwrap();
    sims[1].inject(Fault::WritesAfter(0));
    assert!(v.write(BlockNo(1), &[1; 2048]).is_err());
    v.flush().unwrap();
    let mut byte = [0];
    sims[0]
        .after_crash(Survivors::None)
        .read_at(&mut byte, 1024)
        .unwrap();
    assert_eq!(byte, [1]);
}

/// Flushes only what had been written when its flush began, and takes its time: the worst disk the contract allows.
#[derive(Debug)]
struct LazyDisk {
    inner: SimDisk,
    durable: Mutex<Vec<u8>>,
    flushes: AtomicU64,
}

impl LazyDisk {
    fn new(len: u64) -> LazyDisk {
        LazyDisk {
            inner: SimDisk::new(len),
            durable: Mutex::new(vec![0; len as usize]),
            flushes: AtomicU64::new(0),
        }
    }
}

impl Disk for LazyDisk {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buf, offset)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(data, offset)
    }
    fn flush(&self) -> io::Result<()> {
        let mut now = vec![0; self.inner.len() as usize];
        self.inner.read_at(&mut now, 0)?;
        std::thread::yield_now();
        self.flushes.fetch_add(1, Ordering::SeqCst);
        *self.durable.lock() = now;
        Ok(())
    }
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.zero(offset, len)
    }
    fn preallocate(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn is_hole(&self, _: u64, _: u64) -> bool {
        false
    }
    fn name(&self) -> String {
        "lazy".into()
    }
    fn changed_at(&self) -> Option<i128> {
        None
    }
}

#[test]
fn a_write_that_ended_before_flush_is_durable_after_it_whoever_else_flushes() {
    const THREADS: u64 = 6;
    let disks = [Arc::new(LazyDisk::new(8192)), Arc::new(LazyDisk::new(8192))];
    let parts = disks.iter().map(|d| d.clone() as Arc<dyn Disk>).collect();
    let v = Volume::new(parts, 1024).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (v, disks) = (&v, &disks);
            scope.spawn(move || {
                for n in 1..=200_u8 {
                    let block = thread + 8 * u64::from(n % 2);
                    v.write(BlockNo(block), &[n; 1024]).unwrap();
                    v.flush().unwrap();
                    let (part, at) = v.locate(BlockNo(block)).unwrap();
                    assert_eq!(disks[part].durable.lock()[at as usize], n);
                }
            });
        }
    });
    for disk in &disks {
        assert!(disk.flushes.load(Ordering::SeqCst) <= THREADS * 100 + 1);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, u64, u8),
    WriteBytes(u64, u64, u8),
    Zero(u64, u64),
    Preallocate(u64, u64),
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..40_u64, 0..20_u64, 1..=255_u8).prop_map(|(s, l, b)| Op::Write(s, l, b)),
        2 => (0..40_000_u64, 0..9000_u64, 1..=255_u8).prop_map(|(s, l, b)| Op::WriteBytes(s, l, b)),
        2 => (0..40_u64, 0..20_u64).prop_map(|(s, l)| Op::Zero(s, l)),
        1 => (0..40_u64, 0..20_u64).prop_map(|(s, l)| Op::Preallocate(s, l)),
        1 => Just(Op::Flush),
    ]
}

proptest! {
    #[test]
    fn parts_read_as_one_flat_array(
        parts in proptest::collection::vec(1..12_u64, 1..6),
        which in 0..3_usize,
        ops in proptest::collection::vec(op(), 0..30),
    ) {
        let bs = BLOCK_SIZES[which];
        let size = u64::from(bs);
        let lens: Vec<u64> = parts.iter().map(|n| n * size).collect();
        let (_, v) = volume(&lens, bs);
        let mut flat = vec![0_u8; lens.iter().sum::<u64>() as usize];
        prop_assert_eq!(v.blocks_count(), parts.iter().sum::<u64>());
        for op in ops {
            // In range or not: what is not must be an error that changes nothing.
            let (done, offset, len, byte) = match op {
                Op::Write(s, l, b) => {
                    (v.write(BlockNo(s), &vec![b; (l * size) as usize]), s * size, l * size, Some(b))
                }
                Op::WriteBytes(s, l, b) => (v.write_bytes(s, &vec![b; l as usize]), s, l, Some(b)),
                Op::Zero(s, l) => (v.zero(BlockRange::new(BlockNo(s), l)), s * size, l * size, Some(0)),
                Op::Preallocate(s, l) => {
                    (v.preallocate(BlockRange::new(BlockNo(s), l)), s * size, l * size, None)
                }
                Op::Flush => (v.flush(), 0, 0, None),
            };
            let fits = offset + len <= flat.len() as u64;
            prop_assert_eq!(done.is_ok(), fits);
            if let (true, Some(byte)) = (fits, byte) {
                flat[offset as usize..(offset + len) as usize].fill(byte);
            }
            let mut back = vec![0; flat.len()];
            v.read(BlockNo(0), &mut back).unwrap();
            prop_assert!(back == flat);
            for block in 0..v.blocks_count() {
                if v.is_hole(BlockRange::new(BlockNo(block), 1)) {
                    let at = (block * size) as usize;
                    prop_assert!(flat[at..at + size as usize].iter().all(|b| *b == 0));
                }
            }
        }
    }
}
