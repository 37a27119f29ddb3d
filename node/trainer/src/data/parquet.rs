//! Examples as the rows of an Apache Parquet file, such as the hub keeps data sets in.

use std::fs::File;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::DataError;
use super::fields::FieldMap;
use super::record::Record;

/// Reads a file whole. Rows are counted from 1 in what is said of them.
pub(super) fn read_parquet(path: &Path, fields: &FieldMap) -> Result<Vec<Record>, DataError> {
    let refuse = |reason: String| DataError::File { path: path.into(), reason };
    let file = File::open(path).map_err(|error| refuse(error.to_string()))?;
    let reader = SerializedFileReader::new(file).map_err(|error| refuse(error.to_string()))?;
    let rows = reader.get_row_iter(None).map_err(|error| refuse(error.to_string()))?;
    let mut records = Vec::new();
    for (index, row) in rows.enumerate() {
        let line = |reason| DataError::Form { path: path.into(), line: index + 1, reason };
        let row = row.map_err(|error| line(error.to_string()))?;
        records.push(object(&row).and_then(|row| fields.record(row)).map_err(line)?);
    }
    if records.is_empty() {
        return Err(DataError::Empty { path: path.into() });
    }
    Ok(records)
}

fn object(row: &Row) -> Result<Map<String, Value>, String> {
    row.get_column_iter().map(|(name, field)| Ok((name.clone(), value(field)?))).collect()
}

/// What an example can use of a field; dates and the like are shown as the library writes them.
fn value(field: &Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(truth) => (*truth).into(),
        Field::Byte(number) => (*number).into(),
        Field::Short(number) => (*number).into(),
        Field::Int(number) => (*number).into(),
        Field::Long(number) => (*number).into(),
        Field::UByte(number) => (*number).into(),
        Field::UShort(number) => (*number).into(),
        Field::UInt(number) => (*number).into(),
        Field::ULong(number) => (*number).into(),
        Field::Float(number) => (*number).into(),
        Field::Double(number) => (*number).into(),
        Field::Str(text) => text.clone().into(),
        // Writers without a type for text leave its bytes.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => return Err("a column holds bytes that are no text".into()),
        },
        Field::ListInternal(list) => list.elements().iter().map(value).collect::<Result<Vec<_>, String>>()?.into(),
        Field::Group(row) => Value::Object(object(row)?),
        other => other.to_string().into(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;
    use crate::data::record::Message;
    use crate::data::{Label, read_records};

    #[test]
    fn rows_become_examples_and_a_bad_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.parquet");
        let schema = "message rows { required binary review (UTF8); optional int64 label; }";
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, Arc::new(properties)).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let texts = [ByteArray::from("Fine."), ByteArray::from("Bad."), ByteArray::from("Who knows?")];
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[1, 0], Some(&[1, 1, 0]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();

        let map = |fields: &[&str]| FieldMap(fields.iter().map(|field| field.parse().unwrap()).collect());
        let error = read_records(&path, &map(&["text=review", "label=label"])).unwrap_err().to_string();
        assert!(error.ends_with("d.parquet:3: \"label\" is null, but must be a number or a name"), "{error}");
        let error = read_records(&path, &map(&["text=body"])).unwrap_err().to_string();
        assert!(error.ends_with("d.parquet:1: there is no column \"body\" for text; there are label, review"), "{error}");
        let read = read_records(&path, &map(&["text=review"])).unwrap();
        assert_eq!(read, ["Fine.", "Bad.", "Who knows?"].map(|text| Record::Text(text.into())));
        std::fs::write(&path, "no parquet").unwrap();
        assert!(matches!(read_records(&path, &FieldMap::default()), Err(DataError::File { .. })));
    }

    /// `chat.parquet` was written by pyarrow 21: a list of structures, as the hub has conversations, and a class by its name.
    #[test]
    fn conversations_are_lists_of_structures() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data/chat.parquet");
        let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let first = Record::Messages(vec![message("user", "Hi"), message("assistant", "Hello ✓")]);
        let read = read_records(&path, &FieldMap(vec!["messages=conversation".parse().unwrap()])).unwrap();
        assert_eq!((read.len(), &read[0]), (2, &first));
        let map = FieldMap(["text=title", "label=kind"].map(|field| field.parse().unwrap()).into());
        let expected = Record::Classification { text: "one".into(), pair: None, label: Label::Name("short".into()) };
        assert_eq!(read_records(&path, &map).unwrap()[0], expected);
    }
}
