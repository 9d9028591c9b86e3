//! The machine's file system: an archive that the kernel unpacks into memory at boot.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use cpio::newc::{self, Builder, ModeFileType};

use crate::process;

const UNWRITABLE: &str = "cannot write the machine's file system";

/// Files by their absolute paths in the machine; a directory sorts before what is in it.
#[derive(Default)]
pub struct Image {
    entries: BTreeMap<PathBuf, Entry>,
}

enum Entry {
    Directory,
    /// A copy of a file of this machine.
    File(PathBuf),
    Text(String),
    Link(String),
    /// A character device, by its numbers.
    Device(u32, u32),
}

impl Image {
    /// Adds a file with this text.
    pub fn text(&mut self, path: &str, text: &str) {
        self.add(Path::new(path), Entry::Text(text.to_owned()));
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.add(Path::new(path), Entry::Link(target.to_owned()));
    }

    /// Adds a copy of a file of this machine.
    pub fn file(&mut self, path: &Path, original: &Path) {
        self.add(path, Entry::File(original.to_owned()));
    }

    /// Adds a copy of a program of this machine, and of the libraries it is linked with, which
    /// have to be at the same place in both.
    pub fn program(&mut self, path: impl AsRef<Path>, original: &Path) -> Result<()> {
        self.file(path.as_ref(), original);
        let libraries = process::output(Command::new("ldd").arg(original))
            .with_context(|| format!("cannot tell the libraries of {}", original.display()))?;
        for library in libraries
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            self.file(Path::new(library), Path::new(library));
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, entry: Entry) {
        for directory in path.ancestors().skip(1) {
            self.entries
                .entry(directory.to_owned())
                .or_insert(Entry::Directory);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Writes the archive.
    pub fn write(mut self, to: impl Write) -> Result<()> {
        // The kernel opens it for the first process, before /dev is mounted.
        self.add(Path::new("/dev/console"), Entry::Device(5, 1));
        let mut archive = BufWriter::new(to);
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            let Some(name) = path.to_str().and_then(|path| path.strip_prefix('/')) else {
                continue;
            };
            if !name.is_empty() {
                entry
                    .write(Builder::new(name).ino(number), &mut archive)
                    .with_context(|| format!("cannot put {} into the image", path.display()))?;
            }
        }
        newc::trailer(&mut archive).context(UNWRITABLE)?;
        archive.flush().context(UNWRITABLE)
    }
}

impl Entry {
    fn write(&self, builder: Builder, archive: &mut impl Write) -> Result<()> {
        match self {
            Self::Directory => {
                let builder = builder
                    .mode(0o755)
                    .set_mode_file_type(ModeFileType::Directory);
                builder.write(archive, 0).finish()?;
            }
            Self::File(original) => {
                let size = fs::metadata(original)?.len().try_into()?;
                let builder = builder
                    .mode(0o755)
                    .set_mode_file_type(ModeFileType::Regular);
                let mut writer = builder.write(archive, size);
                io::copy(&mut File::open(original)?, &mut writer)?;
                writer.finish()?;
            }
            Self::Text(text) => {
                let builder = builder
                    .mode(0o644)
                    .set_mode_file_type(ModeFileType::Regular);
                let mut writer = builder.write(archive, text.len().try_into()?);
                writer.write_all(text.as_bytes())?;
                writer.finish()?;
            }
            Self::Link(target) => {
                let builder = builder
                    .mode(0o777)
                    .set_mode_file_type(ModeFileType::Symlink);
                let mut writer = builder.write(archive, target.len().try_into()?);
                writer.write_all(target.as_bytes())?;
                writer.finish()?;
            }
            Self::Device(major, minor) => {
                let builder = builder.mode(0o600).set_mode_file_type(ModeFileType::Char);
                let builder = builder.rdev_major(*major).rdev_minor(*minor);
                builder.write(archive, 0).finish()?;
            }
        }
        Ok(())
    }
}
