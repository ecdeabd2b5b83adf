//! What a file is, as `i_mode` and as directory entries say it.

/// Type of a file. The codes are ext4's `EXT4_FT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileType {
    /// Not recorded, or a code that ext4 does not define.
    Unknown,
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Symbolic link.
    Symlink,
}

/// The type bits of `i_mode`.
pub const S_IFMT: u16 = 0o170_000;

impl FileType {
    /// From the type bits of a mode.
    pub fn from_mode(i_mode: u16) -> FileType {
        match i_mode & S_IFMT {
            0o100_000 => FileType::Regular,
            0o040_000 => FileType::Directory,
            0o020_000 => FileType::CharDevice,
            0o060_000 => FileType::BlockDevice,
            0o010_000 => FileType::Fifo,
            0o140_000 => FileType::Socket,
            0o120_000 => FileType::Symlink,
            _ => FileType::Unknown,
        }
    }

    /// The type bits of a mode; 0 for `Unknown`.
    pub fn mode(self) -> u16 {
        match self {
            FileType::Unknown => 0,
            FileType::Regular => 0o100_000,
            FileType::Directory => 0o040_000,
            FileType::CharDevice => 0o020_000,
            FileType::BlockDevice => 0o060_000,
            FileType::Fifo => 0o010_000,
            FileType::Socket => 0o140_000,
            FileType::Symlink => 0o120_000,
        }
    }

    /// From the `file_type` byte of a directory entry.
    pub fn from_code(code: u8) -> FileType {
        match code {
            1 => FileType::Regular,
            2 => FileType::Directory,
            3 => FileType::CharDevice,
            4 => FileType::BlockDevice,
            5 => FileType::Fifo,
            6 => FileType::Socket,
            7 => FileType::Symlink,
            _ => FileType::Unknown,
        }
    }

    /// The `file_type` byte of a directory entry.
    pub fn code(self) -> u8 {
        match self {
            FileType::Unknown => 0,
            FileType::Regular => 1,
            FileType::Directory => 2,
            FileType::CharDevice => 3,
            FileType::BlockDevice => 4,
            FileType::Fifo => 5,
            FileType::Socket => 6,
            FileType::Symlink => 7,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_and_codes_round_trip() {
        for code in 0..=7 {
            let kind = FileType::from_code(code);
            assert_eq!(kind.code(), code);
            assert_eq!(FileType::from_mode(kind.mode() | 0o7777), kind);
        }
        assert_eq!(FileType::from_code(0xDE), FileType::Unknown);
    }
}
