//! Replication of a volume. Owns the sequencer and the bulk replicator (`stream`), the mirror's side (`follower`), the
//! dirty map, the handshake and `verify`; executes what `states` decides. Never opens a socket, starts a thread or
//! reads a clock: `node` drives it with inputs and carries out its outputs, and so does the simulator.

pub mod committed;
pub mod counters;
pub mod dirty;
pub mod error;
pub mod floor;
pub mod follower;
pub mod gate;
pub mod guard;
pub mod hashing;
pub mod keeper;
pub mod lost;
pub mod master;
pub mod open;
pub mod packing;
pub mod policy;
pub mod progress;
pub mod ranges;
pub mod rate;
pub mod roles;
pub mod shipment;
pub mod slot;
pub mod staging;
pub mod stamps;
pub mod stream;

pub use error::MirrorError;
