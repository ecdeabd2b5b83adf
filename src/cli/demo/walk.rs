//! The demonstration where nothing can be mounted: both nodes in this process, over two files, without daemons and mounts.
//!
//! Owns the order of the steps, which are those of the story as far as they need no mount. Invariant, as there: what a
//! step promises is checked.

use super::super::exit::Exit;
use super::super::size::show;
use super::super::{Failed, say};
use super::interrupt::Interrupt;
use super::place::Place;
use super::report::{Report, count, millis};
use super::sizes::Sizes;
use super::source::{self, Sink};
use super::steps::{CHANGES, COLUMNS, COPIED_WITHIN, FILES, SMALL, SOON, Sent};
use super::{broken, fsck};
use crate::node::pair::{Pair, PairError};
use states::State;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// What is overwritten, and read, at once.
const CHUNK: usize = 1 << 20;
/// Rounds between two looks at a first copy.
const ROUNDS: u32 = 16;

impl From<PairError> for Failed {
    fn from(error: PairError) -> Failed {
        broken(error.to_string())
    }
}

/// The master's side of a pair, to copy into.
struct Master<'a>(&'a mut Pair);

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Sink for Master<'_> {
    fn dir(&mut self, path: &Path) -> Result<(), Failed> {
        Ok(self.0.make_dir(&text(path))?)
    }

    fn link(&mut self, path: &Path, target: &Path) -> Result<(), Failed> {
        Ok(self
            .0
            .make_link(&text(path), target.as_os_str().as_bytes())?)
    }

    fn file(&mut self, path: &Path, source: &mut File, _: &Metadata) -> Result<u64, Failed> {
        let failed = |e: io::Error| Failed::here(path.display(), e);
        let mut chunk = vec![0; CHUNK];
        let mut done = 0;
        let path_text = text(path);
        self.0.write(&path_text, 0, b"")?;
        loop {
            let n = source.read(&mut chunk).map_err(failed)?;
            if n == 0 {
                break;
            }
            self.0.write(&path_text, done, &chunk[..n])?;
            done += n as u64;
        }
        // Commits are due now and then, and nobody else looks after them here.
        self.0.step()?;
        Ok(done)
    }
}

struct Walk {
    report: Report,
    interrupt: Interrupt,
    pair: Pair,
    sizes: Sizes,
}

/// How the mirror stood when a step began.
struct Before {
    sent: Sent,
    changes: usize,
}

/// Walks from beginning to end.
pub fn walk(
    keep: bool,
    sizes: Sizes,
    mut place: Place,
    interrupt: Interrupt,
    why: &str,
) -> Result<Exit, Failed> {
    say(format!(
        "No mounts: {why}\nThe same steps without them, two nodes in this process, in {}\n",
        place.path().display()
    ))?;
    if keep {
        place.keep();
    }
    let mut report = Report::new();
    report.begin("volume");
    let pair = Pair::create(place.path(), sizes.volume, sizes.buffer)?;
    let text = format!(
        "ext4 of {} in a file, {} of it the journal and buffer",
        show(sizes.volume),
        show(sizes.buffer)
    );
    report.done(&text, 0, 0)?;
    let walk = Walk {
        report,
        interrupt,
        pair,
        sizes,
    };
    walk.all()?;
    let copies = place.path().display();
    match keep {
        true => say(format!(
            "\nBoth copies are in {copies}; any ext4 tool reads them: debugfs -R ls {copies}/beta.img"
        ))?,
        false => {
            let path = place.path().to_owned();
            drop(place);
            if !path.exists() {
                say("\nBoth nodes and both copies are gone; --keep leaves the copies.")?;
            }
        }
    }
    Ok(Exit::Ok)
}

impl Walk {
    fn all(mut self) -> Result<(), Failed> {
        self.tree()?;
        self.first_copy()?;
        self.live_changes()?;
        self.pause()?;
        self.link_cut()?;
        self.crack()?;
        self.reset()?;
        self.verify()?;
        let Walk {
            mut report, pair, ..
        } = self;
        report.begin("e2fsck");
        let parts = pair.parts();
        pair.close()?;
        for part in &parts {
            fsck(part)?;
        }
        report.done(
            "both sides closed; e2fsck -fn finds both copies clean",
            0,
            0,
        )?;
        let summary = report.summary();
        report.line(&format!("\n{summary}\n\n{COLUMNS}."))
    }

    fn before(&self) -> Result<Before, Failed> {
        Ok(Before {
            sent: self.all_sent()?,
            changes: self.pair.changes().len(),
        })
    }

    fn all_sent(&self) -> Result<Sent, Failed> {
        let status = self.pair.status()?;
        Ok(Sent {
            bulk: status.bytes_bulk,
            sequenced: status.bytes_sequenced,
        })
    }

    fn sent(&self, before: &Before) -> Result<Sent, Failed> {
        Ok(self.all_sent()?.since(before.sent))
    }

    fn words(&self, before: &Before) -> Vec<State> {
        let changes = self.pair.changes().iter().skip(before.changes);
        changes.map(|c| c.to).collect()
    }

    /// Everything committed and acknowledged, in slices between which Ctrl-C is heard.
    fn settle(&mut self, limit: Duration) -> Result<(), Failed> {
        let began = Instant::now();
        loop {
            self.interrupt.check()?;
            match self.pair.settle(Duration::from_millis(200)) {
                Err(PairError::TooLate { .. }) if began.elapsed() < limit => {}
                done => return Ok(done?),
            }
        }
    }

    /// Ends a step in which everything has to come from the log.
    fn replayed(&mut self, before: &Before, text: &str) -> Result<(), Failed> {
        let sent = self.sent(before)?;
        self.report.replayed(text, sent)
    }

    fn write_files(&mut self, dir: &str) -> Result<(), Failed> {
        self.pair.make_dir(dir)?;
        for n in 0..FILES {
            self.interrupt.check()?;
            self.pair
                .write(&format!("{dir}/{n:04}"), 0, &[n as u8; SMALL])?;
            self.pair.sync()?;
        }
        Ok(())
    }

    fn overwrite(&mut self, turn: u8) -> Result<(), Failed> {
        let chunk = vec![turn; CHUNK];
        for at in (0..self.sizes.over).step_by(CHUNK) {
            self.interrupt.check()?;
            self.pair.write("overwritten", at, &chunk)?;
        }
        Ok(self.pair.sync()?)
    }

    fn tree(&mut self) -> Result<(), Failed> {
        self.report.begin("a real tree");
        let began = Instant::now();
        let trees = source::candidates();
        let report = &mut self.report;
        let (used, extent) = source::copy(
            &trees,
            &mut Master(&mut self.pair),
            self.sizes.tree,
            source::MOST_FILES,
            &self.interrupt,
            |e| {
                let (files, bytes) = (count(e.files, "file"), show(e.bytes));
                report.doing(format!("{files}, {bytes}"));
            },
        )?;
        self.overwrite(1)?;
        self.report.copied_in(&used, extent, self.sizes.over, began)
    }

    fn first_copy(&mut self) -> Result<(), Failed> {
        self.report.begin("first copy");
        let began = Instant::now();
        self.pair.create_mirror()?;
        let mut most = 0;
        while self.pair.status()?.state != State::InSync {
            if began.elapsed() > COPIED_WITHIN {
                break;
            }
            for _ in 0..ROUNDS {
                self.pair.step()?;
            }
            self.interrupt.check()?;
            let now = self.pair.status()?;
            most = most.max(now.bytes_to_go);
            let copy = format!("{}  {} to go", now.state, show(now.bytes_to_go));
            let done = most - now.bytes_to_go;
            self.report.progress(now.state.word(), done, most, copy)?;
        }
        self.settle(SOON)?;
        let took = began.elapsed();
        let extent = self.pair.compare()?;
        let words: Vec<&str> = self.pair.changes().iter().map(|c| c.to.word()).collect();
        let status = self.pair.status()?;
        let rate = status.bytes_bulk as f64 / took.as_secs_f64();
        let text = format!(
            "NEW {}: {} at {}/s; the same {} and {} of them there, byte for byte",
            words.join(" "),
            show(status.bytes_bulk),
            show(rate as u64),
            count(extent.files, "file"),
            show(extent.bytes)
        );
        self.report
            .done(&text, status.bytes_bulk, status.bytes_sequenced)
    }

    fn live_changes(&mut self) -> Result<(), Failed> {
        self.report.begin("live changes");
        let before = self.before()?;
        let mut times = Vec::new();
        for n in 0..CHANGES {
            let contents = format!("change {n:04}\n").into_bytes();
            self.pair.write("now", 0, &contents)?;
            self.pair.sync()?;
            let began = Instant::now();
            self.pair.until("a change on the mirror", SOON, |pair| {
                pair.read_mirror("now")
                    .is_ok_and(|c| c.as_ref() == Some(&contents))
            })?;
            times.push(began.elapsed());
        }
        times.sort();
        self.settle(SOON)?;
        let Sent { bulk, sequenced } = self.sent(&before)?;
        let text = format!(
            "{CHANGES} changes; readable on the mirror {} after fsync (median), {} at most",
            millis(times[CHANGES / 2]),
            millis(times[CHANGES - 1])
        );
        self.report.done(&text, bulk, sequenced)
    }

    fn pause(&mut self) -> Result<(), Failed> {
        self.report.begin("pause");
        let before = self.before()?;
        self.pair.pause()?;
        self.write_files("paused")?;
        if self.pair.read_mirror("paused/0000")?.is_some() {
            return Err(broken("a paused mirror showed a change"));
        }
        let began = Instant::now();
        self.pair.resume()?;
        self.settle(SOON)?;
        let text = format!(
            "IDLE while {} were written; INSYNC {} after continue",
            count(FILES, "file"),
            millis(began.elapsed())
        );
        self.replayed(&before, &text)
    }

    fn link_cut(&mut self) -> Result<(), Failed> {
        self.report.begin("link cut");
        let before = self.before()?;
        self.pair.cut()?;
        self.pair.reach(State::LinkDown, SOON)?;
        self.write_files("cut")?;
        self.pair.mend();
        let began = Instant::now();
        self.settle(SOON)?;
        let text = format!(
            "LINKDOWN while {} were written; INSYNC {} after the link was mended",
            count(FILES, "file"),
            millis(began.elapsed())
        );
        self.replayed(&before, &text)
    }

    fn crack(&mut self) -> Result<(), Failed> {
        self.report.begin("crack");
        let before = self.before()?;
        self.pair.pause()?;
        self.overwrite(2)?;
        if !self.pair.status()?.cracked {
            return Err(broken(
                "the buffer was overrun, and the mirror did not crack",
            ));
        }
        let began = Instant::now();
        self.pair.resume()?;
        self.settle(COPIED_WITHIN)?;
        let took = began.elapsed();
        if !self.words(&before).contains(&State::OutOfSync) {
            return Err(broken("the mirror was repaired without OUTOFSYNC"));
        }
        let Sent { bulk, sequenced } = self.sent(&before)?;
        self.sizes.check_repair(bulk)?;
        let Sizes { over, buffer, .. } = self.sizes;
        let text = format!(
            "{} overwritten, more than the buffer of {}; OUTOFSYNC, then INSYNC after {}: {} copied",
            show(over),
            show(buffer),
            millis(took),
            show(bulk)
        );
        self.report.done(&text, bulk, sequenced)
    }

    fn reset(&mut self) -> Result<(), Failed> {
        self.report.begin("reset");
        let before = self.before()?;
        self.pair.set_busy(true);
        self.pair.cut()?;
        self.pair.mend();
        self.pair.reach(State::Reset, SOON)?;
        let reason = self.pair.status()?.reason;
        self.pair.set_busy(false);
        self.settle(SOON)?;
        let text = format!(
            "provoked: beta is made to answer that it is busy: RESET (\"{}\"), a retry by itself, INSYNC",
            reason.split('.').next().unwrap_or_default()
        );
        self.replayed(&before, &text)
    }

    fn verify(&mut self) -> Result<(), Failed> {
        self.report.begin("verify");
        let verdict = self.pair.verify(SOON)?;
        self.pair.compare()?;
        if !verdict.differing.is_empty() {
            return Err(broken("the copies differ"));
        }
        let text = format!("equal, {} blocks compared", verdict.blocks);
        self.report.done(&text, 0, 0)
    }
}
