//! Threads for transfers: as many as are needed, never more than a limit, with small stacks.
//!
//! A transfer blocks its thread on a socket or a file, so each stream has one. Threads that have had nothing to do for
//! a while end.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// What a thread needs at most; only what it touches takes memory.
const STACK: usize = 256 * 1024;

/// How long a thread waits for more to do.
const IDLE: Duration = Duration::from_secs(10);

type Work = Box<dyn FnOnce() + Send>;

/// Every thread is busy, and there may be no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {limit} transfer threads of this server are busy: try again later")]
pub(crate) struct Full {
    pub(crate) limit: usize,
}

#[derive(Debug)]
pub(crate) struct Pool {
    limit: usize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    work: VecDeque<Work>,
    threads: usize,
    idle: usize,
}

impl Pool {
    pub(crate) fn new(limit: usize) -> Arc<Pool> {
        Arc::new(Pool { limit, state: Mutex::default(), wake: Condvar::new() })
    }

    /// Carries `work` out on a thread of its own, at once.
    pub(crate) fn run(self: &Arc<Pool>, work: impl FnOnce() + Send + 'static) -> Result<(), Full> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.idle > state.work.len() {
            state.work.push_back(Box::new(work));
            self.wake.notify_one();
            return Ok(());
        }
        let full = Full { limit: self.limit };
        if state.threads >= self.limit {
            return Err(full);
        }
        let pool = self.clone();
        let first: Work = Box::new(work);
        thread::Builder::new()
            .name("transfer".into())
            .stack_size(STACK)
            .spawn(move || pool.serve(first))
            .map_err(|_| full)?;
        state.threads += 1;
        Ok(())
    }

    /// How many threads could begin something now.
    pub(crate) fn free(&self) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (self.limit - state.threads) + state.idle.saturating_sub(state.work.len())
    }

    fn serve(&self, first: Work) {
        first();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(work) = state.work.pop_front() {
                drop(state);
                work();
                state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.idle += 1;
            let (back, timeout) = self.wake.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            if timeout.timed_out() && state.work.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} threads, {} idle", self.threads, self.idle)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn beyond_the_limit_work_is_refused_and_threads_are_used_again() {
        let pool = Pool::new(2);
        let (release, hold) = mpsc::channel::<()>();
        let hold = Arc::new(Mutex::new(hold));
        let (said, done) = mpsc::channel();
        let work = || {
            let (hold, said) = (hold.clone(), said.clone());
            move || {
                let _ = hold.lock().unwrap().recv();
                said.send(thread::current().id()).unwrap();
            }
        };
        pool.run(work()).unwrap();
        pool.run(work()).unwrap();
        assert_eq!(pool.free(), 0);
        assert_eq!(pool.run(work()), Err(Full { limit: 2 }));
        release.send(()).unwrap();
        let first = done.recv_timeout(Duration::from_secs(5)).unwrap();
        release.send(()).unwrap();
        let second = done.recv_timeout(Duration::from_secs(5)).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while pool.free() < 2 && std::time::Instant::now() < deadline {
            thread::yield_now();
        }
        let (told, again) = mpsc::channel();
        pool.run(move || told.send(thread::current().id()).unwrap()).unwrap();
        let third = again.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!([first, second].contains(&third), "a third thread was started");
    }
}
