//! Literal bytes, round trips, and arbitrary bytes.

use proptest::prelude::*;

use super::rig::*;
use crate::journal::append::split_revokes;
use crate::journal::format::*;
use crate::journal::payload::{PART_HEADER_SIZE, Parts, Payload, encode_part};
use crate::journal::superblock::{Checksums, LogFormat, Superblock};
use crate::journal::{Hint, Reference};
use crate::units::{BlockNo, Generation, Ino, Txid};

fn format(checksums: Checksums, bit64: bool) -> LogFormat {
    LogFormat {
        block_size: BLOCK,
        bit64,
        checksums,
        seed: crc32c_raw(!0, &[7; 16]),
        uuid: [7; 16],
    }
}

fn formats() -> Vec<LogFormat> {
    [Checksums::None, Checksums::V1, Checksums::V2, Checksums::V3]
        .into_iter()
        .flat_map(|c| [format(c, false), format(c, true)])
        .collect()
}

#[test]
fn checksums_have_the_published_check_values() {
    assert_eq!(!crc32c_raw(!0, b"123456789"), 0xe306_9283);
    // CRC-32/MPEG-2: the same polynomial and order, not inverted at the end.
    assert_eq!(crc32_be(!0, b"123456789"), 0x0376_e6e7);
}

#[test]
fn a_v3_descriptor_has_its_fields_where_the_kernel_reads_them() {
    let f = format(Checksums::V3, true);
    let tag = |block, escaped| Tag {
        block: BlockNo(block),
        escaped,
        checksum: 0xdead_beef,
    };
    let block = f.encode_descriptor(0x0102_0304, &[tag(0x5_0000_0006, true), tag(9, false)]);
    assert_eq!(
        block[..12],
        [0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 1, 1, 2, 3, 4]
    );
    assert_eq!(
        block[12..28],
        [0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0, 5, 0xde, 0xad, 0xbe, 0xef]
    );
    assert_eq!(block[28..44], [7; 16]);
    assert_eq!(
        block[44..60],
        [0, 0, 0, 9, 0, 0, 0, 10, 0, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef]
    );
    assert_eq!(f.check_seal(&block), Ok(()));
}

#[test]
fn every_tag_layout_round_trips_when_the_descriptor_is_full() {
    for f in formats() {
        let tags: Vec<Tag> = (0..f.tags_per_descriptor() as u64)
            .map(|i| Tag {
                block: BlockNo(if f.bit64 { i << 30 | 5 } else { i + 5 }),
                escaped: i % 3 == 0,
                checksum: match f.checksums {
                    Checksums::V3 => 0xffff_0000 | i as u32,
                    Checksums::V2 => i as u32,
                    _ => 0,
                },
            })
            .collect();
        let block = f.encode_descriptor(7, &tags);
        assert_eq!(f.check_seal(&block), Ok(()));
        assert_eq!(f.decode_tags(&block), tags, "{f:?}");
    }
}

#[test]
fn a_revoke_block_keeps_records_and_what_is_behind_them_apart() {
    for f in formats() {
        let block = f.encode_revoke(9, &[BlockNo(3), BlockNo(77)], b"behind");
        assert_eq!(f.check_seal(&block), Ok(()));
        let (records, rest) = f.decode_revoke(&block).unwrap();
        assert_eq!(records, [BlockNo(3), BlockNo(77)]);
        assert_eq!(&rest[..6], b"behind");
    }
}

#[test]
fn a_commit_block_torn_behind_its_first_sector_is_a_commit_block() {
    let f = format(Checksums::V3, true);
    let mut block = f.encode_commit(5);
    assert!(f.decode_commit(&block, 0).valid);
    block[600] = 1;
    assert!(f.decode_commit(&block, 0).valid);
    block[0x20] = 1;
    assert!(!f.decode_commit(&block, 0).valid);
}

#[test]
fn the_superblock_gets_our_features_and_a_checksum() {
    let disk = fresh_disk();
    let raw = home(&disk, LOG_START + 8);
    let mut sb = Superblock::decode(&raw, BLOCK as u32, u64::from(LOG_BLOCKS)).unwrap();
    sb.use_own_features();
    sb.set_tail(crate::units::LogBlock(5), 77);
    sb.set_head(crate::units::LogBlock(9));
    let bytes = sb.encode().to_vec();
    assert_eq!(bytes[0x28..0x2c], [0, 0, 0, 0x13]);
    let again = Superblock::decode(&bytes, BLOCK as u32, u64::from(LOG_BLOCKS)).unwrap();
    assert_eq!(again.s_start().0, 5);
    assert_eq!(again.s_sequence(), 77);
    assert_eq!(again.s_head(), Some(crate::units::LogBlock(9)));
    let mut torn = bytes.clone();
    torn[0x1c] ^= 1;
    assert!(Superblock::decode(&torn, BLOCK as u32, u64::from(LOG_BLOCKS)).is_err());
}

#[test]
fn revokes_and_payload_share_blocks_and_nothing_is_lost() {
    for f in formats() {
        for records in [0, 1, 100, 120, 121, 122, 123, 124, 125, 126, 500] {
            for bytes in [40, 900, 2000] {
                let blocks = split_revokes(&f, records, bytes);
                assert_eq!(blocks.iter().map(|b| b.0).sum::<usize>(), records);
                assert_eq!(blocks.iter().map(|b| b.1).sum::<usize>(), bytes);
                for (r, p) in blocks {
                    let part = if p > 0 { p + PART_HEADER_SIZE } else { 0 };
                    assert!(REVOKE_HEADER_SIZE + r * f.revoke_size() + part <= f.content_end());
                }
            }
        }
    }
}

fn payload() -> Payload {
    Payload {
        confirmed: Txid(6),
        txid: Txid(0x1_0000_0002),
        generation: Generation(5),
        chain: 99,
        refs: vec![Reference {
            range: range(100, 256),
            xxh3: 4,
        }],
        zeroed: vec![range(7, 1 << 40)],
        freed: vec![range(9, 2), range(40, 1)],
        hints: vec![
            Hint::Inode(Ino(12)),
            Hint::Entry {
                parent: Ino(2),
                name: b"name".to_vec(),
            },
            Hint::EverythingChanged,
        ],
    }
}

#[test]
fn a_payload_round_trips_in_parts() {
    let whole = payload();
    let bytes = whole.encode();
    let (a, b) = bytes.split_at(50);
    let part = |i, bytes| encode_part(whole.txid, i, 2, bytes);
    let mut parts = Parts::default();
    parts.push(&part(0, a)).unwrap();
    parts.push(&[0; 100]).unwrap();
    parts.push(&part(1, b)).unwrap();
    assert_eq!(parts.finish(), Ok(Some(whole.clone())));

    // Written before transactions said what was confirmed.
    let mut old_bytes = bytes.clone();
    old_bytes.drain(24..32);
    let mut old_part = encode_part(whole.txid, 0, 1, &old_bytes);
    old_part[4] = 1;
    let mut old = Parts::default();
    old.push(&old_part).unwrap();
    let read = old.finish().unwrap().unwrap();
    assert_eq!(read.confirmed, whole.txid);
    assert_eq!((read.refs, read.hints), (whole.refs, whole.hints));

    let mut lost = Parts::default();
    lost.push(&part(0, a)).unwrap();
    assert!(lost.finish().is_err());
    assert!(Parts::default().push(&part(1, b)).is_err());
    let mut other = Parts::default();
    other.push(&part(0, a)).unwrap();
    assert!(other.push(&encode_part(Txid(8), 1, 2, b)).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), BLOCK), kind in 0u32..7) {
        for f in formats() {
            let _ = f.decode_tags(&bytes);
            let _ = f.decode_revoke(&bytes);
            let _ = f.decode_commit(&bytes, 1);
            let _ = f.check_seal(&bytes);
        }
        let _ = Payload::decode(Txid(1), &bytes);
        let _ = Parts::default().push(&bytes);
        put_be32(&mut bytes, 0, MAGIC);
        put_be32(&mut bytes, 4, kind);
        let _ = Superblock::decode(&bytes, BLOCK as u32, 1 << 20);
        put_be32(&mut bytes, 0x0c, BLOCK as u32);
        put_be32(&mut bytes, 0x10, 5000);
        put_be32(&mut bytes, 0x28, 0);
        let _ = Superblock::decode(&bytes, BLOCK as u32, 1 << 20);
    }

    #[test]
    fn a_damaged_payload_never_panics(at in 0usize..160, value in any::<u8>()) {
        let mut bytes = payload().encode();
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = Payload::decode(Txid(1), &bytes);
        let _ = Payload::decode(Txid(1), &bytes[..at]);
    }
}
