//! Values on their way to PostgreSQL and back.
//!
//! A parameter travels as text, in PostgreSQL's own text form, and the server reads it as the type that the statement declares: what
//! does not fit is refused there, by name. Only bytes travel as bytes. Results come as bytes of their type; what [`Value`] cannot hold
//! exactly becomes a text in PostgreSQL's text form (`text_form`).

use super::text_form;
use lockstep_core::Value;
use std::error::Error;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{Format, FromSql, IsNull, Kind, ToSql, Type};

/// A value that its type has no room for: a sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(pub String);

/// A value as a parameter of any type.
#[derive(Debug)]
pub struct Parameter<'a>(pub &'a Value);

impl ToSql for Parameter<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self.0 {
            Value::Null => return Ok(IsNull::Yes),
            Value::Boolean(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
            Value::Integer(value) => out.extend_from_slice(value.to_string().as_bytes()),
            Value::Real(value) => out.extend_from_slice(real(*value).as_bytes()),
            Value::Text(text) if text.contains('\0') => {
                return Err(Unfit("a text parameter contains a NUL character, which PostgreSQL cannot store".into()).into());
            }
            Value::Text(text) => out.extend_from_slice(text.as_bytes()),
            Value::Blob(bytes) if is_bytea(ty) => out.extend_from_slice(bytes),
            Value::Blob(_) => {
                return Err(
                    Unfit(format!("a parameter is a blob, but the statement takes a {} there: blobs go to bytea", ty.name())).into()
                );
            }
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.to_sql(ty, out)
    }

    fn encode_format(&self, ty: &Type) -> Format {
        match self.0 {
            Value::Blob(_) if is_bytea(ty) => Format::Binary,
            _ => Format::Text,
        }
    }
}

fn is_bytea(ty: &Type) -> bool {
    *base(ty) == Type::BYTEA
}

/// What a domain is made of.
pub fn base(ty: &Type) -> &Type {
    match ty.kind() {
        Kind::Domain(inner) => base(inner),
        _ => ty,
    }
}

/// The shortest text that reads as the same number.
fn real(value: f64) -> String {
    match value {
        v if v.is_nan() => "NaN".into(),
        v if v == f64::INFINITY => "Infinity".into(),
        v if v == f64::NEG_INFINITY => "-Infinity".into(),
        v => format!("{v}"),
    }
}

/// A value of a row.
pub struct Field(pub Value);

impl<'a> FromSql<'a> for Field {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Field, Box<dyn Error + Sync + Send>> {
        let ty = base(ty);
        let integer = match *ty {
            Type::INT2 => Some(i64::from(i16::from_be_bytes(raw.try_into()?))),
            Type::INT4 => Some(i64::from(i32::from_be_bytes(raw.try_into()?))),
            Type::INT8 => Some(i64::from_be_bytes(raw.try_into()?)),
            Type::OID => Some(i64::from(u32::from_be_bytes(raw.try_into()?))),
            _ => None,
        };
        if let Some(integer) = integer {
            return Ok(Field(Value::Integer(integer)));
        }
        Ok(Field(match *ty {
            Type::BOOL => Value::Boolean(raw != [0]),
            Type::FLOAT4 => Value::Real(f64::from(f32::from_be_bytes(raw.try_into()?))),
            Type::FLOAT8 => Value::Real(f64::from_be_bytes(raw.try_into()?)),
            Type::BYTEA => Value::Blob(bytes::Bytes::copy_from_slice(raw)),
            _ => Value::Text(text_form::of(ty, raw)?),
        }))
    }

    fn from_sql_null(_: &Type) -> Result<Field, Box<dyn Error + Sync + Send>> {
        Ok(Field(Value::Null))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
