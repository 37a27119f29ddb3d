//! Judges a file by its first bytes: an announced adapter by the rule that judges it whole later, a merged file by the one
//! header that the round's merge has. What does not fit is refused after kilobytes, and where some layers of a merge are
//! wanted, only their bytes are fetched.

use std::ops::Range;

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

/// The header of the round's merged file.
pub(super) struct MergedHead {
    pub header: Vec<u8>,
    /// Bytes of the file.
    pub size: u64,
    /// What is wanted of it, where that is not all.
    pub places: Option<Vec<Range<u64>>>,
}

impl HeadCheck for MergedHead {
    fn judge(&self, head: &[u8], size: u64) -> HeadVerdict {
        let whole = head.len() >= self.header.len();
        if size != self.size || (whole && !head.starts_with(&self.header)) {
            return HeadVerdict::Refused("the file that members vouch for does not have this round's tensors".into());
        }
        match &self.places {
            _ if !whole => HeadVerdict::More(self.header.len() as u64),
            Some(places) => HeadVerdict::Part(places.clone()),
            None => HeadVerdict::Fits,
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
        // The merged file of the round has that header and no other, and that size.
        let merged = |places| MergedHead { header: right[..header(&right)].to_vec(), size: right.len() as u64, places };
        let size = right.len() as u64;
        assert_eq!(merged(None).judge(&right[..8], size), HeadVerdict::More(header(&right) as u64));
        assert_eq!(merged(None).judge(&right, size), HeadVerdict::Fits);
        assert_eq!(merged(Some(vec![0..9, 700..800])).judge(&right, size), HeadVerdict::Part(vec![0..9, 700..800]));
        for (head, size) in [(&right, size + 1), (&wrong, size)] {
            assert!(matches!(merged(None).judge(head, size), HeadVerdict::Refused(_)));
        }
        // A header that claims gigabytes is refused by its length alone.
        let long = [(1_u64 << 40).to_le_bytes().as_slice(), &[0; 100]].concat();
        assert!(matches!(judge.judge(&long, 1 << 30), HeadVerdict::Refused(_)));
    }
}
