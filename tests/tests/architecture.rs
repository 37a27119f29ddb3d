//! What the rooms agreed on, as tests: file sizes, which way doors open, where `unsafe` may be, what is never left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file longer than this is two ideas.
const LINES_MAX: usize = 400;

/// Files with `unsafe`, beside those of the kernels: each says why at its head.
const UNSAFE_FILES: [&str; 2] = ["protocol/src/number/dispatch.rs", "node/trainer/src/train/memory.rs"];
const UNSAFE_FOLDERS: [&str; 1] = ["node/trainer/src/models/kernels"];

/// What each crate of the workspace may use of the others.
const DOORS: [(&str, &[&str]); 8] = [
    ("protocol", &[]),
    ("node/trainer", &["mingle-protocol"]),
    ("node/network", &["mingle-protocol"]),
    ("node/serve", &["mingle-trainer"]),
    ("node", &["mingle-network", "mingle-protocol", "mingle-serve", "mingle-trainer"]),
    ("testnet", &["mingle", "mingle-protocol"]),
    ("tests/simulator", &["mingle-protocol"]),
    ("tests", &["mingle", "mingle-protocol", "mingle-simulator", "mingle-testnet"]),
];

/// All that the rules may use: no clock, socket, file, thread, async runtime, random source or float library among them.
const PROTOCOL_USES: [&str; 7] = ["blake3", "ed25519-dalek", "negentropy", "serde", "serde_cbor", "serde_json", "thiserror"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Every Rust file of the workspace, by its path from the root.
fn rust_files() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut folders = ["protocol", "node", "testnet", "tests"].map(|name| root().join(name)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the workspace").flatten() {
            let path = entry.path();
            if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path.strip_prefix(root()).expect("inside the workspace").to_string_lossy().replace('\\', "/");
                files.insert(name, std::fs::read_to_string(&path).expect("a Rust file is text"));
            }
        }
    }
    assert!(files.len() > 50, "only {} files were found", files.len());
    files
}

/// The source without comments and without the contents of strings, as far as the searches here need it.
fn code(source: &str) -> String {
    let line = |line: &str| line.split("//").next().unwrap_or_default().to_owned() + "\n";
    source.lines().map(line).collect()
}

/// Names under `[section]` of a Cargo.toml, and what follows each.
fn section(manifest: &str, section: &str) -> BTreeMap<String, String> {
    let heading = format!("[{section}]");
    let lines = manifest.lines().skip_while(|line| line.trim() != heading).skip(1).take_while(|line| !line.starts_with('['));
    let named = |line: &str| line.split_once('=').map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()));
    lines.filter(|line| !line.trim_start().starts_with('#')).filter_map(named).collect()
}

fn dependencies(manifest: &str, kind: &str) -> BTreeSet<String> {
    section(manifest, kind).into_keys().map(|name| name.split('.').next().unwrap_or_default().to_owned()).collect()
}

fn manifest(krate: &str) -> String {
    std::fs::read_to_string(root().join(krate).join("Cargo.toml")).expect("a Cargo.toml")
}

#[test]
fn files_stay_small() {
    let long: Vec<String> = rust_files()
        .iter()
        .filter(|(_, text)| text.lines().count() > LINES_MAX)
        .map(|(path, text)| format!("{path} has {} lines: split it by idea", text.lines().count()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<String> = rust_files()
        .into_iter()
        .filter(|(path, text)| !path.contains("/tests") && !path.contains("tests/") && !text.contains("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "files without a header: {silent:#?}");
}

#[test]
fn doors_open_one_way() {
    let crates: BTreeSet<&str> = [
        "mingle",
        "mingle-network",
        "mingle-protocol",
        "mingle-serve",
        "mingle-simulator",
        "mingle-trainer",
        "mingle-testnet",
        "mingle-tests",
    ]
    .into();
    for (krate, allowed) in DOORS {
        let used = dependencies(&manifest(krate), "dependencies");
        let all = used.iter().cloned().chain(dependencies(&manifest(krate), "dev-dependencies"));
        let ours: BTreeSet<String> = all.filter(|name| crates.contains(name.as_str())).collect();
        let extra: Vec<&String> = ours.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
        assert!(extra.is_empty(), "{krate} must not know {extra:?}");
    }
    let used = dependencies(&manifest("protocol"), "dependencies");
    let extra: Vec<&String> = used.iter().filter(|name| !PROTOCOL_USES.contains(&name.as_str())).collect();
    assert!(extra.is_empty(), "protocol must not know {extra:?}");
}

#[test]
fn the_rules_are_pure() {
    let effects = [
        "std::time::Instant",
        "std::time::SystemTime",
        "std::fs",
        "std::net",
        "std::thread",
        "std::env",
        "std::process",
        "std::io",
        "HashMap",
        "HashSet",
        "println!",
        "eprintln!",
        "rand::",
        "getrandom",
    ];
    for (path, text) in rust_files() {
        let rules = path.starts_with("protocol/src") && !path.contains("/tests");
        // Unit tests at the end of a file may read vectors from disk.
        let text = code(text.split("#[cfg(test)]\n#[allow").next().unwrap_or_default());
        let found: Vec<_> = effects.iter().filter(|effect| rules && text.contains(**effect)).collect();
        assert!(found.is_empty(), "{path} uses {found:?}, but rules know no effects");
    }
}

#[test]
fn candle_and_libp2p_stay_in_their_rooms() {
    // The verbs and the contribution only hand a device and a loaded base from one room to the next.
    let candle = [
        "node/trainer/src/models",
        "node/trainer/src/train",
        "node/trainer/src/evaluate",
        "node/trainer/src/peft",
        "node/trainer/examples",
        "node/src/cli",
        "node/src/contribution",
    ];
    for (path, text) in rust_files() {
        let text = code(&text);
        let node = path.starts_with("node/");
        let at_home = |rooms: &[&str]| rooms.iter().any(|room| path.starts_with(room));
        assert!(!node || !text.contains("candle_") || at_home(&candle), "{path} knows candle");
        assert!(!node || !text.contains("libp2p::") || at_home(&["node/network/src", "node/network/examples"]), "{path} knows libp2p");
    }
}

#[test]
fn a_record_is_made_of_bytes_in_one_file_only() {
    for (path, text) in rust_files() {
        let elsewhere = path != "protocol/src/record.rs" && path.starts_with("protocol/src");
        // A function that gives one is not yet one that makes one.
        let text = code(&text).replace("-> SignedRecord {", "");
        assert!(!elsewhere || !text.contains("SignedRecord {"), "{path} makes a signed record without its checks");
        assert!(!elsewhere || !text.contains("from_cbor::<Record>"), "{path} decodes a record without its checks");
    }
}

#[test]
fn unsafe_is_denied_and_allowed_only_where_it_is_said_why() {
    for (krate, _) in DOORS {
        let lints = section(&manifest(krate), "lints");
        assert_eq!(lints.get("workspace").map(String::as_str), Some("true"), "{krate} does not take the workspace's lints");
    }
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).expect("a Cargo.toml");
    assert_eq!(section(&workspace, "workspace.lints.rust").get("unsafe_code").map(String::as_str), Some("\"deny\""));
    let word = ["un", "safe"].concat();
    for (path, text) in rust_files() {
        let code = code(&text);
        let begins = |kind: &str| code.contains(&format!("{word} {kind}"));
        if !["{", "fn", "impl", "extern"].into_iter().any(begins) {
            continue;
        }
        let listed = UNSAFE_FILES.contains(&path.as_str()) || UNSAFE_FOLDERS.iter().any(|folder| path.starts_with(folder));
        assert!(listed, "{path} has {word} code, but is not on the list");
        assert!(text.contains("// SAFETY") || text.contains("/// # Safety"), "{path} does not say why its {word} code is right");
    }
}

#[test]
fn nothing_is_left_for_later() {
    let marks = ["todo", "unimplemented"].map(|name| format!("{name}!("));
    let marks = marks.into_iter().chain([["#[ig", "nore"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()]);
    let marks: Vec<String> = marks.collect();
    for (path, text) in rust_files() {
        let found: Vec<_> = marks.iter().filter(|mark| text.contains(*mark)).collect();
        assert!(found.is_empty(), "{path} holds {found:?}");
    }
}

#[test]
fn no_file_is_named_after_nothing() {
    for path in rust_files().into_keys() {
        let name = Path::new(&path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let vague = ["util", "utils", "common", "helper", "helpers", "manager", "misc"];
        assert!(!vague.contains(&name.as_str()), "{path}: name it after its idea");
    }
}

#[test]
fn the_readme_knows_every_verb() {
    let help = Command::new(env!("CARGO_BIN_EXE_mingle-peer")).arg("--help").output().expect("the program can be started");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let verbs = help.lines().skip_while(|line| line.trim() != "Commands:").skip(1).take_while(|line| line.starts_with("  "));
    // What is said of a verb may go on in the next line, further in.
    let verbs: Vec<&str> = verbs
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    assert!(verbs.len() >= 10, "{help}");
    let Ok(readme) = std::fs::read_to_string(root().join("README.md")) else {
        return println!("skipped: there is no README.md yet");
    };
    let unknown: Vec<_> = verbs.iter().filter(|verb| !readme.contains(&format!("mingle {verb}"))).collect();
    assert!(unknown.is_empty(), "README.md does not speak of {unknown:?}");
}
