//! Layouts that the engine needs and `ext4` does not have yet.

pub(crate) mod dirent {
    use crate::ext4::checksum::crc32c_raw;

    const TAIL: [u8; 8] = [0, 0, 0, 0, 12, 0, 0, 0xde];

    pub fn check_tail(seed: u32, block: &[u8]) -> Result<(), String> {
        let at = block.len() - 12;
        if block[at..at + 8] != TAIL {
            return Err("no checksum tail".into());
        }
        let computed = crc32c_raw(seed, &block[..at]);
        let stored = u32::from_le_bytes(block[at + 8..].try_into().expect("four bytes"));
        if computed != stored {
            return Err(format!(
                "checksum is {stored:#010x}, computed {computed:#010x}"
            ));
        }
        Ok(())
    }

    pub fn put_tail(seed: u32, block: &mut [u8]) {
        let at = block.len() - 12;
        let sum = crc32c_raw(seed, &block[..at]);
        block[at..at + 8].copy_from_slice(&TAIL);
        block[at + 8..].copy_from_slice(&sum.to_le_bytes());
    }
}

pub(crate) mod htree {
    use crate::ext4::Superblock;
    use crate::ext4::checksum::crc32c_raw;

    pub fn checksum(seed: u32, block: &[u8], base: usize, count: usize, limit: usize) -> u32 {
        let sum = crc32c_raw(seed, &block[..base + count * 8]);
        let tail = base + limit * 8;
        crc32c_raw(crc32c_raw(sum, &block[tail..tail + 4]), &[0; 4])
    }

    pub struct Hasher {
        version: u8,
        unsigned: bool,
        seed: [u32; 4],
    }

    impl Hasher {
        pub fn new(sb: &Superblock, version: u8) -> Hasher {
            let seed = sb.s_hash_seed();
            Hasher {
                version,
                unsigned: sb.unsigned_hash(),
                seed: if seed == [0; 4] {
                    [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476]
                } else {
                    seed
                },
            }
        }

        pub fn hash(&self, name: &[u8]) -> u32 {
            let hash = match self.version {
                0 => self.legacy(name),
                1 => {
                    let mut buf = self.seed;
                    let mut rest = name;
                    while !rest.is_empty() {
                        half_md4(&mut buf, &self.words::<8>(rest));
                        rest = &rest[rest.len().min(32)..];
                    }
                    buf[1]
                }
                _ => {
                    let mut buf = self.seed;
                    let mut rest = name;
                    while !rest.is_empty() {
                        tea(&mut buf, &self.words::<4>(rest));
                        rest = &rest[rest.len().min(16)..];
                    }
                    buf[0]
                }
            } & !1;
            if hash == 0xffff_fffe {
                0xffff_fffc
            } else {
                hash
            }
        }

        fn byte(&self, byte: u8) -> u32 {
            if self.unsigned {
                u32::from(byte)
            } else {
                byte as i8 as u32
            }
        }

        fn legacy(&self, name: &[u8]) -> u32 {
            let (mut hash0, mut hash1) = (0x12a3_fe2d_u32, 0x37ab_e8f9_u32);
            for &byte in name {
                let mut hash = hash1.wrapping_add(hash0 ^ self.byte(byte).wrapping_mul(7_152_373));
                if hash & 0x8000_0000 != 0 {
                    hash = hash.wrapping_sub(0x7fff_ffff);
                }
                hash1 = hash0;
                hash0 = hash;
            }
            hash0 << 1
        }

        fn words<const N: usize>(&self, name: &[u8]) -> [u32; N] {
            let len = name.len() as u32;
            let pad = len | len << 8;
            let pad = pad | pad << 16;
            let mut out = [pad; N];
            let used = &name[..name.len().min(N * 4)];
            for (i, chunk) in used.chunks(4).enumerate() {
                out[i] = chunk
                    .iter()
                    .fold(pad, |word, &b| self.byte(b).wrapping_add(word << 8));
            }
            out
        }
    }

    fn half_md4(buf: &mut [u32; 4], input: &[u32; 8]) {
        let [mut a, mut b, mut c, mut d] = *buf;
        let f = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
        let g = |x: u32, y: u32, z: u32| (x & y).wrapping_add((x ^ y) & z);
        let h = |x: u32, y: u32, z: u32| x ^ y ^ z;
        let mut round =
            |fun: &dyn Fn(u32, u32, u32) -> u32, k: u32, order: [usize; 8], s: [u32; 4]| {
                for (i, &word) in order.iter().enumerate() {
                    let sum = a
                        .wrapping_add(fun(b, c, d))
                        .wrapping_add(input[word].wrapping_add(k));
                    let turned = sum.rotate_left(s[i % 4]);
                    (a, d, c, b) = (d, c, b, turned);
                }
            };
        round(&f, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]);
        round(&g, 0x5a82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]);
        round(&h, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]);
        *buf = [
            buf[0].wrapping_add(a),
            buf[1].wrapping_add(b),
            buf[2].wrapping_add(c),
            buf[3].wrapping_add(d),
        ];
    }

    fn tea(buf: &mut [u32; 4], input: &[u32; 4]) {
        let (mut b0, mut b1, mut sum) = (buf[0], buf[1], 0u32);
        for _ in 0..16 {
            sum = sum.wrapping_add(0x9e37_79b9);
            b0 = b0.wrapping_add(
                (b1 << 4).wrapping_add(input[0])
                    ^ b1.wrapping_add(sum)
                    ^ (b1 >> 5).wrapping_add(input[1]),
            );
            b1 = b1.wrapping_add(
                (b0 << 4).wrapping_add(input[2])
                    ^ b0.wrapping_add(sum)
                    ^ (b0 >> 5).wrapping_add(input[3]),
            );
        }
        buf[0] = buf[0].wrapping_add(b0);
        buf[1] = buf[1].wrapping_add(b1);
    }
}

pub(crate) mod orphan_file {
    use crate::ext4::checksum::crc32c_raw;
    use crate::units::BlockNo;

    const MAGIC: u32 = 0x0b10_ca04;

    fn word(block: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes"))
    }

    pub fn slots(block_size: usize) -> usize {
        block_size / 4 - 2
    }

    pub fn slot(block: &[u8], index: usize) -> u32 {
        word(block, index * 4)
    }

    pub fn set_slot(block: &mut [u8], index: usize, ino: u32) {
        block[index * 4..index * 4 + 4].copy_from_slice(&ino.to_le_bytes());
    }

    fn checksum(block: &[u8], seed: u32, at: BlockNo) -> u32 {
        let sum = crc32c_raw(seed, &at.0.to_le_bytes());
        crc32c_raw(sum, &block[..block.len() - 8])
    }

    pub fn update_checksum(block: &mut [u8], seed: u32, at: BlockNo) {
        let sum = checksum(block, seed, at);
        let end = block.len();
        block[end - 4..].copy_from_slice(&sum.to_le_bytes());
    }

    pub fn verify(block: &[u8], seed: Option<u32>, at: BlockNo) -> Result<(), String> {
        let magic = word(block, block.len() - 8);
        if magic != MAGIC {
            return Err(format!("ob_magic is {magic:#x}"));
        }
        let stored = word(block, block.len() - 4);
        match seed.map(|seed| checksum(block, seed, at)) {
            Some(computed) if computed != stored => Err(format!(
                "checksum is {stored:#010x}, computed {computed:#010x}"
            )),
            _ => Ok(()),
        }
    }
}
