//! The reference pages of the documentation that are made from the definition of the command line:
//! `docs/reference/cli.md` and `docs/reference/recipe.md`.
//!
//! `CQC_BLESS=1 cargo test -p cachequant-cli reference` writes them.

use super::Cli;
use clap::{Arg, ArgAction, Command, CommandFactory};
use std::fmt::Write;
use std::path::Path;

/// Columns of the help in the page, as in a terminal of that width.
const WIDTH: usize = 100;

const HEAD: &str = "\
# Command line

This page is generated from the definition of the command line. `cqc COMMAND --help` prints the same
text, and `cqc man COMMAND` prints it as a manual page.
";

const RECIPE_HEAD: &str = "\
# Recipe keys

A recipe says what an artifact is to become. Its keys are the long options of
[`cqc compile`](cli.md#cqc-compile):

* On the command line, `--recipe FILE.toml` reads them from a file. An option that is given on the
  command line replaces the one of the file.
* In Python, they are the keyword arguments of `cachequant.compile`, with `_` in place of `-`.
* In Rust, they are the fields of `cachequant::Recipe`, with `_` in place of `-`.

A list stands for an option that is given several times, a table for an option of the form
`KEY=VALUE`, and `true` for an option without a value:

```toml
steps = 50
sampler = \"ddim\"
interval = 5
quant = \"w8a8\"
labels = [0, 1, 2, 3]
any-steps = true

[cond]
encoder_hidden_states = \"text.npy\"
```

| key | value | meaning |
|---|---|---|
";

fn cli_page() -> String {
    let mut root = Cli::command().term_width(WIDTH).mut_args(|arg| arg.hide_env_values(true));
    root.build();
    let mut page = HEAD.to_string();
    section(&mut page, &mut root.clone(), "cqc");
    for command in root.get_subcommands_mut().filter(|c| c.get_name() != "help") {
        let name = format!("cqc {}", command.get_name());
        let shown = command.clone().term_width(WIDTH).mut_args(|arg| arg.hide_env_values(true));
        section(&mut page, &mut shown.clone(), &name);
    }
    page
}

fn section(page: &mut String, command: &mut Command, name: &str) {
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(page, "\n## {name}\n\n```text\n{}\n```\n", lines.join("\n").trim_end());
}

fn recipe_page() -> String {
    let root = Cli::command();
    let compile = root.find_subcommand("compile").expect("the command exists");
    let mut page = RECIPE_HEAD.to_string();
    for arg in compile.get_arguments() {
        let Some(key) = arg.get_long().filter(|key| !is_of_the_command(key)) else { continue };
        let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string);
        let help = help.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        let help = help.replace('|', "\\|");
        let _ = writeln!(page, "| `{key}` | {} | {help} |", value(arg));
    }
    page
}

/// Options that are of one call of the command, and of no recipe.
fn is_of_the_command(key: &str) -> bool {
    ["recipe", "output", "report", "accept", "force", "help", "version"].contains(&key)
}

fn value(arg: &Arg) -> String {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return "`true`".into();
    }
    let names: Vec<String> =
        arg.get_value_names().into_iter().flatten().map(|name| format!("`{name}`")).collect();
    names.join(" ").replace('|', "\\|")
}

#[test]
fn the_reference_pages_are_current() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference");
    if !folder.is_dir() {
        return; // a published package has no documents
    }
    for (name, made) in [("cli.md", cli_page()), ("recipe.md", recipe_page())] {
        let path = folder.join(name);
        if std::env::var_os("CQC_BLESS").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == made,
            "docs/reference/{name} is out of date: CQC_BLESS=1 cargo test -p cachequant-cli reference"
        );
    }
}
