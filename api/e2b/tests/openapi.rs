//! `openapi.json` and the server say the same: which endpoints there are, which of them answer 501,
//! and which error codes there are. Reads the match table of `route.rs` and the words of
//! `error.rs`, so that a new endpoint or code cannot be forgotten.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use e2b::route::{Route, route};
use hyper::Method;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const ROUTES: &str = include_str!("../src/route.rs");
const ERRORS: &str = include_str!("../src/error.rs");
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

fn document() -> Value {
    serde_json::from_str(include_str!("../../openapi.json")).unwrap()
}

/// What a segment of a path may be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    /// This word.
    Word(String),
    /// Anything.
    Any,
    /// Any segments, also none.
    Rest,
}

/// One endpoint of the match table: its methods (none: all), and its path.
type Endpoint = (Vec<String>, Vec<Segment>);

/// The words in quotes of `text`.
fn quoted(text: &str) -> Vec<String> {
    text.split('"').skip(1).step_by(2).map(Into::into).collect()
}

/// All ways to choose one of each.
fn product(parts: &[Vec<Segment>]) -> Vec<Vec<Segment>> {
    let mut all = vec![Vec::new()];
    for part in parts {
        let longer = all.iter().flat_map(|path| {
            part.iter()
                .map(|one| [path.as_slice(), std::slice::from_ref(one)].concat())
        });
        all = longer.collect();
    }
    all
}

/// The paths of a slice pattern without its brackets: `"v2" | "v3", "templates", _`.
fn paths(pattern: &str) -> Vec<Vec<Segment>> {
    let segment = |text: &str| match (text.trim(), quoted(text)) {
        ("..", _) => vec![Segment::Rest],
        (_, words) if words.is_empty() => vec![Segment::Any],
        (_, words) => words.into_iter().map(Segment::Word).collect(),
    };
    let parts: Vec<_> = pattern.split(',').map(segment).collect();
    product(&parts)
}

/// The match table in `find`: patterns of the form `(METHODS, [SEGMENTS] | [SEGMENTS])`.
fn endpoints() -> Vec<Endpoint> {
    let table = ROUTES.split("Some(match (method.as_str(), segments) {");
    let table = table.last().unwrap().split("_ => return None").next();
    let table: String = table
        .unwrap()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    let mut found = Vec::new();
    // A pattern begins with "(" and its methods, and ends with "])".
    for part in table.split("])").filter(|part| part.contains('[')) {
        let begin = part.find(" [").unwrap();
        let (before, slices) = part.split_at(begin);
        let methods = quoted(before.rsplit('(').next().unwrap());
        for slice in slices.split('[').skip(1) {
            let slice = slice.split(']').next().unwrap();
            found.extend(paths(slice).into_iter().map(|path| (methods.clone(), path)));
        }
    }
    found
}

/// A path of the document as segments.
fn segments(path: &str) -> Vec<Segment> {
    let segment = |text: &str| match text.starts_with('{') {
        true => Segment::Any,
        false => Segment::Word(text.to_owned()),
    };
    path.trim_start_matches('/')
        .split('/')
        .map(segment)
        .collect()
}

/// Whether a path of the document is one that the table's pattern takes.
fn takes(pattern: &[Segment], path: &[Segment]) -> bool {
    match pattern.split_last() {
        Some((Segment::Rest, start)) => path.starts_with(start),
        _ => pattern == path,
    }
}

/// The operations of the document by method and path.
fn operations(document: &Value) -> BTreeMap<(String, String), &Value> {
    let mut all = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if method != "parameters" {
                all.insert((method.to_uppercase(), path.clone()), operation);
            }
        }
    }
    all
}

#[test]
fn every_endpoint_of_the_server_is_described() {
    let found = endpoints();
    assert!(found.len() > 40, "the table is read: {found:?}");
    let document = document();
    let described: Vec<_> = operations(&document).into_keys().collect();
    for (methods, pattern) in found {
        let methods: Vec<_> = match methods.is_empty() {
            // One of them is enough where all are refused alike.
            true => vec![METHODS[0].to_owned()],
            false => methods,
        };
        for method in methods {
            // Nobody asks for the end of an open pattern by this method: then the other one is
            // described.
            let open = pattern.last() == Some(&Segment::Rest);
            let there = described
                .iter()
                .any(|(own, path)| (open || *own == method) && takes(&pattern, &segments(path)));
            assert!(there, "openapi.json lacks {method} {pattern:?}");
        }
    }
}

#[test]
fn every_endpoint_that_is_described_is_there() {
    let table = endpoints();
    let document = document();
    for ((method, path), operation) in operations(&document) {
        let sample: String = path
            .split('/')
            .skip(1)
            .map(|segment| match segment.starts_with('{') {
                true => "/x".to_owned(),
                false => format!("/{segment}"),
            })
            .collect();
        let asked: Method = method.parse().unwrap();
        let found = route(&asked, &sample).unwrap_or_else(|e| panic!("{method} {path}: {e}"));
        let answers = operation["responses"].as_object().unwrap();
        let served = answers.keys().any(|status| status.starts_with('2'));
        let not_yet = matches!(found, Route::NotYet(..));
        assert_ne!(served, not_yet, "{method} {path} is {found:?}");
        assert!(
            !not_yet || answers.contains_key("501"),
            "{method} {path} answers 501"
        );
        let tagged = operation["tags"][0] == "not yet";
        assert_eq!(tagged, not_yet, "{method} {path}: its tag");
        let known = |(methods, pattern): &Endpoint| {
            (methods.is_empty() || methods.contains(&method)) && takes(pattern, &segments(&path))
        };
        assert!(table.iter().any(known), "{method} {path} is in no pattern");
    }
}

#[test]
fn every_error_code_is_described_and_no_other() {
    let mut sent = BTreeSet::new();
    for table in [
        "pub fn error_code(&self)",
        "fn engine_code(error: &EngineError)",
    ] {
        let codes = ERRORS.split(table).nth(1).unwrap();
        let codes = codes.split("_ => None").next().unwrap();
        let codes = codes.split("=> Some(").skip(1);
        sent.extend(codes.map(|rest| quoted(rest).remove(0)));
    }
    assert!(sent.len() > 8, "the codes are read: {sent:?}");
    let document = document();
    let words = &document["components"]["schemas"]["Error"]["properties"]["error_code"]["enum"];
    let described = words.as_array().unwrap().iter();
    let described: BTreeSet<_> = described.map(|w| w.as_str().unwrap().to_owned()).collect();
    assert_eq!(sent, described);
}

/// Collects where each `$ref` leads.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(to)) = fields.get("$ref") {
                found.insert(to.clone());
            }
            fields.values().for_each(|v| references(v, found));
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

/// Every reference has a target, and every target is referred to.
#[test]
fn references_resolve() {
    let document = document();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for to in &found {
        let there = to.strip_prefix('#').and_then(|to| document.pointer(to));
        assert!(there.is_some(), "{to} leads nowhere");
    }
    for kind in ["schemas", "parameters", "responses", "headers"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            let pointer = format!("#/components/{kind}/{name}");
            assert!(found.contains(&pointer), "{pointer} is of no use");
        }
    }
}

#[test]
fn the_document_holds_together() {
    let document = document();
    let tags = document["tags"].as_array().unwrap();
    let tags: BTreeSet<_> = tags
        .iter()
        .map(|tag| tag["name"].as_str().unwrap())
        .collect();
    let mut names = BTreeSet::new();
    for ((method, path), operation) in operations(&document) {
        let what = format!("{method} {path}");
        let name = operation["operationId"].as_str().unwrap();
        assert!(names.insert(name), "{what}: {name} is another one's name");
        assert!(
            tags.contains(operation["tags"][0].as_str().unwrap()),
            "{what}: its tag"
        );
        let origin = operation["x-origin"].as_str().unwrap();
        assert!(["e2b", "hatchery"].contains(&origin), "{what}: its origin");
        let open = path == "/health";
        let refused = operation["responses"].get("401").is_some();
        assert_ne!(
            open, refused,
            "{what}: every endpoint but one asks for a key"
        );
        let reads = operation.get("requestBody").is_some();
        let bounded =
            ["400", "408", "413"].map(|status| operation["responses"][status].is_object());
        assert!(!reads || bounded == [true; 3], "{what}: bodies are bounded");
    }
}
