//! Judges an announced adapter by the first bytes of its file, by the rule that judges it whole later: what does not fit
//! the round is refused after kilobytes.

use mingle_protocol::adapter::{Layout, TensorList, header_length};

use crate::network::{HeadCheck, HeadVerdict};

/// The tensors that the round's adapters hold.
pub(super) struct AdapterHead(pub TensorList);

impl HeadCheck for AdapterHead {
    fn judge(&self, head: &[u8], size: u64) -> HeadVerdict {
        match header_length(head, size) {
            Ok(length) if length > head.len() => HeadVerdict::More(length as u64),
            Ok(_) => match Layout::parse(head, size, &self.0) {
                Ok(_) => HeadVerdict::Fits,
                Err(error) => HeadVerdict::Refused(error.to_string()),
            },
            Err(error) => HeadVerdict::Refused(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use mingle_protocol::adapter::{Dtype, LoraShape, Module, canonical_header, check};

    use super::*;

    #[test]
    fn the_head_is_judged_as_the_whole_file_is() {
        let module = Module { name: "layer".into(), inputs: 3, outputs: 5 };
        let tensors = |rank| LoraShape::new(rank, rank, [0; 32], vec![module.clone()]).tensors().unwrap();
        let file = |tensors: &TensorList| {
            let mut file = canonical_header(tensors, Dtype::F32);
            file.resize(file.len() + tensors.elements() as usize * 4, 0);
            file
        };
        let judge = AdapterHead(tensors(2));
        let (right, wrong) = (file(&tensors(2)), file(&tensors(4)));
        let header = |file: &[u8]| header_length(file, file.len() as u64).unwrap();
        assert_eq!(judge.judge(&right[..8], right.len() as u64), HeadVerdict::More(header(&right) as u64));
        assert_eq!(judge.judge(&right[..header(&right)], right.len() as u64), HeadVerdict::Fits);
        let why = check(&wrong, &tensors(2)).unwrap_err().to_string();
        assert_eq!(judge.judge(&wrong[..header(&wrong)], wrong.len() as u64), HeadVerdict::Refused(why));
        // A header that claims gigabytes is refused by its length alone.
        let long = [(1_u64 << 40).to_le_bytes().as_slice(), &[0; 100]].concat();
        assert!(matches!(judge.judge(&long, 1 << 30), HeadVerdict::Refused(_)));
    }
}
