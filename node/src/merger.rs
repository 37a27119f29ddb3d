//! Room `merger`.
