//! Texts that people and programs rely on: help of every command, refusals, exit status.

use crate::node::{Node, golden, lockstep, texts};
use clap::CommandFactory;
use lockstepfs::cli::args::Cli;
use lockstepfs::cli::exit::Exit;
use std::fmt::Write;

fn leaves(command: &clap::Command, path: &mut Vec<String>, out: &mut Vec<Vec<String>>) {
    out.push(path.clone());
    for sub in command.get_subcommands() {
        path.push(sub.get_name().to_owned());
        leaves(sub, path, out);
        path.pop();
    }
}

#[test]
fn help_of_every_command_is_complete() {
    let mut all = Vec::new();
    leaves(&Cli::command(), &mut Vec::new(), &mut all);
    let mut text = String::new();
    for path in all {
        let out = lockstep()
            .env("COLUMNS", "100")
            .args(&path)
            .arg("--help")
            .output()
            .unwrap();
        assert!(out.status.success(), "{path:?}");
        writeln!(
            text,
            "$ lockstep {} --help\n{}",
            path.join(" "),
            texts(&out).0
        )
        .unwrap();
    }
    golden("help.txt", &text);
}

#[test]
fn exit_status_and_next_step_of_refusals() {
    let node = Node::init("alpha");
    let mut text = String::new();
    let mut show = |arguments: &[&str]| {
        let out = node.run(arguments);
        let (stdout, stderr) = texts(&out);
        let status = out.status.code().unwrap();
        let shown = node.clean(&format!("{stdout}{stderr}"));
        writeln!(
            text,
            "$ lockstep {}\n{shown}=> {status}\n",
            arguments.join(" ")
        )
        .unwrap();
    };
    show(&["status"]);
    show(&["volume", "list"]);
    show(&["wait", "data", "beta", "INSYNC", "--timeout", "1"]);
    show(&["node", "init", "--name", "x", "--listen", "h:1"]);
    show(&["peer", "list"]);
    show(&["peer", "add", "beta", "nowhere", "--fingerprint", "00"]);
    show(&["peer", "add", "beta", "h:1", "--fingerprint", "00"]);
    show(&["peer", "remove", "beta"]);
    show(&["volume", "create", "data"]);
    show(&["volume", "create", "data", "--part", "/tmp/x=1.5G"]);
    show(&["wait", "data", "beta", "SYNCED"]);
    show(&["fly"]);
    golden("refusals.txt", &text);
}

#[test]
fn a_directory_without_a_node_says_how_to_make_one() {
    let dir = tempfile::tempdir().unwrap();
    for command in [vec!["status"], vec!["node", "run"], vec!["peer", "list"]] {
        let out = lockstep()
            .arg("--state")
            .arg(dir.path())
            .args(&command)
            .output()
            .unwrap();
        assert!(!out.status.success());
        let (_, stderr) = texts(&out);
        assert!(stderr.contains("node init --name NAME"), "{stderr}");
    }
}

#[test]
fn the_statuses_are_these() {
    let numbers: Vec<u8> = Exit::ALL.iter().map(|e| e.status()).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7]);
}
