//! POSIX access control lists: what they say about a mode, what a mode says about them, and what new files inherit.
//! Pure; the rules are those of the kernel's `posix_acl.c` and of POSIX 1003.1e draft 17.

use crate::fs::FsError;

/// Who an entry is about; the numbers are those of both forms (`e_tag`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Tag {
    /// The owner.
    UserObj = 0x01,
    /// A user by id.
    User = 0x02,
    /// The owning group.
    GroupObj = 0x04,
    /// A group by id.
    Group = 0x08,
    /// What all but owner and others can have at most.
    Mask = 0x10,
    /// Everybody else.
    Other = 0x20,
}

impl Tag {
    fn from_number(number: u16) -> Option<Tag> {
        [
            Tag::UserObj,
            Tag::User,
            Tag::GroupObj,
            Tag::Group,
            Tag::Mask,
            Tag::Other,
        ]
        .into_iter()
        .find(|tag| *tag as u16 == number)
    }

    /// Whether entries of this kind name an id.
    fn has_id(self) -> bool {
        matches!(self, Tag::User | Tag::Group)
    }
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AclEntry {
    /// Who.
    pub tag: Tag,
    /// Read 4, write 2, execute 1.
    pub perm: u16,
    /// User or group; 0 for the tags that have none.
    pub id: u32,
}

/// A valid list: owner, users, group, groups, mask, others; a mask wherever users or groups are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    entries: Vec<AclEntry>,
}

/// `a_version` on disk.
const DISK_VERSION: u32 = 1;
/// `a_version` of the system call's form.
const USER_VERSION: u32 = 2;
/// Bytes of the header of both forms.
const HEADER_BYTES: usize = 4;
/// Bytes of an entry on disk without an id.
const SHORT_BYTES: usize = 4;
/// Bytes of an entry on disk with an id, and of every entry of the system call's form.
const FULL_BYTES: usize = 8;
/// The id of entries that have none, in the system call's form.
const NO_ID: u32 = u32::MAX;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Acl {
    /// A list of these entries, checked as the kernel does (`posix_acl_valid`).
    pub fn new(entries: Vec<AclEntry>) -> Option<Acl> {
        let mut next = Tag::UserObj;
        let mut needs_mask = false;
        let mut complete = false;
        for entry in &entries {
            if complete || entry.perm & !7 != 0 || (entry.tag.has_id() && entry.id == NO_ID) {
                return None;
            }
            next = match (next, entry.tag) {
                (Tag::UserObj, Tag::UserObj) => Tag::User,
                (Tag::User, Tag::User) => {
                    needs_mask = true;
                    Tag::User
                }
                (Tag::User, Tag::GroupObj) => Tag::Group,
                (Tag::Group, Tag::Group) => {
                    needs_mask = true;
                    Tag::Group
                }
                (Tag::Group, Tag::Mask) => Tag::Other,
                (Tag::Other, Tag::Other) => {
                    complete = true;
                    Tag::Other
                }
                (Tag::Group, Tag::Other) if !needs_mask => {
                    complete = true;
                    Tag::Other
                }
                _ => return None,
            };
        }
        complete.then_some(Acl { entries })
    }

    /// The entries, in order.
    pub fn entries(&self) -> &[AclEntry] {
        &self.entries
    }

    /// Reads the form on disk: short entries for those without an id.
    pub fn from_disk(value: &[u8]) -> Result<Acl, &'static str> {
        if value.len() < HEADER_BYTES || u32_at(value, 0) != DISK_VERSION {
            return Err("an access control list of an unknown version");
        }
        let mut entries = Vec::new();
        let mut at = HEADER_BYTES;
        while at < value.len() {
            if value.len() - at < SHORT_BYTES {
                return Err("an access control list that ends within an entry");
            }
            let tag = Tag::from_number(u16_at(value, at))
                .ok_or("an access control list with an unknown tag")?;
            let perm = u16_at(value, at + 2);
            let (id, size) = if tag.has_id() {
                if value.len() - at < FULL_BYTES {
                    return Err("an access control list that ends within an entry");
                }
                (u32_at(value, at + 4), FULL_BYTES)
            } else {
                (0, SHORT_BYTES)
            };
            entries.push(AclEntry { tag, perm, id });
            at += size;
        }
        Acl::new(entries).ok_or("an access control list that is not valid")
    }

    /// The form on disk.
    pub fn to_disk(&self) -> Vec<u8> {
        let mut value = DISK_VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            value.extend((entry.tag as u16).to_le_bytes());
            value.extend(entry.perm.to_le_bytes());
            if entry.tag.has_id() {
                value.extend(entry.id.to_le_bytes());
            }
        }
        value
    }

    /// Reads the system call's form; `None` for an empty list, which removes. EOPNOTSUPP for another version, EINVAL for
    /// what is not a list.
    pub fn from_user(value: &[u8]) -> Result<Option<Acl>, FsError> {
        let invalid = FsError::Refused(libc::EINVAL);
        if value.is_empty() {
            return Ok(None);
        }
        if value.len() < HEADER_BYTES {
            return Err(invalid);
        }
        if u32_at(value, 0) != USER_VERSION {
            return Err(FsError::Refused(libc::EOPNOTSUPP));
        }
        let body = &value[HEADER_BYTES..];
        if !body.len().is_multiple_of(FULL_BYTES) {
            return Err(invalid);
        }
        if body.is_empty() {
            return Ok(None);
        }
        let entries: Option<Vec<AclEntry>> = body
            .chunks_exact(FULL_BYTES)
            .map(|entry| {
                let tag = Tag::from_number(u16_at(entry, 0))?;
                let id = if tag.has_id() { u32_at(entry, 4) } else { 0 };
                let perm = u16_at(entry, 2);
                Some(AclEntry { tag, perm, id })
            })
            .collect();
        entries.and_then(Acl::new).map(Some).ok_or(invalid)
    }

    /// The system call's form.
    pub fn to_user(&self) -> Vec<u8> {
        let mut value = USER_VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            let id = if entry.tag.has_id() { entry.id } else { NO_ID };
            value.extend((entry.tag as u16).to_le_bytes());
            value.extend(entry.perm.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    /// The permission bits of a mode that the list stands for, and whether they say all of it.
    pub fn mode(&self) -> (u16, bool) {
        let mut mode = 0;
        let mut says_all = true;
        for entry in &self.entries {
            match entry.tag {
                Tag::UserObj => mode |= entry.perm << 6,
                Tag::GroupObj => mode |= entry.perm << 3,
                Tag::Other => mode |= entry.perm,
                Tag::Mask => {
                    mode = mode & !0o070 | entry.perm << 3;
                    says_all = false;
                }
                Tag::User | Tag::Group => says_all = false,
            }
        }
        (mode, says_all)
    }

    /// Which entry the group bits of the mode stand for.
    fn group_class(&mut self) -> Option<&mut AclEntry> {
        let has_mask = self.entries.iter().any(|entry| entry.tag == Tag::Mask);
        let tag = if has_mask { Tag::Mask } else { Tag::GroupObj };
        self.entries.iter_mut().find(|entry| entry.tag == tag)
    }

    /// Gives the entries that a mode stands for its permissions.
    pub fn chmod(&mut self, mode: u16) {
        for entry in &mut self.entries {
            match entry.tag {
                Tag::UserObj => entry.perm = mode >> 6 & 7,
                Tag::Other => entry.perm = mode & 7,
                _ => {}
            }
        }
        if let Some(entry) = self.group_class() {
            entry.perm = mode >> 3 & 7;
        }
    }

    /// Cuts list and mode to what both allow, for a new file; returns the mode.
    fn cut(&mut self, mode: u16) -> u16 {
        let mut allowed = mode;
        for entry in &mut self.entries {
            match entry.tag {
                Tag::UserObj => {
                    entry.perm &= mode >> 6;
                    allowed &= entry.perm << 6 | !0o700;
                }
                Tag::Other => {
                    entry.perm &= mode;
                    allowed &= entry.perm | !0o007;
                }
                _ => {}
            }
        }
        if let Some(entry) = self.group_class() {
            entry.perm &= mode >> 3;
            allowed &= entry.perm << 3 | !0o070;
        }
        allowed
    }
}

/// What a new file starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Its mode, the type included.
    pub mode: u16,
    /// Its access list, unless the mode says all of it.
    pub access: Option<Acl>,
    /// For a directory, its default list.
    pub default: Option<Acl>,
}

/// What a new file made with `mode` (type included) in a directory with this default list starts with. Not for symlinks.
pub fn inherit(parent_default: Option<&Acl>, mode: u16, is_dir: bool, umask: u16) -> Inherited {
    let Some(default) = parent_default else {
        return Inherited {
            mode: mode & !(umask & 0o777),
            access: None,
            default: None,
        };
    };
    let mut access = default.clone();
    let mode = access.cut(mode);
    let (_, says_all) = access.mode();
    Inherited {
        mode,
        access: (!says_all).then_some(access),
        default: is_dir.then(|| default.clone()),
    }
}
