//! The processes that move data, one for each end.

use std::collections::BTreeMap;
use std::fmt;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};

use grid_transfer::mover::{self, Order, Report};
use grid_transfer::session::Trouble;
use libgrid::control::{Failure, Kind, Reply, Response};
use libgrid::copy::Progress;
use libgrid::user::User;
use libgrid::wire::stream;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::control::Stream;
use crate::identity::failure;
use crate::machine;

/// Data connections of all transfers of this node together, about.
const STREAMS: usize = 64;

/// Those that run on this node.
#[derive(Default)]
pub(crate) struct Movers {
    /// By their pids.
    running: Mutex<BTreeMap<u32, Moving>>,
}

/// What a mover does.
#[derive(Clone, Copy)]
pub(crate) struct Moving {
    pid: u32,
    uid: u32,
    sends: bool,
    progress: Progress,
}

/// The line above movers.
pub(crate) const IO: &str = "pid\tuid\tend\titems\tbytes\tof\tstreams\n";

impl fmt::Display for Moving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, uid, sends, progress } = self;
        let end = if *sends { "source" } else { "target" };
        let Progress { bytes, of_bytes, of_items, streams, .. } = progress;
        writeln!(f, "{pid}\t{uid}\t{end}\t{of_items}\t{bytes}\t{of_bytes}\t{streams}")
    }
}

/// A mover that runs; ended when this is dropped.
pub(crate) struct Mover<'a> {
    movers: &'a Movers,
    pid: u32,
    child: Child,
    orders: UnixStream,
}

impl Drop for Mover<'_> {
    fn drop(&mut self) {
        self.movers.lock().remove(&self.pid);
    }
}

impl Movers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Moving>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of a user, or with none, all.
    pub(crate) fn of(&self, uid: Option<u32>) -> Vec<Moving> {
        self.lock().values().filter(|one| uid.is_none_or(|uid| one.uid == uid)).copied().collect()
    }

    /// Starts one as this user, with its end of the control stream.
    pub(crate) fn start(&self, user: &User, order: &Order) -> Result<(Mover<'_>, UnixStream), Failure> {
        let cannot = |error: std::io::Error| {
            let program = machine::program("gridos-mover");
            failure(Kind::Internal, format!("cannot start {}: {error}", program.display()))
        };
        let (mut command, orders, control) =
            mover::command(&machine::program("gridos-mover"), user).map_err(cannot)?;
        command.stderr(Stdio::null());
        let child = Command::from(command).kill_on_drop(true).spawn().map_err(cannot)?;
        let pid = child.id().unwrap_or_default();
        let sends = matches!(order, Order::Send { .. });
        // An order is far smaller than the buffer of a socket.
        libgrid::wire::write(&mut &orders, order).map_err(|error| failure(Kind::Internal, &error))?;
        let asynchronous = |socket: std::os::unix::net::UnixStream| {
            socket.set_nonblocking(true).and_then(|()| UnixStream::from_std(socket)).map_err(cannot)
        };
        let (orders, control) = (asynchronous(orders)?, asynchronous(control)?);
        // Not before: it goes with the mover.
        self.lock().insert(pid, Moving { pid, uid: user.uid, sends, progress: Progress::default() });
        Ok((Mover { movers: self, pid, child, orders }, control))
    }

    /// How many data connections one more may have.
    pub(crate) fn most_streams(&self) -> u16 {
        let others = self.lock().len();
        u16::try_from((STREAMS / (others + 1)).max(1)).unwrap_or(1)
    }
}

impl Mover<'_> {
    /// Waits for what it has to say last; the client hears of the progress.
    pub(crate) async fn end<S: Stream>(&mut self, client: &mut S) -> Result<Report, Trouble> {
        let gone = |_| Trouble::passing("the process that moves the data ended early: see the agent's log");
        loop {
            match stream::read::<Report, _>(&mut self.orders).await.map_err(gone)? {
                Report::Progress(progress) => {
                    if let Some(moving) = self.movers.lock().get_mut(&self.pid) {
                        moving.progress = progress;
                    }
                    let told = stream::write(client, &Response::Ok(Reply::Copying(progress))).await;
                    told.map_err(|_| Trouble::lasting("nobody waits for it any more"))?;
                }
                Report::Failed(trouble) => return Err(trouble),
                last => {
                    // It ends by itself now; a child is waited for.
                    let _ = self.child.wait().await;
                    return Ok(last);
                }
            }
        }
    }
}
