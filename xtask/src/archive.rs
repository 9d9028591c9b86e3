//! Debian's package archive, any suite of it, without touching this machine's apt configuration.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::process;

/// What the archive's indices are signed with.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const MIRROR: &str = "http://deb.debian.org/debian";

/// A suite of the archive, with its index downloaded.
pub struct Archive {
    directory: PathBuf,
}

impl Archive {
    /// Downloads the index of a suite into a directory, which must have no spaces in its path.
    pub fn open(suite: &str, directory: PathBuf) -> Result<Self> {
        for part in ["lists/partial", "archives/partial"] {
            let part = directory.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        let source = format!("deb [arch=amd64 signed-by={KEYRING}] {MIRROR} {suite} main\n");
        let sources = directory.join("sources.list");
        fs::write(&sources, source)
            .with_context(|| format!("cannot write {}", sources.display()))?;
        let archive = Self { directory };
        process::output(
            archive
                .command("apt-get")
                .args(["--error-on=any", "update"]),
        )
        .with_context(|| format!("cannot read the index of Debian's suite {suite}"))?;
        Ok(archive)
    }

    /// The newest version of a package.
    pub fn version(&self, package: &str) -> Result<String> {
        let description = process::output(self.command("apt-cache").args([
            "show",
            "--no-all-versions",
            package,
        ]))?;
        let version = description
            .lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .with_context(|| format!("apt-cache tells no version of {package}"))?;
        Ok(version.to_owned())
    }

    /// The packages that a package depends on.
    pub fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let answer = process::output(self.command("apt-cache").args(["depends", package]))?;
        Ok(answer
            .lines()
            .filter_map(|line| {
                line.trim_start_matches([' ', '|'])
                    .strip_prefix("Depends: ")
            })
            .map(str::to_owned)
            .collect())
    }

    /// Downloads packages, and unpacks them into a directory.
    pub fn unpack(&self, packages: &[String], to: &Path) -> Result<()> {
        let downloads = self.directory.join("archives");
        let before = debs(&downloads)?;
        for old in before {
            fs::remove_file(&old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
        process::output(
            self.command("apt-get")
                .arg("download")
                .args(packages)
                .current_dir(&downloads),
        )?;
        for package in debs(&downloads)? {
            process::run(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .arg(&package)
                    .arg(to),
            )?;
        }
        Ok(())
    }

    /// An apt command that sees this suite only, and keeps its files here.
    fn command(&self, program: &str) -> Command {
        let here = self.directory.display();
        let options = [
            format!("Dir::Etc::SourceList={here}/sources.list"),
            "Dir::Etc::SourceParts=-".to_owned(),
            format!("Dir::State::Lists={here}/lists"),
            format!("Dir::Cache={here}"),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // apt's own user cannot write in a directory of ours.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let mut command = Command::new(program);
        for option in options {
            command.arg("-o").arg(option);
        }
        command
    }
}

fn debs(directory: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("cannot read {}", directory.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            found.push(path);
        }
    }
    Ok(found)
}
