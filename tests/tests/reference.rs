//! What is generated from the command line, compared with what is kept: docs/cli.md, which
//! `MINGLE_WRITE_SNAPSHOTS=1 cargo test -p mingle-tests --test reference` writes anew; and completions and manual pages.

use std::path::Path;

use mingle_tests::Desk;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

#[test]
fn the_reference_is_what_the_program_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("docs/cli.md");
    let text = mingle::cli::reference();
    if std::env::var_os("MINGLE_WRITE_SNAPSHOTS").is_some() {
        std::fs::write(&path, &text).expect("docs/cli.md");
    }
    let kept = std::fs::read_to_string(&path).expect("docs/cli.md");
    for (found, kept) in text.split("\n## ").zip(kept.split("\n## ")) {
        assert_eq!(found, kept);
    }
    assert_eq!(text.len(), kept.len());
}

#[test]
fn shells_and_manuals_know_every_verb() {
    let desk = Desk::new(PROGRAM);
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let text = desk.run(&format!("completions {shell}")).right();
        assert!(text.contains("withdraw") && text.contains("learning-rate"), "{shell}: {text}");
    }
    desk.run("man --out DIR/man").right();
    let page = std::fs::read_to_string(desk.path("man/mingle-round-new.1")).expect("a page");
    assert!(page.contains(".TH mingle-round-new 1") && page.contains("\\-\\-rank"), "{page}");
}
