//! The tree as a whole: every directory can be reached and knows its parent, every inode has as many names as it says (e2fsck's
//! passes 3 and 4).

use super::{Check, Class};
use crate::ext4::FileType;
use crate::ext4::inode::reserved;
use crate::units::{GroupNo, Ino};

/// Most names that a directory's link count says; beyond it is 1 (kernel: `EXT4_LINK_MAX`).
const LINK_MAX: u32 = 65_000;

/// What is known of a directory's way to the root.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Unknown,
    /// On the way that is being followed.
    Here,
    /// There is one, or its lack was reported.
    Done,
}

impl Check<'_> {
    pub(super) fn tree(&mut self) {
        let number = |check: &Self, ino: u32| {
            let found = check.dirs.binary_search_by_key(&Ino(ino), |dir| dir.ino);
            found.ok()
        };
        let Some(root) = number(self, reserved::ROOT.0) else {
            self.sink
                .add(Class::Tree, "inode 2", "the root directory", "none");
            return;
        };
        self.dirs[root].parent = reserved::ROOT.0;
        let mut ways = vec![Way::Unknown; self.dirs.len()];
        ways[root] = Way::Done;
        let mut path = Vec::new();
        for start in 0..self.dirs.len() {
            let mut at = start;
            while ways[at] == Way::Unknown {
                ways[at] = Way::Here;
                path.push(at);
                match number(self, self.dirs[at].parent) {
                    Some(parent) => at = parent,
                    None => {
                        let place = format_args!("directory inode {}", self.dirs[at].ino);
                        self.sink
                            .add(Class::Tree, place, "a name in a directory", "none");
                        break;
                    }
                }
            }
            if ways[at] == Way::Here && path.last() != Some(&at) || self.loops(at, &path) {
                let place = format_args!("directory inode {}", self.dirs[at].ino);
                self.sink
                    .add(Class::Tree, place, "a way to the root", "a loop");
            }
            for at in path.drain(..) {
                ways[at] = Way::Done;
            }
        }
        for dir in &self.dirs {
            if dir.parent != 0 && dir.dotdot != dir.parent {
                let place = format_args!("directory inode {}", dir.ino);
                let expected = format_args!("\"..\" to be inode {}", dir.parent);
                let found = format_args!("inode {}", dir.dotdot);
                self.sink.add(Class::Tree, place, expected, found);
            }
        }
    }

    /// Whether the last directory of a path names itself.
    fn loops(&self, at: usize, path: &[usize]) -> bool {
        path.last() == Some(&at) && self.dirs[at].parent == self.dirs[at].ino.0
    }

    pub(super) fn link_counts(&mut self) {
        let first = self.sb.first_ino();
        let skip = [self.sb.s_prj_quota_inum(), self.sb.s_orphan_file_inum()];
        for group in 0..self.geometry.groups_count {
            let group = GroupNo(group);
            for (index, facts) in self.inodes.group(group).iter().enumerate() {
                let ino = self.geometry.ino(group, index as u32);
                let own = ino.0 < first && ino != reserved::ROOT || skip.contains(&ino.0);
                if !facts.used || own {
                    continue;
                }
                let place = format_args!("inode {ino}");
                let links = u32::from(facts.links);
                let orphan = self.orphans.contains(&ino.0);
                if facts.found == 0 && !(orphan && links == 0) {
                    let found = format_args!("none, and {links} links");
                    self.sink
                        .add(Class::Tree, place, "a name in a directory", found);
                    continue;
                }
                let directory = facts.kind() == FileType::Directory;
                let mut expected = facts.found;
                if directory && expected > LINK_MAX {
                    if !self.sb.has_dir_nlink() {
                        let found = format_args!("{expected} links");
                        self.sink.add(
                            Class::Links,
                            place,
                            "at most 65000 without dir_nlink",
                            found,
                        );
                    }
                    expected = 1;
                }
                // Once a directory had too many subdirectories, its count stays 1.
                let overflown = directory
                    && links == 1
                    && (self.dirs.binary_search_by_key(&ino, |dir| dir.ino))
                        .is_ok_and(|n| self.dirs[n].indexed);
                if links != expected && !overflown {
                    let expected = format_args!("{expected} links, as many as there are names");
                    let found = format_args!("{links} links");
                    self.sink.add(Class::Links, place, expected, found);
                }
            }
        }
    }
}
