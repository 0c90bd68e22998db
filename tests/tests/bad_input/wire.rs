//! Requests as they go over the wire, written by hand.

use lockstep_proto::v1;
use lockstep_proto::v1::operation::Operation as Wire;

pub use lockstep_proto::v1::Operation;

/// A transaction of the workload, under the key `id`: a line of the journal, its item's row, and the item's document.
pub fn written(id: &str, item: &str) -> v1::CommitRequest {
    let rows = vec![
        sql("INSERT INTO journal VALUES (?1, ?2)", &[id, item]),
        sql(
            "INSERT INTO item VALUES (?1, 1, ?2) ON CONFLICT (name) DO UPDATE SET version = version + 1, last = excluded.last",
            &[item, id],
        ),
    ];
    let document = serde_json::json!({ "item": item, "last": id }).to_string();
    request(id, vec![branch("db", rows), branch("index", vec![put(item, &document)])])
}

pub fn request(key: &str, branches: Vec<v1::Branch>) -> v1::CommitRequest {
    let key = Some(v1::RequestKey { key: key.to_string().into(), attempt: 1 });
    v1::CommitRequest { key, branches, ..v1::CommitRequest::default() }
}

pub fn branch(store: &str, operations: Vec<Operation>) -> v1::Branch {
    v1::Branch { store: store.into(), operations }
}

pub fn sql(sql: &str, parameters: &[&str]) -> Operation {
    let parameters = parameters.iter().map(|text| value(v1::value::Value::Text(text.to_string()))).collect();
    operation(Wire::Statement(v1::Statement { sql: sql.into(), parameters, expect_rows: None }))
}

pub fn value(value: v1::value::Value) -> v1::Value {
    v1::Value { value: Some(value) }
}

pub fn put(key: &str, document: &str) -> Operation {
    operation(Wire::Put(v1::Put { key: key.into(), document: document.into(), condition: None }))
}

pub fn put_if(key: &str, condition: v1::condition::Condition) -> Operation {
    let condition = Some(v1::Condition { condition: Some(condition) });
    operation(Wire::Put(v1::Put { key: key.into(), document: "{}".into(), condition }))
}

pub fn operation(operation: Wire) -> Operation {
    v1::Operation { operation: Some(operation) }
}

/// A question about the request.
pub fn inquiry(request: &v1::CommitRequest) -> v1::InquireRequest {
    v1::InquireRequest { key: request.key.clone(), position: request.position, ..v1::InquireRequest::default() }
}
