use std::process::ExitCode;

use matriarch::guard;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|word| word == "guard") {
        return guard::run(args);
    }
    ExitCode::FAILURE
}
