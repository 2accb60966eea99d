"""API keys and idempotency keys."""

import pytest

from service import idempotency, keys
from service.database import Database
from service.errors import Conflict, Invalid, NotFound


def test_a_key_is_known_by_its_secret_until_it_is_revoked(database: Database) -> None:
    with database.transaction() as s:
        key, secret = keys.create(s, "ci", ["edit", "predict"])
        assert secret not in repr(key.__dict__)
        actor = keys.authenticate(s, secret)
        assert actor is not None and actor.may("edit") and not actor.may("promote")
        assert keys.authenticate(s, secret + "x") is None
        keys.revoke(s, key.id)
        assert keys.authenticate(s, secret) is None
        with pytest.raises(NotFound):
            keys.revoke(s, key.id)


def test_admin_may_do_everything_and_unknown_scopes_are_refused(database: Database) -> None:
    with database.transaction() as s:
        _, secret = keys.create(s, "root", ["admin"])
        actor = keys.authenticate(s, secret)
        assert actor is not None and all(actor.may(scope) for scope in keys.SCOPES)
        for scopes in ([], ["fly"]):
            with pytest.raises(Invalid):
                keys.create(s, "bad", scopes)


def test_the_first_answer_is_given_again(database: Database) -> None:
    with database.transaction() as s:
        assert idempotency.begin(s, "me", "k", "h") is None
        idempotency.finish(s, "me", "k", "h", 202, {"id": "job_1"}, {"Location": "/jobs/job_1"})
    with database.transaction() as s:
        replay = idempotency.begin(s, "me", "k", "h")
        assert replay is not None and replay.response == {"id": "job_1"}
        assert idempotency.begin(s, "you", "k", "h") is None
        with pytest.raises(Invalid, match="another request"):
            idempotency.begin(s, "me", "k", "other")


def test_a_key_whose_first_request_still_runs_is_a_conflict(database: Database) -> None:
    with database.transaction() as s:
        assert idempotency.begin(s, "me", "k", "h") is None
        with pytest.raises(Conflict, match="still running"), database.transaction() as other:
            idempotency.begin(other, "me", "k", "h")


def test_a_request_that_failed_leaves_its_key_free(database: Database) -> None:
    with pytest.raises(RuntimeError), database.transaction() as s:
        idempotency.begin(s, "me", "k", "h")
        idempotency.finish(s, "me", "k", "h", 202, {}, {})
        raise RuntimeError
    with database.transaction() as s:
        assert idempotency.begin(s, "me", "k", "h") is None
