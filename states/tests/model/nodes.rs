//! Nodes, reduced: who has which transactions of which generation, and what each master's machine says of each mirror.
//!
//! Owns what a step of the world does. A transaction is a write with a txid. Invariants to be found broken, if they are:
//! an acknowledged write is with everybody who had to have it before it was acknowledged, or kept aside; no node follows
//! two masters, and no master follows; when nothing more can happen, everybody is in sync or waits for the operator.

use std::hash::Hash;

use stateright::{Model, Property};
use states::reconnect::{self, Chain, Copy, Decision, DirtyMap, Fate, Lineage, Role};
use states::{Cause, Command, Decided, Event, Facts, Next, State};

/// How much may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    pub writes: u8,
    pub crashes: u8,
    pub cuts: u8,
    pub promotions: u8,
    pub cracks: u8,
}

pub struct Nodes {
    pub nodes: usize,
    pub budget: Budget,
}

/// One transaction in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    txid: u64,
    write: u8,
}

/// A master's machine for one mirror, and the facts it looks at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Machine {
    state: State,
    linked: bool,
    copying: bool,
    error: Option<Cause>,
    map: Option<(u64, u64)>,
}

impl Machine {
    fn new() -> Machine {
        Machine {
            state: State::New,
            linked: false,
            copying: false,
            error: None,
            map: None,
        }
    }

    fn facts(&self) -> Facts {
        Facts {
            linked: self.linked,
            secured: true,
            error: self.error,
            copying: self.copying,
            dirty: self.map.is_some(),
            ..Facts::default()
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    up: bool,
    master: bool,
    history: Vec<(u128, u64)>,
    log: Vec<Entry>,
    confirmed: u64,
    /// It is being copied to: not a state that a master had.
    copying: bool,
    /// What only it had, when it stepped back for the one that was promoted.
    aside: Vec<u8>,
    /// Blocks of what it kept aside are home: it is to be repaired.
    own_dirty: bool,
    /// Whose stream brought its newest generation.
    sender: Option<usize>,
    /// A master: the transaction that is being committed.
    prepared: Option<Entry>,
    /// A master: committed, and not acknowledged yet.
    awaiting: Option<Entry>,
    machines: Vec<Machine>,
    high: u64,
}

impl Node {
    fn last(&self) -> u64 {
        self.log.last().map_or(0, |entry| entry.txid)
    }

    fn keep_aside(&mut self, after: u64) {
        let gone = self.log.iter().filter(|entry| entry.txid > after);
        self.aside.extend(gone.map(|entry| entry.write));
    }

    /// What `mirror::roles::StepBack` does.
    fn step_back(&mut self, fork: u64, theirs: &[(u128, u64)]) {
        self.master = false;
        self.own_dirty |= self.last() > fork;
        self.keep_aside(fork);
        self.log.retain(|entry| entry.txid <= fork);
        self.confirmed = self.confirmed.min(fork);
        self.history.retain(|entry| theirs.contains(entry));
    }

    fn has(&self, write: u8) -> bool {
        self.log.iter().any(|entry| entry.write == write) || self.aside.contains(&write)
    }
}

/// An acknowledged write, and who had to have it.
type Acked = (u8, Vec<usize>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    nodes: Vec<Node>,
    left: Budget,
    acked: Vec<Acked>,
    next_generation: u128,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A master writes the transaction's blocks to its log; its mirrors may have it from now on.
    Prepare(usize),
    /// It arrives in a mirror's log.
    Ship(usize, usize),
    /// The master's own log is flushed.
    Commit(usize),
    /// Nothing stands against saying so.
    Acknowledge(usize),
    /// A mirror hears that its master has committed.
    Confirm(usize, usize),
    /// The power goes; what was under way is durable (`true`) or not.
    Crash(usize, bool),
    Start(usize),
    Cut(usize, usize),
    /// A link stands: everything up to the decision.
    Contact(usize, usize),
    /// A copy comes to its end.
    Finish(usize, usize),
    /// The log gives up what a mirror lacks.
    Crack(usize, usize),
    Promote(usize),
}

fn lineages(history: &[(u128, u64)]) -> Vec<Lineage> {
    history
        .iter()
        .map(|(generation, fork)| Lineage {
            generation: *generation,
            fork: *fork,
        })
        .collect()
}

/// Where `theirs` goes on from `ours`, if it does.
fn fork_of(ours: &[(u128, u64)], theirs: &[(u128, u64)]) -> Option<u64> {
    let later = theirs.strip_prefix(ours)?;
    later.iter().map(|(_, fork)| *fork).min()
}

fn chain(log: &[Entry], at: u64) -> u64 {
    log.iter()
        .filter(|entry| entry.txid <= at)
        .fold(0, |hash, entry| {
            (hash * 31 + entry.txid) * 31 + u64::from(entry.write) + 1
        })
}

impl World {
    fn open(&mut self, n: usize) {
        let generation = self.next_generation;
        self.next_generation += 1;
        let count = self.nodes.len();
        let node = &mut self.nodes[n];
        node.up = true;
        node.master = true;
        node.own_dirty = false;
        let fork = node.last();
        node.history.push((generation, fork));
        node.high = node.high.max(fork) + 10;
        node.confirmed = fork;
        let maps: Vec<_> = node.machines.iter().map(|machine| machine.map).collect();
        node.machines = (0..count).map(|_| Machine::new()).collect();
        for (machine, map) in node.machines.iter_mut().zip(maps) {
            machine.map = map;
        }
        for m in 0..count {
            if m != n {
                self.fire(n, m, Event::Started);
            }
        }
    }

    /// One step of a machine, and everything that it commands.
    fn fire(&mut self, n: usize, m: usize, event: Event) {
        let machine = &mut self.nodes[n].machines[m];
        let transition = states::step(machine.state, &machine.facts(), event).expect("a fact");
        if let Next::Enter(state) = transition.next {
            machine.state = state;
        }
        for command in transition.commands {
            let machine = &mut self.nodes[n].machines[m];
            match command {
                Command::SecureBuffer => self.fire(n, m, Event::Secured),
                Command::Connect if !machine.linked => {
                    self.fire(n, m, Event::LinkLost);
                    return;
                }
                Command::Connect => self.fire(n, m, Event::Connected),
                Command::MakeParts => self.fire(n, m, Event::PartsReady),
                Command::Decide => self.decide(n, m),
                Command::BeginCopy | Command::BeginResync | Command::BeginPass => {
                    machine.copying = true;
                    self.nodes[m].copying = true;
                }
                Command::StopCopy => machine.copying = false,
                Command::CloseLink => machine.linked = false,
                Command::RecordError => machine.error = transition.cause,
                Command::ForgetError => machine.error = None,
                _ => {}
            }
        }
    }

    fn decide(&mut self, n: usize, m: usize) {
        let (ours, theirs) = (&self.nodes[n], &self.nodes[m]);
        let (our_history, their_history) = (lineages(&ours.history), lineages(&theirs.history));
        let map = ours.machines[m].map;
        let master = reconnect::Master {
            volume: 1,
            history: &our_history,
            committed: ours.last(),
            log_after: Some(map.map_or(0, |(_, through)| through)),
            map: map.map(|(from_txid, through_txid)| DirtyMap {
                bits_set: 1,
                from_txid,
                through_txid,
                lost: false,
            }),
            changed_outside: false,
        };
        let mirror = reconnect::Mirror {
            volume: 1,
            role: Role::Mirror,
            history: &their_history,
            applied: theirs.confirmed.min(theirs.last()),
            durable: theirs.last(),
            confirmed: theirs.confirmed,
            copy: Copy::Complete,
            consistent_at: (!theirs.copying).then_some(0),
            reach: 0,
            tainted: false,
            map: theirs.own_dirty.then_some(DirtyMap {
                bits_set: 1,
                from_txid: 0,
                through_txid: theirs.last(),
                lost: false,
            }),
            may_rejoin: false,
        };
        let chain = reconnect::last_shared(&master, &mirror).map(|at| Chain {
            at,
            mirror: chain(&theirs.log, at),
            master: Some(chain(&ours.log, at)),
        });
        let outcome = reconnect::decide(&master, &mirror, chain);
        let history = ours.history.clone();
        let log = ours.log.clone();
        let committed = ours.last();
        let theirs = &mut self.nodes[m];
        if !matches!(outcome.decision, Decision::Error(_)) {
            if let Some(after) = outcome.drop_unconfirmed_after {
                let fate = reconnect::fate(&our_history, &their_history, theirs.sender == Some(n));
                if fate == Fate::KeptAside {
                    theirs.keep_aside(after);
                }
                theirs.log.retain(|entry| entry.txid <= after);
            }
            theirs.history = history;
            theirs.sender = Some(n);
        }
        if let Decision::InSyncByReplay { after } = outcome.decision {
            theirs
                .log
                .extend(log.iter().filter(|entry| entry.txid > after));
            theirs.confirmed = committed;
        }
        self.fire(n, m, Event::Decided(Decided::from(&outcome)));
    }

    /// A master that may be followed instead: it goes on from what this node has.
    fn successor(&self, n: usize) -> Option<usize> {
        let generation = self.nodes[n].history.last()?.0;
        (0..self.nodes.len()).find(|m| {
            let other = &self.nodes[*m];
            *m != n
                && other.up
                && other.master
                && other.history.iter().any(|(g, _)| *g == generation)
        })
    }

    /// A machine's mirror is in sync.
    fn follows(&self, n: usize, m: usize) -> bool {
        self.nodes[n].up && self.nodes[n].master && self.nodes[n].machines[m].state == State::InSync
    }

    fn drop_link(&mut self, n: usize, m: usize) {
        if self.nodes[n].machines[m].linked {
            self.nodes[n].machines[m].linked = false;
            self.fire(n, m, Event::LinkLost);
        }
    }
}

impl Model for Nodes {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let node = |master| Node {
            up: true,
            master,
            history: vec![(1, 0)],
            log: Vec::new(),
            confirmed: 0,
            copying: false,
            aside: Vec::new(),
            own_dirty: false,
            sender: None,
            prepared: None,
            awaiting: None,
            machines: vec![Machine::new(); self.nodes],
            high: 0,
        };
        let mut world = World {
            nodes: (0..self.nodes).map(|n| node(n == 0)).collect(),
            left: self.budget,
            acked: Vec::new(),
            next_generation: 2,
        };
        world.open(0);
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let left = &world.left;
        for (n, node) in world.nodes.iter().enumerate() {
            if !node.up {
                actions.push(Action::Start(n));
                continue;
            }
            if left.crashes > 0 {
                actions.push(Action::Crash(n, false));
                if node.prepared.is_some() {
                    actions.push(Action::Crash(n, true));
                }
            }
            if !node.master {
                let led = (0..self.nodes).any(|m| world.nodes[m].up && world.nodes[m].master);
                // Operators promote when the master is gone; any mirror, also one that lacks what was acknowledged.
                if left.promotions > 0 && !node.copying && !led {
                    actions.push(Action::Promote(n));
                }
                continue;
            }
            if left.writes > 0 && node.prepared.is_none() && node.awaiting.is_none() {
                actions.push(Action::Prepare(n));
            }
            if node.prepared.is_some() {
                actions.push(Action::Commit(n));
            }
            let due = node.prepared.or(node.awaiting);
            let owed = |entry: Entry| {
                (0..self.nodes).any(|m| world.follows(n, m) && world.nodes[m].last() < entry.txid)
            };
            if node.awaiting.is_some_and(|entry| !owed(entry)) {
                actions.push(Action::Acknowledge(n));
            }
            for (m, machine) in node.machines.iter().enumerate() {
                if m == n {
                    continue;
                }
                let other = &world.nodes[m];
                if world.follows(n, m) {
                    if due.is_some_and(|entry| other.last() < entry.txid) {
                        actions.push(Action::Ship(n, m));
                    }
                    if other.confirmed < node.last().min(other.last()) {
                        actions.push(Action::Confirm(n, m));
                    }
                }
                if machine.linked && left.cuts > 0 {
                    actions.push(Action::Cut(n, m));
                }
                if !machine.linked && other.up && machine.state == State::LinkDown {
                    actions.push(Action::Contact(n, m));
                }
                if machine.linked && machine.copying {
                    actions.push(Action::Finish(n, m));
                }
                let behind = other.last() < node.last();
                if left.cracks > 0 && machine.state == State::LinkDown && behind {
                    actions.push(Action::Crack(n, m));
                }
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        match action {
            Action::Prepare(n) => {
                world.left.writes -= 1;
                let write = self.budget.writes - world.left.writes;
                let node = &mut world.nodes[n];
                node.high += 1;
                node.prepared = Some(Entry {
                    txid: node.high,
                    write: write * 8 + n as u8,
                });
            }
            Action::Ship(n, m) => {
                let entry = world.nodes[n].prepared.or(world.nodes[n].awaiting)?;
                world.nodes[m].log.push(entry);
            }
            Action::Commit(n) => {
                let node = &mut world.nodes[n];
                let entry = node.prepared.take()?;
                node.log.push(entry);
                node.confirmed = entry.txid;
                node.awaiting = Some(entry);
            }
            Action::Acknowledge(n) => {
                let entry = world.nodes[n].awaiting.take()?;
                let mut holders = vec![n];
                holders.extend((0..self.nodes).filter(|m| world.follows(n, *m)));
                world.acked.push((entry.write, holders));
            }
            Action::Confirm(n, m) => {
                let last = world.nodes[n].last();
                let node = &mut world.nodes[m];
                node.confirmed = last.min(node.last());
            }
            Action::Crash(n, durable) => {
                world.left.crashes -= 1;
                let count = self.nodes;
                let node = &mut world.nodes[n];
                node.up = false;
                node.awaiting = None;
                if let Some(entry) = node.prepared.take().filter(|_| durable) {
                    node.log.push(entry);
                }
                let maps: Vec<_> = node.machines.iter().map(|machine| machine.map).collect();
                node.machines = vec![Machine::new(); count];
                for (machine, map) in node.machines.iter_mut().zip(maps) {
                    machine.map = map;
                }
                for other in 0..count {
                    if other != n && world.nodes[other].up && world.nodes[other].master {
                        world.drop_link(other, n);
                    }
                }
            }
            Action::Start(n) => match (world.nodes[n].master, world.successor(n)) {
                (false, _) => world.nodes[n].up = true,
                (true, None) => world.open(n),
                (true, Some(master)) => {
                    let theirs = world.nodes[master].history.clone();
                    let node = &mut world.nodes[n];
                    node.up = true;
                    if let Some(fork) = fork_of(&node.history, &theirs) {
                        node.step_back(fork, &theirs);
                    }
                }
            },
            Action::Cut(n, m) => {
                world.left.cuts -= 1;
                world.drop_link(n, m);
            }
            Action::Contact(n, m) => {
                if world.nodes[m].master {
                    world.fire(n, m, Event::Contact);
                    world.fire(n, m, Event::SevereFailure(Cause::TwoMasters));
                } else {
                    // It talks to one master at a time: the newest.
                    for other in 0..self.nodes {
                        if other != n && world.nodes[other].up && world.nodes[other].master {
                            world.drop_link(other, m);
                        }
                    }
                    world.nodes[n].machines[m].linked = true;
                    // What it has shown past the fork is kept aside before the histories are compared.
                    let ours = world.nodes[n].history.clone();
                    let other = &mut world.nodes[m];
                    if let Some(fork) = fork_of(&other.history, &ours)
                        && other.confirmed > fork
                        && !other.copying
                    {
                        other.step_back(fork, &ours);
                    }
                    world.fire(n, m, Event::Contact);
                }
            }
            Action::Finish(n, m) => {
                let (log, confirmed) = (world.nodes[n].log.clone(), world.nodes[n].last());
                let node = &mut world.nodes[m];
                node.log = log;
                node.confirmed = confirmed;
                node.copying = false;
                node.own_dirty = false;
                let machine = &mut world.nodes[n].machines[m];
                machine.copying = false;
                machine.map = None;
                world.fire(n, m, Event::CopyFinished);
            }
            Action::Crack(n, m) => {
                world.left.cracks -= 1;
                let (from, through) = (world.nodes[m].last(), world.nodes[n].last());
                world.nodes[n].machines[m].map = Some((from, through));
                world.fire(n, m, Event::Cracked);
            }
            Action::Promote(n) => {
                world.left.promotions -= 1;
                // The old one's link to it, if there is one, is cut off.
                for other in 0..self.nodes {
                    if other != n && world.nodes[other].up && world.nodes[other].master {
                        world.drop_link(other, n);
                    }
                }
                world.open(n);
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always("no acknowledged write is lost", |_, world| {
                let kept = |n: &usize, write| world.nodes[*n].has(write);
                let with_all = |(write, holders): &Acked| holders.iter().all(|n| kept(n, *write));
                world.acked.iter().all(with_all)
            }),
            Property::<Self>::always("at most one undisputed master", |model, world| {
                (0..model.nodes).all(|m| {
                    let led_by = (0..model.nodes).filter(|n| world.follows(*n, m)).count();
                    led_by <= usize::from(!world.nodes[m].master)
                })
            }),
            Property::<Self>::always("in sync means equal", |model, world| {
                (0..model.nodes).all(|n| {
                    let node = &world.nodes[n];
                    (0..model.nodes).filter(|m| world.follows(n, *m)).all(|m| {
                        let other = &world.nodes[m];
                        let confirmed = |entry: &&Entry| entry.txid <= other.confirmed;
                        other
                            .log
                            .iter()
                            .filter(confirmed)
                            .all(|entry| node.log.contains(entry))
                    })
                })
            }),
            Property::<Self>::always("no trap", |model, world| {
                let mut actions = Vec::new();
                model.actions(world, &mut actions);
                let settled = |node: &Node, n: usize| {
                    node.machines.iter().enumerate().all(|(m, machine)| {
                        m == n || matches!(machine.state, State::InSync | State::Error)
                    })
                };
                !actions.is_empty()
                    || world
                        .nodes
                        .iter()
                        .enumerate()
                        .all(|(n, node)| !node.master || settled(node, n))
            }),
            Property::<Self>::sometimes("a write is acknowledged by all", |model, world| {
                let everybody = |(_, holders): &Acked| holders.len() == model.nodes;
                world.acked.iter().any(everybody)
            }),
            Property::<Self>::sometimes("a promoted mirror has followers", |model, world| {
                (1..model.nodes).any(|n| (0..model.nodes).any(|m| world.follows(n, m)))
            }),
        ]
    }
}
