//! Room `peft`.
