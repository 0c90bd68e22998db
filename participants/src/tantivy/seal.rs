//! A checksum inside a small file of JSON, as its first field: whoever does not know it reads the file as before.

use std::borrow::Cow;

/// How a sealed file begins: eight hexadecimal digits, and the end of the field, follow.
const BEFORE: &[u8] = b"{\"_crc32c\":\"";
const AFTER: &[u8] = b"\",";
const DIGITS: usize = 8;

/// An object of at least one field, with the checksum of all of it.
pub(super) fn seal(object: &[u8]) -> Vec<u8> {
    let Some((b'{', rest)) = object.split_first() else { return object.to_vec() };
    let crc = format!("{:08x}", crc32c::crc32c(object));
    [BEFORE, crc.as_bytes(), AFTER, rest].concat()
}

/// What was sealed; a file that never was is given as it is. `None`: it is not what was written.
pub(super) fn unseal(file: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(rest) = file.strip_prefix(BEFORE) else { return Some(Cow::Borrowed(file)) };
    let (crc, rest) = rest.split_at_checked(DIGITS)?;
    let object = [b"{", rest.strip_prefix(AFTER)?].concat();
    let same = crc == format!("{:08x}", crc32c::crc32c(&object)).as_bytes();
    same.then_some(Cow::Owned(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_seen_or_harmless() {
        let object = b"{\n  \"watermark\": \"0001-0000000c\", \"segments\": []\n}";
        let sealed = seal(object);
        assert_eq!(unseal(&sealed).as_deref(), Some(object.as_slice()));
        assert!(serde_json::from_slice::<serde_json::Value>(&sealed).is_ok_and(|value| value["watermark"] == "0001-0000000c"));
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let read = unseal(&damaged);
            // A seal that cannot be recognised leaves what it was about as it is.
            let harmless = read.as_deref() == Some(damaged.as_slice()) && bit / 8 < BEFORE.len();
            assert!(read.is_none() || harmless, "bit {bit}");
        }
    }

    #[test]
    fn what_was_never_sealed_is_read() {
        assert_eq!(unseal(b"{\"format\":1}").as_deref(), Some(b"{\"format\":1}".as_slice()));
    }
}
