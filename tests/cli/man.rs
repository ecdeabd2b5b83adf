//! The man pages against the command table: SYNOPSIS, OPTIONS and EXIT STATUS are those of the table, examples parse,
//! and mandoc finds nothing to complain about. LOCKSTEP_BLESS=1 writes the three sections anew.

use clap::{Arg, ArgAction, Command, CommandFactory};
use lockstepfs::cli::args::Cli;
use lockstepfs::cli::exit::Exit;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn man() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("man")
}

/// Every page of commands: its file and the commands on it.
fn pages() -> Vec<(String, Vec<Vec<String>>)> {
    let root = Cli::command();
    let mut pages = vec![("lockstep".to_owned(), Vec::new())];
    for command in root.get_subcommands() {
        let name = command.get_name().to_owned();
        let subs: Vec<_> = command.get_subcommands().map(Command::get_name).collect();
        let commands = match subs.is_empty() {
            true => vec![vec![name.clone()]],
            false => {
                let path = |s: &&str| vec![name.clone(), (*s).to_owned()];
                subs.iter().map(path).collect()
            }
        };
        pages.push((format!("lockstep-{name}"), commands));
    }
    pages
}

fn find(path: &[String]) -> Command {
    let mut command = Cli::command();
    for name in path {
        command = command.find_subcommand(name).unwrap().clone();
    }
    command
}

fn own_arguments(command: &Command) -> Vec<&Arg> {
    let hidden = ["help", "version", "state"];
    let args = command.get_arguments();
    args.filter(|a| !hidden.contains(&a.get_id().as_str()))
        .collect()
}

fn value_name(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    names.first().map(ToString::to_string).unwrap_or_default()
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// `.Fl -part Ar PATH=SIZE`, without the dot: how mdoc writes an option or an operand.
fn mdoc(arg: &Arg) -> String {
    match arg.get_long() {
        Some(long) if takes_value(arg) => format!("Fl -{long} Ar {}", value_name(arg)),
        Some(long) => format!("Fl -{long}"),
        None => format!("Ar {}", value_name(arg)),
    }
}

fn synopsis(commands: &[Vec<String>]) -> String {
    if commands.is_empty() {
        return ".Nm\n.Op Fl -state Ar DIR\n.Ar command\n.Op Ar argument ...\n".to_owned();
    }
    let mut text = String::new();
    for path in commands {
        writeln!(text, ".Nm lockstep {}", path.join(" ")).unwrap();
        for arg in own_arguments(&find(path)) {
            let many = matches!(arg.get_action(), ArgAction::Append);
            let dots = if many { " ..." } else { "" };
            match arg.is_required_set() {
                true => writeln!(text, ".{}{dots}", mdoc(arg)).unwrap(),
                false => writeln!(text, ".Op {}{dots}", mdoc(arg)).unwrap(),
            }
        }
    }
    text
}

/// One sentence a line, as mdoc wants it.
fn prose(help: &str) -> String {
    let mut text = String::new();
    for paragraph in help.split("\n\n") {
        if !text.is_empty() {
            text.push_str(".Pp\n");
        }
        let joined = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        let joined = joined.replace('`', "");
        let mut rest = joined.as_str();
        while let Some(end) = rest.find(". ") {
            wrap(&mut text, &rest[..=end]);
            rest = &rest[end + 2..];
        }
        let stop = if rest.ends_with('.') { "" } else { "." };
        wrap(&mut text, &format!("{rest}{stop}"));
    }
    text
}

/// Lines of at most 78 bytes.
fn wrap(text: &mut String, sentence: &str) {
    let mut width = 0;
    for word in sentence.split(' ') {
        if width > 0 && width + 1 + word.len() > 78 {
            text.push('\n');
            width = 0;
        }
        if width > 0 {
            text.push(' ');
            width += 1;
        }
        text.push_str(word);
        width += word.len();
    }
    text.push('\n');
}

fn help(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help());
    let mut text = help.map(ToString::to_string).unwrap_or_default();
    let default = arg.get_default_values();
    if let Some(default) = default.first()
        && takes_value(arg)
    {
        write!(text, "\n\nThe default is {}.", default.to_string_lossy()).unwrap();
    }
    prose(&text)
}

fn options(commands: &[Vec<String>]) -> String {
    let mut text = String::new();
    let root = Cli::command();
    if commands.is_empty() {
        text.push_str("Every command takes these:\n.Bl -tag -width Ds\n");
        let state = root
            .get_arguments()
            .find(|a| a.get_id() == "state")
            .unwrap();
        write!(text, ".It {}\n{}", mdoc(state), help(state)).unwrap();
        text.push_str(".It Fl -help\nPrint help.\n.It Fl -version\nPrint the version.\n.El\n");
        text.push_str("The commands, each with a page of its own:\n.Bl -tag -width Ds\n");
        for command in root.get_subcommands() {
            let about = command
                .get_about()
                .map(ToString::to_string)
                .unwrap_or_default();
            write!(
                text,
                ".It Xr lockstep-{} 8\n{}",
                command.get_name(),
                prose(&about)
            )
            .unwrap();
        }
        text.push_str(".El\n");
        return text;
    }
    for path in commands {
        let command = find(path);
        if commands.len() > 1 {
            writeln!(text, ".Ss lockstep {}", path.join(" ")).unwrap();
        }
        let about = command.get_long_about().or(command.get_about());
        text.push_str(&prose(&about.map(ToString::to_string).unwrap_or_default()));
        let arguments = own_arguments(&command);
        if arguments.is_empty() {
            continue;
        }
        text.push_str(".Bl -tag -width Ds\n");
        for arg in arguments {
            write!(text, ".It {}\n{}", mdoc(arg), help(arg)).unwrap();
        }
        text.push_str(".El\n");
    }
    text.push_str("Common options are in\n.Xr lockstep 8 .\n");
    text
}

fn statuses() -> String {
    let mut text = ".Bl -tag -width Ds\n".to_owned();
    for exit in Exit::ALL {
        write!(text, ".It {}\n{}", exit.status(), prose(exit.meaning())).unwrap();
    }
    text.push_str(".El\n");
    text
}

/// The text of a section, between its head and the next.
fn section<'a>(page: &'a str, name: &str) -> &'a str {
    let head = format!(".Sh {name}\n");
    let Some(start) = page.find(&head) else {
        panic!("there is no section {name}");
    };
    let body = &page[start + head.len()..];
    &body[..body.find(".Sh ").unwrap_or(body.len())]
}

#[test]
fn synopsis_options_and_exit_status_are_those_of_the_table() {
    for (name, commands) in pages() {
        let path = man().join(format!("{name}.8"));
        let mut page =
            std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let expected = [
            ("SYNOPSIS", synopsis(&commands)),
            ("OPTIONS", options(&commands)),
            ("EXIT STATUS", statuses()),
        ];
        for (title, text) in expected {
            if std::env::var_os("LOCKSTEP_BLESS").is_some() {
                let head = format!(".Sh {title}\n");
                let old = format!("{head}{}", section(&page, title));
                page = page.replace(&old, &format!("{head}{text}"));
            }
            assert_eq!(
                section(&page, title),
                text,
                "{name}.8, {title}: LOCKSTEP_BLESS=1 writes it anew"
            );
        }
        for title in ["NAME", "DESCRIPTION", "FILES", "EXAMPLES", "SEE ALSO"] {
            assert!(
                !section(&page, title).trim().is_empty(),
                "{name}.8: {title}"
            );
        }
        if std::env::var_os("LOCKSTEP_BLESS").is_some() {
            std::fs::write(&path, page).unwrap();
        }
    }
}

/// Every page of the directory, read.
fn all_pages() -> Vec<(String, String)> {
    let entries = std::fs::read_dir(man()).unwrap();
    let paths = entries.map(|e| e.unwrap().path());
    let mut pages: Vec<_> = paths
        .map(|p| {
            let name = p.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(p).unwrap())
        })
        .collect();
    pages.sort();
    pages
}

#[test]
fn examples_are_commands_that_exist() {
    for (name, page) in all_pages() {
        for line in page.lines() {
            let Some(example) = line.strip_prefix(".Dl ") else {
                continue;
            };
            let example = example.trim_start_matches(['#', '$', ' ']);
            if !example.starts_with("lockstep ") {
                continue;
            }
            let words = example
                .split_whitespace()
                .take_while(|w| *w != "|" && *w != "&");
            if let Err(e) = <Cli as clap::Parser>::try_parse_from(words) {
                panic!("{name}: {example}: {e}");
            }
        }
    }
}

#[test]
fn every_key_of_the_configuration_has_its_entry() {
    let page = std::fs::read_to_string(man().join("lockstep.toml.5")).unwrap();
    let mut config = lockstepfs::node::config::Config::new("a", "h:1", Some("/s".into()));
    config.allow_other = Some(true);
    config.devices.insert("v".into(), vec!["/d".into()]);
    let keys = serde_json::to_value(&config).unwrap();
    for key in keys.as_object().unwrap().keys() {
        assert!(
            page.contains(&format!(".It Ic {key}")),
            "{key} has no entry"
        );
    }
}

#[test]
fn mandoc_has_nothing_to_say() {
    for (name, _) in all_pages() {
        let out = match std::process::Command::new("mandoc")
            .args(["-T", "lint"])
            .arg(man().join(&name))
            .output()
        {
            Ok(out) => out,
            Err(e) => {
                assert!(
                    std::env::var_os("LOCKSTEP_NO_SKIP").is_none(),
                    "mandoc is needed: {e}"
                );
                eprintln!("SKIPPED: mandoc can not be run: {e}");
                return;
            }
        };
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        // Which pages are installed on the machine, and in its index of them, says nothing about ours.
        let lines: Vec<_> = text
            .lines()
            .filter(|l| !l.contains("referenced manual not found") && !l.contains("mandoc.db"))
            .collect();
        assert!(lines.is_empty(), "{}", lines.join("\n"));
    }
}
