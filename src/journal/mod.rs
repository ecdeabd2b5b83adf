//! jbd2: append, commit, checkpoint, recover, segments, and who still needs the tail. Big-endian on disk.

use std::sync::Arc;

/// The bytes of one block.
pub type Image = Arc<[u8]>;
