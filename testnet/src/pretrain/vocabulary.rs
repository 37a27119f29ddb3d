//! The tokenizer of the embedded base: byte-level BPE trained on the corpus, saved as Hugging Face saves it.
//!
//! All 256 bytes are in the alphabet, so nothing is unknown to it and every text comes back as it went in.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

/// Marks the start of a sequence; id 1.
pub const START: &str = "<s>";
/// Marks the end of a document or an answer; id 2.
pub const END: &str = "</s>";
/// Never produced by a byte-level tokenizer, but loaders ask for one; id 0.
pub const UNKNOWN: &str = "<unk>";

/// Trains a tokenizer of `size` entries on `texts`. The same texts give the same tokenizer.
///
/// # Errors
/// When the texts are too few for that many entries, or the trainer refuses.
pub fn train_tokenizer(texts: &[String], size: usize) -> anyhow::Result<Tokenizer> {
    let special = |word: &str| AddedToken::from(word.to_string(), true);
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(vec![special(UNKNOWN), special(START), special(END)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let start_first = TemplateProcessing::builder()
        .try_single(format!("{START} $A"))
        .map_err(|reason| anyhow!("the template of the tokenizer: {reason}"))?
        .special_tokens(vec![(START, 1)])
        .build()?;
    let bytes = ByteLevel::default().add_prefix_space(false);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(bytes))
        .with_decoder(Some(bytes))
        .with_post_processor(Some(start_first))
        .build()
        .map_err(|reason| anyhow!("the parts of the tokenizer: {reason}"))?;
    tokenizer.train(&mut trainer, texts.iter()).map_err(|reason| anyhow!("training the tokenizer: {reason}"))?;
    let tokenizer = Tokenizer::from(tokenizer);
    let found = tokenizer.get_vocab_size(true);
    anyhow::ensure!(found == size, "the texts give {found} entries, not the {size} asked for");
    Ok(tokenizer)
}

/// Writes `tokenizer.json` and `tokenizer_config.json` into `folder`.
///
/// # Errors
/// When a file cannot be written.
pub fn save_tokenizer(tokenizer: &Tokenizer, folder: &Path) -> anyhow::Result<()> {
    let path = folder.join("tokenizer.json");
    tokenizer.save(&path, false).map_err(|reason| anyhow!("writing {}: {reason}", path.display()))?;
    let config = serde_json::json!({
        "bos_token": START,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "add_bos_token": true,
        "add_eos_token": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": super::POSITIONS_MAX,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    let path = folder.join("tokenizer_config.json");
    std::fs::write(&path, format!("{config:#}\n")).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pretrain::training_texts;

    #[test]
    fn any_text_comes_back_and_training_repeats() {
        let texts: Vec<String> = training_texts(1, "train").take(300).collect();
        let tokenizer = train_tokenizer(&texts, 512).expect("trained");
        for text in ["Ada Ström, 64, came to the north ward.", "naïve — 1 234 €\n\tµ ", "\u{0}\u{7f} 漢字"] {
            let ids = tokenizer.encode(text, true).expect("encoded");
            assert_eq!(ids.get_ids()[0], 1, "the start mark comes first");
            assert_eq!(tokenizer.decode(ids.get_ids(), true).expect("decoded"), text);
        }
        let again = train_tokenizer(&texts, 512).expect("trained again");
        assert_eq!(tokenizer.to_string(false).expect("json"), again.to_string(false).expect("json"));
        let ids = [UNKNOWN, START, END].map(|word| tokenizer.token_to_id(word));
        assert_eq!(ids, [Some(0), Some(1), Some(2)]);
    }
}
