"""What became of a job that was disturbed."""

from service import jobs
from tests.support.toy_stack import Json, ToyStack


def assert_ended_as_undisturbed(toy: ToyStack, job_id: str, undisturbed: Json) -> None:
    """As without a kill, to the last bit: one end, one version, the same weights, in production."""
    job = toy.ended(job_id)
    assert (job["status"], job["promoted"], job["error"]) == ("succeeded", True, None)
    happened = toy.events(job_id)
    assert [event.seq for event in happened] == list(range(1, len(happened) + 1))
    assert [event.type for event in happened if event.type in jobs.FINAL] == ["succeeded"]
    assert happened[-1].type == "succeeded"
    (version,) = toy.versions_of(job_id)
    assert (version.id, version.state) == (job["candidate_version"], "production")
    assert version.overlay_digest == undisturbed["overlay_digest"]
    assert toy.production() == version.id
