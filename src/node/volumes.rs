//! What operators do with volumes: create, adopt, show, check, tune, delete.
//!
//! Owns the order of steps and their undoing. Invariants: a volume is in the catalogue only once its file system and
//! its facts are durable; what fails half-way leaves neither parts that it made nor an entry; a volume's parts are
//! open at most once.

use super::catalogue::{self, Part, Role};
use super::control::Answer;
use super::engine::Engine;
use super::history::NewEvent;
use super::host::Held;
use super::protocol::{Condition, Line, MirrorStatus, NewPart, VolumeStatus};
use super::refusal::{Code, Refusal, check_name};
use super::registry::{Host, Node};
use super::tools;
use crate::ext4::Superblock;
use crate::ext4::features::{self, Access};
use crate::io::Random;
use crate::io::file::SystemRandom;
use crate::volume::Volume;
use crate::volume::facts::{self, FactFile, FactStore, Facts};
use crate::volume::mkfs::{self, Buffer, MkfsError, MkfsOptions};
use crate::volume::parts::{Description, Expect, PartSpec, PartsError, open_parts};
use serde_json::{Value, json};
use states::State;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Block size unless given. mke2fs would choose 1 KiB below 512 MiB, and large files would suffer.
const BLOCK_SIZE: u32 = mkfs::DEFAULT_BLOCK_SIZE;

impl From<PartsError> for Refusal {
    fn from(error: PartsError) -> Refusal {
        let (code, remedy) = match &error {
            PartsError::Occupied { .. } => (
                Code::Exists,
                "lockstep volume adopt, if it holds the file system; or give another path",
            ),
            PartsError::NoRoom { .. } => (Code::Io, "make room, or give a smaller size"),
            PartsError::Open { source, .. } if source.is_not_found() => {
                (Code::NotFound, "give the path of a file or a block device")
            }
            PartsError::Open { .. } | PartsError::Io { .. } => (
                Code::Io,
                "see whether another program uses it: fuser -v PATH",
            ),
            _ => (Code::Invalid, "give the command again with a right value"),
        };
        Refusal::new(code, chain(&error), remedy)
    }
}

impl From<MkfsError> for Refusal {
    fn from(error: MkfsError) -> Refusal {
        let (code, remedy) = match &error {
            MkfsError::ToolMissing { .. } => (Code::Unsupported, "apt install e2fsprogs"),
            MkfsError::TooSmall { .. } => (Code::Invalid, "give larger parts"),
            MkfsError::Buffer { .. } => (Code::Invalid, "give another --buffer"),
            _ => (Code::Io, "mend the cause and give the command again"),
        };
        Refusal::new(code, chain(&error), remedy)
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Refuses a name or a part that is taken.
fn check_free(node: &Node, name: &str, parts: &[PathBuf]) -> Result<(), Refusal> {
    check_name("volume", name)?;
    let catalogue = node.catalogue.get();
    if catalogue.volumes.contains_key(name) {
        return Err(Refusal::new(
            Code::Exists,
            format!("there is a volume {name}"),
            format!("lockstep volume show {name}, or give another name"),
        ));
    }
    let mut seen = BTreeSet::new();
    for path in parts {
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        if !seen.insert(real.clone()) {
            return Err(Refusal::new(
                Code::Invalid,
                format!("{} is given twice", path.display()),
                "every part is another file or device",
            ));
        }
        for (other, entry) in &catalogue.volumes {
            let same = |p: &Part| std::fs::canonicalize(&p.path).is_ok_and(|q| q == real);
            if entry.parts.iter().any(same) {
                return Err(Refusal::new(
                    Code::Exists,
                    format!("{} is a part of the volume {other}", path.display()),
                    format!("lockstep volume show {other}"),
                ));
            }
        }
    }
    Ok(())
}

/// A random id that is not 0, which means none.
fn new_id() -> u128 {
    SystemRandom.u128().max(1)
}

fn fact_file(node: &Node, name: &str) -> Result<FactFile, Refusal> {
    let dir = node.state.create_volume(name);
    let dir = dir.map_err(|e| Refusal::io("no place for the volume's facts", e))?;
    Ok(FactFile::new(dir.join("facts")))
}

/// `volume create`
pub fn create(
    node: &Arc<Node>,
    name: &str,
    parts: Vec<NewPart>,
    block_size: Option<u32>,
    buffer: Option<u64>,
) -> Result<String, Refusal> {
    let paths: Vec<PathBuf> = parts.iter().map(|p| p.path.clone()).collect();
    check_free(node, name, &paths)?;
    let block_size = block_size.unwrap_or(BLOCK_SIZE);
    let specs: Vec<PartSpec> = parts
        .iter()
        .map(|p| PartSpec {
            path: p.path.clone(),
            len: Some(p.bytes),
        })
        .collect();
    let missing: Vec<&PathBuf> = paths.iter().filter(|p| !p.exists()).collect();
    let made = make(node, name, &specs, block_size, buffer);
    let facts = match made {
        Ok(facts) => facts,
        Err(refusal) => {
            // Only what was not there before goes away again.
            for path in missing {
                let _ = std::fs::remove_file(path);
            }
            let _ = std::fs::remove_dir_all(node.state.volume(name));
            return Err(refusal);
        }
    };
    let entry = catalogue::Volume {
        role: Role::Master,
        parts: parts
            .iter()
            .map(|p| Part {
                path: p.path.clone(),
                bytes: p.bytes,
                created: missing.contains(&&p.path) || is_file(&p.path),
            })
            .collect(),
        block_size,
        mount: None,
        mirrors: BTreeSet::new(),
    };
    enter(node, name, entry)?;
    let buffer = facts.1;
    node.record(
        NewEvent::volume("volume-created", name, format!("volume {name} created"))
            .with("buffer_size", buffer),
    );
    Ok(format!(
        "volume {name} created: {} bytes, of which {buffer} are its buffer",
        parts.iter().map(|p| p.bytes).sum::<u64>()
    ))
}

/// A regular file given to `volume create` was empty: it is lockstep's from then on.
fn is_file(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file())
}

fn make(
    node: &Node,
    name: &str,
    specs: &[PartSpec],
    block_size: u32,
    buffer: Option<u64>,
) -> Result<(Facts, u64), Refusal> {
    let disks = open_parts(specs, block_size, Expect::Fresh, None)?;
    let volume = Volume::new(disks, block_size).map_err(|e| Refusal::io("parts", chain(&e)))?;
    let id = new_id();
    let options = MkfsOptions {
        buffer: buffer.map_or(Buffer::Default, Buffer::Bytes),
        scratch: Some(node.state.path().to_owned()),
        ..MkfsOptions::new(id)
    };
    let made = mkfs::make(&volume, &options)?;
    let facts = Facts {
        description: Some(Description::of(&volume)),
        copy: facts::Copy::Complete,
        ..Facts::blank(id, name, facts::Role::Master)
    };
    let file = fact_file(node, name)?;
    file.save(&facts)
        .map_err(|e| Refusal::io("facts", chain(&e)))?;
    Ok((facts, made.buffer_bytes))
}

/// Puts a new volume into the catalogue and opens it.
fn enter(node: &Arc<Node>, name: &str, entry: catalogue::Volume) -> Result<(), Refusal> {
    node.change(|c| {
        c.volumes.insert(name.to_owned(), entry);
        Ok(())
    })?;
    let host = add(node, name)?;
    let mut held = host.hold("opening")?;
    held.open(node, &host)
}

/// A host for a volume of the catalogue, closed.
pub fn add(node: &Node, name: &str) -> Result<Arc<Host>, Refusal> {
    let catalogue = node.catalogue.get();
    let entry = catalogue.volumes.get(name);
    let entry = entry.ok_or_else(|| Refusal::no_volume(name))?;
    let view = VolumeStatus {
        name: name.to_owned(),
        role: match entry.role {
            Role::Master => "master".to_owned(),
            Role::Mirror { .. } => "mirror".to_owned(),
        },
        condition: Condition::Closed,
        read_only: true,
        mount_point: entry.mount.as_ref().map(|m| m.dir.clone()),
        size: entry.parts.iter().map(|p| p.bytes).sum(),
        block_size: entry.block_size,
        // Known from the start, so that a wait may begin before the volume is open.
        mirrors: match &entry.role {
            Role::Master => entry.mirrors.iter().map(|p| unlinked(p)).collect(),
            Role::Mirror { master } => vec![unlinked(master)],
        },
        ..VolumeStatus::default()
    };
    node.new_host(name, view, entry.mount.clone())
        .ok_or_else(|| {
            let message = format!("there is a volume {name}");
            Refusal::new(Code::Exists, message, "lockstep volume list")
        })
}

/// A mirror of which nothing is known yet.
pub fn unlinked(peer: &str) -> MirrorStatus {
    MirrorStatus {
        peer: peer.to_owned(),
        state: State::LinkDown.word().to_owned(),
        reason: "the volume is not open yet".to_owned(),
        ..MirrorStatus::default()
    }
}

/// `volume adopt`
pub fn adopt(
    node: &Arc<Node>,
    name: &str,
    paths: Vec<PathBuf>,
    buffer: Option<u64>,
) -> Result<String, Refusal> {
    check_free(node, name, &paths)?;
    let specs: Vec<PartSpec> = paths
        .iter()
        .map(|path| PartSpec {
            path: path.clone(),
            len: None,
        })
        .collect();
    let (superblock, description, warnings) = inspect(&specs)?;
    if let Some(bytes) = buffer {
        tools::tune(&paths, superblock.block_size(), node.state.path(), bytes)?;
    }
    let facts = Facts {
        description: Some(description.clone()),
        copy: facts::Copy::Complete,
        ..Facts::blank(new_id(), name, facts::Role::Master)
    };
    fact_file(node, name)?
        .save(&facts)
        .map_err(|e| Refusal::io("facts", chain(&e)))?;
    let parts = paths.iter().zip(&description.parts);
    let entry = catalogue::Volume {
        role: Role::Master,
        parts: parts
            .map(|(path, bytes)| Part {
                path: path.clone(),
                bytes: *bytes,
                created: false,
            })
            .collect(),
        block_size: description.block_size,
        mount: None,
        mirrors: BTreeSet::new(),
    };
    enter(node, name, entry)?;
    let mut sentence = format!("volume {name} adopted; its file system is as it was");
    for warning in warnings {
        sentence.push_str("\nwarning: ");
        sentence.push_str(&warning);
    }
    node.record(NewEvent::volume("volume-adopted", name, &sentence));
    Ok(sentence)
}

/// Reads the superblock of parts that hold something; nothing is written.
fn inspect(specs: &[PartSpec]) -> Result<(Superblock, Description, Vec<String>), Refusal> {
    let unusable = |message: String, remedy: &str| Refusal::new(Code::Unusable, message, remedy);
    // The smallest block fits every volume; the superblock says which it is.
    let disks = open_parts(specs, 1024, Expect::ReadOnly, None)?;
    let mut bytes = [0; 1024];
    let first = &disks[0];
    first
        .read_at(&mut bytes, 1024)
        .map_err(|e| Refusal::io(first.name(), e))?;
    let not_ext4 = "make one with mke2fs, or create the volume: lockstep volume create";
    let superblock =
        Superblock::decode(&bytes).map_err(|e| unusable(format!("no ext4 here: {e}"), not_ext4))?;
    superblock.verify().map_err(|e| {
        let remedy = "repair it: e2fsck -f PATH";
        unusable(format!("the superblock is damaged: {e}"), remedy)
    })?;
    let block_size = superblock.block_size();
    let volume = Volume::new(disks, block_size).map_err(|e| {
        let remedy = "give every part, in order";
        unusable(chain(&e), remedy)
    })?;
    if superblock.s_blocks_count() > volume.blocks_count() {
        let message = format!(
            "the file system has {} blocks, the parts together {}",
            superblock.s_blocks_count(),
            volume.blocks_count()
        );
        return Err(unusable(message, "give every part, in order"));
    }
    let warnings = match features::access(&superblock) {
        Access::ReadWrite => Vec::new(),
        Access::ReadOnly(why) => vec![format!(
            "it can only be read, because of the feature {}",
            why.join(", ")
        )],
        Access::Refused(why) => {
            let message = format!("this ext4 can not be used: {}", why.join("; "));
            return Err(unusable(message, "turn the feature off with tune2fs"));
        }
    };
    Ok((superblock, Description::of(&volume), warnings))
}

/// `volume show`
pub fn show(node: &Node, name: &str) -> Result<Value, Refusal> {
    let host = node.host(name)?;
    let mut shown = serde_json::to_value(host.view()).expect("maps with string keys");
    if let Some(fs) = host.mounts.engine() {
        let counts = fs.volume().counts();
        let requests: serde_json::Map<String, Value> = host
            .mounts
            .requests()
            .into_iter()
            .map(|(kind, count)| (kind.to_owned(), json!(count)))
            .collect();
        shown["counters"] = json!({
            "requests": requests.values().filter_map(Value::as_u64).sum::<u64>(),
            "requests_by_kind": requests,
            "reads": counts.reads,
            "bytes_read": counts.read_bytes,
            "writes": counts.writes,
            "bytes_written": counts.written_bytes,
            "flushes": counts.flushes,
        });
    }
    let catalogue = node.catalogue.get();
    if let Some(entry) = catalogue.volumes.get(name) {
        shown["parts"] = entry
            .parts
            .iter()
            .map(|p| json!({"path": p.path, "bytes": p.bytes}))
            .collect();
        if let Role::Mirror { master } = &entry.role {
            shown["master"] = json!(master);
        }
    }
    let facts = FactFile::new(node.state.volume(name).join("facts")).load();
    match facts {
        Ok(facts) => {
            shown["volume_id"] = json!(format!("{:032x}", facts.volume_id));
            shown["generations"] = facts
                .generations
                .iter()
                .map(|l| {
                    json!({
                        "generation": l.generation.to_string(),
                        "fork": l.fork.0,
                    })
                })
                .collect();
            shown["tainted"] = json!(facts.tainted);
        }
        Err(e) => shown["facts"] = json!(chain(&e)),
    }
    Ok(shown)
}

/// Takes the operator lock of a volume that is not mounted.
fn hold_unmounted<'a>(
    node: &Node,
    host: &'a Host,
    what: &'static str,
) -> Result<Held<'a, Engine>, Refusal> {
    let name = host.name();
    let mounted = node
        .catalogue
        .get()
        .volumes
        .get(name)
        .is_some_and(|v| v.mount.is_some());
    let held = host.hold(what)?;
    if mounted || host.mounts.wanted().is_some() {
        return Err(Refusal::new(
            Code::NotAllowed,
            format!("volume {name} is mounted"),
            format!("lockstep umount {name}, then give the command again"),
        ));
    }
    Ok(held)
}

fn entry(node: &Node, name: &str) -> Result<catalogue::Volume, Refusal> {
    let catalogue = node.catalogue.get();
    let entry = catalogue.volumes.get(name).cloned();
    entry.ok_or_else(|| Refusal::no_volume(name))
}

/// `volume check`
pub fn check(node: &Arc<Node>, name: &str, answer: &Answer) -> Result<String, Refusal> {
    let host = node.host(name)?;
    let mut held = hold_unmounted(node, &host, "checking")?;
    let entry = entry(node, name)?;
    let was_open = held.is_open();
    held.close(node, &host, Duration::ZERO)?;
    answer.send(Line::Note(format!("volume {name} is closed for the check")));
    let checked = both_checks(node, name, &entry, answer);
    if was_open {
        held.open(node, &host)?;
    }
    checked
}

/// Our own check, which reads through the journal, then e2fsck's, over parts that nobody has open.
fn both_checks(
    node: &Node,
    name: &str,
    entry: &catalogue::Volume,
    answer: &Answer,
) -> Result<String, Refusal> {
    let note = |line: &str| {
        answer.send(Line::Note(line.to_owned()));
    };
    let paths: Vec<PathBuf> = entry.parts.iter().map(|p| p.path.clone()).collect();
    let own = {
        let specs: Vec<PartSpec> = (entry.parts.iter())
            .map(|part| PartSpec {
                path: part.path.clone(),
                len: Some(part.bytes),
            })
            .collect();
        let disks = open_parts(&specs, entry.block_size, Expect::ReadOnly, None)?;
        let volume = Volume::new(disks, entry.block_size)
            .map_err(|e| Refusal::io("opening the parts", chain(&e)))?;
        tools::own_check(&Arc::new(volume), note)
    };
    let other = tools::e2fsck(&paths, node.state.path(), note)?;
    tools::judge(name, own, other)
}

/// `volume tune`
pub fn tune(node: &Arc<Node>, name: &str, buffer: u64) -> Result<String, Refusal> {
    let host = node.host(name)?;
    let entry = entry(node, name)?;
    if let Role::Mirror { master } = &entry.role {
        return Err(Refusal::new(
            Code::NotAllowed,
            format!("volume {name} is a mirror; its buffer is that of its master"),
            format!("give the command on {master}"),
        ));
    }
    if let Some(peer) = entry.mirrors.first() {
        return Err(Refusal::new(
            Code::NotAllowed,
            format!("volume {name} has a mirror on {peer}, which needs the buffer as it is"),
            format!(
                "lockstep mirror delete {name} {peer}; tune; create it again: what differs is copied"
            ),
        ));
    }
    let mut held = hold_unmounted(node, &host, "tuning")?;
    held.close(node, &host, Duration::ZERO)?;
    let paths: Vec<PathBuf> = entry.parts.iter().map(|p| p.path.clone()).collect();
    let tuned = tools::tune(&paths, entry.block_size, node.state.path(), buffer);
    let opened = held.open(node, &host);
    tuned?;
    opened?;
    let size = host.view().buffer_size;
    node.record(
        NewEvent::volume("volume-tuned", name, format!("the buffer has {size} bytes"))
            .with("buffer_size", size),
    );
    Ok(format!("volume {name}: the buffer has {size} bytes"))
}

/// `volume delete`
pub fn delete(node: &Arc<Node>, name: &str, keep_parts: bool) -> Result<String, Refusal> {
    let host = node.host(name)?;
    let entry = entry(node, name)?;
    if let Some(peer) = entry.mirrors.first() {
        return Err(Refusal::new(
            Code::NotAllowed,
            format!("volume {name} has a mirror on {peer}"),
            format!("lockstep mirror delete {name} {peer}"),
        ));
    }
    let mut held = hold_unmounted(node, &host, "deleting")?;
    held.close(node, &host, Duration::ZERO)?;
    node.change(|c| {
        c.volumes.remove(name);
        Ok(())
    })?;
    node.remove_host(name);
    let mut deleted = Vec::new();
    let mut kept = Vec::new();
    for part in &entry.parts {
        let path = part.path.display().to_string();
        if keep_parts || !part.created {
            kept.push(path);
            continue;
        }
        match std::fs::remove_file(&part.path) {
            Ok(()) => deleted.push(path),
            Err(e) => kept.push(format!("{path} ({e})")),
        }
    }
    if let (Role::Mirror { .. }, Some(store)) = (&entry.role, &node.config.store) {
        // Only when nothing of anybody's is in it.
        let _ = std::fs::remove_dir(store.join(name));
    }
    if let Err(e) = std::fs::remove_dir_all(node.state.volume(name)) {
        tracing::warn!("{}: {e}", node.state.volume(name).display());
    }
    let mut sentence = format!("volume {name} deleted");
    for (what, list) in [("parts deleted", deleted), ("parts kept", kept)] {
        if !list.is_empty() {
            sentence.push_str(&format!("; {what}: {}", list.join(", ")));
        }
    }
    node.record(NewEvent::volume("volume-deleted", name, &sentence));
    Ok(sentence)
}
