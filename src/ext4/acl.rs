//! POSIX access control lists: as programs pass them (`system.posix_acl_*`), as ext4 stores them, and as far as modes
//! depend on them. Pure values; who may do what is the kernel's to decide.
//!
//! Both forms are little-endian: a version (u32: programs 2, ext4 1), then entries of `e_tag` u16, `e_perm` u16, `e_id`
//! u32. ext4 leaves `e_id` out where there is no user or group to name.

use crate::ext4::layout::get;
use crate::ext4::{Corrupt, Refused};

/// Whom an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tag {
    /// The owner.
    UserObj,
    /// A named user.
    User(u32),
    /// The owning group.
    GroupObj,
    /// A named group.
    Group(u32),
    /// The most that named users and groups get.
    Mask,
    /// Everybody else.
    Other,
}

impl Tag {
    fn code(self) -> (u16, Option<u32>) {
        match self {
            Tag::UserObj => (0x01, None),
            Tag::User(id) => (0x02, Some(id)),
            Tag::GroupObj => (0x04, None),
            Tag::Group(id) => (0x08, Some(id)),
            Tag::Mask => (0x10, None),
            Tag::Other => (0x20, None),
        }
    }

    fn names_somebody(code: u16) -> bool {
        code == 0x02 || code == 0x08
    }

    fn from_code(code: u16, id: u32) -> Option<Tag> {
        Some(match code {
            0x01 => Tag::UserObj,
            0x02 => Tag::User(id),
            0x04 => Tag::GroupObj,
            0x08 => Tag::Group(id),
            0x10 => Tag::Mask,
            0x20 => Tag::Other,
            _ => return None,
        })
    }
}

/// One line of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AclEntry {
    /// For whom.
    pub tag: Tag,
    /// Bits: 4 read, 2 write, 1 execute.
    pub perm: u16,
}

/// A list that is valid: owner, users, group, groups, mask (if somebody is named), others, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    entries: Vec<AclEntry>,
}

const VERSION_USER: u32 = 2;
const VERSION_DISK: u32 = 1;
const WHAT: &str = "access control list";
const NOBODY: u32 = u32::MAX;

impl Acl {
    /// Checks as the kernel does (`posix_acl_valid`).
    pub fn new(entries: Vec<AclEntry>) -> Result<Acl, Refused> {
        #[derive(PartialEq)]
        enum Next {
            Owner,
            Users,
            Groups,
            Others,
            Nothing,
        }
        let invalid = Refused::Invalid { what: WHAT };
        let (mut next, mut needs_mask) = (Next::Owner, false);
        for entry in &entries {
            if entry.perm & !7 != 0 {
                return Err(invalid);
            }
            next = match (entry.tag, next) {
                (Tag::UserObj, Next::Owner) => Next::Users,
                (Tag::User(id), Next::Users) if id != NOBODY => {
                    needs_mask = true;
                    Next::Users
                }
                (Tag::GroupObj, Next::Users) => Next::Groups,
                (Tag::Group(id), Next::Groups) if id != NOBODY => {
                    needs_mask = true;
                    Next::Groups
                }
                (Tag::Mask, Next::Groups) => Next::Others,
                (Tag::Other, Next::Others) => Next::Nothing,
                (Tag::Other, Next::Groups) if !needs_mask => Next::Nothing,
                _ => return Err(invalid),
            };
        }
        if next != Next::Nothing {
            return Err(invalid);
        }
        Ok(Acl { entries })
    }

    /// The list that says what the mode says.
    pub fn from_mode(mode: u16) -> Acl {
        let entry = |tag, perm| AclEntry { tag, perm };
        Acl {
            entries: vec![
                entry(Tag::UserObj, mode >> 6 & 7),
                entry(Tag::GroupObj, mode >> 3 & 7),
                entry(Tag::Other, mode & 7),
            ],
        }
    }

    /// The lines.
    pub fn entries(&self) -> &[AclEntry] {
        &self.entries
    }

    /// From the value that a program passes; `None` for a list without lines, which means removal.
    pub fn from_user(value: &[u8]) -> Result<Option<Acl>, Refused> {
        let invalid = Refused::Invalid { what: WHAT };
        if value.len() < 4
            || !(value.len() - 4).is_multiple_of(8)
            || get::<u32>(value, 0) != VERSION_USER
        {
            return Err(invalid);
        }
        if value.len() == 4 {
            return Ok(None);
        }
        let entries: Option<Vec<AclEntry>> = value[4..]
            .chunks_exact(8)
            .map(|bytes| {
                let tag = Tag::from_code(get(bytes, 0), get(bytes, 4))?;
                let perm = get(bytes, 2);
                Some(AclEntry { tag, perm })
            })
            .collect();
        Acl::new(entries.ok_or(invalid)?).map(Some)
    }

    /// The value that a program gets.
    pub fn to_user(&self) -> Vec<u8> {
        let mut value = VERSION_USER.to_le_bytes().to_vec();
        for entry in &self.entries {
            let (code, id) = entry.tag.code();
            value.extend(code.to_le_bytes());
            value.extend(entry.perm.to_le_bytes());
            value.extend(id.unwrap_or(NOBODY).to_le_bytes());
        }
        value
    }

    /// From the value of ext4's attribute.
    pub fn from_disk(value: &[u8]) -> Result<Acl, Corrupt> {
        Corrupt::need(WHAT, value, 4)?;
        let version: u32 = get(value, 0);
        if version != VERSION_DISK {
            return Err(Corrupt::field(WHAT, "a_version", 0, "1", version));
        }
        let mut entries = Vec::new();
        let mut at = 4;
        while at < value.len() {
            Corrupt::need(WHAT, value, at + 4)?;
            let code: u16 = get(value, at);
            let perm: u16 = get(value, at + 2);
            let mut id = NOBODY;
            let mut next = at + 4;
            if Tag::names_somebody(code) {
                Corrupt::need(WHAT, value, at + 8)?;
                id = get(value, at + 4);
                next += 4;
            }
            let Some(tag) = Tag::from_code(code, id) else {
                return Err(Corrupt::field(
                    WHAT,
                    "e_tag",
                    at,
                    "1, 2, 4, 8, 16 or 32",
                    code,
                ));
            };
            entries.push(AclEntry { tag, perm });
            at = next;
        }
        let count = entries.len() as u64;
        Acl::new(entries).map_err(|_| Corrupt::field(WHAT, "entries", 4, "a valid order", count))
    }

    /// The value of ext4's attribute.
    pub fn to_disk(&self) -> Vec<u8> {
        let mut value = VERSION_DISK.to_le_bytes().to_vec();
        for entry in &self.entries {
            let (code, id) = entry.tag.code();
            value.extend(code.to_le_bytes());
            value.extend(entry.perm.to_le_bytes());
            value.extend(id.iter().flat_map(|id| id.to_le_bytes()));
        }
        value
    }

    /// The nine permission bits that the list implies, and whether they say all that the list says (then it need not be
    /// stored). Kernel: `posix_acl_equiv_mode`.
    pub fn equivalent_mode(&self) -> (u16, bool) {
        let (mut mode, mut group, mut all) = (0, 0, true);
        for entry in &self.entries {
            match entry.tag {
                Tag::UserObj => mode |= entry.perm << 6,
                Tag::GroupObj => group = entry.perm,
                Tag::Other => mode |= entry.perm,
                Tag::Mask | Tag::User(_) | Tag::Group(_) => all = false,
            }
        }
        (mode | self.mask().unwrap_or(group) << 3, all)
    }

    fn mask(&self) -> Option<u16> {
        let mask = self.entries.iter().find(|e| e.tag == Tag::Mask);
        mask.map(|e| e.perm)
    }

    /// The mode was changed (kernel: `posix_acl_chmod`): owner, mask (or group) and others follow it.
    pub fn chmod(&mut self, mode: u16) {
        let has_mask = self.mask().is_some();
        for entry in &mut self.entries {
            match entry.tag {
                Tag::UserObj => entry.perm = mode >> 6 & 7,
                Tag::GroupObj if !has_mask => entry.perm = mode >> 3 & 7,
                Tag::Mask => entry.perm = mode >> 3 & 7,
                Tag::Other => entry.perm = mode & 7,
                _ => {}
            }
        }
    }

    /// This is a directory's default list, and a file is made in it with `mode` (no umask applied): returns the file's
    /// own list, and its mode (kernel: `posix_acl_create`). The list need not be stored if [`Acl::equivalent_mode`] says all.
    pub fn inherit(&self, mode: u16) -> (Acl, u16) {
        let mut own = self.clone();
        let has_mask = own.mask().is_some();
        let mut bits = 0;
        for entry in &mut own.entries {
            let shift = match entry.tag {
                Tag::UserObj => 6,
                Tag::Mask => 3,
                Tag::GroupObj if !has_mask => 3,
                Tag::Other => 0,
                _ => continue,
            };
            entry.perm &= mode >> shift & 7;
            bits |= entry.perm << shift;
        }
        (own, mode & !0o777 | bits)
    }
}

#[cfg(test)]
mod tests;
