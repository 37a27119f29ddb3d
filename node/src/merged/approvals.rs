//! The part of a proof that shows an adapter's approvals, where the round asks for them: so many signed verdicts of members
//! on its very announcement. That a judge took its approval back later is not to be seen in it, as with a withdrawal.

use anyhow::{Context, Result, ensure};
use mingle_protocol::hash::decode_hex;
use mingle_protocol::ledger::Ledger;
use mingle_protocol::receipt::Receipt;
use mingle_protocol::record::{SignedRecord, UnverifiedRecord};
use mingle_protocol::round::Round;

/// As many approvals of each adapter as the round asks for, of those with the least keys.
///
/// # Errors
/// Fewer than that among `records`.
pub fn of(round: &Round, receipt: &Receipt, records: &[SignedRecord]) -> Result<Vec<SignedRecord>> {
    let ledger = Ledger::holding(round, records.iter().filter(|record| record.announcement().is_none()).cloned());
    let (needed, mut all) = (ledger.approvals_needed(), Vec::new());
    for entry in &receipt.admitted {
        let approving = ledger.verdicts(entry).filter(|record| record.verdict().is_some_and(|said| said.approves));
        let before = all.len();
        all.extend(approving.take(needed).cloned());
        ensure!(all.len() - before == needed, "an admitted adapter lacks approvals");
    }
    Ok(all)
}

/// Whether these records in hex give each adapter what the round asks for. `ledger` says who is a member.
///
/// # Errors
/// The first contradiction, in one sentence.
pub fn check(approvals: &[String], receipt: &Receipt, round: &Round, ledger: &mut Ledger) -> Result<()> {
    let needed = ledger.approvals_needed();
    let most = needed.saturating_mul(receipt.admitted.len());
    ensure!(approvals.len() <= most, "{} approvals are with a receipt that needs {most}", approvals.len());
    for text in approvals {
        let bytes = decode_hex(text).context("an approval in the receipt is not hex")?;
        let record = UnverifiedRecord(&bytes).verify(round).context("an approval in the receipt is refused")?;
        ensure!(record.verdict().is_some(), "a record of member {} is listed as an approval", record.record().author());
        ledger.insert(record);
    }
    for entry in &receipt.admitted {
        let found = ledger.approvals(entry);
        ensure!(found >= needed, "the adapter of member {} has {found} of the {needed} approvals that the round asks for", entry.member);
    }
    Ok(())
}
