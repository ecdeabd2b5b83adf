//! The names of attributes: `user.`, `trusted.`, `security.` and the two access control lists, as programs write them,
//! and as ext4 stores them: a number for the prefix, and the rest.

use crate::fs::FsError;
use crate::fs::nouns_xattr::Attribute;

/// A prefix and its `e_name_index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    User = 1,
    AclAccess = 2,
    AclDefault = 3,
    Trusted = 4,
    Security = 6,
}

/// Most bytes of a name, with its prefix; more is ERANGE.
const NAME_MAX: usize = 255;

const PREFIXES: [(&[u8], Space); 3] = [
    (b"user.", Space::User),
    (b"trusted.", Space::Trusted),
    (b"security.", Space::Security),
];
const WHOLE: [(&[u8], Space); 2] = [
    (b"system.posix_acl_access", Space::AclAccess),
    (b"system.posix_acl_default", Space::AclDefault),
];

impl Space {
    /// Whether it is one of the access control lists.
    pub fn is_acl(self) -> bool {
        matches!(self, Space::AclAccess | Space::AclDefault)
    }
}

/// A name, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name<'a> {
    pub space: Space,
    /// What is behind the prefix.
    pub rest: &'a [u8],
}

impl<'a> Name<'a> {
    /// EOPNOTSUPP for a prefix that is not ext4's, EINVAL for one with nothing behind it, ERANGE for a long name.
    pub fn parse(full: &'a [u8]) -> Result<Name<'a>, FsError> {
        if full.is_empty() || full.len() > NAME_MAX {
            return Err(FsError::Refused(libc::ERANGE));
        }
        if full.contains(&0) {
            return Err(FsError::Refused(libc::EINVAL));
        }
        for (name, space) in WHOLE {
            if full == name {
                return Ok(Name::of_acl(space));
            }
        }
        for (prefix, space) in PREFIXES {
            if let Some(rest) = full.strip_prefix(prefix) {
                if rest.is_empty() {
                    return Err(FsError::Refused(libc::EINVAL));
                }
                return Ok(Name { space, rest });
            }
        }
        Err(FsError::Refused(libc::EOPNOTSUPP))
    }

    /// The name of an access control list.
    pub fn of_acl(space: Space) -> Name<'a> {
        Name { space, rest: b"" }
    }

    /// Whether an attribute has this name.
    pub fn is(&self, attribute: &Attribute) -> bool {
        attribute.index == self.space as u8 && attribute.name == self.rest
    }

    /// The attribute of this name with a value.
    pub fn with(&self, value: &[u8]) -> Attribute {
        Attribute {
            index: self.space as u8,
            name: self.rest.to_vec(),
            value: value.to_vec(),
        }
    }
}

/// The name that programs use; `None` for one of a kind that programs do not see.
pub(super) fn full_name(attribute: &Attribute) -> Option<Vec<u8>> {
    let number = attribute.index;
    if let Some((name, _)) = WHOLE.iter().find(|(_, space)| *space as u8 == number) {
        return Some(name.to_vec());
    }
    let (prefix, _) = PREFIXES.iter().find(|(_, s)| *s as u8 == number)?;
    Some([prefix, attribute.name.as_slice()].concat())
}
