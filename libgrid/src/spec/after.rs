//! What has to end before a job starts.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{SpecError, field, shown};
use crate::ids::JobId;

/// A job that has to end before another one starts, and how: `j1.2`, `j1.2:failed` or `j1.2:any`.
///
/// ```
/// use libgrid::spec::{After, Ending};
/// let after: After = "j1.2:any".parse().unwrap();
/// assert_eq!(after.ending, Ending::Any);
/// assert_eq!("j1.2:ok".parse::<After>().unwrap().to_string(), "j1.2");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct After {
    /// Which.
    pub job: JobId,
    /// How it has to end.
    pub ending: Ending,
}

/// How a job has to end for one that comes after it to start: `ok`, `failed` or `any`.
///
/// ```
/// use libgrid::spec::Ending;
/// assert!(Ending::Failed.is_met(false) && !Ending::Ok.is_met(false));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ending {
    /// All its tasks succeeded.
    #[default]
    Ok,
    /// One of its tasks at least did not.
    Failed,
    /// In whatever way.
    Any,
}

impl Ending {
    const ALL: [(Self, &str); 3] = [(Self::Ok, "ok"), (Self::Failed, "failed"), (Self::Any, "any")];

    /// Whether a job that ended is what was waited for.
    ///
    /// ```
    /// assert!(libgrid::spec::Ending::Any.is_met(true));
    /// ```
    pub fn is_met(self, succeeded: bool) -> bool {
        match self {
            Ending::Ok => succeeded,
            Ending::Failed => !succeeded,
            Ending::Any => true,
        }
    }
}

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Ending::ALL.iter().find(|(ending, _)| *ending == self.ending).map_or("", |(_, name)| name);
        match self.ending {
            Ending::Ok => write!(f, "{}", self.job),
            Ending::Failed | Ending::Any => write!(f, "{}:{name}", self.job),
        }
    }
}

impl FromStr for After {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (job, ending) = text.split_once(':').unwrap_or((text, "ok"));
        let ending = Ending::ALL.iter().find(|(_, name)| *name == ending).map(|(ending, _)| *ending);
        match job.parse().ok().zip(ending) {
            Some((job, ending)) => Ok(Self { job, ending }),
            None => {
                let shown = shown(text);
                field(
                    "after",
                    format!("{shown:?} is no job to wait for: write j1.2, j1.2:failed or j1.2:any"),
                )
            }
        }
    }
}

impl Serialize for After {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match out.is_human_readable() {
            true => out.collect_str(self),
            false => (self.job, self.ending as u8).serialize(out),
        }
    }
}

impl<'de> Deserialize<'de> for After {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        if input.is_human_readable() {
            return String::deserialize(input)?.parse().map_err(D::Error::custom);
        }
        let (job, number) = <(JobId, u8)>::deserialize(input)?;
        let (ending, _) =
            Ending::ALL.get(usize::from(number)).ok_or_else(|| D::Error::custom("no such way to end"))?;
        Ok(Self { job, ending: *ending })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;

    #[test]
    fn each_is_read_as_it_is_written_and_sent() {
        for text in ["j1.2", "j1.2:failed", "j4294967295.1:any"] {
            let after: After = text.parse().unwrap();
            assert_eq!(after.to_string(), text);
            assert_eq!(wire::decode::<After>(&wire::encode(&after).unwrap()).unwrap(), after);
        }
        for wrong in ["", "j1.2:", "j1.2:OK", "j1.2/3", "j1", "any", "j1.2:any:any"] {
            let message = wrong.parse::<After>().unwrap_err().to_string();
            assert!(message.starts_with(&format!("after: {wrong:?} is no job to wait for: ")), "{message}");
        }
    }
}
