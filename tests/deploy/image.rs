//! The Dockerfile, .dockerignore, and versions that are written in two files.

use toml::Table;

use super::{path, text, tree};

fn manifest() -> Table {
    text("Cargo.toml").parse().unwrap()
}

/// The paths that the Dockerfile copies from the repository.
fn copied() -> Vec<String> {
    let text = text("Dockerfile");
    let lines =
        text.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|rest| !rest.starts_with("--from"));
    lines.flat_map(|rest| rest.rsplit_once(' ').unwrap().0.split(' ').map(str::to_owned)).collect()
}

fn is_at_or_below(file: &str, folder: &str) -> bool {
    file == folder || file.starts_with(&format!("{folder}/"))
}

/// The manifests of the workspace, with their folders.
fn manifests() -> Vec<(String, Table)> {
    let members = manifest()["workspace"]["members"].as_array().unwrap().clone();
    let of = |member: &toml::Value| {
        let folder = member.as_str().unwrap();
        (format!("{folder}/"), text(&format!("{folder}/Cargo.toml")).parse().unwrap())
    };
    std::iter::once((String::new(), manifest())).chain(members.iter().map(of)).collect()
}

#[test]
fn the_image_is_built_from_files_that_exist_and_are_not_ignored() {
    let ignored = text(".dockerignore");
    assert!(ignored.lines().any(|line| line == "*"), "everything is ignored except the listed paths");
    let kept: Vec<_> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    for file in copied() {
        assert!(path(&file).exists(), "{file} does not exist");
        assert!(
            kept.iter().any(|kept| is_at_or_below(&file, kept) || is_at_or_below(kept, &file)),
            "{file} is ignored"
        );
    }
    for kept in kept {
        assert!(path(kept).exists(), "{kept} does not exist");
        assert!(copied().iter().any(|file| is_at_or_below(kept, file)), "{kept} is not copied");
    }
}

#[test]
fn every_file_that_is_compiled_in_is_copied_into_the_image() {
    let mut found = 0;
    for (file, source) in sources(&path("src")).into_iter().chain(sources(&path("crates"))) {
        for included in source.split("include_str!(\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            let file = file.parent().unwrap().join(included).canonicalize().unwrap();
            let file = file.strip_prefix(path(".").canonicalize().unwrap()).unwrap().to_owned();
            assert!(
                copied().iter().any(|copied| file.starts_with(copied)),
                "{} is compiled in",
                file.display()
            );
            found += 1;
        }
    }
    assert!(found >= 3, "the defaults, CQL and SQL");
}

fn sources(folder: &std::path::Path) -> Vec<(std::path::PathBuf, String)> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of = |path: std::path::PathBuf| match path.is_dir() {
        true => sources(&path),
        false => vec![(path.clone(), std::fs::read_to_string(path).unwrap())],
    };
    files.flat_map(of).collect()
}

#[test]
fn dependencies_are_built_with_an_empty_crate_of_the_same_shape() {
    let dockerfile = text("Dockerfile");
    for (folder, manifest) in manifests() {
        assert!(folder.is_empty() || dockerfile.contains(&format!("COPY {folder}Cargo.toml {folder}\n")));
        assert!(
            dockerfile.contains(&format!("{folder}src/lib.rs")),
            "{folder} has no stub for the build of the dependencies"
        );
        for bench in manifest.get("bench").and_then(|benches| benches.as_array()).into_iter().flatten() {
            let stub = format!("{folder}benches/{}.rs", bench["name"].as_str().unwrap());
            assert!(dockerfile.contains(&stub), "Cargo.toml lists {stub}, and Cargo requires it");
        }
    }
    assert!(manifest()["features"].as_table().unwrap().contains_key("tls"));
    assert_eq!(
        dockerfile.matches("cargo build --release --locked --features tls").count(),
        2,
        "the dependencies and the binary are built with the same command"
    );
}

#[test]
fn versions_that_are_written_twice_are_equal() {
    let dockerfile = text("Dockerfile");
    let manifest = manifest();
    let rust = manifest["workspace"]["package"]["rust-version"].as_str().unwrap();
    assert!(dockerfile.contains(&format!("FROM rust:{rust}-trixie AS build")), "Rust {rust}");
    assert!(dockerfile.contains("FROM debian:trixie-slim"), "the C library of the build image");
    let image = tree("docker-compose.yml")["services"]["kafka"]["image"].as_str().unwrap().to_owned();
    let version = image.strip_prefix("apache/kafka:").unwrap();
    assert!(
        text("scripts/kafka/pom.xml").contains(&format!("<version>{version}</version>")),
        "the Kafka that the tests run on"
    );
}

#[test]
fn the_image_runs_as_an_unprivileged_user_and_stops_gracefully() {
    let dockerfile = text("Dockerfile");
    assert!(dockerfile.contains("\nUSER 10001:10001\n") && dockerfile.contains("--uid 10001"));
    // A shell as the entry point would not forward the signal.
    assert!(
        dockerfile.contains("\nENTRYPOINT [\"pushcast\"]\n") && dockerfile.contains("\nSTOPSIGNAL SIGTERM\n")
    );
    let compose = tree("docker-compose.yml");
    let grace = compose["services"]["pushcast"]["stop_grace_period"].as_str().unwrap();
    assert!(grace.strip_suffix('s').unwrap().parse::<u32>().unwrap() > 45, "a stop takes 45 s at most");
}
