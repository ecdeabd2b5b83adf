//! Figures for Prometheus: the text format, over HTTP, from what `status` shows.
//!
//! Owns one listening socket. Anybody who can reach it may read; nothing can be changed by it. What a client sends is read
//! up to a limit and not interpreted; connections, their time and their number are bounded.

use super::protocol::{MirrorStatus, VolumeStatus};
use super::registry::Node;
use crate::mirror::counters::{BOUNDS_US, Histogram};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Clients at once; others wait in the kernel's backlog.
const CLIENTS: usize = 8;
/// How long a client may take.
const WITHIN: Duration = Duration::from_secs(5);
/// Bytes of a request.
const REQUEST: usize = 8192;

/// Serves for ever; drop the future to stop.
pub async fn serve(socket: TcpListener, node: Arc<Node>) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let turn = Arc::clone(&clients)
            .acquire_owned()
            .await
            .expect("never closed");
        let stream = match socket.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!("metrics: accept: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            // Whoever is slower than that, or hangs up, gets nothing.
            let _ = timeout(WITHIN, answer(stream, &node)).await;
            drop(turn);
        });
    }
}

async fn answer(mut stream: TcpStream, node: &Node) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < REQUEST {
        match stream.read(&mut piece).await? {
            0 => break,
            n => request.extend_from_slice(&piece[..n]),
        }
    }
    let (status, body) = match request.starts_with(b"GET ") {
        true => {
            let volumes: Vec<VolumeStatus> = node.hosts().iter().map(|h| h.view()).collect();
            ("200 OK", text(&volumes))
        }
        false => ("405 Method Not Allowed", "only GET\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

type Figure = (
    &'static str,
    &'static str,
    &'static str,
    fn(&MirrorStatus) -> f64,
);

/// Name, what it is, and where it is from.
type Times = (
    &'static str,
    &'static str,
    fn(&crate::mirror::master::Tuning) -> &Histogram,
);

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn of(mirror: &MirrorStatus, figure: fn(&crate::mirror::master::Tuning) -> u64) -> f64 {
    mirror.counters.as_ref().map_or(0, |c| figure(c)) as f64
}

/// Name, kind, what it is, and where it is from.
const FIGURES: [Figure; 23] = [
    ("insync", "gauge", "1 while the mirror is in INSYNC", |m| {
        f64::from(u8::from(m.state == "INSYNC"))
    }),
    (
        "degraded",
        "gauge",
        "1 while a sync mirror is not in INSYNC",
        |m| f64::from(u8::from(m.degraded)),
    ),
    (
        "cracked",
        "gauge",
        "1 after a crack, until a pass over the map begins",
        |m| f64::from(u8::from(m.cracked)),
    ),
    (
        "lag_seconds",
        "gauge",
        "age of the oldest transaction that the mirror lacks",
        |m| m.lag_s,
    ),
    ("bytes_to_go", "gauge", "bytes that the mirror lacks", |m| {
        m.bytes_to_go as f64
    }),
    (
        "queue_transactions",
        "gauge",
        "transactions that the mirror lacks",
        |m| of(m, |c| c.queue),
    ),
    (
        "queue_transactions_highest",
        "gauge",
        "most of these at one time",
        |m| of(m, |c| c.waits.queue_highest),
    ),
    (
        "queue_bytes",
        "gauge",
        "bytes of the buffer that the mirror holds",
        |m| of(m, |c| c.queue_bytes),
    ),
    (
        "queue_bytes_highest",
        "gauge",
        "most of these at one time",
        |m| of(m, |c| c.waits.queue_bytes_highest),
    ),
    (
        "sequenced_bytes_total",
        "counter",
        "bytes of blocks sent with transactions",
        |m| of(m, |c| c.bytes_sequenced),
    ),
    (
        "sequenced_transactions_total",
        "counter",
        "transactions sent",
        |m| of(m, |c| c.transactions),
    ),
    (
        "bulk_bytes_total",
        "counter",
        "bytes of blocks sent by the bulk replicator",
        |m| of(m, |c| c.bytes_bulk),
    ),
    (
        "retransmitted_transactions_total",
        "counter",
        "transactions sent again",
        |m| of(m, |c| c.retransmitted),
    ),
    (
        "early_transactions_total",
        "counter",
        "transactions sent while they were being committed",
        |m| of(m, |c| c.sent_early),
    ),
    (
        "packed_from_bytes_total",
        "counter",
        "bytes of payload that were packed",
        |m| of(m, |c| c.packed_from_bytes),
    ),
    ("packed_bytes_total", "counter", "what they became", |m| {
        of(m, |c| c.packed_bytes)
    }),
    (
        "cracks_total",
        "counter",
        "times that order was given up",
        |m| of(m, |c| c.cracks),
    ),
    (
        "limit_trips_count_total",
        "counter",
        "times that async-limit tripped",
        |m| of(m, |c| c.waits.trips_by_count),
    ),
    (
        "limit_trips_bytes_total",
        "counter",
        "times that high-water tripped",
        |m| of(m, |c| c.waits.trips_by_bytes),
    ),
    (
        "syncs_delayed_total",
        "counter",
        "fsyncs that waited for mirrors",
        |m| of(m, |c| c.waits.syncs_delayed),
    ),
    (
        "syncs_delayed_seconds_total",
        "counter",
        "how long these waited",
        |m| {
            m.counters
                .as_ref()
                .map_or(0.0, |c| seconds(c.waits.syncs_delayed_us))
        },
    ),
    (
        "writers_delayed_total",
        "counter",
        "writes that were slowed",
        |m| of(m, |c| c.waits.writers_delayed),
    ),
    (
        "writers_delayed_seconds_total",
        "counter",
        "how long these waited",
        |m| {
            m.counters
                .as_ref()
                .map_or(0.0, |c| seconds(c.waits.writers_delayed_us))
        },
    ),
];

/// Names are of letters, digits, `.`, `_` and `-`: nothing to escape.
fn labels(volume: &VolumeStatus, mirror: &MirrorStatus) -> String {
    format!("volume=\"{}\",peer=\"{}\"", volume.name, mirror.peer)
}

/// The figures of every volume of which this node is the master.
pub fn text(volumes: &[VolumeStatus]) -> String {
    let mut out = String::new();
    let masters: Vec<&VolumeStatus> = volumes.iter().filter(|v| v.role == "master").collect();
    let mut put = |line: std::fmt::Arguments<'_>| {
        writeln!(out, "{line}").expect("a string takes everything");
    };
    for (name, what, figure) in [
        (
            "buffer_bytes",
            "bytes of the buffer",
            (|v| v.buffer_size) as fn(&VolumeStatus) -> u64,
        ),
        ("buffer_used_bytes", "bytes of the buffer in use", |v| {
            v.buffer_used
        }),
    ] {
        put(format_args!(
            "# HELP lockstep_{name} {what}\n# TYPE lockstep_{name} gauge"
        ));
        for volume in &masters {
            put(format_args!(
                "lockstep_{name}{{volume=\"{}\"}} {}",
                volume.name,
                figure(volume)
            ));
        }
    }
    let mirrors: Vec<(String, &MirrorStatus)> = masters
        .iter()
        .flat_map(|v| v.mirrors.iter().map(|m| (labels(v, m), m)))
        .collect();
    for (name, kind, what, figure) in FIGURES {
        put(format_args!(
            "# HELP lockstep_mirror_{name} {what}\n# TYPE lockstep_mirror_{name} {kind}"
        ));
        for (labels, mirror) in &mirrors {
            put(format_args!(
                "lockstep_mirror_{name}{{{labels}}} {}",
                figure(mirror)
            ));
        }
    }
    let histograms: [Times; 4] = [
        (
            "queue_seconds",
            "from a commit to the mirror's acknowledgement",
            |c| &c.time_in_queue,
        ),
        (
            "round_trip_seconds",
            "from a frame to its acknowledgement",
            |c| &c.round_trip,
        ),
        (
            "flush_seconds",
            "how long the mirror took to make transactions durable",
            |c| &c.mirror_flush,
        ),
        (
            "sync_wait_seconds",
            "how long fsyncs waited for mirrors",
            |c| &c.waits.sync_wait,
        ),
    ];
    for (name, what, histogram) in histograms {
        put(format_args!(
            "# HELP lockstep_mirror_{name} {what}\n# TYPE lockstep_mirror_{name} histogram"
        ));
        for (labels, mirror) in &mirrors {
            let Some(counters) = &mirror.counters else {
                continue;
            };
            let histogram = histogram(counters);
            let mut sum = 0;
            for (count, bound) in histogram.buckets.iter().zip(BOUNDS_US) {
                sum += count;
                let bound = seconds(bound);
                put(format_args!(
                    "lockstep_mirror_{name}_bucket{{{labels},le=\"{bound}\"}} {sum}"
                ));
            }
            let (count, total) = (histogram.count, seconds(histogram.sum_us));
            put(format_args!(
                "lockstep_mirror_{name}_bucket{{{labels},le=\"+Inf\"}} {count}"
            ));
            put(format_args!(
                "lockstep_mirror_{name}_sum{{{labels}}} {total}"
            ));
            put(format_args!(
                "lockstep_mirror_{name}_count{{{labels}}} {count}"
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::master::Tuning;

    #[test]
    fn every_figure_has_its_type_and_its_mirror() {
        let mut counters = Tuning {
            queue: 7,
            ..Tuning::default()
        };
        counters.round_trip.add(300);
        counters.round_trip.add(1 << 40);
        let volume = VolumeStatus {
            name: "data".into(),
            role: "master".into(),
            mirrors: vec![MirrorStatus {
                peer: "beta".into(),
                state: "INSYNC".into(),
                counters: Some(Box::new(counters)),
                ..MirrorStatus::default()
            }],
            ..VolumeStatus::default()
        };
        let text = text(&[volume]);
        for line in [
            "lockstep_mirror_insync{volume=\"data\",peer=\"beta\"} 1",
            "lockstep_mirror_queue_transactions{volume=\"data\",peer=\"beta\"} 7",
            "lockstep_mirror_round_trip_seconds_bucket{volume=\"data\",peer=\"beta\",le=\"0.00025\"} 0",
            "lockstep_mirror_round_trip_seconds_bucket{volume=\"data\",peer=\"beta\",le=\"0.0005\"} 1",
            "lockstep_mirror_round_trip_seconds_bucket{volume=\"data\",peer=\"beta\",le=\"+Inf\"} 2",
            "lockstep_mirror_round_trip_seconds_count{volume=\"data\",peer=\"beta\"} 2",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line}\nin\n{text}"
            );
        }
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let name = line.split('{').next().unwrap();
            let typed = |n: &str| text.contains(&format!("# TYPE {n} "));
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|s| name.strip_suffix(s));
            assert!(typed(name) || base.is_some_and(typed), "{line}");
        }
    }
}
