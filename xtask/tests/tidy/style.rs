//! One way to write what can be written in several.

use crate::exceptions::TEST_MODULES;
use crate::modules::crates;
use crate::{none, unless};

#[test]
fn test_modules_are_called_test() {
    let mut broken = Vec::new();
    for module in crates()
        .iter()
        .flat_map(|of| &of.modules)
        .filter(|module| module.test)
    {
        let file = &module.file;
        let other = module.name == "tests" || module.name.ends_with("_test");
        let elsewhere = !module.inline && file.ends_with("_test.rs");
        if module.parent.is_some() && (other || elsewhere) {
            broken.push((
                file.clone(),
                format!("{file}:{}: `mod {}`", module.line, module.name),
            ));
        }
    }
    let broken = unless(TEST_MODULES, broken);
    none(
        "Tests of `x.rs` are in its `mod test`, which may be the file `x/test.rs`:",
        &broken,
    );
}
