//! Room `adapter`.
