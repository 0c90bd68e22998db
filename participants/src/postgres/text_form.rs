//! PostgreSQL's text form of values that arrive in its binary form, as `psql` shows them with ISO dates and in UTC.

use super::values::base;
use std::error::Error;
use std::fmt::Write;
use tokio_postgres::types::{Kind, Type};

type Failed = Box<dyn Error + Sync + Send>;

/// Records, arrays and ranges inside one another at most.
const DEPTH_MAX: usize = 100;
/// Bytes of a text that is put together, at most: each record doubles the quotes of those in it, so that a few bytes can become any number.
const TEXT_MAX: usize = 64 << 20;
/// Dimensions of an array at most (PostgreSQL's MAXDIM).
const DIMENSIONS_MAX: i32 = 6;

/// The text. An error names the type and what to do.
pub fn of(ty: &Type, raw: &[u8]) -> Result<String, Failed> {
    inside(ty, raw, 0)
}

/// The same of a value that stands in so many others.
fn inside(ty: &Type, raw: &[u8], depth: usize) -> Result<String, Failed> {
    if depth > DEPTH_MAX {
        return Err(format!("a result has records or arrays more than {DEPTH_MAX} deep inside one another").into());
    }
    let ty = base(ty);
    match ty.kind() {
        Kind::Enum(_) => return utf8(raw),
        Kind::Array(element) => return array(element, raw, depth),
        Kind::Range(element) => return range(element, raw, depth),
        Kind::Composite(_) => {
            return composite(raw, depth, |oid, i| match ty.kind() {
                Kind::Composite(fields) => fields.get(i).map(|field| field.type_().clone()).filter(|ty| ty.oid() == oid),
                _ => None,
            });
        }
        Kind::Simple | Kind::Pseudo | Kind::Domain(_) => {}
        _ => return Err(unknown(ty)),
    }
    let mut from = Bytes(raw);
    Ok(match *ty {
        Type::BOOL => if raw == [0] { "f" } else { "t" }.into(),
        Type::INT2 => from.i16()?.to_string(),
        Type::INT4 => from.i32()?.to_string(),
        Type::INT8 => from.i64()?.to_string(),
        Type::OID | Type::XID | Type::CID => from.u32()?.to_string(),
        Type::XID8 => from.i64()?.cast_unsigned().to_string(),
        Type::FLOAT4 => float(&format!("{:e}", f32::from_be_bytes(from.take()?)), 6),
        Type::FLOAT8 => float(&format!("{:e}", f64::from_be_bytes(from.take()?)), 15),
        Type::BYTEA => format!("\\x{}", hex(raw)),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::XML | Type::JSON | Type::UNKNOWN | Type::VOID => utf8(raw)?,
        Type::CHAR => utf8(if raw == [0] { &[] } else { raw })?,
        // A version byte first.
        Type::JSONB | Type::JSONPATH => utf8(raw.get(1..).ok_or("too short")?)?,
        Type::UUID => uuid(from.take()?),
        Type::NUMERIC => numeric(from)?,
        Type::DATE => date(from.i32()?),
        Type::TIME => time_of_day(from.i64()?),
        Type::TIMETZ => {
            let time = time_of_day(from.i64()?);
            format!("{time}{}", zone(from.i32()?.checked_neg().ok_or("no time zone is that far away")?))
        }
        Type::TIMESTAMP => timestamp(from.i64()?, ""),
        Type::TIMESTAMPTZ => timestamp(from.i64()?, "+00"),
        Type::INTERVAL => interval(from.i64()?, from.i32()?, from.i32()?),
        Type::INET | Type::CIDR => network(from)?,
        Type::MACADDR | Type::MACADDR8 => raw.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"),
        Type::BIT | Type::VARBIT => bits(from)?,
        Type::PG_LSN => {
            let at = from.i64()?.cast_unsigned();
            format!("{:X}/{:X}", at >> 32, at & 0xffff_ffff)
        }
        Type::RECORD => return composite(raw, depth, |oid, _| Type::from_oid(oid)),
        // Extensions whose binary form is their text.
        _ if matches!(ty.name(), "citext") => utf8(raw)?,
        _ => return Err(unknown(ty)),
    })
}

fn unknown(ty: &Type) -> Failed {
    format!("a result has a value of type {}, which cannot be returned as it is: cast it to text in the statement (::text)", ty.name())
        .into()
}

/// A reader of network-order fields.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Failed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or("a value is shorter than its type")?;
        self.0 = rest;
        Ok(*head)
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8], Failed> {
        let (head, rest) = self.0.split_at_checked(length).ok_or("a value is shorter than its type")?;
        self.0 = rest;
        Ok(head)
    }

    fn i16(&mut self) -> Result<i16, Failed> {
        self.take().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Result<i32, Failed> {
        self.take().map(i32::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Failed> {
        self.take().map(u32::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, Failed> {
        self.take().map(i64::from_be_bytes)
    }

    /// A field with its length in front; -1 is NULL.
    fn field(&mut self) -> Result<Option<&'a [u8]>, Failed> {
        match self.i32()? {
            -1 => Ok(None),
            length => self.slice(usize::try_from(length)?).map(Some),
        }
    }
}

fn utf8(raw: &[u8]) -> Result<String, Failed> {
    Ok(std::str::from_utf8(raw).map_err(|_| "a text in the result is not UTF-8")?.to_owned())
}

fn hex(raw: &[u8]) -> String {
    raw.iter().fold(String::with_capacity(raw.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Shortest digits, as PostgreSQL writes them: with an exponent below 10^-4, and from 10^`limit` on. Given Rust's form `-1.5e-7`.
fn float(text: &str, limit: i32) -> String {
    let (sign, unsigned) = text.strip_prefix('-').map_or(("", text), |unsigned| ("-", unsigned));
    let Some((mantissa, exponent)) = unsigned.split_once('e').and_then(|(m, e)| Some((m, e.parse::<i32>().ok()?))) else {
        return match unsigned {
            "inf" => format!("{sign}Infinity"),
            other => other.into(),
        };
    };
    let digits = mantissa.replace('.', "");
    match exponent {
        e if e < -4 || e >= limit => {
            let direction = if e < 0 { '-' } else { '+' };
            format!("{sign}{mantissa}e{direction}{:02}", e.unsigned_abs())
        }
        e if e < 0 => format!("{sign}0.{}{digits}", "0".repeat(e.unsigned_abs() as usize - 1)),
        e => {
            let whole = e as usize + 1;
            match digits.split_at_checked(whole).filter(|(_, rest)| !rest.is_empty()) {
                Some((whole, rest)) => format!("{sign}{whole}.{rest}"),
                None => format!("{sign}{digits}{}", "0".repeat(whole - digits.len())),
            }
        }
    }
}

fn uuid(raw: [u8; 16]) -> String {
    let digits = hex(&raw);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// Groups of four decimal digits, the first worth 10000^weight, and how many decimals to show.
fn numeric(mut from: Bytes<'_>) -> Result<String, Failed> {
    let (groups, weight, sign, scale) = (from.i16()?, from.i16()?, from.i16()?.cast_unsigned(), from.i16()?);
    let sign = match sign {
        0x0000 => "",
        0x4000 => "-",
        0xC000 => return Ok("NaN".into()),
        0xD000 => return Ok("Infinity".into()),
        0xF000 => return Ok("-Infinity".into()),
        _ => return Err("a numeric with an unknown sign".into()),
    };
    let digits: Vec<i16> = (0..groups).map(|_| from.i16()).collect::<Result<_, _>>()?;
    let group = |at: i32| usize::try_from(at).ok().and_then(|at| digits.get(at)).copied().unwrap_or(0);
    let weight = i32::from(weight);
    let mut text = String::from(sign);
    if weight < 0 {
        text.push('0');
    }
    for at in 0..=weight {
        let _ = if at == 0 { write!(text, "{}", group(0)) } else { write!(text, "{:04}", group(at)) };
    }
    let scale = usize::try_from(scale)?;
    if scale > 0 {
        let mut decimals = String::new();
        let mut at = weight + 1;
        while decimals.len() < scale {
            let _ = write!(decimals, "{:04}", if at < 0 { 0 } else { group(at) });
            at += 1;
        }
        let _ = write!(text, ".{}", &decimals[..scale]);
    }
    Ok(text)
}

/// Days since 2000-01-01 as a date of the proleptic Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 730_425; // since 0000-03-01
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Year zero is 1 BC.
fn calendar(days: i64) -> (String, &'static str) {
    let (year, month, day) = civil(days);
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

fn date(days: i32) -> String {
    match days {
        i32::MAX => "infinity".into(),
        i32::MIN => "-infinity".into(),
        days => {
            let (date, era) = calendar(days.into());
            date + era
        }
    }
}

const DAY: i64 = 86_400_000_000;

fn time_of_day(micros: i64) -> String {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    format!("{:02}:{:02}:{:02}{}", seconds / 3600, seconds / 60 % 60, seconds % 60, decimals(fraction))
}

fn decimals(micros: i64) -> String {
    match micros {
        0 => String::new(),
        micros => format!(".{}", format!("{micros:06}").trim_end_matches('0')),
    }
}

/// Seconds east of Greenwich.
fn zone(seconds: i32) -> String {
    let (sign, seconds) = (if seconds < 0 { '-' } else { '+' }, seconds.unsigned_abs());
    let mut text = format!("{sign}{:02}", seconds / 3600);
    if seconds % 3600 != 0 {
        let _ = write!(text, ":{:02}", seconds / 60 % 60);
    }
    if seconds % 60 != 0 {
        let _ = write!(text, ":{:02}", seconds % 60);
    }
    text
}

fn timestamp(micros: i64, zone: &str) -> String {
    match micros {
        i64::MAX => "infinity".into(),
        i64::MIN => "-infinity".into(),
        micros => {
            let (date, era) = calendar(micros.div_euclid(DAY));
            format!("{date} {}{zone}{era}", time_of_day(micros.rem_euclid(DAY)))
        }
    }
}

/// The `postgres` style: a part after a negative one has a sign.
fn interval(micros: i64, days: i32, months: i32) -> String {
    let mut text = String::new();
    let mut negative = false;
    for (value, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if value != 0 {
            let space = if text.is_empty() { "" } else { " " };
            let plus = if negative && value > 0 { "+" } else { "" };
            let plural = if value == 1 { "" } else { "s" };
            let _ = write!(text, "{space}{plus}{value} {unit}{plural}");
            negative = value < 0;
        }
    }
    if micros != 0 || text.is_empty() {
        let space = if text.is_empty() { "" } else { " " };
        let sign = if micros < 0 {
            "-"
        } else if negative {
            "+"
        } else {
            ""
        };
        let micros = micros.unsigned_abs();
        let seconds = micros / 1_000_000;
        let fraction = decimals((micros % 1_000_000).cast_signed());
        let _ = write!(text, "{space}{sign}{:02}:{:02}:{:02}{fraction}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    }
    text
}

fn network(mut from: Bytes<'_>) -> Result<String, Failed> {
    let [family, prefix, is_cidr, length] = from.take()?;
    let address = from.slice(length.into())?;
    let (text, full) = match family {
        2 => (std::net::Ipv4Addr::from(<[u8; 4]>::try_from(address)?).to_string(), 32),
        3 => (std::net::Ipv6Addr::from(<[u8; 16]>::try_from(address)?).to_string(), 128),
        _ => return Err("a network address of an unknown family".into()),
    };
    Ok(if is_cidr == 0 && prefix == full { text } else { format!("{text}/{prefix}") })
}

fn bits(mut from: Bytes<'_>) -> Result<String, Failed> {
    let count = usize::try_from(from.i32()?)?;
    let bytes = from.0;
    (0..count)
        .map(|i| bytes.get(i / 8).map(|byte| if byte >> (7 - i % 8) & 1 == 1 { '1' } else { '0' }).ok_or_else(|| "too short".into()))
        .collect()
}

/// Dimensions, a flag, the element's type; for each dimension its length and lower bound; then the elements.
fn array(element: &Type, raw: &[u8], depth: usize) -> Result<String, Failed> {
    let mut from = Bytes(raw);
    let (dimensions, _has_null, _element) = (from.i32()?, from.i32()?, from.u32()?);
    if dimensions == 0 {
        return Ok("{}".into());
    }
    if dimensions > DIMENSIONS_MAX {
        return Err(format!("an array of {dimensions} dimensions: at most {DIMENSIONS_MAX}").into());
    }
    let bounds: Vec<(i32, i32)> = (0..dimensions).map(|_| Ok((from.i32()?, from.i32()?))).collect::<Result<_, Failed>>()?;
    let mut text = String::new();
    if bounds.iter().any(|(_, lower)| *lower != 1) {
        for (length, lower) in &bounds {
            let _ = write!(text, "[{lower}:{}]", i64::from(*lower) + i64::from(*length) - 1);
        }
        text.push('=');
    }
    let lengths: Vec<i32> = bounds.into_iter().map(|(length, _)| length).collect();
    // Without elements it has no dimensions; with them it has at least their lengths.
    let count = lengths.iter().try_fold(1i64, |count, length| count.checked_mul(i64::from(*length)).filter(|_| *length > 0));
    if count.is_none_or(|count| count > (from.0.len() / 4) as i64) {
        return Err("an array is shorter than its dimensions".into());
    }
    elements(element, &lengths, &mut from, depth, &mut text)?;
    Ok(text)
}

fn elements(element: &Type, lengths: &[i32], from: &mut Bytes<'_>, depth: usize, text: &mut String) -> Result<(), Failed> {
    let (length, inner) = lengths.split_first().ok_or("an array without dimensions")?;
    text.push('{');
    for i in 0..*length {
        if i > 0 {
            text.push(',');
        }
        if !inner.is_empty() {
            elements(element, inner, from, depth, text)?;
            continue;
        }
        match from.field()? {
            None => text.push_str("NULL"),
            Some(raw) => push_quoted(&inside(element, raw, depth + 1)?, needs_quotes, text)?,
        }
    }
    text.push('}');
    Ok(())
}

fn needs_quotes(text: &str) -> bool {
    text.is_empty()
        || text.eq_ignore_ascii_case("null")
        || text.contains(|c: char| matches!(c, '{' | '}' | ',' | '"' | '\\') || c.is_ascii_whitespace() || c == '\u{b}')
}

fn push_quoted(text: &str, needed: fn(&str) -> bool, out: &mut String) -> Result<(), Failed> {
    fits(text, out)?;
    if !needed(text) {
        out.push_str(text);
        return Ok(());
    }
    out.push('"');
    for c in text.chars() {
        if c == '"' || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    Ok(())
}

fn fits(text: &str, out: &str) -> Result<(), Failed> {
    match text.len() + out.len() > TEXT_MAX {
        true => Err(format!("a value in the result has more than {TEXT_MAX} bytes as text").into()),
        false => Ok(()),
    }
}

/// Flags, then the bounds that are finite.
fn range(element: &Type, raw: &[u8], depth: usize) -> Result<String, Failed> {
    let mut from = Bytes(raw);
    let [flags] = from.take()?;
    if flags & 0x01 != 0 {
        return Ok("empty".into());
    }
    let mut text = String::from(if flags & 0x02 != 0 { '[' } else { '(' });
    for (infinite, separator) in [(0x08, ","), (0x10, "")] {
        if flags & infinite == 0 {
            let bound = from.field()?.ok_or("a range without its bound")?;
            let needed = |text: &str| needs_quotes(text) || text.contains(['(', ')', '[', ']']);
            push_quoted(&inside(element, bound, depth + 1)?, needed, &mut text)?;
        }
        text.push_str(separator);
    }
    text.push(if flags & 0x04 != 0 { ']' } else { ')' });
    Ok(text)
}

/// A count; for each column its type and its field.
fn composite(raw: &[u8], depth: usize, type_of: impl Fn(u32, usize) -> Option<Type>) -> Result<String, Failed> {
    let mut from = Bytes(raw);
    let mut text = String::from('(');
    for i in 0..usize::try_from(from.i32()?)? {
        if i > 0 {
            text.push(',');
        }
        let oid = from.u32()?;
        if let Some(raw) = from.field()? {
            let ty = type_of(oid, i)
                .ok_or("a result has a record with a column of a type of its own: cast it to text in the statement (::text)")?;
            push_record_field(&inside(&ty, raw, depth + 1)?, &mut text)?;
        }
    }
    text.push(')');
    Ok(text)
}

/// A record doubles quotes where an array escapes them.
fn push_record_field(text: &str, out: &mut String) -> Result<(), Failed> {
    fits(text, out)?;
    let needs_quotes =
        text.is_empty() || text.contains(|c: char| matches!(c, '(' | ')' | ',' | '"' | '\\' | '\u{b}') || c.is_ascii_whitespace());
    if !needs_quotes {
        out.push_str(text);
        return Ok(());
    }
    out.push('"');
    for c in text.chars() {
        if c == '"' || c == '\\' {
            out.push(c);
        }
        out.push(c);
    }
    out.push('"');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record with one column.
    fn record(oid: u32, content: &[u8]) -> Vec<u8> {
        [&1i32.to_be_bytes()[..], &oid.to_be_bytes(), &(content.len() as i32).to_be_bytes(), content].concat()
    }

    fn nested(levels: usize, content: &[u8]) -> Vec<u8> {
        (1..levels).fold(record(Type::TEXT.oid(), content), |inner, _| record(Type::RECORD.oid(), &inner))
    }

    /// Each level doubles the quotes: 40 of them would take a terabyte.
    #[test]
    fn a_small_record_does_not_become_a_huge_text() {
        assert_eq!(of(&Type::RECORD, &nested(1, b"a b")).unwrap(), "(\"a b\")");
        assert!(of(&Type::RECORD, &nested(40, b"\"")).unwrap_err().to_string().contains("bytes as text"));
    }

    #[test]
    fn no_time_zone_is_too_far_away() {
        let at = |zone: i32| [0_i64.to_be_bytes().to_vec(), zone.to_be_bytes().to_vec()].concat();
        assert_eq!(of(&Type::TIMETZ, &at(-7_200)).unwrap(), "00:00:00+02");
        assert!(of(&Type::TIMETZ, &at(i32::MIN)).is_err());
    }

    #[test]
    fn records_are_only_so_deep() {
        assert!(of(&Type::RECORD, &nested(16, b"a")).is_ok());
        for levels in [DEPTH_MAX + 2, 2_000] {
            assert!(of(&Type::RECORD, &nested(levels, b"a")).unwrap_err().to_string().contains("deep"));
        }
    }

    #[test]
    fn an_array_has_what_its_dimensions_say() {
        let array = |lengths: &[i32]| {
            let mut raw = [lengths.len() as i32, 0, Type::INT4.oid() as i32].map(i32::to_be_bytes).concat();
            lengths.iter().for_each(|length| raw.extend([*length, 1].map(i32::to_be_bytes).concat()));
            raw.extend([4, 7].map(i32::to_be_bytes).concat());
            of(&Type::INT4_ARRAY, &raw)
        };
        assert_eq!(array(&[1]).unwrap(), "{7}");
        for lengths in [&[i32::MAX, 0][..], &[0], &[-1], &[2, 2], &[1 << 30, 1 << 30, 1 << 30], &[1; 7]] {
            assert!(array(lengths).is_err(), "{lengths:?}");
        }
    }
}
