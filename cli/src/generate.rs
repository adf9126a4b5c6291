//! `cqc completions` and `cqc man`: files for shells and for man.

use super::report::Failure;
use super::{Cli, term};
use clap::{Args, CommandFactory};

/// Print a script that completes cqc's options in a shell
#[derive(Args, Debug)]
#[command(
    after_help = "Example: cqc completions bash > ~/.local/share/bash-completion/completions/cqc"
)]
pub struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// Print the man page of cqc or of one of its commands
#[derive(Args, Debug)]
#[command(after_help = "Example: cqc man sample | man -l -")]
pub struct ManArgs {
    /// A command of cqc [default: cqc itself]
    command: Option<String>,
}

pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "cqc", &mut script);
    term::print(&String::from_utf8_lossy(&script))
}

pub fn man(args: &ManArgs) -> Result<(), Failure> {
    let mut root = Cli::command();
    root.build();
    let command = match &args.command {
        None => root,
        Some(name) => {
            let known =
                || root.get_subcommands().map(|c| c.get_name()).collect::<Vec<_>>().join(", ");
            let found = root.find_subcommand(name).cloned();
            // its display name is `cqc-sample`, which is the name of its man page
            found.ok_or_else(|| {
                Failure::usage(format!("cqc has no command `{name}`")).fact("known", known())
            })?
        }
    };
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(command).render(&mut page);
    rendered.map_err(|e| Failure::failed(format!("cannot render the man page: {e}")))?;
    term::print(&String::from_utf8_lossy(&page))
}
