//! What a message takes in memory, told from its bytes before it is decoded: an empty part is two bytes on the wire, and a hundred times
//! that in memory.

use crate::DESCRIPTORS;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost::{DecodeError, Message, Name};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::LazyLock;
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// The codec of every service: as prost's, and what is called with is weighed first. Answers are not: who calls trusts whom it calls.
#[derive(Debug)]
pub struct Codec<Encoded, Decoded>(PhantomData<(Encoded, Decoded)>);

/// A decoder that refuses what would take more than [`allowed`].
#[derive(Debug, Default)]
pub struct WeighingDecoder<Decoded>(ProstDecoder<Decoded>);

/// What a call's message may take in memory, bytes, by its length on the wire. A participant's results may be nulls, of two bytes each.
pub fn allowed<Called: Name>(length: usize) -> usize {
    const FREE: usize = 16 << 20;
    let times = if Called::NAME == "FromParticipant" { 32 } else { 4 };
    FREE.saturating_add(length.saturating_mul(times))
}

/// About what this would take in memory as such a message, without the texts in it; `None` if the message is no call's. What is no such
/// message weighs what could be read of it.
pub fn weight<Called: Name>(bytes: &[u8]) -> Option<usize> {
    let start = *TYPES.called.get(Called::NAME)?;
    let mut weight = TYPES.all[start].size;
    // Where it ends early, prost tells why.
    let _ = weigh(&TYPES.all[start], bytes, &mut weight);
    Some(weight)
}

impl<Encoded, Decoded> Default for Codec<Encoded, Decoded> {
    fn default() -> Self {
        Codec(PhantomData)
    }
}

impl<Encoded: Message + Send + 'static, Decoded: Name + Default + Send + 'static> tonic::codec::Codec for Codec<Encoded, Decoded> {
    type Encode = Encoded;
    type Decode = Decoded;
    type Encoder = ProstEncoder<Encoded>;
    type Decoder = WeighingDecoder<Decoded>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<Encoded, Decoded>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        WeighingDecoder(ProstCodec::<Encoded, Decoded>::default().decoder())
    }
}

impl<Decoded: Name + Default> Decoder for WeighingDecoder<Decoded> {
    type Item = Decoded;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Decoded>, Status> {
        use bytes::Buf;
        // It is in one piece: tonic has gathered the whole message.
        let (length, weight) = (buffer.remaining(), weight::<Decoded>(buffer.chunk()).unwrap_or(0));
        let allowed = allowed::<Decoded>(length);
        if weight > allowed {
            let sentence = format!(
                "a message of {length} bytes has so many parts that it would take {weight} bytes in memory; at most {allowed}: send it in several"
            );
            return Err(Status::resource_exhausted(sentence));
        }
        self.0.decode(buffer)
    }
}

/// All types of messages.
struct Types {
    all: Vec<Shape>,
    /// Those that are called with, by their short name.
    called: HashMap<String, usize>,
}

/// A type of messages.
struct Shape {
    /// About its size in memory, without what it points to.
    size: usize,
    /// By field number, what can lie in it or be repeated.
    parts: Vec<Option<Part>>,
}

/// A field that can hold more than itself.
#[derive(Clone, Copy)]
enum Part {
    /// A message that lies within its parent.
    Message(usize),
    /// One more message with each occurrence.
    Messages(usize),
    /// One more text with each occurrence.
    Texts,
}

/// A `String` or `Bytes` and the least that is allocated for it.
const TEXT: usize = 32;
/// A `Vec`.
const LIST: usize = 24;
/// Anything else, padded.
const SCALAR: usize = 8;

static TYPES: LazyLock<Types> = LazyLock::new(|| {
    let files = FileDescriptorSet::decode(DESCRIPTORS).expect("it was made with this crate");
    let full = |package: &str, name: &str| format!(".{package}.{name}");
    let messages: Vec<(String, &DescriptorProto)> = files
        .file
        .iter()
        .flat_map(|file| file.message_type.iter().map(|message| (full(file.package(), message.name()), message)))
        .collect();
    let places: HashMap<&str, usize> = messages.iter().enumerate().map(|(i, (name, _))| (name.as_str(), i)).collect();
    let shape = |message: &DescriptorProto| Shape { size: size(message, &messages, &places), parts: parts(message, &places) };
    let all = messages.iter().map(|(_, message)| shape(message)).collect();
    let methods = files.file.iter().flat_map(|file| &file.service).flat_map(|service| &service.method);
    let short = |name: &str| name.rsplit('.').next().expect("a split has a first").to_owned();
    let called = methods.map(|method| (short(method.input_type()), places[method.input_type()])).collect();
    Types { all, called }
});

fn size(message: &DescriptorProto, messages: &[(String, &DescriptorProto)], places: &HashMap<&str, usize>) -> usize {
    let of = |field: &FieldDescriptorProto| match (field.label(), field.r#type()) {
        (Label::Repeated, _) => LIST,
        (_, Type::Message) => size(messages[places[field.type_name()]].1, messages, places),
        (_, Type::String | Type::Bytes) => TEXT,
        (_, _) => SCALAR,
    };
    // Of the fields of a `oneof` there is one.
    let mut one_of = vec![0; message.oneof_decl.len()];
    let mut size = SCALAR;
    for field in &message.field {
        match field.oneof_index.and_then(|i| one_of.get_mut(i as usize)) {
            Some(largest) => *largest = of(field).max(*largest),
            None => size += of(field),
        }
    }
    size + one_of.iter().sum::<usize>()
}

fn parts(message: &DescriptorProto, places: &HashMap<&str, usize>) -> Vec<Option<Part>> {
    let mut parts = Vec::new();
    for field in &message.field {
        let part = match (field.label(), field.r#type()) {
            (Label::Repeated, Type::Message) => Some(Part::Messages(places[field.type_name()])),
            (_, Type::Message) => Some(Part::Message(places[field.type_name()])),
            (Label::Repeated, Type::String | Type::Bytes) => Some(Part::Texts),
            (_, _) => None,
        };
        let number = field.number() as usize;
        parts.resize(parts.len().max(number + 1), None);
        parts[number] = part;
    }
    parts
}

/// Adds what the parts of a message take.
fn weigh(shape: &Shape, mut bytes: &[u8], weight: &mut usize) -> Result<(), DecodeError> {
    while !bytes.is_empty() {
        let (number, wire) = decode_key(&mut bytes)?;
        let part = shape.parts.get(number as usize).copied().flatten();
        let (Some(part), WireType::LengthDelimited) = (part, wire) else {
            skip_field(wire, number, &mut bytes, DecodeContext::default())?;
            continue;
        };
        let length = usize::try_from(decode_varint(&mut bytes)?).unwrap_or(usize::MAX);
        let (within, rest) = bytes.split_at(length.min(bytes.len()));
        bytes = rest;
        match part {
            Part::Message(child) => weigh(&TYPES.all[child], within, weight)?,
            Part::Messages(child) => {
                *weight += TYPES.all[child].size;
                weigh(&TYPES.all[child], within, weight)?;
            }
            Part::Texts => *weight += TEXT,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    /// Field 1, empty, so many times.
    fn empty_parts(field: u8, count: usize) -> Vec<u8> {
        [field << 3 | 2, 0].repeat(count)
    }

    fn within(field: u8, bytes: &[u8]) -> Vec<u8> {
        let mut whole = vec![field << 3 | 2];
        prost::encoding::encode_varint(bytes.len() as u64, &mut whole);
        whole.extend_from_slice(bytes);
        whole
    }

    fn is_refused<Called: Name>(bytes: &[u8]) -> bool {
        weight::<Called>(bytes).expect("it is called with") > allowed::<Called>(bytes.len())
    }

    #[test]
    fn what_is_much_larger_in_memory_is_refused() {
        const MANY: usize = 4_000_000;
        assert!(is_refused::<v1::TransactRequests>(&empty_parts(1, MANY)));
        assert!(is_refused::<v1::CommitRequest>(&empty_parts(3, MANY)));
        assert!(is_refused::<v1::CommitRequest>(&within(3, &empty_parts(2, MANY))));
        let parameters = within(1, &empty_parts(2, MANY));
        assert!(is_refused::<v1::CommitRequest>(&within(3, &within(2, &parameters))));
        assert!(is_refused::<v1::TransactRequests>(&within(1, &within(2, &within(3, &within(2, &parameters))))));
        assert!(is_refused::<v1::FromParticipant>(&empty_parts(1, MANY)));
        assert!(is_refused::<v1::ListTransactionsRequest>(&empty_parts(1, MANY)));
    }

    #[test]
    fn the_largest_transactions_are_taken() {
        let value = |integer| v1::Value { value: Some(v1::value::Value::Integer(integer)) };
        let statement =
            v1::Statement { sql: "DELETE FROM t WHERE a = $1".into(), parameters: (0..20).map(value).collect(), expect_rows: None };
        let operation = v1::Operation { operation: Some(v1::operation::Operation::Statement(statement)) };
        let branch = v1::Branch { store: "db".into(), operations: vec![operation; 10_000] };
        let commit = v1::CommitRequest { branches: vec![branch], ..v1::CommitRequest::default() };
        assert!(!is_refused::<v1::CommitRequest>(&commit.encode_to_vec()));
    }

    /// So that no type weighs much less than it is.
    #[test]
    fn sizes_are_about_those_in_memory() {
        fn holds<Type: Name>() {
            let places = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
            let at = places.file.iter().flat_map(|file| &file.message_type).position(|message| message.name() == Type::NAME).unwrap();
            let (told, is) = (TYPES.all[at].size, size_of::<Type>());
            assert!(told >= is * 2 / 3 && told <= is * 2, "{}: {told} for {is}", Type::NAME);
        }
        holds::<v1::TransactRequest>();
        holds::<v1::Branch>();
        holds::<v1::Operation>();
        holds::<v1::Value>();
        holds::<v1::FromParticipantMessage>();
        holds::<v1::BranchVote>();
        holds::<v1::Marker>();
        holds::<v1::StatementResult>();
    }

    #[test]
    fn what_is_no_message_is_left_to_prost() {
        assert!(weight::<v1::TransactRequests>(&[0xff; 100]).is_some());
        assert!(weight::<v1::TransactRequests>(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f, 1]).is_some());
        assert!(weight::<v1::TransactReplies>(&[]).is_none());
    }
}
