from e2b import ALL_TRAFFIC, Sandbox

# Nothing is reached but what this name stands for, and the names below it.
sandbox = Sandbox.create(
    network={"deny_out": [ALL_TRAFFIC], "allow_out": ["example.com", "*.example.com"]}
)


def reached(name):
    command = f"curl -sS -o /dev/null --max-time 20 https://{name}/ 2>&1 && echo reached"
    return sandbox.commands.run(command + " || true").stdout.strip()


print("example.com:", reached("example.com"))
print("example.org:", reached("example.org"))

# From one moment to the next everything, but for private addresses, those of the host among them.
sandbox.update_network({"allow_out": [], "deny_out": []})
print("example.org:", reached("example.org"))
print("metadata:", reached("169.254.169.254"))
sandbox.kill()
