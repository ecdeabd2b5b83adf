//! What a demonstration prints: one numbered line for each step, with its time, and a table of all in the end.
//!
//! Owns the lines. While a step is at work there is a bar on a terminal; elsewhere a line whenever something changed.

use super::super::size::show;
use super::super::table::Table;
use super::super::{Failed, say};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How fast the sign of life on a terminal turns.
const TURN_EVERY: Duration = Duration::from_millis(100);

/// A line, where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);

struct Row {
    title: String,
    took: Duration,
    bulk: u64,
    sequenced: u64,
}

/// The lines of a demonstration.
pub struct Report {
    terminal: bool,
    began: Instant,
    step_began: Instant,
    title: &'static str,
    bar: Option<ProgressBar>,
    last: String,
    said: Instant,
    rows: Vec<Row>,
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// `1 file`, `2 files`.
pub fn count(n: u64, what: &str) -> String {
    let s = if n == 1 { "" } else { "s" };
    format!("{n} {what}{s}")
}

/// A short time, to three digits.
pub fn millis(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    match ms {
        ..9.95 => format!("{ms:.1} ms"),
        ..999.5 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1000.0),
    }
}

impl Report {
    /// Nothing has happened yet.
    pub fn new() -> Report {
        Report {
            terminal: std::io::stdout().is_terminal(),
            began: Instant::now(),
            step_began: Instant::now(),
            title: "",
            bar: None,
            last: String::new(),
            said: Instant::now(),
            rows: Vec::new(),
        }
    }

    /// A step begins.
    pub fn begin(&mut self, title: &'static str) {
        self.title = title;
        self.step_began = Instant::now();
        self.last.clear();
        self.clear();
        if self.terminal {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{prefix} {spinner} {msg}");
            bar.set_style(style.expect("a constant template"));
            bar.set_prefix(format!("{:>2}  {title:<13}", self.rows.len() + 1));
            bar.enable_steady_tick(TURN_EVERY);
            self.bar = Some(bar);
        }
    }

    /// What the step is doing.
    pub fn doing(&mut self, text: impl Into<String>) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.into());
        }
    }

    /// How far the step is. Where there is no terminal there is a line when `word` changes, and every
    /// second.
    pub fn progress(
        &mut self,
        word: &str,
        done: u64,
        total: u64,
        text: String,
    ) -> Result<(), Failed> {
        let percent = done.min(total) * 100 / total.max(1);
        match &self.bar {
            Some(bar) => {
                if bar.length().is_none() {
                    let style = ProgressStyle::with_template("{prefix} [{bar:24}] {msg}");
                    let style = style.expect("a constant template").progress_chars("=> ");
                    bar.disable_steady_tick();
                    bar.set_style(style);
                }
                bar.set_length(total.max(1));
                bar.set_position(done);
                bar.set_message(text);
            }
            None if self.last != word || self.said.elapsed() > LINE_EVERY => {
                word.clone_into(&mut self.last);
                self.said = Instant::now();
                say(format!("{:18}{percent:>3}%  {text}", ""))?;
            }
            None => {}
        }
        Ok(())
    }

    /// The step is done: its line, and what it sent.
    pub fn done(&mut self, text: &str, bulk: u64, sequenced: u64) -> Result<(), Failed> {
        self.clear();
        let took = self.step_began.elapsed();
        let title = self.title;
        self.rows.push(Row {
            title: title.to_owned(),
            took,
            bulk,
            sequenced,
        });
        let n = self.rows.len();
        say(format!("{n:>2}  {title:<13} {text}  [{}]", seconds(took)))
    }

    /// A line between two steps.
    pub fn line(&mut self, text: &str) -> Result<(), Failed> {
        self.clear();
        say(text)
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// The table of all steps.
    pub fn summary(&self) -> String {
        let mut table = Table::new(&["STEP", "TIME", "COPIED", "REPLAYED"]);
        let bytes = |n: u64| if n == 0 { String::new() } else { show(n) };
        let (mut bulk, mut sequenced) = (0, 0);
        for row in &self.rows {
            bulk += row.bulk;
            sequenced += row.sequenced;
            table.row(vec![
                row.title.clone(),
                seconds(row.took),
                bytes(row.bulk),
                bytes(row.sequenced),
            ]);
        }
        table.row(vec![
            "all".to_owned(),
            seconds(self.began.elapsed()),
            bytes(bulk),
            bytes(sequenced),
        ]);
        table.text()
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_steps() {
        let mut report = Report::new();
        report.rows.push(Row {
            title: "first copy".into(),
            took: Duration::from_millis(1234),
            bulk: 100 << 20,
            sequenced: 0,
        });
        let text = report.summary();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "STEP        TIME   COPIED   REPLAYED");
        assert_eq!(lines[1], "first copy  1.2 s  100 MiB  -");
        assert!(lines[2].starts_with("all "));
    }

    #[test]
    fn short_times_and_counts() {
        let shown: Vec<String> = [1, 42, 1500].map(Duration::from_millis).map(millis).into();
        assert_eq!(shown, ["1.0 ms", "42 ms", "1.5 s"]);
        assert_eq!(count(1, "file") + &count(2, "file"), "1 file2 files");
    }
}
