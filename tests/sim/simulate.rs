//! The simulator itself: the modules of `examples/simulate`, of which there is one copy.

#![allow(
    dead_code,
    reason = "the example's main uses what the tests do not, and the other way round"
)]

#[path = "../../examples/simulate/device.rs"]
mod device;
#[path = "../../examples/simulate/dispute.rs"]
mod dispute;
#[path = "../../examples/simulate/drive.rs"]
mod drive;
#[path = "../../examples/simulate/files.rs"]
mod files;
#[path = "../../examples/simulate/force.rs"]
mod force;
#[path = "../../examples/simulate/golden.rs"]
mod golden;
#[path = "../../examples/simulate/image.rs"]
mod image;
#[path = "../../examples/simulate/lines.rs"]
mod lines;
#[path = "../../examples/simulate/lost.rs"]
mod lost;
#[path = "../../examples/simulate/net.rs"]
mod net;
#[path = "../../examples/simulate/node.rs"]
mod node;
#[path = "../../examples/simulate/policy.rs"]
mod policy;
#[path = "../../examples/simulate/roles.rs"]
mod roles;
#[path = "../../examples/simulate/run.rs"]
pub mod run;
#[path = "../../examples/simulate/script.rs"]
pub mod script;
#[path = "../../examples/simulate/switchover.rs"]
mod switchover;
#[path = "../../examples/simulate/sync.rs"]
mod sync;
#[path = "../../examples/simulate/tally.rs"]
pub mod tally;
#[path = "../../examples/simulate/verbs.rs"]
mod verbs;
#[path = "../../examples/simulate/world.rs"]
mod world;
