//! Two nodes in one process, without daemons, sockets or mounts: a master and its mirror over two files of a directory,
//! and between them a link that is a queue and can be cut. For a look at the whole machine where /dev/fuse is missing,
//! and for programs that use the library by itself.
//!
//! Owns the order in which both sides' step functions are called, all of them on the caller's thread. Never decides about
//! replication. A frame that is under way when the link is cut is lost, as on a real one.

mod tree;

use super::lost::LostFiles;
use super::staging::StagingFile;
use super::stores::MapFiles;
use crate::fs::FsError;
use crate::io::file::{SystemClock, SystemRandom};
use crate::io::{Clock, Random};
use crate::mirror::MirrorError;
use crate::mirror::follower::{Env, Follower, Output, PartStore};
use crate::mirror::hashing::Verdict;
use crate::mirror::master::{Action, Mirror, Request, Status};
use crate::mirror::open::{MasterOptions, OpenMaster, open_master};
use crate::mirror::rate::Rate;
use crate::volume::facts::{Copy, FactFile, FactStore, Facts, FactsError, Role};
use crate::volume::mkfs::{self, Buffer, MkfsError, MkfsOptions};
use crate::volume::parts::{Expect, PartSpec, PartsError, open_parts};
use crate::volume::{Volume, VolumeError};
use crate::wire::message::Message;
use states::{Cause, MinorCause, State};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use tree::Extent;

/// Bytes of a block.
const BLOCK: u32 = 4096;
/// The volume's name.
const VOLUME: &str = "data";
/// The mirror's node, as the master calls it.
const MIRROR: &str = "beta";
/// Memory for each side's cache, bytes.
const CACHE_BYTES: usize = 32 << 20;
/// A change is committed after this at the latest.
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);
/// Frames that are taken at once from one side.
const FRAMES_AT_ONCE: usize = 16;
/// When nothing moves.
const REST: Duration = Duration::from_millis(1);

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// Replication.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// The engine.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The files that the copies are in.
    #[error(transparent)]
    Parts(#[from] PartsError),
    /// Making the file system.
    #[error(transparent)]
    Mkfs(#[from] MkfsError),
    /// The facts.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// The state machine refused a request.
    #[error("{0}")]
    Refused(states::Refusal),
    /// Asked of a pair that is not so far.
    #[error("there is no {0}")]
    Missing(&'static str),
    /// The two trees are not the same.
    #[error("the mirror shows another {0}")]
    Differs(String),
    /// The mirror stopped, and does not go on by itself.
    #[error("the mirror is in ERROR: {0}")]
    Stopped(String),
    /// A state that was to be reached.
    #[error("{wanted} was not reached within {seconds} s; the mirror is in {state}: {reason}")]
    TooLate {
        /// What was waited for.
        wanted: &'static str,
        /// For how long.
        seconds: u64,
        /// Where the mirror is.
        state: State,
        /// Why.
        reason: String,
    },
}

/// A change of the mirror's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The state it went to.
    pub to: State,
    /// Why.
    pub why: String,
}

/// The mirror's part: one file, made when the master asks for it.
#[derive(Debug)]
struct MirrorPart(PathBuf);

impl PartStore for MirrorPart {
    fn make(
        &self,
        _volume: &str,
        _volume_id: u128,
        block_size: u32,
        parts: &[u64],
    ) -> Result<Arc<Volume>, (Cause, String)> {
        let [len] = parts else {
            let detail = format!("{} parts, and there is one file", parts.len());
            return Err((Cause::PartsRefused, detail));
        };
        file(&self.0, *len, block_size).map_err(|e| (Cause::PartsRefused, e.to_string()))
    }
}

fn file(path: &Path, len: u64, block_size: u32) -> Result<Arc<Volume>, PairError> {
    let part = PartSpec {
        path: path.to_owned(),
        len: Some(len),
    };
    let parts = open_parts(&[part], block_size, Expect::Fresh, None)?;
    Ok(Arc::new(Volume::new(parts, block_size)?))
}

type Frame = (Message, Vec<u8>);

/// A master and its mirror.
pub struct Pair {
    dir: PathBuf,
    clock: Arc<SystemClock>,
    master: OpenMaster,
    mirror: Option<Mirror>,
    follower: Follower,
    to_mirror: VecDeque<Frame>,
    to_master: VecDeque<Frame>,
    connected: bool,
    cut: bool,
    busy: bool,
    changes: Vec<Change>,
}

impl Pair {
    /// A new volume of `bytes` with a buffer of `buffer` bytes, in `dir`; no mirror yet.
    pub fn create(dir: &Path, bytes: u64, buffer: u64) -> Result<Pair, PairError> {
        let clock = Arc::new(SystemClock::new());
        let random = Arc::new(SystemRandom);
        let volume = file(&dir.join("alpha.img"), bytes, BLOCK)?;
        let id = random.u128();
        let options = MkfsOptions {
            buffer: Buffer::Bytes(buffer),
            ..MkfsOptions::new(id)
        };
        mkfs::make(&volume, &options)?;
        volume.flush()?;
        let store: Arc<dyn FactStore> = Arc::new(FactFile::new(dir.join("alpha.facts")));
        let facts = Facts {
            copy: Copy::Complete,
            ..Facts::blank(id, VOLUME, Role::Master)
        };
        store.save(&facts)?;
        let options = MasterOptions {
            node: "alpha".to_owned(),
            facts: store,
            maps: Arc::new(MapFiles::new(dir)),
            clock: clock.clone(),
            random: random.clone(),
            cache_bytes: CACHE_BYTES,
            commit_interval: COMMIT_INTERVAL,
        };
        let master = open_master(volume, facts, &options)?;
        let env = Env {
            node: MIRROR.to_owned(),
            parts: Arc::new(MirrorPart(dir.join("beta.img"))),
            facts: Arc::new(FactFile::new(dir.join("beta.facts"))),
            maps: Arc::new(MapFiles::new(dir)),
            staging: Arc::new(StagingFile::at(dir.join("beta.staging"))),
            lost: Arc::new(LostFiles::new(dir)),
            clock: clock.clone(),
            random,
            cache_bytes: CACHE_BYTES,
        };
        let (follower, _) = Follower::open(env, VOLUME.to_owned(), None, None)?;
        Ok(Pair {
            dir: dir.to_owned(),
            clock,
            master,
            mirror: None,
            follower,
            to_mirror: VecDeque::new(),
            to_master: VecDeque::new(),
            connected: false,
            cut: false,
            busy: false,
            changes: Vec::new(),
        })
    }

    /// The files that the copies are in: the master's, the mirror's.
    pub fn parts(&self) -> [PathBuf; 2] {
        ["alpha.img", "beta.img"].map(|name| self.dir.join(name))
    }

    fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    fn mirror(&mut self) -> Result<&mut Mirror, PairError> {
        self.mirror.as_mut().ok_or(PairError::Missing("mirror"))
    }

    // ---- what an operator does ----

    /// `mirror create`
    pub fn create_mirror(&mut self) -> Result<(), PairError> {
        let slot = self.master.add_mirror(MIRROR, None)?;
        let shared = self.master.shared.clone();
        let record = {
            let facts = shared.facts.lock();
            let known = facts.peers.get(MIRROR);
            known.map(|k| k.record.clone()).unwrap_or_default()
        };
        let mirror = Mirror::new(shared, MIRROR.to_owned(), slot, record, Rate::new(None));
        let now = self.now();
        let actions = self.mirror.insert(mirror).start(now);
        self.act(actions)
    }

    fn request(&mut self, request: Request) -> Result<(), PairError> {
        let now = self.now();
        let actions = self.mirror()?.request(request, now);
        self.act(actions.map_err(PairError::Refused)?)
    }

    /// `mirror pause`
    pub fn pause(&mut self) -> Result<(), PairError> {
        self.request(Request::Pause)
    }

    /// `mirror continue`
    pub fn resume(&mut self) -> Result<(), PairError> {
        self.request(Request::Continue)
    }

    /// Cuts the link: what is under way is lost.
    pub fn cut(&mut self) -> Result<(), PairError> {
        self.cut = true;
        self.lose_link()
    }

    /// Mends the link.
    pub fn mend(&mut self) {
        self.cut = false;
    }

    /// From now on the mirror's node answers that it is busy, as one does that checks its copy; or no longer so.
    pub fn set_busy(&mut self, busy: bool) {
        self.busy = busy;
    }

    /// Compares all allocated blocks outside the journal.
    pub fn verify(&mut self, limit: Duration) -> Result<Verdict, PairError> {
        self.settle(limit)?;
        if !self.mirror()?.start_verify(Rate::default()) {
            return Err(PairError::Missing("mirror in sync"));
        }
        let mut verdict = None;
        self.until("the comparison's end", limit, |pair| {
            verdict = pair.mirror.as_mut().and_then(Mirror::verdict);
            verdict.is_some()
        })?;
        Ok(verdict.unwrap_or_default())
    }

    // ---- how it stands ----

    /// How the mirror stands.
    pub fn status(&self) -> Result<Status, PairError> {
        let mirror = self.mirror.as_ref();
        let mirror = mirror.ok_or(PairError::Missing("mirror"))?;
        Ok(mirror.status(self.now()))
    }

    /// What state changes there were so far.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Whether the mirror's copy can be read.
    pub fn is_readable(&self) -> bool {
        self.follower.fs().is_some()
    }

    // ---- how it goes on ----

    /// Goes on until `there`.
    pub fn until(
        &mut self,
        wanted: &'static str,
        limit: Duration,
        mut there: impl FnMut(&mut Pair) -> bool,
    ) -> Result<(), PairError> {
        let began = Instant::now();
        while !there(self) {
            let status = self.status()?;
            if status.state == State::Error {
                return Err(PairError::Stopped(status.reason));
            }
            if began.elapsed() > limit {
                return Err(PairError::TooLate {
                    wanted,
                    seconds: limit.as_secs(),
                    state: status.state,
                    reason: status.reason,
                });
            }
            if !self.step()? {
                std::thread::sleep(REST);
            }
        }
        Ok(())
    }

    /// Goes on until the mirror is in `state`.
    pub fn reach(&mut self, state: State, limit: Duration) -> Result<(), PairError> {
        self.until(state.word(), limit, |pair| {
            pair.mirror.as_ref().is_some_and(|m| m.state() == state)
        })
    }

    /// Commits everything, and goes on until the mirror is in sync and has acknowledged it.
    pub fn settle(&mut self, limit: Duration) -> Result<(), PairError> {
        self.master.shared.fs.sync()?;
        self.until("INSYNC with everything acknowledged", limit, |pair| {
            pair.status()
                .is_ok_and(|s| s.state == State::InSync && s.txid_acked == s.txid_committed)
        })
    }

    /// One round: time, frames both ways, the stream. Whether anything moved.
    pub fn step(&mut self) -> Result<bool, PairError> {
        let now = self.now();
        self.master.shared.fs.commit_step(now)?;
        let mut moved = false;
        if let Some(mirror) = &mut self.mirror {
            let mut actions = mirror.tick(now);
            let mut frame = None;
            // What waits to be taken is enough to do.
            if self.to_mirror.len() < FRAMES_AT_ONCE {
                let (more, next, _) = mirror.next_frame(now);
                actions.extend(more);
                frame = next;
            }
            moved = !actions.is_empty() || frame.is_some();
            self.act(actions)?;
            if self.connected {
                self.to_mirror.extend(frame);
            }
        }
        for _ in 0..FRAMES_AT_ONCE {
            let Some((message, payload)) = self.to_mirror.pop_front() else {
                break;
            };
            moved = true;
            if self.busy && matches!(message, Message::Hello { .. }) {
                let refused = Message::Refused {
                    code: MinorCause::PartsBusy.word().to_owned(),
                    detail: "the copy is being checked".to_owned(),
                    severe: false,
                };
                self.to_master.push_back((refused, Vec::new()));
                continue;
            }
            let outputs = self.follower.frame(message, payload)?;
            self.put_out(outputs);
        }
        if self.to_mirror.is_empty() {
            let outputs = self.follower.idle()?;
            self.put_out(outputs);
        }
        if let Some(fs) = self.follower.fs() {
            fs.commit_step(now)?;
        }
        self.follower.tick()?;
        while let Some((message, payload)) = self.to_master.pop_front() {
            moved = true;
            let actions = self.mirror()?.frame(message, payload, now);
            self.act(actions)?;
        }
        Ok(moved)
    }

    fn lose_link(&mut self) -> Result<(), PairError> {
        self.to_mirror.clear();
        self.to_master.clear();
        if !std::mem::take(&mut self.connected) {
            return Ok(());
        }
        let now = self.now();
        let actions = match &mut self.mirror {
            Some(mirror) => mirror.link_lost("the link was cut", None, now),
            None => Vec::new(),
        };
        self.act(actions)?;
        self.hang_up()
    }

    /// The mirror's side of a lost link; what it still says is said to nobody.
    fn hang_up(&mut self) -> Result<(), PairError> {
        let outputs = self.follower.disconnected()?;
        self.put_out(outputs);
        self.to_master.clear();
        Ok(())
    }

    fn act(&mut self, actions: Vec<Action>) -> Result<(), PairError> {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Connect => {
                    let now = self.now();
                    self.connected = !self.cut;
                    let up = self.connected;
                    let mirror = self.mirror()?;
                    actions.extend(match up {
                        true => mirror.connected(now),
                        false => mirror.link_lost("the link is cut", None, now),
                    });
                }
                Action::Close => {
                    self.to_mirror.clear();
                    self.connected = false;
                    self.hang_up()?;
                }
                Action::Send(message, payload) => self.to_mirror.push_back((message, payload)),
                Action::Event { to, why, .. } => self.changes.push(Change { to, why }),
                Action::Noted { .. } => {}
                Action::Forgotten => self.mirror = None,
            }
        }
        Ok(())
    }

    fn put_out(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send(message, payload) => self.to_master.push_back((message, payload)),
                // There is no mount to be told.
                Output::Withdraw
                | Output::Invalidate(_)
                | Output::Opened(_)
                | Output::Status(_)
                | Output::KeptAside(..)
                | Output::Close(_) => {}
            }
        }
    }

    /// Closes both sides in order: every log is empty, both files are free.
    pub fn close(mut self) -> Result<(), PairError> {
        self.lose_link()?;
        self.mirror = None;
        self.master.close()?;
        self.follower.close()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
