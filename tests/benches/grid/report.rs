//! Medians, ratios, and the file for other programs.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// How often each measurement is made.
pub(crate) const RUNS: usize = 3;

#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Value>,
}

impl Report {
    /// Notes the median of `values`, prints it, and returns it.
    pub(crate) fn note(
        &mut self,
        place: (&str, &str),
        subject: &str,
        (metric, unit): (&str, &str),
        values: &[f64],
    ) -> f64 {
        let value = median(values);
        let (bench, case) = place;
        println!("  {case:<34} {subject:<22} {value:>10.2} {unit:<8} {metric}");
        let runs = values.len();
        self.rows.push(json!({
            "bench": bench, "case": case, "subject": subject, "metric": metric, "unit": unit, "value": value,
            "runs": runs,
        }));
        value
    }

    pub(crate) fn write(&self) {
        let folder = target().join("bench");
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("results.json");
        fs::write(&path, serde_json::to_vec_pretty(&self.rows).unwrap()).unwrap();
        println!("\nwritten to {}", path.display());
    }
}

/// The folder that cargo builds in.
pub(crate) fn target() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program
        .ancestors()
        .find(|path| path.ends_with("release") || path.ends_with("debug"))
        .and_then(Path::parent)
        .unwrap()
        .to_owned()
}

pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// The smallest value that at least this share of all does not exceed.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}
