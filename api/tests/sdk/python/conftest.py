"""Fixtures: one sandbox shared by the tests that leave it as it was, a fresh one for the others."""

import pytest
import support

SHARED_ENV = {"LAYER": "sandbox", "ONLY_SANDBOX": "yes"}
_shared = []


def pytest_collection_modifyitems(items):
    host = pytest.mark.skip(reason="HATCHERY_HOST_CMD is not set: cannot look at the server's host")
    native = pytest.mark.skip(reason="the agent runs natively: no virtual machine to try this on")
    for item in items:
        needs_host = item.get_closest_marker("fault") or item.get_closest_marker("leaks")
        if needs_host and not support.HOST_CMD:
            item.add_marker(host)
        if item.get_closest_marker("vm") and support.NATIVE:
            item.add_marker(native)


@pytest.fixture
def box():
    """The shared sandbox; made anew if a test has broken it."""
    if _shared and not _shared[0].is_running():
        _shared.clear()
    if not _shared:
        _shared.append(support.create(envs=SHARED_ENV, metadata={"suite": "shared"}, timeout=3600))
    return _shared[0]


@pytest.fixture
def fresh():
    """A sandbox of the test's own, killed afterwards."""
    sandbox = support.create()
    yield sandbox
    sandbox.kill()


@pytest.fixture
def folder(box, request):
    """An empty folder in the shared sandbox."""
    path = f"/tmp/{request.node.name.split('[')[0]}"
    box.files.remove(path)
    box.files.make_dir(path)
    return path


def pytest_sessionfinish():
    for sandbox in _shared:
        sandbox.kill()
