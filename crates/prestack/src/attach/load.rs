//! Loads the BPF object into the kernel.

use std::{fmt, fs, io, path::Path};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapData, MapError},
    programs::{CgroupSock, ProgramError, ProgramFd, SchedClassifier, Xdp},
};
use bytesize::ByteSize;
use nix::libc;
use prestack_abi::{config::RATED_SOURCES, flow::Finding, names};

use crate::{
    bpffs,
    maps::MapIds,
    object::OBJECT,
    programs::{StepsError, StillWanted, end_flow, load, load_hits, load_steps},
    settings::Options,
    socket_fields,
};

/// Lines of the verifier's log that are shown.
const LOG_LINES: usize = 20;

/// The programs and maps cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum LoadError {
    #[error("the kernel refused program {program}: {source}\nend of the verifier's log:\n{log}")]
    Refused {
        program: &'static str,
        source: io::Error,
        log: String,
    },
    #[error("the kernel refused program {program}: {source}")]
    Program {
        program: &'static str,
        source: Box<ProgramError>,
    },
    #[error("the kernel could not make map {map} for {purpose}: {source}{}", remedy(.source, .purpose))]
    Map {
        map: String,
        purpose: Purpose,
        source: io::Error,
    },
    #[error("the BPF object inside this binary cannot be loaded: {0}")]
    Object(Box<EbpfError>),
    #[error("the BPF object inside this binary has no {0}: build it anew with `cargo xtask build`")]
    Missing(&'static str),
    #[error("told to end before everything was loaded")]
    Interrupted,
    #[error("cannot ask the kernel about what it has loaded: {0}")]
    Info(Box<dyn std::error::Error + Send + Sync>),
}

/// What a map is for that is as large as it is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// The cache.
    Cache(ByteSize),
    /// So many TCP connections.
    Flows(u32),
}

impl Purpose {
    /// That of a map, by its name. Maps whose size is not asked for make room if the cache does.
    fn of(map: &str, options: &Options) -> Self {
        match map {
            names::FLOW_SETS | names::FLOWS | names::TRANSLATIONS | names::ANSWER_RESTS => {
                Self::Flows(options.max_flows())
            }
            _ => Self::Cache(options.memory),
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cache(memory) => write!(f, "a cache of {memory}"),
            Self::Flows(count) => write!(f, "{count} TCP connections"),
        }
    }
}

/// What helps if there was not enough memory.
fn remedy(error: &io::Error, purpose: &Purpose) -> &'static str {
    match (error.raw_os_error(), purpose) {
        (Some(libc::ENOMEM), Purpose::Cache(_)) => "; give less with --memory",
        (Some(libc::ENOMEM), Purpose::Flows(_)) => "; give fewer with --max-flows",
        _ => "",
    }
}

/// The loaded programs and maps; they go when this and everything attached is gone.
#[derive(Debug)]
pub struct Datapath {
    ebpf: Ebpf,
    /// The maps' numbers.
    pub maps: MapIds,
    /// The programs' numbers.
    pub programs: Vec<u32>,
}

impl Datapath {
    /// Loads the programs, with maps of the sizes that are asked for; those that are pinned in the folder
    /// `adopted` are gone on with, and must have these sizes.
    ///
    /// # Errors
    /// The kernel refused, or they are not wanted any more.
    pub fn load(
        options: &Options,
        adopted: Option<&Path>,
        wanted: StillWanted<'_>,
    ) -> Result<Self, LoadError> {
        let pinned = match adopted {
            Some(folder) => bpffs::names(folder).map_err(info)?,
            None => Vec::new(),
        };
        let mut loader = EbpfLoader::new();
        loader.override_global(names::SOCKET_FIELDS, socket_fields::of_this_kernel(), true);
        for (map, elements) in sizes(options) {
            loader.map_max_entries(map, elements);
        }
        for (map, folder) in pinned.iter().zip(adopted.into_iter().cycle()) {
            loader.map_pin_path(map, folder.join(map));
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| match error {
            EbpfError::MapError(MapError::CreateError { name, io_error }) => LoadError::Map {
                purpose: Purpose::of(&name, options),
                map: name,
                source: io_error,
            },
            error => LoadError::Object(Box::new(error)),
        })?;
        let maps = MapIds {
            config: map_id(&ebpf, names::CONFIG)?,
            backends: map_id(&ebpf, names::BACKENDS)?,
            index: map_id(&ebpf, names::INDEX)?,
            blocks: map_id(&ebpf, names::BLOCKS)?,
            control: map_id(&ebpf, names::CONTROL)?,
            flows: map_id(&ebpf, names::FLOWS)?,
            stats: map_id(&ebpf, names::STATS)?,
            sockets: map_id(&ebpf, names::SOCKETS)?,
            flow_sets: map_id(&ebpf, names::FLOW_SETS)?,
            translations: map_id(&ebpf, names::TRANSLATIONS)?,
        };
        let rx: &mut Xdp = program(&mut ebpf, names::RX)?;
        load(names::RX, wanted, || rx.load())?;
        let rx = rx.info().map_err(info)?.id();
        let mut programs = vec![rx];
        for name in [names::TX, names::LO, names::SWEEP] {
            let classifier: &mut SchedClassifier = program(&mut ebpf, name)?;
            load(name, wanted, || classifier.load())?;
            programs.push(classifier.info().map_err(info)?.id());
        }
        load_steps(&mut ebpf, wanted)?;
        if options.tcp_hits {
            load_hits(&mut ebpf, wanted)?;
        }
        // Told while the last one was loaded.
        if !wanted() {
            return Err(LoadError::Interrupted);
        }
        Ok(Self {
            ebpf,
            maps,
            programs,
        })
    }

    /// Closes a TCP flow that has no socket any more, or stops waiting for one that is idle; false if it is another by
    /// now.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn end_flow(&mut self, found: &Finding) -> Result<bool, LoadError> {
        let sweep: &mut SchedClassifier = program(&mut self.ebpf, names::SWEEP)?;
        end_flow(sweep, found).map_err(|error| refused(names::SWEEP, error))
    }

    /// Every map with its name.
    pub(super) fn all_maps(&self) -> impl Iterator<Item = (&str, &Map)> {
        self.ebpf.maps()
    }

    /// The number of the XDP program.
    #[must_use]
    pub fn rx_number(&self) -> u32 {
        self.programs[0]
    }

    /// The descriptor of the XDP program.
    pub(super) fn rx_fd(&mut self) -> Result<&ProgramFd, LoadError> {
        let rx = self.rx()?;
        rx.fd().map_err(|error| refused(names::RX, error))
    }

    /// The descriptor of a TC program.
    pub(super) fn classifier_fd(&mut self, name: &'static str) -> Result<&ProgramFd, LoadError> {
        let classifier = self.classifier(name)?;
        classifier.fd().map_err(|error| refused(name, error))
    }

    /// The XDP program.
    pub(super) fn rx(&mut self) -> Result<&mut Xdp, LoadError> {
        program(&mut self.ebpf, names::RX)
    }

    /// The program for sockets that are released. It is not loaded: not every kernel takes it.
    pub(super) fn released(&mut self) -> Result<&mut CgroupSock, LoadError> {
        program(&mut self.ebpf, names::RELEASED)
    }

    /// A TC program.
    pub(super) fn classifier(
        &mut self,
        name: &'static str,
    ) -> Result<&mut SchedClassifier, LoadError> {
        program(&mut self.ebpf, name)
    }
}

/// How many elements maps have that are made as large as it is asked for.
#[must_use]
pub fn sizes(options: &Options) -> [(&'static str, u32); 7] {
    let buckets = options.extent.buckets();
    let sources = if options.rate_limit.is_some() {
        RATED_SOURCES
    } else {
        1
    };
    let translations = if options.tcp_hits {
        options.max_flows()
    } else {
        1
    };
    let rests = if options.has_long_answers() {
        translations
    } else {
        1
    };
    [
        (names::INDEX, buckets),
        (names::BLOCKS, buckets),
        (names::RATES, sources),
        (names::FLOW_SETS, options.flow_sets),
        (names::FLOWS, options.max_flows()),
        (names::TRANSLATIONS, translations),
        (names::ANSWER_RESTS, rests),
    ]
}

impl From<StepsError> for LoadError {
    fn from(error: StepsError) -> Self {
        match error {
            StepsError::Missing(name) => Self::Missing(name),
            StepsError::Refused { name, source } => refused(name, *source),
            StepsError::Interrupted => Self::Interrupted,
            error @ StepsError::Map { .. } => info(error),
        }
    }
}

fn info<E: std::error::Error + Send + Sync + 'static>(error: E) -> LoadError {
    LoadError::Info(Box::new(error))
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    let program = ebpf.program_mut(name).ok_or(LoadError::Missing(name))?;
    program.try_into().map_err(|_| LoadError::Missing(name))
}

fn map_id(ebpf: &Ebpf, name: &'static str) -> Result<u32, LoadError> {
    let map = ebpf.map(name).ok_or(LoadError::Missing(name))?;
    let (Map::Array(data) | Map::PerCpuArray(data) | Map::HashMap(data)) = map else {
        return Err(LoadError::Missing(name));
    };
    MapData::info(data).map(|map| map.id()).map_err(info)
}

fn refused(program: &'static str, error: ProgramError) -> LoadError {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => LoadError::Refused {
            program,
            source: io_error,
            log: tail(&verifier_log.to_string(), LOG_LINES),
        },
        error => LoadError::Program {
            program,
            source: Box::new(error),
        },
    }
}

/// The last `lines` lines of a text, indented.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let from = all.len().saturating_sub(lines);
    let shown: Vec<_> = all[from..].iter().map(|line| format!("  {line}")).collect();
    if shown.is_empty() {
        return format!(
            "  (empty{})",
            if locked_down() {
                "; the kernel is locked down"
            } else {
                ""
            }
        );
    }
    shown.join("\n")
}

/// Whether kernel lockdown forbids what BPF programs need.
fn locked_down() -> bool {
    fs::read_to_string("/sys/kernel/security/lockdown").is_ok_and(|text| !text.contains("[none]"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn it_is_said_of_what_to_give_less() {
        let options = Settings {
            interface: vec!["vs".into()],
            tcp_hits: Some(true),
            max_flows: Some(65_536),
            ..Settings::default()
        };
        let options = options.resolve("").expect("in range");
        let error = |map: &str, number| {
            let error = LoadError::Map {
                map: map.into(),
                purpose: Purpose::of(map, &options),
                source: io::Error::from_raw_os_error(number),
            };
            error.to_string()
        };
        for (map, _) in sizes(&options) {
            let option = match map {
                names::INDEX | names::BLOCKS | names::RATES => "--memory",
                _ => {
                    "65536 TCP connections: Cannot allocate memory (os error 12); give fewer with --max-flows"
                }
            };
            let said = error(map, libc::ENOMEM);
            assert!(said.contains(option), "{said}");
        }
        assert!(error(names::STATS, libc::ENOMEM).contains("256.0 MiB"));
        assert!(!error(names::FLOWS, libc::EPERM).contains("--"));
    }

    #[test]
    fn the_end_of_the_log_is_shown() {
        assert_eq!(tail("one\ntwo\n\nthree\n", 2), "  two\n  three");
        assert!(tail("", 2).contains("empty"));
    }
}
