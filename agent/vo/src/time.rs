//! Times as certificates and records hold them: whole seconds since 1970.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::time::ASN1Time;

/// A time for people, in UTC.
pub(crate) fn when(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| ASN1Time::from_timestamp(seconds).ok())
        .map_or_else(|| format!("second {seconds} since 1970"), |time| time.to_string())
}

/// Seconds since 1970; 0 for times before.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The inverse of [`seconds`]; a time beyond what the system can express becomes 1970, which is expired.
pub(crate) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH)
}
