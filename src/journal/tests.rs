//! The journal against simulated disks, mke2fs images, the kernel and e2fsck.

mod commit;
mod crash;
mod damage;
mod format;
mod mirrors;
mod oracle;
mod rig;
