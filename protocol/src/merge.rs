//! Room `merge`.
