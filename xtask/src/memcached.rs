//! The memcached of another Debian release, with the C library and whatever else it is linked with there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    archive::{self, Archive},
    packages::{self, Requirement},
    process,
};

const PACKAGE: &str = "memcached";

const REQUIREMENTS: &[Requirement] = &[
    Requirement::file(archive::KEYRING, "debian-archive-keyring"),
    Requirement::program("patchelf", "patchelf"),
];

/// Where the packages have their files.
const PROGRAM: &str = "usr/bin/memcached";
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// What it takes to fetch one.
pub fn requirements() -> Result<()> {
    packages::provide(REQUIREMENTS.iter())
}

/// The path of the suite's memcached. One that has been downloaded before stays.
pub fn fetch(suite: &str) -> Result<PathBuf> {
    requirements()?;
    let directory = process::workspace().join("target/memcached");
    let root = directory.join(suite);
    if !root.exists() {
        let unfinished = directory.join(format!("{suite}.new"));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)
                .with_context(|| format!("cannot remove {}", unfinished.display()))?;
        }
        let archive = Archive::open(suite, directory.join(format!("{suite}.apt")))?;
        archive.unpack(&packages_of(&archive)?, &unfinished)?;
        // It would else be run with the libraries of this machine. Its code is left as it is.
        link(&unfinished, &root)?;
        fs::rename(&unfinished, &root)
            .with_context(|| format!("cannot make {}", root.display()))?;
    }
    Ok(root.join(PROGRAM))
}

/// memcached's package, and those of the libraries that it depends on, directly or not.
fn packages_of(archive: &Archive) -> Result<Vec<String>> {
    let mut found = vec![PACKAGE.to_owned()];
    let mut at = 0;
    while let Some(package) = found.get(at) {
        let libraries = archive.dependencies(package)?;
        at += 1;
        for library in libraries.into_iter().filter(|name| is_library(name)) {
            if !found.contains(&library) {
                found.push(library);
            }
        }
    }
    Ok(found)
}

fn is_library(package: &str) -> bool {
    package.starts_with("lib") || package.starts_with("zlib")
}

/// Writes into the program in `unpacked` where loader and libraries will be, once all is in `root`.
fn link(unpacked: &Path, root: &Path) -> Result<()> {
    process::run(
        Command::new("patchelf")
            .arg("--set-interpreter")
            .arg(root.join(LOADER))
            .args(["--force-rpath", "--set-rpath"])
            .arg(root.join(LIBRARIES))
            .arg(unpacked.join(PROGRAM)),
    )
}
