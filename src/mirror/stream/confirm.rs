//! The word to a mirror that what it was sent early is committed here. Owns when it is said.

use std::time::Duration;

use super::{Frame, Phase, Stream};
use crate::wire::message::Message;

/// A mirror learns within this that what it was sent early is committed: with the next transaction, if one comes, so that it is
/// woken once for both.
const CONFIRM_WITHIN: Duration = Duration::from_millis(2);

impl Stream {
    /// When a mirror has to be told that what it was sent early is committed here by now.
    pub(super) fn confirm_at(&mut self) -> Option<Duration> {
        if self.confirmed >= self.sent || self.journal.last_committed() < self.sent {
            self.confirm_since = None;
            return None;
        }
        let since = *self.confirm_since.get_or_insert(self.now);
        let awaited = self.phase != Phase::Sequencing || self.questions.is_verifying();
        Some(match awaited {
            true => since,
            false => since + CONFIRM_WITHIN,
        })
    }

    /// Tells a mirror that what it was sent early is committed here by now.
    pub(super) fn confirm(&mut self) -> Option<Frame> {
        if self.confirmed >= self.sent || self.journal.last_committed() < self.sent {
            return None;
        }
        self.confirm_since = None;
        self.confirmed = self.sent;
        let txid = self.sent.0;
        Some((Message::Confirm { txid }, Vec::new()))
    }
}
