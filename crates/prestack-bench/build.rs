//! Tells the crate where the BPF object is that it embeds.

use std::{env, path::PathBuf, process::exit};

const VARIABLE: &str = "PRESTACK_BENCH_BPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let object = env::var_os(VARIABLE).map_or_else(default_object, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.is_file() {
        println!(
            "cargo::error=there is no BPF object at {}: run `cargo xtask build`",
            object.display()
        );
        exit(1);
    }
    let object = object.canonicalize().unwrap_or(object);
    println!("cargo::rustc-env={VARIABLE}={}", object.display());
}

/// Where `cargo xtask build` puts it.
fn default_object() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/bpf/prestack-bench.bpf.o")
}
