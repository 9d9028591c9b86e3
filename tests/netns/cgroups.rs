//! prestack in a cgroup namespace of its own, as containers have it: its program for the end of sockets does
//! not run for what is outside.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use prestack_testbed::{Memcached, MemcachedOptions, Prestack, Testbed, binary};
use prestack_tests::stage::LASTING;

/// A cgroup for a test, and a folder in which it is reached.
struct Cgroup {
    folder: PathBuf,
    name: String,
}

impl Cgroup {
    fn new() -> Result<Self> {
        let name = format!("prestack-test-{}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir_all(folder.join("mount"))?;
        let cgroup = Self { folder, name };
        let none = None::<&str>;
        let to = cgroup.folder.join("mount");
        mount(none, &to, Some("cgroup2"), MsFlags::empty(), none).context("mounting cgroup2")?;
        fs::create_dir_all(cgroup.path())?;
        Ok(cgroup)
    }

    fn path(&self) -> PathBuf {
        self.folder.join("mount").join(&self.name)
    }

    /// A program that does what `binary` does; as `run`, in the cgroup, which is the root of its namespace.
    fn wrap(&self, binary: &Path) -> Result<PathBuf> {
        let script = self.folder.join("prestack");
        let (path, binary) = (self.path(), binary.display());
        let procs = path.join("cgroup.procs");
        fs::write(
            &script,
            format!(
                "#!/bin/sh\n[ \"$1\" = run ] || exec {binary} \"$@\"\necho $$ > {}\nexec unshare --cgroup {binary} \"$@\"\n",
                procs.display()
            ),
        )?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(script)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.path());
        let _ = umount2(&self.folder.join("mount"), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The `problem` lines of an instance whose memcached is outside of its cgroup.
fn problems(bed: &Testbed, binary: PathBuf) -> Result<Vec<String>> {
    let dev = &bed.links[0].server_dev;
    let args = [&LASTING[..], &["--interface", dev]].concat();
    let mut prestack = Prestack::start_binary(binary, &bed.server, &args)?;
    let status = prestack.instance().command(&["status"])?;
    prestack.stop()?;
    let lines = status.lines().filter(|line| line.starts_with("problem"));
    Ok(lines.map(str::to_owned).collect())
}

#[test]
fn a_cgroup_namespace_without_memcached_is_a_problem() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let cgroup = Cgroup::new()?;
    let said = problems(&bed, cgroup.wrap(&binary()?)?)?;
    ensure!(
        said.len() == 1 && said[0].contains("--cgroupns=host"),
        "{said:?}"
    );
    let said = problems(&bed, binary()?)?;
    ensure!(said.is_empty(), "{said:?}");
    Ok(())
}
