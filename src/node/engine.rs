//! What holds a volume open: the master's side, the mirror's side, or neither.
//!
//! Owns the choice between them. Everything here happens under the volume's operator lock.

use super::catalogue::{self, Role};
use super::follow::Follow;
use super::history::NewEvent;
use super::master::{Master, ReadOnly, can_write};
use super::protocol::Condition;
use super::refusal::Refusal;
use super::registry::{Host, Node};
use super::roles;
use super::volumes::chain;
use crate::ext4::features::Access;
use crate::mirror::roles::Answer;
use crate::volume::Volume;
use crate::volume::parts::{Expect, PartSpec, open_parts};
use std::sync::Arc;
use std::time::Duration;

/// A volume, open or not.
#[derive(Debug)]
pub enum Engine {
    /// Not open.
    Closed,
    /// Of which this node is the master.
    Master(Box<Master>),
    /// Of which this node would be the master, if it could write it.
    ReadOnly(ReadOnly),
    /// Of which this node has, or is getting, a copy.
    Mirror(Follow),
}

impl Engine {
    /// Whether the parts are open, or are being made.
    pub fn is_open(&self) -> bool {
        !matches!(self, Engine::Closed)
    }

    /// Opens the volume as the catalogue describes it. Nothing is done when it is open. A failure is published in the
    /// view, recorded, and returned.
    pub fn open(&mut self, node: &Arc<Node>, host: &Arc<Host>) -> Result<(), Refusal> {
        self.open_asked(node, host, None)
    }

    /// The same, when the peers have been asked already who is the master.
    pub fn open_asked(
        &mut self,
        node: &Arc<Node>,
        host: &Arc<Host>,
        answers: Option<Vec<Answer>>,
    ) -> Result<(), Refusal> {
        if self.is_open() {
            return Ok(());
        }
        node.check_running()?;
        node.publish(host, |view| view.condition = Condition::Opening);
        match try_open(node, host, answers) {
            Ok(engine) => {
                let waits = matches!(engine, Engine::Mirror(_));
                *self = engine;
                node.publish(host, |view| {
                    if !waits {
                        view.condition = Condition::Open;
                        view.reason.clear();
                    } else if view.condition == Condition::Opening {
                        view.condition = Condition::Waiting;
                        "the copy is not consistent yet".clone_into(&mut view.reason);
                    }
                });
                Ok(())
            }
            Err(refusal) => {
                let text = refusal.to_string();
                node.publish(host, |view| {
                    view.condition = Condition::Failed;
                    view.reason.clone_from(&text);
                });
                node.record(NewEvent::volume("volume-failed", host.name(), text));
                Err(refusal)
            }
        }
    }

    /// Closes the volume: mirrors get what they lack within `drain`, everything is brought home, the parts are free.
    pub fn close(
        &mut self,
        node: &Arc<Node>,
        host: &Arc<Host>,
        drain: Duration,
    ) -> Result<(), Refusal> {
        let closed = match std::mem::replace(self, Engine::Closed) {
            Engine::Closed => Ok(()),
            Engine::Master(master) => master.close(node, host, drain),
            Engine::ReadOnly(read_only) => read_only.close(host),
            Engine::Mirror(follow) => follow.stop(),
        };
        node.publish(host, |view| {
            view.condition = Condition::Closed;
            view.reason.clear();
            view.mounted = false;
        });
        closed
    }
}

/// Opens the parts of a volume of the catalogue.
pub fn open_volume_of(host: &Host, entry: &catalogue::Volume) -> Result<Arc<Volume>, Refusal> {
    let still_open = host.parts.lock().upgrade();
    if let Some(volume) = still_open
        && volume.block_size() == entry.block_size
        && volume
            .parts()
            .iter()
            .map(|p| p.len())
            .eq(entry.parts.iter().map(|p| p.bytes))
    {
        return Ok(volume);
    }
    let specs: Vec<PartSpec> = entry
        .parts
        .iter()
        .map(|p| PartSpec {
            path: p.path.clone(),
            len: Some(p.bytes),
        })
        .collect();
    let disks = open_parts(&specs, entry.block_size, Expect::Present, None)?;
    let volume = Volume::new(disks, entry.block_size);
    let volume = Arc::new(volume.map_err(|e| Refusal::io("parts", chain(&e)))?);
    *host.parts.lock() = Arc::downgrade(&volume);
    Ok(volume)
}

fn try_open(
    node: &Arc<Node>,
    host: &Arc<Host>,
    answers: Option<Vec<Answer>>,
) -> Result<Engine, Refusal> {
    let name = host.name();
    roles::reconcile(node, name)?;
    let entry = |catalogue: &catalogue::Catalogue| {
        let entry = catalogue.volumes.get(name).cloned();
        entry.ok_or_else(|| Refusal::no_volume(name))
    };
    let mut now = entry(&node.catalogue.get())?;
    let undecided = roles::before_opening(node, host, &now, answers)?;
    now = entry(&node.catalogue.get())?;
    let role = match &now.role {
        Role::Master => "master",
        Role::Mirror { .. } => "mirror",
    };
    // A change of role may have been cut off before the catalogue, from which the view was made, knew of it.
    node.publish(host, |view| role.clone_into(&mut view.role));
    let volume = open_volume_of(host, &now)?;
    match &now.role {
        Role::Mirror { master } => {
            Follow::start(node, host, master, Some(volume)).map(Engine::Mirror)
        }
        Role::Master if let Some(why) = undecided => {
            roles::ask_again(node, host);
            ReadOnly::open(node, host, volume, &[why]).map(Engine::ReadOnly)
        }
        Role::Master => match can_write(&volume)? {
            Access::ReadOnly(why) => {
                let why: Vec<String> = why.iter().map(ToString::to_string).collect();
                ReadOnly::open(node, host, volume, &why).map(Engine::ReadOnly)
            }
            Access::ReadWrite | Access::Refused(_) => {
                Master::open(node, host, volume).map(|m| Engine::Master(Box::new(m)))
            }
        },
    }
}
