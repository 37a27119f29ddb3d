//! The `mingle` program, built for the tests of this crate.

fn main() -> std::process::ExitCode {
    mingle::cli::main()
}
