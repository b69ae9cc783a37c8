from e2b import ALL_TRAFFIC, Sandbox

# Nothing is reached but what these two names stand for.
sandbox = Sandbox.create(
    network={"deny_out": [ALL_TRAFFIC], "allow_out": ["pypi.org", "files.pythonhosted.org"]}
)


def reached(url):
    command = f"curl -sS -o /dev/null --max-time 20 {url} 2>&1 && echo reached"
    return sandbox.commands.run(command + " || true").stdout.strip()


print("pypi.org:", reached("https://pypi.org/simple/six/"))
print("example.com:", reached("https://example.com/"))

# From one moment to the next everything, but for private addresses, those of the host among them.
sandbox.update_network({"allow_out": [], "deny_out": []})
print("example.com:", reached("https://example.com/"))
print("metadata:", reached("http://169.254.169.254/"))
sandbox.kill()
