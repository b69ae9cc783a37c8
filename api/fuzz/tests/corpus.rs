//! Every input that was kept, and every crash that was not mended yet.

#![forbid(unsafe_code)]

#[path = "../src/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn kept_inputs_are_survived() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, run) in targets::TARGETS {
        for folder in ["corpus", "crashes"] {
            let Ok(inputs) = fs::read_dir(here.join(folder).join(name)) else {
                assert_eq!(folder, "crashes", "{name} has no corpus");
                continue;
            };
            for input in inputs {
                let path = input.unwrap().path();
                eprintln!("{}", path.display()); // shown when it fails
                run(&fs::read(&path).unwrap());
            }
        }
    }
}

#[test]
fn every_corpus_has_a_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let folders = fs::read_dir(corpus).unwrap();
    let folders: BTreeSet<_> = folders
        .map(|folder| folder.unwrap().file_name().into_string().unwrap())
        .collect();
    let names: BTreeSet<_> = targets::TARGETS
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    assert_eq!(folders, names);
}
