//! The network between nodes: paths that can be blocked in one direction, and connections over them that behave as TLS
//! over TCP does.
//!
//! Owns frames under way. Invariants: a connection delivers a prefix of what was sent, in order, perhaps late, then
//! ends; the two ends learn of an end by themselves, at their own time; frames of an earlier connection may still
//! arrive while a new one is made. Nothing is ever lost out of the middle, or changed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use lockstepfs::io::sim::SimRandom;
use lockstepfs::wire::message::Message;

/// An end that has heard nothing for this long gives the connection up.
pub const SILENCE: Duration = Duration::from_secs(6);
/// Bytes that a connection takes before its sender has to wait.
const WINDOW: usize = 8 << 20;

/// Names a connection.
pub type ConnId = u64;

/// A direction: from a node to a node.
pub type Path = (usize, usize);

#[derive(Debug)]
struct Packet {
    at: Duration,
    message: Message,
    payload: Vec<u8>,
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Lane {
    packets: VecDeque<Packet>,
    bytes: usize,
    last_at: Duration,
    /// The sender has closed it, or is dead: nothing more comes.
    ended: bool,
    /// The receiver learns of the end at this time, even if packets are left.
    cut_at: Option<Duration>,
    heard: Duration,
}

impl Lane {
    fn new(now: Duration) -> Lane {
        Lane {
            packets: VecDeque::new(),
            bytes: 0,
            last_at: now,
            ended: false,
            cut_at: None,
            heard: now,
        }
    }
}

/// A connection for one mirror of one volume; the master dialled it.
#[derive(Debug)]
pub struct Conn {
    pub volume: usize,
    pub master: usize,
    pub mirror: usize,
    pub to_mirror: Lane,
    pub to_master: Lane,
    /// Whether the master's and the mirror's ends are open.
    pub open: [bool; 2],
    delay_ms: u64,
}

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Master,
    Mirror,
}

/// What an end hears.
#[derive(Debug)]
pub enum Heard {
    Frame(Message, Vec<u8>),
    /// The connection is over.
    Lost(&'static str),
}

#[derive(Debug, Default)]
pub struct Net {
    conns: BTreeMap<ConnId, Conn>,
    blocked: BTreeSet<Path>,
    next: ConnId,
    /// The longest that a frame takes, in ms.
    pub jitter_ms: u64,
}

impl Net {
    pub fn block(&mut self, path: Path) {
        self.blocked.insert(path);
    }

    pub fn unblock_all(&mut self) {
        self.blocked.clear();
    }

    pub fn is_blocked(&self, path: Path) -> bool {
        self.blocked.contains(&path)
    }

    pub fn dial(
        &mut self,
        volume: usize,
        master: usize,
        mirror: usize,
        now: Duration,
        random: &SimRandom,
    ) -> ConnId {
        self.next += 1;
        let conn = Conn {
            volume,
            master,
            mirror,
            to_mirror: Lane::new(now),
            to_master: Lane::new(now),
            open: [true, true],
            delay_ms: random.below(self.jitter_ms + 1),
        };
        self.conns.insert(self.next, conn);
        self.next
    }

    pub fn get(&self, id: ConnId) -> Option<&Conn> {
        self.conns.get(&id)
    }

    pub fn ids(&self) -> Vec<ConnId> {
        self.conns.keys().copied().collect()
    }

    /// Whether the sender at `end` may go on.
    pub fn has_room(&self, id: ConnId, end: End) -> bool {
        self.conns.get(&id).is_some_and(|conn| match end {
            End::Master => conn.to_mirror.bytes < WINDOW,
            End::Mirror => conn.to_master.bytes < WINDOW,
        })
    }

    pub fn send(
        &mut self,
        id: ConnId,
        from: End,
        message: Message,
        payload: Vec<u8>,
        now: Duration,
        random: &SimRandom,
    ) {
        let jitter = self.jitter_ms;
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let delay = Duration::from_millis(conn.delay_ms + random.below(jitter + 1));
        let lane = match from {
            End::Master => &mut conn.to_mirror,
            End::Mirror => &mut conn.to_master,
        };
        if lane.ended {
            return;
        }
        lane.last_at = lane.last_at.max(now + delay);
        lane.bytes += payload.len() + 64;
        lane.packets.push_back(Packet {
            at: lane.last_at,
            message,
            payload,
        });
    }

    /// The process at `end` closes its end in order, or is killed: the kernel says so to the other side, behind what
    /// was sent.
    pub fn close(&mut self, id: ConnId, end: End) {
        if let Some(conn) = self.conns.get_mut(&id) {
            match end {
                End::Master => conn.to_mirror.ended = true,
                End::Mirror => conn.to_master.ended = true,
            }
            Net::leave(conn, end);
        }
        self.sweep();
    }

    fn leave(conn: &mut Conn, end: End) {
        let (side, inbound) = match end {
            End::Master => (0, &mut conn.to_master),
            End::Mirror => (1, &mut conn.to_mirror),
        };
        conn.open[side] = false;
        inbound.packets.clear();
        inbound.bytes = 0;
    }

    /// The connection breaks: each direction still delivers some prefix, and each end learns of it at its own time.
    pub fn cut(&mut self, id: ConnId, now: Duration, random: &SimRandom) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        for lane in [&mut conn.to_mirror, &mut conn.to_master] {
            let keep = random.below(lane.packets.len() as u64 + 1) as usize;
            lane.packets.truncate(keep);
            lane.bytes = lane.packets.iter().map(|p| p.payload.len() + 64).sum();
            lane.ended = true;
            let late = match random.below(3) {
                0 => 0,
                1 => random.below(200),
                _ => random.below(SILENCE.as_millis() as u64),
            };
            let at = now + Duration::from_millis(late);
            lane.cut_at = Some(lane.cut_at.map_or(at, |old| old.min(at)));
        }
    }

    /// A node loses its power: nobody says anything, and what it had to send is gone.
    pub fn power_cut(&mut self, node: usize, random: &SimRandom) {
        for conn in self.conns.values_mut() {
            if conn.master == node {
                let keep = random.below(conn.to_mirror.packets.len() as u64 + 1) as usize;
                conn.to_mirror.packets.truncate(keep);
                Net::leave(conn, End::Master);
            }
            if conn.mirror == node {
                let keep = random.below(conn.to_master.packets.len() as u64 + 1) as usize;
                conn.to_master.packets.truncate(keep);
                Net::leave(conn, End::Mirror);
            }
        }
        self.sweep();
    }

    /// A node is back: whoever still talks to its former life is told that nobody knows the connection.
    pub fn booted(&mut self, node: usize, now: Duration) {
        let soon = now + Duration::from_millis(500);
        for conn in self.conns.values_mut() {
            if conn.master == node && !conn.open[0] {
                conn.to_mirror.cut_at = Some(conn.to_mirror.cut_at.map_or(soon, |at| at.min(soon)));
            }
            if conn.mirror == node && !conn.open[1] {
                conn.to_master.cut_at = Some(conn.to_master.cut_at.map_or(soon, |at| at.min(soon)));
            }
        }
    }

    fn sweep(&mut self) {
        self.conns.retain(|_, conn| conn.open != [false, false]);
    }

    /// The next thing that `end` hears, if there is one by now.
    pub fn receive(&mut self, id: ConnId, end: End, now: Duration) -> Option<Heard> {
        let conn = self.conns.get_mut(&id)?;
        let (from, to) = match end {
            End::Master => (conn.mirror, conn.master),
            End::Mirror => (conn.master, conn.mirror),
        };
        let blocked = self.blocked.contains(&(from, to));
        let (sender_open, lane) = match end {
            End::Master if conn.open[0] => (conn.open[1], &mut conn.to_master),
            End::Mirror if conn.open[1] => (conn.open[0], &mut conn.to_mirror),
            _ => return None,
        };
        if !blocked && lane.packets.front().is_some_and(|p| p.at <= now) {
            let packet = lane.packets.pop_front().expect("looked at above");
            lane.bytes = lane.bytes.saturating_sub(packet.payload.len() + 64);
            lane.heard = now;
            return Some(Heard::Frame(packet.message, packet.payload));
        }
        // Both ends ask each other now and then whether they are still there.
        if !blocked && sender_open && !lane.ended {
            lane.heard = now;
        }
        let lost = if lane.cut_at.is_some_and(|at| at <= now) {
            Some("the connection was reset")
        } else if lane.ended && lane.packets.is_empty() && !blocked {
            Some("the peer closed the connection")
        } else if now.saturating_sub(lane.heard) > SILENCE {
            Some("the peer is silent")
        } else {
            None
        };
        lost.map(|why| {
            self.close(id, end);
            Heard::Lost(why)
        })
    }
}
