//! Rules for single files: length, header, unsafe, unwrap, words, threads and clocks.

use crate::source::{Source, sources, top, words};

/// Where there is Rust.
const ALL: &[&str] = &["src", "states", "tests", "examples", "benches"];

fn report(found: Vec<String>) {
    assert!(
        found.is_empty(),
        "{} places:\n{}",
        found.len(),
        found.join("\n")
    );
}

fn check(dirs: &[&str], rule: fn(&Source) -> Vec<String>) {
    report(sources(dirs).iter().flat_map(rule).collect());
}

/// Lines that a file may have.
const MAX_LINES: usize = 800;

fn long(source: &Source) -> Vec<String> {
    let lines = source.raw.lines().count();
    (lines > MAX_LINES)
        .then(|| format!("{}: {lines} lines; cut it by nouns", source.path))
        .into_iter()
        .collect()
}

#[test]
fn no_file_is_longer_than_800_lines() {
    check(ALL, long);
    assert!(long(&Source::new("src/x.rs", &"\n".repeat(800))).is_empty());
    assert_eq!(long(&Source::new("src/x.rs", &"\n".repeat(801))).len(), 1);
}

fn headless(source: &Source) -> Vec<String> {
    let module_of_tests = source.is_test_file() && !source.path.starts_with("tests/");
    let header = source.raw.starts_with("//!");
    (!header && !module_of_tests)
        .then(|| format!("{}: does not begin with //!", source.path))
        .into_iter()
        .collect()
}

#[test]
fn every_module_says_what_it_owns() {
    check(ALL, headless);
    assert_eq!(
        headless(&Source::new("src/x.rs", "use a;\n//! late")).len(),
        1
    );
    assert!(headless(&Source::new("src/x/tests.rs", "use super::*;")).is_empty());
}

/// Where `unsafe` may be.
const UNSAFE: &[&str] = &["src/io/", "src/fuse/"];

fn unsafe_code(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for at in source.words("unsafe") {
        let place = source.place(at);
        if !UNSAFE.iter().any(|dir| source.path.starts_with(dir)) {
            found.push(format!("{place}: unsafe"));
            continue;
        }
        // The comment right above the statement: at most the statement's own first lines are between.
        let lines: Vec<&str> = source.raw.lines().take(source.line(at) - 1).collect();
        let comment = lines
            .iter()
            .rev()
            .skip_while({
                let mut between = 0;
                move |line| {
                    between += 1;
                    between <= 3
                        && !line.trim_start().starts_with("//")
                        && !line.trim_end().ends_with([';', '}'])
                }
            })
            .take_while(|line| line.trim_start().starts_with("//"));
        if !comment.into_iter().any(|line| line.contains("SAFETY:")) {
            found.push(format!("{place}: unsafe without a SAFETY comment"));
        }
    }
    found
}

#[test]
fn unsafe_is_rare_and_explained() {
    check(ALL, unsafe_code);
    let of = |path: &str, text: &str| unsafe_code(&Source::new(path, text)).len();
    assert_eq!(of("src/fs/x.rs", "// SAFETY: no\nunsafe { f() }"), 1);
    assert_eq!(
        of("src/io/x.rs", "// SAFETY: yes\nlet a = unsafe { f() };"),
        0
    );
    assert_eq!(
        of(
            "src/io/x.rs",
            "// SAFETY: yes,\n// it is\nlet a =\n    unsafe { f() };"
        ),
        0
    );
    assert_eq!(
        of(
            "src/io/x.rs",
            "// SAFETY: yes\nlet b = 1;\nlet a = unsafe { f() };"
        ),
        1
    );
    assert_eq!(of("src/io/x.rs", "let a = unsafe { f() };"), 1);
    assert_eq!(of("src/fs/x.rs", "#![forbid(unsafe_code)] // unsafe"), 0);
}

/// What is said in no file: notes of unfinished work, and paths of one machine. Put together here so that this file
/// is not found itself.
const FORBIDDEN: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("to", "do!("),
    concat!("unimplemented", "!("),
    concat!("/wo", "rk/"),
];

fn forbidden(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (n, line) in text.lines().enumerate() {
        for word in FORBIDDEN {
            if line.contains(word) {
                found.push(format!("{path}:{}: {word}", n + 1));
            }
        }
    }
    found
}

#[test]
fn nothing_is_left_to_be_done() {
    let mut found = Vec::new();
    let dirs = [
        "src",
        "states",
        "tests",
        "examples",
        "benches",
        "man",
        ".ci",
        "packaging",
    ];
    let single = ["Cargo.toml", "README.md", ".gitignore"];
    let files = dirs
        .iter()
        .flat_map(|dir| crate::source::files(&top().join(dir)))
        .chain(single.iter().map(|name| top().join(name)));
    for path in files {
        // Images are not text.
        if let Ok(text) = std::fs::read_to_string(&path) {
            found.extend(forbidden(&crate::source::relative(&path), &text));
        }
    }
    report(found);
    assert_eq!(forbidden("x", &FORBIDDEN.join("\n")).len(), FORBIDDEN.len());
}

fn unwraps(source: &Source) -> Vec<String> {
    let found = words(&source.code, "unwrap()").filter(|at| !source.is_test_code(*at));
    found
        .map(|at| format!("{}: unwrap()", source.place(at)))
        .collect()
}

#[test]
fn unwrap_is_for_tests() {
    check(&["src", "states/src", "examples"], unwraps);
    let of = |text| unwraps(&Source::new("src/x.rs", text)).len();
    assert_eq!(of("fn f() { a.unwrap(); a\n.unwrap() }"), 2);
    assert_eq!(
        of("#[cfg(test)] mod tests { fn f() { a.unwrap() } } // .unwrap()"),
        0
    );
    assert_eq!(of("fn f() { a.unwrap_or(b) }"), 0);
}

/// A file that is excused as test code must be one.
#[test]
fn test_files_are_only_compiled_for_tests() {
    let all = sources(&["src", "states/src"]);
    let mut found = Vec::new();
    for source in &all {
        for at in source.words("mod") {
            let name: String = source.code[at + 3..]
                .trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            let test = name == "tests" || name.ends_with("_tests");
            if test && !source.is_test_code(at) {
                found.push(format!(
                    "{}: mod {name} without cfg(test)",
                    source.place(at)
                ));
            }
        }
    }
    report(found);
}

/// Layers that run step by step, on the thread and at the time that their caller chooses.
const STEPPED: &[&str] = &[
    "src/units",
    "src/volume/",
    "src/ext4/",
    "src/journal/",
    "src/fs/",
    "src/wire/",
    "src/mirror/",
    "states/src/",
];

/// What such a layer does not do by itself.
const CALLERS: &[&str] = &[
    "thread::spawn",
    "thread::scope",
    "thread::sleep",
    "thread::Builder",
    "tokio",
    "SystemTime::now",
    "Instant::now",
];

fn by_itself(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    if STEPPED.iter().any(|dir| source.path.starts_with(dir)) {
        for word in CALLERS {
            let places = source.words(word).filter(|at| !source.is_test_code(*at));
            found.extend(places.map(|at| format!("{}: {word}", source.place(at))));
        }
    }
    found
}

#[test]
fn lower_layers_start_no_threads_and_read_no_clocks() {
    check(&["src", "states/src"], by_itself);
    let text = "let t = std::time::Instant::now(); std::thread::spawn(f);";
    assert_eq!(by_itself(&Source::new("src/fs/x.rs", text)).len(), 2);
    assert_eq!(by_itself(&Source::new("src/node/x.rs", text)).len(), 0);
}
