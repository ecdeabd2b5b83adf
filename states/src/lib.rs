//! The replication state machine of Lockstep.
#![no_std]
#![forbid(unsafe_code)]
