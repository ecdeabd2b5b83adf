//! Images that the engine writes, judged by e2fsck and by the kernel.
