//! Checks of a closed volume, our own and e2fsck's, and tune2fs to change its journal.
//!
//! Owns the calls of e2fsprogs and the scratch file by which they see several parts as one device. Never runs on a volume that is
//! open: the caller has closed it. Programs are called by an absolute path where PATH lacks sbin.

use super::refusal::{Code, Refusal};
use crate::fs::check;
use crate::volume::Volume;
use crate::volume::mkfs::tools::tool;
use crate::volume::mkfs::{MAX_BUFFER_BLOCKS, MIN_BUFFER_BLOCKS, default_buffer_bytes};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes compared or copied at once.
const CHUNK: usize = 1 << 20;
/// How long e2fsck may take, whatever the volume's size.
const DEADLINE: Duration = Duration::from_secs(600);
/// And a second more for each 2^this bytes.
const SECOND_SHIFT: u32 = 26;
/// How often it is asked whether it has ended.
const POLL: Duration = Duration::from_millis(20);

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

/// Lets a program end by itself until the deadline, then ends it by its id. `None`: it was ended.
fn wait(child: &mut Child, deadline: Duration) -> io::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begun.elapsed() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// A file for what a program prints; it goes away.
struct Printed(PathBuf);

impl Drop for Printed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What a check says of a volume, beside its lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong.
    Clean,
    /// So many things are wrong, or some that were not counted.
    Damaged(Option<u64>),
    /// It could not look at everything.
    Incomplete,
}

/// Our own check, over parts that nobody has open: through the journal, without writing. Findings go to `note`.
pub fn own_check(volume: &Arc<Volume>, note: impl Fn(&str)) -> Verdict {
    let report = check::volume(volume, &check::Options::default());
    for finding in &report.findings {
        note(&format!("own check: {finding}"));
    }
    let found = report.findings.len() as u64 + report.left_off;
    if report.left_off > 0 {
        note(&format!("own check: and {} more", report.left_off));
    }
    if found > 0 {
        return Verdict::Damaged(Some(found));
    }
    if let Some(why) = &report.unchecked {
        note(&format!("own check: not everything can be checked: {why}"));
        return Verdict::Incomplete;
    }
    note(&format!(
        "own check: clean; {} inodes, {} of them directories, and {} blocks in use",
        report.inodes, report.directories, report.blocks
    ));
    Verdict::Clean
}

/// e2fsck -fn over the parts. Its lines go to `note`.
pub fn e2fsck(parts: &[PathBuf], scratch: &Path, note: impl Fn(&str)) -> Result<Verdict, Refusal> {
    let joined = join(parts, scratch).map_err(|e| Refusal::io("reading the parts", e))?;
    let failed = |e: io::Error| Refusal::io("e2fsck", e);
    let bytes = File::open(&joined.path).and_then(|mut file| len(&mut file));
    let deadline = DEADLINE + Duration::from_secs(bytes.map_err(failed)? >> SECOND_SHIFT);
    let printed = Printed(scratch.join(format!("e2fsck.{}", std::process::id())));
    let out = File::create(&printed.0).map_err(failed)?;
    let mut command: Command = tool("e2fsck").map_err(|_| missing("e2fsck"))?;
    command.args(["-f", "-n"]).arg(&joined.path);
    command.stdin(Stdio::null());
    command.stdout(out.try_clone().map_err(failed)?).stderr(out);
    let mut child = command.spawn().map_err(failed)?;
    let status = wait(&mut child, deadline).map_err(failed)?;
    let said = std::fs::read(&printed.0).map_err(failed)?;
    let said = String::from_utf8_lossy(&said);
    for line in said.lines().filter(|line| !line.starts_with("e2fsck 1.")) {
        note(&format!("e2fsck: {line}"));
    }
    let Some(status) = status else {
        note(&format!(
            "e2fsck: ended after {} seconds without an answer",
            deadline.as_secs()
        ));
        return Ok(Verdict::Incomplete);
    };
    if said.contains("skipping journal recovery") {
        note(
            "e2fsck: it did not look through the journal, so it says nothing of the volume after replay",
        );
        return Ok(Verdict::Incomplete);
    }
    Ok(match status.success() {
        true => Verdict::Clean,
        false => Verdict::Damaged(None),
    })
}

/// e2fsck -fn after something was changed; damage is a refusal of the code `Differ`.
fn verify(parts: &[PathBuf], scratch: &Path) -> Result<(), Refusal> {
    match e2fsck(parts, scratch, |_| {})? {
        Verdict::Damaged(_) => Err(damaged("e2fsck found damage".into())),
        _ => Ok(()),
    }
}

/// The refusal that says that a volume is damaged.
fn damaged(message: String) -> Refusal {
    Refusal::new(
        Code::Differ,
        message,
        "repair the parts with e2fsck -f while the daemon is stopped, or take the copy of a mirror",
    )
}

/// Both checks together: the sentence for a sound volume, or a refusal.
pub fn judge(name: &str, own: Verdict, other: Verdict) -> Result<String, Refusal> {
    let own_says = match own {
        Verdict::Damaged(n) => Some(format!(
            "lockstep's own check found {} problems",
            n.unwrap_or(0)
        )),
        _ => None,
    };
    let e2fsck_says =
        matches!(other, Verdict::Damaged(_)).then(|| "e2fsck found damage".to_owned());
    let said: Vec<String> = own_says.into_iter().chain(e2fsck_says).collect();
    if !said.is_empty() {
        return Err(damaged(format!("volume {name}: {}", said.join(", "))));
    }
    match (own, other) {
        (Verdict::Clean, Verdict::Clean) => Ok(format!("volume {name} is clean")),
        (Verdict::Clean, _) => Ok(format!(
            "volume {name} is clean by lockstep's own check; e2fsck did not finish"
        )),
        (_, Verdict::Clean) => Ok(format!(
            "volume {name} is clean by e2fsck; lockstep's own check does not know all its features"
        )),
        _ => Err(Refusal::new(
            Code::Unsupported,
            format!("volume {name} could not be checked"),
            "stop the daemon and run e2fsck -f on the parts",
        )),
    }
}

/// e2fsck -fy over the parts: whatever is there becomes a file system, if it can.
///
/// e2fsck takes away a journal that it can not read, and does not always make another: then it gets one of the default size.
pub fn repair(parts: &[PathBuf], block_size: u32, scratch: &Path) -> Result<(), Refusal> {
    let joined = join(parts, scratch).map_err(|e| Refusal::io("reading the parts", e))?;
    let out = run("e2fsck", &["-f", "-y"], &joined.path)?;
    // 1: errors were corrected; 2: and the machine should be restarted, if it were its root.
    let mended = matches!(out.status.code(), Some(0..=3));
    if mended && journal_mib(&joined.path)?.is_none() {
        let bytes = File::open(&joined.path).and_then(|mut file| len(&mut file));
        let bytes = bytes.map_err(|e| Refusal::io("reading the parts", e))?;
        let size = default_buffer_bytes(bytes, block_size).div_ceil(1 << 20);
        tune2fs(&["-J", &format!("size={size}")], &joined.path)?;
    }
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
        made = verify(std::slice::from_ref(&joined.path), scratch);
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
        verify(&parts, dir.path()).unwrap();
        // The root directory's inode, in whichever part it is: group 0's inode table follows the bitmaps.
        let file = OpenOptions::new().write(true).open(&parts[0]).unwrap();
        file.write_all_at(&[0xff; 4096], 4096).unwrap();
        let refused = verify(&parts, dir.path()).unwrap_err();
        assert_eq!(refused.code, Code::Differ);
    }

    #[test]
    fn a_program_that_hangs_is_ended_at_the_deadline() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let ended = wait(&mut child, Duration::from_millis(50)).unwrap();
        assert_eq!(ended, None);
        assert!(child.try_wait().unwrap().is_some(), "it was waited for");
        let mut child = Command::new("true").spawn().unwrap();
        let ended = wait(&mut child, Duration::from_secs(60)).unwrap();
        assert!(ended.is_some_and(|status| status.success()));
    }

    #[test]
    fn either_check_can_condemn_a_volume() {
        let (clean, bad) = (Verdict::Clean, Verdict::Damaged(Some(3)));
        assert_eq!(judge("v", clean, clean).unwrap(), "volume v is clean");
        for (own, other) in [(bad, clean), (clean, bad), (bad, Verdict::Incomplete)] {
            assert_eq!(judge("v", own, other).unwrap_err().code, Code::Differ);
        }
        assert!(judge("v", clean, Verdict::Incomplete).is_ok());
        assert!(judge("v", Verdict::Incomplete, Verdict::Incomplete).is_err());
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
            verify(&parts, dir.path()).unwrap();
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
