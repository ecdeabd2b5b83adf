//! The demonstration with daemons and mounts: each step does one thing that an operator would do, checks what came of it,
//! and says so in one line.
//!
//! Owns the order of the steps. Everything it says was measured. Invariant: what a step promises is checked, and a promise
//! that is not kept ends the demonstration with an error.

use super::super::client::ask;
use super::super::exit::Exit;
use super::super::size::show;
use super::super::{Failed, say};
use super::faults::Busy;
use super::interrupt::Interrupt;
use super::nodes::Node;
use super::place::Place;
use super::relay::Relay;
use super::report::{Report, count, millis};
use super::sizes::Sizes;
use super::source;
use super::steps::{CHANGES, COLUMNS, COPIED_WITHIN, FILES, SOON, Sent};
use super::writer::{LiveWriter, overwrite, write_durably, write_files};
use super::{broken, fsck};
use crate::node::history::Event;
use crate::node::protocol::{MirrorStatus, Request};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The volume.
const VOLUME: &str = "data";
/// What a demonstration has running. The nodes go first, then what they are in.
pub struct Story {
    report: Report,
    interrupt: Interrupt,
    alpha: Node,
    beta: Node,
    relay: Relay,
    busy: Option<Busy>,
    sizes: Sizes,
    place: Place,
}

/// How a mirror stood when a step began.
#[derive(Clone, Copy)]
struct Before {
    sent: Sent,
    event: u64,
}

/// Tells the story from beginning to end.
pub fn tell(keep: bool, sizes: Sizes, place: Place, interrupt: Interrupt) -> Result<Exit, Failed> {
    let mut story = Story::begin(sizes, place, interrupt)?;
    let told = story.tell(keep);
    story.report.clear();
    if let Err(failed) = told {
        for node in [&story.alpha, &story.beta] {
            for line in node.complaints() {
                eprintln!("{}: {line}", node.name);
            }
        }
        if keep {
            eprintln!("kept: {}", story.place.path().display());
            story.place.keep();
        }
        return Err(failed);
    }
    match keep {
        true => story.let_go()?,
        false => {
            let path = story.place.path().to_owned();
            drop(story);
            if !path.exists() {
                say("\nBoth nodes, both copies and both mounts are gone; --keep leaves them up.")?;
            }
        }
    }
    Ok(Exit::Ok)
}

fn sent(mirror: &MirrorStatus) -> Sent {
    Sent {
        bulk: mirror.bytes_bulk,
        sequenced: mirror.bytes_sequenced,
    }
}

impl Story {
    fn begin(sizes: Sizes, place: Place, interrupt: Interrupt) -> Result<Story, Failed> {
        say(format!(
            "Two nodes on this machine, in {}\n",
            place.path().display()
        ))?;
        let mut report = Report::new();
        report.begin("two nodes");
        let busy = Busy::new(&place.path().join("tools"));
        let mut alpha = Node::init("alpha", place.path(), None)?;
        let mut beta = Node::init("beta", place.path(), busy.as_ref().map(Busy::dir))?;
        let relay = Relay::start(&beta.address).map_err(|e| Failed::here("the relay", e))?;
        report.doing("starting the daemons");
        alpha.start(&interrupt)?;
        beta.start(&interrupt)?;
        let story = Story {
            report,
            interrupt,
            alpha,
            beta,
            relay,
            busy,
            sizes,
            place,
        };
        story.introduce(&story.relay.address())?;
        Ok(story)
    }

    /// Each node learns the other's key; alpha calls beta at `address`.
    fn introduce(&self, address: &str) -> Result<(), Failed> {
        let pairs = [
            (&self.alpha, &self.beta, address),
            (&self.beta, &self.alpha, &self.alpha.address),
        ];
        for (one, other, address) in pairs {
            let fingerprint = other.run(&["node", "fingerprint"])?;
            let key = ["--fingerprint", fingerprint.as_str()];
            one.run(&[&["peer", "add", other.name, address], &key[..]].concat())?;
        }
        Ok(())
    }

    fn tell(&mut self, keep: bool) -> Result<(), Failed> {
        let text = format!(
            "alpha at {}, beta at {}, each with the other's key; a cable between them that can be cut",
            self.alpha.address, self.beta.address
        );
        self.report.done(&text, 0, 0)?;
        self.volume()?;
        self.tree()?;
        self.first_copy()?;
        self.both_mounts()?;
        self.live_changes()?;
        self.pause()?;
        self.link_cut()?;
        self.crack()?;
        self.reset()?;
        self.verify()?;
        self.check()?;
        if keep {
            self.again()?;
        }
        let summary = self.report.summary();
        self.report.line(&format!("\n{summary}"))?;
        let wire = show(self.relay.bytes());
        self.report
            .line(&format!("\n{COLUMNS}; {wire} went through the cable."))
    }

    // ---- what the steps share ----

    fn mirror(&self) -> Result<MirrorStatus, Failed> {
        let volume = self.alpha.volume(VOLUME)?;
        let found = volume.mirrors.into_iter().next();
        found.ok_or_else(|| crate::node::refusal::Refusal::no_mirror(VOLUME, "beta").into())
    }

    fn events(&self) -> Result<Vec<Event>, Failed> {
        let mut events = Vec::new();
        ask(&self.alpha.state, &Request::Events { follow: false })?.finish(|value| {
            let event = serde_json::from_value(value);
            events.push(event.map_err(|e| Failed::here("an event", e))?);
            Ok(())
        })?;
        Ok(events)
    }

    /// What state changes of the mirror led to, and why, since an event.
    fn path(&self, since: u64) -> Result<Vec<(String, String)>, Failed> {
        let text = |event: &Event, key: &str| {
            let value = event.fields.get(key).and_then(|v| v.as_str());
            value.unwrap_or_default().to_owned()
        };
        let events = self.events()?;
        let changes = events.iter().filter(|e| e.id > since && e.kind == "state");
        Ok(changes
            .map(|e| (text(e, "to"), text(e, "reason")))
            .collect())
    }

    fn before(&self) -> Result<Before, Failed> {
        let mirror = self.mirror()?;
        Ok(Before {
            sent: sent(&mirror),
            event: self.events()?.last().map_or(0, |e| e.id),
        })
    }

    /// Waits for something of the mirror that has to come.
    fn until(
        &self,
        what: &str,
        limit: Duration,
        mut there: impl FnMut(&MirrorStatus) -> bool,
    ) -> Result<MirrorStatus, Failed> {
        let mut last = MirrorStatus::default();
        let reached = self.interrupt.wait(limit, || {
            last = self.mirror()?;
            if last.state == "ERROR" {
                return Err(broken(format!("the mirror went to ERROR: {}", last.reason)));
            }
            Ok(there(&last))
        })?;
        match reached {
            true => Ok(last),
            false => Err(broken(format!(
                "{what} was not reached within {} s; the mirror is in {}: {}",
                limit.as_secs(),
                last.state,
                last.reason
            ))),
        }
    }

    /// Everything written on the master is committed, and acknowledged by a mirror in sync.
    fn settled(&self, limit: Duration) -> Result<MirrorStatus, Failed> {
        self.commit()?;
        self.until("INSYNC with everything acknowledged", limit, |m| {
            m.state == "INSYNC" && m.txid_acked == m.txid_committed
        })
    }

    /// What the kernel holds goes to the engine, and from there into the log.
    fn commit(&self) -> Result<(), Failed> {
        let mnt = self.alpha.mnt();
        let failed = |e: io::Error| Failed::here(mnt.display(), e);
        let dir = File::open(&mnt).map_err(failed)?;
        rustix::fs::syncfs(&dir).map_err(|e| failed(e.into()))?;
        dir.sync_all().map_err(failed)
    }

    fn sent(&self, before: &Before) -> Result<Sent, Failed> {
        Ok(sent(&self.mirror()?).since(before.sent))
    }

    /// Ends a step in which everything has to come from the log.
    fn replayed(&mut self, before: &Before, text: &str) -> Result<(), Failed> {
        let sent = self.sent(before)?;
        self.report.replayed(text, sent)
    }

    // ---- the steps ----

    fn volume(&mut self) -> Result<(), Failed> {
        self.report.begin("volume");
        let part = self.alpha.file("data.img").display().to_string();
        let Sizes { volume, buffer, .. } = self.sizes;
        let (part, buffer_bytes) = (format!("{part}={volume}"), buffer.to_string());
        self.alpha.run(&[
            "volume",
            "create",
            VOLUME,
            "--part",
            &part,
            "--buffer",
            &buffer_bytes,
        ])?;
        let mnt = self.alpha.mnt().display().to_string();
        self.alpha.run(&["mount", VOLUME, &mnt])?;
        let text = format!(
            "data: ext4 of {} in one file, {} of it the journal and buffer; mounted on {mnt}",
            show(volume),
            show(buffer)
        );
        self.report.done(&text, 0, 0)
    }

    fn tree(&mut self) -> Result<(), Failed> {
        self.report.begin("a real tree");
        let began = Instant::now();
        let trees = source::candidates();
        let Sizes { tree, over, .. } = self.sizes;
        let report = &mut self.report;
        let (used, extent) = source::copy(
            &trees,
            &mut source::Dir(self.alpha.mnt()),
            tree,
            source::MOST_FILES,
            &self.interrupt,
            |e| {
                let (files, bytes) = (count(e.files, "file"), show(e.bytes));
                report.doing(format!("{files}, {bytes}"));
            },
        )?;
        overwrite(&self.alpha.mnt().join("overwritten"), over, 0)?;
        self.commit()?;
        self.report.copied_in(&used, extent, over, began)
    }

    fn first_copy(&mut self) -> Result<(), Failed> {
        self.report.begin("first copy");
        let live = LiveWriter::start(self.alpha.mnt().join("live"))?;
        let event = self.events()?.last().map_or(0, |e| e.id);
        let began = Instant::now();
        self.alpha.run(&["mirror", "create", VOLUME, "beta"])?;
        let mnt = self.beta.mnt().display().to_string();
        let (mut mounted, mut most) = (false, 0);
        loop {
            let mut now = MirrorStatus::default();
            let copied = self.interrupt.wait(Duration::from_millis(50), || {
                now = self.mirror()?;
                Ok(now.state == "INSYNC" || now.state == "ERROR")
            })?;
            if copied {
                break;
            }
            // Accepted before there is anything to be seen: the mount appears by itself.
            if !mounted && now.state == "REPLICATE" {
                mounted = self.beta.run(&["mount", VOLUME, &mnt]).is_ok();
            }
            most = most.max(now.bytes_to_go);
            let copy = format!(
                "{}  {} to go at {}/s",
                now.state,
                show(now.bytes_to_go),
                show(now.rate)
            );
            self.report
                .progress(&now.state, most - now.bytes_to_go, most, copy)?;
            if began.elapsed() > COPIED_WITHIN {
                break;
            }
        }
        let written = live.stop()?;
        let took = began.elapsed();
        self.until("INSYNC", SOON, |m| m.state == "INSYNC")?;
        if !mounted {
            self.beta.run(&["mount", VOLUME, &mnt])?;
        }
        let mut words = vec!["NEW".to_owned()];
        words.extend(self.path(event)?.into_iter().map(|(to, _)| to));
        let mirror = self.mirror()?;
        let rate = mirror.bytes_bulk as f64 / took.as_secs_f64();
        let text = format!(
            "{}: {} at {}/s, while {} were written",
            words.join(" "),
            show(mirror.bytes_bulk),
            show(rate as u64),
            count(written.files, "file")
        );
        self.report
            .done(&text, mirror.bytes_bulk, mirror.bytes_sequenced)
    }

    fn both_mounts(&mut self) -> Result<(), Failed> {
        self.report.begin("both mounts");
        let mounted = self
            .interrupt
            .wait(SOON, || Ok(self.beta.volume(VOLUME)?.mounted))?;
        if !mounted {
            let volume = self.beta.volume(VOLUME)?;
            return Err(broken(format!(
                "the mirror's mount did not appear: {} {}",
                volume.reason,
                volume.warnings.join("; ")
            )));
        }
        self.settled(SOON)?;
        let (ours, theirs) = (self.alpha.mnt(), self.beta.mnt());
        let same = source::compare(&ours, &theirs, &self.interrupt)?;
        let extent = same.map_err(|d| broken(format!("the mounts differ: {d}")))?;
        let refused = File::create(theirs.join("written-here"));
        match refused.map_err(|e| e.raw_os_error()) {
            Err(Some(libc::EROFS)) => {}
            other => return Err(broken(format!("a write on the mirror's mount: {other:?}"))),
        }
        let text = format!(
            "beta shows the same {} and {} of them, byte for byte; a write there: read-only file system",
            count(extent.files, "file"),
            show(extent.bytes)
        );
        self.report.done(&text, 0, 0)
    }

    fn live_changes(&mut self) -> Result<(), Failed> {
        self.report.begin("live changes");
        let before = self.before()?;
        let (ours, theirs) = (self.alpha.mnt().join("now"), self.beta.mnt().join("now"));
        let mut times = Vec::new();
        for n in 0..CHANGES {
            // New contents of one name: what the mirror's kernel has cached of it has to go.
            let contents = format!("change {n}\n");
            write_durably(&ours, contents.as_bytes())?;
            let began = Instant::now();
            let seen = self.interrupt.wait(SOON, || {
                Ok(std::fs::read(&theirs).is_ok_and(|c| c == contents.as_bytes()))
            })?;
            if !seen {
                return Err(broken(format!(
                    "a change was not to be seen on the mirror after {} s",
                    SOON.as_secs()
                )));
            }
            times.push(began.elapsed());
        }
        times.sort();
        let (from, to) = (ours.clone(), ours.with_file_name("renamed"));
        std::fs::rename(&from, &to).map_err(|e| Failed::here(from.display(), e))?;
        self.commit()?;
        let renamed = theirs.with_file_name("renamed");
        let seen = self
            .interrupt
            .wait(SOON, || Ok(renamed.exists() && !theirs.exists()))?;
        if !seen {
            return Err(broken("a renaming was not to be seen on the mirror"));
        }
        std::fs::remove_file(&to).map_err(|e| Failed::here(to.display(), e))?;
        self.commit()?;
        if !self.interrupt.wait(SOON, || Ok(!renamed.exists()))? {
            return Err(broken("a removal was not to be seen on the mirror"));
        }
        self.settled(SOON)?;
        let Sent { bulk, sequenced } = self.sent(&before)?;
        let text = format!(
            "{CHANGES} changes, a renaming, a removal; on beta's mount {} after fsync (median), {} at most",
            millis(times[CHANGES / 2]),
            millis(times[CHANGES - 1])
        );
        self.report.done(&text, bulk, sequenced)
    }

    fn pause(&mut self) -> Result<(), Failed> {
        self.report.begin("pause");
        let before = self.before()?;
        self.alpha.run(&["mirror", "pause", VOLUME, "beta"])?;
        self.until("IDLE", SOON, |m| m.state == "IDLE")?;
        let written = write_files(&self.alpha.mnt().join("paused"), FILES, &self.interrupt)?;
        if self.beta.mnt().join("paused").exists() {
            return Err(broken("a paused mirror showed a change"));
        }
        let waiting = self.mirror()?.buffer_used;
        self.alpha.run(&["mirror", "continue", VOLUME, "beta"])?;
        let began = Instant::now();
        self.settled(SOON)?;
        let text = format!(
            "IDLE while {} were written ({} of buffer); INSYNC {} after continue",
            count(written.files, "file"),
            show(waiting),
            millis(began.elapsed())
        );
        self.replayed(&before, &text)
    }

    fn link_cut(&mut self) -> Result<(), Failed> {
        self.report.begin("link cut");
        let before = self.before()?;
        let began = Instant::now();
        self.relay.cut();
        self.until("LINKDOWN", SOON, |m| m.state == "LINKDOWN")?;
        let noticed = began.elapsed();
        let written = write_files(&self.alpha.mnt().join("cut"), FILES, &self.interrupt)?;
        self.relay.mend();
        let began = Instant::now();
        self.settled(SOON)?;
        let text = format!(
            "LINKDOWN after {}, {} written (slowest fsync {}); INSYNC {} after the cable was mended",
            millis(noticed),
            count(written.files, "file"),
            millis(written.slowest),
            millis(began.elapsed())
        );
        self.replayed(&before, &text)
    }

    fn crack(&mut self) -> Result<(), Failed> {
        self.report.begin("crack");
        let before = self.before()?;
        self.alpha.run(&["mirror", "pause", VOLUME, "beta"])?;
        self.until("IDLE", SOON, |m| m.state == "IDLE")?;
        let (over, buffer) = (self.sizes.over, self.sizes.buffer);
        let file = self.alpha.mnt().join("overwritten");
        let began = Instant::now();
        overwrite(&file, over, 1)?;
        let rate = over as f64 / began.elapsed().as_secs_f64();
        self.until("the crack", SOON, |m| m.cracked)?;
        self.alpha.run(&["mirror", "continue", VOLUME, "beta"])?;
        let began = Instant::now();
        self.settled(COPIED_WITHIN)?;
        let took = began.elapsed();
        let words = self.path(before.event)?;
        if !words.iter().any(|(to, _)| to == "OUTOFSYNC") {
            return Err(broken("the mirror was repaired without OUTOFSYNC"));
        }
        let Sent { bulk, sequenced } = self.sent(&before)?;
        self.sizes.check_repair(bulk)?;
        let text = format!(
            "{} overwritten at {}/s, more than the buffer of {}; OUTOFSYNC, then INSYNC after {}: {} copied",
            show(over),
            show(rate as u64),
            show(buffer),
            millis(took),
            show(bulk)
        );
        self.report.done(&text, bulk, sequenced)
    }

    fn reset(&mut self) -> Result<(), Failed> {
        self.report.begin("reset");
        let Some(busy) = self.busy.clone() else {
            return self.report.done(
                "not shown: programs can not be run in the temporary directory; set TMPDIR to another one",
                0,
                0,
            );
        };
        let before = self.before()?;
        let mnt = self.beta.mnt().display().to_string();
        self.beta.run(&["umount", VOLUME])?;
        busy.hold()?;
        let began = Instant::now();
        let mut check = self.beta.command(&["volume", "check", VOLUME]);
        let check = check
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let mut check = check.spawn().map_err(|e| Failed::here("volume check", e))?;
        let mut resets = Vec::new();
        let seen = self.interrupt.wait(SOON, || {
            let path = self.path(before.event)?;
            resets = path.into_iter().filter(|(to, _)| to == "RESET").collect();
            Ok(!resets.is_empty())
        });
        busy.release();
        let took = began.elapsed();
        let checked = check.wait().map_err(|e| Failed::here("volume check", e))?;
        if !seen? {
            return Err(broken("the mirror's node was busy, and there was no RESET"));
        }
        if !checked.success() {
            return Err(broken("the check of the mirror's copy found damage"));
        }
        let began = Instant::now();
        self.settled(SOON)?;
        let insync = began.elapsed();
        self.beta.run(&["mount", VOLUME, &mnt])?;
        let path = self.path(before.event)?;
        let resets = path.iter().filter(|(to, _)| to == "RESET").count() as u64;
        let reason = path.iter().find(|(to, _)| to == "RESET");
        let reason = reason.map(|(_, why)| why.as_str()).unwrap_or_default();
        let reason = reason.split(" (").next().unwrap_or_default();
        let text = format!(
            "provoked: beta checks its copy with an e2fsck that is made to wait, as alpha calls: RESET after {} (\"{}\"), {} by itself, INSYNC {} after the check",
            millis(took),
            reason.trim_end_matches('.'),
            match resets {
                1 => "one retry".to_owned(),
                n => format!("{n} retries"),
            },
            millis(insync)
        );
        self.replayed(&before, &text)
    }

    fn verify(&mut self) -> Result<(), Failed> {
        self.report.begin("verify");
        let said = self.alpha.run(&["verify", VOLUME])?;
        let text = said.lines().last().unwrap_or_default().to_owned();
        let text = text.trim_start_matches("data beta: ");
        self.report.done(text, 0, 0)
    }

    fn check(&mut self) -> Result<(), Failed> {
        self.report.begin("e2fsck");
        self.report.doing("stopping both daemons");
        let began = Instant::now();
        self.alpha.stop()?;
        self.beta.stop()?;
        let took = began.elapsed();
        for part in self.parts() {
            self.report.doing(format!("e2fsck -fn {}", part.display()));
            fsck(&part)?;
        }
        let text = format!(
            "both daemons stopped in {}; e2fsck -fn finds both copies clean",
            millis(took)
        );
        self.report.done(&text, 0, 0)
    }

    fn parts(&self) -> [PathBuf; 2] {
        let mirror = self.beta.store().join(VOLUME).join("part0");
        [self.alpha.file("data.img"), mirror]
    }

    /// `--keep`: both daemons run again, without the relay, which ends with this process.
    fn again(&mut self) -> Result<(), Failed> {
        self.report.begin("again");
        self.alpha.start(&self.interrupt)?;
        self.beta.start(&self.interrupt)?;
        self.introduce(&self.beta.address)?;
        self.relay.cut();
        let mirror = self.until("INSYNC", SOON, |m| m.state == "INSYNC")?;
        for node in [&self.alpha, &self.beta] {
            let there = self
                .interrupt
                .wait(SOON, || Ok(node.volume(VOLUME)?.mounted))?;
            if !there {
                return Err(broken(format!(
                    "the mount of {} did not come back",
                    node.name
                )));
            }
        }
        if mirror.bytes_bulk > 0 {
            return Err(broken("something was copied after an orderly stop"));
        }
        self.report.done(
            "both daemons started: both mounts are back, INSYNC, 0 bytes copied",
            0,
            mirror.bytes_sequenced,
        )
    }

    fn let_go(self) -> Result<(), Failed> {
        let Story {
            alpha,
            beta,
            mut place,
            report,
            ..
        } = self;
        drop(report);
        place.keep();
        let (ours, theirs) = (alpha.mnt(), beta.mnt());
        let pids: Vec<String> = [&alpha, &beta]
            .iter()
            .filter_map(|n| n.pid())
            .map(|p| p.to_string())
            .collect();
        let lines = [
            "\nBoth nodes are up, and both mounts. To try:".to_owned(),
            format!("  echo hello >{}/hello", ours.display()),
            format!("  cat {}/hello", theirs.display()),
            format!("  {}", alpha.typed("status --watch")),
            format!("  {}", alpha.typed("events --follow")),
            format!("  {}", alpha.typed("mirror pause data beta")),
            format!("  {}", alpha.typed("mirror continue data beta")),
            format!("  {}", alpha.typed("verify data")),
            format!("  {}", beta.typed("status")),
            "And when it is enough:".to_owned(),
            format!(
                "  kill {}; rm -r {}",
                pids.join(" "),
                place.path().display()
            ),
        ];
        alpha.let_go();
        beta.let_go();
        lines.iter().try_for_each(say)
    }
}
