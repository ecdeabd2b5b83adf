//! The daemon: catalogue, control socket, mounts, roles, events, TLS keys.
