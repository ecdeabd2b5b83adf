use super::*;

#[test]
fn times_as_the_kernel_documents_them() {
    // Documentation/filesystems/ext4/inodes.rst, "Inode Timestamps".
    for (epoch, msb, secs) in [
        (0, 1, -0x8000_0000_i64),
        (0, 0, 0x7fff_ffff),
        (1, 1, 0x8000_0000),
        (1, 0, 0x1_7fff_ffff),
        (2, 1, 0x1_8000_0000),
        (3, 0, 0x3_7fff_ffff),
    ] {
        let low = if msb == 1 { 0x8000_0000 } else { 0x7fff_ffff };
        assert_eq!(decode_time(low, Some(epoch | 5 << 2)), (secs, 5));
        assert_eq!(encode_time((secs, 5), true), (low, epoch | 5 << 2));
    }
    assert_eq!(decode_time(0xffff_ffff, None), (-1, 0));
    assert_eq!(encode_time((-1, 999), false), (0xffff_ffff, 0));
    assert_eq!(encode_time((1 << 40, 0), false), (0x7fff_ffff, 0));
    assert_eq!(encode_time((1 << 40, 0), true), (0x7fff_ffff, 3));
    assert_eq!(encode_time((i64::MIN, 0), true), (0x8000_0000, 0));
}

#[test]
fn device_numbers() {
    for (major, minor) in [(8, 1), (0, 5), (259, 3), (8, 300), (4095, 0xf_ffff)] {
        assert_eq!(split_dev(join_dev(major, minor)), (major, minor));
    }
    // The kernel's new_encode_dev(MKDEV(259, 0x12345)).
    assert_eq!(join_dev(259, 0x12345), 0x1231_0345);
}
