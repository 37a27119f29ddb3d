//! The card of an exported directory: what people and the Hugging Face hub read first (`README.md`).
//!
//! It says what was made of what. Names and licences are words of strangers' files, and are quoted as such.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use mingle_protocol::round::Round;
use serde_json::{Value, json};

use crate::bases::name_of;
use crate::files;
use crate::merged::{self, Proof, RECEIPT_FILE};

const CARD: &str = "README.md";
/// What is looked at of a base's own card: its head.
const HEAD_BYTES_MAX: u64 = 64 << 10;
const WORD_CHARS_MAX: usize = 200;

/// What an exported directory was made of.
pub struct Origin {
    /// The base's name, where one is known.
    base: Option<String>,
    /// The licence that the base's own files state.
    licence: Option<String>,
    receipt: Option<(Round, Proof)>,
}

impl Origin {
    /// Of an adapter's directory, which says which base it is for, and the base's where it is there. A receipt is checked:
    /// what the card says of members is true.
    ///
    /// # Errors
    /// A receipt that is false, or of other bytes than those beside it.
    pub fn read(adapter: &Path, named: Option<&str>, base: Option<&Path>) -> Result<Self> {
        let checked = || {
            let proof = Proof::read(adapter)?;
            Ok::<_, anyhow::Error>((proof.check_in(adapter)?.round, proof))
        };
        let receipt = match adapter.join(RECEIPT_FILE).exists() {
            true => Some(checked().with_context(|| format!("the receipt in {} does not hold", adapter.display()))?),
            false => None,
        };
        let pinned = receipt.as_ref().map(|(round, _)| round.manifest().base.name.as_str());
        let folder = base.and_then(name_of);
        let base_name = pinned.or(named).or(folder.as_deref()).map(word);
        Ok(Self { base: base_name, licence: licence(base.unwrap_or(adapter)), receipt })
    }

    /// Writes the card of `folder`; `library` is what loads it, `made` the sentences that say how it was made.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, folder: &Path, library: &str, title: &str, made: &str) -> Result<()> {
        let field =
            |name: &str, value: &Option<String>| value.as_ref().map_or(String::new(), |value| format!("{name}: {}\n", json!(value)));
        let mut text =
            format!("---\n{}{}library_name: {library}\n---\n\n", field("base_model", &self.base), field("license", &self.licence));
        match &self.receipt {
            Some((round, proof)) => text += &merged::facts(round, proof),
            None => {
                let base = self.base.as_ref().map_or(String::new(), |base| format!("\n\nBase: `{base}`."));
                text += &format!("# {}{base}\n", word(title));
            }
        }
        text += &format!("\n{made}\n");
        files::write(&folder.join(CARD), text.as_bytes())
    }
}

/// The licence that a directory's card or configuration states.
fn licence(folder: &Path) -> Option<String> {
    let mut head = Vec::new();
    if let Ok(file) = File::open(folder.join(CARD)) {
        file.take(HEAD_BYTES_MAX).read_to_end(&mut head).ok()?;
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let stated = match lines.next() {
        Some("---") => lines.take_while(|line| *line != "---").find_map(|line| line.strip_prefix("license:")).map(str::to_owned),
        _ => None,
    };
    let configured = || {
        let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).ok()?).ok()?;
        Some(config.get("license")?.as_str()?.to_owned())
    };
    let stated = stated.or_else(configured)?;
    Some(word(stated.trim().trim_matches(['"', '\'']))).filter(|word| !word.is_empty())
}

/// One line of a stranger's text that no longer can be anything but text.
fn word(text: &str) -> String {
    let plain = |c: &char| !c.is_control() && !matches!(c, '`' | '<' | '>');
    text.chars().filter(plain).take(WORD_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_is_what_the_card_or_the_configuration_states() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let found = |card: &str, config: &str| {
            std::fs::write(folder.join(CARD), card).unwrap();
            std::fs::write(folder.join("config.json"), config).unwrap();
            licence(folder)
        };
        assert_eq!(found("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n", "{}"), Some("apache-2.0".into()));
        assert_eq!(found("---\nlicense: \"mit\"\r\n---\n", r#"{"license": "other"}"#), Some("mit".into()));
        assert_eq!(found("# A model\nlicense: mit\n", r#"{"license": "gemma"}"#), Some("gemma".into()));
        assert_eq!(found("---\nlanguage: en\n---\nlicense: mit\n", "{}"), None);
        assert_eq!(found("---\nlicense: \n---\n", "{}"), None);
    }

    #[test]
    fn strangers_words_stay_words() {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin::read(folder.path(), Some("a`b\n---\nlicense: x: \"y\""), None).unwrap();
        origin.write(folder.path(), "peft", "one", "Made.").unwrap();
        let text = std::fs::read_to_string(folder.path().join(CARD)).unwrap();
        let expected = "---\nbase_model: \"ab---license: x: \\\"y\\\"\"\nlibrary_name: peft\n---\n\n# one\n\nBase: `ab---license: x: \"y\"`.\n\nMade.\n";
        assert_eq!(text, expected);
    }
}
