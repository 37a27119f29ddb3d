//! Nothing is without bound: what one input can cause, how much is fetched at once, how often one thing is told.

use std::collections::BTreeSet;

use mingle_protocol::machine::{FETCHES_MAX, Output};
use mingle_protocol::record::RecordId;
use mingle_protocol::sync::BATCH_MAX;

use crate::Name;

/// What one input may cause: a batch of records, each kept, told, displacing up to two, and noticed; fetches that change
/// places; a question to some neighbours.
const OUTPUTS_MAX: usize = 5 * BATCH_MAX + 64;

#[derive(Default)]
pub struct Bounds {
    told: BTreeSet<(Name, u32, RecordId)>,
    /// Most outputs that one input has caused.
    pub most_outputs: usize,
}

impl Bounds {
    /// # Errors
    /// Too many outputs, or a record passed on before it is to be kept.
    pub fn outputs(&mut self, at: Name, outputs: &[Output<Name>], gossiped: bool) -> Result<(), String> {
        self.most_outputs = self.most_outputs.max(outputs.len());
        if outputs.len() > OUTPUTS_MAX {
            return Err(format!("one input made peer {at} do {} things at once", outputs.len()));
        }
        let count = |kind: fn(&Output<Name>) -> bool| outputs.iter().filter(|output| kind(output)).count();
        let verdicts = count(|output| matches!(output, Output::Reception(_)));
        if verdicts != usize::from(gossiped) {
            return Err(format!("peer {at} judges one message {verdicts} times"));
        }
        for (index, output) in outputs.iter().enumerate() {
            if let Output::Keep(record) = output
                && outputs[..index].iter().any(|before| matches!(before, Output::Gossip(bytes) if bytes == record.bytes()))
            {
                return Err(format!("the machine of peer {at} passes a record on before it is to be kept"));
            }
        }
        Ok(())
    }

    /// # Errors
    /// More fetches than there are places.
    pub fn fetches(&self, at: Name, in_flight: usize) -> Result<(), String> {
        if in_flight > FETCHES_MAX { Err(format!("peer {at} fetches {in_flight} adapters at once")) } else { Ok(()) }
    }

    /// A process tells its neighbours of a record as news.
    ///
    /// # Errors
    /// It has done so before.
    pub fn told(&mut self, at: Name, life: u32, id: RecordId) -> Result<(), String> {
        if self.told.insert((at, life, id)) {
            return Ok(());
        }
        Err(format!("peer {at} tells record {} as news a second time", id.0.short()))
    }
}
