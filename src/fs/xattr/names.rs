//! The names of attributes: `user.`, `trusted.`, `security.` and the two access control lists, as programs write them,
//! and as ext4 stores them: a number for the prefix, and the rest.

use crate::ext4::xattr::index;
use crate::ext4::{Acl, Xattr};
use crate::fs::FsError;

/// What a name begins with, or is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    User,
    AclAccess,
    AclDefault,
    Trusted,
    Security,
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
    /// `e_name_index`.
    pub fn index(self) -> u8 {
        match self {
            Space::User => index::USER,
            Space::AclAccess => index::POSIX_ACL_ACCESS,
            Space::AclDefault => index::POSIX_ACL_DEFAULT,
            Space::Trusted => index::TRUSTED,
            Space::Security => index::SECURITY,
        }
    }

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
}

/// The name that programs use; `None` for one of a kind that programs can not ask for.
pub(super) fn full_name(attribute: &Xattr) -> Option<Vec<u8>> {
    let number = attribute.index;
    if let Some((name, _)) = WHOLE.iter().find(|(_, space)| space.index() == number) {
        return Some(name.to_vec());
    }
    let (prefix, _) = PREFIXES.iter().find(|(_, s)| s.index() == number)?;
    Some([prefix, attribute.name.as_slice()].concat())
}

/// The list that a program passes; `None` removes. EOPNOTSUPP for another version of the form, EINVAL for no list.
pub(super) fn acl_from_user(value: &[u8]) -> Result<Option<Acl>, FsError> {
    if value.is_empty() {
        return Ok(None);
    }
    if value.len() >= 4 && value[..4] != 2u32.to_le_bytes() {
        return Err(FsError::Refused(libc::EOPNOTSUPP));
    }
    Acl::from_user(value).map_err(|_| FsError::Refused(libc::EINVAL))
}
