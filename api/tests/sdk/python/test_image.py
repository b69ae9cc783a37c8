"""What a new user finds in a sandbox of `base`: tools, languages, the kernel's features, exit codes."""

import e2b
import pytest
from support import run

# A program, and a call of it that prints what is expected.
TOOLS = {
    "gcc": ("gcc --version | head -1", "gcc "),
    "g++": ("g++ --version | head -1", "g++ "),
    "make": ("make --version | head -1", "GNU Make"),
    "patch": ("patch --version | head -1", "GNU patch"),
    "git": ("git --version", "git version"),
    "jq": ("echo '{\"a\": [1, 2]}' | jq -c .a", "[1,2]\n"),
    "rg": ("echo needle | rg -o eed", "eed\n"),
    "xz": ("echo hello | xz | xz -dc", "hello\n"),
    "xxd": ("printf abc | xxd -p", "616263\n"),
    "tmux": ("tmux -V", "tmux "),
    "rsync": ("mkdir -p /tmp/r && rsync -a /etc/hostname /tmp/r && cat /tmp/r/hostname", "sandbox\n"),
    "sqlite3": ("sqlite3 :memory: 'select 6 * 7'", "42\n"),
    "python": ("python -c 'print(6 * 7)'", "42\n"),
    "npx": ("readlink -f /usr/local/bin/npx", "/usr/local/lib/node_modules/npm/bin/npx-cli.js\n"),
}

C_PROGRAM = r"""
#include <math.h>
#include <stdio.h>
int main(int argc, char **argv) { printf("%.3f\n", sqrt(argc)); return 7; }
"""

CPP_PROGRAM = r"""
#include <iostream>
#include <vector>
int main() { std::vector<int> v{1, 2, 3}; std::cout << v.size() << std::endl; }
"""

EXTENSION = r"""
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "answering", "", -1, methods};
PyMODINIT_FUNC PyInit_answering(void) { return PyModule_Create(&module); }
"""

SETUP = """
from setuptools import Extension, setup
setup(name="answering", version="1.0", ext_modules=[Extension("answering", ["answering.c"])],
      scripts=["say-answer"])
"""

PACKAGE = """
{"name": "answering", "version": "1.0.0", "main": "index.js", "bin": {"answering": "index.js"}}
"""


@pytest.mark.vm
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_is_there_and_runs(box, tool):
    call, expected = TOOLS[tool]
    assert run(box, f"command -v {tool} >/dev/null && {call}").stdout.startswith(expected)


@pytest.mark.vm
def test_node_is_of_a_line_that_is_maintained(box):
    version = run(box, "node --version").stdout
    assert int(version.strip("v\n").split(".")[0]) >= 20
    assert run(box, "node -p 'typeof fetch, [1, 2].at(-1)'").stdout == "2\n"


@pytest.mark.vm
def test_npm_installs_as_user(box, folder):
    box.files.write(f"{folder}/package/package.json", PACKAGE)
    box.files.write(f"{folder}/package/index.js", "#!/usr/bin/env node\nconsole.log(42)\n")
    run(box, f"cd {folder} && tar czf it.tgz package && npm install --offline --global ./it.tgz")
    assert run(box, "answering").stdout == "42\n"
    run(box, "rm -r /usr/local/bin/answering /usr/local/lib/node_modules/answering")


@pytest.mark.vm
def test_c_and_cpp_compile_and_run(box, folder):
    box.files.write(f"{folder}/root.c", C_PROGRAM)
    box.files.write(f"{folder}/many.cpp", CPP_PROGRAM)
    with pytest.raises(e2b.CommandExitException) as ended:
        run(box, f"cd {folder} && gcc -O2 -Wall -o root root.c -lm && ./root a b c")
    assert (ended.value.stdout, ended.value.exit_code) == ("2.000\n", 7)
    # By make's own rules.
    assert run(box, f"cd {folder} && make many >&2 && ./many").stdout == "3\n"


@pytest.mark.vm
def test_pip_compiles_a_source_and_its_script_is_found(box, folder):
    box.files.write(f"{folder}/setup.py", SETUP)
    box.files.write(f"{folder}/answering.c", EXTENSION)
    box.files.write(f"{folder}/say-answer", "#!/usr/bin/env python3\nimport answering\nprint(answering.answer())\n")
    options = "--no-build-isolation --no-index --disable-pip-version-check --quiet"
    run(box, f"cd {folder} && pip install {options} .")
    assert run(box, "say-answer").stdout == "42\n"


@pytest.mark.vm
def test_tmux_keeps_a_terminal(box):
    run(box, "tmux new-session -d -s kept 'echo ready; cat' && sleep 1")
    run(box, "tmux send-keys -t kept 'grüße' Enter")
    seen = run(box, "sleep 1; tmux capture-pane -p -t kept; tmux kill-server").stdout
    assert "ready" in seen and seen.count("grüße") == 2


def test_the_locale_is_utf8(box):
    assert run(box, "echo $LANG").stdout == "C.UTF-8\n"
    assert run(box, "locale charmap").stdout == "UTF-8\n"
    # The one of the caller wins.
    assert run(box, "echo $LANG", envs={"LANG": "POSIX"}).stdout == "POSIX\n"
    script = "import sys, locale; print(locale.getlocale()[1], sys.stdout.encoding)"
    assert run(box, f"python3 -c '{script}'").stdout == "UTF-8 utf-8\n"


@pytest.mark.vm
def test_the_locale_is_one_file(box):
    # A shell that opens one for each of its twelve categories does six times as many system calls.
    assert "C.utf8" in run(box, "localedef --list-archive").stdout


@pytest.mark.vm
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("set -e; exit 7", 7),
        ("set -e; false; echo not reached", 1),
        ("set -e; exit 0", 0),
        ("set -eu; exit 0", 0),
        ("exit 7", 7),
        ("trap 'exit 9' EXIT; exit 7", 9),
    ],
)
@pytest.mark.parametrize("user", ["user", "root"])
def test_a_command_ends_as_it_says(box, command, code, user):
    if code == 0:
        assert run(box, command, user=user).exit_code == 0
        return
    with pytest.raises(e2b.CommandExitException) as ended:
        run(box, command, user=user)
    assert (ended.value.exit_code, ended.value.stdout, ended.value.stderr) == (code, "", "")


@pytest.mark.vm
def test_an_image_file_is_mounted_by_a_loop_device(fresh):
    make = "truncate -s 8M /root/disk.ext4 && mkfs.ext4 -q -F /root/disk.ext4"
    run(fresh, f"{make} && mount -o loop /root/disk.ext4 /mnt && echo kept > /mnt/file", user="root")
    assert " /mnt ext4 rw" in run(fresh, "grep /mnt /proc/mounts").stdout
    again = "umount /mnt && mount -o loop,ro /root/disk.ext4 /mnt && cat /mnt/file && umount /mnt"
    assert run(fresh, again, user="root").stdout == "kept\n"


@pytest.mark.vm
def test_a_swap_file_is_used(fresh):
    assert len(run(fresh, "cat /proc/swaps").stdout.splitlines()) == 1, "a sandbox begins with none"
    make = "dd if=/dev/zero of=/swap bs=1M count=32 2>&1 && chmod 600 /swap && mkswap /swap"
    run(fresh, f"{make} && swapon /swap", user="root")
    assert run(fresh, "cat /proc/swaps").stdout.splitlines()[1].split()[:2] == ["/swap", "file"]
    assert run(fresh, "swapoff /swap && wc -l < /proc/swaps", user="root").stdout == "1\n"


@pytest.mark.vm
def test_the_kernel_tells_its_configuration(box):
    config = run(box, "zcat /proc/config.gz").stdout
    assert "CONFIG_BLK_DEV_WRITE_MOUNTED=y" in config and "CONFIG_IKCONFIG_PROC=y" in config
