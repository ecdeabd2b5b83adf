//! Who is the master of a volume: asking the peers before a volume is opened read-write, and answering them.
//!
//! Owns the short links of questions and answers, and the names by which nodes know each other. Never decides: that is
//! `mirror::roles`. Every wait is bounded by the configuration; a peer that does not answer has no say.

mod change;
mod switchover;

pub use change::{promote, rejoin};
pub use switchover::{ask_again, revoke, switchover, taking_over};

use super::catalogue::{self, Catalogue, Role};
use super::engine::Engine;
use super::history::NewEvent;
use super::link::Frame;
use super::protocol::Condition;
use super::refusal::{Code, Refusal};
use super::registry::{Host, Node};
use crate::mirror::roles::{
    self as rules, Answer, Called, Ended, Listed, Opening, Refused, Volume, forks, how_to_add,
    lineage,
};
use crate::units::Txid;
use crate::volume::facts::{self, FactFile, FactStore, Facts};
use crate::wire::message::{CopyState, Fork, History, Member, Message, PROTOCOL_VERSION, Standing};
use states::Cause;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// The facts of a volume, as they are on disk.
pub fn facts_of(node: &Node, name: &str) -> Option<Facts> {
    FactFile::new(node.state.volume(name).join("facts"))
        .load()
        .ok()
}

/// The name that this node has for a member of a volume; `None` for itself and for strangers.
fn known_as<'a>(catalogue: &'a Catalogue, member: &Member) -> Option<&'a str> {
    catalogue.peer_of(&member.fingerprint.parse().ok()?)
}

/// A peer, as other nodes may know it.
fn member(catalogue: &Catalogue, peer: &str) -> Member {
    let known = catalogue.peers.get(peer);
    Member {
        name: peer.to_owned(),
        address: known.map(|p| p.address.clone()).unwrap_or_default(),
        fingerprint: known.map(|p| p.fingerprint.to_string()).unwrap_or_default(),
    }
}

/// This node, as others are told of it.
pub fn myself(node: &Node) -> Member {
    Member {
        name: node.config.name.clone(),
        address: node.config.listen.clone(),
        fingerprint: node.identity.fingerprint().to_string(),
    }
}

/// The nodes of a volume of which this one is the master.
pub fn members(node: &Node, mirrors: impl IntoIterator<Item = String>) -> Vec<Member> {
    let catalogue = node.catalogue.get();
    let mut all = vec![myself(node)];
    all.extend(mirrors.into_iter().map(|peer| member(&catalogue, &peer)));
    all
}

/// A refusal, as an operator reads it.
pub fn refuse(node: &Node, name: &str, refused: &Refused) -> Refusal {
    let at = at(node, name);
    let code = match refused {
        Refused::Absent { .. } => Code::NotFound,
        _ => Code::NotAllowed,
    };
    Refusal::new(code, refused.why(&at), refused.remedy(&at))
}

/// Of which volume something is decided here.
fn at<'a>(node: &'a Node, name: &'a str) -> Volume<'a> {
    Volume {
        name,
        node: &node.config.name,
    }
}

/// What the catalogue says of a volume.
fn listed(entry: &catalogue::Volume) -> Listed {
    match &entry.role {
        Role::Master => Listed::Master,
        Role::Mirror { master } => Listed::Mirror(master.clone()),
    }
}

/// The other nodes of a volume, by the names that this one has for them, and those that it does not know.
pub fn others(node: &Node, facts: &Facts) -> (BTreeSet<String>, Vec<facts::Member>) {
    let catalogue = node.catalogue.get();
    let ours = node.identity.fingerprint().to_string();
    rules::others(facts, &ours, |member| {
        known_as(&catalogue, &Member::from(member)).map(str::to_owned)
    })
}

/// Warnings about nodes of the volume that this one could not work with if it became the master, or had another one.
pub fn warnings(node: &Node, facts: &Facts) -> Vec<String> {
    let (_, strangers) = others(node, facts);
    let warn = |m: &facts::Member| {
        format!(
            "{} has a part in this volume and is no peer of this node: {}",
            m.name,
            how_to_add(m)
        )
    };
    strangers.iter().map(warn).collect()
}

/// Asks one peer.
pub async fn ask_one(
    node: &Node,
    peer: &str,
    question: Message,
    limit: Duration,
) -> Result<Message, String> {
    let known = node.catalogue.get().peers.get(peer).cloned();
    let known = known.ok_or("it is no peer of this node")?;
    let asked = timeout(limit, async {
        let dead_after = node.config.peer_timeout();
        let (address, key) = (known.address, known.fingerprint);
        let dialled = node.trunks.dial(peer.to_owned(), &address, key, dead_after);
        let mut link = dialled.await.map_err(|end| end.to_string())?;
        let sent = link.sender.send(frame(question)).await;
        sent.map_err(|_| "the connection ended".to_owned())?;
        let answer = link.receiver.recv().await.map_err(|end| end.to_string())?;
        Ok(answer.header)
    });
    match asked.await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", limit.as_secs_f32())),
    }
}

/// A header without a payload.
pub fn frame(header: Message) -> Frame {
    Frame {
        channel: 0,
        header,
        payload: Vec::new(),
    }
}

/// The question for a volume.
pub fn question(node: &Node, name: &str, id: u128, standing: Standing) -> Message {
    Message::RoleQuery {
        version: PROTOCOL_VERSION,
        node: node.config.name.clone(),
        volume: name.to_owned(),
        volume_id: id,
        standing,
        history: false,
        revoke: None,
    }
}

/// What a peer's words mean here.
pub fn understood(node: &Node, peer: &str, message: Message) -> Option<Answer> {
    let Message::RoleAnswer {
        standing,
        master,
        generations,
        applied,
        ..
    } = message
    else {
        return None;
    };
    let catalogue = node.catalogue.get();
    Some(Answer {
        peer: peer.to_owned(),
        standing,
        master: master
            .as_ref()
            .and_then(|m| known_as(&catalogue, m))
            .map(str::to_owned),
        master_member: master,
        generations: lineage(&generations),
        applied: Txid(applied),
    })
}

/// Asks the peers of several volumes at once: (volume, its id, peers). Waits until all have answered, or no longer.
pub fn ask(
    node: &Arc<Node>,
    asked: &[(String, u128, BTreeSet<String>)],
) -> BTreeMap<String, Vec<Answer>> {
    let limit = node.config.role_query();
    let (reply, answers) = blocking::channel();
    let mut all: BTreeMap<String, Vec<Answer>> = BTreeMap::new();
    for (name, id, peers) in asked {
        all.insert(name.clone(), Vec::new());
        for peer in peers {
            let (node, reply) = (Arc::clone(node), reply.clone());
            let (name, peer) = (name.clone(), peer.clone());
            let question = question(&node, &name, *id, Standing::Master);
            node.runtime.clone().spawn(async move {
                let said = ask_one(&node, &peer, question, limit).await;
                let answer = match said {
                    Ok(message) => understood(&node, &peer, message),
                    Err(why) => {
                        tracing::info!(volume = name, peer, "not asked for its role: {why}");
                        None
                    }
                };
                let _ = reply.send((name, answer));
            });
        }
    }
    drop(reply);
    let until = Instant::now() + limit + Duration::from_millis(500);
    while let Ok((name, answer)) =
        answers.recv_timeout(until.saturating_duration_since(Instant::now()))
    {
        all.entry(name).or_default().extend(answer);
    }
    all
}

/// What is asked before a volume is opened read-write; `None` where there is nobody to ask.
pub fn to_ask(node: &Node, name: &str) -> Option<(String, u128, BTreeSet<String>)> {
    let catalogue = node.catalogue.get();
    let entry = catalogue.volumes.get(name)?;
    let facts = facts_of(node, name)?;
    if !rules::is_asked_for(&facts, &listed(entry)) {
        return None;
    }
    let (mut peers, _) = others(node, &facts);
    peers.extend(entry.mirrors.iter().cloned());
    peers.retain(|peer| catalogue.peers.contains_key(peer));
    (!peers.is_empty()).then_some((name.to_owned(), facts.volume_id, peers))
}

/// Asks for every volume of this node that it is the master of, all at once.
pub fn ask_for_all(node: &Arc<Node>) -> BTreeMap<String, Vec<Answer>> {
    let names: Vec<String> = node.catalogue.get().volumes.keys().cloned().collect();
    let asked: Vec<_> = names.iter().filter_map(|n| to_ask(node, n)).collect();
    for (name, ..) in &asked {
        if let Ok(host) = node.host(name) {
            // Whoever asks this node meanwhile hears that it does not know yet.
            node.publish(&host, |view| view.condition = Condition::Opening);
        }
    }
    ask(node, &asked)
}

/// Brings the catalogue in line with the facts, where a change of role was cut between the two.
pub fn reconcile(node: &Node, name: &str) -> Result<(), Refusal> {
    let Some(facts) = facts_of(node, name) else {
        return Ok(());
    };
    node.change(|c| {
        let Some(entry) = c.volumes.get_mut(name) else {
            return Ok(());
        };
        match rules::relisted(&facts, &listed(entry)) {
            Some(Listed::Mirror(master)) => {
                entry.role = Role::Mirror { master };
                entry.mirrors.clear();
            }
            Some(Listed::Master) => {
                entry.role = Role::Master;
                entry.mirrors = facts.peers.keys().cloned().collect();
            }
            None => {}
        }
        Ok(())
    })
}

/// What is to be done before the volume is opened as its master: nothing, or becoming a mirror, which is done here. `Some`:
/// it is opened for reading only, and why.
pub fn before_opening(
    node: &Arc<Node>,
    host: &Host,
    entry: &catalogue::Volume,
    answers: Option<Vec<Answer>>,
) -> Result<Option<String>, Refusal> {
    let name = host.name();
    let decided = match hand_over_ended(node, name)? {
        Some(opening) => opening,
        None => {
            let Some(asked) = to_ask(node, name) else {
                return Ok(None);
            };
            let answers = answers.unwrap_or_else(|| {
                let mut all = ask(node, std::slice::from_ref(&asked));
                all.remove(name).unwrap_or_default()
            });
            let Some(facts) = facts_of(node, name) else {
                return Ok(None);
            };
            let ours = node.identity.fingerprint().to_string();
            let decided = rules::opening(&facts, &ours, &answers);
            decided.map_err(|refused| {
                let refusal = refuse(node, name, &refused);
                if let Refused::Diverged(split) = &refused {
                    let text = &refusal.message;
                    node.record(NewEvent::mirror("diverged", name, &split.master, text));
                }
                refusal
            })?
        }
    };
    match decided {
        Opening::AsListed => Ok(None),
        Opening::StepBack { master, theirs } => {
            tracing::warn!(
                volume = name,
                master,
                "another node was made the master meanwhile"
            );
            change::step_back(node, name, entry, &master, &theirs, false)?;
            Ok(None)
        }
        Opening::Undecided { to, why } => Ok(Some(format!(
            "{to} may be its master now, and does not say ({why}); it is asked again and again; if it is lost for good: lockstep promote {name} --force"
        ))),
    }
}

/// What became of a hand-over that was under way, if one was; one that came to nothing is forgotten.
fn hand_over_ended(node: &Arc<Node>, name: &str) -> Result<Option<Opening>, Refusal> {
    let Some(mut facts) = facts_of(node, name) else {
        return Ok(None);
    };
    let Some(handing) = facts.handing_over.clone() else {
        return Ok(None);
    };
    let ended: Ended = switchover::settle(node, name, &facts, &handing);
    let opening = rules::after_hand_over(&handing, ended);
    if opening.is_none() {
        facts.handing_over = None;
        let file = FactFile::new(node.state.volume(name).join("facts"));
        file.save(&facts).map_err(|e| Refusal::io("the facts", e))?;
    }
    Ok(opening)
}

fn severe(cause: Cause, detail: String) -> Box<Message> {
    Box::new(Message::Refused {
        code: cause.word().to_owned(),
        detail,
        severe: true,
    })
}

/// A master calls for a volume of this node: it is listened to, perhaps as a new one, or refused.
pub fn called(
    node: &Arc<Node>,
    host: &Arc<Host>,
    held: &mut Engine,
    caller: &str,
    hello: &Message,
) -> Result<(), Box<Message>> {
    let Message::Hello {
        volume_id,
        generations,
        ..
    } = hello
    else {
        return Ok(());
    };
    let name = host.name();
    let Some(entry) = node.catalogue.get().volumes.get(name).cloned() else {
        return Ok(());
    };
    let facts = facts_of(node, name).filter(|facts| facts.volume_id == *volume_id);
    let at = at(node, name);
    let open = match held {
        Engine::Master(master) => Some(master.committed()),
        _ => None,
    };
    let theirs = lineage(generations);
    let mut said = rules::called(&at, facts.as_ref(), &listed(&entry), open, caller, theirs);
    if let Called::OpenAsked(answer) = said {
        held.open_asked(node, host, Some(vec![answer]))
            .map_err(|refusal| severe(Cause::Diverged, refusal.to_string()))?;
        let entry = change::entry(node, name);
        said = match entry.is_ok_and(|entry| entry.role == Role::Master) {
            true => rules::two_masters(&at),
            false => Called::Listen,
        };
    }
    match said {
        Called::Listen | Called::OpenAsked(_) => Ok(()),
        Called::Refuse(cause, detail) => Err(severe(cause, detail)),
        Called::Follow { fork } => {
            let changed = node.change(|c| {
                if let Some(entry) = c.volumes.get_mut(name) {
                    entry.role = Role::Mirror {
                        master: caller.to_owned(),
                    };
                }
                Ok(())
            });
            changed.map_err(|e| severe(Cause::MirrorDiskFailing, e.message))?;
            let text = match &entry.role {
                Role::Mirror { master } => {
                    format!("{caller} is the master of {name} now, in place of {master}")
                }
                Role::Master => format!("{caller} is the master of {name} now"),
            };
            node.record(NewEvent::mirror("new-master", name, caller, text).with("fork", fork.0));
            Ok(())
        }
    }
}

/// Answers a peer's question. Reads what is recorded; waits for nobody.
pub fn answer(
    node: &Arc<Node>,
    peer: &str,
    (name, id): (&str, u128),
    standing: Standing,
    wanted: bool,
) -> Message {
    let absent = Message::RoleAnswer {
        standing: Standing::Absent,
        master: None,
        generations: Vec::new(),
        applied: 0,
        history: None,
    };
    let catalogue = node.catalogue.get();
    let (Some(entry), Some(facts)) = (catalogue.volumes.get(name), facts_of(node, name)) else {
        return absent;
    };
    if facts.volume_id != id {
        return absent;
    }
    let generations: Vec<Fork> = forks(&facts.generations);
    // A running master's facts are as of its opening.
    let live = node.host(name).ok().and_then(|host| host.mounts.engine());
    let applied = live.map_or(facts.applied, |fs| fs.committed()).0;
    let listed = listed(entry);
    let (role, master) = rules::standing(&facts, &listed);
    let master = master.map(|master| member(&catalogue, master));
    let opening = |host: Arc<Host>| host.view().condition == Condition::Opening;
    let role = match role {
        Standing::Master if node.host(name).is_ok_and(opening) => Standing::Undecided,
        role => role,
    };
    if role == Standing::Master && standing == Standing::Mirror {
        change::welcome_back(node, name, peer);
    }
    Message::RoleAnswer {
        standing: role,
        master,
        generations,
        applied,
        history: wanted.then(|| described(node, name, &facts, applied)),
    }
}

/// A copy's half of the reconnect decision, as it would be told to a master.
fn described(node: &Node, name: &str, facts: &Facts, applied: u64) -> Box<History> {
    let follows = node.host(name).ok().and_then(|host| {
        let held = host
            .hold_within("describing the copy", Duration::from_secs(1))
            .ok()?;
        match &*held {
            Engine::Mirror(follow) => follow.standing()?.history,
            _ => None,
        }
    });
    follows.unwrap_or_else(|| {
        Box::new(History {
            volume_id: facts.volume_id,
            generations: forks(&facts.generations),
            applied,
            durable: applied,
            confirmed: applied,
            copy: match facts.copy {
                facts::Copy::Blank => CopyState::Blank,
                facts::Copy::Partial { cursor, txid } => CopyState::Partial {
                    cursor: cursor.0,
                    txid: txid.0,
                },
                facts::Copy::Complete => CopyState::Complete,
            },
            consistent_at: facts.consistent_at.0,
            tainted: facts.tainted,
            staging_room: 0,
            chain: facts.chain,
            dirty_blocks: 0,
            reach: facts.reach.0,
        })
    })
}

/// `mirror compare`
pub fn compare(node: &Arc<Node>, name: &str, peer: &str) -> Result<String, Refusal> {
    let host = node.host(name)?;
    let id = facts_of(node, name).map_or(0, |facts| facts.volume_id);
    let driver = {
        let mut held = host.hold("looking for a mirror")?;
        match &mut *held {
            Engine::Master(master) => master.driver(peer),
            _ => {
                return Err(Refusal::new(
                    Code::NotAllowed,
                    format!("volume {name} is not open as its master here"),
                    format!("lockstep status {name}; the command is given on the master"),
                ));
            }
        }
    };
    let driver = driver.ok_or_else(|| Refusal::no_mirror(name, peer))?;
    let mut question = question(node, name, id, Standing::Master);
    if let Message::RoleQuery { history, .. } = &mut question {
        *history = true;
    }
    let limit = node.config.role_query().max(Duration::from_secs(3));
    let said = node.runtime.block_on(ask_one(node, peer, question, limit));
    let (standing, theirs) = match said {
        Ok(Message::RoleAnswer {
            standing, history, ..
        }) => (standing, history),
        Ok(_) => (Standing::Absent, None),
        Err(why) => {
            return Err(Refusal::new(
                Code::Timeout,
                format!("{peer} could not be asked: {why}"),
                format!("lockstep status {name}"),
            ));
        }
    };
    let Some(theirs) = theirs else {
        return Ok(format!(
            "{name}: {peer} has no copy yet: every allocated block would be copied"
        ));
    };
    let lines = driver.compare(theirs, standing == Standing::Master)?;
    Ok(lines.join("\n"))
}
