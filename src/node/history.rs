//! The history of events: what happened on this node, kept over restarts, and told to whoever follows.
//!
//! Owns the tree `events` in sled and the database's file. Never holds what anything depends on: sled may lose it
//! after an abrupt stop, and then a new one is begun and the old file kept aside. At most `KEEP` events are kept.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;

/// Events that are kept; at about 300 bytes each, 3 MiB.
pub const KEEP: usize = 10_000;
/// Events that a follower may be behind before it is told that some are missing.
const FOLLOW: usize = 1024;
/// sled's cache, bytes: the catalogue and the newest events.
const CACHE: u64 = 4 << 20;

/// A moment, in ms since 1970-01-01 UTC. Shown as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub i64);

impl Moment {
    /// Now.
    pub fn now() -> Moment {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Moment(since.map_or(0, |d| d.as_millis() as i64))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.0.div_euclid(86_400_000), self.0.rem_euclid(86_400_000));
        // Days to a date in the proleptic Gregorian calendar, counting years from 1 March (H. Hinnant,
        // "chrono-Compatible Low-Level Date Algorithms").
        let z = days + 719_468;
        let era = z.div_euclid(146_097);
        let doe = z.rem_euclid(146_097);
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let day = doy - (153 * mp + 2) / 5 + 1;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        let year = yoe + era * 400 + i64::from(month <= 2);
        let (s, ms) = (ms / 1000, ms % 1000);
        let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z"
        )
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up for the life of the history.
    pub id: u64,
    /// When, RFC 3339, UTC.
    pub time: String,
    /// The same, ms since 1970.
    pub time_ms: i64,
    /// What kind: `node-started`, `state`, `mounted`, ...; kebab-case.
    pub kind: String,
    /// Of which volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// With which peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// One line for people.
    pub message: String,
    /// Figures for programs.
    #[serde(default, flatten)]
    pub fields: Map<String, Value>,
}

/// An event that has not been recorded yet.
#[derive(Clone, Debug, Default)]
pub struct NewEvent {
    /// What kind, kebab-case.
    pub kind: &'static str,
    /// Of which volume.
    pub volume: Option<String>,
    /// With which peer.
    pub peer: Option<String>,
    /// One line for people.
    pub message: String,
    /// Figures for programs. Keys of `Event`'s own fields are not used here.
    pub fields: Map<String, Value>,
}

impl NewEvent {
    /// Of the node itself.
    pub fn node(kind: &'static str, message: impl Into<String>) -> NewEvent {
        NewEvent {
            kind,
            message: message.into(),
            ..NewEvent::default()
        }
    }

    /// Of a volume.
    pub fn volume(kind: &'static str, volume: &str, message: impl Into<String>) -> NewEvent {
        NewEvent {
            volume: Some(volume.to_owned()),
            ..NewEvent::node(kind, message)
        }
    }

    /// Of a mirror.
    pub fn mirror(
        kind: &'static str,
        volume: &str,
        peer: &str,
        message: impl Into<String>,
    ) -> NewEvent {
        NewEvent {
            peer: Some(peer.to_owned()),
            ..NewEvent::volume(kind, volume, message)
        }
    }

    /// With a figure.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> NewEvent {
        self.fields.insert(key.to_owned(), value.into());
        self
    }
}

/// What sled says when another process holds its file.
const LOCKED: &str = "could not acquire lock";
/// How long that one is waited for, and how long between two tries.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Opens the node's database. One that can not be opened is kept aside as `sled.damaged` and a new one is begun;
/// `None` when that fails too: the node works without.
pub fn open_database(path: &Path) -> Option<sled::Db> {
    let open = || {
        let config = sled::Config::new().path(path).cache_capacity(CACHE);
        // sled panics on some damaged files instead of returning an error.
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| config.open()));
        match opened {
            Ok(Ok(db)) => Ok(db),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err("panic while opening".to_owned()),
        }
    };
    // A process that is about to end, or a child that has yet to start its program, may hold the lock for a moment.
    let until = Instant::now() + LOCK_WAIT;
    let error = loop {
        match open() {
            Ok(db) => return Some(db),
            Err(error) if error.contains(LOCKED) && Instant::now() < until => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(error) => break error,
        }
    };
    let aside = path.with_extension("damaged");
    tracing::error!(
        "{}: {error}; kept aside as {}, the history of events begins anew",
        path.display(),
        aside.display()
    );
    // At most one old database is kept.
    let _ = std::fs::remove_dir_all(&aside);
    if let Err(e) = std::fs::rename(path, &aside) {
        tracing::error!("{}: {e}: no history is kept", path.display());
        return None;
    }
    open()
        .inspect_err(|e| tracing::error!("{}: {e}: no history is kept", path.display()))
        .ok()
}

struct Log {
    next: u64,
    /// The newest events, oldest first: the history itself when there is no database.
    recent: VecDeque<Arc<Event>>,
}

/// The history of a running node.
pub struct History {
    tree: Option<sled::Tree>,
    /// Lock order: nothing else is taken while it is held; sled's insert does no synchronous I/O.
    log: Mutex<Log>,
    follow: broadcast::Sender<Arc<Event>>,
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("History")
    }
}

impl History {
    /// The history in `database`, or one in memory only.
    pub fn open(database: Option<&sled::Db>) -> History {
        let tree = database.and_then(|db| {
            db.open_tree("events")
                .inspect_err(|e| tracing::error!("no history is kept: {e}"))
                .ok()
        });
        let mut recent = VecDeque::new();
        let mut next = 1;
        for record in tree.iter().flat_map(sled::Tree::iter) {
            // A record that can not be read is skipped: the rest is still worth showing.
            let Ok((key, value)) = record else { continue };
            let Ok(event) = serde_json::from_slice::<Event>(&value) else {
                continue;
            };
            let id = <[u8; 8]>::try_from(key.as_ref()).map_or(event.id, u64::from_be_bytes);
            next = next.max(id.saturating_add(1));
            recent.push_back(Arc::new(event));
        }
        while recent.len() > KEEP {
            recent.pop_front();
        }
        History {
            tree,
            log: Mutex::new(Log { next, recent }),
            follow: broadcast::channel(FOLLOW).0,
        }
    }

    /// Records an event and tells followers. Never fails and never waits for a disk: an event is not worth a stop.
    pub fn record(&self, new: NewEvent) {
        let now = Moment::now();
        let mut log = self.log.lock();
        let event = Arc::new(Event {
            id: log.next,
            time: now.to_string(),
            time_ms: now.0,
            kind: new.kind.to_owned(),
            volume: new.volume,
            peer: new.peer,
            message: new.message,
            fields: new.fields,
        });
        tracing::info!(
            kind = event.kind,
            volume = event.volume.as_deref().unwrap_or("-"),
            peer = event.peer.as_deref().unwrap_or("-"),
            "{}",
            event.message
        );
        log.next += 1;
        log.recent.push_back(Arc::clone(&event));
        let dropped = if log.recent.len() > KEEP {
            log.recent.pop_front()
        } else {
            None
        };
        if let Some(tree) = &self.tree {
            let bytes = serde_json::to_vec(&*event).unwrap_or_default();
            let mut stored = tree.insert(event.id.to_be_bytes(), bytes).map(drop);
            if let (Ok(()), Some(old)) = (&stored, dropped) {
                stored = tree.remove(old.id.to_be_bytes()).map(drop);
            }
            if let Err(e) = stored {
                tracing::error!("an event was not kept: {e}");
            }
        }
        // Sent under the lock, so that followers see the order of the ids. No follower: no matter.
        let _ = self.follow.send(event);
    }

    /// Everything that is kept, oldest first, and what happens from now on, without a gap between them.
    pub fn follow(&self) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let log = self.log.lock();
        (
            log.recent.iter().cloned().collect(),
            self.follow.subscribe(),
        )
    }

    /// Makes what was recorded durable.
    pub fn flush(&self) {
        if let Some(tree) = &self.tree
            && let Err(e) = tree.flush()
        {
            tracing::error!("the history was not written: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_shown_in_utc() {
        assert_eq!(Moment(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(
            Moment(951_827_696_789).to_string(),
            "2000-02-29T12:34:56.789Z"
        );
        assert_eq!(
            Moment(4_107_542_400_000).to_string(),
            "2100-03-01T00:00:00.000Z"
        );
        assert_eq!(Moment(-1).to_string(), "1969-12-31T23:59:59.999Z");
    }

    #[test]
    fn the_history_survives_a_restart_and_goes_on_counting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sled");
        {
            let db = open_database(&path).unwrap();
            let history = History::open(Some(&db));
            history.record(NewEvent::volume("mounted", "data", "mounted").with("bytes", 7));
            history.record(NewEvent::node("node-stopped", "stopped"));
            history.flush();
        }
        let db = open_database(&path).unwrap();
        let history = History::open(Some(&db));
        let (past, mut follow) = history.follow();
        let kinds: Vec<_> = past.iter().map(|e| (e.id, e.kind.as_str())).collect();
        assert_eq!(kinds, [(1, "mounted"), (2, "node-stopped")]);
        assert_eq!(past[0].fields["bytes"], 7);
        history.record(NewEvent::node("node-started", "started"));
        assert_eq!(follow.try_recv().unwrap().id, 3);
    }

    #[test]
    fn the_history_is_bounded() {
        let history = History::open(None);
        for _ in 0..KEEP + 10 {
            history.record(NewEvent::node("tick", ""));
        }
        let (past, _) = history.follow();
        assert_eq!(past.len(), KEEP);
        assert_eq!(past[0].id, 11);
    }

    #[test]
    fn a_damaged_database_is_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sled");
        {
            let db = open_database(&path).unwrap();
            History::open(Some(&db)).record(NewEvent::node("a", ""));
            db.flush().unwrap();
        }
        std::fs::remove_file(path.join("db")).unwrap();
        std::fs::create_dir(path.join("db")).unwrap();
        let db = open_database(&path).expect("a new one");
        assert_eq!(History::open(Some(&db)).follow().0.len(), 0);
        assert!(dir.path().join("sled.damaged").exists());
    }
}
