//! Values of a database, and rows of them.

use crate::error::RowError;
use bytes::Bytes;
use lockstep_proto::v1;
use std::sync::Arc;

/// A value of a database: SQLite's five, and what others have beside them.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Value {
    /// NULL
    #[default]
    Null,
    /// 64-bit integer
    Integer(i64),
    /// IEEE double
    Real(f64),
    /// UTF-8 text
    Text(String),
    /// Bytes
    Blob(Bytes),
    /// True or false; SQLite keeps it as the integer 1 or 0.
    Boolean(bool),
}

/// Positional parameters of a statement, of any types that are [`Value`]s: `params![42, "Solaris", None::<i64>]`.
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => { ::std::vec::Vec::<$crate::Value>::from([$($crate::Value::from($value)),*]) };
}

/// The rows of a SELECT or RETURNING.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Rows {
    columns: Arc<[String]>,
    rows: Vec<Vec<Value>>,
}

/// One row.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Row<'a> {
    columns: &'a [String],
    values: &'a [Value],
}

/// What a [`Value`] can be read as.
pub trait FromValue<'a>: Sized {
    /// What an error calls it.
    const EXPECTED: &'static str;

    /// `None` if the value is of another type, or does not fit.
    fn from_value(value: &'a Value) -> Option<Self>;
}

/// A column, by number from 0 or by name.
pub trait Column {
    /// Its number, if there is such a column.
    fn index(&self, columns: &[String]) -> Option<usize>;
    /// For an error.
    fn name(&self) -> String;
}

impl Rows {
    /// The columns' names.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A row, from 0.
    pub fn get(&self, row: usize) -> Option<Row<'_>> {
        self.rows.get(row).map(|values| Row { columns: &self.columns, values })
    }

    /// The first row.
    pub fn first(&self) -> Option<Row<'_>> {
        self.get(0)
    }

    /// All rows, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        self.rows.iter().map(|values| Row { columns: &self.columns, values })
    }

    /// The bare values.
    pub fn into_values(self) -> Vec<Vec<Value>> {
        self.rows
    }
}

impl<'a> Row<'a> {
    /// A column's value as a type: `row.get::<i64>(0)?`, `row.get::<&str>("title")?`, `row.get::<Option<f64>>("price")?`.
    pub fn get<T: FromValue<'a>>(&self, column: impl Column) -> Result<T, RowError> {
        let no_column = || RowError::NoColumn { column: column.name(), columns: self.columns.join(", ") };
        let value = column.index(self.columns).and_then(|index| self.values.get(index)).ok_or_else(no_column)?;
        T::from_value(value).ok_or_else(|| RowError::WrongType { column: column.name(), expected: T::EXPECTED, found: value.type_name() })
    }

    /// The bare values.
    pub fn values(&self) -> &'a [Value] {
        self.values
    }
}

impl Value {
    /// "null", "an integer", "a real", "text", "a blob", "a boolean".
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Integer(_) => "an integer",
            Value::Real(_) => "a real",
            Value::Text(_) => "text",
            Value::Blob(_) => "a blob",
            Value::Boolean(_) => "a boolean",
        }
    }
}

impl Column for usize {
    fn index(&self, columns: &[String]) -> Option<usize> {
        (*self < columns.len()).then_some(*self)
    }
    fn name(&self) -> String {
        self.to_string()
    }
}
impl Column for &str {
    fn index(&self, columns: &[String]) -> Option<usize> {
        columns.iter().position(|column| column == self)
    }
    fn name(&self) -> String {
        format!("`{self}`")
    }
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl From<$t> for Value {
            fn from(value: $t) -> Value {
                Value::Integer(value.into())
            }
        }
        impl FromValue<'_> for $t {
            const EXPECTED: &'static str = concat!("an integer that fits ", stringify!($t));
            fn from_value(value: &Value) -> Option<$t> {
                match value {
                    Value::Integer(value) => (*value).try_into().ok(),
                    _ => None,
                }
            }
        }
    )*};
}
integers!(i8, i16, i32, i64, u8, u16, u32);

macro_rules! from {
    ($($t:ty => |$value:ident| $into:expr),* $(,)?) => {$(
        impl From<$t> for Value {
            fn from($value: $t) -> Value {
                $into
            }
        }
    )*};
}
from! {
    bool => |value| Value::Boolean(value),
    f32 => |value| Value::Real(value.into()),
    f64 => |value| Value::Real(value),
    &str => |value| Value::Text(value.to_owned()),
    &String => |value| Value::Text(value.clone()),
    String => |value| Value::Text(value),
    &[u8] => |value| Value::Blob(Bytes::copy_from_slice(value)),
    Vec<u8> => |value| Value::Blob(value.into()),
    Bytes => |value| Value::Blob(value),
}
impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Value {
        value.map_or(Value::Null, Into::into)
    }
}

impl FromValue<'_> for bool {
    const EXPECTED: &'static str = "a boolean, 0 or 1";
    fn from_value(value: &Value) -> Option<bool> {
        match value {
            Value::Boolean(value) => Some(*value),
            Value::Integer(0) => Some(false),
            Value::Integer(1) => Some(true),
            _ => None,
        }
    }
}
/// An integer column gives its value as a double: SQLite stores 1.0 as 1 where it can.
impl FromValue<'_> for f64 {
    const EXPECTED: &'static str = "a number";
    fn from_value(value: &Value) -> Option<f64> {
        match value {
            Value::Real(value) => Some(*value),
            Value::Integer(value) => Some(*value as f64),
            _ => None,
        }
    }
}
impl<'a> FromValue<'a> for &'a str {
    const EXPECTED: &'static str = "text";
    fn from_value(value: &'a Value) -> Option<&'a str> {
        match value {
            Value::Text(value) => Some(value),
            _ => None,
        }
    }
}
impl FromValue<'_> for String {
    const EXPECTED: &'static str = "text";
    fn from_value(value: &Value) -> Option<String> {
        <&str>::from_value(value).map(str::to_owned)
    }
}
impl<'a> FromValue<'a> for &'a [u8] {
    const EXPECTED: &'static str = "a blob";
    fn from_value(value: &'a Value) -> Option<&'a [u8]> {
        match value {
            Value::Blob(value) => Some(value),
            _ => None,
        }
    }
}
impl FromValue<'_> for Vec<u8> {
    const EXPECTED: &'static str = "a blob";
    fn from_value(value: &Value) -> Option<Vec<u8>> {
        <&[u8]>::from_value(value).map(<[u8]>::to_vec)
    }
}
impl FromValue<'_> for Value {
    const EXPECTED: &'static str = "a value";
    fn from_value(value: &Value) -> Option<Value> {
        Some(value.clone())
    }
}
impl<'a, T: FromValue<'a>> FromValue<'a> for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    fn from_value(value: &'a Value) -> Option<Option<T>> {
        match value {
            Value::Null => Some(None),
            value => T::from_value(value).map(Some),
        }
    }
}

impl From<Value> for v1::Value {
    fn from(value: Value) -> v1::Value {
        use v1::value::Value as Wire;
        let value = match value {
            Value::Null => Wire::Null(v1::Null {}),
            Value::Integer(value) => Wire::Integer(value),
            Value::Real(value) => Wire::Real(value),
            Value::Text(value) => Wire::Text(value),
            Value::Blob(value) => Wire::Blob(value),
            Value::Boolean(value) => Wire::Boolean(value),
        };
        v1::Value { value: Some(value) }
    }
}
impl From<v1::Value> for Value {
    fn from(value: v1::Value) -> Value {
        use v1::value::Value as Wire;
        match value.value {
            None | Some(Wire::Null(_)) => Value::Null,
            Some(Wire::Integer(value)) => Value::Integer(value),
            Some(Wire::Real(value)) => Value::Real(value),
            Some(Wire::Text(value)) => Value::Text(value),
            Some(Wire::Blob(value)) => Value::Blob(value),
            Some(Wire::Boolean(value)) => Value::Boolean(value),
        }
    }
}
impl Rows {
    pub(crate) fn new(columns: Vec<String>, rows: Vec<v1::Row>) -> Rows {
        let rows = rows.into_iter().map(|row| row.values.into_iter().map(Value::from).collect()).collect();
        Rows { columns: columns.into(), rows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Rows {
        let values = params![42, "Solaris", None::<i64>, 1.5, vec![1u8, 2], true, 1];
        let row = v1::Row { values: values.into_iter().map(v1::Value::from).collect() };
        Rows::new(["id", "title", "year", "price", "image", "seen", "lent"].map(String::from).into(), vec![row])
    }

    #[test]
    fn every_type_crosses_the_wire_and_is_read_as_itself() {
        let rows = rows();
        let row = rows.first().unwrap();
        assert_eq!(row.get::<i64>("id"), Ok(42));
        assert_eq!(row.get::<u8>(0), Ok(42));
        assert_eq!(row.get::<&str>("title"), Ok("Solaris"));
        assert_eq!(row.get::<Option<i64>>("year"), Ok(None));
        assert_eq!(row.get::<Option<f64>>("price"), Ok(Some(1.5)));
        assert_eq!(row.get::<f64>("id"), Ok(42.0));
        assert_eq!(row.get::<Vec<u8>>("image"), Ok(vec![1, 2]));
        assert_eq!(row.get::<bool>("seen"), Ok(true));
        assert_eq!(row.get::<bool>("lent"), Ok(true), "SQLite's");
        assert_eq!(row.get::<Value>("year"), Ok(Value::Null));
    }

    #[test]
    fn a_wrong_read_names_the_column_and_both_types() {
        let rows = rows();
        let row = rows.first().unwrap();
        assert_eq!(row.get::<i64>("title").unwrap_err().to_string(), "column `title` is text, not an integer that fits i64");
        assert_eq!(row.get::<String>("year").unwrap_err().to_string(), "column `year` is null, not text");
        assert_eq!(row.get::<i64>(7).unwrap_err().to_string(), "no column 7; there are: id, title, year, price, image, seen, lent");
    }
}
