//! Tests that need several crates together live in `tests/tests/`.
