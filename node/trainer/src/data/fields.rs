//! Which of the data's own columns are the known fields of an example.

use std::str::FromStr;

use serde_json::{Map, Value};

use super::record::Record;

/// Fields that an example may have.
const KNOWN: [&str; 9] = ["instruction", "input", "output", "question", "answer", "messages", "text", "text_pair", "label"];

/// One field, and the column that it is in: `instruction=prompt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    name: &'static str,
    column: String,
}

impl FromStr for Field {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, column) = text.split_once('=').ok_or("expected FIELD=COLUMN, such as instruction=prompt")?;
        let known = KNOWN.into_iter().find(|known| *known == name);
        let name = known.ok_or_else(|| format!("{name:?} is no field of an example; there are {}", KNOWN.join(", ")))?;
        Ok(Self { name, column: column.into() })
    }
}

/// Which column each field is in. Without any, columns have the fields' own names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldMap(pub Vec<Field>);

impl FieldMap {
    /// The example that a row of named values holds. With a map nothing but what it names is looked at.
    ///
    /// # Errors
    /// A column that is not there, or what is wrong with the example.
    pub(super) fn record(&self, mut row: Map<String, Value>) -> Result<Record, String> {
        if self.0.is_empty() {
            return Record::from_json(&Value::Object(row));
        }
        let mut example = Map::new();
        for Field { name, column } in &self.0 {
            let value = match row.get_mut(column) {
                Some(value) => value.take(),
                None => {
                    let found = row.keys().take(12).cloned().collect::<Vec<_>>().join(", ");
                    return Err(format!("there is no column {column:?} for {name}; there are {found}"));
                }
            };
            example.insert((*name).to_owned(), value);
        }
        Record::from_json(&Value::Object(example))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_become_fields_and_nothing_else_is_looked_at() {
        let map = FieldMap(["instruction=q", "output=a"].map(|text| text.parse().unwrap()).into());
        let Value::Object(row) = json!({ "q": "Add.", "a": "3", "messages": 7 }) else { panic!("an object") };
        let expected = Record::Instruction { instruction: "Add.".into(), input: String::new(), output: "3".into() };
        assert_eq!(map.record(row.clone()), Ok(expected));
        let other = FieldMap(vec!["text=body".parse().unwrap()]);
        assert_eq!(other.record(row), Err("there is no column \"body\" for text; there are a, messages, q".into()));
        assert!("prompt=q".parse::<Field>().unwrap_err().contains("\"prompt\" is no field of an example"));
        assert!("q".parse::<Field>().is_err());
    }
}
