//! Images mounted by the kernel through a loop device.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{run, wait_until};

/// A mounted image; unmounted and detached on drop.
#[derive(Debug)]
pub struct LoopMount {
    device: String,
    dir: tempfile::TempDir,
    mounted: bool,
}

impl LoopMount {
    /// Mounts an image read-write.
    pub fn new(image: &Path) -> Result<LoopMount, String> {
        LoopMount::with_options(image, "")
    }

    /// Mounts an image read-only, its journal left alone (the kernel refuses if it has to be replayed).
    pub fn read_only(image: &Path) -> Result<LoopMount, String> {
        LoopMount::with_options(image, "ro")
    }

    /// Mounts an image with options as for `mount -o`.
    pub fn with_options(image: &Path, options: &str) -> Result<LoopMount, String> {
        let image = image.to_string_lossy();
        let read_only = options.split(',').any(|o| o == "ro");
        let mut args = vec!["-f", "--show"];
        if read_only {
            args.push("-r");
        }
        args.push(&image);
        let device = run("losetup", &args)?.trim().to_owned();
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let mut mount = LoopMount {
            device,
            dir,
            mounted: false,
        };
        let target = mount.dir.path().to_string_lossy().into_owned();
        let mut args = vec!["-t", "ext4"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([mount.device.as_str(), target.as_str()]);
        run("mount", &args)?;
        mount.mounted = true;
        Ok(mount)
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path below it.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// Makes everything durable; sizes and blocks taken are final after it (the kernel allocates late).
    pub fn sync(&self) -> std::io::Result<()> {
        rustix::fs::syncfs(std::fs::File::open(self.dir())?).map_err(Into::into)
    }

    /// Unmounts and detaches; an error where drop would only try.
    pub fn unmount(mut self) -> Result<(), String> {
        let unmounted = self.unmount_now(false);
        let detached = self.detach();
        unmounted.and(detached)
    }

    fn unmount_now(&mut self, lazy: bool) -> Result<(), String> {
        if !self.mounted {
            return Ok(());
        }
        let dir = self.dir.path().to_string_lossy();
        let args: &[&str] = if lazy { &["-l", &dir] } else { &[&dir] };
        // A program that another thread is just starting holds what this process has open, until it runs.
        let mut last = Err(String::new());
        let gone = wait_until(Duration::from_secs(5), || {
            last = run("umount", args).map(drop);
            !last.as_ref().is_err_and(|e| e.contains("busy"))
        });
        debug_assert!(gone || last.is_err());
        last?;
        self.mounted = false;
        Ok(())
    }

    fn detach(&mut self) -> Result<(), String> {
        if self.device.is_empty() {
            return Ok(());
        }
        let device = std::mem::take(&mut self.device);
        run("losetup", &["-d", &device])?;
        // The kernel detaches once the last user of the device is gone, without saying when.
        let name = device.trim_start_matches("/dev/");
        let backing = format!("/sys/block/{name}/loop/backing_file");
        let gone = wait_until(Duration::from_secs(10), || !Path::new(&backing).exists());
        if gone {
            Ok(())
        } else {
            Err(format!("{device} is still attached"))
        }
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        if self.unmount_now(false).is_err()
            && let Err(e) = self.unmount_now(true)
        {
            eprintln!("left mounted: {e}");
        }
        if let Err(e) = self.detach() {
            eprintln!("left attached: {e}");
        }
    }
}
