//! Operators' requests: who carries each out, and the ones that need nothing but the node itself.
//!
//! Owns the dispatch. What may block runs on a thread of its own, never on the runtime; `status` and `events` need no
//! volume's lock.

use super::control::{Answer, Handler};
use super::lost::LostFiles;
use super::peers;
use super::protocol::{Line, Request};
use super::refusal::{Code, Refusal};
use super::registry::Node;
use super::{mirrors, roles, verify, volumes};
use serde::Serialize;
use serde_json::Value;
use states::State;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};

fn json(value: impl Serialize) -> Value {
    serde_json::to_value(value).expect("maps with string keys")
}

impl Handler for Node {
    async fn handle(self: Arc<Self>, request: Request, answer: Answer) -> Line {
        let done = match request {
            Request::Status { volume } => self.status(volume.as_deref()).map(json),
            Request::VolumeList => self.status(None).map(|s| json(s.volumes)),
            Request::Events { follow } => self.events(follow, &answer).await,
            Request::Wait {
                name,
                peer,
                state,
                timeout_ms,
            } => self.wait(&name, &peer, &state, timeout_ms, &answer).await,
            other => {
                let worker = tokio::task::spawn_blocking(move || self.blocking(other, &answer));
                match worker.await {
                    Ok(done) => done,
                    Err(e) => Err(Refusal::new(
                        Code::Unsupported,
                        format!("the daemon failed to carry the request out: {e}"),
                        "see the daemon's log; this is an error in lockstep",
                    )),
                }
            }
        };
        match done {
            Ok(value) => Line::Done(value),
            Err(refusal) => Line::Refused(refusal),
        }
    }
}

impl Node {
    fn blocking(self: &Arc<Node>, request: Request, answer: &Answer) -> Result<Value, Refusal> {
        self.check_running()?;
        let catalogue = |result: Result<Result<String, Refusal>, _>| {
            let result = result.map_err(|e| Refusal::io("the catalogue was not changed", e));
            result?.map(Value::from)
        };
        let sentence = match request {
            Request::PeerAdd {
                name,
                address,
                fingerprint,
            } => {
                let ours = Some(self.identity.fingerprint());
                let done = peers::add(&self.catalogue, ours, &name, &address, &fingerprint);
                return catalogue(done);
            }
            Request::PeerRemove { name } => {
                return catalogue(peers::remove(&self.catalogue, &name));
            }
            Request::PeerList => return Ok(peers::list(&self.catalogue.get())),
            Request::VolumeCreate {
                name,
                parts,
                block_size,
                buffer,
            } => volumes::create(self, &name, parts, block_size, buffer)?,
            Request::VolumeAdopt {
                name,
                parts,
                buffer,
            } => volumes::adopt(self, &name, parts, buffer)?,
            Request::VolumeShow { name } => return volumes::show(self, &name),
            Request::VolumeCheck { name } => volumes::check(self, &name, answer)?,
            Request::VolumeTune { name, buffer } => volumes::tune(self, &name, buffer)?,
            Request::VolumeDelete { name, keep_parts } => volumes::delete(self, &name, keep_parts)?,
            Request::Mount {
                name,
                dir,
                read_only,
            } => mirrors::mount(self, &name, dir, read_only)?,
            Request::Umount { name } => mirrors::umount(self, &name)?,
            Request::MirrorCreate {
                name,
                peer,
                rate,
                wishes,
            } => mirrors::create(self, &name, &peer, rate, wishes)?,
            Request::MirrorSet { name, peer, wishes } => mirrors::set(self, &name, &peer, wishes)?,
            Request::Mirror { name, peer, action } => mirrors::act(self, &name, &peer, action)?,
            Request::Verify {
                name,
                peer,
                repair,
                rate,
            } => verify::verify(self, &name, peer.as_deref(), repair, rate, answer)?,
            Request::Promote { name, force } => roles::promote(self, &name, force, answer)?,
            Request::Compare { name, peer } => roles::compare(self, &name, &peer)?,
            Request::LostList { name } => {
                return LostFiles::new(self.state.path()).list(name.as_deref());
            }
            Request::LostShow { name, id } => {
                return LostFiles::new(self.state.path()).show(&name, &id);
            }
            Request::LostExtract { name, id, dir } => {
                LostFiles::new(self.state.path()).extract(&name, &id, &dir)?
            }
            Request::Switchover { name, peer } => roles::switchover(self, &name, &peer, answer)?,
            Request::Rejoin {
                name,
                master,
                discard,
            } => roles::rejoin(self, &name, &master, discard.as_deref())?,
            // Answered on the runtime.
            Request::Status { .. }
            | Request::VolumeList
            | Request::Events { .. }
            | Request::Wait { .. } => String::new(),
        };
        Ok(Value::from(sentence))
    }

    async fn events(&self, follow: bool, answer: &Answer) -> Result<Value, Refusal> {
        let (past, mut news) = self.history.follow();
        for event in past {
            if !answer.send_async(Line::Item(json(&*event))).await {
                return Ok(Value::Null);
            }
        }
        while follow && !self.is_stopping() {
            let event = tokio::select! {
                event = news.recv() => event,
                () = answer.gone() => return Ok(Value::Null),
            };
            let sent = match event {
                Ok(event) => answer.send_async(Line::Item(json(&*event))).await,
                Err(RecvError::Lagged(n)) => {
                    let note = format!("{n} events were not shown: the reader is too slow");
                    answer.send_async(Line::Note(note)).await
                }
                Err(RecvError::Closed) => false,
            };
            if !sent {
                break;
            }
        }
        Ok(Value::Null)
    }

    /// The word and the reason of a mirror's state, as the view has it now. On a mirror's node the one entry is the
    /// master's; this node's own name means the same mirror there.
    fn mirror_state(&self, name: &str, peer: &str) -> Result<(String, String), Refusal> {
        let view = self.host(name)?.view();
        let own = view.role == "mirror" && peer == self.config.name;
        let found = view.mirrors.into_iter().find(|m| own || m.peer == peer);
        let found = found.ok_or_else(|| Refusal::no_mirror(name, peer))?;
        Ok((found.state, found.reason))
    }

    async fn wait(
        &self,
        name: &str,
        peer: &str,
        state: &str,
        timeout_ms: Option<u64>,
        answer: &Answer,
    ) -> Result<Value, Refusal> {
        let wanted: State = state.parse().map_err(|_| {
            let words: Vec<_> = State::ALL.iter().map(|s| s.word()).collect();
            Refusal::new(
                Code::Invalid,
                format!("{state} is no state"),
                format!("one of {}", words.join(" ")),
            )
        })?;
        let until = timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        let mut changes = self.watch();
        loop {
            // Marked as seen before looking: a change after the look wakes the wait below.
            changes.borrow_and_update();
            let (word, reason) = self.mirror_state(name, peer)?;
            if word == wanted.word() {
                return Ok(Value::Null);
            }
            if word == State::Error.word() {
                return Err(Refusal::new(
                    Code::ErrorState,
                    format!("the mirror of {name} on {peer} is in ERROR: {reason}"),
                    format!("mend the cause, then: lockstep mirror restart {name} {peer}"),
                ));
            }
            self.check_running()?;
            let far = Instant::now() + Duration::from_secs(86_400);
            let changed = tokio::select! {
                changed = timeout_at(until.unwrap_or(far), changes.changed()) => changed,
                () = answer.gone() => return Ok(Value::Null),
            };
            if changed.is_err() && until.is_some() {
                return Err(Refusal::new(
                    Code::Timeout,
                    format!("the mirror of {name} on {peer} is in {word}, not in {wanted}"),
                    format!("lockstep status {name}"),
                ));
            }
        }
    }
}
