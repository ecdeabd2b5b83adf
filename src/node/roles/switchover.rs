//! `switchover`: the master hands a volume over to one of its mirrors, which has everything.
//!
//! Owns the order: nothing is given away before the peer says that it is ready; from the hand-over on, nobody writes here
//! until it is known who is the master. Every step is bounded in time, and said with its duration.

use super::change::{self, open_promoted};
use super::{facts_of, frame, known_as, member, question, understood};
use crate::fs::Writes;
use crate::mirror::master::MasterVolume;
use crate::mirror::ranges::RangeSet;
use crate::mirror::roles::{self as rules, Candidate, Ended, MOST_RANGES};
use crate::mirror::slot::Slot;
use crate::node::catalogue::Role;
use crate::node::control::Answer as Reply;
use crate::node::engine::Engine;
use crate::node::follow::Standing as Copy;
use crate::node::history::NewEvent;
use crate::node::link::Link;
use crate::node::master::{Master, given_up};
use crate::node::protocol::Line;
use crate::node::refusal::{Code, Refusal};
use crate::node::registry::{Host, Node};
use crate::units::Txid;
use crate::volume::facts::{self, HandingOver, Lineage};
use crate::wire::message::{Member, Message, PROTOCOL_VERSION, Place, Range, Standing};
use states::State;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// The mirror has this long to acknowledge the last transaction.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// The other mirrors are waited for so long.
const OTHERS_WITHIN: Duration = Duration::from_millis(200);
/// The mirror has this long to say that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// The last transaction has this long to be shown there.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);
/// The mirror has this long to become the master.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// The command asks for this long what became of a hand-over whose answer was lost; the node goes on asking.
const ASK_FOR: Duration = Duration::from_secs(20);
/// Pause between two such questions.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Pause between two questions of a node that does not know whether it is the master.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Runs of blocks in one frame: 16 bytes each.
const RANGES: usize = 16 << 10;
/// Says what was done, and how long it took.
struct Steps<'a> {
    reply: &'a Reply,
    last: Instant,
}

impl Steps<'_> {
    fn done(&mut self, what: &str) {
        let took = self.last.elapsed().as_secs_f64();
        self.reply.send(Line::Note(format!("{what}: {took:.3} s")));
        self.last = Instant::now();
    }
}

/// Lets writers go on, unless it was decided otherwise.
struct Hold {
    shared: MasterVolume,
    after: Writes,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.fs.set_writes(self.after);
    }
}

/// `switchover`
pub fn switchover(
    node: &Arc<Node>,
    name: &str,
    peer: &str,
    reply: &Reply,
) -> Result<String, Refusal> {
    let host = node.host(name)?;
    let mut held = host.hold("switching over")?;
    let ours = node.config.name.clone();
    let not_here =
        |code, message: String| Refusal::new(code, message, format!("lockstep status {name}"));
    let Engine::Master(master) = &mut *held else {
        return Err(not_here(
            Code::NotAllowed,
            format!("{ours} is not the master of {name}; the command is given on its master"),
        ));
    };
    let view = host.view();
    let mirror = view.mirrors.iter().find(|m| m.peer == peer);
    let mirror = mirror.ok_or_else(|| Refusal::no_mirror(name, peer))?;
    if mirror.state != State::InSync.word() {
        return Err(Refusal::new(
            Code::NotAllowed,
            format!(
                "the mirror of {name} on {peer} is in {}, not in INSYNC: {}",
                mirror.state, mirror.reason
            ),
            format!(
                "lockstep wait {name} {peer} INSYNC, then again; if this master is to be given up: lockstep promote {name}, on {peer}"
            ),
        ));
    }
    let mut steps = Steps {
        reply,
        last: Instant::now(),
    };
    if let Some(wanted) = host.mounts.wanted().filter(|_| view.mounted)
        && let Ok(dir) = std::fs::File::open(&wanted.dir)
    {
        // What the kernel still has: it comes as writes.
        let _ = rustix::fs::syncfs(dir);
    }
    let shared = master.shared();
    let sync = |what: &str| {
        let synced = shared.fs.sync().map(drop);
        synced.map_err(|e| match shared.fs.failure() {
            Some(_) => Refusal::new(Code::Io, format!("{what}: {e}"), given_up(name)),
            None => Refusal::io(what, e),
        })
    };
    sync("committing")?;
    steps.done("flushed the mount's pages");

    let paused = Instant::now();
    let mut hold = Hold {
        shared: shared.clone(),
        after: Writes::Open,
    };
    shared.fs.set_writes(Writes::Held);
    sync("committing the last changes")?;
    let txid = shared.journal.last_committed();
    steps.done(&format!("held new writes; the last transaction is {txid}"));
    drain(master, peer, txid).map_err(|m| not_here(Code::Timeout, m))?;
    steps.done(&format!("{peer} has everything"));

    let slots = master.slots();
    let ready = node
        .runtime
        .block_on(prepare(node, name, peer, &shared, txid));
    let (mut link, token) = ready.map_err(|m| not_here(Code::NotAllowed, m))?;
    steps.done(&format!("{peer} is ready"));
    let (places, maps) = {
        let catalogue = node.catalogue.get();
        let known = |peer: &str| member(&catalogue, peer);
        rules::places(&shared, &slots, peer, txid, super::myself(node), known)
    };
    master.stop_driver(peer);
    remember(
        &shared,
        Some(HandingOver {
            to: peer.to_owned(),
            token,
        }),
    )?;
    // From here on nobody knows who is the master until the peer has said it.
    hold.after = Writes::Refused;
    let mut ended = node
        .runtime
        .block_on(hand_over(&mut link, token, places, maps));
    drop(link);
    if let Ended::Unknown(why) = &ended {
        reply.send(Line::Note(format!(
            "{peer} did not answer ({why}); asking it"
        )));
        ended = find_out(node, name, peer, token, &shared);
    }
    match ended {
        Ended::Taken(theirs) => {
            let pause = paused.elapsed();
            steps.done(&format!("{peer} is the master"));
            drop((hold, shared, slots));
            held.close(node, &host, Duration::ZERO)?;
            let entry = change::entry(node, name)?;
            change::step_back(node, name, &entry, peer, &theirs, false)?;
            held.open(node, &host)?;
            steps.done(&format!("{ours} is its mirror"));
            let sentence = format!(
                "{peer} is the master of {name}, {ours} its mirror; writes paused for {:.3} s",
                pause.as_secs_f64()
            );
            node.record(
                NewEvent::mirror("switched-over", name, peer, &sentence)
                    .with("txid", txid.0)
                    .with("pause_ms", pause.as_millis() as u64),
            );
            Ok(sentence)
        }
        Ended::Refused(why) => {
            remember(&shared, None)?;
            hold.after = Writes::Open;
            drop(hold);
            master.drive_again(node, &host, peer)?;
            Err(not_here(
                Code::NotAllowed,
                format!("{peer} did not take {name} over: {why}; {ours} is its master, as before"),
            ))
        }
        Ended::Unknown(why) => {
            drop((hold, shared, slots));
            held.close(node, &host, Duration::ZERO)?;
            // Opens for reading, and goes on asking.
            held.open(node, &host)?;
            Err(Refusal::new(
                Code::Timeout,
                format!(
                    "whether {peer} is the master of {name} now is not known ({why}); nothing is written here until it says so"
                ),
                format!(
                    "start {peer}, or mend the connection: the rest happens by itself; if {peer} is lost for good: lockstep promote {name} --force"
                ),
            ))
        }
    }
}

fn remember(shared: &MasterVolume, handing: Option<HandingOver>) -> Result<(), Refusal> {
    let mut facts = shared.facts.lock();
    facts.handing_over = handing;
    let saved = shared.store.save(&facts);
    saved.map_err(|e| Refusal::io("the facts", e))
}

fn drain(master: &Master, peer: &str, txid: Txid) -> Result<(), String> {
    let slots = master.slots();
    let slot = slots.iter().find(|slot| slot.peer == peer);
    let slot = slot.ok_or("the mirror is gone")?;
    let until = Instant::now() + DRAIN_WITHIN;
    let began = Instant::now();
    let others_have = || {
        let behind = |slot: &&Arc<Slot>| slot.state.lock().acked < txid;
        !slots.iter().any(|slot| behind(&slot))
    };
    loop {
        let acked = slot.state.lock().acked;
        // The others save themselves a repair, if they are quick.
        if acked >= txid && (others_have() || began.elapsed() >= OTHERS_WITHIN) {
            return Ok(());
        }
        if acked < txid && Instant::now() >= until {
            let limit = DRAIN_WITHIN.as_secs();
            return Err(format!(
                "{peer} acknowledged transaction {acked} of {txid} within {limit} s; this node goes on as the master"
            ));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Asks the peer whether it can be the master; the connection on which it waits for the hand-over.
async fn prepare(
    node: &Node,
    name: &str,
    peer: &str,
    shared: &MasterVolume,
    txid: Txid,
) -> Result<(Link, u64), String> {
    let known = node.catalogue.get().peers.get(peer).cloned();
    let known = known.ok_or("it is no peer any more")?;
    let token = node.random.u128() as u64;
    let volume_id = shared.facts.lock().volume_id;
    let asked = timeout(READY_WITHIN, async {
        let dead_after = node.config.peer_timeout();
        let (address, key) = (known.address, known.fingerprint);
        let dialled = node.trunks.dial(peer.to_owned(), &address, key, dead_after);
        let mut link = dialled.await.map_err(|end| end.to_string())?;
        let prepare = Message::Prepare {
            version: PROTOCOL_VERSION,
            volume: name.to_owned(),
            volume_id,
            token,
            txid: txid.0,
            chain: shared.journal.chain(),
        };
        let sent = link.sender.send(frame(prepare)).await;
        sent.map_err(|_| "the connection ended".to_owned())?;
        let answer = link.receiver.recv().await.map_err(|end| end.to_string())?;
        match answer.header {
            Message::Prepared { token: t, refusal } if t == token && refusal.is_empty() => Ok(link),
            Message::Prepared { refusal, .. } => Err(refusal),
            _ => Err("it gave another answer".to_owned()),
        }
    });
    match asked.await {
        Ok(Ok(link)) => Ok((link, token)),
        Ok(Err(why)) => Err(format!("{peer} is not ready: {why}")),
        Err(_) => Err(format!(
            "{peer} did not answer within {} s",
            READY_WITHIN.as_secs()
        )),
    }
}

async fn hand_over(
    link: &mut Link,
    token: u64,
    places: Vec<Place>,
    maps: Vec<(u32, RangeSet)>,
) -> Ended {
    let told = timeout(TAKEN_WITHIN, async {
        for (place, dirty) in maps {
            let ranges: Vec<Range> = dirty.iter().map(Range::from).collect();
            for chunk in ranges.chunks(RANGES) {
                let ranges = chunk.to_vec();
                let sent = link
                    .sender
                    .send(frame(Message::HandOverMap { place, ranges }));
                if sent.await.is_err() {
                    return Ended::Unknown("the connection ended".to_owned());
                }
            }
        }
        if link
            .sender
            .send(frame(Message::HandOver { token, places }))
            .await
            .is_err()
        {
            return Ended::Unknown("the connection ended".to_owned());
        }
        match link.receiver.recv().await {
            Ok(answer) => rules::handed_over(token, answer.header),
            Err(end) => Ended::Unknown(end.to_string()),
        }
    });
    told.await.unwrap_or_else(|_| {
        Ended::Unknown(format!("no answer within {} s", TAKEN_WITHIN.as_secs()))
    })
}

/// What became of a hand-over: asks until the peer says, within limits. A peer that says that it is a mirror has
/// forgotten the hand-over by then.
fn find_out(node: &Arc<Node>, name: &str, peer: &str, token: u64, shared: &MasterVolume) -> Ended {
    let until = Instant::now() + ASK_FOR;
    let (id, ours) = {
        let facts = shared.facts.lock();
        (facts.volume_id, facts.generations.clone())
    };
    loop {
        let why = match ask_after(node, name, id, peer, token, &ours) {
            Ended::Unknown(why) => why,
            known => return known,
        };
        if Instant::now() >= until {
            return Ended::Unknown(why);
        }
        std::thread::sleep(ASK_EVERY);
    }
}

fn ask_after(
    node: &Arc<Node>,
    name: &str,
    id: u128,
    peer: &str,
    token: u64,
    ours: &[Lineage],
) -> Ended {
    let mut query = question(node, name, id, Standing::Master);
    if let Message::RoleQuery { revoke, .. } = &mut query {
        *revoke = Some(token);
    }
    let limit = node.config.role_query();
    let said = node
        .runtime
        .block_on(super::ask_one(node, peer, query, limit));
    let answer = match said {
        Ok(message) => understood(node, peer, message),
        Err(why) => return Ended::Unknown(why),
    };
    rules::asked_after(ours, answer)
}

/// Asks again and again what became of a hand-over, and opens the volume as what it is then.
pub fn ask_again(node: &Arc<Node>, host: &Arc<Host>) {
    let (node, host) = (Arc::clone(node), Arc::clone(host));
    let asking = move || {
        while !node.is_stopping() {
            std::thread::sleep(ASK_AGAIN);
            let name = host.name();
            let Some(facts) = facts_of(&node, name) else {
                return;
            };
            let Some(handing) = &facts.handing_over else {
                return;
            };
            if let Ended::Unknown(_) = settle(&node, name, &facts, handing) {
                continue;
            }
            if let Ok(mut held) = host.hold("opening") {
                let closed = held.close(&node, &host, Duration::ZERO);
                // What goes wrong is in the view; an undecided opening asks by itself.
                if closed.is_ok() {
                    drop(held.open(&node, &host));
                }
                return;
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name("whose".to_owned())
        .spawn(asking);
    if let Err(error) = thread {
        tracing::error!("nobody asks who is the master: {error}");
    }
}

/// What became of a hand-over, at the start of a node that does not know.
pub fn settle(node: &Arc<Node>, name: &str, facts: &facts::Facts, handing: &HandingOver) -> Ended {
    let (id, ours) = (facts.volume_id, &facts.generations);
    ask_after(node, name, id, &handing.to, handing.token, ours)
}

// ---- the other side ----

/// A master wants to hand a volume over: a link that began with `Prepare`.
pub async fn taking_over(node: Arc<Node>, mut link: Link, prepare: Message) {
    let Message::Prepare {
        version,
        volume,
        volume_id,
        token,
        txid,
        chain,
    } = prepare
    else {
        return;
    };
    let peer = link.peer.clone();
    let asked = {
        let (node, volume, peer) = (Arc::clone(&node), volume.clone(), peer.clone());
        tokio::task::spawn_blocking(move || {
            if version != PROTOCOL_VERSION {
                return Err(format!(
                    "it speaks version {PROTOCOL_VERSION}, not {version}"
                ));
            }
            ready(&node, &volume, volume_id, &peer, Txid(txid))
        })
    };
    let refusal = match asked.await {
        Ok(Ok(())) => String::new(),
        Ok(Err(why)) => why,
        Err(e) => e.to_string(),
    };
    let refused = !refusal.is_empty();
    let _ = link
        .sender
        .send(frame(Message::Prepared { token, refusal }))
        .await;
    let mut maps: BTreeMap<u32, RangeSet> = BTreeMap::new();
    let places = loop {
        let Ok(Ok(next)) = timeout(TAKEN_WITHIN, link.receiver.recv()).await else {
            return;
        };
        match next.header {
            Message::HandOverMap { place, ranges } if !refused => {
                let map = maps.entry(place).or_default();
                ranges.iter().for_each(|range| map.insert((*range).into()));
                if map.len() > MOST_RANGES || maps.len() > 64 {
                    return tracing::warn!(peer, "a hand-over that names too many blocks");
                }
            }
            Message::HandOver { token: t, places } if !refused && t == token => break places,
            _ => return tracing::warn!(peer, "a frame that is out of place in a hand-over"),
        }
    };
    let taken = tokio::task::spawn_blocking(move || {
        take_over(
            &node,
            &volume,
            &peer,
            token,
            (Txid(txid), chain),
            &places,
            maps,
        )
    });
    let (refusal, generations) = match taken.await {
        Ok(Ok(lineage)) => (String::new(), crate::mirror::roles::forks(&lineage)),
        Ok(Err(why)) => (why, Vec::new()),
        // Nothing is said: the master asks.
        Err(e) => return tracing::error!("a hand-over was cut short: {e}"),
    };
    let answer = Message::HandedOver {
        token,
        refusal,
        generations,
    };
    let _ = link.sender.send(frame(answer)).await;
    let _ = timeout(Duration::from_secs(2), link.receiver.recv()).await;
}

/// Whether this mirror has everything up to `txid`, and can be the master.
fn ready(node: &Arc<Node>, name: &str, id: u128, peer: &str, txid: Txid) -> Result<(), String> {
    let host = node.host(name).map_err(|e| e.message)?;
    let held = host.hold("getting ready").map_err(|e| e.message)?;
    let facts = facts_of(node, name).filter(|facts| facts.volume_id == id);
    let facts = facts.ok_or("it has no such volume")?;
    let follows = matches!(
        node.catalogue.get().volumes.get(name).map(|v| &v.role),
        Some(Role::Mirror { master }) if master == peer
    );
    let Engine::Mirror(follow) = &*held else {
        return Err("it is no mirror".to_owned());
    };
    if !follows {
        return Err("it follows another master".to_owned());
    }
    let until = Instant::now() + SHOWN_WITHIN;
    loop {
        let copy: Copy = follow.standing().ok_or("its copy does not answer")?;
        let candidate = Candidate {
            consistent: copy.consistent,
            applied: copy.applied,
        };
        if rules::is_ready(&facts, candidate, txid)? {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(format!(
                "it has everything up to {}, not {txid}",
                copy.applied
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Becomes the master.
fn take_over(
    node: &Arc<Node>,
    name: &str,
    peer: &str,
    token: u64,
    at: (Txid, u64),
    places: &[Place],
    maps: BTreeMap<u32, RangeSet>,
) -> Result<Vec<Lineage>, String> {
    let host = node.host(name).map_err(|e| e.message)?;
    let mut held = host.hold("taking over").map_err(|e| e.message)?;
    if node.is_revoked(token) {
        return Err("the hand-over was given up".to_owned());
    }
    let catalogue = node.catalogue.get();
    let old = catalogue
        .volumes
        .get(name)
        .cloned()
        .ok_or("the volume is gone")?;
    let Engine::Mirror(follow) = std::mem::replace(&mut *held, Engine::Closed) else {
        return Err("it is no mirror".to_owned());
    };
    host.mounts.withdraw();
    let stopped = follow.stop();
    let opened = stopped.map_err(|e| e.message).and_then(|()| {
        let facts = facts_of(node, name).ok_or("its facts are gone")?;
        let known = |member: &Member| known_as(&catalogue, member).map(str::to_owned);
        let peers = rules::heirs(&facts, at, peer, places, maps, known)?;
        open_promoted(node, &host, &old, peer, false, Some(peers)).map_err(|e| e.to_string())
    });
    match opened {
        Ok((engine, fork)) => {
            *held = engine;
            let text = format!("{} took {name} over from {peer}", node.config.name);
            node.record(NewEvent::mirror("took-over", name, peer, text).with("fork", fork.0));
            let facts = facts_of(node, name).ok_or("its facts are gone")?;
            Ok(facts.generations)
        }
        Err(why) => {
            let _ = super::reconcile(node, name);
            let facts = facts_of(node, name);
            if let Err(error) = held.open(node, &host) {
                tracing::error!(volume = name, "{error}");
            }
            match facts {
                // The facts changed before something failed: this node is the master.
                Some(facts) if facts.role == facts::Role::Master => Ok(facts.generations),
                _ => Err(why),
            }
        }
    }
}

/// Forgets a hand-over that has not been carried out; `false` when that can not be said now.
pub fn revoke(node: &Arc<Node>, host: &Host, token: u64) -> bool {
    match host.hold_within("forgetting a hand-over", Duration::from_millis(500)) {
        Ok(_held) => {
            node.revoke(token);
            true
        }
        Err(_) => false,
    }
}
