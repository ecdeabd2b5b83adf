//! The journal against simulated disks, mke2fs images, the kernel and e2fsck.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod commit;
mod crash;
mod damage;
mod format;
mod mirrors;
mod oracle;
mod rig;
