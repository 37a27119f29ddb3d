//! Stands in for a GPU in tests: the kernels' sources, compiled for the processor as a library (`node/trainer/cuda/emulator`),
//! whose path `MINGLE_CUDA_EMULATOR` names. `tests/by_hand/emulated_kernels.sh` builds and uses it.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use candle_core::{Result, bail};

type Emulate = unsafe extern "C" fn(*const c_char, *const u32, u32, u32, *const *const c_void, usize) -> c_int;

thread_local! {
    static STANDS_IN: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread's CPU tensors are to be taken for a GPU's.
pub(crate) fn stands_in_for_the_gpu() -> bool {
    STANDS_IN.get()
}

/// Runs `body` with CPU tensors taken for a GPU's; without the emulator it says so and does not.
pub(crate) fn emulated(body: impl FnOnce()) {
    if emulate().is_none() {
        println!("skipped: MINGLE_CUDA_EMULATOR names no emulator (tests/by_hand/emulated_kernels.sh builds one)");
        return;
    }
    STANDS_IN.set(true);
    body();
    STANDS_IN.set(false);
}

fn emulate() -> Option<Emulate> {
    static LIBRARY: OnceLock<Option<Emulate>> = OnceLock::new();
    *LIBRARY.get_or_init(|| {
        let path = CString::new(std::env::var("MINGLE_CUDA_EMULATOR").ok()?).ok()?;
        // SAFETY: the library is our own, has no initialisers of its own, and its one function has this type.
        unsafe {
            let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
            assert!(!library.is_null(), "{path:?} cannot be opened");
            let function = libc::dlsym(library, c"emulate".as_ptr());
            assert!(!function.is_null(), "{path:?} has no function `emulate`");
            Some(std::mem::transmute::<*mut c_void, Emulate>(function))
        }
    })
}

pub(super) fn run(kernel: &str, grid: [u32; 2], threads: u32, shared: u32, values: &[u64]) -> Result<()> {
    // The emulator's blocks share their memory: one kernel at a time.
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(emulate) = emulate() else { bail!("there is no emulator") };
    let name = CString::new(kernel).map_err(candle_core::Error::wrap)?;
    let arguments: Vec<*const c_void> = values.iter().map(|value| std::ptr::from_ref(value).cast()).collect();
    // SAFETY: each argument points at 8 bytes, of which the kernel reads what its parameter has; the tensors behind
    // addresses live in the caller.
    match unsafe { emulate(name.as_ptr(), grid.as_ptr(), threads, shared, arguments.as_ptr(), arguments.len()) } {
        0 => Ok(()),
        1 => bail!("there is no kernel {kernel}"),
        2 => bail!("{kernel} does not take {} arguments", values.len()),
        other => bail!("{kernel} was refused: {other}"),
    }
}
