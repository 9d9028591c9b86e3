//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use prestack_bench::{bench::BenchOptions, demo::DemoOptions};

use crate::{
    settings::Settings,
    units::{InstanceName, Span},
};

/// Exit status when there is no running instance to ask.
pub const NOT_RUNNING: u8 = 3;
/// Exit status of `status --check` when a memcached is not served.
pub const UNSERVED: u8 = 4;
/// Exit status of `status --check` when all is served, and there are problems.
pub const HAS_PROBLEMS: u8 = 5;

/// An in-kernel cache in front of stock memcached: GETs are answered by eBPF programs before the
/// network stack runs
#[derive(Parser, Debug)]
#[command(name = "prestack", version, max_term_width = 100)]
pub struct Cli {
    /// Say more on stderr; twice for everything
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Serve a memcached that runs on this host, until SIGINT or SIGTERM
    ///
    /// Finds the memcached processes behind the chosen ports, attaches to the interfaces and prints
    /// one line when it serves. What an earlier run of the same instance has left pinned is
    /// replaced, with an empty cache.
    Run(RunArgs),
    /// Show what the running instance serves
    Status(StatusArgs),
    /// Show what the datapath has counted
    Stats(StatsArgs),
    /// Show what is cached under a key
    Inspect(InspectArgs),
    /// Empty the cache
    Flush(InstanceArgs),
    /// Stop the running instance and remove everything that is attached or pinned
    ///
    /// Connections on which prestack has answered are waited for, and those that are left are reset.
    /// Interrupted meanwhile, they stay as they are, carried by what is pinned.
    Detach(DetachArgs),
    /// Start stock memcached with a UDP socket for every worker thread
    ///
    /// Without, its threads take turns at one socket. memcached takes the place of this command: process
    /// id, signals and exit status are its own. One that does not listen on UDP, or that prestack does
    /// not understand, is started as it is, and standard error says so.
    Memcached(MemcachedArgs),
    /// Compare stock memcached without and with prestack, in a testbed of network namespaces
    ///
    /// Needs root and memcached, takes about half a minute and leaves nothing behind.
    Demo(DemoOptions),
    /// Measure what docs/benchmarks.md tells
    ///
    /// Packets in the kernel, and requests in a testbed of network namespaces. Needs root and
    /// memcached, and leaves nothing behind.
    Bench(BenchOptions),
}

/// Which instance is meant.
#[derive(Args, Debug)]
pub struct InstanceArgs {
    /// Name of the instance
    #[arg(long, value_name = "NAME", default_value_t)]
    pub instance: InstanceName,
}

/// Arguments of `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// TOML file with the same settings as the flags, which win over it
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The flags that the file may have as well.
    #[command(flatten)]
    pub settings: Settings,
}

/// Arguments of `detach`.
#[derive(Args, Debug)]
pub struct DetachArgs {
    /// How long connections that prestack carries are waited for [default: as `run` was told]
    #[arg(long, value_name = "TIME")]
    pub drain_timeout: Option<Span>,

    /// Which instance.
    #[command(flatten)]
    pub instance: InstanceArgs,
}

/// Arguments of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Exit with status 4 if a memcached is not served, for whatever reason but standing aside, and with 5 if all are
    /// and there are problems
    #[arg(long)]
    pub check: bool,

    /// Which instance.
    #[command(flatten)]
    pub instance: InstanceArgs,
}

/// Arguments of `stats`.
#[derive(Args, Debug)]
pub struct StatsArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Which instance.
    #[command(flatten)]
    pub instance: InstanceArgs,
}

/// Arguments of `inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The key, as a client would send it
    pub key: OsString,

    /// Which instance.
    #[command(flatten)]
    pub instance: InstanceArgs,
}

/// Arguments of `memcached`.
#[derive(Args, Debug)]
pub struct MemcachedArgs {
    /// memcached: a path, or a name to look for in PATH
    #[arg(long, value_name = "PATH", default_value = "memcached")]
    pub binary: PathBuf,

    /// memcached's own arguments, such as `-U 11211 -t 4`
    #[arg(last = true, value_name = "ARGS")]
    pub arguments: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use std::time::Duration;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_lists_and_human_units() {
        let line = "prestack run -i vs,vt --port 11211 --port 11212 --memory 64MiB --max-age 500ms \
                    --allow 10.0.0.0/8,fd00::/8 --address 10.0.0.1 --mode native --pin --tcp-hits \
                    --max-flows 1024 --tcp-trickle 2s --drain-timeout 5m";
        let Command::Run(run) = Cli::try_parse_from(line.split_whitespace())
            .expect("valid")
            .command
        else {
            panic!("not `run`");
        };
        assert_eq!(run.settings.interface, ["vs", "vt"]);
        let ports: Vec<_> = run.settings.port.iter().map(|p| p.0.get()).collect();
        assert_eq!(ports, [11211, 11212]);
        assert_eq!(run.settings.allow.len(), 2);
        assert_eq!(run.settings.pin, Some(true));
        assert_eq!(run.settings.tcp_hits, Some(true));
        assert_eq!(run.settings.always_on, None);
        assert_eq!(run.settings.max_flows, Some(1024));
        assert_eq!(
            run.settings.drain_timeout,
            Some(Span(Duration::from_secs(300)))
        );
    }

    #[test]
    fn what_is_on_or_off_is_on_unless_it_is_said() {
        for (line, wanted) in [
            ("prestack run --pin -i vs", Some(true)),
            ("prestack run --pin=true -i vs", Some(true)),
            ("prestack run --pin=false -i vs", Some(false)),
            ("prestack run -i vs", None),
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).expect("valid");
            let Command::Run(run) = cli.command else {
                panic!("not `run`");
            };
            assert_eq!(run.settings.pin, wanted, "{line}");
            assert_eq!(run.settings.interface, ["vs"]);
        }
    }

    #[test]
    fn bad_values_are_refused() {
        for flag in [
            "--memory=x",
            "--max-age=1",
            "--allow=10/8",
            "--port=70000",
            "--port=0",
            "--allow=10.0.0.1/8",
            "--pin=maybe",
            "--max-flows=many",
            "--tcp-trickle=5",
            "--instance=a.b",
            "--mode=x",
        ] {
            assert!(
                Cli::try_parse_from(["prestack", "run", "-i", "vs", flag]).is_err(),
                "{flag}"
            );
        }
    }
}
