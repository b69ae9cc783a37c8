import json
import os
import urllib.request

from e2b import Sandbox


def call(method, path, body=None):
    data = json.dumps(body).encode() if body is not None else None
    headers = {"X-API-KEY": os.environ["E2B_API_KEY"], "Content-Type": "application/json"}
    url = os.environ["E2B_API_URL"] + path
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=600) as answer:
        return [json.loads(line) for line in answer]


sandbox = Sandbox.create(timeout=300)
path = f"/sandboxes/{sandbox.sandbox_id}"
call("POST", path + "/checkpoints", {"name": "clean"})
sandbox.commands.run("touch tried-this")
call("POST", path + "/checkpoints", {"name": "tried"})
call("POST", path + "/reset", {"checkpoint": "clean"})  # and it goes on from there
children = call("POST", path + "/fork", {"checkpoint": "tried", "count": 3, "timeout": 300})
(tree,) = call("GET", path + "/checkpoints")
print([node["name"] for node in tree["checkpoints"]], tree["bytes"], "bytes")

*lines, last = call("POST", "/sandboxes:batch", {"templateID": "base", "count": 5, "timeout": 300})
print(last["summary"])

found = children[0] + [line for line in lines if "sandbox" in line]
for sandbox_id in [sandbox.sandbox_id, *(one["sandbox"]["sandboxID"] for one in found)]:
    Sandbox.kill(sandbox_id)
