//! The rules of the tree that no compiler holds: who may import whom, what the domain may not know, and
//! sizes.
//!
//! To read the code it is cut into words and signs, without comments and texts. That is enough to follow
//! `crate::` and `super::` paths, groups in braces included, and needs no parser.

#![allow(clippy::unwrap_used, reason = "all of this file is tests")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Who may import whom: the arrows of ARCHITECTURE.md. A new arrow is a decision; talk about it first.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("metrics", &[]),
    ("telemetry", &[]),
    ("sandbox", &[]),
    ("stream", &["domain"]),
    ("store", &["domain"]),
    ("events", &["domain"]),
    ("delivery", &["domain", "metrics"]),
    ("kafka", &["domain", "metrics", "stream"]),
    ("expo", &["delivery", "domain", "metrics"]),
    ("fcm", &["delivery", "domain", "metrics"]),
    ("stages", &["delivery", "domain", "events", "metrics", "store", "stream"]),
    ("http", &["delivery", "domain", "events", "metrics", "store", "stream"]),
    ("config", &["delivery", "expo", "fcm", "http", "kafka", "stages", "store", "telemetry"]),
    ("app", EVERYTHING_BELOW_APP),
    ("cli", EVERYTHING),
    ("main", EVERYTHING),
    ("lib", &[]),
];

const EVERYTHING_BELOW_APP: &[&str] = &[
    "config",
    "delivery",
    "domain",
    "events",
    "expo",
    "fcm",
    "http",
    "kafka",
    "metrics",
    "sandbox",
    "stages",
    "store",
    "stream",
    "telemetry",
];

const EVERYTHING: &[&str] = &[
    "app",
    "cli",
    "config",
    "delivery",
    "domain",
    "events",
    "expo",
    "fcm",
    "http",
    "kafka",
    "metrics",
    "sandbox",
    "stages",
    "store",
    "stream",
    "telemetry",
];

/// They talk to the world, each to its own part of it.
const ADAPTERS: &[&str] = &["kafka", "store", "expo", "fcm"];

/// Words for a name that has not been found yet.
const NO_NAMES: &[&str] = &["common", "helper", "helpers", "manager", "misc", "util", "utils"];

const LINES_MAX: usize = 600;

// === The rules ===

#[test]
fn modules_import_only_what_the_table_allows() {
    let mut wrong = Vec::new();
    for Source { path, module, words, .. } in sources("src") {
        let top = module.first().map_or("lib", String::as_str);
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == top) else {
            wrong.push(format!("{path}: {top} is not in the table of tests/tidy.rs"));
            continue;
        };
        // Names of other things than modules (a macro, a type of the crate's root) are not in the table and
        // no arrows.
        let modules: BTreeSet<_> = MAY_IMPORT.iter().map(|(name, _)| *name).collect();
        for name in imports(&words, &module) {
            if name != top && modules.contains(name.as_str()) && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{path}: {top} may not import crate::{name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_table_lets_no_adapter_see_another() {
    for (module, allowed) in MAY_IMPORT.iter().filter(|(module, _)| ADAPTERS.contains(module)) {
        assert!(!allowed.iter().any(|name| ADAPTERS.contains(name)), "{module}: {allowed:?}");
    }
}

#[test]
fn the_domain_knows_no_clock_no_waiting_and_no_serialiser() {
    let mut wrong = Vec::new();
    for Source { path, words, .. } in
        sources("src").into_iter().filter(|source| source.module.first().is_some_and(|top| top == "domain"))
    {
        for (what, pattern) in [
            ("is async", &["async"][..]),
            ("waits", &["await"]),
            ("reads a clock", &[":", ":", "now", "("]),
            ("knows serde", &["serde"]),
            ("derives Serialize", &["Serialize"]),
            ("derives Deserialize", &["Deserialize"]),
        ] {
            if words.windows(pattern.len()).any(|window| window == pattern) {
                wrong.push(format!("{path}: the domain {what}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn files_have_a_bearable_length_and_say_what_they_are() {
    let mut wrong = Vec::new();
    for Source { path, text, module, .. } in sources("src").into_iter().chain(sources("tests")) {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            wrong.push(format!("{path}: {lines} lines, {LINES_MAX} are the limit"));
        }
        // A file of tests is told by the one that it belongs to.
        if !text.starts_with("//!") && module.last().is_none_or(|name| name != "tests") {
            wrong.push(format!("{path}: begins without the //! that says why it exists"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn modules_have_names_that_say_something() {
    let mut wrong = Vec::new();
    for Source { path, module, words, .. } in sources("src").into_iter().chain(sources("tests")) {
        if path.ends_with("mod.rs") {
            wrong.push(format!("{path}: is called foo.rs here, beside foo/"));
        }
        let inline = words.windows(2).filter(|pair| pair[0] == "mod").map(|pair| &pair[1]);
        for name in module.iter().chain(inline).filter(|name| NO_NAMES.contains(&name.as_str())) {
            wrong.push(format!("{path}: {name:?} is a word for a name not yet found"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

// === Reading the code ===

struct Source {
    /// Below the folder, as `expo/client.rs`.
    path: String,
    /// As `["expo", "client"]`; empty for lib.rs.
    module: Vec<String>,
    text: String,
    words: Vec<String>,
}

fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut sources = Vec::new();
    for file in rust_files(&root) {
        let path = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let stem = path.strip_suffix(".rs").unwrap();
        let module = stem.split('/').filter(|name| *name != "lib").map(str::to_owned).collect();
        let text = fs::read_to_string(&file).unwrap();
        let words = words(&text);
        sources.push(Source { path, module, text, words });
    }
    assert!(!sources.is_empty(), "no sources in {folder}");
    sources
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let files = |path: PathBuf| match path.is_dir() {
        true => rust_files(&path),
        false => vec![path],
    };
    entries.into_iter().flat_map(files).filter(|path| path.extension().is_some_and(|it| it == "rs")).collect()
}

/// Identifiers and single signs; comments, texts and characters left out.
fn words(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let (mut words, mut i) = (Vec::new(), 0);
    while i < chars.len() {
        match at(i) {
            '/' if at(i + 1) == '/' => i = (i..chars.len()).find(|&j| at(j) == '\n').unwrap_or(chars.len()),
            '/' if at(i + 1) == '*' => i = past_comment(&chars, i),
            '"' => i = past_text(&chars, i),
            // A character ends after one sign, or begins with a backslash; anything else is a lifetime.
            '\'' if at(i + 1) == '\\' => {
                i = (i + 3..chars.len()).find(|&j| at(j) == '\'').map_or(chars.len(), |j| j + 1)
            }
            '\'' if at(i + 2) == '\'' => i += 3,
            c if c.is_alphanumeric() || c == '_' => {
                let end = (i..=chars.len())
                    .find(|&j| !(at(j).is_alphanumeric() || at(j) == '_'))
                    .unwrap_or(chars.len());
                let word: String = chars[i..end].iter().collect();
                let hashes = (end..chars.len()).take_while(|&j| at(j) == '#').count();
                i = end;
                if matches!(word.as_str(), "r" | "br" | "cr") && at(end + hashes) == '"' {
                    i = past_raw_text(&chars, end + hashes, hashes);
                } else {
                    words.push(word);
                }
            }
            c => {
                if !c.is_whitespace() {
                    words.push(c.to_string());
                }
                i += 1;
            }
        }
    }
    words
}

fn past_comment(chars: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0, start);
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

fn past_text(chars: &[char], quote: usize) -> usize {
    let mut i = quote + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

fn past_raw_text(chars: &[char], quote: usize, hashes: usize) -> usize {
    let ends = |i: &usize| {
        chars[*i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
    };
    (quote + 1..chars.len()).find(ends).map_or(chars.len(), |end| end + 1 + hashes)
}

/// The crate's modules that this file of `module` names, by `crate::`, `pushcast::`, or `super::` up to the
/// root.
fn imports(words: &[String], module: &[String]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    // The inline modules around a word, each with the depth of its brace.
    let (mut inline, mut depth) = (Vec::new(), 0_usize);
    let mut i = 0;
    while i < words.len() {
        match words[i].as_str() {
            "{" => {
                depth += 1;
                if i >= 2 && words[i - 2] == "mod" {
                    inline.push(depth);
                }
            }
            "}" => {
                inline.pop_if(|opened| *opened == depth);
                depth = depth.saturating_sub(1);
            }
            "crate" | "pushcast" if is_path(words, i + 1) => names.extend(named(&words[i + 3..])),
            "super" => {
                let chain = (0..).take_while(|n| {
                    words.get(i + 3 * n).is_some_and(|word| word == "super") && is_path(words, i + 3 * n + 1)
                });
                let supers = chain.count();
                if supers > 0 && supers >= module.len() + inline.len() {
                    names.extend(named(&words[i + 3 * supers..]));
                }
                i += 3 * supers.saturating_sub(1);
            }
            _ => {}
        }
        i += 1;
    }
    names
}

fn is_path(words: &[String], i: usize) -> bool {
    words.get(i..i + 2).is_some_and(|signs| signs == [":", ":"])
}

/// The first names of a path's rest: one, or each of a group in braces.
fn named(rest: &[String]) -> Vec<String> {
    let Some(first) = rest.first() else { return Vec::new() };
    if first != "{" {
        return vec![first.clone()];
    }
    let (mut names, mut depth) = (Vec::new(), 0);
    for pair in rest.windows(2) {
        match pair[0].as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && matches!(pair[0].as_str(), "{" | ",") && pair[1] != "}" {
            names.push(pair[1].clone());
        }
    }
    names
}

// === Whether it reads right ===

#[test]
fn paths_are_found_in_groups_in_code_and_through_super() {
    let found = |code: &str, module: &[&str]| {
        let module: Vec<_> = module.iter().map(|name| (*name).to_owned()).collect();
        imports(&words(code), &module).into_iter().collect::<Vec<_>>()
    };
    assert_eq!(
        found("use crate::{domain::{Token, UserId}, kafka::Settings as K, store};", &["expo"]),
        ["domain", "kafka", "store"]
    );
    assert_eq!(found("fn f() -> crate::store::Page { pushcast::app::run() }", &["cli"]), ["app", "store"]);
    assert_eq!(found("pub(crate) fn f() {}", &["expo"]), [""; 0]);
    assert_eq!(found("use super::wire; use super::super::kafka;", &["expo", "client"]), ["kafka"]);
    assert_eq!(
        found("mod tests { use super::*; use super::super::fcm; } use super::store;", &["expo"]),
        ["fcm", "store"]
    );
    assert_eq!(
        found(
            "impl A { fn f() { super::g() } } mod a { mod b { use super::super::super::{x, y::z}; } }",
            &["expo"]
        ),
        ["g", "x", "y"]
    );
}

#[test]
fn comments_texts_and_characters_are_no_code() {
    let code = r####"// crate::a
        /* crate::b /* crate::c */ crate::d */ let x = "crate::e \" crate::f"; let y = r#"crate::g " crate::h"#;
        let q = '"'; let n = '\''; fn f<'a>(x: &'a crate::i::J) {} //"####;
    assert_eq!(imports(&words(code), &["expo".to_owned()]).into_iter().collect::<Vec<_>>(), ["i"]);
}
