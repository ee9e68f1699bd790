//! One conversation with a peer: bytes both ways, in order, with flow control.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use quinn::{RecvStream, SendStream, VarInt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// Both directions of a stream. Frames go over it with [`libgrid::wire::stream`].
///
/// The peer learns of a stream with the first bytes that are written. Dropping [`SendHalf`] ends what we send;
/// dropping [`RecvHalf`] tells the peer to stop sending.
pub struct Duplex {
    /// What we send.
    pub send: SendHalf,
    /// What the peer sends.
    pub recv: RecvHalf,
}

/// What we send. [`AsyncWrite`]; `shutdown` ends it.
pub struct SendHalf {
    stream: SendStream,
    _guard: Arc<Guard>,
}

/// What the peer sends. [`AsyncRead`].
pub struct RecvHalf {
    stream: RecvStream,
    _guard: Arc<Guard>,
}

/// Whether a connection is in use.
#[derive(Default)]
pub(crate) struct Use {
    streams: AtomicUsize,
    /// A datagram was sent, and nothing heard since.
    unheard: AtomicBool,
    began: Notify,
}

/// Counts one stream as open; keeps alive what the stream needs.
struct Guard {
    counted: Arc<Use>,
    /// A joiner's endpoint lives as long as its stream.
    _keep: Option<quinn::Endpoint>,
}

// === impl Duplex ===

impl Duplex {
    pub(crate) fn new(
        (send, recv): (SendStream, RecvStream),
        counted: &Arc<Use>,
        keep: Option<quinn::Endpoint>,
    ) -> Self {
        counted.begin();
        let guard = Arc::new(Guard { counted: counted.clone(), _keep: keep });
        Self {
            send: SendHalf { stream: send, _guard: guard.clone() },
            recv: RecvHalf { stream: recv, _guard: guard },
        }
    }
}

impl fmt::Debug for Duplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Duplex({})", self.send.stream.id())
    }
}

impl fmt::Debug for SendHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SendHalf({})", self.stream.id())
    }
}

impl fmt::Debug for RecvHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecvHalf({})", self.stream.id())
    }
}

impl AsyncRead for Duplex {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.recv).poll_read(context, buffer)
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_shutdown(context)
    }
}

// === impl SendHalf ===

impl SendHalf {
    /// Nothing more will be sent; what was sent still arrives.
    pub fn finish(&mut self) {
        // Fails only where it was finished or reset before.
        let _ = self.stream.finish();
    }

    /// Gives up: the peer's reads fail, what was not delivered is forgotten.
    pub fn reset(&mut self) {
        let _ = self.stream.reset(VarInt::from_u32(0));
    }

    /// Waits until the peer has acknowledged everything after [`SendHalf::finish`].
    ///
    /// # Errors
    /// Where the peer stopped reading, or the connection broke.
    pub async fn delivered(&mut self) -> io::Result<()> {
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the peer stopped reading")),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsyncWrite for SendHalf {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.stream), context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.stream), context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.stream), context)
    }
}

// === impl RecvHalf ===

impl AsyncRead for RecvHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.stream), context, buffer)
    }
}

// === impl Use ===

impl Use {
    fn begin(&self) {
        self.streams.fetch_add(1, Ordering::AcqRel);
        self.began.notify_one();
    }

    /// A datagram went out.
    pub(crate) fn sent(&self) {
        if !self.unheard.swap(true, Ordering::AcqRel) {
            self.began.notify_one();
        }
    }

    /// Something came in.
    pub(crate) fn heard(&self) {
        self.unheard.store(false, Ordering::Release);
    }

    /// How many streams are open.
    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Acquire)
    }

    pub(crate) fn is_used(&self) -> bool {
        self.streams() > 0 || self.unheard.load(Ordering::Acquire)
    }

    /// Waits until it is used.
    pub(crate) async fn begun(&self) {
        while !self.is_used() {
            self.began.notified().await;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.counted.streams.fetch_sub(1, Ordering::AcqRel);
    }
}
