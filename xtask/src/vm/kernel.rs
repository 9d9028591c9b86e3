//! Debian's cloud kernels, by series.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{archive::Archive, process};

/// Depends on the newest kernel of its suite.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// What the kernel itself comes in. The name goes on with the version.
const KERNEL_PACKAGES: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

/// Modules that the tests need. What they depend on is found out.
const MODULES: [&str; 10] = [
    "8021q",
    "act_bpf",
    "cls_bpf",
    "dummy",
    "sch_ingress",
    "sch_netem",
    "tcp_diag",
    "tun",
    "udp_diag",
    "veth",
];

/// A series of kernels that prestack is tested on.
#[derive(Clone, Copy, ValueEnum)]
pub enum Series {
    /// The oldest that prestack supports
    #[value(name = "6.1")]
    V6_1,
    /// The first long-term series with TCX
    #[value(name = "6.12")]
    V6_12,
    /// The newest
    #[value(name = "7.2")]
    V7_2,
}

impl Series {
    fn number(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_2 => "7.2",
        }
    }

    /// Debian's suites that have it, or may have it one day; the likeliest first.
    fn suites(self) -> &'static [&'static str] {
        match self {
            Self::V6_1 => &["bookworm"],
            Self::V6_12 => &["trixie", "bookworm-backports"],
            Self::V7_2 => &["sid", "testing", "trixie-backports"],
        }
    }
}

/// An unpacked kernel.
pub struct Kernel {
    /// What to boot.
    pub image: PathBuf,
    /// The directory that `modules.dep` is in.
    modules: PathBuf,
}

/// The newest kernel of a series. A kernel that has been downloaded before stays.
pub fn fetch(series: Series, cache: &Path) -> Result<Kernel> {
    let number = series.number();
    let root = cache.join(format!("kernel-{number}"));
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    // Two at a time would unpack into one directory. The lock ends with this function.
    let lock = File::create(cache.join("lock")).context("cannot make a lock file")?;
    lock.lock().context("cannot lock the kernel cache")?;
    if !root.exists() {
        let unfinished = cache.join(format!("kernel-{number}.new"));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)
                .with_context(|| format!("cannot remove {}", unfinished.display()))?;
        }
        download(series, cache, &unfinished)?;
        fs::rename(&unfinished, &root)
            .with_context(|| format!("cannot make {}", root.display()))?;
    }
    Kernel::unpacked(&root).with_context(|| format!("remove {} and try again", root.display()))
}

fn download(series: Series, cache: &Path, to: &Path) -> Result<()> {
    let number = series.number();
    let mut elsewhere = Vec::new();
    for suite in series.suites() {
        println!("looking for Linux {number} in Debian {suite}");
        let attempt = (|| {
            let archive = Archive::open(suite, cache.join(suite))?;
            let version = archive.version(META_PACKAGE)?;
            if !version.starts_with(&format!("{number}.")) {
                bail!("{suite} has {version}");
            }
            println!("downloading Linux {version}");
            archive.unpack(&kernel_packages(&archive)?, to)?;
            index_modules(to)
        })();
        match attempt {
            Ok(()) => return Ok(()),
            Err(error) => elsewhere.push(format!("\n- {error:#}")),
        }
    }
    bail!(
        "no Linux {number} to be had from Debian:{}",
        elsewhere.concat()
    )
}

/// The packages that make up the kernel: they differ from release to release.
fn kernel_packages(archive: &Archive) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut unread = vec![META_PACKAGE.to_owned()];
    while let Some(package) = unread.pop() {
        for dependency in archive.dependencies(&package)? {
            if is_kernel_package(&dependency) && !found.contains(&dependency) {
                unread.push(dependency.clone());
                found.push(dependency);
            }
        }
    }
    Ok(found)
}

fn is_kernel_package(name: &str) -> bool {
    KERNEL_PACKAGES.iter().any(|prefix| {
        name.strip_prefix(prefix)
            .is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()))
    })
}

/// Writes `modules.dep`, which Debian leaves to the installation.
fn index_modules(root: &Path) -> Result<()> {
    // Newer releases have their modules in /usr/lib, where depmod finds them by this link.
    if !root.join("lib").exists() {
        symlink("usr/lib", root.join("lib")).context("cannot link lib to usr/lib")?;
    }
    let modules = only_entry(&root.join("lib/modules"))?;
    let release = modules.file_name().context("the kernel has no release")?;
    let depmod = process::find("depmod").context("depmod is not installed")?;
    process::output(Command::new(depmod).arg("--basedir").arg(root).arg(release))?;
    Ok(())
}

impl Kernel {
    fn unpacked(root: &Path) -> Result<Self> {
        let modules = only_entry(&root.join("lib/modules"))?;
        let release = modules.file_name().context("the kernel has no release")?;
        let mut name = std::ffi::OsString::from("vmlinuz-");
        name.push(release);
        let image = [root.join("boot").join(name), modules.join("vmlinuz")]
            .into_iter()
            .find(|image| image.exists())
            .with_context(|| format!("no vmlinuz in {}", root.display()))?;
        Ok(Self { image, modules })
    }

    /// Files of the modules to load, dependencies first.
    pub fn modules(&self) -> Result<Vec<PathBuf>> {
        let index = self.modules.join("modules.dep");
        let index = fs::read_to_string(&index)
            .with_context(|| format!("cannot read {}", index.display()))?;
        let files = load_order(&index, &MODULES);
        Ok(files
            .into_iter()
            .map(|file| self.modules.join(file))
            .collect())
    }
}

/// The lines of a `modules.dep` are `module: dependency dependency…`, all with paths, and list
/// all dependencies of the dependencies too, in an order that is right when read backwards.
/// A module that is not listed is taken to be built in.
fn load_order<'a>(index: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let mut order = Vec::new();
    for (module, dependencies) in index.lines().filter_map(|line| line.split_once(':')) {
        if !wanted.contains(&module_name(module)) {
            continue;
        }
        for file in dependencies.split_whitespace().rev().chain([module]) {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    order
}

fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}

fn only_entry(directory: &Path) -> Result<PathBuf> {
    let mut entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    match (entries.next(), entries.next()) {
        (Some(entry), None) => Ok(entry?.path()),
        _ => bail!("{} does not have exactly one entry", directory.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_load_first_and_once() {
        let index = "k/veth.ko.xz:\n\
                     k/8021q.ko.xz: k/garp.ko.xz k/mrp.ko.xz k/stp.ko.xz k/llc.ko.xz\n\
                     k/other.ko.xz: k/llc.ko.xz\n\
                     k/garp.ko.xz: k/stp.ko.xz k/llc.ko.xz\n";
        assert_eq!(
            load_order(index, &["garp", "8021q", "veth", "built_in"]),
            [
                "k/veth.ko.xz",
                "k/llc.ko.xz",
                "k/stp.ko.xz",
                "k/mrp.ko.xz",
                "k/garp.ko.xz",
                "k/8021q.ko.xz"
            ]
        );
    }

    #[test]
    fn kernel_packages_have_a_version() {
        assert!(is_kernel_package("linux-image-6.1.0-50-cloud-amd64"));
        assert!(is_kernel_package("linux-modules-7.2.13+deb14-cloud-amd64"));
        assert!(!is_kernel_package("linux-image-cloud-amd64"));
        assert!(!is_kernel_package("linux-base"));
    }
}
