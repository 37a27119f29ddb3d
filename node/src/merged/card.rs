//! The text that people find with a merged adapter: what it was made of, and what its members say of it.

use mingle_protocol::hash::decode_hex;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::record::{Privacy, UnverifiedRecord};
use mingle_protocol::round::Round;

use super::Proof;
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
    for (member, privacy) in promises(round, proof) {
        let (epsilon, delta) = (privacy.epsilon_millionths as f64 / 1e6, privacy.delta_trillionths as f64 / 1e12);
        text += &format!("\n`{member}` says that its training is ({epsilon:.2}, {delta:.0e})-private for each of its examples.\n");
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

/// What members of the set promise their examples, in the receipt's order.
fn promises(round: &Round, proof: &Proof) -> Vec<(MemberKey, Privacy)> {
    let promise = |text: &String| {
        let record = UnverifiedRecord(&decode_hex(text)?).verify(round).ok()?;
        let said = record.announcement()?;
        Some((said.member, said.privacy?))
    };
    proof.records.iter().filter_map(promise).collect()
}
