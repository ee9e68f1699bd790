//! libcriu, safely: options, a hook, and what to do.

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Mutex;

use criu_sys::{Criu, criu_notify_arg_t, criu_opts};

use super::service::{End, Service};
use crate::installation::Installation;
use crate::order::Connections;

/// CRIU's own time to stop all processes, in seconds; then it gives up and lets them run on.
const TIME_TO_STOP: u32 = 10;

/// Bytes of a file that has no name any more, and is kept among the images. CRIU's own limit is 1 MiB.
const MOST_GHOST: u32 = 1 << 30;

/// Warnings and errors.
const LOG_LEVEL: c_int = 2;

/// What CRIU calls at its stages; an error makes it give up.
type Hook = Box<dyn FnMut(&str) -> Result<(), String> + Send>;

/// libcriu passes its callback nothing of ours.
static HOOK: Mutex<Option<(Hook, Option<String>)>> = Mutex::new(None);

/// A libcriu that is loaded.
pub(super) struct Library(Criu);

/// One set of options; for one operation.
pub(super) struct Options<'l> {
    criu: &'l Criu,
    raw: *mut criu_opts,
}

impl Library {
    /// Loads it.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn load(installation: &Installation) -> Result<Self, String> {
        let (first, library) = installation.libcriu();
        let wrong = |error: &dyn std::fmt::Display| {
            format!(
                "libcriu cannot be loaded: {error}; install libcriu2 beside criu, or run setup/install build"
            )
        };
        if let Some(first) = first {
            // SAFETY: protobuf-c has no initialisers.
            unsafe { criu_sys::keep_loaded(&first) }.map_err(|error| wrong(&error))?;
        }
        // SAFETY: the installation's own libcriu, by its versioned name: the header's functions are what it has.
        unsafe { Criu::new(&library) }.map(Self).map_err(|error| wrong(&error))
    }

    /// Options for a dump or restore with these images.
    ///
    /// # Errors
    /// Where there is no memory.
    pub(super) fn options(&self, images: BorrowedFd<'_>, log: &CStr) -> Result<Options<'_>, String> {
        let criu = &self.0;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the function writes one pointer.
        let made = unsafe { criu.criu_local_init_opts(&raw mut raw) };
        if made != 0 || raw.is_null() {
            return Err("libcriu has no memory".into());
        }
        let options = Options { criu, raw };
        // SAFETY: valid options until they are dropped; strings are copied by the library.
        unsafe {
            criu.criu_local_set_images_dir_fd(raw, images.as_raw_fd());
            criu.criu_local_set_log_level(raw, LOG_LEVEL);
            criu.criu_local_set_log_file(raw, log.as_ptr());
            criu.criu_local_set_manage_cgroups_mode(raw, criu_sys::CRIU_CG_MODE_IGNORE);
            criu.criu_local_set_ghost_limit(raw, MOST_GHOST);
            criu.criu_local_set_link_remap(raw, true);
            criu.criu_local_set_file_locks(raw, true);
            criu.criu_local_set_timeout(raw, TIME_TO_STOP);
            criu.criu_local_set_notify_cb(raw, Some(on_stage));
        }
        Ok(options)
    }
}

impl Options<'_> {
    pub(super) fn external(&mut self, key: &str) -> Result<(), String> {
        let key = CString::new(key).map_err(|error| error.to_string())?;
        // SAFETY: valid options; the string is copied.
        match unsafe { self.criu.criu_local_add_external(self.raw, key.as_ptr()) } {
            0 => Ok(()),
            _ => Err("libcriu has no memory".into()),
        }
    }

    pub(super) fn inherit(&mut self, fd: BorrowedFd<'_>, key: &str) -> Result<(), String> {
        let key = CString::new(key).map_err(|error| error.to_string())?;
        // SAFETY: valid options; the string is copied; the descriptor is borrowed for as long as the caller restores.
        match unsafe { self.criu.criu_local_add_inherit_fd(self.raw, fd.as_raw_fd(), key.as_ptr()) } {
            0 => Ok(()),
            _ => Err("libcriu has no memory".into()),
        }
    }

    /// Where CRIU writes its log, and looks for sockets.
    pub(super) fn work_in(&mut self, folder: BorrowedFd<'_>) {
        // SAFETY: valid options; the descriptor is borrowed for as long as the caller restores.
        unsafe { self.criu.criu_local_set_work_dir_fd(self.raw, folder.as_raw_fd()) };
    }

    /// Reads more options from a file, in the words of the command line: those that libcriu has no function for.
    pub(super) fn configure(&mut self, file: &str) -> Result<(), String> {
        let file = CString::new(file).map_err(|error| error.to_string())?;
        // SAFETY: valid options; the string is copied.
        match unsafe { self.criu.criu_local_set_config_file(self.raw, file.as_ptr()) } {
            0 => Ok(()),
            _ => Err("libcriu has no memory".into()),
        }
    }

    /// What becomes of TCP connections. Whoever keeps them has closed the task's link: CRIU need not lock anything.
    pub(super) fn connections(&mut self, connections: Connections) {
        let (kept, ended) = (connections == Connections::Kept, connections == Connections::Ended);
        if connections == Connections::Refused {
            return;
        }
        // SAFETY: valid options.
        unsafe {
            self.criu.criu_local_set_tcp_established(self.raw, kept);
            self.criu.criu_local_set_tcp_close(self.raw, ended);
            self.criu.criu_local_set_network_lock(self.raw, criu_sys::CRIU_NETWORK_LOCK_SKIP);
        }
    }

    /// Has the kernel note what is written to from now on. What was not written to since the images in `parent`, a way from these
    /// ones, is left out.
    pub(super) fn track(&mut self, parent: Option<&Path>) -> Result<(), String> {
        let parent = parent.map(|parent| CString::new(parent.as_os_str().as_bytes())).transpose();
        let parent = parent.map_err(|error| error.to_string())?;
        // SAFETY: valid options.
        unsafe { self.criu.criu_local_set_track_mem(self.raw, true) };
        let Some(parent) = parent else { return Ok(()) };
        // SAFETY: valid options; the string is copied.
        match unsafe { self.criu.criu_local_set_parent_images(self.raw, parent.as_ptr()) } {
            0 => Ok(()),
            _ => Err("libcriu has no memory".into()),
        }
    }

    /// Has this CRIU write the memory of the tree below `pid`, which runs on.
    pub(super) fn pre_dump(self, service: Service, pid: i32) -> Result<(), Failure> {
        let end = self.tell(service);
        // SAFETY: valid options.
        let result = unsafe {
            self.criu.criu_local_set_pid(self.raw, pid);
            self.criu.criu_local_pre_dump(self.raw)
        };
        end.wait();
        finish(result).map(drop)
    }

    /// Has this CRIU dump the tree below `pid`.
    pub(super) fn dump(
        self,
        service: Service,
        pid: i32,
        leave_running: bool,
        hook: Hook,
    ) -> Result<(), Failure> {
        set_hook(hook);
        let end = self.tell(service);
        // SAFETY: valid options.
        let result = unsafe {
            self.criu.criu_local_set_pid(self.raw, pid);
            self.criu.criu_local_set_leave_running(self.raw, leave_running);
            self.criu.criu_local_dump(self.raw)
        };
        end.wait();
        finish(result).map(drop)
    }

    /// Has this CRIU restore; returns the pid of the root.
    pub(super) fn restore(self, service: Service, hook: Hook) -> Result<i32, Failure> {
        set_hook(hook);
        let end = self.tell(service);
        // SAFETY: valid options.
        let result = unsafe { self.criu.criu_local_restore(self.raw) };
        end.wait();
        finish(result)
    }

    /// Whom to tell: libcriu closes the socket when that is done.
    fn tell(&self, service: Service) -> End {
        let (socket, end) = service.into_parts();
        // SAFETY: valid options.
        unsafe { self.criu.criu_local_set_service_fd(self.raw, socket.into_raw_fd()) };
        end
    }
}

impl Drop for Options<'_> {
    fn drop(&mut self) {
        // SAFETY: made by this library, and freed once.
        unsafe { self.criu.criu_local_free_opts(self.raw) };
    }
}

/// Why CRIU did not do it.
pub(super) enum Failure {
    /// Our hook's sentence.
    Hook(String),
    /// Its log says why.
    Criu,
    /// It could not be asked.
    Started(String),
}

fn finish(result: c_int) -> Result<i32, Failure> {
    let said = take_hook();
    if let Some(why) = said {
        return Err(Failure::Hook(why));
    }
    match -result {
        ..=0 => Ok(result),
        libc::EBADE => Err(Failure::Criu),
        errno => Err(Failure::Started(std::io::Error::from_raw_os_error(errno).to_string())),
    }
}

fn set_hook(hook: Hook) {
    if let Ok(mut place) = HOOK.lock() {
        *place = Some((hook, None));
    }
}

fn take_hook() -> Option<String> {
    HOOK.lock().ok()?.take()?.1
}

unsafe extern "C" fn on_stage(action: *mut c_char, _: criu_notify_arg_t) -> c_int {
    // SAFETY: libcriu passes a C string.
    let action = unsafe { CStr::from_ptr(action) }.to_string_lossy();
    let Ok(mut place) = HOOK.lock() else { return -1 };
    let Some((hook, said)) = place.as_mut() else { return 0 };
    match hook(&action) {
        Ok(()) => 0,
        Err(why) => {
            *said = Some(why);
            -1
        }
    }
}
