//! What a slow line does to frames, and how people write it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A line like that of a long distance, the same in both directions.
///
/// ```
/// use grid_lab::Slow;
/// let line = Slow {
///     delay: Slow::parse_delay("25ms").unwrap(),
///     rate: Some(Slow::parse_rate("1gbit").unwrap()),
///     loss: Slow::parse_loss("0.1%").unwrap(),
///     ..Slow::default()
/// };
/// assert_eq!(line.to_string(), "delay 25ms each way, rate 1gbit, loss 0.1%, queue 4166 packets");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slow {
    /// Added in **each** direction: the round trip grows by twice this. At most 10 s.
    pub delay: Duration,
    /// Bits per second in each direction, counting Ethernet headers; `None` does not limit.
    pub rate: Option<u64>,
    /// Frames lost by chance, per million, in each direction.
    pub loss: u32,
    /// Packets that may wait for the line in each direction; those that find it full are dropped. `None`: the
    /// bandwidth-delay product (rate × twice the delay) in packets of 1500 bytes, at least 100.
    pub queue: Option<u32>,
}

/// A text does not describe a slow line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSlowError {
    /// Not a time.
    #[error("`{0}` is not a delay: write a number with us, ms or s, up to 10s, like 25ms")]
    Delay(String),
    /// Not a rate.
    #[error("`{0}` is not a rate: write a number with bit, kbit, mbit or gbit (bits per second), like 1gbit")]
    Rate(String),
    /// Not a loss.
    #[error("`{0}` is not a loss: write 0% to 100%, or parts per million like 1000ppm")]
    Loss(String),
}

/// The longest delay.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// The fastest rate, in bits per second.
const MAX_RATE: f64 = 1e12;

/// The queue when nothing else is known.
const MIN_QUEUE: u32 = 100;

/// Where neither rate nor queue is given, nothing waits; this is what Linux gives an Ethernet device.
const UNLIMITED_QUEUE: u32 = 1000;

// === impl Slow ===

impl Slow {
    /// Reads a delay: `25ms`, `1.5s`, `500us`, `0`.
    pub fn parse_delay(text: &str) -> Result<Duration, ParseSlowError> {
        let fail = || ParseSlowError::Delay(text.to_owned());
        let (number, unit) = number_and_unit(text).ok_or_else(fail)?;
        let seconds = match unit.as_str() {
            "us" => number / 1e6,
            "ms" => number / 1e3,
            "s" => number,
            "" if number == 0.0 => 0.0,
            _ => return Err(fail()),
        };
        Duration::try_from_secs_f64(seconds).ok().filter(|delay| *delay <= MAX_DELAY).ok_or_else(fail)
    }

    /// Reads a rate in bits per second: `1gbit`, `2.5mbit`, `64kbit`, `9600bit`.
    pub fn parse_rate(text: &str) -> Result<u64, ParseSlowError> {
        let fail = || ParseSlowError::Rate(text.to_owned());
        let (number, unit) = number_and_unit(text).ok_or_else(fail)?;
        let factor = match unit.strip_suffix("/s").unwrap_or(&unit) {
            "bit" => 1.0,
            "kbit" => 1e3,
            "mbit" => 1e6,
            "gbit" => 1e9,
            _ => return Err(fail()),
        };
        let bits = (number * factor).round();
        // In range, so the conversion is exact up to the precision of the number.
        if (1.0..=MAX_RATE).contains(&bits) { Ok(bits as u64) } else { Err(fail()) }
    }

    /// Reads a loss, in parts per million: `0.1%`, `1000ppm`, `0`.
    pub fn parse_loss(text: &str) -> Result<u32, ParseSlowError> {
        let fail = || ParseSlowError::Loss(text.to_owned());
        let (number, unit) = number_and_unit(text).ok_or_else(fail)?;
        let ppm = match unit.as_str() {
            "%" => number * 1e4,
            "ppm" => number,
            "" if number == 0.0 => 0.0,
            _ => return Err(fail()),
        };
        // In range, so nothing is cut off.
        if (0.0..=1e6).contains(&ppm) { Ok(ppm.round() as u32) } else { Err(fail()) }
    }

    /// The packets that may wait in each direction.
    pub fn queue_packets(&self) -> u32 {
        let by_default = match self.rate {
            Some(rate) => {
                let bits = u128::from(rate) * 2 * self.delay.as_nanos() / 1_000_000_000;
                u32::try_from(bits / (8 * 1500)).unwrap_or(u32::MAX).max(MIN_QUEUE)
            }
            None => UNLIMITED_QUEUE,
        };
        self.queue.unwrap_or(by_default).max(1)
    }

    /// The arguments of `tc … netem`.
    pub(crate) fn netem(&self) -> Vec<String> {
        // netem counts what is under way with what waits.
        let under_way = self.rate.map_or(100_000, |rate| {
            u32::try_from(u128::from(rate) * self.delay.as_nanos() / (8 * 1500 * 1_000_000_000))
                .unwrap_or(u32::MAX)
        });
        let limit = self.queue_packets().saturating_add(under_way);
        let mut args = vec!["delay".into(), format!("{}us", self.delay.as_micros())];
        if let Some(rate) = self.rate {
            args.extend(["rate".into(), format!("{rate}bit")]);
        }
        if self.loss > 0 {
            args.extend(["loss".into(), percent(self.loss)]);
        }
        args.extend(["limit".into(), limit.to_string()]);
        args
    }
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "delay {:?} each way", self.delay)?;
        if let Some(rate) = self.rate {
            let units = [(1_000_000_000, "gbit"), (1_000_000, "mbit"), (1000, "kbit"), (1, "bit")];
            let (factor, unit) = units.into_iter().find(|(factor, _)| rate >= *factor).unwrap_or((1, "bit"));
            // For people: the precision of f64 is enough.
            write!(f, ", rate {}{unit}", rate as f64 / factor as f64)?;
        }
        if self.loss > 0 {
            write!(f, ", loss {}", percent(self.loss))?;
        }
        write!(f, ", queue {} packets", self.queue_packets())
    }
}

fn percent(ppm: u32) -> String {
    format!("{}%", f64::from(ppm) / 1e4)
}

/// Splits `2.5 MBit` into 2.5 and `mbit`; `None` without a plain number that is not negative.
fn number_and_unit(text: &str) -> Option<(f64, String)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim().to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays() {
        assert_eq!(Slow::parse_delay("25ms"), Ok(Duration::from_millis(25)));
        assert_eq!(Slow::parse_delay(" 1.5 s"), Ok(Duration::from_millis(1500)));
        assert_eq!(Slow::parse_delay("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(Slow::parse_delay("0"), Ok(Duration::ZERO));
        for bad in
            ["", "25", "ms", "-1ms", "1e3ms", "11s", "1h", "..ms", "infs", "nan", "9999999999999999999999s"]
        {
            let message = Slow::parse_delay(bad).unwrap_err().to_string();
            assert!(message.starts_with(&format!("`{bad}` is not a delay")), "{message}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(Slow::parse_rate("1gbit"), Ok(1_000_000_000));
        assert_eq!(Slow::parse_rate("2.5Mbit/s"), Ok(2_500_000));
        assert_eq!(Slow::parse_rate("64kbit"), Ok(64_000));
        assert_eq!(Slow::parse_rate("9600bit"), Ok(9600));
        for bad in ["", "0gbit", "1", "1g", "1gb", "-1gbit", "0.4bit", "2000gbit"] {
            assert!(Slow::parse_rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn losses() {
        assert_eq!(Slow::parse_loss("0.1%"), Ok(1000));
        assert_eq!(Slow::parse_loss("100%"), Ok(1_000_000));
        assert_eq!(Slow::parse_loss("15ppm"), Ok(15));
        assert_eq!(Slow::parse_loss("0"), Ok(0));
        for bad in ["", "0.1", "101%", "-1%", "%", "1000001ppm"] {
            assert!(Slow::parse_loss(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_queue_holds_the_bandwidth_delay_product() {
        let line = Slow { delay: Duration::from_millis(25), rate: Some(1_000_000_000), ..Slow::default() };
        assert_eq!(line.queue_packets(), 4166);
        assert_eq!(Slow { rate: Some(1_000_000), ..line }.queue_packets(), 100);
        assert_eq!(Slow { queue: Some(7), ..line }.queue_packets(), 7);
    }

    #[test]
    fn netem_is_told_the_same() {
        let line =
            Slow { delay: Duration::from_millis(25), rate: Some(1_000_000_000), loss: 1000, queue: None };
        assert_eq!(line.netem().join(" "), "delay 25000us rate 1000000000bit loss 0.1% limit 6249");
    }
}
