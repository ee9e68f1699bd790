//! Carries bytes both ways between two streams.

use std::pin::pin;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::control::Stream;

/// Carries what either says to the other until both have ended.
///
/// Each way ends by itself: one who ends, and so reads no more, has its last words carried still, among which is
/// why it ended. What is said to it meanwhile is thrown away, or who says it would wait for ever.
pub(crate) async fn relay<A: Stream, B: Stream>(one: &mut A, other: &mut B) {
    let (one_says, one_hears) = tokio::io::split(one);
    let (other_says, other_hears) = tokio::io::split(other);
    let mut forth = pin!(carry(one_says, other_hears));
    let mut back = pin!(carry(other_says, one_hears));
    tokio::select! {
        said = &mut forth => discard_during(said, back).await,
        said = &mut back => discard_during(said, forth).await,
    };
}

/// Carries until either end of this way breaks or ends, and returns where it came from.
async fn carry<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(mut from: R, mut to: W) -> R {
    // A stream that breaks is one that ends: its other way tells.
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
    from
}

async fn discard_during(mut from: impl AsyncRead + Unpin, other_way: impl Future) {
    let discard = async {
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = other_way => (),
        () = discard => (),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn the_last_words_of_one_who_reads_no_more_arrive() {
        let (near, mut near_end) = UnixStream::pair().unwrap();
        let (mut far, mut far_end) = UnixStream::pair().unwrap();
        let near = near.into_std().unwrap();
        near.shutdown(Shutdown::Read).unwrap();
        let mut near = UnixStream::from_std(near).unwrap();
        let (listens, will_listen) = tokio::sync::oneshot::channel();
        let last_words = [7; 1000];
        let near_side = async {
            will_listen.await.unwrap();
            near.write_all(&last_words).await.unwrap();
            drop(near);
        };
        let far_side = async {
            // More than fits into the sockets.
            far.write_all(&vec![8; 1 << 22]).await.unwrap();
            listens.send(()).unwrap();
            let mut heard = Vec::new();
            // What it said last was perhaps not read any more: then the end is a broken one.
            let _ = far.read_to_end(&mut heard).await;
            drop(far);
            heard
        };
        let relay = async {
            relay(&mut near_end, &mut far_end).await;
            drop((near_end, far_end));
        };
        let both = async { tokio::join!(relay, near_side, far_side).2 };
        let heard = tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
        assert_eq!(heard, last_words);
    }
}
