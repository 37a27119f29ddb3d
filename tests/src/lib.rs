//! What the tests that cross crates begin with: real processes of the program, a tiny base, adapters made of numbers.
//!
//! Nothing here imitates a part of mingle. A peer is a process with a home on disk, and what a test knows of it is what
//! anybody could: its status file, its events on standard output, its exit code, and the files it left.

pub mod adapters;
pub mod base;
pub mod desk;
pub mod http;
pub mod hub;
#[cfg(target_os = "linux")]
pub mod lab;
pub mod peer;
pub mod program;
pub mod served;

pub use desk::Desk;
pub use mingle_simulator::dice::{self, Dice};
pub use peer::{Peer, agree, wait};
pub use program::{Said, run};
