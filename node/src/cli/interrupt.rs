//! Ctrl-C while a verb computes: the work ends at the next point where it can go on from later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use crate::driver::Signals;

/// Exit code of a process that was interrupted twice: 128 and the number of SIGINT.
const INTERRUPTED: i32 = 130;

/// Is set by the first Ctrl-C or SIGTERM; the second ends the process at once.
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on.
    ///
    /// # Errors
    /// A system that does not let signals be heard.
    pub fn new() -> Result<Self> {
        Self::with_last_act(|| ())
    }

    /// Listens from now on; `last_act` is what must not be left undone even if the process ends at once.
    ///
    /// # Errors
    /// As [`Interrupt::new`].
    pub fn with_last_act(last_act: fn()) -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        let mut signals = {
            let _inside = runtime.enter();
            Signals::new()?
        };
        let set = asked.clone();
        let listen = move || {
            runtime.block_on(async {
                signals.received().await;
                set.store(true, Ordering::Relaxed);
                signals.received().await;
                last_act();
                std::process::exit(INTERRUPTED);
            })
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).context("cannot start a thread")?;
        Ok(Self(asked))
    }

    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
