//! What is generated from the table and checked in. `UPDATE_GOLDENS=1 cargo test -p states` writes it anew.

use states::listing::{ManualPart, write_drawing, write_listing};
use std::path::{Path, PathBuf};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Compares a file with what it should hold, or writes it.
fn compare(path: &Path, expected: &str) {
    if std::env::var_os("UPDATE_GOLDENS").is_some_and(|value| value == "1") {
        std::fs::write(path, expected).unwrap();
        return;
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).find(|(a, b)| a != b);
    assert!(
        found == expected,
        "{} is not what the table says; first difference (found, expected): {differs:#?}\n\
         To write it anew: UPDATE_GOLDENS=1 cargo test -p states",
        path.display()
    );
}

#[test]
fn the_listing_is_that_of_the_table() {
    let mut text = String::new();
    write_listing(&mut text).unwrap();
    assert!(text.lines().all(|line| line == line.trim_end()));
    compare(&path("replication.txt"), &text);
}

#[test]
fn the_drawing_is_that_of_the_table() {
    let mut text = String::new();
    write_drawing(&mut text).unwrap();
    compare(&path("replication.dot"), &text);
}

#[test]
fn the_manual_page_has_the_table_the_causes_and_the_refusals() {
    let path = path("../man/lockstep-states.7");
    let page = std::fs::read_to_string(&path).unwrap();
    let mut expected = String::new();
    let mut rest = page.as_str();
    for part in ManualPart::ALL {
        let begin = format!(".\\\" generated: {}\n", part.word());
        let end = format!(".\\\" end of generated: {}\n", part.word());
        let (before, after) = rest
            .split_once(&begin)
            .unwrap_or_else(|| panic!("no line {begin:?} in its place"));
        let (_, after) = after
            .split_once(&end)
            .unwrap_or_else(|| panic!("no line {end:?} in its place"));
        expected.push_str(before);
        expected.push_str(&begin);
        part.write(&mut expected).unwrap();
        expected.push_str(&end);
        rest = after;
    }
    expected.push_str(rest);
    let wide = expected.lines().find(|line| line.len() > 80);
    assert_eq!(wide, None, "lines of a manual page are short");
    compare(&path, &expected);
}
