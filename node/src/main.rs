//! The `mingle` program.

fn main() -> std::process::ExitCode {
    mingle::cli::main()
}
