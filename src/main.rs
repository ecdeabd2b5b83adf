//! The `lockstep` command.

fn main() -> std::process::ExitCode {
    lockstepfs::cli::main()
}
