//! Questions with a choice of answers, as MMLU and ARC are published.
//!
//! MMLU: the comma-separated files of the original release (question, A, B, C, D, letter; no header; the file name is the
//! subject) and the JSON lines of the hub's data set (`question`, `subject`, `choices`, `answer` as an index).
//! ARC: the JSON lines of the original release (`question` with `stem` and `choices` of `text` and `label`, `answerKey`)
//! and of the hub's data set (`question`, `choices` with lists `text` and `label`, `answerKey`). Labels may be 1 to 4.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{DataError, csv};

/// One question; `choices[answer]` is right.
#[derive(Debug, Clone, PartialEq)]
pub struct ChoiceQuestion {
    /// The subject, or the file's name.
    pub group: String,
    pub question: String,
    pub choices: Vec<String>,
    pub answer: usize,
}

/// A published form of such questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChoiceForm {
    Mmlu,
    Arc,
}

/// Reads a file, or every file of a folder in the order of their names.
pub fn read_choices(path: &Path, form: ChoiceForm) -> Result<Vec<ChoiceQuestion>, DataError> {
    let mut questions = Vec::new();
    for file in files(path)? {
        let text = std::fs::read_to_string(&file).map_err(|error| DataError::File { path: file.clone(), reason: error.to_string() })?;
        let at = |line, reason| DataError::Form { path: file.clone(), line, reason };
        let group = subject(&file);
        if has_ending(&file, "csv") {
            if form == ChoiceForm::Arc {
                let reason = "is a .csv file, but ARC is read as JSON lines (.jsonl)".into();
                return Err(DataError::File { path: file.clone(), reason });
            }
            let rows = csv::rows(&text).map_err(|reason| DataError::File { path: file.clone(), reason })?;
            for (line, row) in rows {
                questions.push(mmlu_row(&group, row).map_err(|reason| at(line, reason))?);
            }
            continue;
        }
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let json: Value = serde_json::from_str(line).map_err(|error| at(index + 1, format!("not JSON: {error}")))?;
            let found = match form {
                ChoiceForm::Mmlu => mmlu_json(&group, &json),
                ChoiceForm::Arc => arc_json(&group, &json),
            };
            questions.push(found.map_err(|reason| at(index + 1, reason))?);
        }
    }
    if questions.is_empty() {
        return Err(DataError::Empty { path: path.into() });
    }
    Ok(questions)
}

fn files(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let refuse = |error: std::io::Error| DataError::File { path: path.into(), reason: error.to_string() };
    let entries = std::fs::read_dir(path).map_err(refuse)?.collect::<Result<Vec<_>, _>>().map_err(refuse)?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| has_ending(file, "csv") || has_ending(file, "jsonl"));
    files.sort();
    Ok(files)
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|found| found == ending)
}

/// `anatomy` of `anatomy_test.csv`.
fn subject(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = ["_test", "_dev", "_val"].into_iter().find(|ending| stem.ends_with(ending));
    stem.trim_end_matches(ending.unwrap_or_default()).into()
}

fn mmlu_row(group: &str, row: Vec<String>) -> Result<ChoiceQuestion, String> {
    let count = row.len();
    let [question, choices @ .., letter] = row.as_slice() else { return Err(format!("{count} fields, but MMLU has 6")) };
    if choices.len() != 4 {
        return Err(format!("{count} fields, but MMLU has 6: question, A, B, C, D, letter of the answer"));
    }
    let answer = ["A", "B", "C", "D"].iter().position(|known| *known == letter.trim());
    let answer = answer.ok_or_else(|| format!("the answer is {letter:?}, but must be A, B, C or D"))?;
    Ok(ChoiceQuestion { group: group.into(), question: question.clone(), choices: choices.to_vec(), answer })
}

fn mmlu_json(group: &str, json: &Value) -> Result<ChoiceQuestion, String> {
    let question = text(json, "question")?;
    let choices = texts(&json["choices"], "choices")?;
    if choices.len() != 4 {
        return Err(format!("{} choices, but MMLU has 4", choices.len()));
    }
    let answer = json["answer"].as_u64().ok_or_else(|| format!("\"answer\" is {}, but must be an index from 0 to 3", json["answer"]))?;
    if answer > 3 {
        return Err(format!("\"answer\" is {answer}, but must be an index from 0 to 3"));
    }
    let group = json["subject"].as_str().filter(|subject| !subject.is_empty()).unwrap_or(group);
    Ok(ChoiceQuestion { group: group.into(), question, choices, answer: answer as usize })
}

fn arc_json(group: &str, json: &Value) -> Result<ChoiceQuestion, String> {
    let (question, choices, labels) = match &json["question"] {
        Value::Object(question) => {
            let list = question.get("choices").and_then(Value::as_array).ok_or("\"question\" holds no list \"choices\"")?;
            let part = |name| list.iter().map(|choice| text(choice, name)).collect::<Result<Vec<_>, _>>();
            (text(&json["question"], "stem")?, part("text")?, part("label")?)
        }
        _ => {
            (text(json, "question")?, texts(&json["choices"]["text"], "choices.text")?, texts(&json["choices"]["label"], "choices.label")?)
        }
    };
    if choices.len() != labels.len() || choices.is_empty() {
        return Err(format!("{} choices with {} labels", choices.len(), labels.len()));
    }
    let key = text(json, "answerKey")?;
    let answer = labels.iter().position(|label| *label == key);
    let answer = answer.ok_or_else(|| format!("\"answerKey\" is {key:?}, but the labels are {}", labels.join(", ")))?;
    Ok(ChoiceQuestion { group: group.into(), question, choices, answer })
}

fn text(json: &Value, field: &str) -> Result<String, String> {
    json[field].as_str().map(String::from).ok_or_else(|| format!("\"{field}\" is {}, but must be a string", json[field]))
}

fn texts(json: &Value, field: &str) -> Result<Vec<String>, String> {
    let list = json.as_array().ok_or_else(|| format!("\"{field}\" must be a list of strings"))?;
    list.iter()
        .map(|item| item.as_str().map(String::from).ok_or_else(|| format!("\"{field}\" holds {item}, but must hold strings")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str, form: ChoiceForm) -> Result<Vec<ChoiceQuestion>, DataError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
        read_choices(&dir.path().join(name), form)
    }

    fn choices(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| word.to_string()).collect()
    }

    #[test]
    fn mmlu_is_read_in_both_published_forms() {
        let expected =
            ChoiceQuestion { group: "anatomy".into(), question: "Where, then?".into(), choices: choices(&["w", "x", "y", "z"]), answer: 2 };
        let csv = read("anatomy_test.csv", "\"Where, then?\",w,x,y,z,C\n", ChoiceForm::Mmlu).unwrap();
        assert_eq!(csv, std::slice::from_ref(&expected));
        let line = r#"{"question": "Where, then?", "subject": "anatomy", "choices": ["w", "x", "y", "z"], "answer": 2}"#;
        assert_eq!(read("test.jsonl", line, ChoiceForm::Mmlu).unwrap(), [expected]);
    }

    #[test]
    fn arc_is_read_in_both_published_forms_with_letters_or_numbers() {
        let published = r#"{"id": "1", "question": {"stem": "Why?", "choices": [{"text": "so", "label": "A"}, {"text": "no", "label": "B"}]}, "answerKey": "B"}"#;
        let hub = r#"{"question": "Why?", "choices": {"text": ["so", "no", "oh"], "label": ["1", "2", "3"]}, "answerKey": "2"}"#;
        let found = read("ARC-Easy-Test.jsonl", &format!("{published}\n{hub}\n"), ChoiceForm::Arc).unwrap();
        let expected =
            |words: &[&str]| ChoiceQuestion { group: "ARC-Easy-Test".into(), question: "Why?".into(), choices: choices(words), answer: 1 };
        assert_eq!(found, [expected(&["so", "no"]), expected(&["so", "no", "oh"])]);
    }

    #[test]
    fn a_folder_is_read_in_the_order_of_its_names() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["law_test.csv", "art_test.csv"] {
            std::fs::write(dir.path().join(name), "q,a,b,c,d,A\n").unwrap();
        }
        std::fs::write(dir.path().join("README.txt"), "not questions").unwrap();
        let found = read_choices(dir.path(), ChoiceForm::Mmlu).unwrap();
        assert_eq!(found.iter().map(|question| question.group.as_str()).collect::<Vec<_>>(), ["art", "law"]);
    }

    #[test]
    fn what_is_no_question_is_named() {
        let cases = [
            ("x.csv", "q,a,b,c,D\n", ChoiceForm::Mmlu, "x.csv:1: 5 fields"),
            ("x.csv", "q,a,b,c,d,A\nq,a,b,c,d,E\n", ChoiceForm::Mmlu, "x.csv:2: the answer is \"E\""),
            ("x.csv", "q,a,b,c,d,A\n", ChoiceForm::Arc, "ARC is read as JSON lines"),
            ("x.jsonl", r#"{"question": "q", "choices": ["a", "b", "c", "d"], "answer": 4}"#, ChoiceForm::Mmlu, "\"answer\" is 4"),
            (
                "x.jsonl",
                r#"{"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "C"}"#,
                ChoiceForm::Arc,
                "the labels are A",
            ),
            ("x.jsonl", "", ChoiceForm::Arc, "holds no example"),
        ];
        for (name, text, form, expected) in cases {
            let error = read(name, text, form).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
