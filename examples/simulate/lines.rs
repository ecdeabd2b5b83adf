//! The histories of a volume: one for each node that was made the master, beginning where it left another one.
//!
//! Owns which history a node's copy is of. A copy belongs to the history in which its newest generation was minted.
//! Invariant: only one node ever adds to a history; what another one adds to a copy of it is a new history.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockstepfs::mirror::master::MasterVolume;
use lockstepfs::mirror::roles::{Relation, relation};
use lockstepfs::units::{Generation, Txid};
use lockstepfs::volume::facts::{Lineage, NOTHING};
use parking_lot::Mutex;

use super::golden::Golden;
use super::script::VolumeShape;

/// One history.
pub struct Line {
    pub golden: Arc<Mutex<Golden>>,
    /// The last transaction that was acknowledged to an application.
    pub acked: Txid,
    /// Openings that are part of it.
    generations: BTreeSet<Generation>,
    /// The generations of its master, when it opened last.
    lineage: Vec<Lineage>,
    /// The node that adds to it; none once it has given it up.
    master: Option<usize>,
}

impl Line {
    /// Whether a generation, as it is written, is of this history.
    pub fn has_generation(&self, generation: &str) -> bool {
        let before = self.lineage.iter().map(|lineage| lineage.generation);
        let mut all = before.chain(self.generations.iter().copied());
        all.any(|known| known.to_string() == generation)
    }
}

/// All histories of a volume.
pub struct Lines {
    all: Vec<Line>,
    /// By node: the history that its copy is of, and the generations of it.
    at: BTreeMap<usize, (usize, Vec<Lineage>)>,
}

impl Lines {
    pub fn new(shape: &VolumeShape) -> Lines {
        let first = Line {
            golden: Arc::new(Mutex::new(Golden::new(shape.block_size as usize))),
            acked: Txid(0),
            generations: BTreeSet::new(),
            lineage: Vec::new(),
            master: Some(shape.master),
        };
        Lines {
            all: vec![first],
            at: BTreeMap::new(),
        }
    }

    fn index(&self, n: usize) -> usize {
        self.at.get(&n).map_or(0, |(index, _)| *index)
    }

    /// The history that a node's copy is of.
    pub fn of(&self, n: usize) -> &Line {
        &self.all[self.index(n)]
    }

    pub fn of_mut(&mut self, n: usize) -> &mut Line {
        let index = self.index(n);
        &mut self.all[index]
    }

    /// Whether a node is the one that adds to the history of its copy.
    pub fn is_master(&self, n: usize) -> bool {
        self.of(n).master == Some(n)
    }

    /// Where a history that a node adds to leaves the one that its copy was of: an opening before this one may have been cut
    /// short, and what it committed changed no file.
    fn begins_at(&self, n: usize, shared: &MasterVolume) -> Txid {
        let base = self.of(n);
        let facts = shared.facts.lock();
        let mut own = facts.generations.iter().filter(|lineage| {
            let known = |theirs: &Lineage| theirs.generation == lineage.generation;
            let new =
                !base.generations.contains(&lineage.generation) && !base.lineage.iter().any(known);
            new && lineage.fork != NOTHING
        });
        let begun = own.next().map_or(shared.fork, |lineage| lineage.fork);
        begun.min(shared.fork)
    }

    /// A node opened its copy read-write: `true` if a history begins with it.
    pub fn opened(&mut self, n: usize, shared: &MasterVolume) -> bool {
        let promoted = !self.is_master(n);
        if promoted {
            let base = self.of(n);
            let mut golden = base.golden.lock().clone();
            golden.branch(self.begins_at(n, shared));
            let known = self.at.get(&n).map(|(_, known)| &known[..]);
            if let Relation::Behind { fork } = relation(known.unwrap_or_default(), &base.lineage)
                && shared.fork > fork
            {
                // Its master came back without what this one had of it, unconfirmed: nobody remembers that any more.
                golden.end();
            }
            let line = Line {
                golden: Arc::new(Mutex::new(golden)),
                acked: base.acked.min(shared.fork),
                generations: BTreeSet::new(),
                lineage: Vec::new(),
                master: Some(n),
            };
            self.all.push(line);
        }
        let index = match promoted {
            true => self.all.len() - 1,
            false => self.index(n),
        };
        self.all[index].generations.insert(shared.generation);
        let generations = shared.facts.lock().generations.clone();
        self.all[index].lineage.clone_from(&generations);
        self.at.insert(n, (index, generations));
        promoted
    }

    /// A node gave up what it added to its history: another one may go on from any point of it.
    pub fn stepped_back(&mut self, n: usize) {
        let line = self.of_mut(n);
        if line.master == Some(n) {
            line.master = None;
        }
    }

    /// A node's copy has these generations now. If it is of another history than before: the last transaction that the two
    /// have in common.
    pub fn follows(&mut self, n: usize, generations: &[Lineage]) -> Option<Txid> {
        let newest = generations.last()?.generation;
        if self
            .at
            .get(&n)
            .is_some_and(|(_, known)| known == generations)
        {
            return None;
        }
        let index = (self.all.iter()).position(|line| line.generations.contains(&newest))?;
        let before = self.at.insert(n, (index, generations.to_vec()));
        let (old, known) = before?;
        let fork = |ours: &[Lineage], theirs: &[Lineage]| match relation(ours, theirs) {
            Relation::Behind { fork } => Some(fork),
            Relation::Diverged { shared } => Some(shared),
            _ => None,
        };
        (old != index).then(|| {
            fork(&known, generations)
                .or_else(|| fork(generations, &known))
                .unwrap_or_default()
        })
    }
}
