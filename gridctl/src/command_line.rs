//! Reading the command line. A value that makes no sense is told in one sentence, as every other refusal is.

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, FromArgMatches};

use crate::args::Args;
use crate::show;

impl Args {
    /// What was written. A mistake ends the program: a value that makes no sense with one sentence, as every other refusal.
    pub(crate) fn read() -> Self {
        let read = || Self::from_arg_matches(&with_negatives(Self::command()).try_get_matches()?);
        read().unwrap_or_else(|error: clap::Error| match wrong_value(&error) {
            Some(sentence) => {
                eprintln!("gridctl: {}", show::plain(sentence));
                std::process::exit(error.exit_code())
            }
            None => error.exit(),
        })
    }
}

/// A number below zero is a value, and not another option: who takes it says what is wrong with it.
fn with_negatives(command: clap::Command) -> clap::Command {
    let takes = |arg: &clap::Arg| !arg.is_positional() && arg.get_action().takes_values();
    let command = command.mut_args(|arg| match takes(&arg) {
        true => arg.allow_negative_numbers(true),
        false => arg,
    });
    let names: Vec<_> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    names.iter().fold(command, |command, name| command.mut_subcommand(name, with_negatives))
}

fn wrong_value(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::ValueValidation {
        return None;
    }
    let why = std::error::Error::source(error)?.to_string();
    let argument = error.get(ContextKind::InvalidArg)?.to_string();
    let name = argument.split_whitespace().next().and_then(|word| word.strip_prefix("--"));
    Some(match name {
        // As the field of a job file, it may have its name already.
        Some(name) => format!("--{name}: {}", why.strip_prefix(&format!("{name}: ")).unwrap_or(&why)),
        None => why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Command;

    fn read(words: &[&str]) -> Result<Args, clap::Error> {
        let words = ["gridctl"].iter().chain(words);
        Args::from_arg_matches(&with_negatives(Args::command()).try_get_matches_from(words)?)
    }

    #[test]
    fn a_wrong_value_is_one_sentence_with_the_option() {
        for (words, says) in [
            (
                &["submit", "--cpus", "-1", "--", "true"][..],
                "--cpus: \"-1\" is no number of cores: write a number",
            ),
            (&["submit", "--mem", "1P", "--", "true"], "--mem: \"1P\" is no amount of bytes: "),
            (&["submit", "--array", "3-0", "--", "true"], "--array: \"3-0\" is no range: "),
            (&["wait", "--timeout", "-1", "j1.1"], "--timeout: \"-1\" is no length of time: "),
            (&["status", "j1"], "\"j1\" is not a "),
        ] {
            let sentence = wrong_value(&read(words).unwrap_err()).unwrap();
            assert!(sentence.starts_with(says) && !sentence.contains('\n'), "{sentence}");
        }
        // What is no value is told by clap.
        assert_eq!(wrong_value(&read(&["submit", "--nodes", "a", "--", "true"]).unwrap_err()), None);
    }

    #[test]
    fn nodes_are_named_one_by_one_or_in_a_list() {
        let words = ["submit", "--node", "a,b", "--node", "c", "--", "./x", "-1,2"];
        let Command::Submit(submit) = read(&words).unwrap().command else { panic!("something else") };
        assert_eq!(submit.options.node, ["a", "b", "c"]);
        assert_eq!(submit.options.command, ["./x", "-1,2"]);
    }
}
