//! Tells the crate where the files are that it embeds.

use std::{
    env,
    path::{Path, PathBuf},
    process::exit,
};

/// What is embedded: the variable that says where it is, for the crate and for those who have it
/// elsewhere, what it is, and where `cargo xtask build` puts it.
const EMBEDDED: [(&str, &str, &str); 2] = [
    (
        "PRESTACK_BPF_OBJECT",
        "BPF object",
        "target/bpf/prestack.bpf.o",
    ),
    (
        "PRESTACK_REUSEPORT_LIBRARY",
        "library to preload",
        "target/reuseport/libprestack_reuseport.so",
    ),
];

fn main() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (variable, what, built) in EMBEDDED {
        println!("cargo::rerun-if-env-changed={variable}");
        let file = env::var_os(variable).map_or_else(|| workspace.join(built), PathBuf::from);
        println!("cargo::rerun-if-changed={}", file.display());
        if !file.is_file() {
            println!(
                "cargo::error=there is no {what} at {}: run `cargo xtask build`",
                file.display()
            );
            exit(1);
        }
        let file = file.canonicalize().unwrap_or(file);
        println!("cargo::rustc-env={variable}={}", file.display());
    }
}
