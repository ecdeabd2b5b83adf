//! Where facts are kept: a file, or memory in a simulation. Owns the text form and its checks.
//!
//! A fact file has a second one beside it, as long as itself, which the next save fills in place and puts in its stead: a
//! volume is served on while the disk of the state directory is full.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use super::Facts;
use crate::io::file::sync_parent;

/// The version of the text form; another one is refused.
const VERSION: u32 = 1;

/// The first word of the file.
const MAGIC: &str = "lockstep-facts";

/// Bytes of JSON beyond which a length is taken for damage; facts of a hundred mirrors take about 30 KiB.
const MAX_LEN: usize = 16 << 20;

/// The steps in which a fact file grows: the space of the one before does for the next.
const STEP: usize = 16 << 10;

/// Room for the first line within a step.
const HEADER: usize = 128;

/// Why facts could not be read or kept.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FactsError {
    /// There are none: never saved, or the file is lost.
    #[error("there is no fact file at {place}")]
    Missing {
        /// Where they should be.
        place: String,
    },
    /// Corrupt: the header line is not one that was ever written.
    #[error("the fact file {place} is damaged: its first line is {found:?}")]
    Header {
        /// Where they are.
        place: String,
        /// The line, shortened.
        found: String,
    },
    /// Unsupported: written by another version of the program.
    #[error("the fact file {place} has version {found}; this program knows {VERSION}")]
    Version {
        /// Where they are.
        place: String,
        /// The version.
        found: u32,
    },
    /// Corrupt: cut short, or something was added.
    #[error(
        "the fact file {place} is damaged: {found} bytes follow its first line, not {expected}"
    )]
    Length {
        /// Where they are.
        place: String,
        /// Bytes that the header announces.
        expected: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// Corrupt: the bytes are not those that were written.
    #[error("the fact file {place} is damaged: its checksum is {found:016x}, not {expected:016x}")]
    Checksum {
        /// Where they are.
        place: String,
        /// The checksum in the header.
        expected: u64,
        /// The checksum of what is there.
        found: u64,
    },
    /// Corrupt: whole, but not facts.
    #[error("the fact file {place} can not be understood")]
    Content {
        /// Where they are.
        place: String,
        /// What is wrong.
        source: Arc<serde_json::Error>,
    },
    /// The system refused.
    #[error("cannot {action} the fact file {place}")]
    Io {
        /// Where they are.
        place: String,
        /// What was being done.
        action: &'static str,
        /// The system's error.
        source: Arc<io::Error>,
    },
}

impl FactsError {
    /// Whether the facts are there but were damaged.
    pub fn is_corrupt(&self) -> bool {
        matches!(
            self,
            FactsError::Header { .. }
                | FactsError::Length { .. }
                | FactsError::Checksum { .. }
                | FactsError::Content { .. }
        )
    }
}

/// A place for the facts of one volume. Saving is atomic and durable on return.
pub trait FactStore: Send + Sync + std::fmt::Debug {
    /// The facts last saved.
    fn load(&self) -> Result<Facts, FactsError>;
    /// Replaces the facts. After an error the old or the new ones are kept.
    fn save(&self, facts: &Facts) -> Result<(), FactsError>;
}

/// The text form, with spaces at its end up to a whole step.
fn encode(serial: u64, facts: &Facts, place: &str) -> Result<Vec<u8>, FactsError> {
    let mut json = serde_json::to_vec_pretty(facts).map_err(|e| FactsError::Content {
        place: place.to_owned(),
        source: Arc::new(e),
    })?;
    let len = (HEADER + json.len() + 1).next_multiple_of(STEP) - HEADER;
    json.resize(len - 1, b' ');
    json.push(b'\n');
    let mut text = header(serial, &json).into_bytes();
    text.extend_from_slice(&json);
    Ok(text)
}

fn checksum(serial: u64, json: &[u8]) -> u64 {
    let mut covered = format!("{MAGIC} {VERSION} {serial} {}\n", json.len()).into_bytes();
    covered.extend_from_slice(json);
    xxh3_64(&covered)
}

fn header(serial: u64, json: &[u8]) -> String {
    let sum = checksum(serial, json);
    format!("{MAGIC} {VERSION} {serial} {sum:016x} {}\n", json.len())
}

/// The facts and their serial number.
fn decode(text: &[u8], place: &str) -> Result<(u64, Facts), FactsError> {
    let place = place.to_owned();
    let end = text.iter().take(128).position(|b| *b == b'\n');
    let line = &text[..end.unwrap_or(text.len().min(128))];
    let bad = || FactsError::Header {
        place: place.clone(),
        found: String::from_utf8_lossy(line).into_owned(),
    };
    let (Some(end), Ok(line)) = (end, std::str::from_utf8(line)) else {
        return Err(bad());
    };
    let fields: Vec<&str> = line.split(' ').collect();
    let [MAGIC, version, rest @ ..] = fields.as_slice() else {
        return Err(bad());
    };
    let found: u32 = version.parse().map_err(|_| bad())?;
    let [serial, sum, len] = rest else {
        return Err(bad());
    };
    let serial: u64 = serial.parse().map_err(|_| bad())?;
    let expected_sum = u64::from_str_radix(sum, 16).map_err(|_| bad())?;
    let expected: usize = len.parse().map_err(|_| bad())?;
    if found != VERSION {
        return Err(FactsError::Version { place, found });
    }
    // Only the one spelling that is written: a changed letter case or a leading zero is damage, too.
    if line != format!("{MAGIC} {found} {serial} {expected_sum:016x} {expected}")
        || expected > MAX_LEN
    {
        return Err(bad());
    }
    let json = &text[end + 1..];
    if json.len() != expected {
        return Err(FactsError::Length {
            place,
            expected,
            found: json.len(),
        });
    }
    let found_sum = checksum(serial, json);
    if found_sum != expected_sum {
        return Err(FactsError::Checksum {
            place,
            expected: expected_sum,
            found: found_sum,
        });
    }
    match serde_json::from_slice(json) {
        Ok(facts) => Ok((serial, facts)),
        Err(e) => Err(FactsError::Content {
            place,
            source: Arc::new(e),
        }),
    }
}

/// The facts in a file.
#[derive(Debug)]
pub struct FactFile {
    path: PathBuf,
    /// The serial number last read or written; `None` until the file was looked at. Held across a save, so that two
    /// savers do not write one temporary file.
    serial: Mutex<Option<u64>>,
}

/// The instants of a save between which a crash may fall; for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SaveStep {
    Created,
    Written,
    Flushed,
    Renamed,
}

impl FactFile {
    /// The fact file at `path`; nothing is read or made yet.
    pub fn new(path: impl Into<PathBuf>) -> FactFile {
        FactFile {
            path: path.into(),
            serial: Mutex::new(None),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of saves so far, from the file or from the last save.
    pub fn serial(&self) -> Option<u64> {
        *self.serial.lock()
    }

    /// Removes the file, durably; for a volume that is given up.
    pub fn remove(&self) -> Result<(), FactsError> {
        let mut serial = self.serial.lock();
        for path in [self.temporary(), self.path.clone()] {
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(self.failed("remove")(e));
                }
                _ => {}
            }
        }
        *serial = None;
        sync_parent(&self.path).map_err(self.failed("flush the directory of"))
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> FactsError + '_ {
        move |e| FactsError::Io {
            place: self.place(),
            action,
            source: Arc::new(e),
        }
    }

    fn temporary(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        name.into()
    }

    fn read(&self) -> Result<(u64, Facts), FactsError> {
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(FactsError::Missing {
                    place: self.place(),
                });
            }
            Err(e) => return Err(self.failed("read")(e)),
        };
        decode(&text, &self.place())
    }

    /// Saves; `at` is called at each step, and its error stops there as a crash would.
    pub(super) fn save_with(
        &self,
        facts: &Facts,
        at: &mut dyn FnMut(SaveStep) -> io::Result<()>,
    ) -> Result<(), FactsError> {
        let mut serial = self.serial.lock();
        let last = match *serial {
            Some(serial) => serial,
            // A damaged file is replaced: whoever saves has decided what holds.
            None => self.read().map_or(0, |(serial, _)| serial),
        };
        let next = last.wrapping_add(1);
        let text = encode(next, facts, &self.place())?;
        let temporary = self.temporary();
        // Not truncated: what it has of the disk is what it will need.
        let mut file: File = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&temporary)
            .map_err(self.failed("make a new copy of"))?;
        at(SaveStep::Created).map_err(self.failed("write"))?;
        file.write_all(&text).map_err(self.failed("write"))?;
        let len = text.len() as u64;
        file.set_len(len).map_err(self.failed("write"))?;
        at(SaveStep::Written).map_err(self.failed("write"))?;
        // Before the rename, or a power cut may leave the new name with no contents.
        file.sync_all().map_err(self.failed("flush"))?;
        at(SaveStep::Flushed).map_err(self.failed("write"))?;
        exchange(&temporary, &self.path).map_err(self.failed("replace"))?;
        at(SaveStep::Renamed).map_err(self.failed("write"))?;
        *serial = Some(next);
        sync_parent(&self.path).map_err(self.failed("flush the directory of"))
    }
}

/// Gives `new` the name `path`; what had that name is `new` from then on, where the file system can do so.
fn exchange(new: &Path, path: &Path) -> io::Result<()> {
    let flags = RenameFlags::EXCHANGE;
    match renameat_with(CWD, new, CWD, path, flags) {
        // There was none; or a file system that only replaces.
        Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            std::fs::rename(new, path)
        }
        exchanged => Ok(exchanged?),
    }
}

impl FactStore for FactFile {
    fn load(&self) -> Result<Facts, FactsError> {
        let mut serial = self.serial.lock();
        let (found, facts) = self.read()?;
        *serial = Some(found);
        Ok(facts)
    }

    fn save(&self, facts: &Facts) -> Result<(), FactsError> {
        self.save_with(facts, &mut |_| Ok(()))
    }
}

/// Facts in memory, for simulated nodes: kept by whoever holds it, so a node that "crashes" finds them again. Holds
/// the text form, so that what does not survive it does not survive here.
#[derive(Debug, Default)]
pub struct MemoryFacts {
    text: Mutex<Option<Vec<u8>>>,
    /// Saves that still succeed, once they are to fail.
    left: Mutex<Option<u32>>,
}

impl MemoryFacts {
    /// No facts yet.
    pub fn new() -> MemoryFacts {
        MemoryFacts::default()
    }

    /// From now on saving fails (true) or works again (false).
    pub fn fail_saves(&self, failing: bool) {
        *self.left.lock() = failing.then_some(0);
    }

    /// This many more saves succeed, then all fail.
    pub fn fail_saves_after(&self, saves: u32) {
        *self.left.lock() = Some(saves);
    }

    /// Loses the facts, as when the state directory is lost.
    pub fn lose(&self) {
        *self.text.lock() = None;
    }
}

/// What errors call it.
const MEMORY: &str = "memory";

impl FactStore for MemoryFacts {
    fn load(&self) -> Result<Facts, FactsError> {
        match &*self.text.lock() {
            Some(text) => Ok(decode(text, MEMORY)?.1),
            None => Err(FactsError::Missing {
                place: MEMORY.into(),
            }),
        }
    }

    fn save(&self, facts: &Facts) -> Result<(), FactsError> {
        let mut left = self.left.lock();
        if *left == Some(0) {
            return Err(FactsError::Io {
                place: MEMORY.into(),
                action: "write",
                source: Arc::new(io::Error::other("simulated: saving failed")),
            });
        }
        *left = left.map(|left| left - 1);
        *self.text.lock() = Some(encode(1, facts, MEMORY)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
