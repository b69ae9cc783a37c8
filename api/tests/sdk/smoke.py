"""The shortest proof that a server works: create, run, write, read, kill, by the published SDK.

Prints one JSON object per step, `{"step", "ms"}`, and exits non-zero at the first step that
does not give what it should. Takes the server from E2B_API_URL, E2B_SANDBOX_URL, E2B_API_KEY.
"""

import json
import sys
import time

import e2b

TEXT = "written by the smoke check\n"


def step(name, action):
    """Runs one step, prints its time, and returns what it gave."""
    start = time.monotonic()
    try:
        result = action()
    except Exception as error:
        print(json.dumps({"step": name, "error": f"{type(error).__name__}: {error}"}), flush=True)
        sys.exit(1)
    print(json.dumps({"step": name, "ms": round((time.monotonic() - start) * 1e3, 1)}), flush=True)
    return result


def expect(what, got, wanted):
    if got != wanted:
        print(json.dumps({"step": what, "error": f"got {got!r}, wanted {wanted!r}"}), flush=True)
        sys.exit(1)


def main():
    sandbox = step("create", lambda: e2b.Sandbox.create(timeout=300, request_timeout=120))
    try:
        ran = step("run", lambda: sandbox.commands.run("echo $((6 * 7)) && id -un", timeout=120))
        expect("run", ran.stdout, "42\nuser\n")
        step("write", lambda: sandbox.files.write("smoke.txt", TEXT))
        expect("read", step("read", lambda: sandbox.files.read("smoke.txt")), TEXT)
    finally:
        killed = step("kill", sandbox.kill)
    expect("kill", killed, True)


main()
