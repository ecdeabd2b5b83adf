//! Rules for the manifests, the top level and the crate of the state machine.

use std::collections::BTreeSet;

use crate::source::{sources, top};

fn read(name: &str) -> String {
    std::fs::read_to_string(top().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The lines of a manifest's dependency sections: (line, text, whether a comment stands above it or its group).
fn dependencies(manifest: &str, kinds: &[&str]) -> Vec<(usize, String, bool)> {
    let (mut found, mut inside, mut reason) = (Vec::new(), false, false);
    // An array or a table over several lines belongs to the line it began on.
    let mut open = 0_i32;
    for (n, line) in manifest.lines().enumerate() {
        let text = line.trim();
        if open == 0 && text.starts_with('[') {
            let section = text.trim_matches(['[', ']']);
            // Also [target.'cfg(..)'.dependencies], and [dependencies.name], which is a dependency by itself.
            let named = kinds
                .iter()
                .find_map(|k| section.strip_prefix(&format!("{k}.")));
            if let Some(name) = named {
                found.push((n + 1, name.to_owned(), reason));
            }
            inside = kinds
                .iter()
                .any(|k| section == *k || section.ends_with(&format!(".{k}")));
            reason = false;
        } else if text.is_empty() {
            reason = false;
        } else if text.starts_with('#') {
            reason = true;
        } else {
            if inside && open == 0 {
                found.push((n + 1, text.to_owned(), reason));
            }
            let count = |set: [char; 2]| text.matches(set).count() as i32;
            open += count(['[', '{']) - count([']', '}']);
        }
    }
    found
}

const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

#[test]
fn every_dependency_has_its_reason() {
    let mut found = Vec::new();
    for name in ["Cargo.toml", "states/Cargo.toml"] {
        for (line, text, reason) in dependencies(&read(name), &KINDS) {
            // Our own crate needs none.
            if !reason && !text.contains("path = ") {
                found.push(format!("{name}:{line}: {text}"));
            }
        }
    }
    assert!(found.is_empty(), "no reason above:\n{}", found.join("\n"));
}

#[test]
fn a_dependency_without_a_reason_is_found() {
    let text = "[dependencies]\n# why\na = 1\nb = { x = [\n  1,\n] }\n\nc = 1\n[features]\nd = []\n[dev-dependencies.e]\nversion = 1";
    let found: Vec<_> = dependencies(text, &KINDS)
        .into_iter()
        .map(|(line, _, reason)| (line, reason))
        .collect();
    assert_eq!(found, [(3, true), (4, true), (8, false), (11, false)]);
}

#[test]
fn the_state_machine_depends_on_nothing() {
    let found = dependencies(
        &read("states/Cargo.toml"),
        &["dependencies", "build-dependencies"],
    );
    assert!(found.is_empty(), "{found:?}");
    let library = sources(&["states"])
        .into_iter()
        .find(|s| s.path == "states/src/lib.rs")
        .expect("states has a library");
    let code: String = library.code.split_whitespace().collect();
    assert!(code.contains("#![no_std]"));
    assert!(code.contains("#![forbid(unsafe_code)]"));
    for source in sources(&["states/src"]) {
        for at in source.words("std") {
            assert!(source.is_test_code(at), "{}: std", source.place(at));
        }
    }
}

/// What may stand at the top.
const TOP: &[&str] = &[
    ".ci",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "benches",
    "examples",
    "man",
    "packaging",
    "src",
    "states",
    "tests",
];

#[test]
fn the_top_level_is_fixed() {
    let entries = std::fs::read_dir(top()).expect("the top can be listed");
    let found: BTreeSet<String> = entries
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| !matches!(name.as_str(), ".git" | "target"))
        .filter(|name| !TOP.contains(&name.as_str()))
        .collect();
    assert!(found.is_empty(), "{found:?}");
}
