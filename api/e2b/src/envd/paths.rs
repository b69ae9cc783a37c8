//! Users and paths as clients name them (api/PROTOCOL.md §7.5, §7.15).

use crate::connect::{ConnectCode, ConnectError};
use crate::envd::fail;
use engine::sandbox::Sandbox;
use link::GuestUser;

/// On whose behalf a request acts.
#[derive(Clone, Debug)]
pub(super) struct GuestCaller<'a> {
    sandbox: &'a Sandbox,
    /// The user's name in the guest.
    pub(super) name: String,
    user: Option<GuestUser>,
}

impl<'a> GuestCaller<'a> {
    /// The named user, checked to exist, or the default user, unchecked.
    ///
    /// # Errors
    /// `unauthenticated` for a user the guest does not have.
    pub(super) async fn checked(
        sandbox: &'a Sandbox,
        name: Option<String>,
    ) -> Result<Self, ConnectError> {
        let explicit = name.is_some();
        let mut caller = Self::unchecked(sandbox, name);
        if explicit {
            caller.user().await?;
        }
        Ok(caller)
    }

    /// The named or the default user; the agent will say whether there is one.
    pub(super) fn unchecked(sandbox: &'a Sandbox, name: Option<String>) -> Self {
        let name = name.unwrap_or_else(|| sandbox.default_user.clone());
        Self {
            sandbox,
            name,
            user: None,
        }
    }

    async fn user(&mut self) -> Result<&GuestUser, ConnectError> {
        if self.user.is_none() {
            let found = self.sandbox.link.lookup_user(&self.name).await;
            match found {
                Ok(user) => self.user = Some(user),
                Err(error) => return Err(fail::user(self.sandbox, error, &self.name).await),
            }
        }
        self.user
            .as_ref()
            .ok_or_else(|| ConnectError::internal("a user was lost"))
    }

    async fn home(&mut self) -> Result<String, ConnectError> {
        let home = self.user().await?.home.clone();
        String::from_utf8(home).map_err(|_| {
            ConnectError::invalid(format!("The home of user '{}' is not UTF-8", self.name))
        })
    }

    /// The working directory of a new process: what the agent is to be told. Empty for the home.
    ///
    /// # Errors
    /// `unauthenticated` or `invalid_argument`.
    pub(super) async fn cwd(&mut self, cwd: &str) -> Result<String, ConnectError> {
        // The agent itself starts relative directories at the home.
        if self.sandbox.default_workdir.is_none()
            && (cwd.is_empty() || !cwd.starts_with(['~', '/']))
        {
            return Ok(cwd.to_owned());
        }
        self.resolve(cwd).await
    }

    /// The absolute path that `path` means to this user, without `.`, `..` and doubled slashes.
    ///
    /// # Errors
    /// `unauthenticated` or `invalid_argument`.
    pub(super) async fn resolve(&mut self, path: &str) -> Result<String, ConnectError> {
        if path.contains('\0') {
            return Err(ConnectError::invalid(format!(
                "path {path:?} holds a NUL character"
            )));
        }
        if path.starts_with('/') {
            return Ok(clean(path));
        }
        if let Some(rest) = path.strip_prefix('~') {
            if !rest.is_empty() && !rest.starts_with('/') {
                return Err(ConnectError::new(
                    ConnectCode::InvalidArgument,
                    format!("cannot expand user-specific home dir in path '{path}'"),
                ));
            }
            return Ok(clean(&format!("{}/{rest}", self.home().await?)));
        }
        let base = match &self.sandbox.default_workdir {
            Some(workdir) if workdir.starts_with('/') => workdir.clone(),
            Some(workdir) => {
                let below = workdir.strip_prefix('~').unwrap_or(workdir).to_owned();
                format!("{}/{below}", self.home().await?)
            }
            None => self.home().await?,
        };
        Ok(clean(&format!("{base}/{path}")))
    }
}

/// Lexical cleaning of an absolute path, as Go's `filepath.Clean` does it.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cleaning() {
        for (path, wanted) in [
            ("/", "/"),
            ("//a//b/", "/a/b"),
            ("/a/./b/../c", "/a/c"),
            ("/../../a", "/a"),
            ("/a/..", "/"),
            ("/...", "/..."),
        ] {
            assert_eq!(clean(path), wanted, "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_clean_path_is_absolute_and_stays_clean(path in "[a./]{0,20}") {
            let once = clean(&path);
            prop_assert!(once.starts_with('/') && !once.contains("//"));
            prop_assert_eq!(&clean(&once), &once);
            prop_assert!(once.split('/').all(|part| part != "." && part != ".."));
        }
    }
}
