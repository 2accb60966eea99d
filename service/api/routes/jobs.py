"""GET /jobs…: polling, long-polling, events, reports; and cancelling."""

import re
import time
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy.orm import Session

from service import events, jobs, models, reports, reverts
from service.api.body import StrictRoute
from service.api.dependencies import After, Editor, Limit, OnceOnly, Outcome, Parts, PartsOf, Reader
from service.api.schemas.common import ListOf
from service.api.schemas.jobs import Events, JobOut, ReportOut, RevertIn, event_out, job_out
from service.errors import Conflict, Invalid, NotFound
from service.tables import Job, Model, Status

router = APIRouter(tags=["jobs"], route_class=StrictRoute)

POLL_SECONDS = 0.2
KEEP_ALIVE_SECONDS = 10.0
STREAM = "text/event-stream"
Seq = Annotated[int, Query(ge=0, lt=2**31, description="The number after which to begin.")]


@router.get("/jobs", summary="List jobs, newest first")
def list_jobs(
    parts: PartsOf,
    _: Reader,
    model: Annotated[str | None, Query(max_length=200)] = None,
    status: Annotated[Status | None, Query()] = None,
    after: After = None,
    limit: Limit = 20,
) -> ListOf[JobOut]:
    with parts.database.transaction() as s:
        model_id = None if model is None else models.get(s, model).id
        page = jobs.list_jobs(s, model_id=model_id, status=status, after=after, limit=limit)
        return ListOf[JobOut](data=[_out(s, job) for job in page.items], has_more=page.has_more)


@router.get("/jobs/{job}", summary="Poll a job; with `Prefer: wait=30` until it has ended, or so long")
async def get_job(
    job: str,
    request: Request,
    response: Response,
    parts: PartsOf,
    _: Reader,
    prefer: Annotated[str | None, Header(max_length=200)] = None,
) -> JobOut:
    wait = min(_wait(prefer), parts.settings.long_poll_max_seconds)
    end = time.monotonic() + wait
    found = await anyio.to_thread.run_sync(_read, parts, job)
    while found.status not in jobs.FINAL and time.monotonic() < end and not await request.is_disconnected():
        await anyio.sleep(POLL_SECONDS)
        found = await anyio.to_thread.run_sync(_read, parts, job)
    if wait > 0:
        response.headers["Preference-Applied"] = f"wait={wait:g}"
    return found


@router.post("/jobs/{job}/cancel", summary="Cancel a job that has not ended", response_model=JobOut)
def cancel(job: str, parts: PartsOf, who: Editor, once: OnceOnly) -> JSONResponse:
    with parts.database.transaction() as s:
        return once.carry_out(s, who, lambda: Outcome(200, _out(s, jobs.request_cancel(s, job)), {}))


@router.post(
    "/jobs/{job}/revert",
    summary="Rebuild the line without a job's batch, as a new job",
    status_code=202,
    response_model=JobOut,
)
def revert(
    job: str, parts: PartsOf, who: Editor, once: OnceOnly, body: RevertIn | None = None
) -> JSONResponse:
    asked = body or RevertIn()
    with parts.database.transaction() as s:

        def act() -> Outcome:
            made = reverts.create(
                s,
                job,
                promotion=asked.promotion,
                metadata=asked.metadata,
                reason=asked.reason,
                actor=who.id,
                max_queued=parts.settings.max_queued_jobs,
            )
            return Outcome(202, _out(s, made), {"Location": f"/jobs/{made.id}"})

        response = once.carry_out(s, who, act)
    parts.doorbell.ring("edit")
    return response


@router.get("/jobs/{job}/report", summary="Each edit and each probe before and after, and the verdict")
def report(job: str, parts: PartsOf, _: Reader) -> ReportOut:
    with parts.database.transaction() as s:
        found = jobs.get(s, job)
        try:
            return ReportOut.model_validate(reports.get(s, job))
        except NotFound:
            raise Conflict(
                f"The job is {found.status} and has no report: it is written once the candidate is scored.",
                code="no_report",
            ) from None


@router.get(
    "/jobs/{job}/events",
    summary="What happened to a job, numbered; as a stream with `Accept: text/event-stream`",
    response_model=Events,
    responses={200: {"content": {STREAM: {"schema": {"type": "string"}}}}},
)
async def list_events(
    job: str,
    request: Request,
    parts: PartsOf,
    _: Reader,
    after: Seq = 0,
    limit: Limit = 100,
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
) -> Response:
    if STREAM in request.headers.get("accept", ""):
        if last_event_id is not None:
            after = _seq(last_event_id)
        await anyio.to_thread.run_sync(_read, parts, job)  # 404 before the stream begins
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_stream(parts, job, after), 200, headers, STREAM)
    found, _ended = await anyio.to_thread.run_sync(_events, parts, job, after, limit)
    return JSONResponse(found.model_dump(mode="json"))


async def _stream(parts: Parts, job: str, after: int) -> AsyncIterator[str]:
    """Events as they come, until the job's last. A comment now and then shows that we live."""
    spoke = time.monotonic()
    while True:
        found, ended = await anyio.to_thread.run_sync(_events, parts, job, after, 100)
        for event in found.data:
            after = event.id
            yield f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
            spoke = time.monotonic()
        if found.has_more:
            continue
        if ended:
            return
        if time.monotonic() - spoke >= KEEP_ALIVE_SECONDS:
            yield ": still here\n\n"
            spoke = time.monotonic()
        await anyio.sleep(POLL_SECONDS)


def _events(parts: Parts, job: str, after: int, limit: int) -> tuple[Events, bool]:
    """Events after a number, and whether there will be no others."""
    with parts.database.transaction() as s:
        # The status first: its last event is written in the same transaction.
        ended = jobs.get(s, job).status in jobs.FINAL
        rows = events.after(s, job, after, limit + 1)
    data = [event_out(row) for row in rows[:limit]]
    return Events(data=data, has_more=len(rows) > limit), ended


def _read(parts: Parts, job: str) -> JobOut:
    with parts.database.transaction() as s:
        return _out(s, jobs.get(s, job))


def _out(s: Session, job: Job) -> JobOut:
    return job_out(job, s.get_one(Model, job.model_id).name)


def _wait(prefer: str | None) -> float:
    """Seconds of `Prefer: wait=…` (RFC 7240); anything else in it is not for us."""
    found = re.search(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])", prefer or "")
    return float(found.group(1)) if found else 0.0


def _seq(last_event_id: str) -> int:
    if not last_event_id.isdecimal() or len(last_event_id) > 9:
        raise Invalid("Last-Event-ID is the number of the last event you saw.", param="Last-Event-ID")
    return int(last_event_id)
