//! The classes of a model with a classification head, and one or two texts as such a model reads them.

use std::path::Path;

use serde_json::Value;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{Tokenizer, TruncationParams};

use super::DataError;
use super::record::Label;
use crate::models::ModelConfig;
use crate::models::config::Head;

/// Class names by number, from `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Classes(Vec<String>);

impl Classes {
    /// The classes of a model with a classification head, named by `id2label` of the directory's `config.json`; where it
    /// names none, as transformers does. `None` for a language model.
    pub fn read(dir: &Path, config: &ModelConfig) -> Result<Option<Self>, DataError> {
        let Head::Classes(count) = config.head else { return Ok(None) };
        let path = dir.join("config.json");
        let refuse = |reason: String| DataError::File { path: path.clone(), reason };
        let text = std::fs::read(&path).map_err(|error| refuse(error.to_string()))?;
        let json: Value = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
        Self::named(&json["id2label"], count).map(Some).map_err(refuse)
    }

    fn named(names: &Value, count: usize) -> Result<Self, String> {
        let one = |class: usize| match names.as_object() {
            None => Ok(format!("LABEL_{class}")),
            Some(names) => {
                let name = names.get(&class.to_string()).and_then(Value::as_str).map(String::from);
                name.ok_or_else(|| format!("\"id2label\" names {} classes, but not class {class}", names.len()))
            }
        };
        (0..count).map(one).collect::<Result<_, _>>().map(Self)
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// The class's number.
    pub fn number(&self, label: &Label) -> Result<u32, DataError> {
        let unknown = |label: &dyn std::fmt::Display| DataError::UnknownClass { label: label.to_string(), known: self.0.join(", ") };
        match label {
            Label::Number(number) if (*number as usize) < self.0.len() => Ok(*number),
            Label::Number(number) => Err(unknown(number)),
            Label::Name(name) => self.0.iter().position(|known| known == name).map(|class| class as u32).ok_or_else(|| unknown(name)),
        }
    }
}

/// Puts a model's special tokens around one or two texts: as the tokenizer.json says, or where it says nothing as BERT
/// (`[CLS] a [SEP] b [SEP]`, the second text of type 1) or RoBERTa (`<s> a </s></s> b </s>`) do. Longer inputs are cut at
/// the end of the longer text.
#[derive(Clone)]
pub struct PairReader(Tokenizer);

impl PairReader {
    pub fn new(tokenizer: &Tokenizer, length_max: usize) -> Result<Self, DataError> {
        let refuse = |reason: String| DataError::Tokenize { reason };
        let mut tokenizer = tokenizer.clone();
        if tokenizer.get_post_processor().is_none() {
            let find = |name: &str| tokenizer.token_to_id(name).map(|id| (name.to_string(), id));
            match (find("[CLS]"), find("[SEP]"), find("<s>"), find("</s>")) {
                (Some(begin), Some(end), ..) => tokenizer.with_post_processor(Some(BertProcessing::new(end, begin))),
                (_, _, Some(begin), Some(end)) => tokenizer.with_post_processor(Some(RobertaProcessing::new(end, begin))),
                _ => {
                    let reason = "the tokenizer has neither a post-processor nor the tokens [CLS] and [SEP], or <s> and </s>".into();
                    return Err(refuse(reason));
                }
            };
        }
        let truncation = TruncationParams { max_length: length_max, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|error| refuse(error.to_string()))?;
        Ok(Self(tokenizer))
    }

    /// Tokens and token types; no types where all are 0.
    pub fn read(&self, text: &str, pair: Option<&str>) -> Result<(Vec<u32>, Vec<u32>), DataError> {
        let encoding = match pair {
            Some(pair) => self.0.encode((text, pair), true),
            None => self.0.encode(text, true),
        };
        let encoding = encoding.map_err(|error| DataError::Tokenize { reason: error.to_string() })?;
        let types = encoding.get_type_ids();
        let types = if types.iter().all(|kind| *kind == 0) { Vec::new() } else { types.to_vec() };
        Ok((encoding.get_ids().to_vec(), types))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A word-level tokenizer with these special tokens first.
    fn tokenizer(special: &[&str]) -> Tokenizer {
        let words = special.iter().copied().chain(["good", "bad", "film", "[UNK]"]);
        let vocabulary: serde_json::Map<_, _> = words.enumerate().map(|(id, word)| (word.to_string(), id.into())).collect();
        let json = json!({ "version": "1.0", "added_tokens": [], "pre_tokenizer": { "type": "Whitespace" },
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" } });
        json.to_string().parse().unwrap()
    }

    #[test]
    fn texts_are_framed_as_bert_and_roberta_do() {
        let bert = PairReader::new(&tokenizer(&["[CLS]", "[SEP]"]), 8).unwrap();
        assert_eq!(bert.read("good film", None).unwrap(), (vec![0, 2, 4, 1], vec![]));
        assert_eq!(bert.read("good", Some("bad film")).unwrap(), (vec![0, 2, 1, 3, 4, 1], vec![0, 0, 0, 1, 1, 1]));
        let roberta = PairReader::new(&tokenizer(&["<s>", "</s>"]), 8).unwrap();
        assert_eq!(roberta.read("good", Some("bad film")).unwrap(), (vec![0, 2, 1, 1, 3, 4, 1], vec![]));
        assert!(PairReader::new(&tokenizer(&[]), 8).err().unwrap().to_string().contains("[CLS]"));
    }

    #[test]
    fn the_longer_text_is_cut_and_the_special_tokens_stay() {
        let bert = PairReader::new(&tokenizer(&["[CLS]", "[SEP]"]), 6).unwrap();
        assert_eq!(bert.read("good", Some("bad bad film film")).unwrap().0, [0, 2, 1, 3, 3, 1]);
    }

    #[test]
    fn the_tokenizers_own_frame_goes_first() {
        let mut own = tokenizer(&["<s>", "</s>"]);
        own.with_post_processor(Some(BertProcessing::new(("</s>".into(), 1), ("<s>".into(), 0))));
        let reader = PairReader::new(&own, 8).unwrap();
        assert_eq!(reader.read("good", Some("bad")).unwrap(), (vec![0, 2, 1, 3, 1], vec![0, 0, 0, 1, 1]));
    }

    #[test]
    fn classes_are_numbers_or_the_names_of_the_configuration() {
        let classes = Classes::named(&json!({ "1": "good", "0": "bad" }), 2).unwrap();
        assert_eq!(classes.names(), ["bad", "good"]);
        assert_eq!(classes.number(&Label::Name("good".into())).unwrap(), 1);
        assert_eq!(classes.number(&Label::Number(0)).unwrap(), 0);
        for unknown in [Label::Number(2), Label::Name("fine".into())] {
            assert!(classes.number(&unknown).unwrap_err().to_string().contains("the model's classes are bad, good"));
        }
        assert_eq!(Classes::named(&Value::Null, 2).unwrap().names(), ["LABEL_0", "LABEL_1"]);
        assert!(Classes::named(&json!({ "1": "x" }), 2).is_err());
    }
}
