//! How large the scenarios are.

/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;

/// Whether the full sizes are asked for.
pub fn full() -> bool {
    std::env::var_os("LOCKSTEP_FULL").is_some_and(|v| v == "1")
}

/// One of two sizes.
pub fn choose<T>(bounded: T, at_full_size: T) -> T {
    if full() { at_full_size } else { bounded }
}
