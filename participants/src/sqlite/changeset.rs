//! A changeset, read row by row. The format is SQLite's (sqlite.org/sessionintro.html, "Changesets and Patchsets"); every length is checked.
//!
//! ```text
//! table   'T'  columns: varint  key flags: one byte a column  name NUL
//! change  op: byte  indirect: byte  [old row]  [new row]        (an insert has no old row, a delete no new one)
//! value   0 (not given) | 1 i64 | 2 f64 | 3 varint text | 4 varint blob | 5 (NULL)      numbers big-endian
//! ```

use rusqlite::ffi;
use rusqlite::types::ValueRef;

/// Reads a changeset from its beginning.
pub struct Changes<'a> {
    rest: &'a [u8],
    table: Option<ChangedTable<'a>>,
}

/// A table that the following changes belong to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChangedTable<'a> {
    /// Its name.
    pub name: &'a str,
    /// For each column that is not generated: non-zero if it is part of the primary key.
    pub key: &'a [u8],
}

/// One row's change. `None` in a row of an update: a column that keeps its value.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<'a> {
    /// A new row.
    Insert(Vec<ValueRef<'a>>),
    /// Old values, where changed or of the key, and new ones, where changed.
    Update(Vec<Option<ValueRef<'a>>>, Vec<Option<ValueRef<'a>>>),
    /// An old row.
    Delete(Vec<ValueRef<'a>>),
}

/// The bytes are no changeset; the sentence says where.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("the redo is damaged: {0}")]
pub struct Damaged(&'static str);

impl<'a> Changes<'a> {
    /// At the beginning of these bytes.
    pub fn new(bytes: &'a [u8]) -> Changes<'a> {
        Changes { rest: bytes, table: None }
    }

    /// The next change, with its table; `None` at the end.
    pub fn next(&mut self) -> Result<Option<(ChangedTable<'a>, Change<'a>)>, Damaged> {
        loop {
            let Some(&first) = self.rest.first() else { return Ok(None) };
            if first != b'T' {
                let table = self.table.ok_or(Damaged("a change stands before any table"))?;
                return Ok(Some((table, self.change(table.key.len())?)));
            }
            self.table = Some(self.table_header()?);
        }
    }

    fn table_header(&mut self) -> Result<ChangedTable<'a>, Damaged> {
        self.take(1)?;
        let columns = self.varint()?;
        let key = self.take(columns)?;
        let end = self.rest.iter().position(|&byte| byte == 0).ok_or(Damaged("a table's name has no end"))?;
        let name = std::str::from_utf8(self.take(end)?).map_err(|_| Damaged("a table's name is no UTF-8"))?;
        self.take(1)?;
        Ok(ChangedTable { name, key })
    }

    fn change(&mut self, columns: usize) -> Result<Change<'a>, Damaged> {
        let op = i32::from(self.take(2)?[0]);
        match op {
            ffi::SQLITE_INSERT => Ok(Change::Insert(self.full_row(columns)?)),
            ffi::SQLITE_DELETE => Ok(Change::Delete(self.full_row(columns)?)),
            ffi::SQLITE_UPDATE => Ok(Change::Update(self.row(columns)?, self.row(columns)?)),
            _ => Err(Damaged("a change is neither insert, update nor delete")),
        }
    }

    fn full_row(&mut self, columns: usize) -> Result<Vec<ValueRef<'a>>, Damaged> {
        self.row(columns)?.into_iter().map(|value| value.ok_or(Damaged("a whole row lacks a column"))).collect()
    }

    fn row(&mut self, columns: usize) -> Result<Vec<Option<ValueRef<'a>>>, Damaged> {
        (0..columns).map(|_| self.value()).collect()
    }

    fn value(&mut self) -> Result<Option<ValueRef<'a>>, Damaged> {
        Ok(Some(match self.take(1)?[0] {
            0 => return Ok(None),
            1 => ValueRef::Integer(i64::from_be_bytes(self.eight()?)),
            2 => ValueRef::Real(f64::from_be_bytes(self.eight()?)),
            3 => ValueRef::Text(self.counted()?),
            4 => ValueRef::Blob(self.counted()?),
            5 => ValueRef::Null,
            _ => return Err(Damaged("a value has an unknown type")),
        }))
    }

    fn counted(&mut self) -> Result<&'a [u8], Damaged> {
        let length = self.varint()?;
        self.take(length)
    }

    fn eight(&mut self) -> Result<[u8; 8], Damaged> {
        Ok(self.take(8)?.try_into().expect("eight bytes were taken"))
    }

    /// SQLite's varint, as far as lengths below 2^31 need it: seven bits a byte, most significant first.
    fn varint(&mut self) -> Result<usize, Damaged> {
        let mut number = 0usize;
        for _ in 0..5 {
            let byte = self.take(1)?[0];
            number = number << 7 | usize::from(byte & 0x7f);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Damaged("a length is too large"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Damaged> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Damaged("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }
}
