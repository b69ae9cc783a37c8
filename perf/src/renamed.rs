//! Names that records of earlier days use, and what they are called today: so old records are read,
//! reported and compared like new ones.

/// Places.
const PLACES: &[(&str, &str)] = &[("floor", "baseline")];
/// Scenarios.
const SCENARIOS: &[(&str, &str)] = &[("husks", "warm-vms")];
/// Values.
const VALUES: &[(&str, &str)] = &[("husk_kib", "warm_vm_kib"), ("husks", "warm_vms")];

fn new_name(table: &[(&str, &'static str)], name: String) -> String {
    let found = table.iter().find(|(old, _)| *old == name);
    found.map_or(name, |(_, new)| (*new).to_owned())
}

/// Today's name of a place.
pub(crate) fn place(name: String) -> String {
    new_name(PLACES, name)
}

/// Today's name of a scenario.
pub(crate) fn scenario(name: String) -> String {
    new_name(SCENARIOS, name)
}

/// Today's name of a value.
pub(crate) fn value(name: String) -> String {
    new_name(VALUES, name)
}
