//! The FUSE adapter: decode, call the engine, map the errno, reply, invalidate.
