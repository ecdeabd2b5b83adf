//! The rules once more, in another way. Histories are sets of transactions, built by living through them; the log and
//! the maps are sets of txids. Each rule is a predicate of its own; the first that holds is expected.

use states::reconnect::{Chain, Copy, DirtyMap, Lineage, Master, Mirror, Role};

/// Txids in tests are 0..=4, generations 0..=5.
pub const TXIDS: std::ops::RangeInclusive<u64> = 0..=4;

/// A set of (generation, txid), one bit each.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Points(u64);

impl Points {
    fn bit(generation: u128, txid: u64) -> u64 {
        assert!(generation < 8 && txid < 8);
        1 << (generation * 8 + u128::from(txid))
    }

    /// Lives through a history: every generation in turn drops what is past its fork, then commits every txid that is
    /// next, until its successor takes over or `last` is reached.
    pub fn of(history: &[Lineage], last: u64) -> Points {
        let mut lived: Vec<(u128, u64)> = Vec::new();
        for (at, one) in history.iter().enumerate() {
            lived.retain(|(_, txid)| *txid <= one.fork);
            let until = history.get(at + 1).map_or(last, |next| next.fork);
            lived.extend((one.fork + 1..=until).map(|txid| (one.generation, txid)));
        }
        lived.retain(|(_, txid)| *txid <= last);
        Points(
            lived
                .iter()
                .fold(0, |set, (g, t)| set | Points::bit(*g, *t)),
        )
    }

    fn without(self, other: Points) -> Points {
        Points(self.0 & !other.0)
    }

    fn up_to(self, txid: u64) -> Points {
        let txids = (0..=txid.min(7)).fold(0u64, |set, t| set | 1 << t);
        let every = (0..8).fold(0u64, |set, g| set | txids << (g * 8));
        Points(self.0 & every)
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn highest(self) -> u64 {
        (0..8)
            .rev()
            .find(|t| !self.without(self.up_to(*t)).is_empty())
            .map_or(0, |t| t + 1)
    }
}

/// What is known of a case before the rules are asked.
pub struct Case<'a> {
    pub master: Master<'a>,
    pub mirror: Mirror<'a>,
    pub chain: Option<Chain>,
    /// `Points::of` the master's history and last txid.
    pub master_points: Points,
    /// `Points::of` the mirror's history and position.
    pub mirror_points: Points,
}

impl Case<'_> {
    fn position(&self) -> u64 {
        match self.mirror.copy {
            Copy::Blank => 0,
            Copy::Partial { txid, .. } => txid,
            Copy::Complete => self.mirror.durable,
        }
    }

    /// The transactions that only the mirror has.
    fn mirror_only(&self) -> Points {
        self.mirror_points.without(self.master_points)
    }

    pub fn is_past_fork(&self) -> bool {
        !self.mirror_only().is_empty()
    }

    /// The position that is left when what only the mirror has is taken away.
    pub fn shared(&self) -> u64 {
        Points(self.mirror_points.0 & self.master_points.0)
            .highest()
            .min(self.position())
    }

    fn knows(&self, generation: u128) -> bool {
        self.master
            .history
            .iter()
            .any(|l| l.generation == generation)
    }

    fn lacking(&self) -> impl Iterator<Item = u64> {
        self.shared() + 1..=self.master.committed
    }

    fn logged(&self, txid: u64) -> bool {
        self.master.log_after.is_some_and(|after| txid > after)
    }

    fn mapped(&self, txid: u64) -> bool {
        let holds = |m: DirtyMap| !m.lost && m.from_txid < txid && txid <= m.through_txid;
        self.master.map.is_some_and(holds)
    }

    /// Everything lacking is in the log.
    pub fn is_logged(&self) -> bool {
        self.lacking().all(|t| self.logged(t))
    }

    /// Everything lacking is in the log or was recorded in the map.
    pub fn is_recorded(&self) -> bool {
        self.lacking().all(|t| self.logged(t) || self.mapped(t))
    }

    pub fn is_map_lost(&self) -> bool {
        self.master.map.is_some_and(|m| m.lost) || self.mirror.map.is_some_and(|m| m.lost)
    }

    pub fn is_tainted(&self) -> bool {
        self.mirror.tainted || self.master.changed_outside
    }

    pub fn has_dirty_bits(&self) -> bool {
        let bits = |map: Option<DirtyMap>| map.is_some_and(|m| m.bits_set > 0);
        bits(self.master.map) || bits(self.mirror.map)
    }

    /// The last txid of the master that the mirror's lineage leads to.
    fn reach(&self) -> u64 {
        let lineage = Points::of(self.mirror.history, 7);
        Points(lineage.0 & self.master_points.0).highest()
    }

    /// Another master brought what this one never had, acknowledged or not.
    pub fn is_overrun(&self) -> bool {
        let newest = |history: &[Lineage]| history.last().map(|l| l.generation);
        newest(self.master.history) != newest(self.mirror.history)
            && self.mirror.reach > self.reach()
    }

    /// The mirror holds blocks of a state that the master does not lead to, and nobody knows which.
    fn is_spoilt(&self) -> bool {
        match self.mirror.consistent_at {
            Some(at) => at > self.reach(),
            None => self.is_overrun() || (self.is_past_fork() && !self.mirror.may_rejoin),
        }
    }

    fn differs(&self) -> bool {
        let inconsistent = match self.mirror.consistent_at {
            Some(at) => self.shared() < at,
            None => true,
        };
        let kept_aside = self.is_past_fork() && self.mirror.may_rejoin;
        self.has_dirty_bits() || kept_aside || inconsistent
    }

    pub fn applies(&self, rule: u8) -> bool {
        match rule {
            1 => self.mirror.copy == Copy::Blank,
            2 => {
                self.master.volume != self.mirror.volume
                    || !self.mirror.history.iter().any(|l| self.knows(l.generation))
            }
            3 => {
                let firm = match self.mirror.copy {
                    Copy::Complete => self.mirror.applied.max(self.mirror.confirmed),
                    _ => self.mirror.confirmed,
                };
                let stands_alone = self.is_past_fork() && firm > self.reach();
                let opened_alone = self
                    .mirror
                    .history
                    .iter()
                    .any(|l| !self.knows(l.generation));
                let lineages_differ = self.mirror.history.iter().any(|theirs| {
                    self.master
                        .history
                        .iter()
                        .any(|ours| ours.generation == theirs.generation && ours != theirs)
                });
                let was_master = self.mirror.role == Role::Master;
                let hashes_differ = self.chain.is_some_and(|c| {
                    c.at <= self.reach() && c.master.is_some_and(|hash| hash != c.mirror)
                });
                opened_alone
                    || lineages_differ
                    || hashes_differ
                    || (!self.mirror.may_rejoin && (was_master || stands_alone))
            }
            4 => matches!(self.mirror.copy, Copy::Partial { .. }),
            5 => {
                self.is_tainted()
                    || self.is_map_lost()
                    || self.is_spoilt()
                    || (!self.is_recorded() && (self.master.map.is_some() || self.differs()))
            }
            6 => self.differs(),
            7 => self.is_logged(),
            8 => true,
            _ => false,
        }
    }

    pub fn expected_rule(&self) -> u8 {
        (1..=8).find(|rule| self.applies(*rule)).unwrap()
    }
}
