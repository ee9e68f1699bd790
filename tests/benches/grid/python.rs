//! Ray and Dask, which start a process for each job without any isolation. `make bench` installs them in
//! `target/bench-venv`.

use std::process::Command;

use crate::report::{RUNS, target};

const RAY: &str = r"
import ray, subprocess, sys, time
ray.init(num_cpus=2, include_dashboard=False, logging_level='ERROR', log_to_driver=False)
@ray.remote(num_cpus=0.05)
def job(): return subprocess.call(['/bin/true'])
ray.get([job.remote() for _ in range(50)])
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    ray.get([job.remote() for _ in range(int(sys.argv[1]))])
    print('rate', int(sys.argv[1]) / (time.perf_counter() - start))
print('version', ray.__version__)
";

const DASK: &str = r"
import dask, subprocess, sys, time
from dask.distributed import Client, LocalCluster
def job(i): return subprocess.call(['/bin/true'])
if __name__ == '__main__':
    with LocalCluster(n_workers=2, threads_per_worker=10, dashboard_address=None) as cluster, Client(cluster) as client:
        client.gather(client.map(job, range(50), pure=False))
        for _ in range(int(sys.argv[2])):
            start = time.perf_counter()
            client.gather(client.map(job, range(int(sys.argv[1])), pure=False))
            print('rate', int(sys.argv[1]) / (time.perf_counter() - start))
    print('version', dask.__version__)
";

/// The name with the version, and the rates; or why it is left out.
type Rates = Result<(String, Vec<f64>), String>;

pub(crate) fn ray(jobs: u32) -> Rates {
    measure("ray", RAY, jobs)
}

pub(crate) fn dask(jobs: u32) -> Rates {
    measure("dask", DASK, jobs)
}

fn measure(name: &str, script: &str, jobs: u32) -> Rates {
    let python = target().join("bench-venv/bin/python");
    if !python.exists() {
        return Err(format!("{name} is left out: there is no {}", python.display()));
    }
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let path = folder.path().join("bench.py");
    std::fs::write(&path, script).map_err(|error| error.to_string())?;
    let output = Command::new("timeout")
        .arg("180")
        .arg(python)
        .arg(&path)
        .args([jobs.to_string(), RUNS.to_string()])
        .output()
        .map_err(|error| format!("{name} is left out: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let values = |key: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned()).collect()
    };
    let rates: Vec<f64> = values("rate").iter().filter_map(|rate| rate.parse().ok()).collect();
    let version = values("version").concat();
    if rates.len() < RUNS || version.is_empty() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{name} is left out: it failed: {}",
            error.lines().last().unwrap_or("no message")
        ));
    }
    Ok((format!("{name} {version}"), rates))
}
