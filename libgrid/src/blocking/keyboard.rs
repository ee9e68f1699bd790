//! Typing into a task.

use super::{Grid, is_broken};
use crate::GridError;
use crate::control::{Input, Request};
use crate::ids::TaskId;
use crate::wire::{self, WireError};

/// The typing half of an interactive task.
///
/// ```no_run
/// # fn show(grid: &libgrid::blocking::Grid, task: libgrid::ids::TaskId) -> Result<(), libgrid::GridError> {
/// let mut keyboard = grid.type_into(task)?;
/// keyboard.send(&libgrid::control::Input::Bytes(b"ls\n".to_vec()))?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Keyboard {
    pub(super) grid: Grid,
    pub(super) task: TaskId,
}

impl Keyboard {
    /// Sends what was typed. Outlasts a restart of the agent; what was on its way then may be lost.
    ///
    /// # Errors
    /// [`GridError::Refused`] where the task takes no more, [`GridError::Wire`] where the connection ended.
    ///
    /// ```no_run
    /// # use libgrid::{blocking::Keyboard, control::Input};
    /// # fn end(mut keyboard: Keyboard) -> Result<(), libgrid::GridError> {
    /// keyboard.send(&Input::End)
    /// # }
    /// ```
    pub fn send(&mut self, input: &Input) -> Result<(), GridError> {
        match wire::write(&mut self.grid.stream, input) {
            Err(WireError::Io(error)) if is_broken(&error) => {
                self.reopen()?;
                Ok(wire::write(&mut self.grid.stream, input)?)
            }
            done => Ok(done?),
        }
    }

    /// A second keyboard for the same task, so that one thread can type while another resizes.
    ///
    /// # Errors
    /// As [`Grid::type_into`].
    ///
    /// ```no_run
    /// # fn two(keyboard: libgrid::blocking::Keyboard) -> Result<(), libgrid::GridError> {
    /// let other = keyboard.another()?;
    /// # Ok(()) }
    /// ```
    pub fn another(&self) -> Result<Self, GridError> {
        self.grid.type_into(self.task)
    }

    /// Waits until the agent says that the task takes no more input.
    ///
    /// # Errors
    /// [`GridError::Refused`] with the agent's reason.
    ///
    /// ```no_run
    /// # fn wait(mut keyboard: libgrid::blocking::Keyboard) -> Result<(), libgrid::GridError> {
    /// keyboard.closed()
    /// # }
    /// ```
    pub fn closed(&mut self) -> Result<(), GridError> {
        loop {
            match self.grid.receive() {
                Err(GridError::Wire(WireError::Io(error))) if is_broken(&error) => self.reopen()?,
                done => return done.map(drop),
            }
        }
    }

    fn reopen(&mut self) -> Result<(), GridError> {
        self.grid = self.grid.again()?;
        self.grid.send(&Request::Input { task: self.task })
    }
}
