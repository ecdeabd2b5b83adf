//! The sources as text, and as code: with comments and literals blanked, so that a word in them is not taken for code.

use std::path::{Path, PathBuf};

/// The top of the work tree.
pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One Rust file.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its path below the top, with `/`.
    pub path: String,
    /// As it is.
    pub raw: String,
    /// As long as `raw`, byte for byte; comments and the contents of literals are blanks.
    pub code: String,
    /// Bytes of `code` that only exist in test builds.
    tests: Vec<(usize, usize)>,
    /// Inline modules: the bytes between their braces.
    modules: Vec<(usize, usize)>,
}

impl Source {
    /// Takes a text apart.
    pub fn new(path: &str, raw: &str) -> Source {
        let code = blank(raw);
        let tests = test_items(&code);
        let modules = inline_modules(&code);
        Source {
            path: path.to_owned(),
            raw: raw.to_owned(),
            code,
            tests,
            modules,
        }
    }

    /// The line of a byte, from 1.
    pub fn line(&self, at: usize) -> usize {
        self.raw.as_bytes()[..at]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
            + 1
    }

    /// `path:line`.
    pub fn place(&self, at: usize) -> String {
        format!("{}:{}", self.path, self.line(at))
    }

    /// Whether a byte is only compiled for tests.
    pub fn is_test_code(&self, at: usize) -> bool {
        self.is_test_file()
            || self
                .tests
                .iter()
                .any(|(from, to)| (*from..*to).contains(&at))
    }

    /// Whether the file is compiled for tests only, by its name; `test_files_are_only_compiled_for_tests` checks that.
    pub fn is_test_file(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        let stem = name.trim_end_matches(".rs");
        self.path.starts_with("tests/")
            || self.path.contains("/tests/")
            || stem == "tests"
            || stem.ends_with("_tests")
            // What unit tests share; their modules are under cfg(test), too.
            || matches!(stem, "fixture" | "foreign")
            || self.path.contains("/fixture/")
            || self.path == "src/fs/alloc/image.rs"
    }

    /// Inline modules around a byte.
    pub fn inline_depth(&self, at: usize) -> usize {
        self.modules
            .iter()
            .filter(|(from, to)| (*from..*to).contains(&at))
            .count()
    }

    /// Where a word, or a path such as `a::b`, stands in the code by itself.
    pub fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        words(&self.code, word)
    }
}

/// Where `word` stands in `text`, not as a part of a longer word.
pub fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let bytes = text.as_bytes();
    text.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |at| {
            let before = at.checked_sub(1).and_then(|n| bytes.get(n));
            !part(before) && !part(bytes.get(at + word.len()))
        })
}

/// Every Rust file below these directories of the work tree.
pub fn sources(dirs: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    for dir in dirs {
        for path in files(&top().join(dir)) {
            if path.extension().is_some_and(|e| e == "rs") {
                let raw = std::fs::read_to_string(&path).expect("a source is UTF-8");
                found.push(Source::new(&relative(&path), &raw));
            }
        }
    }
    assert!(found.len() > 3, "the sources were not found");
    found
}

/// A path below the top, with `/`.
pub fn relative(path: &Path) -> String {
    let below = path.strip_prefix(top()).expect("it is below the top");
    below.to_str().expect("names are UTF-8").to_owned()
}

/// Every file below a directory, in order; none when there is no such directory.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return found;
    };
    for entry in entries.flatten() {
        let kind = entry.file_type().expect("an entry has a type");
        if kind.is_dir() && entry.file_name() != "target" {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// Replaces comments and the contents of literals by blanks; line ends stay.
fn blank(raw: &str) -> String {
    let bytes = raw.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => line_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => comment_end(bytes, at),
            b'"' => string_end(bytes, at + 1),
            b'r' | b'b' | b'c' if !follows_word(bytes, at) => match raw_string(bytes, at) {
                Some(end) => end,
                None => at,
            },
            b'\'' => char_end(bytes, at).unwrap_or(at),
            _ => at,
        };
        if end == at {
            at += 1;
            continue;
        }
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(code).expect("blanks replace whole characters")
}

fn follows_word(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
}

fn comment_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    while at < bytes.len() {
        match &bytes[at..bytes.len().min(at + 2)] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

/// The byte after a string's closing quote; `at` is the first byte within.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The end of `r"..."`, `r#"..."#`, and the same with `b` or `c`, if that is what begins here.
fn raw_string(bytes: &[u8], at: usize) -> Option<usize> {
    let mut from = at;
    if matches!(bytes[from], b'b' | b'c') {
        from += 1;
    }
    if bytes.get(from) != Some(&b'r') {
        return None;
    }
    let hashes = bytes[from + 1..].iter().take_while(|b| **b == b'#').count();
    let open = from + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.extend(std::iter::repeat_n(b'#', hashes));
    let rest = &bytes[open + 1..];
    let found = rest.windows(close.len()).position(|w| w == close);
    Some(found.map_or(bytes.len(), |n| open + 1 + n + close.len()))
}

/// The end of a character literal, if the quote does not begin a lifetime.
fn char_end(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes.get(at + 1) == Some(&b'\\') {
        let rest = &bytes[at + 3..];
        return rest.iter().position(|b| *b == b'\'').map(|n| at + 4 + n);
    }
    let text = std::str::from_utf8(&bytes[at + 1..]).ok()?;
    let len = text.chars().next()?.len_utf8();
    (bytes.get(at + 1 + len) == Some(&b'\'')).then_some(at + 2 + len)
}

/// The byte after the brace that closes the one at `open`.
fn brace_end(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (n, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return n + 1;
        }
    }
    code.len()
}

/// The items behind `#[cfg(test)]`.
fn test_items(code: &str) -> Vec<(usize, usize)> {
    code.match_indices("#[cfg(test)]")
        .map(|(from, _)| {
            let mut rest = from;
            // Further attributes may hold braces of their own.
            while let Some(attribute) = code[rest..].trim_start().strip_prefix("#[") {
                let start = code.len() - attribute.len();
                rest = start + attribute.find(']').map_or(attribute.len(), |n| n + 1);
            }
            let semicolon = code[rest..].find(';').map_or(code.len(), |n| rest + n + 1);
            let brace = code[rest..].find('{').map_or(code.len(), |n| rest + n);
            let to = if brace < semicolon {
                brace_end(code, brace)
            } else {
                semicolon
            };
            (from, to)
        })
        .collect()
}

fn inline_modules(code: &str) -> Vec<(usize, usize)> {
    words(code, "mod")
        .filter_map(|at| {
            let rest = &code[at + 3..];
            let name = rest.trim_start();
            let after = name.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
            let open = after.trim_start();
            open.starts_with('{').then(|| {
                let open = code.len() - open.len();
                (open, brace_end(code, open))
            })
        })
        .collect()
}

#[test]
fn comments_and_literals_are_blanked_and_nothing_else() {
    let text = concat!(
        "a // one\n/* two /* 2 */ */ b \"three \\\" 3\" c r#\"four \" 4\"# d 'x' '\\'' e<'f> b\"5\" br\"6\" g\n",
        "'\\u{1f600}' '\u{1f600}' h \"\\\\\" i for"
    );
    let code = blank(text);
    assert_eq!(code.len(), text.len());
    let left: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(
        left,
        ["a", "b", "c", "d", "e<'f>", "b", "g", "h", "i", "for"]
    );
}

#[test]
fn test_items_and_inline_modules_are_found() {
    let text = "fn a() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests { mod deep { fn b() {} } }\n#[cfg(test)] mod c;\nfn d() {}";
    let source = Source::new("src/x.rs", text);
    let at = |word| source.words(word).next().unwrap();
    assert!(!source.is_test_code(at("a")));
    assert!(source.is_test_code(at("b")));
    assert!(source.is_test_code(at("c")));
    assert!(!source.is_test_code(at("d")));
    assert_eq!(source.inline_depth(at("b")), 2);
    assert_eq!(source.inline_depth(at("d")), 0);
    assert_eq!(source.line(at("b")), 4);
}
