//! The checkers. Each reads only what peers let out and what they hold, and each has its own idea of what is right.

mod acknowledged;
mod agreement;
mod bounds;
mod convergence;

pub use acknowledged::Acknowledged;
pub use agreement::Agreement;
pub use bounds::Bounds;
pub use convergence::Convergence;

pub struct Checks {
    pub acknowledged: Acknowledged,
    pub agreement: Agreement,
    pub bounds: Bounds,
    pub convergence: Convergence,
}

impl Checks {
    pub fn new(peers: usize, open_roster: bool) -> Self {
        Self {
            acknowledged: Acknowledged::new(peers, open_roster),
            agreement: Agreement::default(),
            bounds: Bounds::default(),
            convergence: Convergence::new(open_roster),
        }
    }
}
