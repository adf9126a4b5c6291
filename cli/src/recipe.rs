//! `--recipe FILE.toml`: options in a file.
//!
//! The keys are the long options of the command. A list stands for an option that is given several
//! times, a table for one that is given with `KEY=VALUE`, and `true` for a switch. An option on the
//! command line replaces the one in the file.

use super::report::Failure;
use super::{Cli, say};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Parses the command line, and the recipe if the command line names one. For `--help`, `--version`
/// and errors of the command line it prints the message and ends the process.
pub fn parse(mut arguments: Vec<OsString>) -> Result<Cli, Failure> {
    let matches = Cli::command().try_get_matches_from(&arguments).unwrap_or_else(|e| say(e));
    let recipe = matches
        .subcommand()
        .and_then(|(name, m)| Some((name, m, m.try_get_one::<PathBuf>("recipe").ok()??)));
    let Some((name, given, path)) = recipe else {
        return Ok(Cli::from_arg_matches(&matches).unwrap_or_else(|e| say(e)));
    };
    let text = cachequant::io::read_text(path)?;
    let invalid = |e: toml::de::Error| {
        Failure::usage(format!("{} is not valid TOML", path.display()))
            .fact("seen", e.to_string().trim_end())
    };
    let table: Table = text.parse().map_err(invalid)?;
    // The options go directly after the command's name. Before the name only sizes are values, so
    // the name is found there, and a `--` may follow it.
    let place = arguments.iter().skip(1).position(|a| a == name).map_or(arguments.len(), |i| i + 2);
    let options = options(&table, name, given, path)?;
    arguments.splice(place..place, options);
    // The command line was valid without the recipe, so an error is the recipe's.
    let parsed = Cli::try_parse_from(arguments);
    parsed.map_err(|e| {
        let text = e.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        Failure::usage(format!("{}: {first}", path.display()))
    })
}

/// The recipe's options as arguments, without those that are on the command line.
fn options(
    table: &Table,
    command: &str,
    given: &ArgMatches,
    path: &Path,
) -> Result<Vec<OsString>, Failure> {
    let root = Cli::command();
    let command = root.find_subcommand(command).expect("clap has just matched it");
    let known = || command.get_arguments().filter_map(|a| a.get_long()).filter(|l| *l != "recipe");
    let mut out = Vec::new();
    for (key, value) in table {
        let argument =
            command.get_arguments().find(|a| a.get_long() == Some(key) && key != "recipe");
        let Some(argument) = argument else {
            let help = known().collect::<Vec<_>>().join(", ");
            return Err(Failure::usage(format!("unknown key `{key}` in {}", path.display()))
                .fact("known", help));
        };
        if given.value_source(argument.get_id().as_str()) != Some(ValueSource::CommandLine) {
            let takes_value = argument.get_action().takes_values();
            let wrong = |what: &str| {
                Failure::usage(format!("`{key}` in {} {what}", path.display())).fact("seen", value)
            };
            out.extend(
                as_arguments(key, value, takes_value)
                    .map_err(wrong)?
                    .into_iter()
                    .map(OsString::from),
            );
        }
    }
    Ok(out)
}

fn as_arguments(key: &str, value: &Value, takes_value: bool) -> Result<Vec<String>, &'static str> {
    match (value, takes_value) {
        (Value::Boolean(true), false) => Ok(vec![format!("--{key}")]),
        (Value::Boolean(false), false) => Ok(vec![]),
        (_, false) => Err("is a switch: true or false"),
        (Value::Array(list), true) => {
            list.iter().map(|v| Ok(format!("--{key}={}", scalar(v)?))).collect()
        }
        (Value::Table(table), true) => {
            table.iter().map(|(k, v)| Ok(format!("--{key}={k}={}", scalar(v)?))).collect()
        }
        (value, true) => Ok(vec![format!("--{key}={}", scalar(value)?)]),
    }
}

fn scalar(value: &Value) -> Result<String, &'static str> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(n) => Ok(n.to_string()),
        Value::Float(x) => Ok(x.to_string()),
        Value::Boolean(yes) => Ok(yes.to_string()),
        _ => Err("is neither a text nor a number, nor a list of them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(recipe: &str, arguments: &[&str]) -> Result<Cli, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.toml");
        std::fs::write(&path, recipe).unwrap();
        let fixed = ["cqc".into(), "compile".into(), "m.onnx".into(), "-o".into(), "m.cq".into()];
        let recipe = ["--recipe".into(), path.into_os_string()];
        parse(fixed.into_iter().chain(recipe).chain(arguments.iter().map(OsString::from)).collect())
    }

    fn compile_debug(cli: Cli) -> String {
        format!("{:?}", cli.command)
    }

    #[test]
    fn the_command_line_wins() {
        let recipe = "steps = 20\nguidance = 2.5\nforce = true\ndim = { height = 64, width = 32 }";
        let text = compile_debug(parsed(recipe, &["--steps", "7"]).unwrap());
        for part in [
            "steps: Some(7)",
            "guidance: Some(2.5)",
            "force: true",
            r#"name: "height", size: 64"#,
            r#"name: "width", size: 32"#,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn mistakes_name_the_key() {
        for (recipe, said) in [
            ("stepz = 3", "unknown key `stepz`"),
            ("recipe = 'x'", "unknown key `recipe`"),
            ("force = 3", "`force`"),
            ("steps = { a = { b = 1 } }", "`steps`"),
            ("steps = 'many'", "many"),
            ("steps = ", "not valid TOML"),
        ] {
            let failure = parsed(recipe, &[]).unwrap_err();
            assert_eq!(failure.exit, crate::report::Exit::Usage);
            assert!(failure.to_string().contains(said), "{failure}");
        }
    }
}
