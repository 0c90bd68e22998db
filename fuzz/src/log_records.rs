//! Records of the decision log, as bytes.

use crate::input;
use arbitrary::Unstructured;
use lockstep_core::{Entry, Lsn};
use lockstep_log::format::{Head, Key, Settled, Start, Unreadable, VERSION, encode};

/// Any bytes as a record's head and body: with or without a checksum that matches. What is decoded is encoded to what decodes to the same;
/// what is not says why.
pub fn log_records(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let lsn = Lsn(input::number(&mut input));
    match input::below(&mut input, 4) {
        0 => {
            let bytes = input::rest(&mut input);
            told(Head::decode(lsn, bytes).map(drop));
            told(Start::decode(bytes).map(drop));
            told(Settled::decode(bytes).map(drop));
            if let Some(key) = Key::decode(bytes) {
                assert_eq!(key.encode()[..], *bytes, "a key is what was read");
            }
        }
        1 => {
            let bytes = sealed(VERSION, input::rest(&mut input));
            told(Start::decode(&bytes).map(|start| assert_eq!(start.encode(), bytes)));
            told(Settled::decode(&bytes).map(|settled| assert_eq!(settled.encode(), bytes)));
        }
        _ => {
            let version = input::below(&mut input, usize::from(VERSION) + 2) as u8;
            let body = input::bytes(&mut input, 2048);
            let mut content = lsn.0.to_le_bytes().to_vec();
            content.extend_from_slice(&(body.len() as u32).to_le_bytes());
            content.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
            content.extend_from_slice(input::rest(&mut input));
            told(Head::decode(lsn, &sealed(version, &content)).and_then(|head| {
                let record = head.with_body(body)?;
                comes_back(&Entry { lsn, record });
                Ok(())
            }));
        }
    }
}

/// A record survives the log. Compared as bytes: a statement's result may hold NaN.
pub fn comes_back(entry: &Entry) {
    let encoded = encode(entry).expect("it is small");
    let head = Head::decode(entry.lsn, &encoded.head).expect("what was encoded is decoded");
    assert_eq!((head.space(), head.body_len()), (encoded.space, encoded.body.len()));
    let record = head.with_body(&encoded.body).expect("with its body");
    assert_eq!(encode(&Entry { lsn: entry.lsn, record }), Ok(encoded), "a record changes on its way through the log");
}

/// With the version in front and the checksum behind.
pub fn sealed(version: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![version];
    bytes.extend_from_slice(content);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

fn told(result: Result<(), Unreadable>) {
    match result {
        Ok(()) => {}
        Err(Unreadable::Damaged(how) | Unreadable::TooBig(how)) => input::shown(&how),
        Err(Unreadable::Newer(version)) => assert!(version > VERSION),
    }
}
