//! What operators do with mirrors and mounts, and whom an incoming link is for.
//!
//! Owns the checks before a mirror is made. Never holds a volume's lock while a mirror works.

use super::engine::Engine;
use super::follow::{Call, Follow};
use super::history::NewEvent;
use super::link::{Frame, Link};
use super::protocol::{Condition, MirrorAction, VolumeStatus};
use super::refusal::{Code, Refusal, check_name};
use super::registry::{Host, Node};
use super::roles;
use crate::mirror::master::Request;
use crate::mirror::policy::Wishes;
use crate::wire::message::Message;
use states::{Cause, MinorCause};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a link may say nothing.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long an incoming link waits for an operator's work on its volume.
const BUSY_FOR_CALLS: Duration = Duration::from_secs(2);

/// `mount`
pub fn mount(
    node: &Arc<Node>,
    name: &str,
    dir: PathBuf,
    read_only: bool,
) -> Result<String, Refusal> {
    let host = node.host(name)?;
    let mut held = host.hold("mounting")?;
    let is_dir = std::fs::metadata(&dir).map(|m| m.is_dir());
    if !matches!(is_dir, Ok(true)) && !is_stale(&is_dir) {
        return Err(Refusal::new(
            Code::Invalid,
            format!("{} is no directory", dir.display()),
            format!("mkdir -p {}", dir.display()),
        ));
    }
    let dir = std::fs::canonicalize(&dir).unwrap_or(dir);
    if !held.is_open() {
        held.open(node, &host)?;
    }
    if matches!(*held, Engine::ReadOnly(_)) && !read_only {
        let why = host.view().warnings.join("; ");
        return Err(Refusal::new(
            Code::Unusable,
            format!("volume {name} can not be mounted read-write: {why}"),
            format!("lockstep mount {name} {} --read-only", dir.display()),
        ));
    }
    let there = host.mounts.mount(&dir, read_only)?;
    let point = host.mounts.wanted();
    node.change(|c| {
        // A mirror without parts yet is not in the catalogue: its mount is entered with them.
        if let Some(entry) = c.volumes.get_mut(name) {
            entry.mount = point;
        }
        Ok(())
    })?;
    show(node, &host);
    let shown = host.mounts.shown();
    let sentence = match (there, shown.read_only) {
        (false, _) => format!(
            "volume {name} waits: it appears on {} as soon as the copy is consistent",
            dir.display()
        ),
        (true, true) => format!("volume {name} is mounted on {}, read-only", dir.display()),
        (true, false) => format!("volume {name} is mounted on {}", dir.display()),
    };
    node.record(
        NewEvent::volume("mounted", name, &sentence)
            .with("dir", dir.display().to_string())
            .with("read_only", shown.read_only)
            .with("waits", !there),
    );
    Ok(sentence)
}

/// A mount point that a dead daemon left behind can not be looked at, and is cleared by mounting.
fn is_stale(looked: &std::io::Result<bool>) -> bool {
    let code = looked.as_ref().err().and_then(std::io::Error::raw_os_error);
    code == Some(libc::ENOTCONN)
}

/// Brings what `status` shows of the mount up to date.
pub fn show(node: &Node, host: &Host) {
    if let Some(shown) = host.mounts.look_after() {
        let wanted = host.mounts.wanted();
        node.publish(host, |view| {
            view.mounted = shown.mounted;
            view.read_only = shown.read_only;
            view.mount_point = wanted.map(|w| w.dir);
            view.warnings.retain(|w| !w.starts_with("not mounted: "));
            if let Some(trouble) = shown.trouble {
                view.warnings.push(format!("not mounted: {trouble}"));
            }
        });
    }
}

/// `umount`
pub fn umount(node: &Arc<Node>, name: &str) -> Result<String, Refusal> {
    let host = node.host(name)?;
    let _held = host.hold("unmounting")?;
    let Some(gone) = host.mounts.umount()? else {
        return Ok(format!("volume {name} is not mounted"));
    };
    node.change(|c| {
        if let Some(entry) = c.volumes.get_mut(name) {
            entry.mount = None;
        }
        Ok(())
    })?;
    show(node, &host);
    let sentence = format!("volume {name} is unmounted from {}", gone.dir.display());
    node.record(NewEvent::volume("unmounted", name, &sentence));
    Ok(sentence)
}

pub(super) fn only_on_master(host: &Host, name: &str) -> Refusal {
    let master = host.view().mirrors.first().map(|m| m.peer.clone());
    Refusal::new(
        Code::NotAllowed,
        format!("volume {name} is a mirror here"),
        match master {
            Some(master) => format!("give the command on {master}"),
            None => "give the command on its master".to_owned(),
        },
    )
}

pub(super) fn not_open(host: &Host, name: &str) -> Refusal {
    let reason = host.view().reason;
    Refusal::new(
        Code::Unusable,
        format!("volume {name} is not open read-write: {reason}"),
        format!("lockstep volume show {name}"),
    )
}

/// `mirror create`
pub fn create(
    node: &Arc<Node>,
    name: &str,
    peer: &str,
    rate: Option<u64>,
    wishes: Wishes,
) -> Result<String, Refusal> {
    check_wishes(&wishes, name, peer)?;
    let host = node.host(name)?;
    let mut held = host.hold("making a mirror")?;
    if !node.catalogue.get().peers.contains_key(peer) {
        return Err(Refusal::no_peer(peer));
    }
    let engine = &mut *held;
    if !engine.is_open() {
        engine.open(node, &host)?;
    }
    let master = match engine {
        Engine::Master(master) => master,
        Engine::Mirror(_) => return Err(only_on_master(&host, name)),
        Engine::Closed | Engine::ReadOnly(_) => return Err(not_open(&host, name)),
    };
    node.change(|c| {
        let entry = c.volumes.get_mut(name);
        let entry = entry.ok_or_else(|| Refusal::no_volume(name))?;
        if !entry.mirrors.insert(peer.to_owned()) {
            return Err(Refusal::new(
                Code::Exists,
                format!("volume {name} has a mirror on {peer}"),
                format!("lockstep status {name}, lockstep mirror restart {name} {peer}"),
            ));
        }
        Ok(())
    })?;
    let added = master.add_mirror(node, &host, peer, rate, wishes);
    if added.is_err() {
        node.change(|c| {
            if let Some(entry) = c.volumes.get_mut(name) {
                entry.mirrors.remove(peer);
            }
            Ok(())
        })?;
    }
    added?;
    let sentence = format!("mirror of {name} on {peer} created");
    node.record(NewEvent::mirror("mirror-created", name, peer, &sentence).with("rate", rate));
    Ok(format!(
        "{sentence}; watch it: lockstep progress {name} {peer}"
    ))
}

fn check_wishes(wishes: &Wishes, name: &str, peer: &str) -> Result<(), Refusal> {
    wishes.check().map_err(|what| {
        let remedy = format!("lockstep mirror set {name} {peer} ..., with a right value");
        Refusal::new(Code::Invalid, what, remedy)
    })
}

/// `mirror set`
pub fn set(node: &Arc<Node>, name: &str, peer: &str, wishes: Wishes) -> Result<String, Refusal> {
    check_wishes(&wishes, name, peer)?;
    let host = node.host(name)?;
    let mut held = host.hold("changing a mirror")?;
    let master = match &mut *held {
        Engine::Master(master) => master,
        Engine::Mirror(_) => return Err(only_on_master(&host, name)),
        Engine::Closed | Engine::ReadOnly(_) => return Err(not_open(&host, name)),
    };
    let driver = master.driver(peer);
    let driver = driver.ok_or_else(|| Refusal::no_mirror(name, peer))?;
    driver.set(wishes)?;
    master.listen();
    Ok(format!("mirror of {name} on {peer} changed"))
}

/// `mirror pause`, `continue`, `restart`, `delete`
pub fn act(
    node: &Arc<Node>,
    name: &str,
    peer: &str,
    action: MirrorAction,
) -> Result<String, Refusal> {
    let host = node.host(name)?;
    let driver = {
        let mut held = host.hold("looking for a mirror")?;
        match &mut *held {
            Engine::Master(master) => master.driver(peer),
            Engine::Mirror(_) => return Err(only_on_master(&host, name)),
            Engine::Closed | Engine::ReadOnly(_) => return Err(not_open(&host, name)),
        }
    };
    let driver = driver.ok_or_else(|| Refusal::no_mirror(name, peer))?;
    let (request, done) = match action {
        MirrorAction::Pause => (Request::Pause, "paused"),
        MirrorAction::Continue => (Request::Continue, "continued"),
        MirrorAction::Restart => (Request::Restart, "restarted"),
        MirrorAction::Delete => (Request::Delete, "deleted"),
    };
    driver.request(request)?;
    let sentence = format!("mirror of {name} on {peer} {done}");
    if matches!(action, MirrorAction::Delete) {
        return Ok(format!(
            "{sentence}; its copy stays there: lockstep volume delete {name}, on {peer}"
        ));
    }
    Ok(sentence)
}

/// A link of a known peer arrived: its first frame says for which volume.
pub async fn incoming(node: Arc<Node>, mut link: Link) {
    let peer = link.peer.clone();
    let hello = match timeout(HELLO_WITHIN, link.receiver.recv()).await {
        Ok(Ok(frame)) => frame,
        Ok(Err(end)) => return tracing::info!(peer, "a link ended before it said anything: {end}"),
        Err(_) => return tracing::warn!(peer, "a link said nothing within {HELLO_WITHIN:?}"),
    };
    let volume = match &hello.header {
        Message::Hello { volume, .. } => volume.clone(),
        Message::RoleQuery {
            volume,
            volume_id,
            standing,
            revoke,
            history,
            ..
        } => {
            let (volume, id, standing) = (volume.clone(), *volume_id, *standing);
            let (asked, revoke, history) = (peer.clone(), *revoke, *history);
            let answered = tokio::task::spawn_blocking(move || {
                if let (Some(token), Ok(host)) = (revoke, node.host(&volume))
                    && !roles::revoke(&node, &host, token)
                {
                    // It may be under way at this moment: silence means to ask again.
                    return None;
                }
                Some(roles::answer(
                    &node,
                    &asked,
                    (&volume, id),
                    standing,
                    history,
                ))
            });
            if let Ok(Some(answer)) = answered.await {
                let _ = link.sender.send(roles::frame(answer)).await;
            }
            // The asker hangs up when it has heard.
            let _ = timeout(HELLO_WITHIN, link.receiver.recv()).await;
            return;
        }
        Message::Prepare { .. } => {
            return roles::taking_over(node, link, hello.header).await;
        }
        _ => return tracing::warn!(peer, "a link did not begin with a greeting"),
    };
    let sender = link.sender.clone();
    let taken = tokio::task::spawn_blocking(move || {
        let mut call = Some(Box::new(Call { link, hello }));
        let taken = take(&node, &volume, &mut call);
        (taken.err(), call)
    });
    let (refused, call) = match taken.await {
        Ok((None, _)) => return,
        Ok((Some(refused), call)) => (*refused, call),
        Err(e) => return tracing::error!(peer, "a link was not taken: {e}"),
    };
    tracing::warn!(peer, "refused: {refused:?}");
    let frame = Frame {
        channel: 0,
        header: refused,
        payload: Vec::new(),
    };
    // The answer goes out, then the link closes: nobody else holds it.
    let _ = sender.send(frame).await;
    drop(call);
}

fn severe(cause: Cause, detail: String) -> Result<(), Box<Message>> {
    Err(Box::new(Message::Refused {
        code: cause.word().to_owned(),
        detail,
        severe: true,
    }))
}

fn minor(cause: MinorCause, detail: String) -> Result<(), Box<Message>> {
    Err(Box::new(Message::Refused {
        code: cause.word().to_owned(),
        detail,
        severe: false,
    }))
}

/// Gives a link to the follower of its volume, or says why not: the call stays where it is then.
fn take(node: &Arc<Node>, name: &str, call: &mut Option<Box<Call>>) -> Result<(), Box<Message>> {
    let Some(link) = call.as_ref().map(|c| &c.link) else {
        return Ok(());
    };
    let master = link.peer.clone();
    let ours = &node.config.name;
    if node.is_stopping() {
        let detail = format!("{ours} is stopping");
        return minor(MinorCause::PeerStarting, detail);
    }
    if check_name("volume", name).is_err() {
        let detail = format!("{name:?} can not be the name of a volume");
        return severe(Cause::PartsRefused, detail);
    }
    let host = match node.host(name) {
        Ok(host) => host,
        Err(_) => {
            let view = VolumeStatus {
                name: name.to_owned(),
                role: "mirror".to_owned(),
                condition: Condition::Waiting,
                reason: "there are no parts yet".to_owned(),
                read_only: true,
                ..VolumeStatus::default()
            };
            match node.new_host(name, view, None) {
                Some(host) => host,
                // Another link was faster.
                None => match node.host(name) {
                    Ok(host) => host,
                    Err(e) => return minor(MinorCause::PartsBusy, e.message),
                },
            }
        }
    };
    let mut held = match host.hold_within("taking a call", BUSY_FOR_CALLS) {
        Ok(held) => held,
        Err(busy) => return minor(MinorCause::PartsBusy, busy.message),
    };
    if let Some(call) = call.as_ref() {
        roles::called(node, &host, &mut held, &master, &call.hello.header)?;
    }
    let catalogue = node.catalogue.get();
    let entry = catalogue.volumes.get(name);
    if !held.is_open() {
        let opened = match entry {
            Some(_) => held.open(node, &host),
            None => Follow::start(node, &host, &master, None).map(|f| *held = Engine::Mirror(f)),
        };
        if let Err(refusal) = opened {
            drop(held);
            let cause = match refusal.code {
                Code::NotFound => Cause::PartsMissing,
                Code::Unusable => Cause::MirrorDamaged,
                Code::Stopping => {
                    return minor(MinorCause::PeerStarting, refusal.message);
                }
                _ if refusal.message.contains("in use") => Cause::PartsInUse,
                _ => Cause::PartsMissing,
            };
            return severe(cause, refusal.message);
        }
    }
    match &*held {
        Engine::Mirror(follow) => {
            if let Some(call) = call.take() {
                follow.call(call);
            }
            Ok(())
        }
        _ => {
            drop(held);
            let detail = format!("{name} on {ours} is no mirror");
            severe(Cause::NameTaken, detail)
        }
    }
}
