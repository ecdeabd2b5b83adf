//! Payloads packed on their way: whether it pays, and undoing it.
//!
//! Owns the choice for one mirror, and the limits of unpacking. Never reads a clock: what a codec costs is a constant, what
//! the line carries is measured by whoever sends. So the same run of the simulator chooses the same. A frame that announces
//! a packed payload (`Message::Packed`) goes right before it.

use crate::mirror::MirrorError;
use crate::mirror::policy::Compress;
use crate::wire::message::{Codec, MAX_STREAM_PAYLOAD};

/// Smaller payloads stay as they are: the announcement costs about as much.
const LEAST: usize = 512;
/// Raw bytes between two trials.
const TRIAL_EVERY: u64 = 16 << 20;
/// Bytes of a payload that a trial packs.
const TRIAL_BYTES: usize = 256 << 10;
/// Bytes a second that one core packs with lz4_flex, and with zstd at its level: about half of what a core of 2020 does.
const LZ4_RATE: f64 = 300e6;
const ZSTD_RATE: f64 = 120e6;
/// zstd's level: the fastest that is still clearly smaller than lz4.
const ZSTD_LEVEL: i32 = 1;
/// Packing has to save this share of the time.
const MARGIN: f64 = 0.95;

/// What is done with the payloads of one mirror.
#[derive(Debug, Default)]
pub struct Packer {
    asked: Compress,
    chosen: Option<Codec>,
    since_trial: u64,
    tried: bool,
    /// Raw bytes that were packed, and what they became.
    pub raw_bytes: u64,
    /// See `raw_bytes`.
    pub packed_bytes: u64,
}

fn pack_with(codec: Codec, payload: &[u8]) -> Option<Vec<u8>> {
    match codec {
        Codec::Lz4 => Some(lz4_flex::block::compress(payload)),
        Codec::Zstd => zstd::bulk::compress(payload, ZSTD_LEVEL).ok(),
    }
}

impl Packer {
    /// From now on as asked.
    pub fn set(&mut self, asked: Compress) {
        if self.asked != asked {
            self.asked = asked;
            self.tried = false;
            self.chosen = match asked {
                Compress::Lz4 => Some(Codec::Lz4),
                Compress::Zstd => Some(Codec::Zstd),
                Compress::Auto | Compress::Off => None,
            };
        }
    }

    /// What is in force, as a word.
    pub fn chosen(&self) -> &'static str {
        match self.chosen {
            None => "off",
            Some(Codec::Lz4) => "lz4",
            Some(Codec::Zstd) => "zstd",
        }
    }

    /// Packs a payload, if that makes it smaller and pays. `line`: bytes a second that the line carries, if it is what holds
    /// the stream up.
    pub fn pack(&mut self, payload: &[u8], line: Option<u64>) -> Option<(Codec, Vec<u8>)> {
        if payload.len() < LEAST {
            return None;
        }
        self.since_trial += payload.len() as u64;
        if self.asked == Compress::Auto && (!self.tried || self.since_trial >= TRIAL_EVERY) {
            if let Some(line) = line.filter(|line| *line > 0) {
                self.tried = true;
                self.since_trial = 0;
                self.try_on(&payload[..payload.len().min(TRIAL_BYTES)], line as f64);
            } else if self.since_trial >= TRIAL_EVERY {
                // The line has room.
                self.chosen = None;
            }
        }
        let codec = self.chosen?;
        let packed = pack_with(codec, payload)?;
        if packed.len() >= payload.len() {
            return None;
        }
        self.raw_bytes += payload.len() as u64;
        self.packed_bytes += packed.len() as u64;
        Some((codec, packed))
    }

    fn try_on(&mut self, sample: &[u8], line: f64) {
        let mut best = (MARGIN / line, None);
        for (codec, rate) in [(Codec::Lz4, LZ4_RATE), (Codec::Zstd, ZSTD_RATE)] {
            let Some(packed) = pack_with(codec, sample) else {
                continue;
            };
            let ratio = packed.len() as f64 / sample.len() as f64;
            // Packing and sending overlap: the slower one counts.
            let cost = (1.0 / rate).max(ratio / line);
            if cost < best.0 {
                best = (cost, Some(codec));
            }
        }
        self.chosen = best.1;
    }
}

/// The payload that was packed. `len` is what the sender says that it has; nothing is allocated before that is checked.
pub fn unpack(codec: Codec, len: u64, packed: &[u8]) -> Result<Vec<u8>, MirrorError> {
    let bad = |what: String| MirrorError::Protocol(format!("a packed payload: {what}"));
    let len = usize::try_from(len)
        .ok()
        .filter(|len| *len <= MAX_STREAM_PAYLOAD)
        .ok_or_else(|| {
            bad(format!(
                "{len} bytes, at most {MAX_STREAM_PAYLOAD} are accepted"
            ))
        })?;
    let mut out = vec![0; len];
    let found = match codec {
        Codec::Lz4 => lz4_flex::block::decompress_into(packed, &mut out).map_err(|e| e.to_string()),
        Codec::Zstd => {
            zstd::bulk::decompress_to_buffer(packed, &mut out).map_err(|e| e.to_string())
        }
    };
    match found {
        Ok(found) if found == len => Ok(out),
        Ok(found) => Err(bad(format!("{found} bytes, expected {len}"))),
        Err(why) => Err(bad(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> Vec<u8> {
        b"the same line again and again, with a number\n".repeat(2000)
    }

    /// Bytes that no codec makes smaller.
    fn noise() -> Vec<u8> {
        let mut x = 1_u64;
        let next = || {
            x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (x >> 56) as u8
        };
        std::iter::repeat_with(next).take(90_000).collect()
    }

    #[test]
    fn what_is_packed_comes_out_again_and_nothing_else_does() {
        for asked in [Compress::Lz4, Compress::Zstd] {
            let mut packer = Packer::default();
            packer.set(asked);
            let (codec, packed) = packer.pack(&text(), None).unwrap();
            assert!(packed.len() < text().len() / 10);
            let len = text().len() as u64;
            assert_eq!(unpack(codec, len, &packed).unwrap(), text());
            for wrong in [0, 1, len - 1, len + 1, 1 << 40, u64::MAX] {
                assert!(unpack(codec, wrong, &packed).is_err(), "{wrong}");
            }
            for at in (0..packed.len()).step_by(7) {
                let mut bad = packed.clone();
                bad[at] ^= 0x55;
                // Refused, or other bytes: never more of them, and no panic.
                if let Ok(bytes) = unpack(codec, len, &bad) {
                    assert_eq!(bytes.len() as u64, len);
                }
                assert!(unpack(codec, len, &packed[..at]).is_err());
            }
            assert!(packer.pack(&noise(), None).is_none(), "it would grow");
        }
    }

    #[test]
    fn auto_packs_where_the_line_is_slow_and_the_bytes_are_soft() {
        let chosen = |bytes: &[u8], line| {
            let mut packer = Packer::default();
            packer.set(Compress::Auto);
            packer.pack(bytes, line);
            packer.chosen()
        };
        assert_eq!(chosen(&text(), None), "off", "the line has room");
        assert_eq!(
            chosen(&text(), Some(10 << 30)),
            "off",
            "packing is slower than the line"
        );
        assert_ne!(chosen(&text(), Some(10 << 20)), "off");
        assert_eq!(chosen(&noise(), Some(10 << 20)), "off");
    }
}
