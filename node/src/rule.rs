//! A round's merge rule in words.

use mingle_protocol::merge::{Account, MergeRule};
use mingle_protocol::round::{Manifest, WeightRule};

/// What the manifest pins.
pub fn pinned(manifest: &Manifest) -> String {
    let rule = match manifest.rule {
        MergeRule::Mean => "mean".to_owned(),
        MergeRule::Stack => "stack of all ranks, the exact mean of the updates".to_owned(),
        MergeRule::TrimmedMean { trim } => format!("mean without the {trim} least and the {trim} greatest values of every coordinate"),
        MergeRule::Median => "median of every coordinate".to_owned(),
        MergeRule::MultiKrum { faulty } => format!("mean without the {faulty} adapters that lie furthest from the rest (multi-Krum)"),
    };
    let weight = match manifest.weight {
        WeightRule::Equal => ", every adapter counts 1".to_owned(),
        WeightRule::Examples { cap } => format!(", weighted by examples up to {cap}"),
    };
    let clip = manifest.clip_millionths.map(|bound| format!(", updates clipped to norm {}", decimal(bound))).unwrap_or_default();
    [rule, weight, clip].concat()
}

/// The same, and what it stands with so many adapters.
pub fn among(manifest: &Manifest, adapters: usize) -> String {
    let stands = manifest.rule.stands(adapters as u64);
    let bad = if stands == 1 { "1 bad adapter".to_owned() } else { format!("{stands} bad adapters") };
    format!("{}; with {adapters} adapters it stands {bad}", pinned(manifest))
}

/// What the rule did to single members, a sentence each.
pub fn told(account: &Account) -> Vec<String> {
    let clipped = account.clipped.iter().map(|(member, factor)| format!("Clipped: `{member}`, to {:.6} of its update.", factor.value()));
    clipped.chain(account.left_out.iter().map(|member| format!("Left out: `{member}`."))).collect()
}

/// Millionths as people write them.
fn decimal(millionths: u64) -> String {
    let digits = format!("{}.{:06}", millionths / 1_000_000, millionths % 1_000_000);
    digits.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Millionths of a number as people write it.
///
/// # Errors
/// No number, or one with more than six places.
pub fn millionths(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no number with at most six places, such as 2.5");
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    if whole.len() + places.len() == 0 || places.len() > 6 || !format!("{whole}{places}").bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    format!("{whole}{places:0<6}").parse().map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_reads_as_it_is_written() {
        for (text, expected) in [("2.5", 2_500_000), ("1", 1_000_000), ("0.000001", 1), ("10.25", 10_250_000)] {
            assert_eq!(millionths(text), Ok(expected));
            assert_eq!(decimal(expected), text);
        }
        assert_eq!(millionths(".5"), Ok(500_000));
        for wrong in ["", "-1", "1e3", "1.0000001", "one", "99999999999999999999"] {
            assert!(millionths(wrong).is_err(), "{wrong}");
        }
    }
}
