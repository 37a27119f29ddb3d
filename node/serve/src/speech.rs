//! Between texts and tokens: how prompts and conversations of one base become tokens, and which tokens end an answer.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mingle_trainer::data::record::Message;
use mingle_trainer::data::{DataError, Record, Segment, Template, Tokens};
use mingle_trainer::models::ModelConfig;
use mingle_trainer::models::config::Mask;
use serde_json::{Value as Json, json};

use crate::chat_template::ChatTemplate;

/// Why a base cannot be spoken with, or a text is none for it.
#[derive(Debug, thiserror::Error)]
pub enum SpeechError {
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("{path} sees a text from both sides, so it cannot answer: a model that continues texts is needed")]
    Bidirectional { path: PathBuf },
    #[error("the chat template refuses these messages: {reason}")]
    Template { reason: String },
    #[error("a message of role {role:?} cannot be laid out without a chat template: system, user and assistant can")]
    Role { role: String },
    #[error("token {token} lies outside the vocabulary of {vocabulary}")]
    Token { token: u32, vocabulary: usize },
    #[error(transparent)]
    Data(#[from] DataError),
}

/// How conversations are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChatLayout {
    /// By the base's chat template; where it has none, as in training.
    #[default]
    Template,
    /// As training lays out `messages`, whatever template the base has: system and user messages are lines, an assistant's is
    /// closed by the end-of-text token.
    Training,
}

/// One base's tokenizer, template and special tokens.
pub struct Speech {
    tokens: Tokens,
    template: Option<ChatTemplate>,
    /// Tokens that end an answer.
    ends: BTreeSet<u32>,
    vocabulary: usize,
    positions_max: usize,
}

/// What one message of a conversation says.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    pub role: String,
    pub content: String,
}

impl Speech {
    /// Reads the tokenizer, and what else lies beside it, of a base's directory.
    ///
    /// # Errors
    /// Files that cannot be read, and a base that cannot continue a text.
    pub fn read(folder: &Path, config: &ModelConfig, layout: ChatLayout) -> Result<Self, SpeechError> {
        if config.mask == Mask::Full {
            return Err(SpeechError::Bidirectional { path: folder.into() });
        }
        let tokens = Tokens::read(folder, config)?;
        let template = match layout {
            ChatLayout::Template => ChatTemplate::read(folder)?,
            ChatLayout::Training => None,
        };
        let ends = config.eos.iter().copied().chain(other_ends(folder)).collect();
        Ok(Self { tokens, template, ends, vocabulary: config.vocabulary, positions_max: config.positions_max })
    }

    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Whether conversations are laid out by the base's own template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Tokens that end an answer.
    pub fn ends(&self) -> &BTreeSet<u32> {
        &self.ends
    }

    /// Tokens of prompt and answer together, at most.
    pub fn positions_max(&self) -> usize {
        self.positions_max
    }

    /// Tokens of a text that is to be continued: as training examples begin, once.
    ///
    /// # Errors
    /// A text that the tokenizer refuses.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, SpeechError> {
        let mut ids = self.tokens.prompt(&[Segment { text: text.to_owned(), learned: false }])?;
        // It may be written out in the text.
        let bare = self.tokens.prompt(&[])?;
        if let [bos] = bare[..]
            && ids.get(1) == Some(&bos)
        {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// Tokens that were given as such.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn given(&self, ids: Vec<u32>) -> Result<Vec<u32>, SpeechError> {
        match ids.iter().find(|id| **id as usize >= self.vocabulary) {
            Some(token) => Err(SpeechError::Token { token: *token, vocabulary: self.vocabulary }),
            None => Ok(ids),
        }
    }

    /// Tokens of a conversation, up to where the assistant speaks next.
    ///
    /// # Errors
    /// Messages that the template refuses, or that training's layout does not know.
    pub fn conversation(&self, messages: &[Said]) -> Result<Vec<u32>, SpeechError> {
        if let Some(template) = &self.template {
            let messages: Vec<Json> = messages.iter().map(|said| json!({ "role": said.role, "content": said.content })).collect();
            return Ok(self.tokens.encode(&template.render(&messages)?)?);
        }
        let one = |said: &Said| {
            let role = match said.role.as_str() {
                "developer" => "system",
                role @ ("system" | "user" | "assistant") => role,
                role => return Err(SpeechError::Role { role: role.to_owned() }),
            };
            Ok(Message { role: role.to_owned(), content: said.content.clone() })
        };
        let messages = messages.iter().map(one).collect::<Result<_, _>>()?;
        Ok(self.tokens.prompt(&Record::Messages(messages).segments(Template::Short))?)
    }

    /// A token as people see it, and its bytes where they are known.
    pub fn piece(&self, token: u32) -> String {
        self.tokens.decode_with_specials(&[token]).unwrap_or_default()
    }
}

/// Ends that `generation_config.json` names: chat models often end a turn with another token than a text.
fn other_ends(folder: &Path) -> Vec<u32> {
    let read = std::fs::read(folder.join("generation_config.json")).ok();
    let config: Json = read.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let ids = match &config["eos_token_id"] {
        Json::Array(ids) => ids.iter().filter_map(Json::as_u64).collect(),
        id => Vec::from_iter(id.as_u64()),
    };
    ids.into_iter().filter_map(|id| u32::try_from(id).ok()).collect()
}

#[cfg(test)]
pub(crate) mod testing {
    //! A base of a few thousand drawn numbers, whose tokens are bytes.

    use std::path::Path;

    use mingle_trainer::data::Tokens;
    use mingle_trainer::models::device::OpenedDevice;
    use mingle_trainer::models::families::tiny_llama;
    use mingle_trainer::models::{BaseModel, ModelConfig};
    use mingle_trainer::train::random_decoder;
    use serde_json::{Map, json};
    use tempfile::TempDir;

    /// `<s>` is 256 and `</s>` 257.
    const VOCABULARY: usize = 258;

    pub fn config() -> ModelConfig {
        ModelConfig {
            hidden: 32,
            intermediate: 48,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            vocabulary: VOCABULARY,
            positions_max: 128,
            tied: true,
            bos: Some(256),
            eos: vec![257],
            ..tiny_llama()
        }
    }

    /// The letters that byte-level tokenizers write bytes with.
    fn letter(byte: u8, beyond: &mut u32) -> char {
        match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                *beyond += 1;
                char::from_u32(255 + *beyond).unwrap()
            }
        }
    }

    fn write_tokenizer(folder: &Path) {
        let mut beyond = 0;
        let mut vocabulary: Map<_, _> = (0..=255u8).map(|byte| (letter(byte, &mut beyond).to_string(), byte.into())).collect();
        vocabulary.extend([("<s>".to_owned(), 256.into()), ("</s>".to_owned(), 257.into())]);
        let special = |id: u32, text: &str| json!({ "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
        let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [special(256, "<s>"), special(257, "</s>")], "pre_tokenizer": byte_level, "decoder": byte_level,
            "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary, "merges": [] },
        });
        std::fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
    }

    pub fn byte_tokens() -> (TempDir, Tokens) {
        let folder = tempfile::tempdir().unwrap();
        write_tokenizer(folder.path());
        let tokens = Tokens::read(folder.path(), &config()).unwrap();
        (folder, tokens)
    }

    /// A whole base; its weights are drawn.
    pub fn base() -> (TempDir, BaseModel) {
        let folder = tempfile::tempdir().unwrap();
        write_tokenizer(folder.path());
        random_decoder(config(), 3, &OpenedDevice::cpu().device).unwrap().0.save(folder.path()).unwrap();
        let base = BaseModel::load_on(folder.path(), &OpenedDevice::cpu(), None).unwrap();
        (folder, base)
    }
}

#[cfg(test)]
mod tests {
    use mingle_trainer::models::families::tiny_llama;

    use super::*;

    fn said(role: &str, content: &str) -> Said {
        Said { role: role.into(), content: content.into() }
    }

    #[test]
    fn conversations_without_a_template_are_laid_out_as_in_training() {
        let (folder, tokens) = testing::byte_tokens();
        let speech = Speech::read(folder.path(), &testing::config(), ChatLayout::Template).unwrap();
        let found = speech.conversation(&[said("system", "S"), said("user", "U"), said("assistant", "A"), said("user", "V")]).unwrap();
        let byte = |byte: u8| u32::from(byte);
        assert_eq!(found, [256, byte(b'S'), 10, byte(b'U'), 10, byte(b'A'), 257, byte(b'V'), 10]);
        let json = json!({ "messages": [{ "role": "user", "content": "U" }, { "role": "assistant", "content": "A" }] });
        let (asked, _) = Record::from_json(&json).unwrap().question_and_answer(Template::Short).unwrap();
        assert_eq!(speech.conversation(&[said("user", "U")]).unwrap(), tokens.prompt(&asked).unwrap());
        assert!(speech.conversation(&[said("tool", "x")]).unwrap_err().to_string().contains("role \"tool\""));
    }

    #[test]
    fn a_prompt_begins_as_texts_do_and_once() {
        let (folder, _) = testing::byte_tokens();
        let speech = Speech::read(folder.path(), &testing::config(), ChatLayout::Template).unwrap();
        assert_eq!(speech.prompt("a").unwrap(), [256, 97]);
        assert_eq!(speech.prompt("<s>a").unwrap(), [256, 97]);
        assert_eq!(speech.prompt("").unwrap(), [256]);
        assert!(speech.given(vec![0, 258]).unwrap_err().to_string().contains("token 258"));
        assert_eq!(speech.piece(257), "</s>");
    }

    #[test]
    fn ends_are_those_of_both_files_and_a_template_is_used_only_if_wished() {
        let (folder, _) = testing::byte_tokens();
        std::fs::write(folder.path().join("generation_config.json"), "{\"eos_token_id\": [10, 257]}").unwrap();
        std::fs::write(folder.path().join("chat_template.jinja"), "{{ messages[0].content }}!").unwrap();
        let read = |layout| Speech::read(folder.path(), &testing::config(), layout).unwrap();
        let speech = read(ChatLayout::Template);
        assert!(*speech.ends() == BTreeSet::from([10, 257]) && speech.has_template());
        assert_eq!(speech.conversation(&[said("user", "a")]).unwrap(), [97, 33]);
        assert_eq!(read(ChatLayout::Training).conversation(&[said("user", "a")]).unwrap(), [256, 97, 10]);
        let bidirectional = ModelConfig { mask: Mask::Full, ..tiny_llama() };
        assert!(Speech::read(folder.path(), &bidirectional, ChatLayout::Template).is_err());
    }
}
