//! What can be wrong with bytes from a volume, and what a caller can ask in vain. Positions are bytes from the start of
//! the structure; whoever knows the block or inode adds it.

use std::borrow::Cow;

/// The medium lies.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// Fewer bytes than the structure has.
    #[error("{what}: {have} bytes where {need} are needed")]
    Short {
        /// The structure.
        what: &'static str,
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// A field with a value that ext4 does not allow.
    #[error("{what}, byte {at}: {field} is {found:#x}, expected {expected}")]
    Field {
        /// The structure.
        what: &'static str,
        /// The field, by the kernel's name.
        field: &'static str,
        /// Offset of the field (or of the entry it is in) in the structure.
        at: usize,
        /// What would be right.
        expected: Cow<'static, str>,
        /// What is there.
        found: u64,
    },
    /// A checksum that does not match.
    #[error("{what}: checksum is {found:#010x}, computed {expected:#010x}")]
    Checksum {
        /// The structure.
        what: &'static str,
        /// As computed over the bytes.
        expected: u32,
        /// As stored.
        found: u32,
    },
}

impl Corrupt {
    /// A `Field` error.
    pub(crate) fn field(
        what: &'static str,
        field: &'static str,
        at: usize,
        expected: impl Into<Cow<'static, str>>,
        found: impl Into<u64>,
    ) -> Corrupt {
        Corrupt::Field {
            what,
            field,
            at,
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// Whether `bytes` has at least `need` bytes.
    pub(crate) fn need(what: &'static str, bytes: &[u8], need: usize) -> Result<(), Corrupt> {
        if bytes.len() < need {
            return Err(Corrupt::Short {
                what,
                need,
                have: bytes.len(),
            });
        }
        Ok(())
    }

    /// Whether a stored checksum is the computed one.
    pub(crate) fn checksum(what: &'static str, expected: u32, found: u32) -> Result<(), Corrupt> {
        if expected != found {
            return Err(Corrupt::Checksum {
                what,
                expected,
                found,
            });
        }
        Ok(())
    }
}

/// The caller asks for what the format can not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No room left in the block or inode.
    #[error("no room: {need} bytes needed")]
    NoRoom {
        /// Bytes the request needs.
        need: usize,
    },
    /// A name that is empty, longer than 255 bytes, or holds a byte that is not allowed.
    #[error("a name of {len} bytes is not allowed")]
    BadName {
        /// Its length in bytes.
        len: usize,
    },
    /// A value larger than an attribute can be.
    #[error("a value of {len} bytes is too large")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
    },
    /// More blocks than `i_blocks` can count without the `huge_file` feature.
    #[error("{sectors} sectors are more than i_blocks can count here")]
    TooManyBlocks {
        /// Sectors of 512 bytes.
        sectors: u64,
    },
    /// An entry of that name exists already.
    #[error("the name exists already")]
    Exists,
    /// No entry of that name.
    #[error("the name does not exist")]
    NotFound,
    /// Bytes from a program that are not what the interface demands.
    #[error("not valid: {what}")]
    Invalid {
        /// The structure.
        what: &'static str,
    },
}

/// Why a change within a block failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The block is not what it should be; nothing was changed.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The change is not possible; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refused),
}
