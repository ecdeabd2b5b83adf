//! A mirror's node that is busy: a check of its copy that takes as long as the demonstration wants.
//!
//! Owns a directory with a program `e2fsck` that waits for as long as there is a file beside it, and then is the real
//! one. The node finds it before all others; everything else about the check is real.

use super::super::Failed;
use super::nodes::find;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The wait ends by itself after so many tenths of a second.
const TENTHS: u32 = 300;

/// How a check is made to last.
#[derive(Clone, Debug)]
pub struct Busy {
    dir: PathBuf,
}

impl Busy {
    /// Makes the program in a new directory. `None` where programs can not be run there.
    pub fn new(dir: &Path) -> Option<Busy> {
        let real = find("e2fsck")?;
        let busy = Busy {
            dir: dir.to_owned(),
        };
        let script = format!(
            "#!/bin/sh\nn=0\nwhile [ -e '{}' ] && [ $n -lt {TENTHS} ]; do sleep 0.1; n=$((n+1)); done\nexec '{}' \"$@\"\n",
            busy.file().display(),
            real.display()
        );
        let program = dir.join("e2fsck");
        let made = std::fs::create_dir(dir)
            .and_then(|()| std::fs::write(&program, script))
            .and_then(|()| {
                std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700))
            });
        made.ok()?;
        let mut tried = Command::new(&program);
        let tried = tried.arg("-V").stdout(Stdio::null()).stderr(Stdio::null());
        tried.status().is_ok_and(|s| s.success()).then_some(busy)
    }

    fn file(&self) -> PathBuf {
        self.dir.join("hold")
    }

    /// Where the program is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A check waits from now on.
    pub fn hold(&self) -> Result<(), Failed> {
        std::fs::write(self.file(), "")
            .map_err(|e: io::Error| Failed::here(self.file().display(), e))
    }

    /// It goes on.
    pub fn release(&self) {
        // It is bounded by itself.
        let _ = std::fs::remove_file(self.file());
    }
}
