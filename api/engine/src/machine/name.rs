//! What a machine is called in the log.

use crate::ids;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// A machine's name. Machines that are made ahead have one of their own until a sandbox takes them;
/// from then on the log has the sandbox's id. Clones are the same name.
#[derive(Clone, Debug)]
pub struct MachineName(Arc<(String, OnceLock<String>)>);

impl MachineName {
    /// Of a machine that is nobody's sandbox yet: `kind` and 19 random characters.
    ///
    /// # Errors
    /// When there are no random bytes.
    pub fn internal(kind: char) -> std::io::Result<Self> {
        Ok(Self::new(&format!("{kind}{}", ids::random_name(19)?)))
    }

    /// Of a machine that is just being made: `[a-z0-9]`, at most 64 characters.
    #[must_use]
    pub fn new(own: &str) -> Self {
        Self(Arc::new((own.to_owned(), OnceLock::new())))
    }

    /// What the machine was called when it was made; the VM process knows no other name.
    #[must_use]
    pub fn own(&self) -> &str {
        &self.0.0
    }

    /// The sandbox takes the machine. Once: a machine is never given to a second one.
    pub fn assign(&self, sandbox_id: &str) {
        let _ = self.0.1.set(sandbox_id.to_owned());
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.1.get().unwrap_or(&self.0.0))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_first_sandbox_keeps_it() {
        let name = MachineName::new("m1");
        let elsewhere = name.clone();
        assert_eq!(elsewhere.to_string(), "m1");
        name.assign("i1");
        name.assign("i2");
        assert_eq!(
            (elsewhere.to_string().as_str(), elsewhere.own()),
            ("i1", "m1")
        );
    }
}
