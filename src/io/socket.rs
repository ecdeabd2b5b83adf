//! What the standard library does not say to a socket. Owns no socket and never sends anything.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Lets the kernel hold at most about this many bytes that were not sent yet (TCP_NOTSENT_LOWAT, tcp(7)): what is written
/// later is not stuck behind megabytes in its queue. Bytes on their way do not count, so throughput does not suffer.
pub fn limit_unsent(socket: &impl AsFd, bytes: u32) -> io::Result<()> {
    let fd = socket.as_fd();
    // SAFETY: the descriptor is borrowed for the call, and the option reads one u32 through the pointer.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const bytes).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
