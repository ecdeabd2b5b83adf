//! Calling the programs of e2fsprogs and reading what they print. Owns the search for them and the meaning of their
//! answers; never touches a part.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{MkfsError, MkfsOptions};
use crate::units::{BlockNo, BlockRange, coalesce};
use crate::volume::Volume;

/// Makes the file system in the scratch file.
pub fn mke2fs(
    scratch: &Path,
    volume: &Volume,
    options: &MkfsOptions,
    mib: u64,
) -> Result<(), MkfsError> {
    let mut extended = String::from("nodiscard");
    if let Some((uid, gid)) = options.root_owner {
        extended.push_str(&format!(",root_owner={uid}:{gid}"));
    }
    let mut command = tool("mke2fs")?;
    command.args(["-q", "-F", "-t", "ext4", "-E", &extended]);
    command.args(["-b", &volume.block_size().to_string()]);
    command.args(["-J", &format!("size={mib}")]);
    command.args(["-U", &uuid_text(options.uuid)]);
    if let Some(label) = &options.label {
        command.args(["-L", label]);
    }
    if let Some(features) = &options.features {
        command.args(["-O", features]);
    }
    command.arg(scratch).arg(volume.blocks_count().to_string());
    run("mke2fs", command).map(drop)
}

/// A UUID as it is written: 8-4-4-4-12 hexadecimal digits.
pub fn uuid_text(uuid: u128) -> String {
    let hex = format!("{uuid:032x}");
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

/// Where the journal (inode 8) is, as debugfs shows its extents.
pub fn journal_ranges(scratch: &Path) -> Result<Vec<BlockRange>, MkfsError> {
    let mut command = tool("debugfs")?;
    command.args(["-R", "ex <8>"]).arg(scratch);
    let text = run("debugfs", command)?;
    let ranges = coalesce(text.lines().filter_map(leaf_extent).collect());
    if ranges.is_empty() {
        return Err(MkfsError::Answer {
            tool: "debugfs",
            what: "the journal",
        });
    }
    Ok(ranges)
}

/// The physical range of a line such as ` 1/ 1   1/  4     0 - 32767   1050 - 33817  32768`; lines of inner nodes have
/// no second dash.
pub(super) fn leaf_extent(line: &str) -> Option<BlockRange> {
    let mut halves = line.split(" - ");
    let (_, middle, tail) = (halves.next()?, halves.next()?, halves.next()?);
    let start: u64 = middle.split_whitespace().nth(1)?.parse().ok()?;
    let end: u64 = tail.split_whitespace().next()?.parse().ok()?;
    (start > 0 && end >= start).then(|| BlockRange::new(BlockNo(start), end - start + 1))
}

/// Where the inode tables are, as dumpe2fs lists them.
pub fn table_ranges(scratch: &Path) -> Result<Vec<BlockRange>, MkfsError> {
    let mut command = tool("dumpe2fs")?;
    command.arg(scratch);
    let text = run("dumpe2fs", command)?;
    let ranges = coalesce(text.lines().filter_map(inode_table).collect());
    if ranges.is_empty() {
        return Err(MkfsError::Answer {
            tool: "dumpe2fs",
            what: "the inode tables",
        });
    }
    Ok(ranges)
}

/// The range of a line such as `  Inode table at 275-786 (+274)`.
pub(super) fn inode_table(line: &str) -> Option<BlockRange> {
    let rest = line.trim_start().strip_prefix("Inode table at ")?;
    let (start, end) = rest.split_whitespace().next()?.split_once('-')?;
    let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
    (end >= start).then(|| BlockRange::new(BlockNo(start), end - start + 1))
}

/// A command for a program of e2fsprogs, by its whole path: an ordinary user's PATH often lacks sbin.
pub(crate) fn tool(name: &'static str) -> Result<Command, MkfsError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = find_tool(name, &path).ok_or(MkfsError::ToolMissing { tool: name })?;
    let mut command = Command::new(found);
    command.env("LC_ALL", "C").stdin(Stdio::null());
    Ok(command)
}

/// Where distributions put it when PATH does not say.
const SBIN: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

pub(super) fn find_tool(name: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .chain(SBIN.iter().map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| {
            std::fs::metadata(file)
                .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
}

pub(super) fn run(tool: &'static str, mut command: Command) -> Result<String, MkfsError> {
    let failed = |message: String| MkfsError::Tool { tool, message };
    let out = command.output().map_err(|e| failed(e.to_string()))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        let message = match said.trim() {
            "" => out.status.to_string(),
            said => said.to_owned(),
        };
        return Err(failed(message));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
