//! One frame: a prefix of fixed size, an rkyv header, a raw payload.
//!
//! Owns the layout and its limits. Never allocates on the word of a peer before the lengths have been compared with the
//! limits, never looks into a header before its checksum agrees, and never copies a payload to send it: `encode` gives
//! prefix and header in one buffer, to be written in front of the payload (`writev`).
//!
//! Layout, little-endian; the prefix is 40 bytes:
//!
//! | offset | size | field | guards against |
//! |---|---|---|---|
//! | 0 | 4 | magic `LKSF` | something that is not Lockstep on the port |
//! | 4 | 2 | version | a node whose frames we can not read |
//! | 6 | 2 | reserved, 0 | a flag from the future, taken for nothing |
//! | 8 | 4 | length of the header, bytes | |
//! | 12 | 4 | length of the payload, bytes | |
//! | 16 | 4 | channel | |
//! | 20 | 4 | reserved, 0 | |
//! | 24 | 8 | xxh3 of bytes 0..24 and the header | a damaged prefix or header |
//! | 32 | 8 | xxh3 of the payload | a damaged payload |

use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Error as Rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize, api::high};
use std::io;
use thiserror::Error;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"LKSF";
/// Version of the prefix's layout and of what channels are (2: many to a connection, see `control`). A change of the
/// messages has its own number, exchanged by the nodes.
pub const VERSION: u16 = 2;
/// Bytes of the prefix.
pub const PREFIX_LEN: usize = 40;
/// Longest header, bytes: the lists of one transaction's blocks fit; anything longer is an attack or an error.
pub const MAX_HEADER: usize = 1 << 20;
/// Longest payload, bytes. What streams send is shorter (`message::MAX_STREAM_PAYLOAD`).
pub const MAX_PAYLOAD: usize = 4 << 20;

/// Why a frame was refused. Nothing can follow on that connection: its position in the stream is lost.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The first bytes are not ours.
    #[error("not a lockstep frame: it begins with {found:02x?}")]
    Magic {
        /// The bytes in the magic's place.
        found: [u8; 4],
    },
    /// A layout that this node does not know.
    #[error("frame version {found}, this node speaks {VERSION}")]
    Version {
        /// The version in the prefix.
        found: u16,
    },
    /// A bit that means nothing yet is set.
    #[error("reserved bytes of the frame's prefix are {found:#x}, expected 0")]
    Reserved {
        /// What stands in the reserved bytes.
        found: u32,
    },
    /// A header longer than any node sends.
    #[error("frame header of {found} bytes, at most {MAX_HEADER} are accepted")]
    HeaderTooLong {
        /// The length in the prefix, bytes.
        found: u64,
    },
    /// A payload longer than any node sends.
    #[error("frame payload of {found} bytes, at most {MAX_PAYLOAD} are accepted")]
    PayloadTooLong {
        /// The length in the prefix, bytes.
        found: u64,
    },
    /// The header or the prefix was changed on the way.
    #[error("frame header checksum {found:016x}, expected {expected:016x}")]
    HeaderChecksum {
        /// In the prefix.
        expected: u64,
        /// Over what arrived.
        found: u64,
    },
    /// The payload was changed on the way.
    #[error("frame payload checksum {found:016x}, expected {expected:016x}")]
    PayloadChecksum {
        /// In the prefix.
        expected: u64,
        /// Over what arrived.
        found: u64,
    },
    /// The checksum agrees but the header is no value of its type: a peer of another version, or a hostile one.
    #[error("frame header is not valid: {0}")]
    Header(String),
    /// The stream ended or failed inside a frame.
    #[error("the connection failed inside a frame: {0}")]
    Io(#[from] io::Error),
}

/// What can be a frame's header: any type with rkyv's three derives whose archived form can be checked.
pub trait Header:
    Archive<
        Archived: for<'a> CheckBytes<high::HighValidator<'a, Rancor>>
                      + Deserialize<Self, high::HighDeserializer<Rancor>>,
    > + for<'a> Serialize<high::HighSerializer<AlignedVec, ArenaHandle<'a>, Rancor>>
    + Sized
{
}

impl<T> Header for T where
    T: Archive<
            Archived: for<'a> CheckBytes<high::HighValidator<'a, Rancor>>
                          + Deserialize<T, high::HighDeserializer<Rancor>>,
        > + for<'a> Serialize<high::HighSerializer<AlignedVec, ArenaHandle<'a>, Rancor>>
{
}

/// A frame as a program sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<H> {
    /// Which conversation on this connection the frame belongs to.
    pub channel: u32,
    /// What it says.
    pub header: H,
    /// Raw bytes that go with it; often empty.
    pub payload: Vec<u8>,
}

/// A validated prefix: its lengths are within the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    channel: u32,
    header_len: u32,
    payload_len: u32,
    header_xxh3: u64,
    payload_xxh3: u64,
    raw: [u8; 24],
}

fn u32_at(bytes: &[u8; PREFIX_LEN], at: usize) -> u32 {
    let mut b = [0; 4];
    b.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(b)
}

fn u64_at(bytes: &[u8; PREFIX_LEN], at: usize) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(b)
}

fn header_hash(prefix: &[u8; 24], header: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(prefix);
    hash.update(header);
    hash.digest()
}

impl Prefix {
    /// Reads a prefix and compares its lengths with the limits; nothing has been allocated yet.
    pub fn decode(bytes: &[u8; PREFIX_LEN]) -> Result<Prefix, FrameError> {
        let mut raw = [0; 24];
        raw.copy_from_slice(&bytes[..24]);
        let magic = [raw[0], raw[1], raw[2], raw[3]];
        if magic != MAGIC {
            return Err(FrameError::Magic { found: magic });
        }
        let version = u16::from_le_bytes([raw[4], raw[5]]);
        if version != VERSION {
            return Err(FrameError::Version { found: version });
        }
        let reserved = u32::from(u16::from_le_bytes([raw[6], raw[7]])) | u32_at(bytes, 20);
        if reserved != 0 {
            return Err(FrameError::Reserved { found: reserved });
        }
        let header_len = u32_at(bytes, 8);
        if header_len as usize > MAX_HEADER {
            let found = u64::from(header_len);
            return Err(FrameError::HeaderTooLong { found });
        }
        let payload_len = u32_at(bytes, 12);
        if payload_len as usize > MAX_PAYLOAD {
            let found = u64::from(payload_len);
            return Err(FrameError::PayloadTooLong { found });
        }
        Ok(Prefix {
            channel: u32_at(bytes, 16),
            header_len,
            payload_len,
            header_xxh3: u64_at(bytes, 24),
            payload_xxh3: u64_at(bytes, 32),
            raw,
        })
    }

    /// The conversation the frame belongs to. Not yet checked against the checksum, which covers it.
    pub fn channel(&self) -> u32 {
        self.channel
    }

    /// Bytes of header that follow the prefix; at most `MAX_HEADER`.
    pub fn header_len(&self) -> usize {
        self.header_len as usize
    }

    /// Bytes of payload that follow the header; at most `MAX_PAYLOAD`.
    pub fn payload_len(&self) -> usize {
        self.payload_len as usize
    }

    /// A zeroed buffer for the header, aligned as rkyv wants it.
    pub fn header_buffer(&self) -> AlignedVec {
        let mut buffer = AlignedVec::with_capacity(self.header_len());
        buffer.resize(self.header_len(), 0);
        buffer
    }

    /// Checks the header's checksum and its contents. `bytes` must be aligned: use `header_buffer`.
    pub fn decode_header<H: Header>(&self, bytes: &AlignedVec) -> Result<H, FrameError> {
        let found = header_hash(&self.raw, bytes);
        if found != self.header_xxh3 {
            let expected = self.header_xxh3;
            return Err(FrameError::HeaderChecksum { expected, found });
        }
        rkyv::from_bytes::<H, Rancor>(bytes).map_err(|e| FrameError::Header(e.to_string()))
    }

    /// Checks the payload's checksum.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), FrameError> {
        let found = xxh3_64(payload);
        if payload.len() != self.payload_len() || found != self.payload_xxh3 {
            let expected = self.payload_xxh3;
            return Err(FrameError::PayloadChecksum { expected, found });
        }
        Ok(())
    }
}

/// Prefix and header of a frame, to be written directly in front of `payload`.
pub fn encode<H: Header>(channel: u32, header: &H, payload: &[u8]) -> Result<Vec<u8>, FrameError> {
    if payload.len() > MAX_PAYLOAD {
        let found = payload.len() as u64;
        return Err(FrameError::PayloadTooLong { found });
    }
    let header = rkyv::to_bytes::<Rancor>(header).map_err(|e| FrameError::Header(e.to_string()))?;
    if header.len() > MAX_HEADER {
        let found = header.len() as u64;
        return Err(FrameError::HeaderTooLong { found });
    }
    let mut prefix = [0; 24];
    prefix[0..4].copy_from_slice(&MAGIC);
    prefix[4..6].copy_from_slice(&VERSION.to_le_bytes());
    // Both lengths are below 2^32: the limits were checked above.
    prefix[8..12].copy_from_slice(&(header.len() as u32).to_le_bytes());
    prefix[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    prefix[16..20].copy_from_slice(&channel.to_le_bytes());
    let mut out = Vec::with_capacity(PREFIX_LEN + header.len());
    out.extend_from_slice(&prefix);
    out.extend_from_slice(&header_hash(&prefix, &header).to_le_bytes());
    out.extend_from_slice(&xxh3_64(payload).to_le_bytes());
    out.extend_from_slice(&header);
    Ok(out)
}

/// Reads one frame from a blocking reader. `None` at a clean end of the stream, before a first byte.
pub fn read<H: Header>(reader: &mut impl io::Read) -> Result<Option<Frame<H>>, FrameError> {
    let mut prefix = [0; PREFIX_LEN];
    let mut filled = 0;
    while filled < PREFIX_LEN {
        match reader.read(&mut prefix[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let prefix = Prefix::decode(&prefix)?;
    let mut header = prefix.header_buffer();
    reader.read_exact(&mut header)?;
    let header = prefix.decode_header(&header)?;
    let mut payload = vec![0; prefix.payload_len()];
    reader.read_exact(&mut payload)?;
    prefix.check_payload(&payload)?;
    Ok(Some(Frame {
        channel: prefix.channel(),
        header,
        payload,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
    enum Sample {
        Empty,
        Numbers(Vec<u64>),
        Text { name: String, flag: bool },
    }

    fn whole(channel: u32, header: &Sample, payload: &[u8]) -> Vec<u8> {
        let mut bytes = encode(channel, header, payload).unwrap();
        bytes.extend_from_slice(payload);
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Option<Frame<Sample>>, FrameError> {
        read(&mut &bytes[..])
    }

    #[test]
    fn the_prefix_has_these_bytes() {
        let bytes = encode(7, &Sample::Empty, b"abc").unwrap();
        assert_eq!(&bytes[..8], b"LKSF\x02\x00\x00\x00");
        assert_eq!(bytes[12..24], [3, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[32..40], 0x78af_5f94_892f_3950_u64.to_le_bytes());
        assert_eq!(
            bytes.len() - PREFIX_LEN,
            u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize
        );
    }

    #[test]
    fn absurd_lengths_are_refused_from_the_prefix_alone() {
        let good = whole(0, &Sample::Empty, b"");
        let mut prefix = [0; PREFIX_LEN];
        prefix.copy_from_slice(&good[..PREFIX_LEN]);
        prefix[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(
            Prefix::decode(&prefix),
            Err(FrameError::HeaderTooLong { found: 0xffff_ffff })
        ));
        prefix[8..12].copy_from_slice(&(MAX_HEADER as u32).to_le_bytes());
        prefix[12..16].copy_from_slice(&(MAX_PAYLOAD as u32 + 1).to_le_bytes());
        assert!(matches!(
            Prefix::decode(&prefix),
            Err(FrameError::PayloadTooLong { .. })
        ));
    }

    #[test]
    fn what_is_too_long_is_not_sent_either() {
        let payload = vec![0; MAX_PAYLOAD + 1];
        assert!(matches!(
            encode(0, &Sample::Empty, &payload),
            Err(FrameError::PayloadTooLong { .. })
        ));
        let header = Sample::Numbers(vec![0; MAX_HEADER / 8]);
        assert!(matches!(
            encode(0, &header, b""),
            Err(FrameError::HeaderTooLong { .. })
        ));
    }

    #[test]
    fn the_end_of_the_stream_is_clean_only_between_frames() {
        assert!(parse(b"").unwrap().is_none());
        let bytes = whole(1, &Sample::Numbers(vec![1, 2, 3]), b"payload");
        for cut in 1..bytes.len() {
            assert!(matches!(parse(&bytes[..cut]), Err(FrameError::Io(_))));
        }
    }

    #[test]
    fn a_header_of_another_type_is_refused() {
        let mut bytes = encode(1, &vec![1u8, 2, 3], b"").unwrap();
        assert!(matches!(parse(&bytes), Err(FrameError::Header(_))));
        bytes[PREFIX_LEN] ^= 1;
        assert!(matches!(
            parse(&bytes),
            Err(FrameError::HeaderChecksum { .. })
        ));
    }

    fn sample() -> impl Strategy<Value = Sample> {
        prop_oneof![
            Just(Sample::Empty),
            proptest::collection::vec(any::<u64>(), 0..40).prop_map(Sample::Numbers),
            ("[ -~]{0,30}", any::<bool>()).prop_map(|(name, flag)| Sample::Text { name, flag }),
        ]
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_read_back(
            channel in any::<u32>(),
            header in sample(),
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let bytes = whole(channel, &header, &payload);
            let back = parse(&bytes).unwrap().unwrap();
            prop_assert_eq!(back, Frame { channel, header, payload });
        }

        #[test]
        fn no_changed_byte_goes_unnoticed(
            header in sample(),
            payload in proptest::collection::vec(any::<u8>(), 0..60),
            at in any::<proptest::sample::Index>(),
            flip in 1u8..,
        ) {
            let mut bytes = whole(3, &header, &payload);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(parse(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_an_error_and_never_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 1..400),
        ) {
            prop_assert!(parse(&bytes).is_err());
        }

        #[test]
        fn an_arbitrary_header_under_a_right_checksum_is_no_panic(
            header in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut prefix = [0u8; PREFIX_LEN];
            prefix[..4].copy_from_slice(&MAGIC);
            prefix[4..6].copy_from_slice(&VERSION.to_le_bytes());
            prefix[8..12].copy_from_slice(&(header.len() as u32).to_le_bytes());
            let mut first = [0; 24];
            first.copy_from_slice(&prefix[..24]);
            prefix[24..32].copy_from_slice(&header_hash(&first, &header).to_le_bytes());
            prefix[32..40].copy_from_slice(&xxh3_64(b"").to_le_bytes());
            let mut bytes = prefix.to_vec();
            bytes.extend_from_slice(&header);
            let _ = parse(&bytes);
        }
    }
}
