//! Bugs on purpose: the simulator has to find each of them, or it proves nothing.
//!
//! Owns the list and which one is planted on this thread. Without the feature `planted` there is none, and every question
//! is answered by the compiler. Each is one `if planted::is(...)` at the place where the mistake would be made.

/// Their names.
pub const ALL: &[&str] = &[
    // A commit is acknowledged although its last flush was left out.
    "ack-before-flush",
    // A crack forgets some of the blocks that a transaction changed.
    "drop-dirty-bit",
    // A freed block's older image is not revoked.
    "skip-revoke",
    // Of two transactions that a mirror makes durable at once, the older one is applied last.
    "apply-out-of-order",
    // An opening does not record on which transaction it builds.
    "forget-fork",
    // A freed block is reused, and its new contents are sent, although a mirror still needs the old ones.
    "reuse-pinned",
    // A mirror that lost its power believes its fact file rather than its log.
    "stale-facts",
    // A half-made copy is not guarded against being mounted.
    "no-guard",
    // A mirror switches to what was staged before it is durable.
    "switch-early",
    // A block's dirty bit is cleared when it is sent, not when the mirror has it.
    "clear-on-send",
    // In sync mode a sync is answered without the mirrors.
    "ack-without-mirror",
    // A master that becomes a mirror drops what only it had, and keeps none of it aside.
    "drop-without-keeping",
];

#[cfg(feature = "planted")]
std::thread_local! {
    static PLANTED: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug, by its name, for what this thread runs from now on; or takes it away.
#[cfg(feature = "planted")]
pub fn plant(name: Option<&'static str>) {
    PLANTED.set(name);
}

/// Whether the bug is planted.
#[inline(always)]
pub fn is(name: &str) -> bool {
    #[cfg(feature = "planted")]
    return PLANTED.get() == Some(name);
    #[cfg(not(feature = "planted"))]
    {
        let _ = name;
        false
    }
}
