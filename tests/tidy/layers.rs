//! Imports point down only.

use crate::source::{Source, sources, words};

/// Each layer, lowest first, and what it may import. `states` is the crate of the state machine.
const LAYERS: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("io", &["units"]),
    ("volume", &["units", "io"]),
    ("ext4", &["units"]),
    ("journal", &["units", "io", "volume", "ext4"]),
    ("fs", &["units", "io", "volume", "ext4", "journal"]),
    ("wire", &["units", "states"]),
    (
        "mirror",
        &[
            "units", "io", "volume", "ext4", "journal", "fs", "wire", "states",
        ],
    ),
    ("fuse", &["units", "io", "ext4", "journal", "fs"]),
    (
        "node",
        &[
            "units", "io", "volume", "ext4", "journal", "fs", "wire", "mirror", "fuse", "states",
        ],
    ),
    // Commands speak the control protocol, which is the node's; they reach into nothing below it.
    ("cli", &["units", "node", "states"]),
];

fn layer(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("src/")?;
    let first = rest.split('/').next()?;
    Some(first.trim_end_matches(".rs")).filter(|name| !matches!(*name, "lib" | "main"))
}

/// How deep the module of a file is: 1 for a layer's own, 2 for its children.
fn depth(path: &str) -> usize {
    let parts: Vec<&str> = path.trim_start_matches("src/").split('/').collect();
    let own = parts.last().is_some_and(|last| *last == "mod.rs");
    parts.len() - usize::from(own)
}

/// The names that directly follow `crate::` (or `states::` ...) at `at`, which is behind the colons: one, or a group.
fn heads(code: &str, at: usize) -> Vec<String> {
    let rest = code[at..].trim_start();
    let word = |text: &str| -> String {
        let name = text.trim_start().chars();
        name.take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let Some(group) = rest.strip_prefix('{') else {
        return vec![word(rest)];
    };
    let (mut names, mut level, mut from) = (Vec::new(), 1, 0);
    for (n, c) in group.char_indices() {
        match c {
            '{' => level += 1,
            '}' => level -= 1,
            _ => {}
        }
        if (c == ',' && level == 1) || level == 0 {
            names.push(word(&group[from..n]));
            from = n + 1;
        }
        if level == 0 {
            break;
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// What a file imports that its layer may not.
fn violations(source: &Source) -> Vec<String> {
    let Some(layer) = layer(&source.path) else {
        return Vec::new();
    };
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
        return vec![format!("{}: {layer} is no layer", source.path)];
    };
    let mut found = Vec::new();
    let mut edge = |at: usize, to: &str| {
        if to != layer && !allowed.contains(&to) {
            found.push(format!("{}: {layer} may not import {to}", source.place(at)));
        }
    };
    let code = &source.code;
    let behind = |at: usize, len: usize| {
        let rest = code[at + len..].trim_start();
        rest.starts_with("::").then(|| code.len() - rest.len() + 2)
    };
    for name in ["crate", "lockstepfs"] {
        for at in source.words(name) {
            for to in behind(at, name.len()).map_or(Vec::new(), |n| heads(code, n)) {
                edge(at, &to);
            }
        }
    }
    for at in source.words("states") {
        // The crate, unless the word is the end of a path or a name of something else.
        let path = code[..at].trim_end();
        if behind(at, "states".len()).is_some() && !path.ends_with("::") {
            edge(at, "states");
        }
    }
    let deep = depth(&source.path);
    let mut skip = 0;
    for at in source.words("super") {
        if at < skip {
            continue;
        }
        let (mut count, mut end) = (1, at + "super".len());
        while let Some(n) = behind(end, 0) {
            let rest = code[n..].trim_start();
            end = code.len() - rest.len();
            if words(rest, "super").next() != Some(0) {
                break;
            }
            count += 1;
            end += "super".len();
        }
        skip = end;
        if count >= deep + source.inline_depth(at) {
            found.push(format!(
                "{}: super reaches the top of the crate; say crate::",
                source.place(at)
            ));
        }
    }
    found
}

#[test]
fn imports_point_down_only() {
    let found: Vec<String> = sources(&["src"]).iter().flat_map(violations).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_table_is_in_order_and_points_down() {
    for (n, (name, allowed)) in LAYERS.iter().enumerate() {
        for to in *allowed {
            let below = LAYERS[..n].iter().any(|(lower, _)| lower == to);
            assert!(below || *to == "states", "{name} may import {to}");
        }
    }
    // Lowest first in the library, too.
    let library = sources(&["src"])
        .into_iter()
        .find(|s| s.path == "src/lib.rs")
        .unwrap();
    let declared: Vec<String> = library
        .words("mod")
        .map(|at| heads(&library.code, at + 3).remove(0))
        .collect();
    let listed: Vec<&str> = LAYERS.iter().map(|(name, _)| *name).collect();
    assert_eq!(declared, listed);
}

#[test]
fn a_forbidden_import_is_found_however_it_is_written() {
    let of = |path: &str, text: &str| violations(&Source::new(path, text)).len();
    assert_eq!(
        of(
            "src/ext4/inode.rs",
            "use crate::units::Ino; use super::layout;"
        ),
        0
    );
    assert_eq!(of("src/ext4/inode.rs", "use crate::io::Disk;"), 1);
    assert_eq!(
        of(
            "src/ext4/inode.rs",
            "use crate::{units::{Ino, BlockNo}, io::Disk, fs};"
        ),
        2
    );
    assert_eq!(of("src/ext4/inode.rs", "fn f() { crate :: fs::g() }"), 1);
    assert_eq!(
        of(
            "src/ext4/inode.rs",
            "// crate::fs\nconst A: &str = \"crate::fs\";"
        ),
        0
    );
    assert_eq!(of("src/ext4/inode.rs", "use super::super::fs;"), 1);
    assert_eq!(
        of(
            "src/ext4/inode.rs",
            "mod tests { use super::super::layout; }"
        ),
        0
    );
    assert_eq!(
        of(
            "src/ext4/inode.rs",
            "mod tests { use super::super::super::fs; }"
        ),
        1
    );
    assert_eq!(of("src/ext4/mod.rs", "use super::fs;"), 1);
    assert_eq!(of("src/units.rs", "use super::fs;"), 1);
    assert_eq!(of("src/fs/mod.rs", "use states::State;"), 1);
    assert_eq!(
        of(
            "src/mirror/mod.rs",
            "use states::State; let x = fs::states::y;"
        ),
        0
    );
    assert_eq!(of("src/other/mod.rs", ""), 1);
    assert_eq!(of("src/fuse/mod.rs", "use crate::mirror::x;"), 1);
    assert_eq!(
        of("src/volume/facts.rs", "pub(in crate::volume) fn f() {}"),
        0
    );
}
