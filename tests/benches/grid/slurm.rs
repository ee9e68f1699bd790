//! Slurm on this machine: munge, a controller and four nodes of 50 slots each, with the settings at which it was
//! seen to be fastest. It runs in a folder of its own and ends with its value.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NODES: u32 = 4;
const SLOTS: u32 = 50;

/// How long Slurm has for anything.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Slurm {
    pub(crate) version: String,
    folder: tempfile::TempDir,
    daemons: Vec<Child>,
}

impl Slurm {
    /// Starts it, or says why not.
    pub(crate) fn start() -> Result<Self, String> {
        let version = Command::new("slurmd").arg("-V").output().map_err(|_| "it is not installed")?;
        let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
        let folder = tempfile::Builder::new().prefix("gridos-slurm").tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut slurm = Self { version, folder, daemons: Vec::new() };
        slurm.munge()?;
        slurm.configure();
        slurm.daemon("slurmctld", &["-D", "-i", "-c"])?;
        for node in 1..=NODES {
            slurm.daemon("slurmd", &["-D", "-N", &format!("bench{node}")])?;
        }
        slurm.until("its nodes are idle", |slurm| {
            let states = slurm.run("sinfo", &["-h", "-N", "-o", "%t"]);
            states.lines().count() == NODES as usize && states.lines().all(|state| state.trim() == "idle")
        })?;
        Ok(slurm)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn munge(&mut self) -> Result<(), String> {
        let key = self.path("munge.key");
        fs::write(&key, [7; 128]).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
        let socket = self.path("munge.socket");
        let file = |option: &str, name: &str| format!("--{option}={}", self.path(name).display());
        let arguments = [
            "--foreground".to_owned(),
            "--force".to_owned(),
            format!("--key-file={}", key.display()),
            format!("--socket={}", socket.display()),
            file("log-file", "munge.log"),
            file("pid-file", "munge.pid"),
            file("seed-file", "munge.seed"),
        ];
        let child =
            Command::new("munged").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.daemons.push(child.map_err(|error| format!("munged cannot be started: {error}"))?);
        self.until("munge answers", |slurm| slurm.path("munge.socket").exists())
    }

    fn configure(&self) {
        let here = self.folder.path().display();
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let host = host.trim();
        let text = format!(
            "ClusterName=bench\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\n\
             AuthType=auth/munge\nAuthInfo=socket={here}/munge.socket\nCryptoType=crypto/munge\n\
             SlurmctldPort=17817\nStateSaveLocation={here}/state\nSlurmdSpoolDir={here}/spool-%n\n\
             SlurmctldPidFile={here}/ctld.pid\nSlurmdPidFile={here}/d-%n.pid\n\
             SlurmctldLogFile={here}/ctld.log\nSlurmdLogFile={here}/d-%n.log\n\
             ProctrackType=proctrack/pgid\nTaskPlugin=task/none\nMpiDefault=none\nReturnToService=2\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nMaxArraySize=10001\nMaxJobCount=100000\n\
             SchedulerType=sched/backfill\n\
             SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1,max_rpc_cnt=0\n\
             AccountingStorageType=accounting_storage/none\nJobAcctGatherType=jobacct_gather/none\n\
             SlurmdParameters=config_overrides\n"
        );
        let nodes: String = (1..=NODES)
            .map(|node| {
                format!(
                    "NodeName=bench{node} NodeHostname={host} NodeAddr=127.0.0.1 Port={} CPUs={SLOTS}\n",
                    17900 + node
                )
            })
            .collect();
        let partition =
            "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO\n";
        fs::write(self.path("slurm.conf"), text + &nodes + partition).unwrap();
        fs::create_dir(self.path("state")).unwrap();
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SLURM_CONF", self.path("slurm.conf")).current_dir(self.folder.path());
        command
    }

    fn daemon(&mut self, program: &str, arguments: &[&str]) -> Result<(), String> {
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| format!("{program} cannot be started: {error}"))?;
        self.daemons.push(child);
        Ok(())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    }

    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<(), String> {
        let start = Instant::now();
        while !holds(self) {
            if start.elapsed() > PATIENCE {
                return Err(format!("not within {PATIENCE:?}: {what}: {}", self.last_words()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let last = |path: &Path| fs::read_to_string(path).ok()?.lines().last().map(str::to_owned);
        last(&self.path("ctld.log")).unwrap_or_default()
    }

    fn wait(&self, submit: impl FnOnce(&Self)) -> Duration {
        let start = Instant::now();
        submit(self);
        let left = |slurm: &Self| slurm.run("squeue", &["-h", "-r", "-o", "%i"]).lines().count();
        self.until("its jobs are done", |slurm| left(slurm) == 0).unwrap();
        start.elapsed()
    }

    fn script(&self) -> PathBuf {
        let path = self.path("job.sh");
        fs::write(&path, "#!/bin/sh\n/bin/true\n").unwrap();
        path
    }

    /// An array of `/bin/true`, until all are done.
    pub(crate) fn array(&mut self, count: u32) -> Duration {
        let script = self.script();
        let range = format!("--array=0-{}", count - 1);
        self.wait(|slurm| {
            slurm.run("sbatch", &["-o", "/dev/null", &range, script.to_str().unwrap()]);
        })
    }

    /// One submission after the other, until all are done.
    pub(crate) fn singles(&mut self, count: u32) -> Duration {
        let script = self.script();
        self.wait(|slurm| {
            for _ in 0..count {
                slurm.run("sbatch", &["-o", "/dev/null", script.to_str().unwrap()]);
            }
        })
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        // Those that were started last go first; the controller needs munge to the end.
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
