//! The table for people. Owns the texts that are generated from the table. Never says anything that is not in it.
//!
//! All of them are checked in, and a test compares them with what is generated here: the listing of every cell
//! (`states/replication.txt`), the drawing (`states/replication.dot`, for Graphviz) and the generated parts of the man
//! page lockstep-states(7). After a change of the table, `UPDATE_GOLDENS=1 cargo test -p states` writes them anew.

use crate::cause::{Cause, MinorCause};
use crate::event::EventKind;
use crate::facts::Guard;
use crate::state::State;
use crate::table::{Refusal, Row, Then, cell};
use core::fmt::{self, Display, Write};

/// Writes every cell of the table, one row a line: event, guard, what follows, commands, why.
pub fn write_listing(out: &mut impl Write) -> fmt::Result {
    out.write_str(
        "What every event does in every state of a mirror. Generated from states/src/table.rs:\n\
         UPDATE_GOLDENS=1 cargo test -p states\n",
    )?;
    for &state in State::ALL {
        writeln!(out, "\n{state}: {}", state.meaning())?;
        for &event in EventKind::ALL {
            for row in cell(state, event) {
                write_row(out, row)?;
            }
        }
    }
    Ok(())
}

fn write_row(out: &mut impl Write, row: &Row) -> fmt::Result {
    write!(out, "  {:<18}", row.event)?;
    match row.guard {
        Guard::Always => write!(out, "{:<22}", "")?,
        guard => write!(out, "if {guard:<19}")?,
    }
    let mut column = Counted { out, written: 0 };
    match row.then {
        Then::Stay => column.write_str("stay")?,
        Then::Go(to) => write!(column, "-> {to}")?,
        Then::Gone => column.write_str("-> gone")?,
        Then::Refuse(refusal) => write!(column, "refuse: {refusal}")?,
    }
    column.pad_to(30)?;
    for (at, command) in row.commands.iter().enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        write!(column, "{comma}{command}")?;
    }
    column.pad_to(84)?;
    writeln!(out, "{}", row.why)
}

/// Counts what passes, to pad the last column written.
struct Counted<'a, W> {
    out: &'a mut W,
    written: usize,
}

impl<W: Write> Counted<'_, W> {
    fn pad_to(&mut self, width: usize) -> fmt::Result {
        while self.written < width {
            self.write_char(' ')?;
        }
        Ok(())
    }
}

impl<W: Write> Write for Counted<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.written += text.chars().count();
        self.out.write_str(text)
    }
}

/// Writes the drawing in Graphviz' language. An edge stands for all rows that lead from one state to another; where a
/// mirror stays or a request is refused there is none. What happens alike in every state is drawn once.
pub fn write_drawing(out: &mut impl Write) -> fmt::Result {
    out.write_str(
        "// Generated from states/src/table.rs: UPDATE_GOLDENS=1 cargo test -p states\n\
         // Draw it with: dot -Tsvg states/replication.dot -o replication.svg\n\
         digraph replication {\n\
         \x20   node [shape=box, style=rounded, fontname=\"sans-serif\"];\n\
         \x20   edge [fontname=\"sans-serif\", fontsize=9];\n\
         \x20   any [label=\"any state\", shape=plaintext];\n\
         \x20   gone [shape=point];\n",
    )?;
    for &state in State::ALL {
        match state {
            State::InSync => writeln!(out, "    {state} [peripheries=2];")?,
            _ => writeln!(out, "    {state};")?,
        }
    }
    for &from in State::ALL {
        for &to in State::ALL {
            let color = match to {
                State::Error => ", color=red, fontcolor=red",
                State::Idle => ", color=gray, fontcolor=gray40",
                State::LinkDown => ", color=orange3, fontcolor=orange3",
                _ => "",
            };
            let rows = edges(from, to).filter(|row| !is_alike_everywhere(row.event));
            write_edge(out, from, to, rows, color)?;
        }
    }
    for &to in State::ALL {
        let rows = edges(State::New, to).filter(|row| is_alike_everywhere(row.event));
        write_edge(out, "any", to, rows, ", style=dashed")?;
    }
    for &event in EventKind::ALL {
        if cell(State::New, event).any(|row| row.then == Then::Gone) {
            writeln!(out, "    any -> gone [label=\"{event}\", style=dashed];")?;
        }
    }
    out.write_str("}\n")
}

fn edges(from: State, to: State) -> impl Iterator<Item = &'static Row> {
    EventKind::ALL
        .iter()
        .flat_map(move |&event| cell(from, event))
        .filter(move |row| row.then == Then::Go(to))
}

fn write_edge(
    out: &mut impl Write,
    from: impl Display,
    to: State,
    rows: impl Iterator<Item = &'static Row>,
    style: &str,
) -> fmt::Result {
    let mut any = false;
    for row in rows {
        if any {
            out.write_str("\\n")?;
        } else {
            write!(out, "    {from} -> {to} [label=\"")?;
        }
        any = true;
        write!(out, "{}", row.event)?;
        if row.guard != Guard::Always {
            write!(out, " if {}", row.guard)?;
        }
    }
    if any {
        writeln!(out, "\"{style}];")?;
    }
    Ok(())
}

/// Whether two cells lead to the same, under the same guards.
fn same_outcome(a: (State, EventKind), b: (State, EventKind)) -> bool {
    let outcome = |(state, event)| cell(state, event).map(|row| (row.guard, row.then));
    outcome(a).eq(outcome(b))
}

fn is_alike_everywhere(event: EventKind) -> bool {
    State::ALL
        .iter()
        .all(|&state| same_outcome((state, event), (State::New, event)))
}

/// A part of lockstep-states(7) that is generated. In the page it stands between `.\" generated: WORD` and
/// `.\" end of generated: WORD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManualPart {
    /// The states with their meanings.
    States,
    /// The events with their meanings.
    Events,
    /// The table of every state and event.
    Table,
    /// The causes of RESET.
    MinorCauses,
    /// The causes of ERROR.
    Causes,
    /// The refusals of requests.
    Refusals,
}

impl ManualPart {
    /// Every part, in the page's order.
    pub const ALL: &'static [ManualPart] = &[
        ManualPart::States,
        ManualPart::Events,
        ManualPart::Table,
        ManualPart::MinorCauses,
        ManualPart::Causes,
        ManualPart::Refusals,
    ];

    /// The word in the markers.
    pub const fn word(self) -> &'static str {
        match self {
            ManualPart::States => "states",
            ManualPart::Events => "events",
            ManualPart::Table => "table",
            ManualPart::MinorCauses => "minor-causes",
            ManualPart::Causes => "causes",
            ManualPart::Refusals => "refusals",
        }
    }

    /// Writes the part in the macros of man(7) and tbl(1).
    pub fn write(self, out: &mut impl Write) -> fmt::Result {
        match self {
            ManualPart::States => State::ALL
                .iter()
                .try_for_each(|state| item(out, state, &[state.meaning()])),
            ManualPart::Events => EventKind::ALL
                .iter()
                .try_for_each(|event| item(out, event, &[event.meaning()])),
            ManualPart::Table => write_manual_table(out),
            ManualPart::MinorCauses => MinorCause::ALL
                .iter()
                .try_for_each(|cause| item(out, cause, &[cause.sentence(), cause.remedy()])),
            ManualPart::Causes => Cause::ALL
                .iter()
                .try_for_each(|cause| item(out, cause, &[cause.sentence(), cause.remedy()])),
            ManualPart::Refusals => Refusal::ALL
                .iter()
                .try_for_each(|refusal| item(out, refusal, &[refusal.sentence()])),
        }
    }
}

/// A tagged paragraph.
fn item(out: &mut impl Write, tag: impl Display, sentences: &[&str]) -> fmt::Result {
    writeln!(out, ".TP\n.B {tag}")?;
    sentences.iter().try_for_each(|text| wrapped(out, text))
}

/// Running text: lines of at most 80 bytes, a new line for each sentence, what stands between backticks in bold.
fn wrapped(out: &mut impl Write, text: &str) -> fmt::Result {
    let mut column = 0;
    let mut bold = false;
    for word in text.split(' ') {
        // Leave room for the changes of font around the word.
        if column > 0 && column + word.len() > 70 {
            out.write_char('\n')?;
            column = 0;
        } else if column > 0 {
            out.write_char(' ')?;
        }
        for letter in word.chars() {
            match letter {
                '`' if bold => out.write_str("\\fR")?,
                '`' => out.write_str("\\fB")?,
                '-' if bold => out.write_str("\\-")?,
                _ => out.write_char(letter)?,
            }
            bold ^= letter == '`';
        }
        column += word.len() + 1;
        if word.ends_with('.') {
            out.write_char('\n')?;
            column = 0;
        }
    }
    if column > 0 {
        out.write_char('\n')?;
    }
    Ok(())
}

/// The heading of a state's column in the man page.
const fn abbreviation(state: State) -> &'static str {
    match state {
        State::New => "NEW",
        State::Init => "INI",
        State::MakeParts => "MKP",
        State::Ready => "RDY",
        State::Replicate => "REP",
        State::InSync => "INS",
        State::OutOfSync => "OOS",
        State::LinkDown => "LNK",
        State::Idle => "IDL",
        State::Reset => "RST",
        State::Error => "ERR",
    }
}

fn write_manual_table(out: &mut impl Write) -> fmt::Result {
    out.write_str(".TS\nl1")?;
    for _ in State::ALL {
        out.write_str(" c1")?;
    }
    out.write_str(".\n")?;
    for &state in State::ALL {
        write!(out, "\t{}", abbreviation(state))?;
    }
    out.write_str("\n_\n")?;
    for &event in EventKind::ALL {
        write!(out, "{event}")?;
        for &state in State::ALL {
            out.write_char('\t')?;
            let mut rows = cell(state, event);
            match (rows.next(), rows.next()) {
                (Some(row), None) => out.write_str(match row.then {
                    Then::Stay => "\\(md",
                    Then::Go(to) => abbreviation(to),
                    Then::Gone => "del",
                    Then::Refuse(_) => "no",
                })?,
                _ => write!(out, "{}", letter(note(state, event)))?,
            }
        }
        out.write_char('\n')?;
    }
    out.write_str(".TE\n")?;
    for (at, (state, event)) in notes().enumerate() {
        writeln!(out, ".TP 4\n.B {}", letter(at))?;
        let mut rows = cell(state, event).peekable();
        while let Some(row) = rows.next() {
            match row.then {
                Then::Stay => out.write_str("stays")?,
                Then::Go(to) => write!(out, "{to}")?,
                Then::Gone => out.write_str("is deleted")?,
                Then::Refuse(refusal) => write!(out, "refused, {refusal},")?,
            }
            let end = if rows.peek().is_some() { ';' } else { '.' };
            writeln!(out, " if {}{end}", row.guard.condition())?;
        }
    }
    Ok(())
}

fn letter(note: usize) -> char {
    char::from(b'a'.saturating_add(u8::try_from(note).unwrap_or(u8::MAX)))
}

/// The cells whose outcome depends on the facts: the first of those that are alike.
fn notes() -> impl Iterator<Item = (State, EventKind)> {
    conditional().enumerate().filter_map(|(at, one)| {
        let seen = conditional().take(at).any(|other| same_outcome(one, other));
        (!seen).then_some(one)
    })
}

fn conditional() -> impl Iterator<Item = (State, EventKind)> {
    EventKind::ALL
        .iter()
        .flat_map(|&event| State::ALL.iter().map(move |&state| (state, event)))
        .filter(|&(state, event)| cell(state, event).count() > 1)
}

fn note(state: State, event: EventKind) -> usize {
    notes()
        .position(|other| same_outcome((state, event), other))
        .unwrap_or(usize::MAX)
}
