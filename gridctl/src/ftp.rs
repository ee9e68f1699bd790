//! `gridctl ftp`: the FTP server, a program of its own beside this one.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context;

use crate::Done;
use crate::args::FtpCommand;

pub(crate) fn ftp(command: FtpCommand) -> Done {
    let FtpCommand::Serve { options } = command;
    let here = std::env::current_exe().context("cannot find this program's own place")?;
    let program = here.with_file_name("gridos-ftpd");
    // It takes the place of this process: signals and the exit status are its own.
    let error = Command::new(&program).args(options).exec();
    Err(error).with_context(|| {
        format!("cannot start {}: install it beside gridctl, as make install does", program.display())
    })
}
