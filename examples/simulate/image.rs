//! Fresh volumes for simulated worlds, the same in every process, and e2fsck.
//!
//! Owns the temporary files of the two programs. An image is made once for each shape; worlds get copies that share its
//! pages.

use std::collections::HashMap;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use lockstepfs::io::Disk;
use lockstepfs::io::sim::SimDisk;

use lockstepfs::volume::mkfs::default_buffer_bytes;

use super::script::VolumeShape;

type Made = Mutex<HashMap<(u32, u64, Vec<u64>), Vec<SimDisk>>>;

/// A file that goes away with this value.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lockstep-simulate-{}-{n}", std::process::id());
        Scratch(std::env::temp_dir().join(name))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn run(program: &str, args: &[&str], path: &Path) -> Output {
    Command::new(program)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        // The same bytes every time, whenever it runs.
        .env("E2FSPROGS_FAKE_TIME", "1767225600")
        .args(args)
        .arg(path)
        .output()
        .unwrap_or_else(|error| panic!("{program} (package e2fsprogs): {error}"))
}

/// The parts of a fresh volume.
pub fn fresh(shape: &VolumeShape) -> Vec<Arc<SimDisk>> {
    static MADE: OnceLock<Made> = OnceLock::new();
    let mut made = MADE
        .get_or_init(Made::default)
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let key = (shape.block_size, shape.buffer_mib, shape.parts.clone());
    let parts = made.entry(key).or_insert_with(|| make(shape));
    parts.iter().map(|part| Arc::new(part.snapshot())).collect()
}

fn make(shape: &VolumeShape) -> Vec<SimDisk> {
    let scratch = Scratch::new();
    let bytes: u64 = shape.parts.iter().sum();
    let file = std::fs::File::create(scratch.path()).expect("a temporary file can be made");
    file.set_len(bytes).expect("it can be sparse");
    let id = "5f3c1c5a-6a3b-4c3e-9a52-3d6f0a1b2c3d";
    let (block, journal) = (
        shape.block_size.to_string(),
        format!("size={}", shape.buffer_mib),
    );
    let extended = format!("hash_seed={id},lazy_itable_init=0,lazy_journal_init=0,nodiscard");
    let args = [
        "-q", "-F", "-t", "ext4", "-E", &extended, "-b", &block, "-J", &journal, "-U", id,
    ];
    let output = run("mke2fs", &args, scratch.path());
    assert!(
        output.status.success(),
        "mke2fs: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let whole = SimDisk::load(scratch.path()).expect("it was made a moment ago");
    let mut at = 0;
    let mut parts = Vec::new();
    for (n, len) in shape.parts.iter().enumerate() {
        let part = SimDisk::named(format!("part {n}"), *len);
        let mut page = [0; 4096];
        for offset in (0..*len).step_by(page.len()) {
            if whole.is_hole(at + offset, page.len() as u64) {
                continue;
            }
            whole.read_at(&mut page, at + offset).expect("no faults");
            part.write_at(&page, offset).expect("no faults");
        }
        part.flush().expect("no faults");
        parts.push(part);
        at += len;
    }
    parts
}

/// Parts behind one another, in a file that goes away.
fn joined(parts: &[&dyn Disk]) -> io::Result<Scratch> {
    let whole = Scratch::new();
    let mut file = std::fs::File::create(whole.path())?;
    for part in parts {
        let mut bytes = vec![0; 1 << 20];
        let mut at = 0;
        while at < part.len() {
            let n = bytes.len().min((part.len() - at) as usize);
            match part.is_hole(at, n as u64) {
                true => file.seek_relative(n as i64)?,
                false => {
                    part.read_at(&mut bytes[..n], at)?;
                    file.write_all(&bytes[..n])?;
                }
            }
            at += n as u64;
        }
    }
    let bytes = parts.iter().map(|part| part.len()).sum();
    file.set_len(bytes)?;
    Ok(whole)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What e2fsck has against parts as a power cut left them, once it has replayed their journal; none if nothing.
pub fn complaints(parts: &[SimDisk]) -> Option<String> {
    let parts: Vec<&dyn Disk> = parts.iter().map(|part| part as &dyn Disk).collect();
    let whole = joined(&parts).expect("room for an image");
    let replay = run("e2fsck", &["-fy", "-E", "journal_only"], whole.path());
    let check = run("e2fsck", &["-fn"], whole.path());
    match check.status.success() && replay.status.code().is_some_and(|code| code < 4) {
        true => None,
        false => Some(text(&replay) + &text(&check)),
    }
}

/// Has e2fsck repair parts, as the daemon does; what it says if it can not.
pub fn mend(parts: &[Arc<dyn Disk>], block_size: u32) -> io::Result<Option<String>> {
    let all: Vec<&dyn Disk> = parts.iter().map(|part| &**part).collect();
    let whole = joined(&all)?;
    let out = run("e2fsck", &["-f", "-y"], whole.path());
    let has_journal = text(&run("dumpe2fs", &["-h"], whole.path())).contains("has_journal");
    if !has_journal {
        let bytes = parts.iter().map(|part| part.len()).sum();
        let mib = default_buffer_bytes(bytes, block_size).div_ceil(1 << 20);
        run("tune2fs", &["-J", &format!("size={mib}")], whole.path());
    }
    let again = run("e2fsck", &["-f", "-n"], whole.path());
    let mut file = std::fs::File::open(whole.path())?;
    for part in parts {
        let (mut new, mut old) = (vec![0; 4096], vec![0; 4096]);
        for at in (0..part.len()).step_by(new.len()) {
            file.read_exact(&mut new)?;
            part.read_at(&mut old, at)?;
            if new != old {
                part.write_at(&new, at)?;
            }
        }
        part.flush()?;
    }
    Ok(match out.status.code() {
        Some(0..=3) => {
            let more = text(&again);
            assert!(again.status.success(), "e2fsck leaves damage: {more}");
            None
        }
        _ => Some(text(&out)),
    })
}
