//! Changes of role on this node: a mirror becomes the master, a master becomes a mirror again.
//!
//! Owns the order of both: the facts change first, in one save, and the catalogue follows; a start after a cut between
//! the two brings the catalogue in line.

use super::{others, question, understood};
use crate::mirror::MirrorError;
use crate::mirror::roles::{
    self as rules, Answer, CopyStanding, Heir, Refused, StepBack, Stepped, how_to_add, master_facts,
};
use crate::node::catalogue::{self, Role};
use crate::node::control::Answer as Reply;
use crate::node::engine::{Engine, open_volume_of};
use crate::node::history::NewEvent;
use crate::node::lost::LostFiles;
use crate::node::master::Master;
use crate::node::protocol::{Condition, Line};
use crate::node::refusal::{Code, Refusal};
use crate::node::registry::{Host, Node};
use crate::node::stores::MapFiles;
use crate::node::volumes::{chain, unlinked};
use crate::node::{mirrors, tools};
use crate::units::Txid;
use crate::volume::facts::{FactFile, FactStore, Facts, Lineage};
use crate::volume::parts::Description;
use crate::wire::message::Standing;
use states::State;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn failed(error: &MirrorError) -> Refusal {
    let remedy = "see the daemon's log; give the command again once the cause is mended";
    Refusal::new(Code::Unusable, chain(error), remedy)
}

/// Makes the closed volume `name` a mirror of `master`: what only it has is kept aside, the facts change, the catalogue
/// follows.
pub fn step_back(
    node: &Arc<Node>,
    name: &str,
    entry: &catalogue::Volume,
    master: &str,
    theirs: &[Lineage],
    discard: bool,
) -> Result<Stepped, Refusal> {
    let host = node.host(name)?;
    let volume = open_volume_of(&host, entry)?;
    let dir = node.state.volume(name);
    let store = FactFile::new(dir.join("facts"));
    let mut facts = store.load().map_err(|e| failed(&e.into()))?;
    let ours = &node.config.name;
    let stepped = StepBack {
        volume: &volume,
        facts: &store,
        maps: &MapFiles::new(&dir),
        lost: &LostFiles::new(node.state.path()),
        node: ours,
        master,
        theirs,
        discard,
    }
    .rejoin(&mut facts);
    let stepped = stepped.map_err(|error| match error {
        MirrorError::Refused { detail, .. } => Refusal::new(
            Code::NotAllowed,
            format!(
                "volume {name} can not become a mirror of the one on {master} by itself: {detail}"
            ),
            format!(
                "lockstep rejoin {name} {master} --discard {ours}, to keep the volume of {master}"
            ),
        ),
        other => failed(&other),
    })?;
    node.change(|c| {
        if let Some(entry) = c.volumes.get_mut(name) {
            entry.role = Role::Mirror {
                master: master.to_owned(),
            };
            entry.mirrors.clear();
        }
        Ok(())
    })?;
    show_role(node, &host, "mirror", [master.to_owned()].into());
    let kept = (!stepped.kept.is_empty()).then(|| stepped.kept.join(" "));
    node.record(
        NewEvent::mirror(
            "became-mirror",
            name,
            master,
            format!("{ours} is a mirror of {name} on {master} now: {stepped}"),
        )
        .with("shared", stepped.shared.0)
        .with("last", stepped.last.0)
        .with("kept_aside", kept)
        .with("dirty_blocks", stepped.dirty_blocks),
    );
    tell_master(node, name, facts.volume_id, master);
    Ok(stepped)
}

/// Lets the new master know that this node is a mirror now, so that one it had given up on is sought again.
fn tell_master(node: &Arc<Node>, name: &str, id: u128, master: &str) {
    let (asker, peer) = (Arc::clone(node), master.to_owned());
    let question = question(node, name, id, Standing::Mirror);
    let limit = node.config.role_query();
    node.runtime.spawn(async move {
        if let Err(why) = super::ask_one(&asker, &peer, question, limit).await {
            tracing::info!(peer, "not told that this node is a mirror: {why}");
        }
    });
}

/// A peer that was taken for a second master is a mirror now. Waits for nobody.
pub fn welcome_back(node: &Arc<Node>, name: &str, peer: &str) {
    let Ok(host) = node.host(name) else { return };
    if host.view().condition == Condition::Failed {
        // It may have been for that master that nothing was opened.
        let again = Arc::clone(node);
        node.runtime.spawn_blocking(move || {
            let opened = host
                .hold("opening")
                .and_then(|mut held| held.open(&again, &host));
            if let Err(why) = opened {
                tracing::info!(volume = host.name(), "not opened: {why}");
            }
        });
        return;
    }
    let stuck = host.view().mirrors.iter().any(|m| {
        m.peer == peer
            && m.state == State::Error.word()
            && (m.reason.contains(states::Cause::TwoMasters.sentence())
                || m.reason.contains(states::Cause::Diverged.sentence()))
    });
    if stuck
        && let Err(why) = mirrors::act(
            node,
            name,
            peer,
            super::super::protocol::MirrorAction::Restart,
        )
    {
        tracing::info!(volume = name, peer, "not restarted: {why}");
    }
}

/// What `status` says of the role, and whom it lists.
fn show_role(node: &Node, host: &Host, role: &str, peers: BTreeSet<String>) {
    node.publish(host, |view| {
        role.clone_into(&mut view.role);
        view.consistent_as_of = None;
        view.mirrors.retain(|m| peers.contains(&m.peer));
        for peer in &peers {
            if view.mirrors.binary_search_by(|m| m.peer.cmp(peer)).is_err() {
                view.mirrors.push(unlinked(peer));
                view.mirrors.sort_by(|a, b| a.peer.cmp(&b.peer));
            }
        }
    });
}

/// `promote`
pub fn promote(
    node: &Arc<Node>,
    name: &str,
    force: bool,
    reply: &Reply,
) -> Result<String, Refusal> {
    let host = node.host(name)?;
    let mut held = host.hold("promoting")?;
    let began = Instant::now();
    let old = match &*held {
        Engine::Master(_) => {
            return Ok(format!("{} is the master of {name}", node.config.name));
        }
        _ => entry(node, name)?,
    };
    let master = match &old.role {
        Role::Mirror { master } => master.clone(),
        Role::Master => {
            super::reconcile(node, name)?;
            give_up_hand_over(node, name, force)?;
            held.close(node, &host, Duration::ZERO)?;
            held.open_asked(node, &host, Some(Vec::new()))?;
            return Ok(format!("{} is the master of {name}", node.config.name));
        }
    };
    let copy = match &*held {
        Engine::Mirror(follow) => follow.standing(),
        _ => None,
    };
    let mut stands = copy.map_or_else(CopyStanding::default, |copy| CopyStanding {
        linked: copy.linked,
        bytes_to_go: copy.bytes_to_go,
    });
    if stands.linked {
        // A link outlives a master that was killed by some moments: it counts if the master answers.
        let id = host_id(node, name);
        stands.linked = ask_master(node, name, id, &master).is_ok();
    }
    let refuse = |refused: Refused| super::refuse(node, name, &refused);
    let mut facts = super::facts_of(node, name).ok_or_else(|| {
        let master = master.clone();
        refuse(Refused::NoCopy { master })
    })?;
    // A mirror's parts are described in the catalogue only.
    facts.description.get_or_insert_with(|| Description {
        block_size: old.block_size,
        parts: old.parts.iter().map(|part| part.bytes).collect(),
    });
    let doubts = rules::doubts(&master, &facts, stands, force).map_err(refuse)?;
    let doubts: Vec<String> = doubts.iter().map(ToString::to_string).collect();
    for doubt in &doubts {
        reply.send(Line::Note(format!("forced: {doubt}")));
    }
    if let Engine::Mirror(follow) = std::mem::replace(&mut *held, Engine::Closed) {
        host.mounts.withdraw();
        // What is whole in the log is brought home; what went wrong there is found again below.
        if let Err(error) = follow.stop() {
            tracing::warn!(volume = name, "{error}");
        }
    }
    let opened = open_promoted(node, &host, &old, &master, force, None);
    let fork = match opened {
        Ok((engine, fork)) => {
            *held = engine;
            fork
        }
        Err(refusal) => {
            super::reconcile(node, name)?;
            // As it was before.
            if let Err(error) = held.open(node, &host) {
                tracing::error!(volume = name, "{error}");
            }
            return Err(refusal);
        }
    };
    let sentence = format!(
        "{} is the master of {name}, from transaction {fork} on ({:.1} s)",
        node.config.name,
        began.elapsed().as_secs_f64()
    );
    let (_, strangers) = others(node, &facts);
    let mut text = sentence.clone();
    for stranger in &strangers {
        text.push_str(&format!(
            "\nwarning: {} is no peer of this node: {}, then: lockstep mirror create {name} {}",
            stranger.name,
            how_to_add(stranger),
            stranger.name
        ));
    }
    node.record(
        NewEvent::volume("promoted", name, &sentence)
            .with("fork", fork.0)
            .with("forced", doubts),
    );
    Ok(text)
}

/// A master that does not know whether it still is one, and is to be one.
fn give_up_hand_over(node: &Node, name: &str, force: bool) -> Result<(), Refusal> {
    let Some(mut facts) = super::facts_of(node, name) else {
        return Ok(());
    };
    let changed = rules::stay_master(&mut facts, force);
    if !changed.map_err(|refused| super::refuse(node, name, &refused))? {
        return Ok(());
    }
    let file = FactFile::new(node.state.volume(name).join("facts"));
    file.save(&facts).map_err(|e| failed(&e.into()))
}

pub fn entry(node: &Node, name: &str) -> Result<catalogue::Volume, Refusal> {
    let catalogue = node.catalogue.get();
    let entry = catalogue.volumes.get(name).cloned();
    entry.ok_or_else(|| Refusal::no_volume(name))
}

fn host_id(node: &Node, name: &str) -> u128 {
    super::facts_of(node, name).map_or(0, |facts| facts.volume_id)
}

/// Opens a closed mirror as the master. `peers` are what the old master handed over, if it did.
pub fn open_promoted(
    node: &Arc<Node>,
    host: &Arc<Host>,
    old: &catalogue::Volume,
    master: &str,
    force: bool,
    peers: Option<BTreeMap<String, Option<Heir>>>,
) -> Result<(Engine, Txid), Refusal> {
    let name = host.name();
    let dir = node.state.volume(name);
    let store = FactFile::new(dir.join("facts"));
    let mut facts = store.load().map_err(|e| failed(&e.into()))?;
    if facts.switching.is_some() {
        return Err(super::refuse(node, name, &Refused::Switching));
    }
    if !rules::is_whole(&facts) {
        repair(node, host, old, (&mut facts, &store), force)?;
    }
    let volume = open_volume_of(host, old)?;
    let peers = peers.unwrap_or_else(|| {
        let (mut known, _) = others(node, &facts);
        known.insert(master.to_owned());
        known.into_iter().map(|peer| (peer, None)).collect()
    });
    let next =
        master_facts(&volume, &facts, &MapFiles::new(&dir), &peers).map_err(|e| failed(&e))?;
    let opened = Master::open_with(node, host, volume, next, Arc::new(store))?;
    let fork = opened.fork();
    let names: BTreeSet<String> = peers.into_keys().collect();
    node.change(|c| {
        if let Some(entry) = c.volumes.get_mut(name) {
            entry.role = Role::Master;
            entry.mirrors.clone_from(&names);
        }
        Ok(())
    })?;
    opened.told_members(node, names.iter().cloned());
    show_role(node, host, "master", names);
    node.publish(host, |view| {
        view.condition = Condition::Open;
        view.reason.clear();
    });
    Ok((Engine::Master(Box::new(opened)), fork))
}

/// Makes a file system of what an inconsistent copy holds.
fn repair(
    node: &Node,
    host: &Host,
    old: &catalogue::Volume,
    (facts, store): (&mut Facts, &FactFile),
    force: bool,
) -> Result<(), Refusal> {
    if !force {
        return Err(Refusal::new(
            Code::NotAllowed,
            "the copy is not consistent",
            "lockstep promote NAME --force",
        ));
    }
    {
        let volume = open_volume_of(host, old)?;
        rules::before_repair(&volume, facts, store).map_err(|e| failed(&e))?;
    }
    let paths: Vec<_> = old.parts.iter().map(|p| p.path.clone()).collect();
    tools::repair(&paths, old.block_size, node.state.path())
}

/// `rejoin`
pub fn rejoin(
    node: &Arc<Node>,
    name: &str,
    master: &str,
    discard: Option<&str>,
) -> Result<String, Refusal> {
    let ours = node.config.name.clone();
    if let Some(other) = discard.filter(|d| *d != ours) {
        return Err(Refusal::new(
            Code::Invalid,
            format!("this node is {ours}: it can not give up what {other} has"),
            format!("lockstep rejoin {name} {ours} --discard {other}, on {other}"),
        ));
    }
    let host = node.host(name)?;
    let old = entry(node, name)?;
    let facts = super::facts_of(node, name).ok_or_else(|| Refusal::no_volume(name))?;
    if !node.catalogue.get().peers.contains_key(master) {
        return Err(Refusal::no_peer(master));
    }
    let theirs = ask_master(node, name, facts.volume_id, master)?;
    let mut held = host.hold("becoming a mirror")?;
    held.close(node, &host, Duration::ZERO)?;
    let stepped = step_back(
        node,
        name,
        &old,
        master,
        &theirs.generations,
        discard.is_some(),
    );
    let stepped = match stepped {
        Ok(stepped) => stepped,
        Err(refusal) => {
            // As it was before: the operator has not decided yet.
            if let Err(error) = held.open_asked(node, &host, Some(Vec::new())) {
                tracing::error!(volume = name, "{error}");
            }
            return Err(refusal);
        }
    };
    held.open(node, &host)?;
    Ok(format!(
        "{ours} is a mirror of {name} on {master}: {stepped}"
    ))
}

/// The answer of the node that is to be followed, which has to be a master.
fn ask_master(node: &Arc<Node>, name: &str, id: u128, master: &str) -> Result<Answer, Refusal> {
    let question = question(node, name, id, Standing::Master);
    let limit = node.config.role_query().max(Duration::from_secs(3));
    let said = node
        .runtime
        .block_on(super::ask_one(node, master, question, limit));
    let unreachable = |why: String| {
        Refusal::new(
            Code::Timeout,
            format!("{master} could not be asked: {why}"),
            format!("start {master}, or look at the connection; then give the command again"),
        )
    };
    let message = said.map_err(unreachable)?;
    let answer = understood(node, master, message)
        .ok_or_else(|| unreachable("it gave another answer".to_owned()))?;
    rules::may_follow(answer).map_err(|refused| super::refuse(node, name, &refused))
}
