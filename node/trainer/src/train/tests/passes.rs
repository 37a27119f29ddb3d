//! Passes that carry several sequences on at once, as serving makes them.

use candle_core::{Device, Tensor};

use super::{tiny_base, tiny_config};
use crate::models::kernels::testing::noise;
use crate::models::{Attached, KvCache, LinearModule, Lora, ModelConfig, Step};

/// Sequences that join, go on and leave at different times: each has the logits that it has alone, to the last bit.
#[test]
fn passes_of_many_sequences_give_each_what_it_gets_alone() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), ModelConfig { vocabulary: 40, ..tiny_config() });
    // With low-rank parts, as adapters have.
    let rows = |seed: u64, rows: usize, columns: usize| {
        let values = noise(seed, rows * columns);
        (Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap() * 0.3).unwrap()
    };
    let lora = |module: &LinearModule| {
        let (a, b) = (rows(1, 3, module.inputs as usize), rows(2, module.outputs as usize, 3));
        (module.name.clone(), vec![Lora { a, b, scale: 0.7, dropout: 0.0 }])
    };
    let modules = base.modules(&["q_proj".into(), "v_proj".into(), "down_proj".into()]).unwrap();
    let parts = Attached { lora: modules.iter().map(lora).collect(), ..Default::default() };
    let decoder = base.attach(&parts).unwrap();
    let texts: Vec<Vec<u32>> = (0..8u32).map(|i| (0..5 + 3 * i).map(|j| (i * 7 + j * 5 + 1) % 40).collect()).collect();
    let prompts: Vec<usize> = (0..8).map(|i| 1 + i / 2).collect();
    let alone = |text: &[u32], prompt: usize| {
        let (mut cache, mut all) = (KvCache::default(), Vec::new());
        all.push(decoder.extend(&text[..prompt], &mut cache).unwrap().to_vec1::<f32>().unwrap());
        all.extend(text[prompt..].iter().map(|token| decoder.extend(&[*token], &mut cache).unwrap().to_vec1::<f32>().unwrap()));
        all
    };
    let expected: Vec<_> = texts.iter().zip(&prompts).map(|(text, prompt)| alone(text, *prompt)).collect();
    let mut caches: Vec<KvCache> = texts.iter().map(|_| KvCache::default()).collect();
    let mut found = vec![Vec::new(); texts.len()];
    for pass in 0..60 {
        let mut steps = Vec::new();
        let mut who = Vec::new();
        for (index, cache) in caches.iter_mut().enumerate().filter(|(index, _)| pass >= 2 * index) {
            let done = cache.tokens();
            let count = if done == 0 { prompts[index] } else { 1 };
            let Some(tokens) = texts[index].get(done..done + count) else { continue };
            // Some of them do not ask.
            let wanted = (pass + index) % 3 > 0 || done + count == texts[index].len();
            who.extend(wanted.then_some((index, done + count - prompts[index])));
            steps.push(Step { tokens, cache, wanted });
        }
        let logits = decoder.advance(&mut steps).unwrap();
        for ((index, at), row) in who.into_iter().zip(logits.chunks_exact(40)) {
            assert!(row == expected[index][at], "sequence {index}, row {at}");
            found[index].push(at);
        }
    }
    assert!(found.iter().zip(&expected).all(|(found, expected)| found.last() == Some(&(expected.len() - 1))));
    let mut cache = KvCache::default();
    assert!(decoder.advance(&mut [Step { tokens: &[99], cache: &mut cache, wanted: true }]).is_err());
    assert!(decoder.advance(&mut [Step { tokens: &[], cache: &mut cache, wanted: true }]).is_err());
    assert_eq!(cache.tokens(), 0);
}
