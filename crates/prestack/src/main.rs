//! The `prestack` command.

use std::{
    io::{Write as _, stderr},
    process::ExitCode,
};

use clap::Parser as _;
use prestack::{
    cli::{Cli, Command},
    commands,
    object::OBJECT,
};
use tracing::Level;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => Level::INFO,
        1 => Level::DEBUG,
        _ => Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&stderr()))
        .with_target(false)
        // What cannot be written would be told there again, by a macro that panics: a full disk, or a reader
        // that is gone, must not end what serves.
        .log_internal_errors(false)
        .init();
    let result = match &cli.command {
        Command::Run(args) => commands::run::run(args),
        Command::Status(args) => commands::status::status(args),
        Command::Stats(args) => {
            commands::stats::stats(args).and_then(|text| commands::print(&text))
        }
        Command::Inspect(args) => {
            commands::inspect::inspect(args).and_then(|text| commands::print(&text))
        }
        Command::Flush(args) => {
            commands::flush::flush(args).and_then(|text| commands::print(&text))
        }
        Command::Detach(args) => {
            commands::detach::detach(args).and_then(|text| commands::print(&text))
        }
        Command::Memcached(args) => {
            commands::memcached::memcached(args).map(|never| match never {})
        }
        Command::Demo(options) => with_causes(prestack_bench::demo::run(options)),
        Command::Bench(options) => with_causes(prestack_bench::bench::run(options, OBJECT)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The exit status says it as well.
            let _ = writeln!(stderr(), "error: {error}");
            commands::exit_code(&error)
        }
    }
}

/// An error of a measurement is told with all its causes.
fn with_causes(result: anyhow::Result<()>) -> anyhow::Result<()> {
    result.map_err(|error| anyhow::anyhow!("{error:#}"))
}
