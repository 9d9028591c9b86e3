//! Runs the tests that need a kernel in a virtual machine, on the kernel of a Debian release.

mod image;
mod kernel;
mod qemu;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use prestack_vm_init::{PLAN, PROGRAMS, Plan, Test};
use tempfile::NamedTempFile;

use crate::{
    archive,
    build::{self, Built},
    packages::{self, Requirement},
    process, test,
};
use image::Image;
use kernel::Kernel;

/// The package whose integration tests run in the machine.
const TESTS: &str = "prestack-tests";

/// The machine's first process.
const INIT: &str = "prestack-vm-init";

/// Programs the tests may use, beside themselves and prestack.
const TOOLS: [&str; 13] = [
    "cat",
    "ethtool",
    "ip",
    "kill",
    "memcached",
    "nsenter",
    "sh",
    "sleep",
    "ss",
    "sysctl",
    "tc",
    "tcpdump",
    "unshare",
];

const REQUIREMENTS: &[Requirement] = &[
    Requirement::program("qemu-system-x86_64", "qemu-system-x86"),
    Requirement::file(archive::KEYRING, "debian-archive-keyring"),
    Requirement::program("depmod", "kmod"),
    Requirement::program("ethtool", "ethtool"),
    Requirement::program("ip", "iproute2"),
    Requirement::program("memcached", "memcached"),
    Requirement::program("sysctl", "procps"),
    Requirement::program("tcpdump", "tcpdump"),
];

/// Accounts of the machine: memcached refuses to run as root, and tcpdump gives root up.
const PASSWD: &str = "root:x:0:0::/:/bin/sh\nmemcache:x:1:1::/:/bin/sh\ntcpdump:x:2:2::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n";
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n";
const GROUP: &str = "root:x:0:\nmemcache:x:1:\ntcpdump:x:2:\nnogroup:x:65534:\n";

/// Options of `cargo xtask vmtest`.
#[derive(Args)]
pub struct Options {
    /// Series of the kernel
    #[arg(long, value_enum)]
    kernel: kernel::Series,
    /// Run this test program only (repeatable); all of the prestack-tests package otherwise
    #[arg(long = "test", value_name = "NAME")]
    tests: Vec<String>,
    /// Minutes after which the machine is stopped and the tests have failed: in software emulation all
    /// tests may take two hours
    #[arg(long, default_value_t = 20, value_name = "MINUTES")]
    timeout: u64,
    /// Passed to every test program: a filter, --nocapture and the like
    #[arg(last = true)]
    args: Vec<String>,
}

/// What it takes to boot a machine.
pub fn requirements() -> Result<()> {
    packages::provide(REQUIREMENTS.iter())
}

/// Boots the machine and runs the tests in it.
pub fn run(options: &Options) -> Result<()> {
    requirements()?;
    let directory = process::workspace().join("target/vm");
    let kernel = kernel::fetch(options.kernel, &directory)?;
    let names = selected_tests(&options.tests)?;
    let mut selection = vec!["--bin", INIT];
    selection.extend(names.iter().flat_map(|name| ["--test", name]));
    let built = build::for_tests(&selection)?;

    let mut image = system(&built)?;
    let plan = Plan {
        modules: add_modules(&mut image, &kernel)?,
        tests: add_tests(&mut image, &built, &names, &options.args)?,
    };
    image.text(PLAN, &serde_json::to_string(&plan)?);

    // A file of our own: others may boot machines from this checkout at the same time.
    let mut initramfs = NamedTempFile::new_in(&directory)
        .with_context(|| format!("cannot write in {}", directory.display()))?;
    image.write(&mut initramfs)?;
    let timeout = Duration::from_secs(60 * options.timeout);
    qemu::run(&kernel.image, initramfs.path(), &names, timeout)
}

/// Names of the tests to run.
fn selected_tests(wanted: &[String]) -> Result<Vec<String>> {
    let known = test::integration_tests(Some(TESTS))?;
    if let Some(name) = wanted.iter().find(|name| !known.contains(name)) {
        bail!("{TESTS} has no test {name}; it has {}", known.join(", "));
    }
    Ok(if wanted.is_empty() {
        known
    } else {
        wanted.to_vec()
    })
}

/// The machine without what differs from run to run.
fn system(built: &Built) -> Result<Image> {
    let mut image = Image::default();
    image.text("/etc/passwd", PASSWD);
    image.text("/etc/group", GROUP);
    image.text("/etc/hosts", HOSTS);
    for link in ["/bin", "/sbin", "/usr/sbin"] {
        image.link(link, PROGRAMS);
    }
    image.link("/var/run", "/run");
    image.program("/init", built.program(INIT)?)?;
    image.program(format!("{PROGRAMS}/prestack"), built.program("prestack")?)?;
    for tool in TOOLS {
        let path = process::find(tool).with_context(|| format!("{tool} is not installed"))?;
        image.program(format!("{PROGRAMS}/{tool}"), &path)?;
    }
    Ok(image)
}

fn add_modules(image: &mut Image, kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let mut modules = Vec::new();
    for original in kernel.modules()? {
        let name = original.file_name().context("a module has no name")?;
        let path = Path::new("/modules").join(name);
        image.file(&path, &original);
        modules.push(path);
    }
    Ok(modules)
}

fn add_tests(
    image: &mut Image,
    built: &Built,
    names: &[String],
    args: &[String],
) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for name in names {
        let program = PathBuf::from(format!("/tests/{name}"));
        image.program(&program, built.test(name)?)?;
        let own = test::options(name).into_iter().map(str::to_owned);
        tests.push(Test {
            name: name.clone(),
            program,
            args: own.chain(args.iter().cloned()).collect(),
        });
    }
    Ok(tests)
}
