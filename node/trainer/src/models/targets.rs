//! Which linear modules of a model are meant: by name, by the end of a name, by a regular expression, or all of them.
//!
//! The rules are PEFT's, so that a list of targets means the same here and there.

use std::collections::BTreeSet;

use fancy_regex::Regex;

use super::{LinearModule, ModelError};

/// Every linear module but heads.
pub const ALL_LINEAR: &str = "all-linear";
/// What stands before a regular expression in a list of targets.
pub const PATTERN: &str = "re:";

/// Names that transformers gives to output heads: trained whole or not at all.
const HEADS: [&str; 5] = ["lm_head", "classifier", "score", "qa_outputs", "embed_out"];

/// The modules of `all` that `targets` mean, in the order of `all`. An entry means the module of that name and every
/// module whose name ends with it after a dot; `all-linear` means all but heads; `re:` stands before an expression that
/// must match a whole name.
///
/// # Errors
/// An entry that means no module, with what there is; an expression that is none.
pub fn select(all: &[LinearModule], targets: &[String]) -> Result<Vec<LinearModule>, ModelError> {
    let mut chosen = BTreeSet::new();
    for target in targets {
        let hits = hits(all, target)?;
        if hits.is_empty() {
            let known: BTreeSet<String> = all.iter().map(|module| kind_of(&module.name)).collect();
            return Err(ModelError::UnknownTarget { target: target.clone(), known: known.into_iter().collect::<Vec<_>>().join(", ") });
        }
        chosen.extend(hits);
    }
    Ok(chosen.into_iter().filter_map(|index| all.get(index).cloned()).collect())
}

fn hits(all: &[LinearModule], target: &str) -> Result<Vec<usize>, ModelError> {
    let matching = |fits: &dyn Fn(&str) -> bool| (0..all.len()).filter(|index| fits(&all[*index].name)).collect();
    if target.eq_ignore_ascii_case(ALL_LINEAR) {
        return Ok(matching(&|name| !is_head(name)));
    }
    if let Some(pattern) = target.strip_prefix(PATTERN) {
        let whole = whole(pattern)?;
        return Ok(matching(&|name| whole.is_match(name).unwrap_or(false)));
    }
    Ok(matching(&|name| names(target, name)))
}

/// Whether an entry of a list means this module: it is its name, or the name ends with it after a dot.
pub fn names(target: &str, module: &str) -> bool {
    module.strip_suffix(target).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// An expression that must match from the first character to the last.
///
/// # Errors
/// Text that is no expression.
pub fn whole(pattern: &str) -> Result<Regex, ModelError> {
    Regex::new(&format!("^(?:{pattern})$"))
        .map_err(|error| ModelError::TargetPattern { pattern: pattern.into(), reason: error.to_string() })
}

/// The first of PEFT's pattern keys (`rank_pattern`, `alpha_pattern`) that means this module.
///
/// # Errors
/// A key that is no expression.
pub fn first_key<'a>(keys: impl Iterator<Item = &'a str>, module: &str) -> Result<Option<&'a str>, ModelError> {
    for key in keys {
        if whole(&format!(r"(.*\.)?({key})"))?.is_match(module).unwrap_or(false) {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

fn is_head(name: &str) -> bool {
    name.split('.').any(|part| HEADS.contains(&part))
}

/// A module's name from its layer on, which is the same in every layer.
fn kind_of(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let from = parts.iter().rposition(|part| part.bytes().all(|byte| byte.is_ascii_digit())).map_or(0, |index| index + 1);
    parts[from..].join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<LinearModule> {
        let names = [
            "bert.encoder.layer.0.attention.self.query",
            "bert.encoder.layer.0.attention.output.dense",
            "bert.encoder.layer.0.output.dense",
            "bert.encoder.layer.1.attention.self.query",
            "bert.encoder.layer.1.attention.output.dense",
            "bert.encoder.layer.1.output.dense",
            "classifier.out_proj",
        ];
        names.map(|name| LinearModule { name: name.into(), inputs: 4, outputs: 4 }).to_vec()
    }

    fn chosen(targets: &[&str]) -> Result<Vec<usize>, String> {
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let found = select(&all(), &targets).map_err(|error| error.to_string())?;
        Ok(found.iter().map(|module| all().iter().position(|one| one == module).unwrap()).collect())
    }

    /// Each expectation is what PEFT 0.21 adapts for the same `target_modules` (a string where it begins with `re:`).
    #[test]
    fn targets_mean_what_they_mean_to_peft() {
        assert_eq!(chosen(&["query"]), Ok(vec![0, 3]));
        assert_eq!(chosen(&["output.dense"]), Ok(vec![1, 2, 4, 5]));
        assert_eq!(chosen(&["attention.output.dense", "query"]), Ok(vec![0, 1, 3, 4]));
        assert_eq!(chosen(&["bert.encoder.layer.1.output.dense"]), Ok(vec![5]));
        assert_eq!(chosen(&["all-linear"]), Ok(vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(chosen(&[r"re:.*\.0\..*dense"]), Ok(vec![1, 2]));
        assert_eq!(chosen(&[r"re:.*(?<!attention\.output)\.dense"]), Ok(vec![2, 5]));
        assert_eq!(chosen(&["re:query"]).unwrap_err().split(',').next(), Some("\"re:query\" names no linear module of this model"));
    }

    #[test]
    fn a_part_of_a_name_is_no_target() {
        let error = chosen(&["ense"]).unwrap_err();
        assert!(error.contains("attention.output.dense, attention.self.query, classifier.out_proj, output.dense"), "{error}");
        assert!(chosen(&["re:("]).unwrap_err().contains("is no regular expression"));
    }

    #[test]
    fn the_first_key_that_means_a_module_counts() {
        let first = |keys: &[&'static str], module| first_key(keys.iter().copied(), module).unwrap();
        let module = "model.layers.11.self_attn.q_proj";
        assert_eq!(first(&["proj", "k_proj", "q_proj", ".*"], module), Some("q_proj"));
        assert_eq!(first(&[r"layers\.1\..*", r"layers\.1\d\..*q_proj"], module), Some(r"layers\.1\d\..*q_proj"));
        assert_eq!(first(&["^model.layers.11.self_attn.q_proj"], module), Some("^model.layers.11.self_attn.q_proj"));
        assert_eq!(first(&["_proj"], module), None);
    }
}
