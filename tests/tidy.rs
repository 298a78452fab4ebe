//! The rules of the tree that no compiler holds: who may import whom, what the domain may not know, what
//! things are called, and sizes.
//!
//! To read the code it is cut into words and signs, without comments and texts. That is enough to follow
//! `crate::` and `super::` paths, groups in braces included, and needs no parser.

#![allow(clippy::unwrap_used, reason = "all of this file is tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Who may import whom: the arrows of ARCHITECTURE.md, modules and the workspace's crates alike. A new arrow
/// is a decision; talk about it first.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("metrics", &["consumer"]),
    ("telemetry", &["consumer"]),
    ("topology", &["consumer", "domain", "events"]),
    ("store", &["backoff", "domain"]),
    ("events", &["domain"]),
    ("dispatch", &["backoff", "domain", "metrics"]),
    ("expo", &["backoff", "dispatch", "domain", "metrics"]),
    ("fcm", &["backoff", "dispatch", "domain", "metrics"]),
    ("stages", &["backoff", "consumer", "dispatch", "domain", "events", "metrics", "store", "telemetry"]),
    ("http", &["domain", "events", "metrics", "store"]),
    ("config", &["consumer", "dispatch", "domain", "expo", "fcm", "http", "stages", "store", "telemetry"]),
    (
        "app",
        &[
            "config", "consumer", "dispatch", "domain", "events", "expo", "fcm", "http", "metrics", "stages",
            "store", "topology",
        ],
    ),
    (
        "cli",
        &[
            "app", "config", "consumer", "dispatch", "domain", "events", "expo", "fcm", "http", "metrics",
            "sandbox", "stages", "store", "topology",
        ],
    ),
    ("main", &["cli", "config", "telemetry"]),
    ("lib", &[]),
];

/// The crates of the workspace, which depend on nothing else of ours but where this says so.
const CRATES: &[(&str, &[&str])] = &[("backoff", &[]), ("consumer", &["backoff"]), ("sandbox", &[])];

/// They talk to the world, each to its own part of it.
const ADAPTERS: &[&str] = &["consumer", "store", "expo", "fcm"];

/// Where Rust stands.
const FOLDERS: &[&str] = &["src", "tests", "benches", "crates"];

/// Words for a name that has not been found yet.
const NO_NAMES: &[&str] = &["common", "helper", "helpers", "manager", "misc", "util", "utils"];

/// Names that stand for the same part everywhere: a part's settings, and a command's arguments.
const NAMED_ALIKE: &[&str] = &["Settings", "Args"];

const LINES_MAX: usize = 600;
const COLUMNS_MAX: usize = 110;

// === The rules ===

#[test]
fn modules_import_only_what_the_table_allows_and_the_table_allows_only_what_is_imported() {
    let mut wrong = Vec::new();
    let mut unused: BTreeSet<(&str, &str)> =
        MAY_IMPORT.iter().flat_map(|(from, to)| to.iter().map(move |to| (*from, *to))).collect();
    for Source { path, module, words, .. } in sources("src") {
        let top = module.first().map_or("lib", String::as_str);
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == top) else {
            wrong.push(format!("{path}: {top} is not in the table of tests/tidy.rs"));
            continue;
        };
        // Names of other things than modules (a macro, a type of the crate's root) are not in the table and
        // no arrows.
        let modules: BTreeSet<_> = MAY_IMPORT.iter().chain(CRATES).map(|(name, _)| *name).collect();
        for name in imports(&words, &module) {
            unused.retain(|arrow| *arrow != (top, name.as_str()));
            if name != top && modules.contains(name.as_str()) && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{path}: {top} may not import {name}"));
            }
        }
    }
    wrong.extend(
        unused.iter().map(|(from, to)| format!("{from} may import {to}, and does not: strike it out")),
    );
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_crates_of_the_workspace_know_nothing_of_the_service() {
    for (name, allowed) in CRATES {
        let manifest = fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        let dependencies: Vec<_> =
            manifest.get("dependencies").and_then(|table| table.as_table()).into_iter().flatten().collect();
        for (dependency, _) in
            dependencies.iter().filter(|(name, _)| CRATES.iter().any(|(ours, _)| ours == name))
        {
            assert!(allowed.contains(&dependency.as_str()), "crates/{name} may not depend on {dependency}");
        }
        assert!(
            dependencies.iter().all(|(name, _)| *name != "pushcast"),
            "crates/{name} depends on the service"
        );
    }
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
    let in_domain = |source: &Source| source.module.first().is_some_and(|top| top == "domain");
    for Source { path, words, .. } in sources("src").into_iter().filter(in_domain) {
        for (what, pattern) in [
            ("is async", &["async"][..]),
            ("waits", &["await"]),
            ("reads a clock", &[":", ":", "now", "("]),
            ("knows serde", &["serde"]),
            ("knows JSON", &["serde_json"]),
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

/// One word, one thing. The wire types of a provider and the types of an event are named by what they write,
/// each in a file of its own; tests name their fakes as they like.
#[test]
fn no_type_name_stands_for_two_things() {
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Source { path, module, words, .. } in everything_compiled() {
        let is_exempt = path.ends_with("wire.rs")
            || path.starts_with("src/events")
            || module.iter().any(|name| name == "tests" || name == "fakes");
        if is_exempt {
            continue;
        }
        for name in types(&words) {
            named.entry(name).or_default().insert(path.clone());
        }
    }
    let twice = named.iter().filter(|(name, paths)| paths.len() > 1 && !NAMED_ALIKE.contains(&name.as_str()));
    let wrong: Vec<_> =
        twice.map(|(name, paths)| format!("{name}: {}", Vec::from_iter(paths.clone()).join(", "))).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn files_have_a_bearable_length_and_say_what_they_are() {
    let mut wrong = Vec::new();
    for Source { path, text, module, .. } in FOLDERS.iter().flat_map(|folder| sources(folder)) {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            wrong.push(format!("{path}: {lines} lines, {LINES_MAX} are the limit"));
        }
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| line.chars().count() > COLUMNS_MAX) {
            let columns = line.chars().count();
            wrong.push(format!("{path}:{number}: {columns} columns, {COLUMNS_MAX} are the limit"));
        }
        // A file of tests is described by the file that it belongs to; a crate's front page is its README.
        let begins = text.starts_with("//!") || text.starts_with("#![doc");
        if !begins && module.last().is_none_or(|name| name != "tests") {
            wrong.push(format!("{path}: begins without the //! that says why it exists"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn modules_have_names_that_say_something() {
    let mut wrong = Vec::new();
    for Source { path, module, words, .. } in FOLDERS.iter().flat_map(|folder| sources(folder)) {
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
    /// Below the root, as `src/expo/client.rs`.
    path: String,
    /// As `["expo", "client"]`; empty for lib.rs.
    module: Vec<String>,
    text: String,
    words: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for file in rust_files(&root().join(folder)) {
        let path = file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let below = file.strip_prefix(root().join(folder)).unwrap().to_str().unwrap();
        let stem = below.strip_suffix(".rs").unwrap();
        let module = stem.split('/').filter(|name| *name != "lib").map(str::to_owned).collect();
        let text = fs::read_to_string(&file).unwrap();
        let words = words(&text);
        sources.push(Source { path, module, text, words });
    }
    assert!(!sources.is_empty(), "no sources in {folder}");
    sources
}

/// What goes into the binary.
fn everything_compiled() -> impl Iterator<Item = Source> {
    let crates = CRATES.iter().flat_map(|(name, _)| sources(&format!("crates/{name}/src")));
    sources("src").into_iter().chain(crates)
}

/// The types that a file defines, but for those in its inline modules of tests: structs, enums, traits,
/// unions, and aliases outside of an impl.
fn types(words: &[String]) -> Vec<String> {
    let (mut types, mut depth) = (Vec::new(), 0_usize);
    // The depth of the brace of an inline `mod tests`.
    let mut tests: Option<usize> = None;
    for (i, word) in words.iter().enumerate() {
        match word.as_str() {
            "{" => {
                depth += 1;
                if i >= 2 && words[i - 2] == "mod" && words[i - 1] == "tests" {
                    tests.get_or_insert(depth);
                }
            }
            "}" => {
                tests.take_if(|opened| *opened == depth);
                depth = depth.saturating_sub(1);
            }
            "struct" | "enum" | "trait" | "union" if tests.is_none() => {
                types.extend(words.get(i + 1).cloned())
            }
            "type" if tests.is_none() && depth == 0 => types.extend(words.get(i + 1).cloned()),
            _ => {}
        }
    }
    types.retain(|name| name.starts_with(|c: char| c.is_ascii_uppercase()));
    types
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
            // A crate of the workspace, unless it is a module of that name in another path.
            name if is_crate(name) && is_path(words, i + 1) && !(i >= 2 && is_path(words, i - 2)) => {
                names.insert(name.to_owned());
            }
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

fn is_crate(name: &str) -> bool {
    CRATES.iter().any(|(ours, _)| *ours == name)
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
        found("use crate::{domain::{Token, UserId}, http::Settings as K, store};", &["expo"]),
        ["domain", "http", "store"]
    );
    assert_eq!(found("fn f() -> crate::store::Page { pushcast::app::run() }", &["cli"]), ["app", "store"]);
    assert_eq!(found("pub(crate) fn f() {}", &["expo"]), [""; 0]);
    assert_eq!(found("use super::wire; use super::super::http;", &["expo", "client"]), ["http"]);
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
fn types_are_found_outside_of_tests() {
    let code = "pub struct A<T>(T); impl X for A { type Out = u8; } enum B {} type C = A<u8>; \
                trait D { fn f(); } mod tests { struct E; } struct F;";
    assert_eq!(types(&words(code)), ["A", "B", "C", "D", "F"]);
}

#[test]
fn a_crate_of_the_workspace_counts_as_a_module() {
    let found = |code: &str| imports(&words(code), &["stages".to_owned()]).into_iter().collect::<Vec<_>>();
    assert_eq!(
        found("use consumer::{Fate, Handler}; fn f() -> sandbox::Options {}"),
        ["consumer", "sandbox"]
    );
    assert_eq!(found("use rdkafka::consumer::Consumer; let consumer = 1;"), [""; 0]);
}

#[test]
fn comments_texts_and_characters_are_no_code() {
    let code = r####"// crate::a
        /* crate::b /* crate::c */ crate::d */ let x = "crate::e \" crate::f";
        let y = r#"crate::g " crate::h"#; let q = '"'; let n = '\''; fn f<'a>(x: &'a crate::i::J) {} //"####;
    assert_eq!(imports(&words(code), &["expo".to_owned()]).into_iter().collect::<Vec<_>>(), ["i"]);
}
