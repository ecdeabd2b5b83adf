//! `verify`: comparing a volume with its mirrors, saying whose the differing blocks are, and repairing one copy from the
//! other; at an operator's wish, or by the schedule of `lockstep.toml`.
//!
//! Owns what is said of a verdict. Never holds a volume's lock while copies are compared. Invariant: a master's block is
//! replaced only while it still holds what was compared.

use super::control::Answer;
use super::driver::{Remote, Verifying};
use super::engine::Engine;
use super::history::{Moment, NewEvent};
use super::mirrors::{not_open, only_on_master};
use super::protocol::{Line, Repair};
use super::refusal::{Code, Refusal};
use super::registry::Node;
use super::volumes::chain;
use crate::fs::owners::{Owned, Owner, owners};
use crate::fs::{Fs, Restored};
use crate::journal::Hint;
use crate::mirror::hashing::Verdict;
use crate::mirror::rate::Rate;
use crate::units::{BlockNo, BlockRange};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// Runs of differing blocks that are told apart by whose they are.
const NAMED: usize = 64;
/// Bytes that are fetched at once for a repair of the master's copy.
const FETCH_BYTES: u64 = 1 << 20;
/// Blocks of a master's copy that one repair replaces at most: beyond it, the copy as a whole is not to be trusted.
const MAX_RESTORED: u64 = 1 << 18;
/// How often a comparison says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(2);
/// How long the schedule waits before it tries a mirror again that could not be compared.
const TRY_AGAIN: Duration = Duration::from_secs(600);

/// A mirror that can be compared.
struct Compared {
    peer: String,
    driver: Remote,
    fs: Arc<Fs>,
}

/// The mirrors of a volume of which this node is the master; all, or that on `peer`.
fn mirrors(node: &Node, name: &str, peer: Option<&str>) -> Result<Vec<Compared>, Refusal> {
    let host = node.host(name)?;
    let mut held = host.hold("looking for mirrors")?;
    let master = match &mut *held {
        Engine::Master(master) => master,
        Engine::Mirror(_) => return Err(only_on_master(&host, name)),
        Engine::Closed | Engine::ReadOnly(_) => return Err(not_open(&host, name)),
    };
    let peers = match peer {
        Some(peer) => vec![peer.to_owned()],
        None => master.peers(),
    };
    let fs = master.fs();
    let driven = peers.into_iter().map(|peer| match master.driver(&peer) {
        Some(driver) => Ok(Compared {
            peer,
            driver,
            fs: Arc::clone(&fs),
        }),
        None => Err(Refusal::no_mirror(name, &peer)),
    });
    driven.collect()
}

/// `verify`
pub fn verify(
    node: &Arc<Node>,
    name: &str,
    peer: Option<&str>,
    repair: Option<Repair>,
    rate: Option<u64>,
    answer: &Answer,
) -> Result<String, Refusal> {
    let all = mirrors(node, name, peer)?;
    if all.is_empty() {
        return Err(Refusal::new(
            Code::NotFound,
            format!("volume {name} has no mirror"),
            format!("lockstep mirror create {name} PEER"),
        ));
    }
    if repair == Some(Repair::Master) && peer.is_none() {
        return Err(Refusal::new(
            Code::Invalid,
            "the master's copy is repaired from one mirror, which has to be named",
            format!("lockstep verify {name} PEER --repair=master"),
        ));
    }
    let mut differ = false;
    for one in all {
        let mut said = Instant::now();
        let blocks = one.fs.volume().blocks_count().max(1);
        let verdict = compare(name, &one, Rate::new(rate), |block| {
            if said.elapsed() >= SAY_EVERY && block < blocks {
                said = Instant::now();
                let percent = block * 100 / blocks;
                answer.send(Line::Note(format!("{}: {percent} % compared", one.peer)));
            }
            !answer.is_gone()
        })?;
        let Some(verdict) = verdict else {
            return Ok(String::new());
        };
        let owned = whose(&one.fs, &verdict);
        let text = told(node, name, &one, &verdict, &owned);
        answer.send(Line::Item(text.into()));
        if verdict.differing.is_empty() {
            continue;
        }
        match repair {
            None => differ = true,
            Some(Repair::Mirror) => {
                one.driver.repair(verdict.differing.clone())?;
                let blocks = count(&verdict.differing);
                let done = format!("{name} {}: {blocks} blocks are sent again", one.peer);
                let event = NewEvent::mirror("repaired", name, &one.peer, &done);
                node.record(event.with("blocks", blocks).with("copy", "mirror"));
                let next = format!("{done}; lockstep wait {name} {} INSYNC", one.peer);
                answer.send(Line::Item(next.into()));
            }
            Some(Repair::Master) => {
                let (done, left) = restore(node, name, &one, &owned)?;
                differ |= left;
                let event = NewEvent::mirror("repaired", name, &one.peer, &done);
                node.record(event.with("copy", "master"));
                answer.send(Line::Item(done.into()));
            }
        }
    }
    match differ {
        false => Ok(String::new()),
        true => Err(Refusal::new(
            Code::Differ,
            format!("volume {name} and its mirrors differ"),
            format!(
                "lockstep verify {name} PEER --repair sends the master's blocks again; --repair=master takes the mirror's"
            ),
        )),
    }
}

/// Compares with one mirror. `None`: nobody wants to know any more.
fn compare(
    name: &str,
    one: &Compared,
    rate: Rate,
    mut go_on: impl FnMut(u64) -> bool,
) -> Result<Option<Verdict>, Refusal> {
    let news = one.driver.verify(rate)?;
    loop {
        match news.recv() {
            Ok(Verifying::Block(block)) if !go_on(block) => return Ok(None),
            Ok(Verifying::Block(_)) => {}
            Ok(Verifying::Verdict(verdict)) => return Ok(Some(verdict)),
            Ok(Verifying::Refused(refusal)) => return Err(refusal),
            Err(_) => {
                let peer = &one.peer;
                return Err(Refusal::new(
                    Code::NotAllowed,
                    format!("the comparison with {peer} was cut short: the volume was closed"),
                    format!("lockstep status {name}"),
                ));
            }
        }
    }
}

fn count(ranges: &[BlockRange]) -> u64 {
    ranges.iter().map(|range| range.len).sum()
}

/// Whose the differing blocks are, by the master's copy.
fn whose(fs: &Fs, verdict: &Verdict) -> Vec<Owned> {
    if verdict.differing.is_empty() {
        return Vec::new();
    }
    let unknown = |range: &BlockRange| Owned {
        blocks: *range,
        owner: Owner::Unknown,
    };
    match owners(&**fs.journal(), &verdict.differing, NAMED) {
        Ok(found) => found.owned,
        Err(error) => {
            tracing::warn!(%error, "whose the differing blocks are can not be said");
            verdict.differing.iter().map(unknown).collect()
        }
    }
}

/// Says and records a verdict.
fn told(node: &Node, name: &str, one: &Compared, verdict: &Verdict, owned: &[Owned]) -> String {
    let text = report(name, &one.peer, verdict, owned);
    let first = text.lines().next().unwrap_or_default();
    let whose: Vec<String> = owned.iter().map(|run| run.owner.to_string()).collect();
    node.record(
        NewEvent::mirror("verified", name, &one.peer, first)
            .with("blocks", verdict.blocks)
            .with("differing", count(&verdict.differing))
            .with("whose", whose),
    );
    text
}

fn report(name: &str, peer: &str, verdict: &Verdict, owned: &[Owned]) -> String {
    let at = match verdict.txids {
        Some((first, last)) if first == last => format!(" at transaction {first}"),
        Some((first, last)) => format!(" at transactions {first} to {last}"),
        None => String::new(),
    };
    let blocks = verdict.blocks;
    if verdict.differing.is_empty() {
        return format!("{name} {peer}: equal, {blocks} blocks compared{at}");
    }
    let sum = count(&verdict.differing);
    let mut text = format!("{name} {peer}: {sum} of {blocks} blocks differ{at}");
    for run in owned {
        let (first, last) = (run.blocks.start, run.blocks.end().0 - 1);
        text.push_str(&format!("\n  {} (blocks {first} to {last})", run.owner));
    }
    text
}

/// Replaces the master's differing blocks of files by what the mirror has. What was done, and whether something is left.
fn restore(
    node: &Node,
    name: &str,
    one: &Compared,
    owned: &[Owned],
) -> Result<(String, bool), Refusal> {
    let failed = |error: &dyn std::error::Error| {
        Refusal::new(Code::Io, chain(error), format!("lockstep status {name}"))
    };
    let block_size = u64::from(one.fs.volume().block_size());
    let wanted: u64 = owned.iter().map(|run| run.blocks.len).sum();
    if wanted > MAX_RESTORED {
        return Err(Refusal::new(
            Code::NotAllowed,
            format!("{wanted} blocks differ: this copy as a whole is not to be trusted"),
            format!(
                "lockstep switchover {name} {}, then the old master is repaired",
                one.peer
            ),
        ));
    }
    let (mut replaced, mut kept, mut others) = (0, 0, 0);
    let mut hints = Vec::new();
    for run in owned {
        let Owner::File { ino, .. } = run.owner else {
            others += run.blocks.len;
            continue;
        };
        let mut at = run.blocks.start;
        while at < run.blocks.end() {
            let len = (run.blocks.end().0 - at.0).min(FETCH_BYTES / block_size);
            let piece = BlockRange::new(at, len);
            at = BlockNo(at.0 + len);
            // What is here is read before it is asked what is there.
            let mut here = vec![0; (len * block_size) as usize];
            let read = one.fs.journal().read(piece.start, &mut here);
            read.map_err(|error| failed(&error))?;
            let Some(there) = one.driver.fetch(vec![piece])? else {
                return Err(Refusal::new(
                    Code::NotAllowed,
                    format!("the mirror on {} left INSYNC meanwhile", one.peer),
                    format!("lockstep wait {name} {} INSYNC, then again", one.peer),
                ));
            };
            let size = block_size as usize;
            let pairs = piece
                .blocks()
                .zip(here.chunks(size).zip(there.chunks(size)));
            let differing: Vec<Restored> = pairs
                .filter(|(_, (here, there))| here != there)
                .map(|(block, (here, there))| Restored {
                    block,
                    ino,
                    found: xxh3_64(here),
                    image: there.into(),
                })
                .collect();
            let done = one.fs.restore(&differing).map_err(|error| failed(&error))?;
            replaced += done;
            kept += differing.len() as u64 - done;
        }
        hints.push(Hint::Inode(ino));
    }
    one.fs.sync().map_err(|error| failed(&error))?;
    node.host(name)?.mounts.invalidate(hints);
    let mut done = format!(
        "{name}: {replaced} blocks of files were replaced by those of {}",
        one.peer
    );
    if kept > 0 {
        done.push_str(&format!("; {kept} were written to meanwhile"));
    }
    if others > 0 {
        done.push_str(&format!(
            "; {others} are no file's contents and stay: lockstep volume check {name} says whether they are damaged"
        ));
    }
    Ok((done, kept + others > 0))
}

/// The schedule: compares every mirror that is in sync when its time has come, one after the other. Returns when the
/// node stops.
pub fn keep_schedule(node: &Arc<Node>) {
    let Some(every) = node.config.verify_every() else {
        return;
    };
    let mut last: BTreeMap<(String, String), i64> = BTreeMap::new();
    for event in node.history.follow().0 {
        if let (Some(volume), Some(peer), "verified") =
            (&event.volume, &event.peer, event.kind.as_str())
        {
            last.insert((volume.clone(), peer.clone()), event.time_ms);
        }
    }
    while !node.is_stopping() {
        std::thread::sleep(Duration::from_millis(500));
        let insync = states::State::InSync.word();
        for host in node.hosts() {
            let ready = host
                .view()
                .mirrors
                .into_iter()
                .filter(|m| m.state == insync);
            for peer in ready.map(|m| m.peer) {
                let now = Moment::now().0;
                let key = (host.name().to_owned(), peer);
                // A mirror that was never compared had its first copy just now.
                let since = *last.entry(key.clone()).or_insert(now);
                if now.saturating_sub(since) >= every.as_millis() as i64 {
                    let done = one_of_schedule(node, &key.0, &key.1);
                    let next = match done {
                        Ok(()) => Moment::now().0,
                        Err(refusal) => {
                            tracing::info!(volume = key.0, peer = key.1, "not compared: {refusal}");
                            now - (every.saturating_sub(TRY_AGAIN)).as_millis() as i64
                        }
                    };
                    last.insert(key, next);
                }
            }
        }
    }
}

fn one_of_schedule(node: &Arc<Node>, name: &str, peer: &str) -> Result<(), Refusal> {
    let rate = Rate::new(node.config.verify_rate());
    for one in mirrors(node, name, Some(peer))? {
        if let Some(verdict) = compare(name, &one, rate, |_| !node.is_stopping())? {
            let owned = whose(&one.fs, &verdict);
            let text = told(node, name, &one, &verdict, &owned);
            if !verdict.differing.is_empty() {
                tracing::error!(volume = name, peer, "{text}");
            }
        }
    }
    Ok(())
}
