import hashlib
import os

from e2b import CommandExitException, Sandbox, TimeoutException

sandbox = Sandbox.create()

# Run a command; stream the output of another while it runs.
print(sandbox.commands.run("echo Hello from $(uname -sr)").stdout, end="")
sandbox.commands.run(
    "for i in 1 2 3; do echo line $i; sleep 0.2; done",
    on_stdout=lambda text: print("streamed:", text, end=""),
)

# Pass standard input.
cat = sandbox.commands.run("tr a-z A-Z", background=True, stdin=True)
cat.send_stdin("shouted\n")
cat.close_stdin()
print(cat.wait().stdout, end="")

# Upload and download 100 MiB.
data = os.urandom(100 << 20)
sandbox.files.write("data.bin", data, request_timeout=600)
copy = sandbox.files.read("data.bin", format="bytes", request_timeout=600)
checksum = hashlib.sha256(data).hexdigest()
assert hashlib.sha256(copy).hexdigest() == checksum
print("100 MiB there and back, sha256", checksum)

# A failing command, a command over its time, a sandbox that is gone.
try:
    sandbox.commands.run("echo oh no >&2; exit 3")
except CommandExitException as error:
    print("exit code", error.exit_code, "stderr", error.stderr, end="")
try:
    sandbox.commands.run("sleep 60", timeout=2)
except TimeoutException:
    print("timed out, as asked")
sandbox.kill()
try:
    sandbox.commands.run("true")
except TimeoutException as error:
    print("killed:", type(error).__name__)
