//! Operators who promote, rejoin, and settle a dispute with the command that a refusal names.
//!
//! Owns the choice of the node, and the reading of refusals: a command is given as its sentence says, on the node that it
//! says. Invariant: there is no other way out of a dispute here.

use states::State;

use super::node::Host;
use super::world::World;

/// A command that a sentence names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Command {
    Promote,
    Rejoin { master: usize, discard: bool },
}

/// A command that a sentence names, and the node on which it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Advice {
    on: usize,
    command: Command,
}

impl World {
    fn some_node(&self, v: usize) -> usize {
        let shape = &self.volumes[v].shape;
        let all = [&[shape.master], &shape.mirrors[..]].concat();
        all[self.random.below(all.len() as u64) as usize]
    }

    pub fn promote_some(&mut self) -> bool {
        let v = self.random.below(self.volumes.len() as u64) as usize;
        let n = self.some_node(v);
        let force = self.random.chance(25);
        self.nodes[n].is_up() && self.promote(n, v, force)
    }

    pub fn rejoin_some(&mut self) -> bool {
        let v = self.random.below(self.volumes.len() as u64) as usize;
        let (n, master) = (self.some_node(v), self.some_node(v));
        let discard = self.random.chance(50);
        self.nodes[n].is_up() && self.rejoin(n, v, master, discard)
    }

    /// Does what the refusals of a volume say, one thing at a time. True if there was something to do.
    pub fn settle_disputes(&mut self, v: usize) -> bool {
        let now = self.now;
        let mut advice = Vec::new();
        for n in 0..self.nodes.len() {
            let texts: Vec<String> = match self.host(n, v) {
                Some(Host::Closed(why)) => vec![why.clone()],
                Some(Host::Master(host)) => {
                    let drivers = host.drivers.values();
                    let stuck = drivers.filter(|driver| driver.mirror.state() == State::Error);
                    stuck
                        .map(|driver| driver.mirror.status(now).reason)
                        .collect()
                }
                _ => Vec::new(),
            };
            for text in texts {
                advice.extend(self.advice(n, &text));
            }
        }
        let at = self.random.below(advice.len() as u64) as usize;
        let Some(Advice { on, command }) = advice.get(at).cloned() else {
            return false;
        };
        let done = self.nodes[on].is_up()
            && match command {
                Command::Promote => self.promote(on, v, false),
                Command::Rejoin { master, discard } => self.rejoin(on, v, master, discard),
            };
        if done {
            self.tally
                .check("dispute settled by the command that the refusal names", 1);
        }
        done
    }

    /// The commands that a sentence names, read on node `n`.
    fn advice(&self, n: usize, text: &str) -> Vec<Advice> {
        let mut found = Vec::new();
        for (at, _) in text.match_indices("lockstep ") {
            let words: Vec<&str> = text[at..]
                .split([' ', ',', ';', '.', ')'])
                .filter(|word| !word.is_empty())
                .take(6)
                .collect();
            let named = words.get(3).and_then(|name| self.number(name));
            let command = match (words.get(1), named) {
                (Some(&"promote"), _) if words.get(3) != Some(&"--force") => Command::Promote,
                (Some(&"rejoin"), Some(master)) => Command::Rejoin {
                    master,
                    discard: words.get(4) == Some(&"--discard"),
                },
                _ => continue,
            };
            let on = text[..at]
                .trim_end()
                .strip_suffix(':')
                .and_then(|before| before.rsplit(' ').next())
                .and_then(|name| self.number(name));
            found.push(Advice {
                on: on.unwrap_or(n),
                command,
            });
        }
        found
    }

    /// Every node that is a volume's master, for all that it knows.
    pub fn masters(&self, v: usize) -> Vec<usize> {
        let is_master = |n: &usize| {
            let hosts = self.nodes[*n].hosts.as_ref();
            matches!(hosts.and_then(|hosts| hosts.get(&v)), Some(Host::Master(_)))
        };
        (0..self.nodes.len()).filter(is_master).collect()
    }

    /// Faults have stopped, and everybody has been asked: one master, which nobody disputes.
    pub fn one_master(&self, v: usize) {
        let masters = self.masters(v);
        assert!(
            masters.len() == 1,
            "roles: v{v} has the masters {masters:?} at the end"
        );
    }
}
