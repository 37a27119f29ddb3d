//! Comma-separated values as RFC 4180 describes them: quoted fields may hold commas, line ends and doubled quotes.

/// A row and the line it begins on, from 1.
pub type Row = (usize, Vec<String>);

/// The rows of a text; empty lines are left out. The error names the line of a quote that never ends.
pub fn rows(text: &str) -> Result<Vec<Row>, String> {
    let (mut rows, mut row, mut field) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut began, mut quoted) = (1, 1, None);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted.is_some() && characters.peek() == Some(&'"') => field.extend(characters.next()),
            '"' if quoted.is_some() => quoted = None,
            // Only at a field's beginning does a quote open it: elsewhere it is a character, as in 6" pipes.
            '"' if field.is_empty() => quoted = Some(line),
            ',' if quoted.is_none() => row.push(std::mem::take(&mut field)),
            '\r' if quoted.is_none() && characters.peek() == Some(&'\n') => {}
            '\n' if quoted.is_none() => {
                row.push(std::mem::take(&mut field));
                if row != [""] {
                    rows.push((began, std::mem::take(&mut row)));
                }
                row.clear();
                began = line + 1;
            }
            other => field.push(other),
        }
        line += usize::from(character == '\n');
    }
    if let Some(line) = quoted {
        return Err(format!("the quote opened on line {line} is never closed"));
    }
    if !field.is_empty() || !row.is_empty() {
        row.push(field);
        rows.push((began, row));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_commas_line_ends_and_quotes() {
        let text = "a,\"b, c\",d\r\n\n\"say \"\"hi\"\"\",\"two\nlines\",\n6\" pipe,,\"\"";
        let found = rows(text).unwrap();
        let expected: [(usize, [&str; 3]); 3] = [(1, ["a", "b, c", "d"]), (3, ["say \"hi\"", "two\nlines", ""]), (5, ["6\" pipe", "", ""])];
        assert_eq!(found.len(), 3);
        for ((line, row), (expected_line, expected_row)) in found.iter().zip(expected) {
            assert_eq!((*line, row.as_slice()), (expected_line, expected_row.map(String::from).as_slice()));
        }
        assert_eq!(rows("").unwrap(), []);
        assert_eq!(rows("x\ny,\"z").unwrap_err(), "the quote opened on line 2 is never closed");
    }
}
