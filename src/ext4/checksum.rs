//! The checksums of ext4: crc32c (metadata_csum) and crc16 (gdt_csum), with the kernel's seeding: the running value
//! goes in and comes out as it is, nothing is inverted.

/// crc32c as the kernel's `ext4_chksum`: reflected 0x1EDC6F41, no inversion in or out.
pub fn crc32c_raw(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// crc16 as the kernel's `crc16`: reflected 0x8005 (ANSI), no inversion in or out.
pub fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 != 0 { 0xA001 } else { 0 }
        })
    })
}

/// The seed of everything that belongs to one inode (its own checksum, its extent blocks, directory blocks):
/// crc32c over inode number and generation, from the volume's seed.
pub fn inode_seed(csum_seed: u32, ino: crate::units::Ino, i_generation: u32) -> u32 {
    let seed = crc32c_raw(csum_seed, &ino.0.to_le_bytes());
    crc32c_raw(seed, &i_generation.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values_of_the_catalogue() {
        // CRC-32/ISCSI inverts in and out: undone here.
        assert_eq!(!crc32c_raw(!0, b"123456789"), 0xe306_9283);
        // CRC-16/MODBUS is the same polynomial from 0xffff; CRC-16/ARC from 0.
        assert_eq!(crc16(0xffff, b"123456789"), 0x4b37);
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }

    #[test]
    fn seeding_continues_a_checksum() {
        let whole = crc32c_raw(7, b"lockstep");
        assert_eq!(crc32c_raw(crc32c_raw(7, b"lock"), b"step"), whole);
    }
}
