"""Files: write, read, list, stat, move, remove; names, sizes, owners, errors."""

import hashlib
import io
import os
import threading
from datetime import datetime, timedelta, timezone

import e2b
import pytest
from support import BIG_MIB, FileNotFound, patient, run


@pytest.mark.compat
def test_text(box, folder):
    written = box.files.write(f"{folder}/a.txt", "grüße\n")
    assert (written.name, written.path) == ("a.txt", f"{folder}/a.txt")
    assert box.files.read(f"{folder}/a.txt") == "grüße\n"
    assert run(box, f"cat {folder}/a.txt").stdout == "grüße\n"


@pytest.mark.compat
def test_bytes(box, folder):
    content = bytes(range(256)) * 300
    box.files.write(f"{folder}/b", content)
    assert bytes(box.files.read(f"{folder}/b", format="bytes")) == content
    with_stream = b"".join(box.files.read(f"{folder}/b", format="stream"))
    assert with_stream == content


@pytest.mark.compat
def test_an_empty_file(box, folder):
    box.files.write(f"{folder}/empty", "")
    assert box.files.read(f"{folder}/empty") == ""
    assert bytes(box.files.read(f"{folder}/empty", format="bytes")) == b""


@pytest.mark.compat
def test_writing_replaces(box, folder):
    box.files.write(f"{folder}/a", "a long first text")
    box.files.write(f"{folder}/a", "short")
    assert box.files.read(f"{folder}/a") == "short"


def test_a_replaced_file_keeps_its_mode(box, folder):
    box.files.write(f"{folder}/run.sh", "echo 1")
    run(box, f"chmod 755 {folder}/run.sh")
    box.files.write(f"{folder}/run.sh", "echo 2")
    assert run(box, f"{folder}/run.sh").stdout == "2\n"


@pytest.mark.compat
def test_parents_are_made(box, folder):
    box.files.write(f"{folder}/x/y/z.txt", "deep")
    assert run(box, f"stat -c '%U %a' {folder}/x/y").stdout == "user 755\n"
    assert box.files.read(f"{folder}/x/y/z.txt") == "deep"


@pytest.mark.compat
def test_relative_paths_start_at_home(box):
    box.files.write("relative.txt", "r")
    assert box.files.read("/home/user/relative.txt") == "r"
    assert box.files.read("~/relative.txt") == "r"
    box.files.remove("relative.txt")
    assert not box.files.exists("/home/user/relative.txt")


@pytest.mark.compat
@pytest.mark.parametrize("name", ["with space", "ünïcødé", "雪 ❄.txt", "per%41cent", "a+b&c=d;e", "#hash?q"])
def test_odd_names(box, folder, name):
    path = f"{folder}/{name}"
    assert box.files.write(path, name).path == path
    assert box.files.read(path) == name
    assert [entry.name for entry in box.files.list(folder)] == [name]
    assert box.files.get_info(path).path == path
    box.files.rename(path, path + " moved")
    assert not box.files.exists(path)
    box.files.remove(path + " moved")
    assert box.files.list(folder) == []


@pytest.mark.compat
def test_many_files_in_one_call(box, folder):
    files = [{"path": f"{folder}/d{n % 7}/file {n}", "data": f"content {n}\n"} for n in range(300)]
    written = box.files.write_files(files)
    assert [each.path for each in written] == [each["path"] for each in files]
    listing = run(box, f"find {folder} -type f | wc -l; cat {folder}/d*/* | wc -l").stdout
    assert listing.split() == ["300", "300"]
    assert box.files.read(f"{folder}/d3/file 10") == "content 10\n"


@pytest.mark.compat
def test_a_large_file(box, folder):
    content = os.urandom(1 << 20) * BIG_MIB
    wanted = hashlib.sha256(content).hexdigest()
    limit = max(120, patient(60))
    box.files.write(f"{folder}/big", content, request_timeout=limit)
    inside = run(box, f"sha256sum {folder}/big", timeout=limit).stdout.split()[0]
    assert inside == wanted
    back = hashlib.sha256()
    for chunk in box.files.read(f"{folder}/big", format="stream", request_timeout=limit):
        back.update(chunk)
    assert back.hexdigest() == wanted
    box.files.remove(f"{folder}/big")


def test_a_streamed_upload(box, folder):
    content = os.urandom(3_000_001)
    box.files.write(f"{folder}/streamed", io.BytesIO(content))
    assert bytes(box.files.read(f"{folder}/streamed", format="bytes")) == content


def test_a_gzipped_upload_and_download(box, folder):
    content = b"compress me " * 100_000
    box.files.write(f"{folder}/z", content, gzip=True)
    assert run(box, f"wc -c < {folder}/z").stdout.strip() == str(len(content))
    assert bytes(box.files.read(f"{folder}/z", format="bytes", gzip=True)) == content


def test_uploads_at_once(box, folder):
    contents = {f"{folder}/{n}": os.urandom(500_000 + n) for n in range(8)}
    errors = []

    def put(path, content):
        try:
            box.files.write(path, content)
        except Exception as error:  # noqa: BLE001 - reported below
            errors.append(error)

    threads = [threading.Thread(target=put, args=item) for item in contents.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for path, content in contents.items():
        assert bytes(box.files.read(path, format="bytes")) == content


@pytest.mark.compat
def test_list(box, folder):
    box.files.write(f"{folder}/sub/inner.txt", "12345")
    box.files.write(f"{folder}/file.txt", "123")
    entries = {entry.name: entry for entry in box.files.list(folder)}
    assert entries.keys() == {"sub", "file.txt"}
    assert entries["sub"].type == e2b.FileType.DIR
    assert entries["file.txt"].type == e2b.FileType.FILE
    assert entries["file.txt"].path == f"{folder}/file.txt"
    deep = [entry.path for entry in box.files.list(folder, depth=2)]
    assert sorted(deep) == [f"{folder}/file.txt", f"{folder}/sub", f"{folder}/sub/inner.txt"]
    with pytest.raises(FileNotFound):
        box.files.list(f"{folder}/none")
    with pytest.raises(e2b.InvalidArgumentException):
        box.files.list(f"{folder}/file.txt")


def test_a_long_list(box, folder):
    run(box, f"cd {folder} && seq -f 'a-rather-long-name-to-fill-frames-%.0f' 1 2000 | xargs touch")
    assert len(box.files.list(folder)) == 2000


@pytest.mark.compat
def test_info(box, folder):
    box.files.write(f"{folder}/i.txt", "12345")
    info = box.files.get_info(f"{folder}/i.txt")
    assert (info.name, info.path, info.size) == ("i.txt", f"{folder}/i.txt", 5)
    assert info.type == e2b.FileType.FILE
    assert (info.mode, info.permissions) == (0o644, "-rw-r--r--")
    assert (info.owner, info.group) == ("user", "user")
    assert abs(datetime.now(timezone.utc) - info.modified_time) < timedelta(minutes=5)
    directory = box.files.get_info(folder)
    assert (directory.type, directory.permissions) == (e2b.FileType.DIR, "drwxr-xr-x")
    with pytest.raises(FileNotFound):
        box.files.get_info(f"{folder}/none")


def test_a_symbolic_link(box, folder):
    box.files.write(f"{folder}/target", "t")
    run(box, f"ln -s target {folder}/link; ln -s nowhere {folder}/broken")
    info = box.files.get_info(f"{folder}/link")
    assert info.symlink_target == f"{folder}/target"
    assert info.permissions.startswith("L")
    assert box.files.read(f"{folder}/link") == "t"
    box.files.remove(f"{folder}/link")
    assert box.files.exists(f"{folder}/target")


@pytest.mark.compat
def test_exists(box, folder):
    box.files.write(f"{folder}/e", "")
    assert box.files.exists(f"{folder}/e") is True
    assert box.files.exists(folder) is True
    assert box.files.exists(f"{folder}/none") is False


@pytest.mark.compat
def test_rename(box, folder):
    box.files.write(f"{folder}/old", "1")
    moved = box.files.rename(f"{folder}/old", f"{folder}/made/new")
    assert (moved.name, moved.path) == ("new", f"{folder}/made/new")
    assert not box.files.exists(f"{folder}/old")
    box.files.rename(f"{folder}/made", f"{folder}/folder")
    assert box.files.read(f"{folder}/folder/new") == "1"
    with pytest.raises(FileNotFound):
        box.files.rename(f"{folder}/none", f"{folder}/other")


@pytest.mark.compat
def test_remove(box, folder):
    box.files.write(f"{folder}/tree/a/b", "1")
    box.files.remove(f"{folder}/tree")
    assert not box.files.exists(f"{folder}/tree")
    box.files.remove(f"{folder}/tree")


@pytest.mark.compat
def test_make_dir(box, folder):
    assert box.files.make_dir(f"{folder}/one/two") is True
    assert box.files.make_dir(f"{folder}/one/two") is False
    assert run(box, f"stat -c '%U %F' {folder}/one/two").stdout == "user directory\n"
    box.files.write(f"{folder}/file", "")
    with pytest.raises(e2b.InvalidArgumentException):
        box.files.make_dir(f"{folder}/file")


@pytest.mark.compat
def test_what_cannot_be_read_or_written(box, folder):
    with pytest.raises(FileNotFound, match="does not exist"):
        box.files.read(f"{folder}/none")
    with pytest.raises(e2b.InvalidArgumentException):
        box.files.read(folder)
    with pytest.raises(e2b.InvalidArgumentException):
        box.files.write(folder, "x")


@pytest.mark.compat
def test_users(box, folder):
    box.files.write(f"{folder}/roots", "1", user="root")
    owner = box.files.get_info(f"{folder}/roots").owner
    assert owner == "root"
    box.files.write("/root/at-home", "1", user="root")
    assert box.files.read("at-home", user="root") == "1"
    box.files.remove("/root/at-home", user="root")
    with pytest.raises(e2b.AuthenticationException):
        box.files.write(f"{folder}/x", "1", user="nobody-of-that-name")
    with pytest.raises(e2b.AuthenticationException):
        box.files.read(f"{folder}/roots", user="nobody-of-that-name")
    with pytest.raises(e2b.AuthenticationException):
        box.files.list(folder, user="nobody-of-that-name")


@pytest.mark.vm
def test_a_full_disk(fresh):
    run(fresh, "mkdir /mnt/small && mount -t tmpfs -o size=1m,mode=777 none /mnt/small", user="root")
    no_space = getattr(e2b, "NotEnoughSpaceException", e2b.SandboxException)
    with pytest.raises(no_space, match="not enough disk space"):
        fresh.files.write("/mnt/small/too-big", b"x" * (2 << 20))
    assert run(fresh, "echo alive").stdout == "alive\n"


@pytest.mark.vm
def test_a_pipe_or_device_is_no_file(box, folder):
    """Reading a pipe must neither hang the agent nor the client."""
    run(box, f"mkfifo {folder}/pipe")
    with pytest.raises(e2b.SandboxException):
        box.files.read(f"{folder}/pipe", request_timeout=patient(10))
    assert run(box, "echo alive").stdout == "alive\n"
