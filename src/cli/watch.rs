//! Commands that watch: status, progress, events, wait, verify.
//!
//! Owns how states and figures are shown. Bars only on a terminal; elsewhere one line whenever something changed.

use super::args::{EventsArgs, ProgressArgs, StatusArgs, VerifyArgs, WaitArgs};
use super::client::{ask, call, get};
use super::exit::Exit;
use super::size::{show, show_seconds};
use super::table::Table;
use super::{Failed, say};
use crate::node::history::Event;
use crate::node::protocol::{MirrorStatus, Request, Status, VolumeStatus};
use crate::node::state_dir::StateDir;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;
use states::State;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

/// How often a watched status is fetched.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// How often bars move.
const BARS_EVERY: Duration = Duration::from_millis(200);

/// `lockstep status`
pub fn status(state: &StateDir, args: &StatusArgs) -> Result<Exit, Failed> {
    let request = Request::Status {
        volume: args.name.clone(),
    };
    loop {
        if args.json {
            // As the daemon says it: a newer daemon's fields are shown too.
            say(call(state, &request)?)?;
        } else {
            let status: Status = get(state, &request)?;
            if args.watch && std::io::stdout().is_terminal() {
                // Cursor home, clear to the end of the screen.
                print!("\x1b[H\x1b[J");
            }
            say(status_text(&status))?;
        }
        if !args.watch {
            return Ok(Exit::Ok);
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

/// Where a volume is mounted, in one cell.
pub fn mount_cell(v: &VolumeStatus) -> String {
    let Some(dir) = &v.mount_point else {
        return String::new();
    };
    let how = match (v.mounted, v.read_only) {
        (false, _) => " (waits)",
        (true, true) => " (read-only)",
        (true, false) => "",
    };
    format!("{}{how}", dir.display())
}

fn status_text(status: &Status) -> String {
    if status.volumes.is_empty() {
        return format!(
            "node {}: no volumes; next: lockstep volume create NAME --part PATH=SIZE",
            status.node
        );
    }
    let mut text = vec![format!("node {}", status.node)];
    for v in &status.volumes {
        text.push(String::new());
        text.push(volume_line(v));
        if !v.reason.is_empty() {
            text.push(format!("  {}", v.reason));
        }
        for warning in &v.warnings {
            text.push(format!("  warning: {warning}"));
        }
        if !v.mirrors.is_empty() {
            text.push(indent(&mirrors(v).text()));
        }
        for m in v.mirrors.iter().filter(|m| !m.reason.is_empty()) {
            text.push(format!("  {}: {}", m.peer, m.reason));
        }
    }
    text.join("\n")
}

fn volume_line(v: &VolumeStatus) -> String {
    let mut line = format!("volume {}  {}  {}", v.name, v.role, v.condition);
    match mount_cell(v) {
        cell if cell.is_empty() => line.push_str("  not mounted"),
        cell if v.mounted => line.push_str(&format!("  mounted on {cell}")),
        cell => line.push_str(&format!("  {cell}")),
    }
    line.push_str(&format!(
        "  size {}  buffer {} of {}",
        show(v.size),
        show(v.buffer_used),
        show(v.buffer_size)
    ));
    if let Some(as_of) = &v.consistent_as_of {
        line.push_str(&format!("  consistent as of {as_of}"));
    }
    line
}

fn indent(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|l| format!("  {l}")).collect();
    lines.join("\n")
}

fn state_cell(m: &MirrorStatus) -> String {
    match m.cracked {
        true => format!("{} (cracked)", m.state),
        false => m.state.clone(),
    }
}

fn mirrors(v: &VolumeStatus) -> Table {
    let mut table = Table::new(&[
        "MIRROR",
        "STATE",
        "TO GO",
        "RATE",
        "ETA",
        "BUFFER",
        "COMMITTED",
        "ACKED",
        "LAG",
    ]);
    for m in &v.mirrors {
        table.row(vec![
            m.peer.clone(),
            state_cell(m),
            show(m.bytes_to_go),
            format!("{}/s", show(m.rate)),
            m.eta_s.map(show_seconds).unwrap_or_default(),
            format!("{} of {}", show(m.buffer_used), show(m.buffer_size)),
            m.txid_committed.to_string(),
            m.txid_acked.to_string(),
            format!("{:.1} s", m.lag_s),
        ]);
    }
    table
}

/// What a bar or a line says: how full, and the words beside it.
struct Shown {
    done: u64,
    total: u64,
    text: String,
    settled: bool,
}

/// In the copying states the bar is what is copied; in the others it is the free buffer, and the text says which: one
/// percentage never means two things.
fn shown(m: &MirrorStatus, most: &mut u64) -> Shown {
    let state = m.state.parse::<State>().ok();
    let copying = state.is_some_and(State::is_copying);
    if !copying {
        *most = 0;
        let free = m.buffer_size.saturating_sub(m.buffer_used);
        return Shown {
            done: free,
            total: m.buffer_size,
            text: format!(
                "{}  {} of {} buffer free{}",
                state_cell(m),
                show(free),
                show(m.buffer_size),
                reason(m)
            ),
            settled: matches!(state, Some(State::InSync | State::Idle | State::Error)),
        };
    }
    *most = (*most).max(m.bytes_to_go);
    let eta = m.eta_s.map(|s| format!(", {} left", show_seconds(s)));
    Shown {
        done: *most - m.bytes_to_go,
        total: *most,
        text: format!(
            "{}  {} to go at {}/s{}{}",
            state_cell(m),
            show(m.bytes_to_go),
            show(m.rate),
            eta.unwrap_or_default(),
            reason(m)
        ),
        settled: false,
    }
}

fn reason(m: &MirrorStatus) -> String {
    match m.reason.is_empty() {
        true => String::new(),
        false => format!("  ({})", m.reason),
    }
}

/// `lockstep progress`
pub fn progress(state: &StateDir, args: &ProgressArgs) -> Result<Exit, Failed> {
    let request = Request::Status {
        volume: args.name.clone(),
    };
    let terminal = std::io::stdout().is_terminal();
    let bars = MultiProgress::new();
    let mut known: BTreeMap<(String, String), (Option<ProgressBar>, u64, String)> = BTreeMap::new();
    loop {
        let status: Status = get(state, &request)?;
        let mut settled = true;
        let mut any = false;
        for v in &status.volumes {
            for m in &v.mirrors {
                if args.peer.as_ref().is_some_and(|p| *p != m.peer) {
                    continue;
                }
                any = true;
                let key = (v.name.clone(), m.peer.clone());
                let entry = known.entry(key).or_insert_with(|| {
                    let bar = terminal.then(|| bars.add(bar(&v.name, &m.peer)));
                    (bar, 0, String::new())
                });
                let now = shown(m, &mut entry.1);
                settled &= now.settled;
                match &entry.0 {
                    Some(bar) => {
                        bar.set_length(now.total.max(1));
                        bar.set_position(now.done);
                        bar.set_message(now.text);
                    }
                    None if entry.2 != now.text => {
                        let percent = now.done * 100 / now.total.max(1);
                        say(format!("{} {} {percent}% {}", v.name, m.peer, now.text))?;
                        entry.2 = now.text;
                    }
                    None => {}
                }
            }
        }
        if !any {
            if let (Some(name), Some(peer)) = (&args.name, &args.peer) {
                return Err(crate::node::refusal::Refusal::no_mirror(name, peer).into());
            }
            say("no mirrors")?;
            return Ok(Exit::Ok);
        }
        if settled {
            for (bar, ..) in known.values() {
                bar.iter().for_each(ProgressBar::abandon);
            }
            return Ok(Exit::Ok);
        }
        std::thread::sleep(if terminal { BARS_EVERY } else { WATCH_EVERY });
    }
}

fn bar(volume: &str, peer: &str) -> ProgressBar {
    let bar = ProgressBar::new(1);
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {percent:>3}% {msg}");
    bar.set_style(style.expect("a constant template").progress_chars("=> "));
    bar.set_prefix(format!("{volume} {peer}"));
    bar
}

fn event_line(event: &Event) -> String {
    let subject = match (&event.volume, &event.peer) {
        (Some(v), Some(p)) => format!("{v}/{p}"),
        (Some(name), None) | (None, Some(name)) => name.clone(),
        (None, None) => "-".to_owned(),
    };
    format!(
        "{}  {subject}  {}  {}",
        event.time, event.kind, event.message
    )
}

/// `lockstep events`
pub fn events(state: &StateDir, args: &EventsArgs) -> Result<Exit, Failed> {
    let request = Request::Events {
        follow: args.follow,
    };
    let json = args.json;
    ask(state, &request)?.finish(|value: Value| {
        if json {
            return say(value);
        }
        match serde_json::from_value::<Event>(value) {
            Ok(event) => say(event_line(&event)),
            Err(e) => Err(Failed::here("the daemon's answer", e)),
        }
    })?;
    Ok(Exit::Ok)
}

/// `lockstep wait`
pub fn wait(state: &StateDir, args: &WaitArgs) -> Result<Exit, Failed> {
    let request = Request::Wait {
        name: args.name.clone(),
        peer: args.peer.clone(),
        state: args.wanted.to_ascii_uppercase(),
        timeout_ms: args.timeout.map(|t| t.as_millis() as u64),
    };
    call(state, &request)?;
    Ok(Exit::Ok)
}

/// `lockstep verify`
pub fn verify(state: &StateDir, args: &VerifyArgs) -> Result<Exit, Failed> {
    let request = Request::Verify {
        name: args.name.clone(),
        peer: args.peer.clone(),
        repair: args.repair,
        rate: args.rate,
    };
    ask(state, &request)?.finish(|found| say(found.as_str().unwrap_or_default()))?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::protocol::Condition;

    fn volume() -> VolumeStatus {
        VolumeStatus {
            name: "data".into(),
            role: "master".into(),
            condition: Condition::Open,
            mounted: true,
            mount_point: Some("/mnt".into()),
            size: 2 << 30,
            buffer_used: 1 << 20,
            buffer_size: 204 << 20,
            mirrors: vec![MirrorStatus {
                peer: "beta".into(),
                state: "OUTOFSYNC".into(),
                reason: "the buffer was full".into(),
                cracked: true,
                bytes_to_go: 300 << 20,
                rate: 100 << 20,
                eta_s: Some(3),
                buffer_size: 204 << 20,
                txid_committed: 12,
                txid_acked: 7,
                lag_s: 1.25,
                ..MirrorStatus::default()
            }],
            ..VolumeStatus::default()
        }
    }

    #[test]
    fn the_table_of_status() {
        let status = Status {
            version: 1,
            node: "alpha".into(),
            volumes: vec![volume()],
        };
        let expected = "\
node alpha

volume data  master  open  mounted on /mnt  size 2.0 GiB  buffer 1.0 MiB of 204 MiB
  MIRROR  STATE                TO GO    RATE       ETA  BUFFER          COMMITTED  ACKED  LAG
  beta    OUTOFSYNC (cracked)  300 MiB  100 MiB/s  3 s  0 B of 204 MiB  12         7      1.2 s
  beta: the buffer was full";
        assert_eq!(status_text(&status), expected);
    }

    #[test]
    fn a_percentage_is_of_the_copy_or_of_the_free_buffer_and_says_which() {
        let mut m = volume().mirrors.remove(0);
        let mut most = 0;
        m.bytes_to_go = 400;
        assert_eq!(shown(&m, &mut most).done, 0);
        m.bytes_to_go = 100;
        let now = shown(&m, &mut most);
        assert_eq!((now.done, now.total, now.settled), (300, 400, false));
        m.state = "INSYNC".into();
        let now = shown(&m, &mut most);
        assert_eq!(now.total, 204 << 20);
        assert!(now.settled && now.text.contains("buffer free"));
    }
}
