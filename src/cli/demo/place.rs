//! The temporary directory of a demonstration.
//!
//! Owns the directory and its end. Invariant: nothing is ever removed through a mount; what is still mounted stays where
//! it is and is named.

use super::super::Failed;
use super::super::exit::Exit;
use super::super::size::show;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A directory that goes away with this value, unless it is kept.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    keep: bool,
}

impl Place {
    /// A new directory below the one for temporary files, which has to have room for `needed` bytes.
    pub fn new(needed: u64) -> Result<Place, Failed> {
        let top = std::env::temp_dir();
        let failed = |e: io::Error| {
            Failed::new(
                Exit::Failure,
                format!("{}: {e}", top.display()),
                "set TMPDIR to a directory that you may write to",
            )
        };
        let top = std::fs::canonicalize(&top).map_err(failed)?;
        let room = rustix::fs::statvfs(&top).map_err(|e| failed(e.into()))?;
        let room = room.f_bavail * room.f_frsize;
        if room < needed {
            return Err(Failed::new(
                Exit::Refused,
                format!(
                    "{} has {} free, and the demonstration needs {}",
                    top.display(),
                    show(room),
                    show(needed)
                ),
                "set TMPDIR to a directory with more room, or give a smaller --size",
            ));
        }
        let id = std::process::id();
        for n in 0..100 {
            let path = match n {
                0 => top.join(format!("lockstep-demo-{id}")),
                _ => top.join(format!("lockstep-demo-{id}-{n}")),
            };
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Place { path, keep: false }),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Err(failed(io::ErrorKind::AlreadyExists.into()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on it stays.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let left = mounts_below(&self.path);
        let removed = match left.is_empty() {
            true => std::fs::remove_dir_all(&self.path),
            false => Err(io::ErrorKind::ResourceBusy.into()),
        };
        if let Err(e) = removed {
            eprintln!("lockstep: {} is left behind: {e}", self.path.display());
            for dir in left {
                eprintln!("  next: umount -l {}", dir.display());
            }
            eprintln!("  next: rm -r {}", self.path.display());
        }
    }
}

/// What is mounted at `dir` or below it, also what is dead.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|l| l.split(' ').nth(4));
    let points = points.map(|p| PathBuf::from(unescape(p)));
    points.filter(|p| p.starts_with(dir)).collect()
}

/// The kernel writes blanks, tabs, newlines and backslashes as `\ooo`.
fn unescape(text: &str) -> String {
    let mut plain = text.to_owned();
    for (escaped, c) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        plain = plain.replace(escaped, c);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_away_unless_it_is_kept() {
        let place = Place::new(0).unwrap();
        let path = place.path().to_owned();
        std::fs::write(path.join("file"), "x").unwrap();
        drop(place);
        assert!(!path.exists());
        let mut place = Place::new(0).unwrap();
        let path = place.path().to_owned();
        place.keep();
        drop(place);
        assert!(path.exists());
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn too_little_room_says_what_to_do() {
        let failed = Place::new(u64::MAX).unwrap_err();
        assert!(failed.remedy.contains("TMPDIR"), "{failed:?}");
    }

    #[test]
    fn mount_points_with_blanks_are_found() {
        assert_eq!(unescape("/mnt/a\\040b\\134c"), "/mnt/a b\\c");
        assert!(mounts_below(Path::new("/")).contains(&PathBuf::from("/")));
    }
}
