//! The weights of a Hugging Face directory, written tensor by tensor: which tensor goes into which file, and the files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::json;

use crate::files;
use crate::models::ModelError;
use crate::models::weights::{INDEX, SINGLE};

const BUFFER_BYTES: usize = 1 << 20;
/// Hugging Face's own limit for a file.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// How tensors are split over files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Into the files that the base is split into; one that is not split, at [`SHARD_BYTES`].
    AsBase,
    /// Into files of at most so many bytes of tensors. A larger tensor has a file of its own.
    Bytes(u64),
}

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Planned {
    pub name: String,
    pub dtype: Dtype,
    pub dims: Vec<usize>,
    pub bytes: u64,
}

/// A file and its tensors.
#[derive(Debug, PartialEq)]
pub(super) struct Shard {
    pub file: String,
    pub tensors: Vec<Planned>,
}

/// Files of at most `most` bytes, filled in the order of the tensors.
pub(super) fn split(tensors: Vec<Planned>, most: u64) -> Vec<Shard> {
    let mut filled: Vec<(u64, Vec<Planned>)> = Vec::new();
    for tensor in tensors {
        match filled.last_mut() {
            Some((bytes, shard)) if bytes.saturating_add(tensor.bytes) <= most => {
                *bytes += tensor.bytes;
                shard.push(tensor);
            }
            _ => filled.push((tensor.bytes, vec![tensor])),
        }
    }
    let count = filled.len();
    let file = |index: usize| match count {
        1 => SINGLE.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    };
    filled.into_iter().enumerate().map(|(index, (_, tensors))| Shard { file: file(index), tensors }).collect()
}

/// Gives a tensor's bytes, piece by piece.
pub(super) type Pour<'a> = &'a mut dyn FnMut(&Planned, Sink) -> Result<(), ModelError>;
/// Takes them.
pub(super) type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), ModelError>;

/// Writes the files into `out`, and the index where they are not [`SINGLE`] alone.
///
/// # Errors
/// What the file system says, or `pour`.
pub(super) fn write(out: &Path, shards: Vec<Shard>, pour: Pour) -> Result<(), ModelError> {
    let mut places = BTreeMap::new();
    let mut total = 0;
    for Shard { file, mut tensors } in shards {
        // As the safetensors library orders them: so every tensor is aligned to its elements.
        tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
        let path = out.join(&file);
        let explain = |error: std::io::Error| ModelError::file(&path, error);
        let mut to = BufWriter::with_capacity(BUFFER_BYTES, File::create(&path).map_err(explain)?);
        to.write_all(&header(&path, &tensors)?).map_err(explain)?;
        for tensor in tensors {
            let mut left = tensor.bytes;
            pour(&tensor, &mut |piece| {
                left = left.checked_sub(piece.len() as u64).ok_or_else(|| changed(&tensor.name))?;
                to.write_all(piece).map_err(explain)
            })?;
            if left > 0 {
                return Err(changed(&tensor.name));
            }
            total += tensor.bytes;
            places.insert(tensor.name, file.clone());
        }
        to.into_inner().map_err(std::io::IntoInnerError::into_error).and_then(|file| file.sync_all()).map_err(explain)?;
    }
    if places.values().all(|file| file == SINGLE) {
        return Ok(());
    }
    let path = out.join(INDEX);
    let index = format!("{:#}\n", json!({ "metadata": { "total_size": total }, "weight_map": places }));
    files::replace(&path, index.as_bytes(), files::PUBLIC).map_err(|error| ModelError::file(&path, error))
}

fn changed(name: &str) -> ModelError {
    ModelError::file(name, "changed its size while it was written")
}

/// The length of the header and the header, filled up to a multiple of eight bytes.
fn header(path: &Path, tensors: &[Planned]) -> Result<Vec<u8>, ModelError> {
    let mut end = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for Planned { name, dtype, dims, bytes } in tensors {
        let start = end;
        end += usize::try_from(*bytes).map_err(|error| ModelError::file(path, error))?;
        infos.push((name.clone(), TensorInfo { dtype: *dtype, shape: dims.clone(), data_offsets: (start, end) }));
    }
    let metadata = Metadata::new(Some([("format".to_owned(), "pt".to_owned())].into()), infos);
    let metadata = metadata.map_err(|error| ModelError::file(path, error))?;
    let mut text = serde_json::to_vec(&metadata).map_err(|error| ModelError::file(path, error))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([(text.len() as u64).to_le_bytes().as_slice(), &text].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(name: &str, bytes: u64) -> Planned {
        Planned { name: name.into(), dtype: Dtype::BF16, dims: vec![bytes as usize / 2], bytes }
    }

    #[test]
    fn files_are_filled_in_order_and_no_further() {
        let tensors = || vec![planned("a", 4), planned("b", 6), planned("c", 40), planned("d", 2), planned("e", 8)];
        let found = |most| {
            let shards = split(tensors(), most);
            shards.iter().map(|shard| shard.tensors.iter().map(|tensor| tensor.name.as_str()).collect::<String>()).collect::<Vec<_>>()
        };
        assert_eq!(found(10), ["ab", "c", "de"]);
        assert_eq!(found(9), ["a", "b", "c", "d", "e"]);
        assert_eq!(found(60), ["abcde"]);
        assert_eq!(split(tensors(), 60)[0].file, "model.safetensors");
        assert_eq!(split(tensors(), 10)[2].file, "model-00003-of-00003.safetensors");
    }
}
