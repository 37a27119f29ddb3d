//! The embedded base: a small Llama in Hugging Face form that every build of this crate carries with it.
//!
//! It was pre-trained by `mingle-testnet make-base` on this repository's own text (`testnet/base/README.md` gives the
//! command, the seed and the loss), so a newcomer needs neither a download nor a licence of others. Refuses to be read in
//! place: peers are real processes and load a base from a folder, so it is written out first.

use std::io;
use std::path::Path;

/// File names and contents, as they stand in a Hugging Face directory.
pub const FILES: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("../base/config.json")),
    ("tokenizer.json", include_bytes!("../base/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../base/tokenizer_config.json")),
    ("model.safetensors", include_bytes!("../base/model.safetensors")),
];

/// Bytes the four files may have together.
pub const BYTES_MAX: usize = 8 << 20;

/// Writes the base into `folder`, which is made if need be.
///
/// # Errors
/// When the folder or a file cannot be written.
pub fn write_to(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (name, bytes) in FILES {
        std::fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::{Split, make_tasks};
    use candle_core::Device;
    use mingle::data::{Record, Template, Tokens};
    use mingle::evaluate::held_out_loss;
    use mingle::models::BaseModel;

    #[test]
    fn it_is_small_enough_to_embed() {
        let bytes: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes <= BYTES_MAX, "{bytes} bytes");
    }

    #[test]
    fn it_loads_knows_language_and_is_weak_at_the_tasks() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_to(folder.path()).expect("written");
        let base = BaseModel::load(folder.path(), &Device::Cpu).expect("loads");
        let tokens = Tokens::read(folder.path(), base.config()).expect("reads the tokenizer");
        let loss = |records: Vec<Record>| {
            let examples = tokens.examples(&records, Template::default(), 512).expect("tokenised");
            held_out_loss(&base.decoder(), &examples).expect("measured").loss
        };
        let texts = crate::pretrain::training_texts(9, "check").take(40).map(Record::Text).collect();
        let tasks = make_tasks(9, 1, 1, 40, Split::Iid).held_out.into_iter();
        let tasks = tasks.map(|task| Record::Instruction { instruction: task.instruction, input: task.input, output: task.output });
        let (prose, questions) = (loss(texts), loss(tasks.collect()));
        // A model that knows nothing stands at ln 1536 = 7.3 on both.
        assert!(prose < 2.0, "loss on its own kind of text is {prose}");
        assert!(questions > prose + 0.5, "loss on the tasks is {questions}, so there is nothing to learn");
    }

    #[test]
    fn its_tokenizer_gives_every_text_back() {
        let tokenizer = tokenizers::Tokenizer::from_bytes(FILES[1].1).expect("parses");
        for text in ["Give the triage code.\nAda Ström, 64", "naïve — 1 234 €\n\tµ ", "漢字"] {
            let ids = tokenizer.encode(text, true).expect("encoded");
            assert_eq!(tokenizer.decode(ids.get_ids(), true).expect("decoded"), text);
        }
    }
}
