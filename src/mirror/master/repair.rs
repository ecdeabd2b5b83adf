//! Repairing one copy from the other, after `verify` has said where they differ.

use std::time::Duration;

use states::{Event, State};

use super::{Action, Mirror};
use crate::mirror::MirrorError;
use crate::units::BlockRange;
use crate::wire::message::Message;

/// A question about a mirror's blocks.
#[derive(Debug, Default)]
pub(super) struct Fetch {
    id: u64,
    asked: bool,
    answer: Option<Vec<u8>>,
}

impl Fetch {
    pub fn is_asked(&self, id: u64) -> bool {
        self.asked && self.id == id
    }

    pub fn came(&mut self, payload: Vec<u8>) {
        self.asked = false;
        self.answer = Some(payload);
    }
}

impl Mirror {
    /// Sends blocks to the mirror again: a resync of these. Nothing is done unless it is in sync.
    pub fn repair(
        &mut self,
        ranges: &[BlockRange],
        now: Duration,
    ) -> Result<Vec<Action>, MirrorError> {
        let mut out = Vec::new();
        if self.state == State::InSync {
            {
                let mut state = self.slot.state.lock();
                for range in ranges {
                    state.mark(*range)?;
                }
                let (journal, id) = (&self.shared.journal, self.slot.id);
                let through = journal.last_committed();
                state.crack(journal, id, self.shared.generation, through)?;
            }
            self.fire(Event::Cracked, now, &mut out);
        }
        Ok(out)
    }

    /// Asks for what the mirror has in these blocks; an earlier question is given up. Nothing unless it is in sync.
    pub fn fetch(&mut self, ranges: &[BlockRange]) -> Vec<Action> {
        if self.state != State::InSync || !self.streaming {
            return Vec::new();
        }
        self.fetch = Fetch {
            id: self.fetch.id + 1,
            asked: true,
            answer: None,
        };
        let question = Message::Fetch {
            id: self.fetch.id,
            ranges: ranges.iter().map(|range| (*range).into()).collect(),
        };
        vec![Action::Send(question, Vec::new())]
    }

    /// The answer, once.
    pub fn fetched(&mut self) -> Option<Vec<u8>> {
        self.fetch.answer.take()
    }
}
