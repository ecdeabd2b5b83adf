//! What a check found: classes, positions in plain words, what was expected and what is there. Owns the bound on their number:
//! a volume with a million errors gives as long a list as one with a hundred.

use std::fmt;

use crate::ext4::Corrupt;

/// What kind of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// The superblock contradicts itself.
    Superblock,
    /// The journal: its inode, its superblock, or what it says of itself.
    Journal,
    /// A group descriptor: checksum, places, flags.
    Group,
    /// An inode's fields or checksum.
    Inode,
    /// An extent tree or a block map.
    Map,
    /// A block that more than one thing claims.
    Twice,
    /// Extended attributes.
    Attributes,
    /// A directory's block or an entry in it.
    Directory,
    /// A directory's hash index.
    Index,
    /// A file or directory without a name, or a directory with two.
    Tree,
    /// Link counts.
    Links,
    /// The list of orphans, or the orphan file.
    Orphans,
    /// A block bitmap.
    BlockBitmap,
    /// An inode bitmap.
    InodeBitmap,
    /// Counts of free blocks, free inodes and directories.
    Counts,
    /// A block that could not be read.
    Unreadable,
}

impl Class {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Class::Superblock => "superblock",
            Class::Journal => "journal",
            Class::Group => "group descriptor",
            Class::Inode => "inode",
            Class::Map => "map of blocks",
            Class::Twice => "block claimed twice",
            Class::Attributes => "attributes",
            Class::Directory => "directory",
            Class::Index => "directory index",
            Class::Tree => "tree",
            Class::Links => "link count",
            Class::Orphans => "orphans",
            Class::BlockBitmap => "block bitmap",
            Class::InodeBitmap => "inode bitmap",
            Class::Counts => "free counts",
            Class::Unreadable => "unreadable",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind.
    pub class: Class,
    /// Where, in plain words.
    pub place: String,
    /// What would be right.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}: {}, expected {}",
            self.class, self.place, self.found, self.expected
        )
    }
}

/// What a check saw and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong, in the order in which it was found; at most as many as were asked for.
    pub findings: Vec<Finding>,
    /// How many more there were.
    pub left_off: u64,
    /// Why nothing, or not everything, was checked: features that this check does not know.
    pub unchecked: Option<String>,
    /// Inodes in use, those reserved by ext4 included.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
    /// Inodes that are unlinked and wait to be deleted, or are being cut.
    pub orphans: u64,
    /// Blocks in use.
    pub blocks: u64,
}

impl Report {
    /// Whether nothing is wrong, and everything was checked.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.unchecked.is_none()
    }
}

/// Where findings go.
pub(super) struct Sink {
    pub findings: Vec<Finding>,
    pub left_off: u64,
    max: usize,
}

impl Sink {
    pub fn new(max: usize) -> Sink {
        Sink {
            findings: Vec::new(),
            left_off: 0,
            max,
        }
    }

    /// Adds a finding. The texts are only written out when there is room for it.
    pub fn add(
        &mut self,
        class: Class,
        place: impl fmt::Display,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) {
        if self.findings.len() >= self.max {
            self.left_off += 1;
            return;
        }
        self.findings.push(Finding {
            class,
            place: place.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        });
    }

    /// Adds what a decoder says.
    pub fn corrupt(&mut self, class: Class, place: impl fmt::Display, corrupt: &Corrupt) {
        match corrupt {
            Corrupt::Short { what, need, have } => self.add(
                class,
                place,
                format_args!("{need} bytes"),
                format_args!("the {what} has {have} bytes"),
            ),
            Corrupt::Field {
                what,
                field,
                at,
                expected,
                found,
            } => self.add(
                class,
                format_args!("{place}, {what}, byte {at}"),
                expected,
                format_args!("{field} is {found:#x}"),
            ),
            Corrupt::Checksum {
                what,
                expected,
                found,
            } => self.add(
                class,
                format_args!("{place}, {what}"),
                format_args!("checksum {expected:#010x}"),
                format_args!("checksum {found:#010x}"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_bounded_and_counted() {
        let mut sink = Sink::new(2);
        for n in 0..5 {
            sink.add(Class::Inode, format_args!("inode {n}"), "a mode", "none");
        }
        assert_eq!((sink.findings.len(), sink.left_off), (2, 3));
        assert_eq!(
            sink.findings[1].to_string(),
            "inode: inode 1: none, expected a mode"
        );
    }
}
