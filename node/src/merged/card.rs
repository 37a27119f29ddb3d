//! The text that people find with a merged adapter: what it was made of, and what its members say of it.

use mingle_protocol::hash::decode_hex;
use mingle_protocol::record::UnverifiedRecord;
use mingle_protocol::round::Round;

use super::Proof;
use crate::driver::PrivacyStatus;
use crate::{rule, slice};

/// The text a person finds with the merged adapter.
pub(super) fn card(round: &Round, proof: &Proof) -> String {
    facts(round, proof) + "\nCheck it with `mingle verify` on this directory.\n"
}

/// What a merge was made of, for people.
pub(crate) fn facts(round: &Round, proof: &Proof) -> String {
    let (manifest, Proof { receipt, layers, .. }) = (round.manifest(), proof);
    let mut text = format!(
        "# {}\n\n{} for `{}`, merged from {} adapters, each trained by one member on its own data.\n\n\
         Rule: {}.\n\n| member | weight | adapter (BLAKE3) |\n|---|---|---|\n",
        manifest.name,
        slice::named(&manifest.kind, layers.as_ref()),
        manifest.base.name,
        receipt.admitted.len(),
        rule::among(manifest, receipt.admitted.len())
    );
    for entry in &receipt.admitted {
        text += &format!("| `{}` | {} | `{}` |\n", entry.member, entry.weight, entry.adapter);
    }
    for sentence in promises(round, proof) {
        text += &format!("\n{sentence}\n");
    }
    for sentence in rule::told(&proof.account) {
        text += &format!("\n{sentence}\n");
    }
    if let Some(layers) = layers {
        text += &format!("\nOnly layers {layers} are here; the merged hash is that of the whole file.\n");
    }
    text + &format!(
        "\n- round `{}`\n- base digest `{}`\n- set root `{}`\n- merged hash `{}`\n",
        receipt.round, manifest.base.digest, receipt.set_root, receipt.merged
    )
}

/// A promise in words.
pub(crate) fn promised(epsilon: f64, delta: f64) -> String {
    format!("({epsilon:.2}, {delta:.0e})-differential privacy")
}

/// What members of the set promise their examples, a sentence each, in the receipt's order.
pub(crate) fn promises(round: &Round, proof: &Proof) -> Vec<String> {
    let promise = |text: &String| {
        let record = UnverifiedRecord(&decode_hex(text)?).verify(round).ok()?;
        let said = record.announcement()?;
        let PrivacyStatus { epsilon, delta, .. } = said.privacy?.into();
        Some(format!("`{}` promises each of its examples {}.", said.member, promised(epsilon, delta)))
    };
    proof.records.iter().filter_map(promise).collect()
}
