//! Whether anything can be mounted here. Nothing but a mount tells: /dev/fuse may be there and mount(2) be refused, and
//! fusermount3 be installed and be refused, too (a container without its privileges).

use std::path::Path;

use fuser::{Config, Filesystem, Session};

use crate::fuse::{MountError, open_device};

/// A file system in which nothing is.
struct Nothing;

impl Filesystem for Nothing {}

/// Mounts an empty file system on `dir` and takes it away again: an error says why that can not be done.
pub fn try_mount(dir: &Path) -> Result<(), MountError> {
    open_device()?;
    match Session::new(Nothing, dir, &Config::default()) {
        Ok(mounted) => {
            drop(mounted);
            Ok(())
        }
        Err(source) => Err(MountError::refused(dir, source)),
    }
}
