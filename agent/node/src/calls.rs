//! Answers the grid's system call, which shims hand on from the processes of their tasks (`grid_run::shim`, `calls`).

use std::sync::Arc;

use libgrid::ids::Run;
use libgrid::sys::abi::{self, List, Op, Record};
use tokio::sync::mpsc;

use crate::control::operations::{Asked, answer};
use crate::grid::Grid;
use crate::runner::Query;

/// The most records of one answer.
const PAGE: usize = 1024;

/// A process of a run waits for an answer.
pub(crate) struct Called {
    pub(crate) run: Run,
    /// The shim's number for it.
    pub(crate) call: u64,
    pub(crate) asked: Asked,
}

/// Serves them until the agent stops.
pub(crate) async fn serve(grid: Arc<Grid>, mut called: mpsc::UnboundedReceiver<Called>) {
    while let Some(Called { run, call, asked }) = called.recv().await {
        let grid = grid.clone();
        tokio::spawn(async move {
            let (op, list) = (asked.op, List::from_bytes(&asked.input));
            let (errno, output, then) = answer(&grid, asked).await;
            let output = match op {
                Op::NODES if errno == 0 => page(&output, &list, |node: &abi::Node| node.number.into()),
                Op::JOBS if errno == 0 => page(&output, &list, |job: &abi::Job| job.job),
                _ => output,
            };
            // The caller has its answer before its task is stopped, as both are orders to its shim.
            let told = grid.queries.send(Query::Answer { run, call, errno, output });
            if let (Ok(()), Some(then)) = (told, then) {
                then.await;
            }
        });
    }
}

/// The records that a list asks for.
fn page<R: Record>(records: &[u8], list: &List, number: impl Fn(&R) -> u64) -> Vec<u8> {
    let all = records.chunks_exact(R::SIZE);
    let wanted = all.filter(|record| number(&R::from_bytes(record)) >= list.from);
    wanted.take(PAGE.min(list.count as usize)).flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_begins_where_it_is_asked_to() {
        let node = |number| abi::Node { number, ..abi::Node::default() };
        let records: Vec<u8> = (1..10).flat_map(|number| node(number).to_bytes()).collect();
        let asked = List { from: 4, count: 3, ..List::default() };
        let page = page(&records, &asked, |node: &abi::Node| node.number.into());
        let numbers = page.chunks_exact(abi::Node::SIZE).map(|one| abi::Node::from_bytes(one).number);
        assert_eq!(numbers.collect::<Vec<_>>(), [4, 5, 6]);
    }
}
