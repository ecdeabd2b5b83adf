//! Hashes of names in indexed directories: legacy, half MD4 and TEA, each over signed or unsigned bytes (what `char` was
//! on the machine that made the volume). Pure functions of name, version and seed; source: the kernel's
//! `fs/ext4/hash.c` as documented in `Documentation/filesystems/ext4/directory.rst`.

use crate::ext4::Superblock;

/// `hash_version` of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashVersion {
    /// 0.
    Legacy,
    /// 1, what mke2fs sets.
    HalfMd4,
    /// 2.
    Tea,
}

impl HashVersion {
    /// From `hash_version` or `s_def_hash_version`. The unsigned variants 3 to 5 exist in memory only; 6 (siphash) is
    /// for encrypted, case-insensitive directories.
    pub fn from_code(code: u8) -> Option<HashVersion> {
        match code {
            0 => Some(HashVersion::Legacy),
            1 => Some(HashVersion::HalfMd4),
            2 => Some(HashVersion::Tea),
            _ => None,
        }
    }

    /// As on disk.
    pub fn code(self) -> u8 {
        match self {
            HashVersion::Legacy => 0,
            HashVersion::HalfMd4 => 1,
            HashVersion::Tea => 2,
        }
    }
}

/// Hash of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DxHash {
    /// What the index sorts by: even, below [`EXT4_HTREE_EOF`].
    pub major: u32,
    /// Tells names with the same `major` apart in the order of readdir.
    pub minor: u32,
}

/// Readdir's position at the end (kernel: `EXT4_HTREE_EOF_32BIT << 1`); no name has this hash.
pub const EXT4_HTREE_EOF: u32 = 0x7fff_ffff << 1;

/// How names are hashed on one volume (in directories whose index has this version).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hasher {
    /// Which function.
    pub version: HashVersion,
    /// Bytes count as 0..=255, not -128..=127.
    pub unsigned: bool,
    /// `s_hash_seed`; all zeros: the MD4 constants.
    pub seed: [u32; 4],
}

impl Hasher {
    /// For a directory whose index says `version`.
    pub fn new(sb: &Superblock, version: HashVersion) -> Hasher {
        Hasher {
            version,
            unsigned: sb.unsigned_hash(),
            seed: sb.s_hash_seed(),
        }
    }

    /// The function that a new index gets.
    pub fn default_version(sb: &Superblock) -> HashVersion {
        HashVersion::from_code(sb.s_def_hash_version()).unwrap_or(HashVersion::HalfMd4)
    }

    /// The hash of a name.
    pub fn hash(&self, name: &[u8]) -> DxHash {
        let mut state = if self.seed == [0; 4] {
            [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476]
        } else {
            self.seed
        };
        let (major, minor) = match self.version {
            HashVersion::Legacy => (self.legacy(name), 0),
            HashVersion::HalfMd4 => {
                for (i, chunk) in name.chunks(32).enumerate() {
                    half_md4(&mut state, &self.words::<8>(chunk, name.len() - i * 32));
                }
                (state[1], state[2])
            }
            HashVersion::Tea => {
                for (i, chunk) in name.chunks(16).enumerate() {
                    tea(&mut state, &self.words::<4>(chunk, name.len() - i * 16));
                }
                (state[0], state[1])
            }
        };
        let major = match major & !1 {
            EXT4_HTREE_EOF => EXT4_HTREE_EOF - 2,
            other => other,
        };
        DxHash { major, minor }
    }

    fn widen(&self, byte: u8) -> u32 {
        if self.unsigned {
            byte.into()
        } else {
            byte as i8 as i32 as u32
        }
    }

    fn legacy(&self, name: &[u8]) -> u32 {
        let (mut hash0, mut hash1) = (0x12a3_fe2d_u32, 0x37ab_e8f9_u32);
        for &byte in name {
            let mut hash = hash1.wrapping_add(hash0 ^ self.widen(byte).wrapping_mul(7_152_373));
            if hash & 0x8000_0000 != 0 {
                hash = hash.wrapping_sub(0x7fff_ffff);
            }
            hash1 = hash0;
            hash0 = hash;
        }
        hash0 << 1
    }

    /// N words of the name's next piece, filled up with the length of what is left of the name (kernel: `str2hashbuf`).
    fn words<const N: usize>(&self, chunk: &[u8], left: usize) -> [u32; N] {
        let pad = (left as u32 & 0xff) * 0x0101_0101;
        let mut words = [pad; N];
        for (word, bytes) in words.iter_mut().zip(chunk.chunks(4)) {
            *word = bytes.iter().fold(pad, |word, &byte| {
                (word << 8).wrapping_add(self.widen(byte))
            });
        }
        words
    }
}

/// Sixteen rounds of the Tiny Encryption Algorithm (kernel: `TEA_transform`).
fn tea(state: &mut [u32; 4], key: &[u32; 4]) {
    let [a, b, c, d] = *key;
    let (mut b0, mut b1) = (state[0], state[1]);
    let mut sum = 0u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9E37_79B9);
        let mix = |v: u32, x: u32, y: u32| {
            (v << 4).wrapping_add(x) ^ v.wrapping_add(sum) ^ (v >> 5).wrapping_add(y)
        };
        b0 = b0.wrapping_add(mix(b1, a, b));
        b1 = b1.wrapping_add(mix(b0, c, d));
    }
    state[0] = state[0].wrapping_add(b0);
    state[1] = state[1].wrapping_add(b1);
}

/// Three rounds of eight steps of MD4 over eight words (kernel: `half_md4_transform`).
fn half_md4(state: &mut [u32; 4], input: &[u32; 8]) {
    fn select(x: u32, y: u32, z: u32) -> u32 {
        z ^ (x & (y ^ z))
    }
    fn majority(x: u32, y: u32, z: u32) -> u32 {
        (x & y).wrapping_add((x ^ y) & z)
    }
    fn parity(x: u32, y: u32, z: u32) -> u32 {
        x ^ y ^ z
    }
    type Round = (fn(u32, u32, u32) -> u32, u32, [u32; 4], [usize; 8]);
    const ROUNDS: [Round; 3] = [
        (select, 0, [3, 7, 11, 19], [0, 1, 2, 3, 4, 5, 6, 7]),
        (
            majority,
            0x5A82_7999,
            [3, 5, 9, 13],
            [1, 3, 5, 7, 0, 2, 4, 6],
        ),
        (
            parity,
            0x6ED9_EBA1,
            [3, 9, 11, 15],
            [3, 7, 2, 6, 1, 5, 0, 4],
        ),
    ];
    let mut s = *state;
    for (mix, constant, shifts, order) in ROUNDS {
        for (step, &index) in order.iter().enumerate() {
            // The four words take turns a, d, c, b.
            let at = (4 - step % 4) % 4;
            let (x, y, z) = (s[(at + 1) % 4], s[(at + 2) % 4], s[(at + 3) % 4]);
            let sum = s[at]
                .wrapping_add(mix(x, y, z))
                .wrapping_add(input[index])
                .wrapping_add(constant);
            s[at] = sum.rotate_left(shifts[step % 4]);
        }
    }
    for (word, add) in state.iter_mut().zip(s) {
        *word = word.wrapping_add(add);
    }
}

#[cfg(test)]
mod tests;
