//! The journal against simulated disks, mke2fs images and e2fsck.
