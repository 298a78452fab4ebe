//! The operational life of pushcast: load, build, run, drain, exit code.

fn main() {}
