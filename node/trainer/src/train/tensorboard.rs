//! Scalars as TensorBoard reads them: event files, which are `Event` messages of its protocol buffers in TFRecord frames.
//!
//! Only what scalars need is written. A process writes a file of its own; one that resumes a training says from which
//! step it goes on, and TensorBoard then leaves out what an earlier file holds of later steps.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes the events of one process.
pub struct EventFile(File);

impl EventFile {
    /// A new file in `dir` (created if missing), for the steps from `first_step` on.
    pub fn create(dir: &Path, first_step: usize) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        // TensorBoard reads a folder's files in the order of their names, and knows them by "tfevents".
        let name = format!("events.out.tfevents.{:020}.{}.mingle", now, std::process::id());
        let mut file = Self(File::options().write(true).create_new(true).open(dir.join(name))?);
        let mut version = Message::new();
        version.double(EVENT_WALL_TIME, wall_time()).bytes(EVENT_FILE_VERSION, b"brain.Event:2");
        file.record(&version)?;
        let mut session = Message::new();
        session.number(SESSION_LOG_STATUS, SESSION_LOG_START);
        let mut start = Message::new();
        start.double(EVENT_WALL_TIME, wall_time()).number(EVENT_STEP, first_step as u64).message(EVENT_SESSION_LOG, &session);
        file.record(&start)?;
        Ok(file)
    }

    /// Writes values of one step.
    pub fn scalars(&mut self, step: usize, values: &[(&str, f64)]) -> io::Result<()> {
        let mut summary = Message::new();
        for (tag, value) in values {
            let mut entry = Message::new();
            entry.bytes(VALUE_TAG, tag.as_bytes()).float(VALUE_SIMPLE, *value as f32);
            summary.message(SUMMARY_VALUE, &entry);
        }
        let mut event = Message::new();
        event.double(EVENT_WALL_TIME, wall_time()).number(EVENT_STEP, step as u64).message(EVENT_SUMMARY, &summary);
        self.record(&event)
    }

    /// One TFRecord: length, its checksum, data, their checksum.
    fn record(&mut self, event: &Message) -> io::Result<()> {
        let (data, length) = (&event.0, (event.0.len() as u64).to_le_bytes());
        let mut frame = Vec::with_capacity(data.len() + 16);
        frame.extend(length);
        frame.extend(masked_checksum(&length).to_le_bytes());
        frame.extend(data);
        frame.extend(masked_checksum(data).to_le_bytes());
        // One call, so that a reader never finds half a frame of a process that goes on.
        self.0.write_all(&frame)
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

// Field numbers of event.proto and summary.proto.
const EVENT_WALL_TIME: u64 = 1;
const EVENT_STEP: u64 = 2;
const EVENT_FILE_VERSION: u64 = 3;
const EVENT_SUMMARY: u64 = 5;
const EVENT_SESSION_LOG: u64 = 7;
const SESSION_LOG_STATUS: u64 = 1;
const SESSION_LOG_START: u64 = 1;
const SUMMARY_VALUE: u64 = 1;
const VALUE_TAG: u64 = 1;
const VALUE_SIMPLE: u64 = 2;

/// A protocol-buffers message under construction.
struct Message(Vec<u8>);

impl Message {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn varint(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn key(&mut self, field: u64, wire_type: u64) -> &mut Self {
        self.varint(field << 3 | wire_type)
    }

    fn number(&mut self, field: u64, value: u64) -> &mut Self {
        self.key(field, 0).varint(value)
    }

    fn double(&mut self, field: u64, value: f64) -> &mut Self {
        self.key(field, 1).0.extend(value.to_le_bytes());
        self
    }

    fn bytes(&mut self, field: u64, value: &[u8]) -> &mut Self {
        self.key(field, 2).varint(value.len() as u64).0.extend(value);
        self
    }

    fn message(&mut self, field: u64, value: &Message) -> &mut Self {
        self.bytes(field, &value.0)
    }

    fn float(&mut self, field: u64, value: f32) -> &mut Self {
        self.key(field, 5).0.extend(value.to_le_bytes());
        self
    }
}

/// CRC-32C as TFRecord masks it.
fn masked_checksum(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC with the Castagnoli polynomial, one byte at a time over a table.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let (mut table, mut byte) = ([0u32; 256], 0);
        while byte < 256 {
            let (mut value, mut bit) = (byte as u32, 0);
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };
    !data.iter().fold(!0, |crc: u32, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checksums that RFC 3720 gives.
    #[test]
    fn the_checksum_is_the_published_one() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    /// CRC-32C bit by bit, with the polynomial the other way round.
    fn checksum(data: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in data {
            for bit in 0..8 {
                let top = crc >> 31 ^ u32::from(byte >> bit & 1);
                crc = (crc << 1) ^ (top * 0x1edc_6f41);
            }
        }
        let crc = (!crc).reverse_bits();
        crc.rotate_left(17).wrapping_add(0xa282_ead8)
    }

    /// What a field of a message holds.
    #[derive(Debug, PartialEq)]
    enum Field<'a> {
        Number(u64),
        Fixed64([u8; 8]),
        Bytes(&'a [u8]),
        Fixed32([u8; 4]),
    }

    fn varint(data: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = data[0];
            *data = &data[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return value;
            }
            shift += 7;
        }
    }

    fn fields(mut data: &[u8]) -> Vec<(u64, Field<'_>)> {
        let mut found = Vec::new();
        while !data.is_empty() {
            let key = varint(&mut data);
            let field = match key & 7 {
                0 => Field::Number(varint(&mut data)),
                wire_type => {
                    let count = match wire_type {
                        1 => 8,
                        2 => varint(&mut data) as usize,
                        5 => 4,
                        other => panic!("wire type {other}"),
                    };
                    let (value, rest) = data.split_at(count);
                    data = rest;
                    match wire_type {
                        1 => Field::Fixed64(value.try_into().unwrap()),
                        5 => Field::Fixed32(value.try_into().unwrap()),
                        _ => Field::Bytes(value),
                    }
                }
            };
            found.push((key >> 3, field));
        }
        found
    }

    fn records(mut file: &[u8]) -> Vec<&[u8]> {
        let mut found = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
            let data = &file[12..12 + length];
            assert_eq!((word(8), word(12 + length)), (checksum(&file[..8]), checksum(data)));
            found.push(data);
            file = &file[16 + length..];
        }
        found
    }

    #[test]
    fn what_is_written_reads_back_by_other_code() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(dir.path(), 300).unwrap();
        file.scalars(300, &[("train/loss", 2.5), ("train/learning_rate", 3e-4)]).unwrap();
        file.scalars(301, &[("held_out/loss", -1.0)]).unwrap();
        let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        assert!(path.file_name().unwrap().to_string_lossy().starts_with("events.out.tfevents."));
        let bytes = std::fs::read(path).unwrap();
        let records = records(&bytes);
        assert_eq!(records.len(), 4);
        let times = records.iter().map(|record| match &fields(record)[0] {
            (1, Field::Fixed64(time)) => f64::from_le_bytes(*time),
            other => panic!("{other:?}"),
        });
        assert!(times.into_iter().all(|time| time > 1.5e9 && time < 1e11));
        assert_eq!(fields(records[0])[1], (3, Field::Bytes(b"brain.Event:2")));
        assert_eq!(fields(records[1])[1..], [(2, Field::Number(300)), (7, Field::Bytes(&[8, 1]))]);
        let mut scalars = Vec::new();
        for record in &records[2..] {
            let event = fields(record);
            let [(2, Field::Number(step)), (5, Field::Bytes(summary))] = &event[1..] else { panic!("{event:?}") };
            for (number, value) in fields(summary) {
                let Field::Bytes(value) = value else { panic!("{value:?}") };
                let value = fields(value);
                let [(1, Field::Bytes(tag)), (2, Field::Fixed32(value))] = value[..] else { panic!("{value:?}") };
                assert_eq!(number, 1);
                scalars.push((*step, std::str::from_utf8(tag).unwrap().to_string(), f32::from_le_bytes(value)));
            }
        }
        let expected = [(300, "train/loss", 2.5), (300, "train/learning_rate", 3e-4), (301, "held_out/loss", -1.0)];
        assert_eq!(scalars, expected.map(|(step, tag, value)| (step, tag.to_string(), value)));
    }
}
