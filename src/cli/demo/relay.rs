//! A cable between two nodes on one machine: a port that hands every connection on to another one, and can be cut.
//!
//! Owns its connections and counts what went through. Never looks at a byte. While it is cut, what comes in is closed at
//! once, as a router does that has lost the other side.

use parking_lot::Mutex;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes handed on at once.
const CHUNK: usize = 256 << 10;

#[derive(Debug, Default)]
struct Cable {
    cut: AtomicBool,
    over: AtomicBool,
    bytes: AtomicU64,
    ends: Mutex<Vec<TcpStream>>,
}

/// A running relay. Everything ends when it is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    cable: Arc<Cable>,
}

impl Relay {
    /// A relay to `target` on a free port of this machine.
    pub fn start(target: &str) -> io::Result<Relay> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let cable = Arc::new(Cable::default());
        let relay = Relay {
            address,
            cable: Arc::clone(&cable),
        };
        let target = target.to_owned();
        std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || {
                for near in listener.incoming().flatten() {
                    if cable.over.load(Ordering::SeqCst) {
                        return;
                    }
                    // A connection that can not be handed on is closed by dropping it.
                    let _ = cable.join(near, &target);
                }
            })?;
        Ok(relay)
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Ends every connection, and lets none through from now on.
    pub fn cut(&self) {
        let mut ends = self.cable.ends.lock();
        self.cable.cut.store(true, Ordering::SeqCst);
        for end in ends.drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.cable.cut.store(false, Ordering::SeqCst);
    }

    /// Bytes that went through, both ways.
    pub fn bytes(&self) -> u64 {
        self.cable.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut();
        self.cable.over.store(true, Ordering::SeqCst);
        // Wakes the thread, which then looks.
        let _ = TcpStream::connect(self.address);
    }
}

impl Cable {
    fn join(self: &Arc<Cable>, near: TcpStream, target: &str) -> io::Result<()> {
        if self.cut.load(Ordering::SeqCst) {
            return Ok(());
        }
        let far = TcpStream::connect(target)?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let pairs = [
            (near.try_clone()?, far.try_clone()?),
            (far.try_clone()?, near.try_clone()?),
        ];
        {
            let mut ends = self.ends.lock();
            // Under the lock under which the cable is cut: no connection slips through.
            if self.cut.load(Ordering::SeqCst) {
                return Ok(());
            }
            ends.extend([near, far]);
        }
        for (from, to) in pairs {
            let cable = Arc::clone(self);
            std::thread::Builder::new()
                .name("relayed".to_owned())
                .spawn(move || cable.hand_on(from, to))?;
        }
        Ok(())
    }

    fn hand_on(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut chunk = vec![0; CHUNK];
        while let Ok(n) = from.read(&mut chunk) {
            if n == 0 || to.write_all(&chunk[..n]).is_err() {
                break;
            }
            self.bytes.fetch_add(n as u64, Ordering::Relaxed);
        }
        let _ = to.shutdown(Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(relay: &Relay, text: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(relay.address())?;
        stream.write_all(text)?;
        stream.shutdown(Shutdown::Write)?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back)?;
        Ok(back)
    }

    #[test]
    fn bytes_go_both_ways_until_it_is_cut_and_again_when_it_is_mended() {
        let far = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay::start(&far.local_addr().unwrap().to_string()).unwrap();
        std::thread::spawn(move || {
            for mut stream in far.incoming().flatten() {
                let mut text = Vec::new();
                if stream.read_to_end(&mut text).is_ok() {
                    let _ = stream.write_all(&text);
                }
            }
        });
        assert_eq!(echo(&relay, b"hello").unwrap(), b"hello");
        assert_eq!(relay.bytes(), 10);

        let mut open = TcpStream::connect(relay.address()).unwrap();
        open.write_all(b"x").unwrap();
        relay.cut();
        // The end of the stream or a reset; a connection that was not yet joined is refused a byte, too.
        assert!(matches!(open.read(&mut [0]), Ok(0) | Err(_)));
        assert!(echo(&relay, b"lost").map_or(true, |back| back.is_empty()));
        relay.mend();
        assert_eq!(echo(&relay, b"again").unwrap(), b"again");
    }
}
