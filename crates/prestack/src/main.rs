//! The `prestack` command.

use std::process::ExitCode;

use clap::Parser as _;
use prestack::{
    cli::{Cli, Command},
    commands,
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
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
    let result = match &cli.command {
        Command::Run(args) => commands::run::run(args),
        Command::Status(args) => commands::status::status(args),
        Command::Stats(args) => commands::stats::stats(args),
        Command::Inspect(args) => commands::inspect::inspect(args),
        Command::Flush(args) => commands::flush::flush(args),
        Command::Detach(args) => commands::detach::detach(args),
        Command::Demo(options) => finish(prestack_bench::demo::run(options)),
        Command::Bench(options) => finish(prestack_bench::bench::run(options)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        commands::exit_code(&error)
    })
}

/// The exit status of a measurement; an error is told with all its causes.
fn finish(result: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    }
}
