//! How much memory this machine, or the container around this process, has.

use std::path::Path;

/// Of what there is, so much may be in use before new connections are refused: a training is to be let finish.
const TENTHS: usize = 9;

/// The bound when none is given; without a number from the system there is none.
pub fn default_max() -> usize {
    total().map_or(usize::MAX, |bytes| bytes / 10 * TENTHS)
}

/// The least of the machine's memory and the limits of the control groups around this process.
fn total() -> Option<usize> {
    let machine = meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(groups.lines().flat_map(limits_of).fold(machine, usize::min))
}

/// Bytes of `MemTotal`.
fn meminfo(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// The limits along the path of one line of `/proc/self/cgroup`: `0::/path` of version 2, `9:memory:/path` of version 1.
fn limits_of(line: &str) -> Vec<usize> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(kind), Some(group)) = (parts.next(), parts.next()) else { return Vec::new() };
    let (root, name) = match kind {
        "" => ("/sys/fs/cgroup", "memory.max"),
        kind if kind.split(',').any(|kind| kind == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return Vec::new(),
    };
    // Inside a container the path may be the host's, while its own group is mounted at the root.
    let group = Path::new(group.trim_start_matches('/'));
    let folders = group.ancestors().map(|folder| Path::new(root).join(folder));
    folders.filter_map(|folder| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_below_what_the_machine_has() {
        assert_eq!(meminfo("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2 << 20));
        assert_eq!(meminfo("nothing"), None);
        assert!(limits_of("3:cpu:/x").is_empty() && limits_of("garbage").is_empty());
        let max = default_max();
        assert!(max > 64 << 20, "{max}");
    }
}
