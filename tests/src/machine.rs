//! A virtual machine with Debian's own kernel: what this machine's kernel, or its init, may not have.
//!
//! The root file system is an initramfs made of busybox, the programs of GridOS and what a test adds. QEMU boots it
//! without hardware virtualisation. The test's script in it tells how things went, one `RESULT name=value` a line, on
//! the serial console, and at last `MACHINE DONE`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::program;

/// How long the machine may take, in seconds, without hardware virtualisation and beside other tests.
const PATIENCE: u32 = 600;

/// The same with a kernel that watches each access to memory and each lock.
const DEBUG_PATIENCE: u32 = 7200;

/// A machine that is yet to be started; its files go with the value.
#[derive(Debug)]
pub struct Machine {
    kernel: PathBuf,
    /// As QEMU names it.
    processor: &'static str,
    /// What the kernel is told besides.
    options: &'static str,
    /// In seconds.
    patience: u32,
    folder: tempfile::TempDir,
}

/// What a machine said on its serial console.
#[derive(Debug)]
pub struct Console {
    text: String,
}

// === impl Machine ===

impl Machine {
    /// A machine with an empty root.
    ///
    /// # Errors
    /// What this machine lacks, and what installs it.
    pub fn new() -> Result<Self, String> {
        Self::of("vmlinuz", "qemu64", "")
    }

    /// The same with one of the kernels that the module is tested on.
    ///
    /// # Errors
    /// What this machine lacks, and what installs it.
    pub fn with_kernel(version: &str) -> Result<Self, String> {
        // QEMU 7.2 sets wrong flags after cmpxchg16b, which the allocator of Linux 6.12 uses if it can.
        // What is freed is overwritten, and looked at when it is allocated again: a small part of what KASAN would find.
        Self::of(
            &format!("kernels/{version}/vmlinuz"),
            "max,-cx16",
            "slub_debug=FZP,gridos_process,kmalloc-*",
        )
    }

    /// The same with the kernel that `setup/kasan` built. It goes on after what it reports, and reports all.
    ///
    /// # Errors
    /// What this machine lacks, and what installs it.
    pub fn with_debug_kernel() -> Result<Self, String> {
        let machine = Self::of("kernels/kasan/vmlinuz", "max,-cx16", "kasan_multi_shot")?;
        Ok(Self { patience: DEBUG_PATIENCE, ..machine })
    }

    fn of(kernel: &str, processor: &'static str, options: &'static str) -> Result<Self, String> {
        if std::env::consts::ARCH != "x86_64" {
            return Err("the machine's kernel is for x86_64".into());
        }
        for tool in ["qemu-system-x86_64", "busybox", "cpio", "strip"] {
            if which(tool).is_none() {
                return Err(format!("there is no {tool}: setup/install test installs it"));
            }
        }
        let kernel = fetched(kernel)?;
        let folder = tempfile::Builder::new().prefix("gridvm-").tempdir_in("/var/tmp").unwrap();
        fs::create_dir(folder.path().join("root")).unwrap();
        Ok(Self { kernel, processor, options, patience: PATIENCE, folder })
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Makes an empty folder.
    pub fn mkdir(&self, path: &str) {
        fs::create_dir_all(self.root().join(path)).unwrap();
    }

    /// Writes a file; a program if `mode` says so.
    pub fn write(&self, path: &str, text: &str, mode: u32) {
        let to = self.root().join(path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(&to, text).unwrap();
        fs::set_permissions(to, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Installs busybox in a folder, by these names too.
    pub fn busybox(&self, folder: &str, names: &str) {
        let folder = self.root().join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::copy(which("busybox").unwrap(), folder.join("busybox")).unwrap();
        for name in names.split_whitespace() {
            symlink("busybox", folder.join(name)).unwrap();
        }
    }

    /// Makes it a machine on which an agent can run: its folders, root, the programs and their libraries, and this first
    /// program.
    pub fn node(&self, init: &str) {
        for name in ["proc", "sys", "dev", "tmp", "run", "var/lib"] {
            self.mkdir(name);
        }
        self.write("etc/passwd", "root:x:0:0::/root:/bin/sh\n", 0o644);
        self.write("init", init, 0o755);
        self.programs();
        self.libraries();
    }

    /// Installs the programs of GridOS in `usr/local/bin`.
    pub fn programs(&self) {
        self.install(&["gridosd", "gridctl", "gridos-shim", "gridos-init"]);
    }

    /// Installs CRIU, the kernel's modules that it needs (`modules`), and the programs of GridOS that move tasks with it.
    ///
    /// # Errors
    /// Where CRIU is not in the target folder: `setup/install build` puts it there, if the system's is too old.
    pub fn criu(&self) -> Result<(), String> {
        let modules = fetched("modules")?;
        let copied = Command::new("cp").arg("-r").arg(modules).arg(self.root()).status();
        assert!(copied.unwrap().success());
        let here = std::env::current_exe().unwrap();
        let found = here.ancestors().map(|folder| folder.join("criu")).find(|criu| criu.join("lib").exists());
        let criu = found.ok_or("there is no CRIU with its own libraries in the target folder")?;
        let folder = self.root().join("usr/local/lib/gridos");
        fs::create_dir_all(&folder).unwrap();
        let copied = Command::new("cp").arg("-r").args([criu, folder]).status();
        assert!(copied.unwrap().success());
        self.install(&["gridos-criu", "gridos-pages"]);
        Ok(())
    }

    /// Installs programs of this workspace in `usr/local/bin`.
    pub fn install(&self, programs: &[&str]) {
        let folder = self.root().join("usr/local/bin");
        fs::create_dir_all(&folder).unwrap();
        for name in programs {
            let strip = Command::new("strip").arg("-o").arg(folder.join(name)).arg(program(name)).status();
            assert!(strip.unwrap().success());
        }
    }

    /// Copies a file.
    pub fn copy(&self, path: &str, from: &Path) {
        let to = self.root().join(path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }

    /// Compiles a program of C, which needs no library, into `bin`.
    pub fn compile(&self, name: &str, source: &str) {
        let path = self.folder.path().join(format!("{name}.c"));
        fs::write(&path, source).unwrap();
        self.compile_file(name, &path, &[]);
    }

    /// The same from a file, with these options of the compiler.
    pub fn compile_file(&self, name: &str, path: &Path, options: &[String]) {
        let to = self.root().join("bin").join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-static", "-pthread"]);
        let built = gcc.args(options).arg("-o").args([&to, path]).status();
        assert!(built.unwrap().success(), "gcc");
    }

    /// Installs the libraries that the programs name, where no archive beneath has them.
    pub fn libraries(&self) {
        for name in ["gridosd", "gridctl", "gridos-shim"] {
            let libraries = Command::new("ldd").arg(program(name)).output().unwrap();
            let text = String::from_utf8_lossy(&libraries.stdout).into_owned();
            for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
                let to = self.root().join(library.trim_start_matches('/'));
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::copy(library, to).unwrap();
            }
        }
    }

    /// Boots, and waits until the machine has switched itself off. The root is laid over that of the archive
    /// `beneath`, if one is given; `init` is the first program, `memory` in MiB.
    pub fn boot(&self, beneath: Option<&Path>, init: &str, memory: u32) -> Console {
        let image = self.folder.path().join("initramfs");
        // The kernel unpacks one archive after the other.
        let pack = format!(
            "{{ cat {}; find . | cpio --quiet -o -H newc -R 0:0; }} > '{}'",
            beneath.map_or("/dev/null".into(), |path| format!("'{}'", path.display())),
            image.display()
        );
        assert!(Command::new("sh").args(["-c", &pack]).current_dir(self.root()).status().unwrap().success());
        // Not by KVM: there are machines that have it, and on which Debian's kernel stops early.
        let output = Command::new("timeout")
            .args([
                &self.patience.to_string(),
                "qemu-system-x86_64",
                "-accel",
                "tcg",
                "-m",
                &memory.to_string(),
                "-smp",
                // Two sockets: of one with two cores, the table that kernels without ACPI read has the first alone.
                "2,sockets=2",
            ])
            .args(["-cpu", self.processor, "-nographic", "-no-reboot", "-net", "none", "-kernel"])
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&image)
            .args(["-append", &format!("console=ttyS0 quiet panic=-1 rdinit={init} {}", self.options)])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        assert!(
            text.contains("MACHINE DONE") && output.status.success(),
            "the machine did not come to its end:\n{text}"
        );
        Console { text }
    }
}

// === impl Console ===

impl Console {
    /// Asserts that the machine told these values.
    pub fn expect(&self, expected: &[(&str, &str)]) {
        let results = self.results();
        for (name, value) in expected {
            assert_eq!(results.get(name), Some(value), "{name}\n{}", self.text);
        }
    }

    /// What the machine told, by name.
    pub fn results(&self) -> BTreeMap<&str, &str> {
        self.text.lines().filter_map(|line| line.split_once("RESULT ")?.1.split_once('=')).collect()
    }

    /// Everything that it said.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// What `setup/install test` put into the target folder's `vm`.
///
/// # Errors
/// That it is not there.
pub fn fetched(name: &str) -> Result<PathBuf, String> {
    let here = std::env::current_exe().unwrap();
    let found = here.ancestors().map(|folder| folder.join("vm").join(name)).find(|path| path.exists());
    found.ok_or_else(|| format!("there is no vm/{name} in the target folder: setup/install test fetches it"))
}

fn which(name: &str) -> Option<PathBuf> {
    let output = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap();
    output.status.success().then(|| PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()))
}
