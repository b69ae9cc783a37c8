//! Files of the real agent.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use support::{Got, Host};
use wire::{
    DataChannel, ErrorCode, FileKind, INPUT_WINDOW, MAX_PAYLOAD, Message, ReadFile, Request,
    WriteFile,
};

fn noise(n: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut out = Vec::with_capacity(n + 8);
    while out.len() < n {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend(x.to_le_bytes());
    }
    out.truncate(n);
    out
}

/// Its stream.
fn begin_upload(host: &mut Host, path: &str) -> u32 {
    host.open(&Request::WriteFile(WriteFile {
        path: path.as_bytes(),
        user: b"",
        mode: 0o600,
        truncate: true,
        parents: false,
    }))
}

#[test]
fn ten_mebibytes_come_back_as_they_went() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let path = format!("{}/a/b/large", dir.path().display());
    let bytes = noise(10 << 20);
    let Got::Entry(entry) = host.upload(&path, &bytes) else {
        panic!("not written")
    };
    assert_eq!(
        (entry.size, entry.kind, entry.mode & 0o7777),
        (10 << 20, FileKind::File, 0o644)
    );
    assert!(fs::read(&path).unwrap() == bytes, "the file differs");
    assert_eq!(
        fs::metadata(dir.path().join("a")).unwrap().mode() & 0o7777,
        0o755
    );
    let read = host.download(&path);
    assert_eq!(read.opened.as_ref().map(|e| e.size), Some(10 << 20));
    assert!(read.bytes(DataChannel::File) == bytes, "the bytes differ");
    assert_eq!(read.end, Some(Got::Done(10 << 20)));
    let part = ReadFile {
        path: path.as_bytes(),
        offset: 1000,
        len: 70_000,
    };
    assert!(host.ask(&Request::ReadFile(part)).bytes(DataChannel::File) == &bytes[1000..71_000]);
}

#[test]
fn a_slow_upload_and_a_stalled_download_stop_nobody() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let large = format!("{}/large", dir.path().display());
    fs::write(&large, noise(4 << 20)).unwrap();
    let all = ReadFile {
        path: large.as_bytes(),
        offset: 0,
        len: u64::MAX,
    };
    let stalled = host.open(&Request::ReadFile(all));
    host.stalled.push(stalled);
    let slow = format!("{}/slow", dir.path().display());
    let upload = begin_upload(&mut host, &slow);
    host.data(upload, DataChannel::File, b"begun");
    assert_eq!(
        host.download(&large).bytes(DataChannel::File).len(),
        4 << 20
    );
    host.send(upload, &Message::End);
    assert!(matches!(host.all(upload).end, Some(Got::Entry(e)) if e.size == 5));
    host.stalled.clear();
    host.send(stalled, &Message::Credit(5 << 20));
    assert_eq!(host.all(stalled).bytes(DataChannel::File).len(), 4 << 20);
}

/// A program that waits for a file may take it away as soon as it is there.
#[test]
fn a_file_that_is_taken_away_meanwhile_was_written() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("letter");
    let text = path.to_str().unwrap().to_owned();
    let upload = begin_upload(&mut host, &text);
    host.data(upload, DataChannel::File, b"taken");
    // Requests are taken in order: an answer to a later one shows that it is there.
    let there = host
        .ask(&Request::Stat {
            path: text.as_bytes(),
        })
        .end;
    assert!(matches!(there, Some(Got::Entry(e)) if e.size == 5));
    fs::remove_file(&path).unwrap();
    host.send(upload, &Message::End);
    let end = host.all(upload).end;
    assert!(matches!(&end, Some(Got::Entry(e)) if e.size == 5 && e.kind == FileKind::File));
}

#[test]
fn writing_keeps_the_mode_and_gives_the_file_to_the_user() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "old and long").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let text = path.to_str().unwrap().to_owned();
    let stream = host.open(&Request::WriteFile(WriteFile {
        path: text.as_bytes(),
        user: b"nobody",
        mode: 0o666,
        truncate: true,
        parents: true,
    }));
    host.data(stream, DataChannel::File, b"new");
    host.send(stream, &Message::End);
    let Some(Got::Entry(entry)) = host.all(stream).end else {
        panic!("not written")
    };
    assert_eq!(
        (entry.uid, entry.owner.as_str(), entry.size),
        (65534, "nobody", 3)
    );
    assert_eq!(entry.mode & 0o7777, 0o640);
}

#[test]
fn what_is_not_a_file_is_refused_by_name() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("{}/{name}", dir.path().display());
    host.run(&format!("mkfifo {}", at("fifo")));
    assert_eq!(host.download(&at("")).error(), ErrorCode::IsADirectory);
    assert_eq!(host.download(&at("fifo")).error(), ErrorCode::NotRegular);
    assert_eq!(host.download(&at("missing")).error(), ErrorCode::NotFound);
    assert_eq!(host.download("/dev/zero").error(), ErrorCode::NotRegular);
    for (path, code) in [
        (at(""), ErrorCode::IsADirectory),
        (at("fifo"), ErrorCode::NotRegular),
        ("/etc/passwd/x".to_owned(), ErrorCode::NotADirectory),
    ] {
        let end = host.upload(&path, b"");
        assert!(
            matches!(end, Got::Error(c, ..) if c == code),
            "{path}: {end:?}"
        );
    }
}

#[test]
fn a_full_disk_says_so_and_the_agent_lives() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    let mounted = host.run(&format!("mount -t tmpfs -o size=1m none {at}"));
    if mounted.exit() != wire::ProcessExit::Code(0) {
        eprintln!("skipped: no right to mount");
        return;
    }
    let end = host.upload(&format!("{at}/big"), &noise(3 << 20));
    host.run(&format!("umount {at}"));
    assert!(
        matches!(end, Got::Error(ErrorCode::NoSpace, 28, _)),
        "{end:?}"
    );
    assert_eq!(host.run("echo ok").stdout(), "ok\n");
}

#[test]
fn data_nobody_asked_for_resets_the_stream() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let path = format!("{}/f", dir.path().display());
    fs::write(&path, noise(2 << 20)).unwrap();
    let whole = ReadFile {
        path: path.as_bytes(),
        offset: 0,
        len: u64::MAX,
    };
    let stream = host.open(&Request::ReadFile(whole));
    host.stalled.push(stream);
    host.data(stream, DataChannel::File, b"?");
    assert_eq!(host.all(stream).end, Some(Got::Reset));
    let upload = host.open(&Request::WriteFile(WriteFile {
        path: path.as_bytes(),
        user: b"",
        mode: 0o666,
        truncate: true,
        parents: false,
    }));
    for _ in 0..(INPUT_WINDOW as usize / MAX_PAYLOAD) {
        host.data(upload, DataChannel::File, &[0; MAX_PAYLOAD]);
    }
    assert!(matches!(host.next(upload), Got::Credit(n) if n >= INPUT_WINDOW / 2));
}

#[test]
fn entries_tell_links_from_what_they_point_to() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    fs::write(root.join("file"), "12345").unwrap();
    symlink("file", root.join("link")).unwrap();
    symlink("nowhere", root.join("broken")).unwrap();
    let mut stat = |name: &str| {
        let path = format!("{}/{name}", root.display());
        match host
            .ask(&Request::Stat {
                path: path.as_bytes(),
            })
            .end
        {
            Some(Got::Entry(entry)) => entry,
            other => panic!("{other:?}"),
        }
    };
    let file = stat("file");
    assert_eq!(
        (file.kind, file.target_kind, file.size),
        (FileKind::File, FileKind::File, 5)
    );
    assert_eq!(file.target, "");
    let link = stat("link");
    assert_eq!(
        (link.kind, link.target_kind, link.size),
        (FileKind::Symlink, FileKind::File, 4)
    );
    assert_eq!(link.target, root.join("file").to_str().unwrap());
    let broken = stat("broken");
    assert_eq!(
        (broken.kind, broken.target_kind),
        (FileKind::Symlink, FileKind::Unspecified)
    );
    assert_eq!(broken.target, broken.path);
    assert_eq!(stat("").kind, FileKind::Directory);
    let missing = host.ask(&Request::Stat {
        path: b"/no/such/thing",
    });
    assert_eq!(missing.error(), ErrorCode::NotFound);
}

#[test]
fn directories_are_made_listed_and_moved() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().display().to_string();
    let at = |name: &str| format!("{root}/{name}");
    let make = |host: &mut Host, name: &str| {
        host.ask(&Request::MakeDir {
            path: at(name).as_bytes(),
            user: b"nobody",
        })
    };
    let made = make(&mut host, "a/b/c");
    assert!(
        matches!(made.end, Some(Got::Entry(ref e)) if e.owner == "nobody"),
        "{made:?}"
    );
    assert_eq!(fs::metadata(at("a/b")).unwrap().uid(), 65534);
    assert_eq!(make(&mut host, "a/b").error(), ErrorCode::AlreadyExists);
    fs::write(at("a/file"), "x").unwrap();
    assert_eq!(make(&mut host, "a/file").error(), ErrorCode::NotADirectory);
    symlink("/etc", at("a/link")).unwrap();

    let names = |list: Vec<support::Entry>| -> Vec<String> {
        list.into_iter()
            .map(|e| e.path.strip_prefix(&root).unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(host.list(&root, 1)), ["/a"]);
    assert_eq!(
        names(host.list(&root, 2)),
        ["/a", "/a/b", "/a/file", "/a/link"]
    );
    assert_eq!(
        names(host.list(&root, 64)),
        ["/a", "/a/b", "/a/b/c", "/a/file", "/a/link"]
    );
    let through = host.list(&at("a/link"), 1);
    assert!(through.iter().any(|e| e.path == at("a/link/passwd")));
    let file = host.ask(&Request::ListDir {
        path: at("a/file").as_bytes(),
        depth: 1,
    });
    assert_eq!(file.error(), ErrorCode::NotADirectory);

    let moved = host.ask(&Request::Move {
        from: at("a/file").as_bytes(),
        to: at("new/place/file").as_bytes(),
        user: b"",
    });
    assert!(matches!(moved.end, Some(Got::Entry(e)) if e.path == at("new/place/file")));
    assert!(!fs::exists(at("a/file")).unwrap());
    let missing = host.ask(&Request::Move {
        from: at("a/file").as_bytes(),
        to: at("elsewhere/file").as_bytes(),
        user: b"",
    });
    assert_eq!(missing.error(), ErrorCode::NotFound);
    assert!(
        !fs::exists(at("elsewhere")).unwrap(),
        "a failed move leaves no directory"
    );
}

#[test]
fn a_move_between_file_systems_is_refused_with_both_names() {
    let mut host = Host::new();
    let disk = tempfile::tempdir().unwrap();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let from = format!("{}/f", disk.path().display());
    let to = format!("{}/f", memory.path().display());
    fs::write(&from, "x").unwrap();
    let moved = host.ask(&Request::Move {
        from: from.as_bytes(),
        to: to.as_bytes(),
        user: b"root",
    });
    let Some(Got::Error(ErrorCode::InvalidArgument, 18, words)) = moved.end else {
        panic!("{moved:?}")
    };
    assert!(words.contains(&from) && words.contains(&to), "{words}");
    assert!(fs::exists(&from).unwrap() && !fs::exists(&to).unwrap());
}

/// As in a guest, where only its owner follows a link in a folder like `/tmp`.
#[test]
fn a_users_link_in_a_shared_folder_is_followed_as_that_user() {
    const SETTING: &str = "/proc/sys/fs/protected_symlinks";
    let mut host = Host::new();
    if fs::read_to_string(SETTING).is_ok_and(|text| text.trim() == "0") {
        eprintln!("skipped: this kernel lets everybody follow every link");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    let script = format!(
        "chmod 1777 {at} && echo open > {at}/open && echo secret > {at}/secret &&
         chmod 600 {at}/secret && ln -s {at}/open {at}/to-open && ln -s {at}/secret {at}/to-secret &&
         chown -h nobody {at}/to-open {at}/to-secret"
    );
    assert_eq!(host.run(&script).exit(), wire::ProcessExit::Code(0));
    let read = host.download(&format!("{at}/to-open"));
    assert_eq!(read.bytes(DataChannel::File), b"open\n");
    assert_eq!(
        host.download(&format!("{at}/to-secret")).error(),
        ErrorCode::PermissionDenied,
        "its owner may not read that"
    );
    let entries = host.list(&dir.path().display().to_string(), 1);
    let link = entries.iter().find(|e| e.path.ends_with("to-open"));
    assert_eq!(link.unwrap().target, format!("{at}/open"));
}

#[test]
fn large_directories_are_listed_in_pieces() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    for i in 0..20 {
        fs::create_dir(dir.path().join(format!("d{i}"))).unwrap();
        for k in 0..200 {
            fs::write(
                dir.path().join(format!("d{i}/file-with-a-long-name-{k}")),
                "",
            )
            .unwrap();
        }
    }
    let list = host.list(dir.path().to_str().unwrap(), 3);
    assert_eq!(list.len(), 20 * 201);
    assert!(
        list.windows(2).all(|w| w[0].path < w[1].path),
        "an entry came twice"
    );
}

#[test]
fn removal_takes_trees_of_any_depth_and_spares_what_links_point_to() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "").unwrap();
    let tree = dir.path().join("tree");
    let mut deep = tree.clone();
    for _ in 0..200 {
        deep.push("deep");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "").unwrap();
    }
    for i in 0..1000 {
        fs::write(tree.join(format!("file{i}")), "").unwrap();
    }
    symlink(&outside, tree.join("link")).unwrap();
    let remove = |host: &mut Host, path: &str| {
        host.ask(&Request::Remove {
            path: path.as_bytes(),
        })
        .end
        .unwrap()
    };
    let end = remove(&mut host, tree.to_str().unwrap());
    assert!(matches!(end, Got::Done(n) if n >= 1401), "{end:?}");
    assert!(!tree.exists() && outside.join("precious").exists());
    assert_eq!(remove(&mut host, tree.to_str().unwrap()), Got::Done(0));
    symlink(&outside, &tree).unwrap();
    assert_eq!(remove(&mut host, tree.to_str().unwrap()), Got::Done(1));
    assert!(outside.join("precious").exists());
    let root = remove(&mut host, "/tmp/..");
    assert!(
        matches!(root, Got::Error(ErrorCode::InvalidArgument, ..)),
        "{root:?}"
    );
}

#[test]
fn more_walks_than_there_may_be_wait_for_their_turn() {
    let mut host = Host::new();
    let list = |host: &mut Host, path: &str, depth| {
        let path = path.as_bytes();
        host.open(&Request::ListDir { path, depth })
    };
    let stalled: Vec<_> = (0..16).map(|_| list(&mut host, "/usr", 64)).collect();
    host.stalled.clone_from(&stalled);
    for &stream in &stalled {
        assert!(matches!(host.next(stream), Got::Data(..)));
    }
    let waiting: Vec<_> = (0..184).map(|_| list(&mut host, "/etc", 1)).collect();
    let gone = list(&mut host, "/no/such/folder", 1);
    // They wait, and others do not.
    assert_eq!(host.run("echo ok").stdout(), "ok\n");
    let cancel = |host: &mut Host, stream| {
        let (code, message) = (wire::ResetCode::Cancelled, "");
        host.send(stream, &Message::Reset { code, message });
    };
    cancel(&mut host, waiting[3]);
    for &stream in &stalled {
        cancel(&mut host, stream);
    }
    for &stream in waiting.iter().filter(|&&stream| stream != waiting[3]) {
        let end = host.all(stream).end;
        assert!(matches!(end, Some(Got::Done(n)) if n > 10), "{end:?}");
    }
    assert_eq!(host.all(gone).error(), ErrorCode::NotFound);
    assert!(!host.list("/etc", 1).is_empty());
}
