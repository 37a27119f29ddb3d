//! What this process uses of the machine's memory, and what is left: from Linux's `/proc` and the limits of the control
//! group, where a container has less than the machine. Elsewhere nothing is known, and nothing is said.

use std::path::Path;

/// Memory of this process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// In the machine's memory now.
    pub resident: u64,
    /// The most it ever was.
    pub peak: u64,
}

/// The number of kibibytes that `/proc` names `field`, in bytes.
fn kibibytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

/// What this process has now and had at most.
pub fn memory() -> Option<Memory> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(Memory { resident: kibibytes(&text, "VmRSS")?, peak: kibibytes(&text, "VmHWM")? })
}

/// What processes may still take without making the machine swap, or the control group of this process reach its limit.
pub fn available() -> Option<u64> {
    let machine = kibibytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")?;
    Some(control_group(Path::new("/sys/fs/cgroup")).map_or(machine, |left| left.min(machine)))
}

/// What is left below the memory limit of the control group mounted at `root`, version 2 or 1. File pages count as left:
/// the kernel drops them before it refuses memory.
fn control_group(root: &Path) -> Option<u64> {
    let number = |file: &str| std::fs::read_to_string(root.join(file)).ok()?.trim().parse::<u64>().ok();
    let left = |limit: u64, used: u64, stat: &str, field: &str| {
        let stat = std::fs::read_to_string(root.join(stat)).unwrap_or_default();
        let files = stat.lines().find_map(|line| line.strip_prefix(field)?.trim().parse::<u64>().ok()).unwrap_or(0);
        limit.saturating_sub(used.saturating_sub(files))
    };
    if let (Some(limit), Some(used)) = (number("memory.max"), number("memory.current")) {
        return Some(left(limit, used, "memory.stat", "inactive_file "));
    }
    let (limit, used) = (number("memory/memory.limit_in_bytes")?, number("memory/memory.usage_in_bytes")?);
    Some(left(limit, used, "memory/memory.stat", "total_inactive_file "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_are_found_by_their_whole_name() {
        let text = "VmPeak:\t  90 kB\nVmRSSx:\t  7 kB\nVmRSS:\t  123 kB\nThreads:\t3\n";
        assert_eq!(kibibytes(text, "VmRSS"), Some(123 * 1024));
        assert_eq!(kibibytes(text, "Threads"), None);
        assert_eq!(kibibytes(text, "VmHWM"), None);
    }

    #[test]
    fn a_control_group_leaves_what_its_limit_and_its_file_pages_say() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(control_group(dir.path()), None);
        write("memory/memory.limit_in_bytes", "1000\n");
        write("memory/memory.usage_in_bytes", "900\n");
        write("memory/memory.stat", "cache 5\ntotal_inactive_file 300\n");
        assert_eq!(control_group(dir.path()), Some(400));
        write("memory.current", "600\n");
        write("memory.max", "max\n");
        assert_eq!(control_group(dir.path()), Some(400), "no limit in version 2");
        write("memory.max", "2000\n");
        assert_eq!(control_group(dir.path()), Some(1400));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_is_taken_shows() {
        let taken = vec![1u8; 64 << 20];
        let now = memory().unwrap();
        assert!(now.peak >= taken.len() as u64, "{now:?}");
        assert!(available().unwrap() > 0 && now.resident <= now.peak);
    }
}
