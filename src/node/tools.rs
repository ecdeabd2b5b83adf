//! e2fsprogs on a closed volume: e2fsck to check, tune2fs to change the journal.
//!
//! Owns their calls and the scratch file by which they see several parts as one device. Never runs on a volume that is
//! open: the caller has closed it. Programs are called by an absolute path where PATH lacks sbin.

use super::refusal::{Code, Refusal};
use crate::volume::mkfs::tools::tool;
use crate::volume::mkfs::{MAX_BUFFER_BLOCKS, MIN_BUFFER_BLOCKS};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Bytes compared or copied at once.
const CHUNK: usize = 1 << 20;

/// The parts as one file: the part itself when there is one, else a sparse scratch file that goes away.
struct Joined {
    path: PathBuf,
    scratch: bool,
}

impl Drop for Joined {
    fn drop(&mut self) {
        if self.scratch {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Length of a file or a block device.
fn len(file: &mut File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

fn join(parts: &[PathBuf], dir: &Path) -> io::Result<Joined> {
    if let [part] = parts {
        return Ok(Joined {
            path: part.clone(),
            scratch: false,
        });
    }
    let path = dir.join(format!("joined.{}", std::process::id()));
    // From here on it goes away, however this ends.
    let joined = Joined {
        path: path.clone(),
        scratch: true,
    };
    let mut out = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)?;
    let mut chunk = vec![0; CHUNK];
    for part in parts {
        let mut part = File::open(part)?;
        loop {
            let n = part.read(&mut chunk)?;
            if n == 0 {
                break;
            }
            if chunk[..n].iter().all(|b| *b == 0) {
                out.seek(SeekFrom::Current(n as i64))?;
            } else {
                out.write_all(&chunk[..n])?;
            }
        }
    }
    let end = out.stream_position()?;
    out.set_len(end)?;
    Ok(joined)
}

/// Writes back what a program changed in the scratch file.
fn part_again(joined: &Joined, parts: &[PathBuf]) -> io::Result<()> {
    if !joined.scratch {
        return Ok(());
    }
    let whole = File::open(&joined.path)?;
    let mut at = 0;
    for path in parts {
        let mut part = OpenOptions::new().read(true).write(true).open(path)?;
        let length = len(&mut part)?;
        let (mut new, mut old) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut done = 0;
        while done < length {
            let n = CHUNK.min((length - done) as usize);
            whole.read_exact_at(&mut new[..n], at + done)?;
            part.read_exact_at(&mut old[..n], done)?;
            if new[..n] != old[..n] {
                part.write_all_at(&new[..n], done)?;
            }
            done += n as u64;
        }
        part.sync_all()?;
        at += length;
    }
    Ok(())
}

fn missing(name: &str) -> Refusal {
    Refusal::new(
        Code::Unsupported,
        format!("{name} is not installed"),
        "apt install e2fsprogs",
    )
}

fn run(name: &'static str, arguments: &[&str], path: &Path) -> Result<Output, Refusal> {
    let mut command: Command = tool(name).map_err(|_| missing(name))?;
    command.args(arguments).arg(path);
    command.output().map_err(|e| Refusal::io(name, e))
}

/// e2fsck -fn over the parts. Its lines go to `note`; damage is a refusal of the code `Differ`.
pub fn check(parts: &[PathBuf], scratch: &Path, note: impl Fn(&str)) -> Result<(), Refusal> {
    let joined = join(parts, scratch).map_err(|e| Refusal::io("reading the parts", e))?;
    let out = run("e2fsck", &["-f", "-n"], &joined.path)?;
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        note(line);
    }
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    let said: Vec<&str> = said.lines().filter(|l| !l.starts_with("e2fsck ")).collect();
    Err(Refusal::new(
        Code::Differ,
        format!("e2fsck found damage ({}) {}", out.status, said.join("; "))
            .trim_end()
            .to_owned(),
        "stop the daemon and repair the parts with e2fsck -f, or take the copy of a mirror",
    ))
}

/// e2fsck -fy over the parts: whatever is there becomes a file system, if it can.
pub fn repair(parts: &[PathBuf], scratch: &Path) -> Result<(), Refusal> {
    let joined = join(parts, scratch).map_err(|e| Refusal::io("reading the parts", e))?;
    let out = run("e2fsck", &["-f", "-y"], &joined.path)?;
    // 1: errors were corrected; 2: and the machine should be restarted, if it were its root.
    let mended = matches!(out.status.code(), Some(0..=3));
    part_again(&joined, parts).map_err(|e| Refusal::io("writing the parts", e))?;
    match mended {
        true => Ok(()),
        false => Err(Refusal::new(
            Code::Unusable,
            format!(
                "e2fsck can not make a file system of this copy ({})",
                out.status
            ),
            "take another copy",
        )),
    }
}

/// Gives the file system another journal of `bytes`, rounded up to whole MiB.
pub fn tune(parts: &[PathBuf], block_size: u32, scratch: &Path, bytes: u64) -> Result<(), Refusal> {
    let blocks = bytes / u64::from(block_size);
    if !(MIN_BUFFER_BLOCKS..=MAX_BUFFER_BLOCKS).contains(&blocks) {
        let bound = |blocks: u64| blocks * u64::from(block_size);
        return Err(Refusal::new(
            Code::Invalid,
            format!(
                "a buffer of {bytes} bytes is out of bounds: {} to {} bytes here",
                bound(MIN_BUFFER_BLOCKS),
                bound(MAX_BUFFER_BLOCKS)
            ),
            "give another --buffer",
        ));
    }
    let joined = join(parts, scratch).map_err(|e| Refusal::io("reading the parts", e))?;
    let size = format!("size={}", bytes.div_ceil(1 << 20));
    let old = journal_mib(&joined.path)?;
    remove_journal(&joined.path)?;
    let mut made = tune2fs(&["-J", &size], &joined.path);
    if made.is_err()
        && let Some(old) = old
    {
        // No room for the new one: the volume gets a journal of the size it had.
        tune2fs(&["-J", &format!("size={old}")], &joined.path)?;
    }
    if made.is_ok() {
        made = check(std::slice::from_ref(&joined.path), scratch, |_| {});
    }
    part_again(&joined, parts).map_err(|e| Refusal::io("writing the parts", e))?;
    made
}

fn remove_journal(path: &Path) -> Result<(), Refusal> {
    tune2fs(&["-O", "^has_journal"], path)
}

fn tune2fs(arguments: &[&str], path: &Path) -> Result<(), Refusal> {
    let out = run("tune2fs", arguments, path)?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    let said: Vec<&str> = said
        .lines()
        .filter(|l| !l.starts_with("tune2fs "))
        .collect();
    Err(Refusal::io("tune2fs", said.join("; ")))
}

/// Size of the journal in MiB, rounded down; `None` where there is none.
fn journal_mib(path: &Path) -> Result<Option<u64>, Refusal> {
    let out = run("dumpe2fs", &["-h"], path)?;
    let text = String::from_utf8_lossy(&out.stdout);
    let size = |line: &str| {
        let text = line
            .strip_prefix("Total journal size:")
            .or_else(|| line.strip_prefix("Journal size:"))?
            .trim();
        let (digits, unit) = text.split_at(text.len().checked_sub(1)?);
        let number: u64 = digits.parse().ok()?;
        match unit {
            "k" => Some(number >> 10),
            "M" => Some(number),
            "G" => Some(number << 10),
            _ => None,
        }
    };
    Ok(text.lines().find_map(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &Path, features: &str) -> PathBuf {
        let path = dir.join("image");
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        let out = run(
            "mke2fs",
            &[
                "-q", "-F", "-t", "ext4", "-b", "4096", "-J", "size=4", "-O", features,
            ],
            &path,
        )
        .unwrap();
        assert!(out.status.success(), "{out:?}");
        path
    }

    fn split(image: &Path, sizes: &[usize]) -> Vec<PathBuf> {
        let bytes = std::fs::read(image).unwrap();
        let mut at = 0;
        let mut parts = Vec::new();
        for (i, size) in sizes.iter().enumerate() {
            let end = if i + 1 == sizes.len() {
                bytes.len()
            } else {
                at + size
            };
            let path = image.with_extension(i.to_string());
            std::fs::write(&path, &bytes[at..end]).unwrap();
            parts.push(path);
            at = end;
        }
        parts
    }

    #[test]
    fn a_clean_volume_passes_and_a_damaged_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path(), "none,has_journal,extent,filetype,metadata_csum");
        let parts = split(&image, &[10 << 20, 20 << 20, 0]);
        check(&parts, dir.path(), |_| {}).unwrap();
        // The root directory's inode, in whichever part it is: group 0's inode table follows the bitmaps.
        let file = OpenOptions::new().write(true).open(&parts[0]).unwrap();
        file.write_all_at(&[0xff; 4096], 4096).unwrap();
        let refused = check(&parts, dir.path(), |_| {}).unwrap_err();
        assert_eq!(refused.code, Code::Differ);
    }

    #[test]
    fn the_journal_of_one_or_several_parts_gets_another_size() {
        for features in [
            "none,has_journal,extent,filetype,metadata_csum",
            "has_journal,orphan_file",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let image = image(dir.path(), features);
            let one = [image.clone()];
            tune(&one, 4096, dir.path(), 8 << 20).unwrap();
            assert_eq!(journal_mib(&image).unwrap(), Some(8));
            let parts = split(&image, &[10 << 20, 0]);
            tune(&parts, 4096, dir.path(), 5 << 20).unwrap();
            let joined = join(&parts, dir.path()).unwrap();
            assert_eq!(journal_mib(&joined.path).unwrap(), Some(5));
            check(&parts, dir.path(), |_| {}).unwrap();
        }
    }

    #[test]
    fn a_journal_that_does_not_fit_leaves_the_old_size() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path(), "none,has_journal,extent,filetype");
        let one = [image.clone()];
        assert!(tune(&one, 4096, dir.path(), 1 << 30).is_err());
        assert_eq!(journal_mib(&image).unwrap(), Some(4));
        assert!(tune(&one, 4096, dir.path(), 4096).is_err());
    }
}
