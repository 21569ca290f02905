//! What a shell and `man` want to know of the command line.

use std::{fs, io, path::Path};

use clap::Command;
use clap_complete::aot::{Bash, Fish, Zsh, generate};

use super::super::{
    args::views::Shell,
    complain,
    exit::{self, Exit},
    print, tree,
};

const NAME: &str = "matriarch";

/// `matriarch completion SHELL`.
pub(super) fn completion(shell: Shell) -> Exit {
    let mut text = Vec::new();
    let mut command = tree::command();
    match shell {
        Shell::Bash => generate(Bash, &mut command, NAME, &mut text),
        Shell::Zsh => generate(Zsh, &mut command, NAME, &mut text),
        Shell::Fish => generate(Fish, &mut command, NAME, &mut text),
    }
    print(&String::from_utf8_lossy(&text));
    exit::OK
}

/// `matriarch man`: the page of the whole, or a file for each command.
pub(super) fn man(dir: Option<&Path>) -> Exit {
    let Some(dir) = dir else {
        return match page(tree::command()) {
            Ok(page) => {
                print(&String::from_utf8_lossy(&page));
                exit::OK
            }
            Err(error) => complain(&format!("man: can't make the page ({error})"), exit::FAILED),
        };
    };
    match write_all(dir) {
        Ok(pages) => {
            print(&format!("{pages} pages are in {}\n", dir.display()));
            exit::OK
        }
        Err(error) => complain(
            &format!("man --dir {}: {error}; name a directory that can be written", dir.display()),
            exit::FAILED,
        ),
    }
}

fn write_all(dir: &Path) -> io::Result<usize> {
    fs::create_dir_all(dir)?;
    let mut pages = 0;
    let mut command = tree::command();
    command.build();
    write(&command, NAME, dir, &mut pages)?;
    Ok(pages)
}

/// Hidden commands are called by PostgreSQL and by the agent, and have no page.
fn write(command: &Command, name: &str, dir: &Path, pages: &mut usize) -> io::Result<()> {
    fs::write(dir.join(format!("{name}.1")), page(command.clone())?)?;
    *pages += 1;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        write(sub, &format!("{name}-{}", sub.get_name()), dir, pages)?;
    }
    Ok(())
}

fn page(command: Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    // A page of a command below ours would be of its last word otherwise.
    let source = format!("{NAME} {}", env!("CARGO_PKG_VERSION"));
    clap_mangen::Man::new(command).source(source).render(&mut page)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_visible_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let pages = write_all(dir.path()).unwrap();
        assert!(pages > 30, "{pages}");
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(read("matriarch.1").contains("switchover"));
        let page = read("matriarch-config-set.1");
        assert!(page.contains(".TH matriarch-config-set 1") && page.contains("\"matriarch 0."), "{page}");
        assert!(page.contains("crash_budget=5") && page.contains("if\\-version"), "{page}");
        assert!(!dir.path().join("matriarch-guard.1").exists());
    }
}
