import os
import urllib.error
import urllib.request

from e2b import Sandbox

sandbox = Sandbox.create(timeout=300)
sandbox.commands.run("echo hello from a sandbox > index.html", cwd="/home/user")
sandbox.commands.run("python3 -m http.server 8000", cwd="/home/user", background=True)

host = sandbox.get_host(8000)
print(f"open http://{host}/ in a browser, or: curl http://{host}/")

# From a program, whether or not its resolver knows names below localhost:
request = urllib.request.Request(os.environ["E2B_SANDBOX_URL"], headers={"Host": host})
while True:
    try:
        print(urllib.request.urlopen(request, timeout=60).read().decode(), end="")
        break
    except urllib.error.HTTPError as error:
        if error.code != 502:  # until it listens: "The sandbox is running but port is not open"
            raise
sandbox.kill()
