//! What has to be so before anything is loaded, each with its own message when it is not.

use std::{
    fs, io,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use nix::sys::utsname::uname;

use crate::{
    host::{self, Host, LocalAddress},
    links,
    netlink::{self, Interface},
    settings::Options,
    state::Instance,
    units::InstanceName,
};

/// Oldest kernel that is supported.
pub const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// How long the kernel is given to free the maps of an instance that has ended.
const FREE_TIME: Duration = Duration::from_secs(2);

/// Longest name of an interface (`IFNAMSIZ`, less the NUL).
const LONGEST_NAME: usize = 15;

/// A reason not to start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PreflightError {
    #[error("prestack needs privileges that it does not have ({missing}): run it as root")]
    Privileges { missing: String },
    #[error(
        "this kernel is {release}, and prestack needs {}.{} or newer: upgrade the kernel",
        OLDEST_KERNEL.0, OLDEST_KERNEL.1
    )]
    OldKernel { release: String },
    #[error("there is no interface '{name}' in this network namespace (there are: {available})")]
    NoSuchInterface { name: String, available: String },
    #[error(
        "interface {name} carries no Ethernet frames, and prestack understands no others: give one \
         that does"
    )]
    NotEthernet { name: String },
    #[error("interface {name} is given twice, under two of its names: give it once")]
    TwoNames { name: String },
    #[error(
        "interface {upper} is on top of {lower}, so that what goes through {upper} would be taken \
         twice: of the two give the one alone through which all of memcached's clients come, mostly \
         {lower}, but a bond and not its ports"
    )]
    Stacked { upper: String, lower: String },
    #[error(
        "interface {interface} already has an XDP program, {program} (id {id}): remove it with `ip \
         link set dev {interface} xdp off`, or stop what attached it"
    )]
    ForeignXdp {
        interface: String,
        program: String,
        id: u32,
    },
    #[error(
        "interface {interface} is already served by the prestack instance {other}: stop that one \
         with `prestack detach --instance {other}`"
    )]
    OtherInstance {
        interface: String,
        other: InstanceName,
    },
    #[error(
        "{address}, given with --address, is not an address of this host (there are: {available})"
    )]
    ForeignAddress { address: IpAddr, available: String },
    #[error(
        "--memory {given} is more than this host has to spare, which is {available}: give less, or \
         free some"
    )]
    TooMuchMemory {
        given: ByteSize,
        available: ByteSize,
    },
    #[error("cannot ask the kernel about {what}: {source}")]
    Unanswered { what: String, source: io::Error },
}

/// Capabilities without which a command cannot do its work: number, name, whether `CAP_SYS_ADMIN`
/// stands in for it.
const CAPABILITIES: [(u32, &str, bool); 5] = [
    (12, "CAP_NET_ADMIN", false),
    (19, "CAP_SYS_PTRACE", false),
    (21, "CAP_SYS_ADMIN", false),
    (38, "CAP_PERFMON", true),
    (39, "CAP_BPF", true),
];

/// Checks that this process may load and attach programs, use maps by number, and see other
/// users' sockets.
///
/// # Errors
/// It may not.
pub fn privileges() -> Result<(), PreflightError> {
    let status = fs::read_to_string("/proc/thread-self/status").map_err(|source| {
        PreflightError::Unanswered {
            what: "the privileges of this process".into(),
            source,
        }
    })?;
    let missing = missing_capabilities(effective_capabilities(&status));
    if missing.is_empty() {
        return Ok(());
    }
    Err(PreflightError::Privileges {
        missing: missing.join(", "),
    })
}

fn effective_capabilities(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

fn missing_capabilities(held: u64) -> Vec<&'static str> {
    let has = |number| held >> number & 1 == 1;
    CAPABILITIES
        .iter()
        .filter(|(number, _, by_admin)| !(has(*number) || *by_admin && has(21)))
        .map(|(_, name, _)| *name)
        .collect()
}

/// Checks that the kernel is new enough.
///
/// # Errors
/// It is older than [`OLDEST_KERNEL`].
pub fn kernel() -> Result<(), PreflightError> {
    let names = uname().map_err(|error| PreflightError::Unanswered {
        what: "its version".into(),
        source: error.into(),
    })?;
    let release = names.release().to_string_lossy();
    match version(&release) {
        Some(version) if version < OLDEST_KERNEL => Err(PreflightError::OldKernel {
            release: release.into_owned(),
        }),
        // A release that cannot be read is tried: the verifier has the last word.
        _ => Ok(()),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Checks that there is room for the cache. The kernel would find out as well, but only after it
/// had taken all the memory there is.
///
/// # Errors
/// There is not.
pub fn memory(given: ByteSize) -> Result<(), PreflightError> {
    let deadline = Instant::now() + FREE_TIME;
    loop {
        let meminfo =
            fs::read_to_string("/proc/meminfo").map_err(|source| PreflightError::Unanswered {
                what: "its memory".into(),
                source,
            })?;
        let available = available_memory(&meminfo).unwrap_or(given);
        if available >= given {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(PreflightError::TooMuchMemory { given, available });
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn available_memory(meminfo: &str) -> Option<ByteSize> {
    let lines = &mut meminfo.lines();
    let amount = lines.find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes = amount.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(ByteSize::kib(kibibytes))
}

/// Looks up the interfaces.
///
/// # Errors
/// There is no such interface, or prestack cannot read its frames.
pub fn interfaces(options: &Options) -> Result<Vec<Interface>, PreflightError> {
    options
        .interfaces
        .iter()
        .map(|name| interface(name))
        .collect()
}

/// Looks up an interface.
///
/// # Errors
/// There is none of this name, or prestack cannot read its frames.
pub fn interface(name: &str) -> Result<Interface, PreflightError> {
    let found = if (1..=LONGEST_NAME).contains(&name.len()) {
        netlink::interface(name).map_err(|source| PreflightError::Unanswered {
            what: format!("interface {name}"),
            source,
        })?
    } else {
        None
    };
    match found {
        Some(found) if found.ethernet => Ok(found),
        Some(_) => Err(PreflightError::NotEthernet { name: name.into() }),
        None => Err(PreflightError::NoSuchInterface {
            name: name.into(),
            available: host::interface_names(),
        }),
    }
}

/// The names of interfaces by which the kernel lists them: each may have been given by an alternative one.
///
/// # Errors
/// One of them was given twice.
pub fn kernel_names(interfaces: &[Interface]) -> Result<Vec<String>, PreflightError> {
    let names: Vec<_> = interfaces.iter().map(|at| at.name.clone()).collect();
    for (at, name) in names.iter().enumerate() {
        if names[..at].contains(name) {
            return Err(PreflightError::TwoNames { name: name.clone() });
        }
    }
    Ok(names)
}

/// Checks that none of these interfaces is on top of another one.
///
/// # Errors
/// One is.
pub fn not_stacked(names: &[String]) -> Result<(), PreflightError> {
    let devices = netlink::devices().map_err(|source| PreflightError::Unanswered {
        what: "the interfaces of this host".into(),
        source,
    })?;
    match links::stacked(&devices, names) {
        Some((upper, lower)) => Err(PreflightError::Stacked { upper, lower }),
        None => Ok(()),
    }
}

/// Checks that nobody else's XDP program is on the interfaces; `own` are this instance's.
///
/// # Errors
/// There is one.
pub fn no_other_xdp(
    instance: &Instance,
    interfaces: &[Interface],
    own: &[u32],
) -> Result<(), PreflightError> {
    for Interface { name, xdp, .. } in interfaces {
        let Some(&id) = xdp.iter().find(|id| !own.contains(id)) else {
            continue;
        };
        if let Some(other) = instance.other_with_program(id) {
            return Err(PreflightError::OtherInstance {
                interface: name.clone(),
                other,
            });
        }
        return Err(PreflightError::ForeignXdp {
            interface: name.clone(),
            program: program_name(id),
            id,
        });
    }
    Ok(())
}

/// The name of a loaded program.
fn program_name(id: u32) -> String {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "without a name".into())
}

/// The host's addresses and links, after checking that the chosen ones are among them.
///
/// # Errors
/// One is not.
pub fn addresses(options: &Options, interfaces: &[Interface]) -> Result<Host, PreflightError> {
    let host = Host::look(interfaces).map_err(|source| PreflightError::Unanswered {
        what: "the addresses and interfaces of this host".into(),
        source,
    })?;
    let local = &host.local;
    for &address in &options.addresses {
        if !local.iter().any(|here| here.address() == address) {
            return Err(PreflightError::ForeignAddress {
                address,
                available: host::list(local.iter().map(LocalAddress::address)),
            });
        }
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(version("6.1.0-45-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("5.10.0"), Some((5, 10)));
        assert_eq!(version("7.2-rc1"), Some((7, 2)));
        assert_eq!(version("next"), None);
        assert!(version("6.0.19") < Some(OLDEST_KERNEL) && version("7.0") > Some(OLDEST_KERNEL));
    }

    #[test]
    fn available_memory_is_read() {
        let meminfo = "MemTotal:       24000 kB\nMemAvailable:    1024 kB\nBuffers: 1 kB\n";
        assert_eq!(available_memory(meminfo), Some(ByteSize::mib(1)));
        assert_eq!(available_memory("MemTotal: 24000 kB\n"), None);
        assert!(memory(ByteSize::kib(4)).is_ok());
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(
            effective_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"),
            (1 << 41) - 1
        );
        assert!(missing_capabilities(u64::MAX).is_empty());
        assert_eq!(missing_capabilities(0).len(), 5);
        // CAP_SYS_ADMIN includes what was split off from it.
        assert!(missing_capabilities(1 << 12 | 1 << 19 | 1 << 21).is_empty());
        assert_eq!(missing_capabilities(!(1 << 12)), ["CAP_NET_ADMIN"]);
    }

    #[test]
    fn an_interface_is_given_under_one_name() {
        let lo = interface(host::LOOPBACK).expect("there is one");
        let given = [lo.clone(), lo];
        assert_eq!(kernel_names(&given[..1]).expect("once"), ["lo"]);
        let twice = kernel_names(&given).unwrap_err().to_string();
        assert!(twice.contains("lo is given twice"), "{twice}");
    }

    #[test]
    fn names_that_no_interface_can_have_are_missing_interfaces() {
        for name in ["", "a-name-that-is-too-long", "no-such-if"] {
            assert!(
                matches!(interface(name), Err(PreflightError::NoSuchInterface { .. })),
                "{name}"
            );
        }
    }
}
