//! How many trivial jobs a second: with full isolation and accounting, beside Slurm (with its accounting off and
//! without namespaces), Ray and Dask (without any isolation).

use std::time::Instant;

use grid_tests::{Grid, GridConfig};
use libgrid::blocking;
use libgrid::spec::JobSpec;
use libgrid::units::{Bytes, Cpus};

use crate::report::{RUNS, Report, median};
use crate::{python, slurm};

const ARRAY: u32 = 1000;
const SINGLES: u32 = 200;

/// As many slots as Slurm is given, so that the node is never what waits.
fn spec() -> JobSpec {
    JobSpec::command(["/bin/true"]).cpus(Cpus::from_milli(10)).memory(Bytes(16 << 20))
}

pub(crate) fn one_node() -> Grid {
    GridConfig { cores: 50.0, memory: "64G", ..GridConfig::new("bench", 1) }.up()
}

pub(crate) fn run(report: &mut Report) {
    let grid = one_node();
    let mut client = grid.client(1);
    let mut slurm = slurm::Slurm::start();
    let (mut arrays, mut singles) = (Vec::new(), Vec::new());
    let (mut slurm_arrays, mut slurm_singles) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        arrays.push(array(&mut client));
        singles.push(single(&mut client));
        if let Ok(slurm) = &mut slurm {
            slurm_arrays.push(f64::from(ARRAY) / slurm.array(ARRAY).as_secs_f64());
            slurm_singles.push(f64::from(SINGLES) / slurm.singles(SINGLES).as_secs_f64());
        }
    }
    let rate = ("rate", "jobs/s");
    let ours = report.note(("throughput", "array of 1000"), "gridos", rate, &arrays);
    let ours_single = report.note(("throughput", "200 single submissions"), "gridos", rate, &singles);
    match &slurm {
        Ok(slurm) => {
            let theirs = report.note(("throughput", "array of 1000"), &slurm.version, rate, &slurm_arrays);
            let single =
                report.note(("throughput", "200 single submissions"), &slurm.version, rate, &slurm_singles);
            let best = theirs.max(single);
            println!("  ratio to slurm's best: array {:.1}, single {:.1}", ours / best, ours_single / best);
        }
        Err(why) => println!("  slurm is left out: {why}"),
    }
    drop(slurm);
    for peer in [python::ray, python::dask] {
        match peer(ARRAY) {
            Ok((name, rates)) => {
                report.note(("throughput", "array of 1000"), &name, rate, &rates);
                println!("  ratio to {name}: {:.1}", ours / median(&rates));
            }
            Err(why) => println!("  {why}"),
        }
    }
}

fn array(client: &mut blocking::Grid) -> f64 {
    let start = Instant::now();
    let job = client.submit(spec().array(0, ARRAY - 1)).unwrap();
    let done = client.wait(job).unwrap();
    assert!(done.succeeded());
    f64::from(ARRAY) / start.elapsed().as_secs_f64()
}

/// One client that submits one job after the other, and then waits for all.
fn single(client: &mut blocking::Grid) -> f64 {
    let start = Instant::now();
    let jobs: Vec<_> = (0..SINGLES).map(|_| client.submit(spec()).unwrap()).collect();
    for job in jobs {
        assert!(client.wait(job).unwrap().succeeded());
    }
    f64::from(SINGLES) / start.elapsed().as_secs_f64()
}
