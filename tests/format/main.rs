//! The engine against other people's ext4: images that the kernel filled are read, images that the engine filled are
//! checked by e2fsck and read by the kernel.

#[path = "../testkit/mod.rs"]
mod testkit;

mod engine;
mod model;

mod checked;
mod concurrent;
mod crash;
mod damaged;
mod kernel_filled;
mod mirrored;
mod mmp;
mod mutated;
mod space;
mod tight;
mod written;
