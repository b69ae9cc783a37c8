//! Names of types: one word seldom says enough (a `Start`, an `Origin`: of what?).

use crate::modules::{Crate, crates};
use crate::{circles, none, source};

/// Most one-word type names of a room, in per cent of all its type names: what is left of an
/// earlier habit, and comes down with each room that is recut.
const ONE_WORD: &[(&str, usize)] = &[
    ("api", 20),
    ("guest-agent", 20),
    ("host", 35),
    ("perf", 6),
    ("snapshot", 20),
    ("xtask", 5),
];

/// The type names of a crate's own code: structs, enums, traits and aliases.
fn types(of: &Crate) -> impl Iterator<Item = &str> {
    let own = of.modules.iter().filter(|module| !module.test);
    let kind = |kind: &str| ["struct", "enum", "union", "trait", "type"].contains(&kind);
    let items = own.flat_map(|module| &module.items);
    items
        .filter(move |item| kind(&item.kind))
        .map(|item| item.name.as_str())
}

/// Whether a name is one word: a capital, and no other behind a small letter or digit.
fn is_one_word(name: &str) -> bool {
    !name.chars().skip(1).any(char::is_uppercase)
}

#[test]
fn words() {
    for (name, one) in [
        ("Start", true),
        ("Fds", true),
        ("BootSource", false),
        ("RecordV1", false),
    ] {
        assert_eq!(is_one_word(name), one, "{name}");
    }
}

#[test]
fn type_names_say_enough() {
    let mut broken = Vec::new();
    for (room, most) in ONE_WORD {
        let of_room = |of: &&Crate| of.folder.split('/').next() == Some(room);
        let all: Vec<_> = crates().iter().filter(of_room).flat_map(types).collect();
        let one = all.iter().filter(|name| is_one_word(name)).count();
        let share = (one * 100).div_ceil(all.len().max(1));
        println!(
            "{room}: {one} of {} type names are one word ({share} %, at most {most} %), \
             {} circles of files, \
             {} files over {} lines",
            all.len(),
            circles::count(room),
            source::long(room),
            source::LONGEST,
        );
        if share > *most {
            let mut names: Vec<_> = all.into_iter().filter(|name| is_one_word(name)).collect();
            names.sort_unstable();
            names.dedup();
            broken.push(format!(
                "{room}: {share} %, not {most} %: {}",
                names.join(" ")
            ));
        }
    }
    none("A type's name says what it is of:", &broken);
}
