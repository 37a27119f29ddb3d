//! One mingle peer: all effects (sockets, files, threads, clocks, gradients) live here, every decision that two
//! peers could take differently lives in `mingle_protocol`.

pub mod bases;
pub mod bundle;
pub mod card;
pub mod cli;
pub mod console;
pub mod contribution;
pub mod disk;
pub mod driver;
pub mod home;
pub mod http;
pub mod judge;
pub mod merged;
pub mod merger;
pub mod roster;
pub mod rule;
pub mod sent;
pub mod serving;
pub mod slice;

pub use mingle_network::{self as network, store};
pub use mingle_trainer::{data, evaluate, files, models, peft, train};
