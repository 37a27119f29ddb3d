//! Examples with a class as tab-separated values, as GLUE publishes them: one example a line, nothing quoted.
//!
//! With a header, `sentence`, `text`, `sentence1` or `premise` names the text, `sentence2`, `text_pair` or `hypothesis` the
//! second one, and `label` the class; other columns are left out. Without a header a line is text and class, or text,
//! second text and class.

use std::path::Path;

use super::DataError;
use super::record::{Label, Record};

const TEXT: [&str; 4] = ["sentence", "text", "sentence1", "premise"];
const PAIR: [&str; 3] = ["sentence2", "text_pair", "hypothesis"];

/// Where the columns are.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Columns {
    count: usize,
    text: usize,
    pair: Option<usize>,
    label: usize,
}

/// Reads a file; empty lines are allowed.
pub fn read_tsv(path: &Path) -> Result<Vec<Record>, DataError> {
    let text = std::fs::read_to_string(path).map_err(|error| DataError::File { path: path.into(), reason: error.to_string() })?;
    let mut columns = None;
    let mut records = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let refuse = |reason| DataError::Form { path: path.into(), line: index + 1, reason };
        let fields: Vec<&str> = line.split('\t').collect();
        let Some(known) = columns else {
            let (found, is_header) = begin(&fields).map_err(refuse)?;
            columns = Some(found);
            if !is_header {
                records.push(record(&fields, found).map_err(refuse)?);
            }
            continue;
        };
        records.push(record(&fields, known).map_err(refuse)?);
    }
    if records.is_empty() {
        return Err(DataError::Empty { path: path.into() });
    }
    Ok(records)
}

/// The columns that the first line shows, and whether it names them.
fn begin(fields: &[&str]) -> Result<(Columns, bool), String> {
    let find = |names: &[&str]| fields.iter().position(|field| names.contains(&field.trim()));
    let count = fields.len();
    if let Some(label) = find(&["label"]) {
        let text = find(&TEXT).ok_or_else(|| format!("the header names {}, but no {}", fields.join(", "), TEXT.join(" or ")))?;
        return Ok((Columns { count, text, pair: find(&PAIR), label }, true));
    }
    match count {
        2 => Ok((Columns { count, text: 0, pair: None, label: 1 }, false)),
        3 => Ok((Columns { count, text: 0, pair: Some(1), label: 2 }, false)),
        _ => Err(format!("{count} fields without a header that names a \"label\"; a line is text, tab, class")),
    }
}

fn record(fields: &[&str], columns: Columns) -> Result<Record, String> {
    if fields.len() != columns.count {
        return Err(format!("{} fields, but the first line has {}", fields.len(), columns.count));
    }
    let label = fields[columns.label].trim();
    if label.is_empty() {
        return Err("the class is empty".into());
    }
    let field = |at: usize| fields[at].to_string();
    Ok(Record::Classification { text: field(columns.text), pair: columns.pair.map(field), label: Label::parse(label) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Record>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.tsv");
        std::fs::write(&path, text).unwrap();
        read_tsv(&path).map_err(|error| error.to_string())
    }

    fn expected(text: &str, pair: Option<&str>, label: Label) -> Record {
        Record::Classification { text: text.into(), pair: pair.map(String::from), label }
    }

    #[test]
    fn files_with_and_without_a_header_are_read() {
        let fine = expected("\"fine\" film ", None, Label::Number(1));
        assert_eq!(read("sentence\tlabel\n\"fine\" film \t1\n").unwrap(), std::slice::from_ref(&fine));
        assert_eq!(read("\"fine\" film \t1\r\n\n").unwrap(), [fine]);
        let pair = expected("a", Some("b"), Label::Name("entailment".into()));
        assert_eq!(read("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n").unwrap(), std::slice::from_ref(&pair));
        assert_eq!(read("a\tb\tentailment\n").unwrap(), [pair]);
    }

    #[test]
    fn a_line_that_is_no_example_is_named() {
        for (text, reason) in [
            ("a\t1\nb\n", "d.tsv:2: 1 fields, but the first line has 2"),
            ("a\t1\nb\t \n", "d.tsv:2: the class is empty"),
            ("alone\n", "d.tsv:1: 1 fields without a header"),
            ("index\tlabel\n", "d.tsv:1: the header names index, label"),
            ("sentence\tlabel\n", "holds no example"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
