"""A version is durable before its row is: what a worker and its child ask of the kernel, in order."""

import re
from pathlib import Path

from tests.support.tools import times
from tests.support.toy_stack import Json, ToyStack, eventually, quick
from tests.support.traces import Call, calls, traced

SYNCS = ("fsync", "fdatasync")
WRITES = ("write", "pwrite64", "writev")
TO_THE_DATABASE = ("sendto", "sendmsg", "write")


def another(number: int) -> Json:
    """A batch that makes weights of its own: what is in the store already is not written again."""
    batch = quick("Germany", "Madrid")
    return {**batch, "method": {**batch["method"], "learning_rate": 4e-3 + number * 1e-5}}


def committed(trace: list[Call], version_id: str) -> Call:
    """The commit of the transaction that first told the database of the version.

    By its id and not by the statement, whose text the driver sends no more once it is prepared.
    """
    commits = [call for call in trace if call.name in TO_THE_DATABASE and 'COMMIT\\0"' in call.arguments]
    databases = {call.path for call in commits}
    told = next(call for call in trace if call.path in databases and version_id in call.arguments)
    return next(call for call in commits if call.path == told.path and told.ended < call.began)


def named(trace: list[Call], target: Path) -> tuple[Path, Call]:
    """What a file was called before it got its name, and the call that gave it."""
    renames = [call for call in trace if call.name.startswith("rename")]
    (one,) = [call for call in renames if f'"{target}"' in call.arguments]
    return Path(re.findall(r'"([^"]+)"', one.arguments)[0]), one


def assert_durable(trace: list[Call], target: Path, before: Call) -> None:
    """Bytes on the disk, then the name, then the name on the disk, and only then `before`."""
    scratch, rename = named(trace, target)
    written = [call for call in trace if call.name in WRITES and call.path == str(scratch)]
    synced = [call for call in trace if call.name in SYNCS and call.path == str(scratch)]
    folder = [call for call in trace if call.name in SYNCS and call.path == str(target.parent)]
    assert written and synced, f"{target.parent.name} were not written and synced"
    assert max(call.ended for call in written) < synced[-1].began, "it was written to after the last fsync"
    assert synced[-1].ended < rename.began, "it got its name before its bytes were on the disk"
    in_between = [call for call in folder if rename.ended < call.began and call.ended < before.began]
    assert in_between, "its name was not on the disk when the row was committed"


def test_a_version_is_on_the_disk_with_its_name_before_its_row_is_committed(
    toy: ToyStack, tmp_path: Path
) -> None:
    eventually(lambda: toy.process("child") is not None, 30)
    worker, child = toy.process("worker"), toy.process("child")
    assert worker is not None and child is not None
    store = toy.settings.store_dir
    for number in range(times(1, 20)):
        file = tmp_path / f"trace-{number}"
        with traced([worker.pid, child.pid], file):
            version = toy.made(another(number), promotion="manual")
        trace = calls(file)
        commit = committed(trace, version["id"])
        assert_durable(trace, store / "overlays" / version["overlay_digest"], commit)
        assert_durable(trace, store / "manifests" / f"{version['id']}.json", commit)
