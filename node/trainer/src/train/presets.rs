//! Settings under a name: those of the paper this project rests on.
//!
//! "Revisiting Federated Fine-Tuning: A Single Communication Round is Enough for Foundation Models" (arXiv 2412.04650)
//! fine-tunes with LoRA of rank 16 at a learning rate of 3e-4, batches of 64 examples and 3 epochs, and all weights at 3e-5
//! with the rest alike. What its text leaves open is taken from the training code its authors published with an earlier
//! work (github.com/ATP-1010/FederatedLLM): alpha twice the rank, dropout 0.05, examples cut at 512 tokens, and the
//! defaults of transformers' trainer, which are AdamW without decay, a rate that falls linearly without warm-up, and
//! gradients clipped at 1. That code adapts `q_proj` and `v_proj`; targets are not part of the preset, because their names
//! differ between families.

use super::{Method, Schedule, TrainSettings};

/// A preset by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// LoRA as in arXiv 2412.04650.
    PaperLora,
    /// All weights, as there.
    PaperFull,
}

impl Preset {
    pub fn settings(self) -> TrainSettings {
        TrainSettings {
            method: if self == Self::PaperLora { Method::Lora } else { Method::Full },
            epochs: 3,
            batch_size: 64,
            learning_rate: if self == Self::PaperLora { 3e-4 } else { 3e-5 },
            schedule: Schedule::Linear,
            warmup_ratio: 0.0,
            weight_decay: 0.0,
            clip_norm: 1.0,
            length_max: 512,
            rank: 16,
            alpha: 32.0,
            dropout: if self == Self::PaperLora { 0.05 } else { 0.0 },
            ..TrainSettings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_the_papers() {
        let (lora, full) = (Preset::PaperLora.settings(), Preset::PaperFull.settings());
        assert_eq!((lora.rank, lora.alpha, lora.learning_rate, lora.batch_size, lora.epochs), (16, 32.0, 3e-4, 64, 3));
        assert_eq!(full, TrainSettings { method: Method::Full, learning_rate: 3e-5, dropout: 0.0, ..lora.clone() });
        lora.check().unwrap();
    }
}
