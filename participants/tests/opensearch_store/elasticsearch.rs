//! A real Elasticsearch node, in what the two products could differ in: answers, types of fields, what a delete leaves. With
//! `LOCKSTEP_TEST_SEARCH=elasticsearch` every other test here runs against it, too.

use crate::checks::all_kinds_of_fields;
use crate::conforms::conform;
use crate::deletes::a_late_put_finds_the_tombstone;
use crate::lab::{Lab, alias};
use crate::node::{Node, Product};

#[test]
fn elasticsearch_conforms_and_takes_what_it_said_yes_to() {
    let Some(mut node) = Node::start_one(Product::Elasticsearch, &[]) else { return };
    conform(&node.url());
    all_kinds_of_fields(Lab::open(&node.url(), &alias(), 1), Product::Elasticsearch);
    a_late_put_finds_the_tombstone(&mut node);
}
