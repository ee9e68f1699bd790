//! Any text, read as a job file: it is refused with its place, or it is a job that keeps what it says wherever
//! it goes.

use libgrid::spec::{JobSpec, SpecError};
use libgrid::wire;

use crate::mutation::mutate;

/// Files to damage.
const VALID: [&str; 4] = [
    "command = ['/bin/true']\n",
    "name = \"frames\"\ncommand = [\"./frame\", \"{index}\"]\narray = \"0-99\"\ncpus = 1\nmemory = \"512M\"\n\
     time = \"10m\"\nstage_in = [\"in/\"]\nstage_out = [\"out/*.png\"]\n[env]\nQUALITY = \"high\"\n",
    "command = ['./x', '''a\nb''']\ncpus = 0.25\nmemory = 1073741824\ntime = 1.5\npids = 64\nrestart = false\n\
     log_limit = '1M'\ncheckpoint = 'every=5m'\nnet = 'grid'\nnodes = ['node2', '3']\nenv = { A = '1', \"B C\" = \"\\u00e4\" }\n",
    "# Simulation\n\ncommand = [\n  './sim', # the program\n  'input.dat',\n]\narray = '7-9%2'\ntime = '1h30m'\n\
     after = ['j1.2', 'j3.4:failed', 'j3.5:any']\nhold = true\nsystem_call = true\n",
];

/// The fields of a job file.
const FIELDS: &str = "name command env cpus memory time pids array stage_in stage_out restart log_limit nodes checkpoint net pipes system_call after hold";

/// The first byte says whether the others are a file, or damage one.
pub(crate) fn run(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    match VALID.get(usize::from(*how)) {
        Some(valid) => file(&String::from_utf8_lossy(&mutate(valid.as_bytes().to_vec(), rest))),
        None => file(&String::from_utf8_lossy(rest)),
    }
}

fn file(text: &str) {
    match JobSpec::from_toml(text) {
        Ok(spec) => accepted(&spec),
        Err(error) => refused(&error, text),
    }
}

fn refused(error: &SpecError, text: &str) {
    match error {
        SpecError::Toml { line, column, message } => {
            let lines = text.split('\n').count();
            assert!((1..=lines).contains(line), "{error}: the file has {lines} lines");
            let longest = text.split('\n').nth(line - 1).map_or(0, |line| line.chars().count());
            assert!((1..=longest + 1).contains(column), "{error}: the line has {longest} characters");
            assert!(!message.trim().is_empty(), "{error}");
        }
        SpecError::Field { field, message } => {
            assert!(FIELDS.split(' ').any(|known| known == *field), "{error}");
            assert!(!message.trim().is_empty(), "{error}");
        }
    }
    assert!(!error.to_string().contains('\n'), "one sentence in one line: {error}");
}

fn accepted(spec: &JobSpec) {
    assert_eq!(spec.clone().check().as_ref(), Ok(spec));
    let bytes = wire::encode(spec).expect("a job that was accepted can be sent");
    assert_eq!(&wire::decode::<JobSpec>(&bytes).expect("and read"), spec);
    assert_eq!(u64::from(spec.tasks()), spec.indices().count() as u64);
    assert!(!spec.title().is_empty() || spec.name.is_some() || spec.command[0].ends_with('/'));

    // TOML has numbers of 63 bits and 53 bits of precision, so not every job can be written as a file.
    let exact = spec.memory.0.max(spec.log_limit.0) < 1 << 53
        && spec.time.is_none_or(|time| time.0.subsec_nanos() == 0 && time.0.as_secs() < 1 << 32);
    if exact {
        let text = toml::to_string(spec).expect("it can be written");
        assert_eq!(JobSpec::from_toml(&text).as_ref(), Ok(spec), "{text}");
    }
}
