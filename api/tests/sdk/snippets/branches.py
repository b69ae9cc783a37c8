from e2b import Sandbox

first = Sandbox.create()
first.commands.run("for i in $(seq 100000); do echo $i > n; sleep 0.1; done", background=True)
first.commands.run("until test -s n; do sleep 0.1; done")

children = first.fork(count=3, timeout=300)  # they count on, each for itself
snapshot = first.create_snapshot()
first.pause()
other = Sandbox.create(template=snapshot.snapshot_id)
first = Sandbox.connect(first.sandbox_id)  # it counts on

for sandbox in [first, other, *children]:
    print(sandbox.sandbox_id, "counts", sandbox.commands.run("cat n").stdout, end="")
    sandbox.kill()
Sandbox.delete_snapshot(snapshot.snapshot_id)
