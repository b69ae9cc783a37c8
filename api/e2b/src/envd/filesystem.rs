//! `filesystem.Filesystem` (api/PROTOCOL.md §7.9).

use crate::connect::json::{nullable, optional_u32};
use crate::connect::{ConnectCode, ConnectError};
use crate::envd::fail;
use crate::envd::paths::GuestCaller;
use engine::sandbox::Sandbox;
use jiff::Timestamp;
use link::{FileEntry, LinkError};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt::Write;
use wire::{FileKind, MAX_DEPTH};

/// Requests that name one path: `Stat`, `MakeDir`, `Remove`; and `ListDir` with its depth.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PathRequest {
    #[serde(deserialize_with = "nullable")]
    path: String,
    #[serde(deserialize_with = "optional_u32")]
    depth: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct MoveRequest {
    #[serde(deserialize_with = "nullable")]
    source: String,
    #[serde(deserialize_with = "nullable")]
    destination: String,
}

/// The words for what this server's guest agent cannot do.
pub(super) fn no_watching(method: &str) -> ConnectError {
    ConnectError::unimplemented(format!(
        "{method}: the guest agent of this server cannot watch directories; list them instead"
    ))
}

/// Fuzz entry point: any bytes as each of the request messages.
pub fn fuzz_filesystem_json(data: &[u8]) {
    use crate::connect::request::parse;
    let _ = parse::<PathRequest>(data);
    let _ = parse::<MoveRequest>(data);
}

/// `Stat`.
pub(super) async fn stat(
    sandbox: &Sandbox,
    caller: &mut GuestCaller<'_>,
    request: &PathRequest,
) -> Result<Value, ConnectError> {
    let path = caller.resolve(&request.path).await?;
    let entry = sandbox.link.stat(path.as_bytes()).await;
    answer(sandbox, caller, &path, entry).await
}

/// `MakeDir`.
pub(super) async fn make_dir(
    sandbox: &Sandbox,
    caller: &mut GuestCaller<'_>,
    request: &PathRequest,
) -> Result<Value, ConnectError> {
    let path = caller.resolve(&request.path).await?;
    let entry = sandbox.link.make_dir(path.as_bytes(), &caller.name).await;
    answer(sandbox, caller, &path, entry).await
}

/// `Move`.
pub(super) async fn rename(
    sandbox: &Sandbox,
    caller: &mut GuestCaller<'_>,
    request: &MoveRequest,
) -> Result<Value, ConnectError> {
    let from = caller.resolve(&request.source).await?;
    let to = caller.resolve(&request.destination).await?;
    let entry = sandbox
        .link
        .rename(from.as_bytes(), to.as_bytes(), &caller.name)
        .await;
    answer(sandbox, caller, &format!("{from}' to '{to}"), entry).await
}

async fn answer(
    sandbox: &Sandbox,
    caller: &GuestCaller<'_>,
    path: &str,
    entry: Result<FileEntry, LinkError>,
) -> Result<Value, ConnectError> {
    match entry {
        Ok(entry) => Ok(json!({ "entry": entry_info(&entry) })),
        Err(error) => Err(fail::path(sandbox, error, path, &caller.name).await),
    }
}

/// `Remove`.
pub(super) async fn remove(
    sandbox: &Sandbox,
    caller: &mut GuestCaller<'_>,
    request: &PathRequest,
) -> Result<Value, ConnectError> {
    let path = caller.resolve(&request.path).await?;
    match sandbox.link.remove(path.as_bytes()).await {
        Ok(_) => Ok(json!({})),
        Err(error) => Err(fail::path(sandbox, error, &path, &caller.name).await),
    }
}

/// `ListDir`.
pub(super) async fn list_dir(
    sandbox: &Sandbox,
    caller: &mut GuestCaller<'_>,
    request: &PathRequest,
) -> Result<Value, ConnectError> {
    let path = caller.resolve(&request.path).await?;
    let asked = request.depth.unwrap_or(0).max(1);
    let depth = asked.min(MAX_DEPTH);
    let mut entries = match sandbox.link.list_dir(path.as_bytes(), depth).await {
        Ok(entries) => entries,
        Err(error) => return Err(fail::path(sandbox, error, &path, &caller.name).await),
    };
    if asked > depth {
        check_complete(&entries, path.as_bytes(), depth)?;
    }
    // The order of a lexical walk: by the components of the path.
    entries.sort_by(|a, b| a.path.split(slash).cmp(b.path.split(slash)));
    Ok(json!({ "entries": entries.iter().map(entry_info).collect::<Vec<_>>() }))
}

fn slash(byte: &u8) -> bool {
    *byte == b'/'
}

/// Refuses a listing that the agent's limit may have cut.
fn check_complete(entries: &[FileEntry], root: &[u8], depth: u32) -> Result<(), ConnectError> {
    let level = |path: &[u8]| path.split(slash).filter(|part| !part.is_empty()).count();
    let deepest = level(root) + usize::try_from(depth).unwrap_or(usize::MAX);
    let cut = entries
        .iter()
        .any(|entry| entry.kind == FileKind::Directory && level(&entry.path) >= deepest);
    if cut {
        return Err(ConnectError::new(
            ConnectCode::InvalidArgument,
            format!("The tree is deeper than {depth} levels, the most one listing goes down"),
        ));
    }
    Ok(())
}

/// The last component of a path.
pub(super) fn name(path: &[u8]) -> String {
    let last = path.rsplit(slash).next().unwrap_or_default();
    let name = if last.is_empty() { path } else { last };
    String::from_utf8_lossy(name).into_owned()
}

/// `EntryInfo`. Zero values may be left out, and are where they mean "nothing".
pub(super) fn entry_info(entry: &FileEntry) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let link = entry.kind == FileKind::Symlink;
    let or_id = |name: &[u8], id: u32| {
        if name.is_empty() {
            id.to_string()
        } else {
            text(name)
        }
    };
    let mut info = json!({
        "name": name(&entry.path),
        "path": text(&entry.path),
        "size": entry.size.to_string(),
        "mode": entry.target_mode & 0o777,
        "permissions": permissions(entry.mode),
        "owner": or_id(&entry.owner, entry.uid),
        "group": or_id(&entry.group, entry.gid),
    });
    let kind = if link { entry.target_kind } else { entry.kind };
    match kind {
        FileKind::File => info["type"] = json!("FILE_TYPE_FILE"),
        FileKind::Directory => info["type"] = json!("FILE_TYPE_DIRECTORY"),
        FileKind::Symlink => info["type"] = json!("FILE_TYPE_SYMLINK"),
        FileKind::Unspecified | FileKind::Other => {}
    }
    if let Ok(time) = Timestamp::from_nanosecond(i128::from(entry.modified_ns)) {
        info["modifiedTime"] = json!(time.to_string());
    }
    if link {
        info["symlinkTarget"] = json!(text(&entry.symlink_target));
        info["isSymlink"] = json!(true);
    }
    info
}

/// The permission string as Go's `fs.FileMode` prints it: `-rw-r--r--`, `drwxr-xr-x`, `Lrwxrwxrwx`.
fn permissions(mode: u32) -> String {
    let mut out = String::with_capacity(12);
    match mode & 0o170_000 {
        0o040_000 => out.push('d'),
        0o120_000 => out.push('L'),
        0o060_000 => out.push('D'),
        0o020_000 => out.push_str("Dc"),
        0o010_000 => out.push('p'),
        0o140_000 => out.push('S'),
        _ => {}
    }
    // Go's order is "dalTLDpSugct?": setuid and setgid come before the c of a character device.
    for (bit, letter) in [(0o4000, 'u'), (0o2000, 'g')] {
        if mode & bit != 0 {
            let at = out.strip_suffix('c').map_or(out.len(), str::len);
            out.insert(at, letter);
        }
    }
    if mode & 0o1000 != 0 {
        out.push('t');
    }
    if out.is_empty() {
        out.push('-');
    }
    for shift in [6, 3, 0] {
        let bits = mode >> shift;
        for (bit, letter) in [(4, 'r'), (2, 'w'), (1, 'x')] {
            // Writing to a String cannot fail.
            let _ = out.write_char(if bits & bit != 0 { letter } else { '-' });
        }
    }
    out
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_panics(json in r#"\{"(path|depth|source)":[\{\}\[\]":,a-z0-9.e-]{0,40}"#) {
            fuzz_filesystem_json(json.as_bytes());
        }
    }

    fn entry(path: &str, kind: FileKind) -> FileEntry {
        FileEntry {
            path: path.into(),
            kind,
            target_kind: kind,
            size: 5,
            mode: 0o100_644,
            target_mode: 0o100_644,
            uid: 1000,
            gid: 7,
            owner: b"user".to_vec(),
            group: Vec::new(),
            modified_ns: 1_700_000_000_123_000_000,
            symlink_target: Vec::new(),
        }
    }

    #[test]
    fn permission_strings_are_gos() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_755, "drwxr-xr-x"),
            (0o120_777, "Lrwxrwxrwx"),
            (0o041_777, "dtrwxrwxrwx"),
            (0o104_755, "urwxr-xr-x"),
            (0o020_666, "Dcrw-rw-rw-"),
            (0o022_666, "Dgcrw-rw-rw-"),
            (0o010_600, "prw-------"),
        ] {
            assert_eq!(permissions(mode), text);
        }
    }

    #[test]
    fn entries_in_json() {
        let file = entry_info(&entry("/home/user/a.txt", FileKind::File));
        let wanted = json!({
            "name": "a.txt", "path": "/home/user/a.txt", "type": "FILE_TYPE_FILE", "size": "5",
            "mode": 420, "permissions": "-rw-r--r--", "owner": "user", "group": "7",
            "modifiedTime": "2023-11-14T22:13:20.123Z",
        });
        assert_eq!(file, wanted);
        let mut link = entry("/l", FileKind::Symlink);
        link.target_kind = FileKind::Directory;
        link.symlink_target = b"/etc".to_vec();
        let link = entry_info(&link);
        assert_eq!(link["type"], "FILE_TYPE_DIRECTORY");
        assert_eq!(link["symlinkTarget"], "/etc");
        assert_eq!(link["isSymlink"], true);
        assert_eq!(name(b"/"), "/");
    }

    #[test]
    fn a_listing_that_may_be_cut_is_refused() {
        let deep = [entry("/r/a/b", FileKind::Directory)];
        check_complete(&deep, b"/r", 2).unwrap_err();
        check_complete(&deep, b"/r", 3).unwrap();
        check_complete(&[entry("/r/a/b", FileKind::File)], b"/r", 2).unwrap();
    }
}
