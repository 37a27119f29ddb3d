//! Room `evaluate`.
