//! Opening the log for writing: re-indexing what mirrors still need, and beginning a segment. Invariants: a transaction is
//! indexed only when its header blocks verify and it belongs to its segment (its images verify when they are read); what
//! does not fit is an error and leaves the index empty; a segment begins above every tid that the log may hold.

use super::scan::{Found, Scanner};
use super::state::{State, Tail, Txn, ref_ranges};
use super::superblock::Superblock;
use super::{Journal, JournalError, Refused, TxnInfo};
use crate::units::{BlockNo, BlockRange, Generation, Txid, coalesce};
use crate::volume::facts::{LogHead, MirrorTail, Segment};

/// Where the log to be resumed ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeEnd {
    /// At the head of a clean close, from the facts.
    Clean(LogHead),
    /// Where `recover` found the end, now or in an opening that ended before anything was committed.
    Recovered,
}

impl Journal {
    /// Indexes the committed transactions that are still in the log from the mirror tail on, across segments
    /// (`segments[0]` is the one that holds the tail), and sets the head behind the last. The log must be clean: all of it
    /// is home. Call it after `recover` and before `begin_segment`. An error leaves nothing indexed: then nobody can be
    /// served from the log.
    pub fn resume(
        &self,
        segments: &[Segment],
        tail: &MirrorTail,
        end: ResumeEnd,
    ) -> Result<Vec<TxnInfo>, JournalError> {
        let _commit = self.commit.lock();
        self.check_alive()?;
        let sb = self.superblock.lock().clone();
        if sb.s_start().0 != 0 {
            return Err(Refused::NeedsRecovery.into());
        }
        let refuse = |why| JournalError::from(Refused::CanNotResume(why));
        if own_format(&sb) != sb.format() {
            return Err(refuse("the journal's features are not this program's"));
        }
        let end_block = match end {
            ResumeEnd::Clean(head) => head.log_block,
            ResumeEnd::Recovered => sb
                .s_head()
                .ok_or_else(|| refuse("something else recovered the log"))?,
        };
        let lap = self.log.capacity();
        let outside = || refuse("a position is outside the log");
        let start = self.log.pos_from(tail.log_block, lap).ok_or_else(outside)?;
        let end_pos = self.log.pos_from(end_block, start).ok_or_else(outside)?;
        let mut placed = Vec::with_capacity(segments.len());
        for (i, segment) in segments.iter().enumerate() {
            // Later ones begin after the tail, the first perhaps a lap before it.
            let from = placed.last().map_or(start, |(_, pos)| start.max(*pos));
            let mut pos = self
                .log
                .pos_from(segment.first_block, from)
                .ok_or_else(outside)?;
            if i == 0 && pos > start {
                // The first segment began before the tail.
                pos -= lap;
            } else if pos > end_pos {
                return Err(refuse("a segment begins behind the log's end"));
            }
            placed.push((*segment, pos));
        }
        let txns = self.walk(&placed, tail, start, end_pos)?;

        let mut state = self.state.write();
        if state.open || state.overlay.len() > 0 {
            return Err(refuse("the log is already in use"));
        }
        // What `recover_confirmed` had indexed is among what was found now.
        state.txns.clear();
        state.refs = Default::default();
        let (last, chain) = match (txns.last(), end) {
            (Some(last), ResumeEnd::Clean(head)) => {
                if last.0.txid != head.txid || last.0.chain != head.chain {
                    return Err(refuse(
                        "the last transaction is not the one that was closed with",
                    ));
                }
                (head.txid, head.chain)
            }
            (Some(last), ResumeEnd::Recovered) => (last.0.txid, last.0.chain),
            (None, ResumeEnd::Clean(head)) => (head.txid, head.chain),
            (None, ResumeEnd::Recovered) => (
                state.last.max(Txid(tail.txid.0.saturating_sub(1))),
                state.chain,
            ),
        };
        state.head = end_pos;
        state.tail = Tail {
            pos: end_pos,
            tid: sb.s_sequence(),
        };
        state.durable_tail = state.tail;
        state.kept_after = Txid(tail.txid.0.saturating_sub(1));
        state.saved = Some(start);
        state.segments = placed;
        for (txn, overwrites) in txns {
            for range in overwrites {
                state.refs.written_home(range, txn.txid);
            }
            for range in &txn.refs {
                state.refs.insert(*range, txn.txid);
            }
            state.txns.push_back(txn);
        }
        state.last = last;
        state.published = last;
        state.chain = chain;
        state.published_chain = chain;
        Ok(state.txns.iter().map(|t| t.info(&self.log)).collect())
    }

    /// The state at home, and all that the log holds, is that of `last`, with this chain hash: no id between the log's own last
    /// transaction and this was ever issued. A loaded log that holds nothing knows its last transaction from here only.
    /// Before `begin_segment`.
    pub fn set_last(&self, last: Txid, chain: u64) {
        let mut state = self.state.write();
        if state.txns.back().is_none_or(|txn| txn.txid <= last) {
            state.last = last;
            state.published = last;
            state.chain = chain;
            state.published_chain = chain;
            state.kept_after = state.kept_after.min(last);
        }
    }

    /// Reads the headers from `start` to `end`; with each transaction, what it overwrote at home.
    fn walk(
        &self,
        segments: &[(Segment, u64)],
        tail: &MirrorTail,
        start: u64,
        end: u64,
    ) -> Result<Vec<(Txn, Vec<BlockRange>)>, JournalError> {
        let refuse = |why| JournalError::from(Refused::CanNotResume(why));
        let format = self.state.read().format;
        let mut scanner = Scanner::new(&self.log, format, start, 0, start + self.log.capacity());
        let mut out: Vec<(Txn, Vec<BlockRange>)> = Vec::new();
        let mut segment = 0;
        let mut fresh = true;
        while scanner.pos < end {
            while segment + 1 < segments.len() && segments[segment + 1].1 <= scanner.pos {
                segment += 1;
                fresh = true;
            }
            let Some((current, _)) = segments.get(segment) else {
                return Err(refuse("there is no segment for the tail"));
            };
            if std::mem::take(&mut fresh) {
                scanner.tid = scanner
                    .peek_tid()?
                    .ok_or_else(|| refuse("no transaction where a segment begins"))?;
            }
            let Found::Transaction(txn) = scanner.next()? else {
                return Err(refuse("a transaction is missing"));
            };
            let Some(payload) = txn.payload else {
                return Err(refuse("a transaction is not this program's"));
            };
            let lowest = out.last().map_or(tail.txid, |(t, _)| t.txid.next());
            if payload.generation != current.generation
                || payload.txid < lowest.max(current.first_txid)
            {
                return Err(refuse("a transaction does not belong to its segment"));
            }
            let refs = ref_ranges(&payload);
            let mut overwrites: Vec<BlockRange> = txn
                .images
                .iter()
                .map(|i| BlockRange::new(BlockNo(i.block.0), 1))
                .collect();
            overwrites.extend(&payload.zeroed);
            out.push((
                Txn {
                    txid: payload.txid,
                    tid: txn.tid,
                    generation: payload.generation,
                    chain: payload.chain,
                    start: txn.start,
                    end: txn.end,
                    images: txn.images.len() as u64,
                    blocks: Vec::new(),
                    revoked: Vec::new(),
                    refs,
                    outstanding: 0,
                    pending: None,
                },
                coalesce(overwrites),
            ));
        }
        if scanner.pos != end {
            return Err(refuse("the log's end is not where a transaction ends"));
        }
        if !out.is_empty() && matches!(scanner.next(), Ok(Found::Transaction(_))) {
            return Err(refuse("the log goes on behind its recorded end"));
        }
        Ok(out)
    }

    /// Begins a run of transactions by one generation at the head; `first` is the id of the next one, or a lower bound of
    /// it. The log must have been recovered; what is in it and not home yet is brought home first. With a keeper set, the
    /// segment is saved before this returns.
    pub fn begin_segment(&self, generation: Generation, first: Txid) -> Result<(), JournalError> {
        let _commit = self.commit.lock();
        self.check_alive()?;
        {
            let state = self.state.read();
            if state.live && !state.open && !state.recovered {
                return Err(Refused::NeedsRecovery.into());
            }
            if first <= state.last {
                return Err(Refused::OutOfOrder {
                    txid: first,
                    last: state.last,
                }
                .into());
            }
        }
        self.empty_log()?;
        let format = own_format(&self.superblock.lock());
        {
            let mut state = self.state.write();
            state.begin(format, generation, first, &self.log);
        }
        // The tail stays where it was saved: consumers may be named later.
        self.save_tail(false)
    }
}

impl State {
    fn begin(
        &mut self,
        format: super::superblock::LogFormat,
        generation: Generation,
        first: Txid,
        log: &super::log::Log,
    ) {
        self.format = format;
        self.generation = generation;
        // The txid's low half where that is ahead of everything the log may hold, so that the two agree on a master.
        if first.tid().wrapping_sub(self.next_tid) < 1 << 31 {
            self.next_tid = first.tid();
        }
        if self.txns.is_empty() {
            // Nothing was resumed: what came before can not be served. Nor is there anything between the last and the
            // first, so a mirror that is at the last lacks nothing, also before the first is committed.
            if self.saved.is_none() {
                self.kept_after = self.last;
            }
        }
        let head = self.head;
        // A segment without transactions leaves no trace in the log.
        while self.segments.last().is_some_and(|(_, pos)| *pos >= head) {
            self.segments.pop();
        }
        self.segments.push((
            Segment {
                generation,
                first_txid: first,
                first_block: log.block_at(head),
            },
            head,
        ));
        self.tail = Tail {
            pos: head,
            tid: self.next_tid,
        };
        self.durable_tail = self.tail;
        self.open = true;
    }
}

/// How blocks are written here: the superblock's format once our features are on.
fn own_format(sb: &Superblock) -> super::superblock::LogFormat {
    let mut own = sb.clone();
    own.use_own_features();
    own.format()
}
