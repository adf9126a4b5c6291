//! How much memory this process can have: what the machine has left, and what the control groups
//! that it runs in leave it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Memory that can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Available {
    /// Bytes.
    pub bytes: usize,
    /// What there is no more than that of.
    pub bound: Bound,
}

/// What bounds memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The machine.
    Machine,
    /// A control group, such as a container's.
    ControlGroup,
    /// [`set_limit`].
    Option,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Bound::Machine => "free on this machine",
            Bound::ControlGroup => "left in this control group (container)",
            Bound::Option => "left of what is allowed",
        })
    }
}

/// More memory is needed than there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} needs {needed} bytes of memory, {} are {}", available.bytes, available.bound)]
pub struct NoMemory {
    /// What it is for, as the subject of a sentence.
    pub what: String,
    /// Bytes that are needed.
    pub needed: usize,
    /// What there is.
    pub available: Available,
}

/// Most bytes that this process is to take; [`usize::MAX`]: as many as there are.
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Blocks below this are not compared with what there is, unless a limit is set: asking takes
/// longer than most requests for so little.
const SMALL: usize = 16 << 20;

/// More than any machine has.
const MOST: usize = isize::MAX as usize;

/// Lets this process take at most so many bytes of memory, mapped files not counted. A block that
/// would exceed it is refused like one that the machine does not have.
pub fn set_limit(bytes: usize) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

/// Memory that can be had now, without what is in use; where the system does not tell, any amount.
pub fn available() -> Available {
    let read = |path: &str| fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| in_kib(&text, "MemAvailable:"));
    let group = read("/proc/self/cgroup")
        .and_then(|text| group_available(&text, Path::new("/sys/fs/cgroup")));
    let option = match LIMIT.load(Ordering::Relaxed) {
        usize::MAX => None,
        limit => {
            let used = read("/proc/self/status").and_then(|text| in_kib(&text, "RssAnon:"));
            Some((limit as u64).saturating_sub(used.unwrap_or(0)))
        }
    };
    let bounds = [(machine, Bound::Machine), (group, Bound::ControlGroup), (option, Bound::Option)];
    let least = bounds.into_iter().filter_map(|(bytes, bound)| Some((bytes?, bound)));
    match least.min_by_key(|(bytes, _)| *bytes) {
        Some((bytes, bound)) => {
            Available { bytes: usize::try_from(bytes).unwrap_or(MOST).min(MOST), bound }
        }
        None => Available { bytes: MOST, bound: Bound::Machine },
    }
}

/// Refuses a block of `needed` bytes that there is no memory for; `what` is the subject of the
/// sentence that says so.
///
/// # Errors
/// [`NoMemory`].
pub fn check(what: impl std::fmt::Display, needed: usize) -> Result<(), NoMemory> {
    if needed < SMALL && LIMIT.load(Ordering::Relaxed) == usize::MAX {
        return Ok(());
    }
    available().check(what, needed)
}

impl Available {
    /// Refuses more than there is; `what` is the subject of the sentence that says so.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn check(self, what: impl std::fmt::Display, needed: usize) -> Result<(), NoMemory> {
        if needed <= self.bytes {
            return Ok(());
        }
        Err(NoMemory { what: what.to_string(), needed, available: self })
    }
}

/// Bytes that a line of such a name of a file of `/proc` says, in KiB there.
fn in_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The least that any control group among those of this process, and those around them, leaves.
/// `text` is `/proc/self/cgroup`, `root` where control groups are mounted: lines of version 2 begin
/// with `0::`, those of version 1 name their controllers.
fn group_available(text: &str, root: &Path) -> Option<u64> {
    let group = |line: &str| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let path = path.trim_start_matches('/');
        let (root, [limit, used, cache]) = match controllers {
            "" => (root.to_path_buf(), V2),
            list if list.split(',').any(|c| c == "memory") => (root.join("memory"), V1),
            _ => return None,
        };
        let folders = around(&root, path);
        folders.filter_map(|folder| left(&folder, limit, used, cache)).min()
    };
    text.lines().filter_map(group).min()
}

/// The files that say the limit, the use, and the name of the number of bytes of cached files.
const V2: [&str; 3] = ["memory.max", "memory.current", "inactive_file"];
const V1: [&str; 3] = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"];

/// The folder of a group, then those around it, up to the root: inside a container the path may be
/// the host's, and only the root is there.
fn around(root: &Path, path: &str) -> impl Iterator<Item = PathBuf> {
    let (root, mut at) = (root.to_path_buf(), Some(root.join(path)));
    std::iter::from_fn(move || {
        let this = at.take()?;
        at = (this != root).then(|| this.parent().map(Path::to_path_buf)).flatten();
        Some(this)
    })
}

/// What a group leaves: its limit without what is used, except for cached files, which make room.
fn left(folder: &Path, limit: &str, used: &str, cache: &str) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok() // `max` is no number
    };
    let limit = number(limit).filter(|&bytes| bytes < MOST as u64 / 2)?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cached = stat.lines().find_map(|line| {
        let (name, bytes) = line.split_once(' ')?;
        (name == cache).then(|| bytes.trim().parse::<u64>().ok()).flatten()
    });
    let used = number(used).unwrap_or(0).saturating_sub(cached.unwrap_or(0));
    Some(limit.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(folder).unwrap();
        files.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
    }

    #[test]
    fn the_tightest_group_around_the_process_counts() {
        let root = std::env::temp_dir().join(format!("cqc-cgroup-{}", std::process::id()));
        let text = "12:cpu,cpuacct:/a\n0::/outer/inner\n";
        assert_eq!(group_available(text, &root), None);
        write(&root.join("outer/inner"), &[("memory.max", "max\n"), ("memory.current", "5\n")]);
        assert_eq!(group_available(text, &root), None, "no limit");
        write(
            &root.join("outer"),
            &[
                ("memory.max", "1000\n"),
                ("memory.current", "300\n"),
                ("memory.stat", "anon 200\ninactive_file 100\n"),
            ],
        );
        assert_eq!(group_available(text, &root), Some(800));
        // version 1; the path is the host's, and the limit stands at the root
        let text = "9:memory:/docker/abc\n";
        write(
            &root.join("memory"),
            &[("memory.limit_in_bytes", "4096"), ("memory.usage_in_bytes", "5000")],
        );
        assert_eq!(group_available(text, &root), Some(0), "more is used than may be");
        write(&root.join("memory"), &[("memory.limit_in_bytes", "9223372036854771712")]);
        assert_eq!(group_available(text, &root), None, "version 1 says so where there is none");
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn what_the_machine_has_is_read_in_kib() {
        let text = "MemTotal: 16384 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(in_kib(text, "MemAvailable:"), Some(2048 << 10));
        assert_eq!(in_kib("MemTotal: 1 kB\n", "MemAvailable:"), None);
    }

    #[test]
    fn a_refusal_says_what_how_much_and_why() {
        let available = Available { bytes: 100, bound: Bound::Option };
        assert_eq!(available.check("it", 100), Ok(()));
        assert_eq!(
            available.check("it", 101).unwrap_err().to_string(),
            "it needs 101 bytes of memory, 100 are left of what is allowed"
        );
        assert!(check("it", usize::MAX).is_err() && check("it", 1).is_ok());
    }
}
