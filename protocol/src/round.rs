//! Room `round`.
