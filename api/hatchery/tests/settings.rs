//! What pages and comments say about the configuration is what the program does: every key stands
//! in `hatchery.toml` with its real default or as an example, and the comments of `config.rs` and
//! the help of the program say the same.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use hatchery::config::{ConfigFile, Overrides, Settings};
use std::collections::BTreeSet;
use std::path::Path;
use toml::Table;

const EXAMPLE: &str = include_str!("../../hatchery.toml");
const CONFIG: &str = include_str!("../src/config/typed.rs");
const ARGS: &str = include_str!("../src/args.rs");

/// The structs of `config.rs` that are typed, and the tables that they are.
const TABLES: [(&str, &str); 10] = [
    ("ConfigFile", ""),
    ("KeyFile", "keys"),
    ("TlsFile", "tls"),
    ("LimitsFile", "limits"),
    ("ClonesFile", "clones"),
    ("PoolFile", "pool"),
    ("NetworkFile", "network"),
    ("MetricsFile", "metrics"),
    ("ResourcesFile", "resources"),
    ("TemplateFile", "templates.base"),
];

/// Old names of settings, which are read and in no page.
const OLD: [&str; 1] = ["clones.husks"];

/// Keys that `hatchery.toml` shows by an example, because they have no constant default.
const EXAMPLES: [&str; 18] = [
    "domain",
    "api_keys",
    "api_keys_file",
    "api_keys_name",
    "keys",
    "image_dir",
    "tls.listen",
    "tls.certificate",
    "tls.key",
    "metrics.listen",
    "network.openings",
    "network.extra_roots",
    "resources.cgroup_parent",
    "templates.base.disk_size_mb",
    "templates.base.aliases",
    "templates.base.default_workdir",
    "templates.base.start_cmd",
    "templates.base.ready_cmd",
];

/// The file with its settings no longer commented out.
fn live() -> Table {
    let line = |line: &str| line.strip_prefix("#: ").unwrap_or(line).to_owned();
    let text: Vec<_> = EXAMPLE.lines().map(line).collect();
    text.join("\n").parse().unwrap()
}

fn settings(table: Table) -> Settings {
    let over = Overrides {
        api_keys: Some("e2b_0000000000000000000000000000000000000000".into()),
        ..Overrides::default()
    };
    let file: ConfigFile = table.try_into().unwrap();
    Settings::new(file, over, Path::new("/dist")).unwrap()
}

/// Everything but the keys, which are salted, to be compared.
fn shown(settings: Settings) -> String {
    let Settings {
        listen,
        data_dir,
        domain,
        tls,
        require_token,
        keys: _,
        owners,
        vmm,
        jail,
        agent,
        limits,
        clones,
        network,
        resources,
        metrics_listen,
        notes,
        templates,
    } = settings;
    assert_eq!(notes, Vec::<String>::new(), "no setting has an old name");
    let places = (listen, data_dir, domain, vmm, agent, metrics_listen);
    format!(
        "{places:?}
{owners:?}
{tls:?}
{require_token}
{jail}
{limits:?}
{clones:?}
{network:?}
{resources:?}
{templates:?}"
    )
}

/// `limits.max_sandboxes` and the like, with their values.
fn leaves(table: &Table, before: &str, all: &mut Vec<(String, toml::Value)>) {
    for (key, value) in table {
        let name = match before {
            "" => key.clone(),
            before => format!("{before}.{key}"),
        };
        match value {
            toml::Value::Table(inner) => leaves(inner, &name, all),
            toml::Value::Array(many) if many.iter().any(toml::Value::is_table) => {
                let tables = many.iter().filter_map(toml::Value::as_table);
                tables.for_each(|inner| leaves(inner, &name, all));
            }
            other => all.push((name, other.clone())),
        }
    }
}

fn without(table: &mut Table, key: &str) {
    match key.split_once('.') {
        None => drop(table.remove(key).unwrap()),
        Some((outer, rest)) => {
            let inner = table[outer].as_table_mut();
            without(inner.unwrap(), rest);
        }
    }
}

/// The fields of a struct with the text of their comments.
fn fields(name: &str) -> Vec<(String, String)> {
    let body = CONFIG
        .split(&format!("pub struct {name} {{"))
        .nth(1)
        .unwrap();
    let body = body.split("\n}").next().unwrap();
    let (mut all, mut text) = (Vec::new(), String::new());
    for line in body.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("///") {
            text += comment;
        } else if let Some(field) = line.strip_prefix("pub ") {
            let field = field.split(':').next().unwrap();
            all.push((field.to_owned(), std::mem::take(&mut text)));
        }
    }
    all
}

/// As comments write it.
fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[test]
fn every_key_is_in_the_file_and_no_other() {
    let mut shown = Vec::new();
    leaves(&live(), "", &mut shown);
    let shown: BTreeSet<_> = shown.into_iter().map(|(key, _)| key).collect();
    let mut there = BTreeSet::new();
    for (name, table) in TABLES {
        for (field, _) in fields(name) {
            let tables = TABLES.iter().map(|(_, table)| table.split('.').next());
            let is_table = tables.flatten().any(|table| table == field);
            match table {
                "" if is_table => {}
                "" => drop(there.insert(field)),
                table => drop(there.insert(format!("{table}.{field}"))),
            }
        }
    }
    there.retain(|key| !OLD.contains(&key.as_str()));
    assert_eq!(shown, there);
    for key in EXAMPLES {
        let known = there.contains(key) || TABLES.iter().any(|(_, table)| *table == key);
        assert!(known, "{key} is no key any more");
    }
}

/// Each value that is no example changes nothing.
#[test]
fn every_default_is_the_programs() {
    let mut defaults = live();
    for key in EXAMPLES {
        without(&mut defaults, key);
    }
    assert_eq!(shown(settings(defaults)), shown(settings(Table::new())));
}

/// What is an example is no default: else it would have to be held to it.
#[test]
fn every_example_changes_something() {
    for example in EXAMPLES
        .iter()
        .filter(|key| !key.starts_with("api_keys") && **key != "keys")
        // These need each other.
        .filter(|key| !key.starts_with("tls."))
    {
        let mut table = live();
        for key in EXAMPLES.iter().filter(|key| *key != example) {
            without(&mut table, key);
        }
        let same = shown(settings(table)) == shown(settings(Table::new()));
        assert!(!same, "{example} is shown with its default");
    }
}

#[test]
fn comments_name_the_same_defaults() {
    let mut shown = Vec::new();
    leaves(&live(), "", &mut shown);
    let mut compared = 0;
    for (name, table) in TABLES {
        for (field, text) in fields(name) {
            let Some((_, said)) = text.rsplit_once("Default ") else {
                continue;
            };
            let said = said.trim_end_matches('.').replace('`', "");
            let key = match table {
                "" => field,
                table => format!("{table}.{field}"),
            };
            let (_, value) = shown.iter().find(|(own, _)| *own == key).unwrap();
            assert_eq!(said, plain(value), "the comment of {key}");
            compared += 1;
        }
    }
    assert!(compared > 15, "{compared} defaults are named");
}

#[test]
fn the_help_names_the_same_defaults() {
    let mut shown = Vec::new();
    leaves(&live(), "", &mut shown);
    let (mut said, mut compared) = (None, 0);
    for line in ARGS.lines().map(str::trim) {
        if let Some((_, default)) = line.split_once("[default: ") {
            said = default.strip_suffix(']');
        } else if let Some((field, _)) = line.split_once(':')
            && !line.starts_with('#')
            && let Some(said) = said.take()
        {
            let is =
                |key: &str| key.rsplit('.').next() == Some(field) || key.replace('.', "_") == field;
            let (key, value) = shown.iter().find(|(key, _)| is(key)).unwrap();
            if EXAMPLES.contains(&key.as_str()) {
                continue;
            }
            assert_eq!(said, plain(value), "the help of --{field}");
            compared += 1;
        }
    }
    assert!(compared >= 4, "{compared} defaults are named");
}

/// A setting's old name is read, with a word; beside its new one it is an error that names both.
#[test]
fn old_names_are_read_with_a_word() {
    let over = || Overrides {
        api_keys: Some("e2b_0000000000000000000000000000000000000000".into()),
        ..Overrides::default()
    };
    let file = |text: &str| -> ConfigFile { toml::from_str(text).unwrap() };
    let old = Settings::new(file("[clones]\nhusks = 7"), over(), Path::new("/")).unwrap();
    assert_eq!(old.clones.pool_size, 7);
    assert!(old.notes[0].contains("clones.husks") && old.notes[0].contains("pool.size"));
    for (text, name) in [
        ("[clones]\nhusks = 1025", "clones.husks"),
        ("[pool]\nsize = 1025", "pool.size"),
    ] {
        let refused = Settings::new(file(text), over(), Path::new("/")).unwrap_err();
        assert!(refused.to_string().contains(name), "{refused}");
    }
    let both = file("[clones]\nhusks = 7\n[pool]\nsize = 7");
    let refused = Settings::new(both, over(), Path::new("/")).unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("clones.husks") && text.contains("pool.size"),
        "{text}"
    );
    let typed = Overrides {
        husks: Some(3),
        ..over()
    };
    let old = Settings::new(file(""), typed, Path::new("/")).unwrap();
    assert_eq!((old.clones.pool_size, old.notes.len()), (3, 1));
    let typed = Overrides {
        husks: Some(3),
        pool_size: Some(3),
        ..over()
    };
    let refused = Settings::new(file(""), typed, Path::new("/")).unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("HATCHERY_HUSKS") && text.contains("HATCHERY_POOL_SIZE"),
        "{text}"
    );
}
