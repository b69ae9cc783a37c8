//! What every process of a sandbox starts with.

use std::collections::BTreeMap;

/// Names of the variables that tell a process who and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityVariables {
    /// `true` in a sandbox.
    pub marker: &'static str,
    /// The sandbox's id.
    pub sandbox_id: &'static str,
    /// The id of the template or snapshot that it was made of.
    pub template_id: &'static str,
}

impl IdentityVariables {
    /// Who and where it is, then what the creator asked for, whose value stays where both have a
    /// name.
    #[must_use]
    pub fn environment(
        &self,
        id: &str,
        template: &str,
        asked: BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let own = self.names().into_iter().zip(["true", id, template]);
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
        own.chain(asked).collect()
    }

    /// What the creator asked for.
    #[must_use]
    pub fn asked(&self, environment: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let names = self.names();
        let asked = environment
            .iter()
            .filter(|(name, _)| !names.contains(&&***name));
        asked
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    const fn names(&self) -> [&'static str; 3] {
        [self.marker, self.sandbox_id, self.template_id]
    }
}

/// Whether a process can have this variable: a name without `=`, and no NUL byte.
#[must_use]
pub fn is_variable(name: &str, value: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_own_variables_are_told_and_not_asked() {
        let names = IdentityVariables {
            marker: "IN",
            sandbox_id: "ID",
            template_id: "OF",
        };
        let asked: BTreeMap<String, String> = [("A".into(), "1".into())].into();
        let env = names.environment("i1", "base", asked.clone());
        let own = ["IN", "ID", "OF"].map(|name| env[name].as_str());
        assert_eq!(own, ["true", "i1", "base"]);
        assert_eq!(names.asked(&env), asked);
    }
}
