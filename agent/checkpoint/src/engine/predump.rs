//! Writing a round of a task's memory: see [`crate::rounds`].
//!
//! CRIU stops the task for as long as it takes to look through its mappings, and to have the pages kept by pipes; it runs on
//! while they are written. Nothing else of the task is looked at, so that the shim has nothing to do meanwhile. A round that
//! fails leaves no folder.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::dump::{ROOT, make, path_of, preflight};
use super::service::{Service, Start};
use super::{Criu, explain, inside, open_folder, size};
use crate::order::{Done, PreDump};
use crate::rounds;

/// CRIU's log, among the images.
const LOG: &str = "pre-dump.log";

pub(super) fn run(order: &PreDump, descriptors: Vec<OwnedFd>, criu: &Criu) -> Result<Done, String> {
    let start = Instant::now();
    let [init]: [OwnedFd; 1] =
        descriptors.try_into().map_err(|_| "the order names no task to look at".to_owned())?;
    preflight(&order.folder, &order.workdir, order.parent.is_none(), &init)?;
    make(&order.folder)?;
    let written = open_folder(&order.folder).and_then(|images| {
        inside::run(init.as_fd(), None, |_| pre_dump(order, &images, criu)).map_err(String::from)
    });
    match written {
        Ok(()) => Ok(Done { took: start.elapsed(), held: Duration::ZERO, bytes: size(&order.folder) }),
        Err(why) => {
            // The sentence of the round is the one to tell.
            let _ = fs::remove_dir_all(&order.folder);
            Err(why)
        }
    }
}

fn pre_dump(order: &PreDump, images: &OwnedFd, criu: &Criu) -> Result<(), String> {
    let service = Service::start(&criu.open, order.uid, Start::Child)?;
    let mut options = criu.libcriu.options(images.as_fd(), c"pre-dump.log")?;
    let parent = order.parent.as_deref().map(|parent| rounds::way(&order.folder, parent));
    options.track(parent.as_deref())?;
    let log = path_of(images).join(LOG);
    options.pre_dump(service, ROOT).map_err(|failure| explain("look through the memory of", failure, &log))
}
