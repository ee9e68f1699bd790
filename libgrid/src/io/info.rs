//! What the kernel measured on a TCP connection: `TCP_INFO` (linux/tcp.h, `struct tcp_info`, tcp(7)); and the other
//! option that has no safe wrapper.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// The part of `struct tcp_info` up to `tcpi_delivery_rate`, as Linux 4.9 and later fill it. Fields are only ever
/// added at its end.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct TcpInfo {
    /// State, congestion state, retransmits, probes, back-off, options, window scales, limits.
    bytes: [u8; 8],
    rto: u32,
    ato: u32,
    snd_mss: u32,
    rcv_mss: u32,
    unacked: u32,
    sacked: u32,
    lost: u32,
    retrans: u32,
    fackets: u32,
    last_data_sent: u32,
    last_ack_sent: u32,
    last_data_recv: u32,
    last_ack_recv: u32,
    pmtu: u32,
    rcv_ssthresh: u32,
    rtt: u32,
    rttvar: u32,
    snd_ssthresh: u32,
    snd_cwnd: u32,
    advmss: u32,
    reordering: u32,
    rcv_rtt: u32,
    rcv_space: u32,
    total_retrans: u32,
    pacing_rate: u64,
    max_pacing_rate: u64,
    bytes_acked: u64,
    bytes_received: u64,
    segs_out: u32,
    segs_in: u32,
    notsent_bytes: u32,
    min_rtt: u32,
    data_segs_in: u32,
    data_segs_out: u32,
    delivery_rate: u64,
}

/// Limits what a connection takes from the program before it can be sent (`TCP_NOTSENT_LOWAT`, tcp(7)): what a slow
/// connection has in its buffer no faster one can take over.
pub(super) fn limit_unsent(socket: &impl AsFd, bytes: u32) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, bytes)
}

/// How many bytes have come before who waits for some is woken (`SO_RCVLOWAT`, socket(7)); the end of the connection
/// wakes it, too.
pub(super) fn wake_at(socket: &impl AsFd, bytes: u32) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
}

#[expect(unsafe_code, reason = "setsockopt of options that no safe wrapper offers")]
fn set(socket: &impl AsFd, level: i32, option: i32, value: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call (AsFd); the kernel reads four bytes of an integer that lives as long.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the kernel measured on one connection.
///
/// ```
/// let path = libgrid::io::PathInfo::default();
/// assert_eq!(path.loss(), 0.0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathInfo {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// The shortest round trip that was seen; of a connection that is new, the handshake's.
    pub min_rtt: Duration,
    /// The rate at which data was last delivered, in bytes a second; 0 if nothing was.
    pub delivery_rate: u64,
    /// The congestion window, in bytes.
    pub window: u64,
    /// Bytes that the other side has acknowledged.
    pub acknowledged: u64,
    /// Segments sent, with those sent again.
    pub segments: u64,
    /// Segments sent again.
    pub retransmitted: u64,
    /// How long nothing was acknowledged.
    pub silence: Duration,
    /// Segments that wait for an acknowledgement.
    pub in_flight: u32,
}

impl PathInfo {
    /// Asks the kernel about a TCP socket.
    ///
    /// # Errors
    /// The descriptor is not a TCP socket.
    ///
    /// ```no_run
    /// let stream = std::net::TcpStream::connect("10.0.0.1:9")?;
    /// println!("{:?}", libgrid::io::PathInfo::of(&stream)?.rtt);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[expect(unsafe_code, reason = "getsockopt of TCP_INFO, which no safe wrapper offers")]
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let mut info = TcpInfo::default();
        let mut length = size_of::<TcpInfo>() as libc::socklen_t;
        // SAFETY: the descriptor is open for the call (AsFd); the kernel writes at most `length` bytes to `info`, a
        // plain structure of integers that is valid for every pattern of bits, and says in `length` how many.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                (&raw mut info).cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let micros = |value: u32| Duration::from_micros(value.into());
        // Nothing measured is told as the largest number.
        let min_rtt = if info.min_rtt == u32::MAX { info.rtt } else { info.min_rtt };
        Ok(Self {
            rtt: micros(info.rtt),
            min_rtt: micros(min_rtt),
            delivery_rate: info.delivery_rate,
            window: u64::from(info.snd_cwnd) * u64::from(info.snd_mss),
            acknowledged: info.bytes_acked,
            segments: info.segs_out.into(),
            retransmitted: info.total_retrans.into(),
            silence: Duration::from_millis(info.last_ack_recv.into()),
            in_flight: info.unacked,
        })
    }

    /// The part of the segments that had to be sent again, from 0 to 1.
    ///
    /// ```
    /// let path = libgrid::io::PathInfo { segments: 200, retransmitted: 1, ..Default::default() };
    /// assert_eq!(path.loss(), 0.005);
    /// ```
    pub fn loss(&self) -> f64 {
        if self.segments == 0 { 0.0 } else { self.retransmitted as f64 / self.segments as f64 }
    }

    /// Whether data waits in queues on the way: the round trip takes a quarter longer than it must.
    ///
    /// ```
    /// use std::time::Duration;
    /// let (rtt, min_rtt) = (Duration::from_millis(80), Duration::from_millis(50));
    /// assert!(libgrid::io::PathInfo { rtt, min_rtt, ..Default::default() }.is_queued());
    /// ```
    pub fn is_queued(&self) -> bool {
        self.rtt > self.min_rtt + self.min_rtt / 4
    }

    /// The bandwidth-delay product, in bytes: what must be under way to fill the path at the rate last seen.
    ///
    /// ```
    /// use std::time::Duration;
    /// let path = libgrid::io::PathInfo {
    ///     min_rtt: Duration::from_millis(50), delivery_rate: 125_000_000, ..Default::default()
    /// };
    /// assert_eq!(path.bandwidth_delay(), 6_250_000);
    /// ```
    pub fn bandwidth_delay(&self) -> u64 {
        (self.delivery_rate as f64 * self.min_rtt.as_secs_f64()) as u64
    }
}
