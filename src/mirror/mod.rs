//! Sequencer, follower, bulk replicator, dirty map, handshake, verify; executes what `states` decides.
