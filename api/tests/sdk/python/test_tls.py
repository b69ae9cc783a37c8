"""A domain and a key are all that the SDK is told: https and host names, with a certificate that is not public."""

import os
import subprocess
import sys

import pytest

DOMAIN = os.environ.get("HATCHERY_TLS_DOMAIN", "")
ROOT = os.environ.get("HATCHERY_TLS_ROOT", "")

pytestmark = pytest.mark.skipif(not DOMAIN, reason="HATCHERY_TLS_DOMAIN is not set: no TLS to try")

# What a user would write. The server's page is fetched by the SDK's own client, which resolves names below localhost.
PROGRAM = """
import time

import e2b
import pyqwest

sandbox = e2b.Sandbox.create(timeout=120)
port = 20_000 + time.time_ns() % 10_000
assert sandbox.get_host(port) == f"{port}-{sandbox.sandbox_id}.DOMAIN", sandbox.get_host(port)
assert sandbox.is_running()
assert sandbox.commands.run("echo hello").stdout == "hello\\n"
text = "over TLS " * 100_000
sandbox.files.write("site/index.html", text)
assert sandbox.files.read("site/index.html") == text
server = f"exec python3 -m http.server --bind 127.0.0.1 {port}"
sandbox.commands.run(server, background=True, timeout=0, cwd="/home/user/site")
urls = [f"https://{sandbox.get_host(port)}/", sandbox.download_url("site/index.html")]
client = pyqwest.SyncClient()
for url in urls:
    for _ in range(100):
        answer = client.get(url)
        if answer.status == 200:
            break
        time.sleep(0.1)
    assert (answer.status, answer.text()) == (200, text), (url, answer)
listed = e2b.Sandbox.list().next_items()
assert sandbox.sandbox_id in [found.sandbox_id for found in listed]
assert e2b.Sandbox.connect(sandbox.sandbox_id).commands.run("pwd").stdout == "/home/user\\n"
sandbox.kill()
print("all over", "DOMAIN")
"""


def test_a_domain_and_a_key_are_enough():
    names = ("E2B_", "HATCHERY_", "SSL_CERT_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    environment |= {"E2B_DOMAIN": DOMAIN, "E2B_API_KEY": os.environ["E2B_API_KEY"], "SSL_CERT_FILE": ROOT}
    program = PROGRAM.replace("DOMAIN", DOMAIN)
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ran.stdout == f"all over {DOMAIN}\n", ran.stderr
