//! Keeps freed memory in the process while it trains. Every step allocates and frees the same large buffers; glibc gives
//! each back to the system and gets zeroed pages again, which was measured to cost a quarter of a step.
#![allow(unsafe_code)]

/// Buffers below this size stay in the heap when freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MMAP_THRESHOLD_BYTES: i32 = 1 << 30;

/// Tunes the allocator once for the whole process. Without effect where the allocator is not glibc's.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        // SAFETY: mallopt takes two integers and may be called at any time; it touches no memory of ours.
        ONCE.call_once(|| unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        });
    }
}
