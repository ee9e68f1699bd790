//! What becomes of ends that are lost, left and come for again.

use std::path::Path;

use libgrid::ids::JobId;
use libgrid::pipe::PipeSpec;
use libgrid::units::Bytes;

use super::super::{Reading, Writing};
use super::*;

fn memory() -> Arc<Pipe> {
    Pipe::open(PipeSpec::new("x"), Path::new("/nowhere")).unwrap()
}

fn spilled(folder: &Path) -> Arc<Pipe> {
    let spec = PipeSpec { spill: Some(Bytes(1 << 20)), ..PipeSpec::new("x") };
    Pipe::open(spec, folder).unwrap()
}

fn end(index: u32, epoch: u32) -> (Key, Run) {
    let task = JobId { home: NodeId(1), serial: 1 }.task(index);
    (Key { owner: (NodeId(1), 1000), task }, Run { task, epoch })
}

async fn all(pipe: &Arc<Pipe>) -> Vec<u8> {
    let mut reading = Reading::begin(pipe);
    let mut bytes = Vec::new();
    while let Ok(Ok(Some(lent))) = tokio::time::timeout(Duration::from_millis(50), reading.next()).await {
        bytes.extend(lent.bytes());
        lent.had().unwrap();
    }
    bytes
}

async fn waits<T>(what: impl Future<Output = T>) -> bool {
    tokio::time::timeout(Duration::from_millis(50), what).await.is_err()
}

#[tokio::test]
async fn a_writer_that_comes_again_is_told_what_was_taken_and_its_pipe_does_not_end_meanwhile() {
    let pipe = memory();
    let mut reading = Reading::begin(&pipe);
    let (lost, taken) = pipe.write_for(end(0, 1), 1).await.unwrap();
    assert_eq!(taken, 0);
    lost.write(b"one").await.unwrap();
    lost.write(b"two").await.unwrap();
    drop(lost);
    reading.next().await.unwrap().unwrap().had().unwrap();
    assert!(waits(reading.next()).await, "it may come again");
    let (again, taken) = pipe.write_for(end(0, 1), 2).await.unwrap();
    assert_eq!(taken, 2, "the second is here");
    let (third, taken) = pipe.write_for(end(0, 1), 3).await.unwrap();
    assert_eq!(taken, 2);
    assert!(again.write(b"x").await.is_err(), "another came after it");
    third.close();
    assert!(reading.next().await.unwrap().is_none());
    assert_eq!(pipe.counts(), (0, 1, 0));
}

#[tokio::test]
async fn a_later_run_writes_when_the_one_before_is_done_and_that_writes_no_more() {
    let pipe = memory();
    let (first, _) = pipe.write_for(end(0, 1), 1).await.unwrap();
    let second = tokio::spawn({
        let pipe = pipe.clone();
        async move { pipe.write_for(end(0, 2), 1).await.unwrap().0 }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!second.is_finished(), "the first is there");
    first.write(b"a").await.unwrap();
    first.leave();
    let second = second.await.unwrap();
    second.write(b"b").await.unwrap();
    assert!(pipe.write_for(end(0, 1), 2).await.is_err(), "it is replaced");
    second.close();
    assert_eq!(all(&pipe).await, b"ab");
    // Of another owner the same task is another one.
    let (key, run) = end(0, 1);
    assert!(pipe.write_for((Key { owner: (NodeId(2), 7), ..key }, run), 1).await.is_ok());
}

#[tokio::test]
async fn later_runs_write_in_their_order_and_wait_for_one_that_may_come_again() {
    let pipe = memory();
    let (first, _) = pipe.write_for(end(0, 1), 1).await.unwrap();
    let coming = |epoch| {
        let pipe = pipe.clone();
        tokio::spawn(async move { pipe.write_for(end(0, epoch), 1).await.unwrap().0 })
    };
    let second = coming(2);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let third = coming(3);
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(first);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!second.is_finished() && !third.is_finished(), "it may come again");
    let (again, _) = pipe.write_for(end(0, 1), 1).await.unwrap();
    again.write(b"1").await.unwrap();
    // It is closed by who does not know that it goes on.
    again.close();
    let second = second.await.unwrap();
    assert!(!third.is_finished());
    second.write(b"2").await.unwrap();
    drop(second);
    // The second is lost for good.
    let third = third.await.unwrap();
    third.write(b"3").await.unwrap();
    assert_eq!(pipe.counts(), (3, 0, 1));
    third.close();
    assert_eq!(all(&pipe).await, b"123");
}

#[tokio::test]
async fn who_does_not_come_again_is_no_writer_and_its_part_is_the_next_readers() {
    let pipe = memory();
    let (writing, _) = pipe.write_for(end(0, 1), 1).await.unwrap();
    let reading = pipe.read_for(end(1, 1), None, false).unwrap();
    writing.write(b"a").await.unwrap();
    let (at, _) = reading.next().await.unwrap().unwrap();
    drop((writing, reading));
    assert_eq!(pipe.counts(), (1, 1, 1));
    let mut other = Reading::begin(&pipe);
    tokio::time::sleep(LOST * 2).await;
    assert_eq!(pipe.counts(), (1, 1, 0));
    // It comes after all, and has it already.
    let reading = pipe.read_for(end(1, 1), Some(Part { at, len: 1 }), true).unwrap();
    assert!(other.next().await.unwrap().is_none());
    reading.close();
    assert_eq!(pipe.counts(), (0, 1, 0));
    let (_, taken) = pipe.write_for(end(0, 1), 1).await.unwrap();
    assert_eq!(taken, 1, "what it brought is not taken again");
}

#[tokio::test]
async fn what_was_kept_for_one_that_waited_is_closed_when_it_does_not_come() {
    let pipe = memory();
    let (first, _) = pipe.write_for(end(0, 1), 1).await.unwrap();
    let second = tokio::spawn({
        let pipe = pipe.clone();
        async move { pipe.write_for(end(0, 2), 1).await.map(drop) }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    second.abort();
    first.close();
    assert_eq!(pipe.counts().2, 1);
    tokio::time::sleep(LOST * 2).await;
    assert_eq!(pipe.counts().2, 0);
}

#[tokio::test]
async fn a_reader_that_left_goes_on_as_a_later_run_and_comes_to_the_same_end() {
    let pipe = memory();
    let writing = Writing::begin(&pipe);
    let reading = pipe.read_for(end(0, 1), None, false).unwrap();
    writing.write(b"a").await.unwrap();
    reading.next().await.unwrap().unwrap();
    reading.had().unwrap();
    reading.leave();
    drop(writing);
    let reading = pipe.read_for(end(0, 2), None, false).unwrap();
    assert!(reading.next().await.unwrap().is_none());
    reading.leave();
    assert!(pipe.read_for(end(0, 1), None, true).is_err(), "it is replaced");
    let reading = pipe.read_for(end(0, 3), None, false).unwrap();
    assert!(reading.next().await.unwrap().is_none(), "the end is told again");
    assert_eq!(pipe.counts().1, 1);
}

#[tokio::test]
async fn one_owner_has_so_many_ends_and_others_as_many() {
    let pipe = memory();
    let held: Vec<CarriedReading> =
        (0..MOST as u32).map(|index| pipe.read_for(end(index, 1), None, false).unwrap()).collect();
    assert!(pipe.read_for(end(MOST as u32, 1), None, false).is_err());
    let (key, run) = end(0, 1);
    let other = Key { owner: (NodeId(2), 7), ..key };
    assert!(pipe.read_for((other, run), None, false).is_ok());
    for next in [0, u64::MAX] {
        assert!(pipe.write_for(end(0, 1), next).await.is_err());
    }
    held.into_iter().for_each(CarriedReading::close);
}

#[tokio::test]
async fn what_a_lost_reader_got_is_kept_for_it_and_not_given_again_if_it_has_it() {
    let pipe = memory();
    let writing = Writing::begin(&pipe);
    let reading = pipe.read_for(end(0, 1), None, false).unwrap();
    writing.write(b"abc").await.unwrap();
    let (at, bytes) = reading.next().await.unwrap().unwrap();
    drop(reading);
    assert!(all(&pipe).await.is_empty(), "others do not get it");
    let reading = pipe.read_for(end(0, 1), None, false).unwrap();
    assert_eq!(reading.next().await.unwrap().unwrap(), (at, bytes.clone()));
    drop(reading);
    let reading = pipe.read_for(end(0, 1), Some(Part { at, len: 3 }), true).unwrap();
    assert!(waits(reading.next()).await);
    writing.write(b"de").await.unwrap();
    assert_eq!(reading.next().await.unwrap().unwrap(), (3, b"de".to_vec()));
    reading.close();
    assert_eq!(all(&pipe).await, b"de", "it reads no more");
    drop(writing);
    let reading = pipe.read_for(end(0, 1), None, false).unwrap();
    assert!(waits(reading.next()).await, "one that comes later waits for the next writer");
}

#[tokio::test]
async fn a_spilled_pipe_knows_after_a_kill_who_wrote_what_and_what_readers_have() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = spilled(folder.path());
    let (writing, _) = pipe.write_for(end(0, 1), 1).await.unwrap();
    writing.write(b"one").await.unwrap();
    let (other, _) = pipe.write_for(end(1, 1), 1).await.unwrap();
    other.write(b"two").await.unwrap();
    other.close();
    writing.write(b"three").await.unwrap();
    let reading = pipe.read_for(end(2, 1), None, false).unwrap();
    assert_eq!(reading.next().await.unwrap().unwrap(), (0, b"onetwothree".to_vec()));
    // As if the agent were killed: what was there before sees nothing of this one.
    let again = spilled(folder.path());
    assert_eq!(again.counts(), (11, 0, 1), "who has not closed is waited for");
    let read = again.read_for(end(2, 1), Some(Part { at: 0, len: 3 }), true).unwrap();
    assert_eq!(read.next().await.unwrap().unwrap(), (3, b"twothree".to_vec()));
    let (writing, taken) = again.write_for(end(0, 1), 2).await.unwrap();
    assert_eq!(taken, 2);
    writing.close();
    read.had().unwrap();
    assert!(read.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_chunk_that_a_kill_left_in_part_is_cut_off_and_wanted_again() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = spilled(folder.path());
    let (writing, _) = pipe.write_for(end(0, 1), 1).await.unwrap();
    writing.write(b"whole").await.unwrap();
    writing.write(b"torn").await.unwrap();
    let data = std::fs::File::options().write(true).open(folder.path().join("x.data")).unwrap();
    data.set_len(7).unwrap();
    let again = spilled(folder.path());
    let (writing, taken) = again.write_for(end(0, 1), 2).await.unwrap();
    assert_eq!((taken, again.counts().0), (1, 5));
    // What others write where it was is not taken for it.
    let other = Writing::begin(&again);
    other.write(b"another").await.unwrap();
    let last = spilled(folder.path());
    assert_eq!(last.write_for(end(0, 1), 2).await.unwrap().1, 1);
    drop(writing);
}
