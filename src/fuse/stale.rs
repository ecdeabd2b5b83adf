//! The mount table: what is mounted where, the mounts that a killed daemon left behind, and taking mounts away.

use std::io;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::UnmountFlags;

use crate::fuse::MountError;

/// What is mounted on `dir`, topmost: the source in the mount table.
pub fn mounted_as(dir: &Path) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    table
        .lines()
        .filter_map(parse)
        .filter(|(on, _)| on == dir)
        .map(|(_, source)| source)
        .next_back()
}

/// Mount point and source of a line of mountinfo.
fn parse(line: &str) -> Option<(PathBuf, String)> {
    let (head, tail) = line.split_once(" - ")?;
    let on = head.split(' ').nth(4)?;
    let source = tail.split(' ').nth(1)?;
    Some((PathBuf::from(unescape(on)), unescape(source)))
}

/// Undoes the octal escapes of the mount table.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Takes away the mount of a daemon that died ("transport endpoint is not connected"), if there is one on `dir`.
pub fn clear_stale(dir: &Path) -> Result<bool, MountError> {
    let mut cleared = false;
    // Several may lie on top of each other.
    for _ in 0..16 {
        let ours = mounted_as(dir).is_some_and(|source| source.starts_with("lockstep"));
        // Not by its attributes: the kernel may know those without asking. This it always asks.
        let dead = ours && rustix::fs::statfs(dir).err() == Some(rustix::io::Errno::NOTCONN);
        if !dead {
            break;
        }
        detach(dir, true).map_err(|source| MountError::Unmount {
            dir: dir.to_path_buf(),
            source,
        })?;
        tracing::info!(dir = %dir.display(), "cleared the mount of a daemon that died");
        cleared = true;
    }
    Ok(cleared)
}

/// Unmounts `dir`: directly, or through fusermount3 where that is not permitted.
pub fn detach(dir: &Path, lazy: bool) -> io::Result<()> {
    let flags = match lazy {
        true => UnmountFlags::DETACH,
        false => UnmountFlags::empty(),
    };
    match rustix::mount::unmount(dir, flags) {
        Err(rustix::io::Errno::PERM) => {
            let mut command = Command::new("fusermount3");
            command.arg("-u").arg("-q");
            if lazy {
                command.arg("-z");
            }
            let output = command.arg("--").arg(dir).output()?;
            match output.status.success() {
                true => Ok(()),
                false => Err(io::Error::other(
                    String::from_utf8_lossy(&output.stderr).trim().to_string(),
                )),
            }
        }
        other => Ok(other?),
    }
}

/// Sets the read-ahead of a mount. Needs root; without it, reads are a little smaller.
pub fn set_read_ahead(dir: &Path, kib: u32) {
    let Ok(meta) = std::fs::metadata(dir) else {
        return;
    };
    let dev = meta.st_dev();
    let path = format!(
        "/sys/class/bdi/{}:{}/read_ahead_kb",
        rustix::fs::major(dev),
        rustix::fs::minor(dev)
    );
    if let Err(error) = std::fs::write(&path, kib.to_string()) {
        tracing::debug!(%error, path, "read-ahead is left as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_mount_table_is_understood() {
        let line = r"36 35 0:44 / /mnt/my\040dir rw,nosuid shared:1 - fuse.lockstep lockstep:home rw,user_id=0";
        assert_eq!(
            parse(line),
            Some((PathBuf::from("/mnt/my dir"), "lockstep:home".to_string()))
        );
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn nothing_is_mounted_where_nothing_is() {
        assert_eq!(mounted_as(Path::new("/proc/self/no-such-directory")), None);
        assert!(mounted_as(Path::new("/")).is_some());
    }
}
