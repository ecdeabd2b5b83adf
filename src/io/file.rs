//! Files and block devices as disks.
