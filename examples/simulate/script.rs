//! What happens in a run: the shape of the world and the list of steps, all of it from one seed before anything runs.
//!
//! Owns the choice of faults. Every step has a seed of its own, so that leaving steps out changes nothing about the
//! others: that is what makes a failing run short. Each seed forbids itself some kinds of faults: a run in which everything
//! goes wrong at once gets nowhere near the states that only one fault at a time reaches.

use std::fmt;
use std::str::FromStr;

use lockstepfs::io::sim::SimRandom;

macro_rules! kinds {
    ($($kind:ident $weight:literal $name:literal),* $(,)?) => {
        /// What a step does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($kind),* }

        impl Kind {
            pub const ALL: &[(Kind, u64)] = &[$((Kind::$kind, $weight)),*];

            pub fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name),* }
            }
        }
    };
}

kinds! {
    Work 60 "operations of applications",
    Flood 3 "more changes at once than the log holds",
    Sync 20 "fsync and sync",
    SyncCut 4 "somebody lost in the middle of a commit",
    Run 12 "quiet time",
    Wait 3 "quiet minutes",
    Partition 3 "partition",
    OneWay 3 "partition, one way",
    Heal 8 "healed network",
    Break 5 "connection broken, a prefix delivered late",
    Jitter 2 "slow or fast network",
    PowerCut 3 "power cut",
    PowerLater 7 "power cut at some write or flush",
    SwitchCut 4 "power cut at the end of a copy, at some write or flush",
    Kill 3 "process killed",
    Boot 14 "node started",
    Stop 2 "node stopped in order",
    BothDown 1 "all nodes down",
    DiskFails 2 "disk that fails",
    DiskFull 2 "disk that is full",
    FactsFail 1 "state directory that is full",
    DiskSlow 2 "slow disk",
    Mend 6 "disks mended by the operator",
    ClockJump 2 "clock set",
    LoseMap 1 "dirty map lost",
    Pause 3 "mirror pause",
    Continue 6 "mirror continue",
    Restart 3 "mirror restart",
    Delete 1 "mirror delete",
    Set 5 "mirror set",
    Create 3 "mirror create",
    Promote 10 "promote",
    Rejoin 1 "rejoin",
    Verify 3 "verify",
    WriteMirror 3 "write to a mirror",
    CrashImage 2 "crash image given to e2fsck",
    Switchover 8 "switchover",
    Force 4 "promote --force of a copy that is not whole",
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Kinds without which nothing would happen.
const ESSENTIAL: &[Kind] = &[
    Kind::Work,
    Kind::Sync,
    Kind::Run,
    Kind::Wait,
    Kind::Heal,
    Kind::Boot,
    Kind::Mend,
    Kind::Continue,
    Kind::Create,
];

/// One step: what, with which luck.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub kind: Kind,
    pub seed: u64,
}

/// One volume of a world.
#[derive(Clone, Debug)]
pub struct VolumeShape {
    pub master: usize,
    pub mirrors: Vec<usize>,
    pub block_size: u32,
    pub buffer_mib: u64,
    /// Bytes of each part.
    pub parts: Vec<u64>,
    /// Images that a step brings home at most. With a few, freed blocks are in use again while the log holds what they were.
    pub images_home: u64,
}

/// A run before it runs.
#[derive(Clone, Debug)]
pub struct Script {
    pub seed: u64,
    pub nodes: usize,
    pub volumes: Vec<VolumeShape>,
    pub steps: Vec<Step>,
}

const MIB: u64 = 1 << 20;

fn volume(random: &SimRandom, nodes: u64, index: u64) -> VolumeShape {
    let master = (index % nodes) as usize;
    let mut others: Vec<usize> = (0..nodes as usize).filter(|n| *n != master).collect();
    let mut mirrors = Vec::new();
    for _ in 0..random.below(others.len() as u64) + 1 {
        let at = random.below(others.len() as u64) as usize;
        mirrors.push(others.swap_remove(at));
    }
    // The smallest journal that there is, or a little more: 1024 blocks.
    let (block_size, buffer_mib, bytes) = match random.below(4) {
        0 => (1024, 1 + random.below(2), 16 * MIB),
        1 => (2048, 2 + random.below(2), 20 * MIB),
        _ => (4096, 4 + random.below(3), 32 * MIB),
    };
    let parts = match random.below(3) {
        0 => vec![bytes],
        1 => vec![bytes / 2, bytes / 2],
        _ => vec![bytes / 4, bytes / 2, bytes / 4],
    };
    VolumeShape {
        master,
        mirrors,
        block_size,
        buffer_mib,
        parts,
        images_home: [2, 2, 12, 1024][random.below(4) as usize],
    }
}

impl Script {
    /// The script of a seed.
    /// With or without promotions and rejoins.
    pub fn new(seed: u64, roles: bool) -> Script {
        let random = SimRandom::new(seed ^ 0x10c5_7e97);
        let nodes = match random.below(6) {
            0..=2 => 2,
            3 | 4 => 3,
            _ => 4,
        };
        let volumes = match random.below(8) {
            0..=4 => 1,
            5 | 6 => 2,
            _ => 3,
        };
        let volumes: Vec<_> = (0..volumes).map(|n| volume(&random, nodes, n)).collect();
        let left_out = random.below(4) * 20;
        let allowed: Vec<(Kind, u64)> = Kind::ALL
            .iter()
            // Without roles a seed is what it was before there were these.
            .filter(|(kind, _)| roles || !matches!(kind, Kind::Switchover | Kind::Force))
            .filter(|(kind, _)| ESSENTIAL.contains(kind) || !random.chance(left_out))
            .map(|&(kind, weight)| match kind {
                Kind::Promote | Kind::Rejoin if !roles => (kind, 0),
                _ => (kind, weight),
            })
            .collect();
        let total = allowed.iter().map(|(_, weight)| weight).sum();
        // Most volumes have had mirrors for as long as anybody remembers.
        let mut first = Vec::new();
        if random.chance(75) {
            first.resize(volumes.len() * 2, Kind::Create);
            first.push(Kind::Run);
        }
        let steps = (0..120 + random.below(240))
            .map(|_| {
                let mut at = random.below(total);
                let (kind, _) = *allowed
                    .iter()
                    .find(|(_, weight)| {
                        let here = at < *weight;
                        at = at.wrapping_sub(*weight);
                        here
                    })
                    .expect("the weights add up to the total");
                kind
            })
            .collect::<Vec<_>>();
        let steps = first.into_iter().chain(steps).map(|kind| Step {
            kind,
            seed: random.next_u64(),
        });
        let steps = steps.collect();
        Script {
            seed,
            nodes: nodes as usize,
            volumes,
            steps,
        }
    }

    /// Only the steps whose numbers are in `keep`.
    pub fn keep(&self, keep: &Numbers) -> Script {
        let steps = self.steps.iter().enumerate();
        Script {
            steps: steps
                .filter(|(n, _)| keep.0.contains(n))
                .map(|(_, step)| *step)
                .collect(),
            ..self.clone()
        }
    }
}

/// Numbers of steps, written as `0-3,7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers(pub Vec<usize>);

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut at = 0;
        while at < self.0.len() {
            let first = self.0[at];
            let mut last = first;
            while self.0.get(at + 1) == Some(&(last + 1)) {
                at += 1;
                last += 1;
            }
            if first != self.0[0] {
                f.write_str(",")?;
            }
            match first == last {
                true => write!(f, "{first}")?,
                false => write!(f, "{first}-{last}")?,
            }
            at += 1;
        }
        Ok(())
    }
}

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Numbers, String> {
        let number = |text: &str| -> Result<usize, String> {
            text.parse()
                .map_err(|_| format!("{text:?} is no number of a step"))
        };
        let mut all = Vec::new();
        for piece in text.split(',').filter(|piece| !piece.is_empty()) {
            match piece.split_once('-') {
                Some((first, last)) => all.extend(number(first)?..=number(last)?),
                None => all.push(number(piece)?),
            }
        }
        Ok(Numbers(all))
    }
}
