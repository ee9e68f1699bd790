//! What can be written on the command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use libgrid::ids::{JobId, Selector};
use libgrid::pipe::PipeUse;
use libgrid::spec::{After, Checkpoints, Indices, Net};
use libgrid::status::MoveMode;
use libgrid::sys::Door;
use libgrid::units::{Bytes, Cpus, Span};

use crate::lab::LabCommand;
use crate::pipe::PipeCommand;
use crate::process::Target;
use crate::top::Sort;

/// Use many Linux machines as one: submit programs, watch them, manage nodes.
#[derive(Debug, Parser)]
#[command(name = "gridctl", version, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Args {
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// The agent's socket; otherwise that in $GRIDOS_SOCKET, or /run/gridos/control.sock
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the agent of this machine. Example: sudo gridctl up
    Up {
        /// Stay in the foreground instead of starting a service
        #[arg(long)]
        foreground: bool,
        /// The agent's configuration file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Stop the agent of this machine; its tasks run on. Example: sudo gridctl down
    Down,
    /// Found a VO, or put a node out of it. Example: gridctl vo create lab
    Vo {
        #[command(subcommand)]
        command: VoCommand,
    },
    /// Make a token with which one machine can join. Example: gridctl token create --expires 24h
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Join the VO that a token came from. Example: gridctl join grid1-...
    Join {
        /// The line that `gridctl token create` printed
        token: String,
    },
    /// List the nodes. Example: gridctl nodes
    Nodes,
    /// Tell what this machine can do, and what is missing. Example: gridctl doctor
    Doctor,
    /// Run a program on the grid. Example: gridctl submit --cpus 2 --mem 1G -- ./simulate input.dat
    Submit(Box<Submit>),
    /// Run a program and stay with it, as ssh does. Example: gridctl run -- python3
    Run {
        #[command(flatten)]
        options: Box<Options>,
    },
    /// List jobs that are not done. Example: gridctl ps --all
    Ps {
        /// Those that are done, too
        #[arg(long, short)]
        all: bool,
        /// Those that were submitted on other nodes, too
        #[arg(long, short)]
        everywhere: bool,
        /// Those with tasks on this node, by name or number, wherever they were submitted
        #[arg(long, value_name = "NODE", conflicts_with_all = ["all", "processes"])]
        node: Option<String>,
        /// The processes of your jobs instead, with their global ids
        #[arg(long, short, conflicts_with = "all")]
        processes: bool,
        /// With --processes: of this job or task alone, such as j2.1
        #[arg(requires = "processes", conflicts_with = "everywhere")]
        job: Option<Selector>,
    },
    /// Show what the processes of your jobs use, as it changes. Example: gridctl top --sort memory
    Top {
        /// Of this job or task alone, such as j2.1
        job: Option<Selector>,
        /// Of jobs that were submitted on other nodes, too
        #[arg(long, short, conflicts_with = "job")]
        everywhere: bool,
        /// By what they are sorted; the keys c, w, m, f, s and n change it
        #[arg(long, value_enum, default_value_t = Sort::Cpu)]
        sort: Sort,
        /// How often to look
        #[arg(long, short, default_value = "2s", value_name = "TIME")]
        interval: Span,
        /// Print one list, of what was used in one interval, and end
        #[arg(long)]
        once: bool,
    },
    /// Tell all about a job, a task or a process. Example: gridctl status j2.1
    Status {
        /// Such as j2.1, j2.1/7 for one task, or 2.5031 for a process
        #[arg(value_name = "JOB")]
        of: Target,
        /// Of an array, the tasks from this index on: up to a thousand are shown at once
        #[arg(long, value_name = "INDEX", default_value_t = 0)]
        from: u32,
        /// Of an array, all tasks that failed, and no others
        #[arg(long, conflicts_with = "from")]
        failed: bool,
    },
    /// Print what a job wrote. Example: gridctl logs -f j2.1
    Logs {
        /// Such as j2.1, or j2.1/7 for one task
        job: Selector,
        /// Go on until the job ends
        #[arg(long, short)]
        follow: bool,
        /// Which output
        #[arg(long, value_enum, default_value_t = Which::Both)]
        stream: Which,
    },
    /// Wait for jobs, and end with their exit status. Example: gridctl wait j2.1
    Wait {
        /// Such as j2.1, or j2.1/7 for one task
        #[arg(required = true)]
        jobs: Vec<Selector>,
        /// How long at most; the status is 124 then
        #[arg(long, short, value_name = "TIME")]
        timeout: Option<Span>,
    },
    /// Let nothing more of jobs start; what runs, runs on. Example: gridctl hold j2.1
    Hold {
        /// Such as j2.1
        #[arg(required = true)]
        jobs: Vec<JobId>,
    },
    /// Let jobs start that were held. Example: gridctl release j2.1
    Release {
        /// Such as j2.1
        #[arg(required = true)]
        jobs: Vec<JobId>,
    },
    /// End jobs or processes, or send them a signal. Example: gridctl kill -s INT j2.1
    Kill {
        /// Such as j2.1, j2.1/7 for one task, or 2.5031 for a process
        #[arg(required = true, value_name = "JOB")]
        targets: Vec<Target>,
        /// The signal, such as INT or 2; without it TERM, and for jobs KILL 10 s later
        #[arg(long, short)]
        signal: Option<String>,
    },
    /// Write a checkpoint of what runs, now. Example: gridctl checkpoint j2.1
    Checkpoint {
        /// Such as j2.1, or j2.1/7 for one task
        job: Selector,
    },
    /// List checkpoints. Example: gridctl checkpoints j2.1
    Checkpoints {
        /// Such as j2.1, or j2.1/7 for one task
        job: Selector,
    },
    /// Let a task go on from one of its checkpoints; later ones are dropped. Example: gridctl restore j2.1 --from 7
    Restore {
        /// Such as j2.1, or j2.1/7 for one task of several
        job: Selector,
        /// The number of the checkpoint; the newest if absent
        #[arg(long, value_name = "NUMBER")]
        from: Option<u64>,
    },
    /// Move tasks to another node while they run. Example: gridctl migrate j2.1 --to node3
    Migrate {
        /// Such as j2.1, j2.1/7 for one task, or 2.5031 for the task of a process
        #[arg(value_name = "JOB")]
        of: Target,
        /// The node, by name or number; the one with the most room if absent
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        /// How: hybrid or pre-copy (its memory is sent while it runs), stop-and-copy, or auto: the first of these that can be
        #[arg(long, value_name = "MODE", default_value_t)]
        mode: MoveMode,
        /// Only look whether it can be, and tell what stops it
        #[arg(long)]
        check: bool,
    },
    /// Move all that runs on a node to others, and let it take no more. Example: gridctl drain node2
    Drain {
        /// Its name or number
        node: String,
        /// Let it take tasks again
        #[arg(long)]
        undo: bool,
        /// How they move, as with migrate
        #[arg(long, value_name = "MODE", default_value_t, conflicts_with = "undo")]
        mode: MoveMode,
    },
    /// Copy files between nodes. Example: gridctl cp -r node1:/data/run7 node3:/data/
    Cp {
        /// PATH here, NODE:/PATH, or grid:/PATH; the last is the target
        #[arg(required = true, num_args = 2.., value_name = "PLACE")]
        paths: Vec<String>,
        /// Folders, too
        #[arg(long, short)]
        recursive: bool,
        #[command(flatten)]
        options: CopyOptions,
    },
    /// Copy files of this machine to a node or the grid. Example: gridctl put big.h5 grid:/physics/run7/
    Put {
        /// Paths here, then NODE:/PATH or grid:/PATH
        #[arg(required = true, num_args = 2.., value_name = "PLACE")]
        paths: Vec<String>,
        /// Folders are always copied with all that is in them
        #[arg(long, short, hide = true)]
        recursive: bool,
        #[command(flatten)]
        options: CopyOptions,
    },
    /// Copy files of a node or the grid to this machine. Example: gridctl get grid:/physics/run7/big.h5
    Get {
        /// NODE:/PATH or grid:/PATH
        #[arg(required = true, value_name = "PLACE")]
        sources: Vec<String>,
        /// Where to
        #[arg(long, short, default_value = ".", value_name = "PATH")]
        output: String,
        /// Folders are always copied with all that is in them
        #[arg(long, short, hide = true)]
        recursive: bool,
        #[command(flatten)]
        options: CopyOptions,
    },
    /// List a folder of a node or the grid. Example: gridctl ls -l node3:/data
    Ls {
        /// PATH here, NODE:/PATH, or grid:/PATH
        place: String,
        /// Sizes, modes and times
        #[arg(long, short)]
        long: bool,
    },
    /// Lend a folder of this machine to the others. Example: sudo gridctl export --write --grid /physics /data
    Export(ExportArgs),
    /// Lend a folder no longer. Example: sudo gridctl unexport /data
    Unexport {
        /// The folder
        path: PathBuf,
    },
    /// List what is lent. Example: gridctl exports --everywhere
    Exports {
        /// By the other nodes, too
        #[arg(long, short)]
        everywhere: bool,
    },
    /// Named pipes between nodes. Example: seq 9 | gridctl pipe write node2:numbers
    Pipe {
        #[command(subcommand)]
        command: PipeCommand,
    },
    /// Copy from and to FTP and GridFTP servers, or be one. Example: gridctl ftp get -p 4 ftp://node1:2811/run7.h5
    Ftp {
        #[command(subcommand)]
        command: FtpCommand,
    },
    /// Do one of the operations that the kernel module has, too. Example: gridctl sys status j2.1
    Sys {
        /// Through this door alone: device, syscall or agent
        #[arg(long)]
        door: Option<Door>,
        /// Such as version, self, nodes, jobs, gpids, or migrate 2.5031 node3; help tells all
        #[arg(required = true)]
        operation: Vec<String>,
    },
    /// A grid on this machine alone, to try things out. Example: sudo gridctl lab up -n 3
    Lab {
        #[command(subcommand)]
        command: LabCommand,
    },
    /// Print a shell's completion script. Example: gridctl completion bash > /etc/bash_completion.d/gridctl
    Completion {
        /// The shell
        shell: Shell,
    },
}

/// How to copy.
#[derive(Debug, ClapArgs)]
pub(crate) struct CopyOptions {
    /// Data connections, from 1 to 64; auto measures
    #[arg(long, short = 's', default_value = "auto", value_name = "N")]
    pub(crate) streams: String,
    /// The rate at most, in bytes a second, such as 50M
    #[arg(long, value_name = "SIZE")]
    pub(crate) limit: Option<Bytes>,
    /// Encrypt the data, and not only what is said about it
    #[arg(long)]
    pub(crate) encrypt: bool,
    /// Do not compare checksums
    #[arg(long, conflicts_with = "verify")]
    pub(crate) no_checksum: bool,
    /// Return only when the data is on the disk
    #[arg(long)]
    pub(crate) fsync: bool,
    /// Compare checksums of what the destination's disk gives back
    #[arg(long)]
    pub(crate) verify: bool,
    /// Use nothing of what an interrupted copy left
    #[arg(long)]
    pub(crate) fresh: bool,
    /// The size of a connection's buffers, such as 8M; the kernel adapts them if absent
    #[arg(long, value_name = "SIZE")]
    pub(crate) buffer: Option<Bytes>,
    /// Their congestion control, such as cubic
    #[arg(long, value_name = "NAME")]
    pub(crate) congestion: Option<String>,
}

/// What to lend.
#[derive(Debug, ClapArgs)]
pub(crate) struct ExportArgs {
    /// The folder; nothing outside of it can be reached
    pub(crate) path: PathBuf,
    /// Others may write, too
    #[arg(long, short)]
    pub(crate) write: bool,
    /// The user here with whose rights others act; the folder's owner if absent, and never root
    #[arg(long = "as", value_name = "USER")]
    pub(crate) user: Option<String>,
    /// The path in the grid that stands for it
    #[arg(long, value_name = "PATH")]
    pub(crate) grid: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VoCommand {
    /// Found a VO with this machine as its first node. Example: gridctl vo create lab
    Create {
        /// 1 to 63 of a-z, 0-9 and -
        name: String,
    },
    /// Write a certificate of yours, its key and the VO's, for FTP and GridFTP. Example: gridctl vo certificate -o ~/.gridos
    Certificate {
        /// The folder for user.crt, user.key and ca.crt
        #[arg(long, short, default_value = ".", value_name = "PATH")]
        output: PathBuf,
    },
    /// Put a node out of the VO, for good. Example: gridctl vo revoke node3
    Revoke {
        /// Its name or number
        node: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Print a token, good for one machine. Example: gridctl token create --expires 24h
    Create {
        /// How long it can be used
        #[arg(long, default_value = "24h", value_name = "TIME")]
        expires: Span,
    },
}

/// What FTP is used for.
#[derive(Debug, Subcommand)]
pub(crate) enum FtpCommand {
    /// Serve until interrupted. Example: sudo gridctl ftp serve --root /data --user grid --anonymous
    // The options are those of the program: it has the help for them, too.
    #[command(disable_help_flag = true)]
    Serve {
        /// Options: gridctl ftp serve --help lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
        options: Vec<std::ffi::OsString>,
    },
    /// Fetch files; goes on where it stopped before. Example: gridctl ftp get ftp://node1:2811/data/run7.h5
    Get {
        /// ftp://[USER@]HOST[:PORT]/PATH
        #[arg(required = true, value_name = "URL")]
        sources: Vec<String>,
        /// Where to: a file, or a folder that exists
        #[arg(long, short, default_value = ".", value_name = "PATH")]
        output: PathBuf,
        #[command(flatten)]
        options: FtpOptions,
    },
    /// Send files; goes on where it stopped before. Example: gridctl ftp put big.h5 ftp://node1:2811/data/
    Put {
        /// Files or folders here, then the URL; one that ends with / is a folder
        #[arg(required = true, num_args = 2.., value_name = "PATH")]
        paths: Vec<String>,
        #[command(flatten)]
        options: FtpOptions,
    },
    /// List a folder. Example: gridctl ftp ls ftp://node1:2811/data
    Ls {
        /// ftp://[USER@]HOST[:PORT]/PATH
        url: String,
        #[command(flatten)]
        options: FtpOptions,
    },
    /// Copy a file from server to server, not through this machine. Example: gridctl ftp cp ftp://a/x ftp://b/x
    Cp {
        /// From where
        source: String,
        /// Where to
        target: String,
        #[command(flatten)]
        options: FtpOptions,
    },
}

/// How `gridctl ftp` transfers.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct FtpOptions {
    /// Data connections in parallel, 1 to 64: GridFTP's extended mode
    #[arg(short = 'p', long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) parallel: Option<u8>,
    /// Extended mode with as many connections as the path asks for
    #[arg(long)]
    pub(crate) fast: bool,
    /// All nodes of the server take part; extended mode
    #[arg(long)]
    pub(crate) stripe: bool,
    /// Where in the file to begin, in bytes, such as 10M
    #[arg(long, value_name = "BYTES")]
    pub(crate) off: Option<Bytes>,
    /// How much of the file, such as 1G
    #[arg(long, value_name = "BYTES")]
    pub(crate) len: Option<Bytes>,
    /// Compare checksums afterwards
    #[arg(long)]
    pub(crate) verify: bool,
    /// Folders, with all that is in them
    #[arg(long, short)]
    pub(crate) recursive: bool,
    /// Sessions side by side for folders, 1 to 16
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) sessions: u8,
    /// Start over, whatever arrived before
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Send to the name itself, for servers that refuse to rename
    #[arg(long)]
    pub(crate) direct: bool,
    /// Let the file reach the disk before it gets its name
    #[arg(long)]
    pub(crate) fsync: bool,
    /// Socket buffers of this size, such as 4M, instead of what the kernel finds
    #[arg(long, value_name = "BYTES")]
    pub(crate) buffer: Option<Bytes>,
    /// Protect the session by TLS
    #[arg(long)]
    pub(crate) tls: bool,
    /// Encrypt commands but not data
    #[arg(long, requires = "tls")]
    pub(crate) clear_data: bool,
    /// The authorities to believe, PEM; otherwise the system's
    #[arg(long, value_name = "FILE", requires = "tls")]
    pub(crate) ca: Option<PathBuf>,
    /// Believe every certificate: others may read and change everything
    #[arg(long, requires = "tls", conflicts_with = "ca")]
    pub(crate) no_verify_tls: bool,
    /// Our certificate, PEM
    #[arg(long, value_name = "FILE", requires_all = ["key", "tls"])]
    pub(crate) cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// Who logs in; the password is read from $GRIDOS_FTP_PASSWORD
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Connect to the address that a PASV reply names, for servers whose data come from other hosts
    #[arg(long)]
    pub(crate) believe_pasv: bool,
}

/// What a job needs, for `submit` and `run`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Options {
    /// Cores, such as 2 or 0.5
    #[arg(long, short, value_name = "N")]
    pub(crate) cpus: Option<Cpus>,
    /// Memory, such as 512M
    #[arg(long, short, value_name = "SIZE")]
    pub(crate) mem: Option<Bytes>,
    /// How long it may run, such as 10m
    #[arg(long, short, value_name = "TIME")]
    pub(crate) time: Option<Span>,
    /// A name for lists
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// A variable for its environment; may be repeated
    #[arg(long, short, value_name = "KEY=VALUE")]
    pub(crate) env: Vec<String>,
    /// A file or folder to copy into its working directory; may be repeated
    #[arg(long, value_name = "PATH")]
    pub(crate) stage_in: Vec<String>,
    /// A pattern of files to bring back to this folder; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(crate) stage_out: Vec<String>,
    /// A node that may be used, by name or number; may be repeated, or NODE,NODE
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    pub(crate) node: Vec<String>,
    /// Its network: host, that of its node, or grid, with an address of its own that moves along with its connections
    #[arg(long, value_name = "NETWORK")]
    pub(crate) net: Option<Net>,
    /// A named pipe that it has as a FIFO of that name in its working directory, to read or to write; may be repeated
    #[arg(long, value_name = "[NODE:]NAME:r|w")]
    pub(crate) pipe: Vec<PipeUse>,
    /// Give its processes the grid's system call (gridctl sys --door syscall)
    #[arg(long)]
    pub(crate) system_call: bool,
    /// Do not copy the program, and arguments that name files here, by themselves
    #[arg(long)]
    pub(crate) no_auto_stage: bool,
    /// The program and its arguments
    #[arg(last = true, value_name = "PROGRAM")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Submit {
    /// A job file, instead of a program; - reads it from standard input
    #[arg(value_name = "FILE.toml", conflicts_with = "command")]
    pub(crate) file: Option<PathBuf>,
    /// One task for each index, such as 0-99, or 0-99%8 to run 8 at a time; {index} stands for it in the program's arguments
    #[arg(long, short, value_name = "FIRST-LAST[%N]")]
    pub(crate) array: Option<Indices>,
    /// Start when that job has ended: has succeeded, if nothing is said; may be repeated
    #[arg(long, value_name = "JOB[:failed|:any]")]
    pub(crate) after: Vec<After>,
    /// Do not start before gridctl release
    #[arg(long)]
    pub(crate) hold: bool,
    /// If its node is lost, count it as failed instead of starting it elsewhere
    #[arg(long)]
    pub(crate) no_restart: bool,
    /// When to write checkpoints, from which a lost task goes on: adaptive, every=5m or off
    #[arg(long, value_name = "WHEN")]
    pub(crate) checkpoint: Option<Checkpoints>,
    #[command(flatten)]
    pub(crate) options: Options,
}

/// Which output of a job.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Which {
    /// Standard output
    Stdout,
    /// Standard error
    Stderr,
    /// Both, each to its own
    Both,
}
