//! Accepting a job: its inputs go to the spool, then it is written down, then its user is told its name.

use std::io;
use std::sync::Arc;

use grid_jobs::record::Origin;
use libgrid::address::Address;
use libgrid::control::{Chunk, Failure, Kind, Submission, Submitted};
use libgrid::spec::Net;
use libgrid::units::Bytes;
use libgrid::wire::stream;

use super::{Answer, Stream};
use crate::caller::Caller;
use crate::fates;
use crate::grid::Grid;
use crate::machine;
use crate::spool;

pub(super) async fn submit<S: Stream>(
    grid: Result<Arc<Grid>, Failure>,
    caller: &Caller,
    submission: Submission,
    client: &mut S,
) -> Result<Submitted, Answer> {
    let accepted = grid.and_then(|grid| {
        caller.may_submit()?;
        check(&grid, &submission).map(|spec| (grid, spec))
    });
    let accepted = match accepted {
        Ok((grid, spec)) => fates::allow(&grid, &spec).await.map(|()| (grid, spec)),
        Err(failure) => Err(failure),
    };
    let (grid, spec) = match accepted {
        Ok(accepted) => accepted,
        Err(failure) => {
            // The client sends its inputs before it listens.
            if submission.upload {
                drain(client).await?;
            }
            return Err(failure.into());
        }
    };
    let upload = if submission.upload { Some(receive(&grid, client).await?) } else { None };
    let origin = Origin {
        owner: caller.owner(),
        uid: caller.uid,
        gid: caller.gid,
        folder: submission.folder,
        inputs: upload.as_ref().map(|upload| upload.number),
        stdin: submission.input,
    };
    let submitted = grid.core.submit(Arc::new(spec), origin).await?;
    if let Some(upload) = upload {
        upload.keep();
    }
    Ok(submitted)
}

fn check(grid: &Grid, submission: &Submission) -> Result<libgrid::spec::JobSpec, Failure> {
    grid.identity.must_be_of_vo()?;
    let spec = submission.spec.clone().check();
    let spec = spec.map_err(|error| Failure::new(Kind::Invalid, error.to_string()))?;
    libgrid::archive::Patterns::new(&spec.stage_out)
        .map_err(|error| Failure::new(Kind::Invalid, format!("stage_out: {error}")))?;
    if !submission.folder.is_absolute() {
        let why = format!("{} is no absolute path: name the folder from / on", submission.folder.display());
        return Err(Failure::new(Kind::Invalid, why));
    }
    if spec.net == Net::Grid
        && let Err(error) = Address::of_node(grid.me)
    {
        let why = format!("net: {error}: submit on such a node, or without --net grid");
        return Err(Failure::new(Kind::Invalid, why));
    }
    if submission.input.is_some() && spec.tasks() != 1 {
        let why = "an array cannot be typed into: submit one task, or submit without input";
        return Err(Failure::new(Kind::Invalid, why));
    }
    let state = &grid.config.state_dir;
    match machine::room(state) {
        Some(room) if room < machine::KEEP_FREE => {
            let why = format!("only {} are free below {}: make room there", Bytes(room), state.display());
            Err(Failure::new(Kind::State, why))
        }
        _ => Ok(spec),
    }
}

async fn drain<S: Stream>(client: &mut S) -> Result<(), Answer> {
    while !stream::read::<Chunk, _>(client).await?.0.is_empty() {}
    Ok(())
}

/// Writes what the client sends into an archive in the spool.
async fn receive<S: Stream>(grid: &Grid, client: &mut S) -> Result<spool::Archive, Answer> {
    let failed = |error: io::Error| Failure::new(Kind::State, spool::unkept(&grid.config, &error));
    let mut archive = spool::Archive::create(&grid.config).await.map_err(failed)?;
    loop {
        let Chunk(bytes) = stream::read(client).await?;
        if bytes.is_empty() {
            break;
        }
        if let Err(error) = archive.write(&bytes).await {
            drain(client).await?;
            return Err(failed(error).into());
        }
    }
    archive.sync().await.map_err(failed)?;
    Ok(archive)
}
