//! Many mingle peers on one machine: real processes on loopback, real training, one report.

pub mod attacks;
pub mod base;
pub mod corpus;
pub mod live;
pub mod options;
pub mod page;
pub mod peer;
pub mod pretrain;
pub mod report;
pub mod round;
pub mod run;
pub mod scores;
pub mod setting;
pub mod tasks;
