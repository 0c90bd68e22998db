//! What targets take their input apart with.

use arbitrary::Unstructured;

/// A number below `n`.
pub fn below(input: &mut Unstructured, n: usize) -> usize {
    input.int_in_range(0..=n - 1).unwrap_or(0)
}

/// One of these.
pub fn one<'a, T>(input: &mut Unstructured, of: &'a [T]) -> &'a T {
    &of[below(input, of.len())]
}

/// True once in `n`.
pub fn seldom(input: &mut Unstructured, n: usize) -> bool {
    below(input, n) == n - 1
}

/// Any number, more often a small one.
pub fn number(input: &mut Unstructured) -> u64 {
    match below(input, 4) {
        0 | 1 => u64::from(input.arbitrary::<u8>().unwrap_or(0)),
        2 => u64::from(input.arbitrary::<u16>().unwrap_or(0)),
        _ => input.arbitrary().unwrap_or(0),
    }
}

/// What is left, as one.
pub fn rest<'a>(input: &mut Unstructured<'a>) -> &'a [u8] {
    let length = input.len();
    input.bytes(length).unwrap_or_default()
}

/// Some bytes, `most` of them at most.
pub fn bytes<'a>(input: &mut Unstructured<'a>, most: usize) -> &'a [u8] {
    let length = below(input, most.min(input.len()) + 1).min(input.len());
    input.bytes(length).unwrap_or_default()
}

/// That an error's sentence can be shown: it says something, and does not repeat a huge input.
#[track_caller]
pub fn shown(sentence: &str) {
    assert!(!sentence.trim().is_empty(), "an error says nothing");
    assert!(sentence.len() <= 4096, "an error has {} bytes: {}…", sentence.len(), &sentence.chars().take(300).collect::<String>());
}
