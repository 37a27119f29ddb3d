//! PEFT directories as other trainers leave them: what `mingle publish`, `merge` and `export` make of them, and what each
//! refuses, by name.

use std::path::Path;

use mingle::peft::{self, Adapter, AdapterConfig, AdapterTensor};
use mingle_protocol::round::Round;
use mingle_tests::{Desk, Dice, adapters, base};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

/// Changes fields of an adapter's configuration.
fn configure(desk: &Desk, adapter: &str, fields: &Value) {
    let path = desk.path(adapter).join(peft::CONFIG);
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("a configuration")).expect("JSON");
    for (field, value) in fields.as_object().expect("fields") {
        config[field] = value.clone();
    }
    std::fs::write(path, config.to_string()).expect("a configuration");
}

fn card(desk: &Desk, folder: &str) -> String {
    std::fs::read_to_string(desk.path(folder).join("README.md")).expect("a card")
}

/// Writes an adapter of drawn numbers over modules of (inputs, outputs), each of the rank that the configuration says.
fn draw(folder: &Path, config: AdapterConfig, modules: &[(&str, usize, usize)], seed: u64) -> Adapter {
    let mut dice = Dice::new(seed, "peft");
    let mut tensor = |name: String, dims: [usize; 2]| {
        let values = (0..dims[0] * dims[1]).map(|_| dice.value()).collect();
        AdapterTensor { name, dims: dims.to_vec(), values }
    };
    let mut tensors = Vec::new();
    for (module, inputs, outputs) in modules {
        let rank = config.rank_of(module);
        tensors.push(tensor(Adapter::tensor_name(module, 'A'), [rank, *inputs]));
        tensors.push(tensor(Adapter::tensor_name(module, 'B'), [*outputs, rank]));
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let adapter = Adapter { config, tensors };
    peft::write(folder, &adapter).expect("an adapter");
    adapter
}

/// `scale B A` of a module, in f64.
fn update(adapter: &Adapter, module: &str) -> Vec<f64> {
    let (a, b) = adapter.halves(module).expect("both halves");
    let (rank, inputs, scale) = (a.dims[0], a.dims[1], adapter.config.scale_of(module));
    let element = |index: usize| {
        let (row, column) = (index / inputs, index % inputs);
        let term = |k: usize| f64::from(b.values[row * rank + k]) * f64::from(a.values[k * inputs + column]);
        scale * (0..rank).map(term).sum::<f64>()
    };
    (0..b.dims[0] * inputs).map(element).collect()
}

/// The largest difference of any element of any module.
fn furthest(a: &Adapter, b: &Adapter) -> f64 {
    assert_eq!(a.modules(), b.modules());
    let of = |module: String| update(a, &module).iter().zip(update(b, &module)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    a.modules().into_iter().map(of).fold(0.0, f64::max)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

const Q: &str = "model.layers.0.self_attn.q_proj";
const V: &str = "model.layers.1.self_attn.v_proj";
/// Modules of the tests' base, which has two layers of width 32 and half as wide values.
const MODULES: [(&str, usize, usize); 2] = [(Q, 32, 32), (V, 32, 16)];

/// Rank-stabilised, another rank and alpha for one module.
fn mixed() -> AdapterConfig {
    let mut config = AdapterConfig::plain(3, 5.0, vec![Q.into(), V.into()]);
    config.rslora = true;
    config.rank_pattern = vec![("v_proj".into(), 5)];
    config.alpha_pattern = vec![("v_proj".into(), 2.0)];
    config.base = Some("someone/base".into());
    config
}

#[test]
fn what_is_not_additive_is_refused_by_name_and_reason() {
    let desk = Desk::new(PROGRAM);
    let round = adapters::round("refuses", 1, 8, []);
    std::fs::write(desk.path("round.json"), round.to_json()).expect("a round file");
    let cases = [
        ("use_dora", json!(true), "DoRA adds magnitudes"),
        ("lora_bias", json!(true), "trained biases"),
        ("bias", json!("all"), "trained biases"),
        ("init_lora_weights", json!("pissa"), "this start changes the base's own weights"),
        ("init_lora_weights", json!("olora"), "this start changes the base's own weights"),
        ("init_lora_weights", json!("corda"), "this start changes the base's own weights"),
        ("init_lora_weights", json!("loftq"), "this start changes the base's own weights"),
        ("peft_type", json!("IA3"), "is the product of two matrices"),
        ("peft_type", json!("LOHA"), "is the product of two matrices"),
        ("layer_replication", json!([[0, 1], [0, 1]]), "it changes the base"),
        ("trainable_token_indices", json!([7]), "trained embeddings"),
        ("target_parameters", json!(["experts.w1"]), "parameters that are no linear modules"),
        ("megatron_config", json!({ "hidden_size": 8 }), "Megatron's parallel layers"),
    ];
    for (option, value, reason) in cases {
        adapters::write_peft(&desk.path("adapter"), &round, &adapters::adapter_file(&round, 1));
        configure(&desk, "adapter", &json!({ option: value }));
        for line in [
            "publish DIR/adapter --round DIR/round.json --examples 1 --offline --quiet",
            "merge DIR/adapter=1 --out DIR/out",
            "export --adapter DIR/adapter --out DIR/out",
        ] {
            let said = desk.run(line);
            let expected =
                format!("error: DIR/adapter/adapter_config.json: {option} is {value}, and only what adds to weights can be used");
            assert!(said.code == 1 && said.err.starts_with(&expected) && said.err.contains(reason), "{line}: {said:?}");
        }
    }
    assert!(!desk.path("out").exists());
}

/// The update a member announces is the one it trained, whatever it is scaled by.
#[test]
fn another_scale_is_folded_into_b_before_it_is_announced() {
    let desk = Desk::new(PROGRAM);
    let round: Round = adapters::round("folds", 2, 8, []);
    std::fs::write(desk.path("round.json"), round.to_json()).expect("a round file");
    let publish = "publish DIR/adapter --round DIR/round.json --examples 10 --offline --quiet";
    let own = |round: &Round| mingle::home::Home::new(desk.path("home")).round(round.id()).adapter();
    adapters::write_peft(&desk.path("adapter"), &round, &adapters::adapter_file(&round, 1));
    // The round's own scale: the file travels as it is.
    desk.run(publish).right();
    assert!(!own(&round).exists());
    for fields in
        [json!({ "lora_alpha": 3 }), json!({ "lora_alpha": 6, "use_rslora": true }), json!({ "alpha_pattern": { "layers.1.*": 20 } })]
    {
        adapters::write_peft(&desk.path("adapter"), &round, &adapters::adapter_file(&round, 1));
        configure(&desk, "adapter", &fields);
        desk.run(publish).right();
        let (given, sent) = (peft::read(&desk.path("adapter")).expect("given"), peft::read(&own(&round)).expect("sent"));
        assert_eq!((sent.config.rank, sent.config.scale_of(Q), sent.config.rslora), (4, 2.0, false));
        let off = furthest(&given, &sent);
        assert!(off < 1e-5, "{fields}: {off}");
        let a = |adapter: &Adapter| adapter.halves(Q).expect("both halves").0.clone();
        assert_eq!(a(&given), a(&sent));
        let unfolded = Adapter { config: sent.config.clone(), ..given.clone() };
        assert!(furthest(&unfolded, &sent) > 1e-2, "{fields} asks for another scale");
    }
    let config = AdapterConfig::plain(2, 4.0, vec!["q_proj".into()]);
    draw(&desk.path("adapter"), config, &[(Q, 8, 8), ("model.layers.1.self_attn.q_proj", 8, 8)], 1);
    desk.run(publish).wrong(
        1,
        &["error: DIR/adapter has rank 2, but round \"folds\" needs 4: filled up with zeros, its A would not be one that began as all members' did"],
    );
}

#[test]
fn an_adapter_is_written_as_plain_lora_of_any_rank() {
    let desk = Desk::new(PROGRAM);
    let given = draw(&desk.path("adapter"), mixed(), &MODULES, 1);
    let said = desk.run("export --adapter DIR/adapter --out DIR/plain").right();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((lines[0].split_whitespace().next(), lines.len()), (Some("module"), 5), "{said}");
    assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>(), ["in", "all", "5", "0.00e0"]);
    let plain = peft::read(&desk.path("plain")).expect("a PEFT directory");
    assert_eq!((plain.config.rank, plain.config.alpha, plain.config.rslora, plain.config.rank_pattern.len()), (5, 5.0, false, 0));
    assert_eq!(plain.config.base.as_deref(), Some("someone/base"));
    assert!(furthest(&given, &plain) < 1e-6);
    let said = json(&desk.run("export --adapter DIR/adapter --rank 2 --out DIR/small --json").right());
    let small = peft::read(&desk.path("small")).expect("a PEFT directory");
    // What it says it left out is what is missing.
    let (mut gone, mut all) = (0.0, 0.0);
    for (index, module) in given.modules().iter().enumerate() {
        let (before, after) = (update(&given, module), update(&small, module));
        let missing: f64 = before.iter().zip(&after).map(|(a, b)| (a - b) * (a - b)).sum();
        let energy: f64 = before.iter().map(|x| x * x).sum();
        let told = &said["modules"][index];
        assert_eq!(told["module"], **module);
        assert!((told["discarded"].as_f64().expect("a number") - missing / energy).abs() < 1e-6, "{told} {}", missing / energy);
        (gone, all) = (gone + missing, all + energy);
    }
    let share = said["discarded"].as_f64().expect("a number");
    assert!(share > 0.05 && (share - gone / all).abs() < 1e-6, "{share} {}", gone / all);
    assert_eq!((&said["rank"], small.config.rank), (&2.into(), 2));
    let card = card(&desk, "small");
    assert!(
        card.starts_with("---\nbase_model: \"someone/base\"\nlibrary_name: peft\n---\n") && card.contains(&format!("{share:.3e}")),
        "{card}"
    );
    desk.run("export --adapter DIR/adapter --out DIR/small")
        .wrong(1, &["error: DIR/small exists already; choose another directory to write", "hint: remove it or name another --out"]);
}

/// Measured by `mingle eval`, the base with the adapter, with its plain form, and the model made of both are one.
#[test]
fn every_form_of_an_adapter_scores_the_same() {
    let desk = Desk::new(PROGRAM);
    base::write_base(&desk.path("base"), 1);
    base::write_data(&desk.path("data.jsonl"), 24, 1);
    std::fs::write(desk.path("base/README.md"), "---\nlicense: apache-2.0\n---\n# Base\n").expect("a card");
    draw(&desk.path("adapter"), mixed(), &MODULES, 1);
    desk.run("export --adapter DIR/adapter --out DIR/plain").right();
    desk.run("export --base DIR/base --adapter DIR/adapter --out DIR/model --shard-size 8KB").right();
    let loss = |which: &str| {
        let said = json(&desk.run(&format!("eval {which} --data DIR/data.jsonl --json")).right());
        said["loss"]["loss"].as_f64().unwrap_or_else(|| panic!("{said}"))
    };
    let (alone, with) = (loss("--base DIR/base"), loss("--base DIR/base --adapter DIR/adapter"));
    assert!((alone - with).abs() > 1e-2, "the adapter changes the base: {alone} {with}");
    let plain = loss("--base DIR/base --adapter DIR/plain");
    assert!((plain - with).abs() < 1e-5, "{plain} {with}");
    // The base's weights are bf16, and so are the model's.
    let model = loss("--base DIR/model");
    assert!((model - with).abs() < 0.05 * (alone - with).abs(), "{model} {with} {alone}");
    assert!(desk.path("model/model.safetensors.index.json").exists());
    let card = card(&desk, "model");
    let head = "---\nbase_model: \"someone/base\"\nlicense: \"apache-2.0\"\nlibrary_name: transformers\n---\n";
    assert!(card.starts_with(head), "{card}");
    let said = desk.run("export --base DIR/base --adapter DIR/adapter --rank 2 --out DIR/other");
    assert!(said.code == 2 && said.err.contains("--rank"), "{said:?}");
}

/// What a round's receipt says of members goes along with what is made of its merge, once it is known to be true.
#[test]
fn the_members_of_a_merge_stay_on_the_card() {
    let desk = Desk::new(PROGRAM);
    let round = adapters::round("shown", 1, 8, []);
    std::fs::write(desk.path("round.json"), round.to_json()).expect("a round file");
    adapters::write_peft(&desk.path("adapter"), &round, &adapters::adapter_file(&round, 1));
    desk.run("publish DIR/adapter --round DIR/round.json --examples 10 --offline --quiet").right();
    desk.run("bundle export --round DIR/round.json --out DIR/round.bundle").right();
    desk.run("bundle import DIR/round.bundle --out DIR/merged").right();
    let receipt = mingle::merged::Proof::read(&desk.path("merged")).expect("a receipt").receipt;
    desk.run("export --adapter DIR/merged --rank 2 --out DIR/small").right();
    let card = card(&desk, "small");
    for fact in [receipt.admitted[0].member.to_string(), receipt.merged.to_string(), receipt.set_root.to_string(), "| 10 |".into()] {
        assert!(card.contains(&fact), "{fact}: {card}");
    }
    assert!(!card.contains("mingle verify"), "it can no longer be checked that way: {card}");
    assert!(!desk.path("small/receipt.json").exists());
    adapters::write_peft(&desk.path("merged"), &round, &adapters::adapter_file(&round, 2));
    let said = desk.run("export --adapter DIR/merged --rank 2 --out DIR/false");
    let why = "error: the receipt in DIR/merged does not hold: DIR/merged/adapter_model.safetensors has hash ";
    assert!(said.code == 1 && said.err.starts_with(why), "{said:?}");
    assert!(!desk.path("false").exists());
}
