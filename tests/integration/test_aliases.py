"""Promotion, rollback and history, against a real PostgreSQL."""

import threading

import pytest
from sqlalchemy import text

from service import aliases, jobs, leases, versions
from service.database import Database
from service.errors import Conflict, Invalid, NotFound, PreconditionFailed
from service.leases import Claim
from service.tables import AliasMove, Model, Version
from tests.support.records import add_job, add_model, publish


def scoring_claim(database: Database, model: Model) -> Claim:
    """A job whose candidate is being scored."""
    with database.transaction() as s:
        add_job(s, model)
        editing = leases.claim(s, "edit", "w", 30)
        assert editing is not None
        publish(s, editing)
        scoring = leases.claim(s, "score", "w", 30)
        assert scoring is not None
        return scoring


def promoted(database: Database, model: Model) -> str:
    claim = scoring_claim(database, model)
    with database.transaction() as s:
        assert aliases.promote(s, claim, actor="gate")
        leases.succeed(s, claim, promoted=True)
    assert claim.candidate_version_id is not None
    return claim.candidate_version_id


def production(database: Database, model: Model) -> str:
    with database.transaction() as s:
        return versions.resolve(s, model.name)[1].id


@pytest.fixture
def model(database: Database) -> Model:
    with database.transaction() as s:
        return add_model(s)


def test_promotion_moves_production_and_both_states_and_one_line_of_history(
    database: Database, model: Model
) -> None:
    root = production(database, model)
    new = promoted(database, model)
    with database.transaction() as s:
        assert s.get_one(Version, root).state == "superseded"
        assert s.get_one(Version, new).state == "production"
        move = aliases.history(s, model).items[0]
        assert (move.kind, move.from_version_id, move.to_version_id, move.generation) == (
            "promote",
            root,
            new,
            2,
        )


def test_a_candidate_is_not_promoted_over_a_version_it_was_not_compared_with(
    database: Database, model: Model
) -> None:
    root = production(database, model)
    promoted(database, model)
    claim = scoring_claim(database, model)
    with database.transaction() as s:
        aliases.rollback(s, model, to=None, actor="t", reason=None)
    with database.transaction() as s:
        assert not aliases.promote(s, claim, actor="gate")
    assert production(database, model) == root


def test_two_rollbacks_go_two_versions_back(database: Database, model: Model) -> None:
    root = production(database, model)
    first, second = promoted(database, model), promoted(database, model)
    assert production(database, model) == second
    seen = []
    for _ in range(2):
        with database.transaction() as s:
            seen.append(aliases.rollback(s, model, to=None, actor="t", reason="bad")[1].id)
    assert seen == [first, root]
    with pytest.raises(Conflict, match="nothing to roll back"), database.transaction() as s:
        aliases.rollback(s, model, to=None, actor="t", reason=None)


def test_a_rollback_can_name_its_target_and_go_forward_again(database: Database, model: Model) -> None:
    root, new = production(database, model), promoted(database, model)
    for target in (root, new):
        with database.transaction() as s:
            aliases.rollback(s, model, to=target, actor="t", reason=None)
        assert production(database, model) == target


def test_a_version_put_back_by_mistake_is_taken_back(database: Database, model: Model) -> None:
    root, first = production(database, model), promoted(database, model)
    promoted(database, model)
    third = promoted(database, model)
    for mistake in (first, root):
        with database.transaction() as s:
            aliases.set_alias(s, model, "production", mistake, actor="t")
        with database.transaction() as s:
            assert aliases.rollback(s, model, to=None, actor="t", reason="oops")[1].id == third


def test_after_a_rollback_to_a_named_version_the_next_goes_to_what_was_before_that(
    database: Database, model: Model
) -> None:
    root, first = production(database, model), promoted(database, model)
    for _ in range(2):
        promoted(database, model)
    with database.transaction() as s:
        aliases.rollback(s, model, to=first, actor="t", reason="bad")
    with database.transaction() as s:
        assert aliases.rollback(s, model, to=None, actor="t", reason="worse")[1].id == root


def test_the_history_says_that_a_gate_was_loosened(database: Database, model: Model) -> None:
    with database.transaction() as s:
        add_job(s, model, request={"gate": {"margin": 0.5, "probes": 600}})
        editing = leases.claim(s, "edit", "w", 30)
        assert editing is not None
        publish(s, editing)
        scoring = leases.claim(s, "score", "w", 30)
        assert scoring is not None
        assert aliases.promote(s, scoring, actor="gate")
        reason = aliases.history(s, model).items[0].reason
    assert reason == "The candidate passed the gate. It was loosened: margin 0.5."


def test_a_refused_version_serves_only_by_force_with_a_reason(database: Database, model: Model) -> None:
    claim = scoring_claim(database, model)
    with database.transaction() as s:
        leases.fail(s, claim, "regression_gate", "lost too much")
    refused = claim.candidate_version_id
    assert refused is not None
    with pytest.raises(Conflict, match="no gate has passed"), database.transaction() as s:
        aliases.set_alias(s, model, "production", refused, actor="t")
    with pytest.raises(Invalid, match="reason"), database.transaction() as s:
        aliases.set_alias(s, model, "production", refused, actor="t", force=True)
    with database.transaction() as s:
        aliases.set_alias(s, model, "production", refused, actor="t", force=True, reason="we know")
        assert aliases.history(s, model).items[0].reason == "we know"
        assert s.get_one(Version, refused).state == "production"


def test_of_sixteen_conditional_moves_of_one_generation_one_succeeds(
    database: Database, model: Model
) -> None:
    root, new = production(database, model), promoted(database, model)
    with database.transaction() as s:
        generation = aliases.set_alias(s, model, "canary", root, actor="t").generation
    outcomes: list[str] = []

    def move() -> None:
        try:
            with database.transaction() as s:
                aliases.set_alias(s, model, "canary", new, actor="t", if_generation=generation)
            outcomes.append("moved")
        except PreconditionFailed:
            outcomes.append("refused")

    threads = [threading.Thread(target=move) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["moved"] + ["refused"] * 15


def test_history_can_not_be_rewritten(database: Database, model: Model) -> None:
    for statement in ("update alias_moves set reason = 'x'", "delete from alias_moves"):
        with pytest.raises(Exception, match="append-only"), database.transaction() as s:
            s.execute(text(statement))
    with database.transaction() as s:
        assert s.query(AliasMove).count() == 1


MOVE = """
insert into alias_moves (model_id, alias, kind, to_version_id, generation, actor)
select id, 'production', 'set', :v, :generation, 'somebody' from models
"""
SET = "update aliases set version_id = :v, generation = generation + 1 where name = 'production'"


@pytest.mark.parametrize(
    "statement",
    [
        "update aliases set version_id = :v",
        SET,
        "update aliases set generation = generation + 1",
        "update aliases set name = 'canary'",
        "delete from aliases",
        "insert into aliases (model_id, name, version_id, generation) select id, 'canary', :v, 1 from models",
        MOVE,
    ],
)
def test_no_alias_moves_without_its_line_of_history_nor_is_a_line_written_without_a_move(
    database: Database, model: Model, statement: str
) -> None:
    promoted(database, model)
    before = production(database, model)
    with pytest.raises(Exception, match="not where its history says"), database.transaction() as s:
        s.execute(text(statement), {"v": model.root_version_id, "generation": 3})
    assert production(database, model) == before


@pytest.mark.parametrize("statements", [(MOVE, SET), (SET, MOVE)])
def test_a_move_by_hand_with_its_line_is_a_move_whichever_is_written_first(
    database: Database, model: Model, statements: tuple[str, ...]
) -> None:
    promoted(database, model)
    with database.transaction() as s:
        for statement in statements:
            s.execute(text(statement), {"v": model.root_version_id, "generation": 3})
    assert production(database, model) == model.root_version_id


def test_an_alias_may_move_more_than_once_in_a_transaction(database: Database, model: Model) -> None:
    root, new = production(database, model), promoted(database, model)
    with database.transaction() as s:
        for version in (root, new, root):
            aliases.set_alias(s, model, "canary", version, actor="t")
        aliases.delete(s, model, "canary", actor="t")
    with database.transaction() as s:
        assert [alias.name for alias in aliases.list_aliases(s, model)] == ["production"]


def test_a_deleted_alias_comes_back_at_a_higher_generation(database: Database, model: Model) -> None:
    root = production(database, model)
    with database.transaction() as s:
        aliases.set_alias(s, model, "canary", root, actor="t")
        aliases.delete(s, model, "canary", actor="t")
    with database.transaction() as s:
        assert aliases.set_alias(s, model, "canary", root, actor="t").generation == 3
        with pytest.raises(Conflict):
            aliases.delete(s, model, "production", actor="t")


def test_a_reference_names_a_version_or_nothing(database: Database, model: Model) -> None:
    root = production(database, model)
    with database.transaction() as s:
        assert versions.resolve(s, "toy")[1].id == root
        assert versions.resolve(s, "toy@production")[1].id == root
        assert versions.resolve(s, f"toy@{root}")[1].id == root
        for unknown in ("toi", "toy@canary", "toy@ver_" + "0" * 32):
            with pytest.raises(NotFound):
                versions.resolve(s, unknown)


def test_a_quarantined_version_is_never_rolled_back_to(database: Database, model: Model) -> None:
    root = production(database, model)
    promoted(database, model)
    with database.transaction() as s:
        versions.quarantine(s, root)
    with pytest.raises(Conflict, match="quarantined"), database.transaction() as s:
        aliases.rollback(s, model, to=None, actor="t", reason=None)


def test_a_new_edit_supersedes_the_earlier_one_of_the_same_fact(database: Database, model: Model) -> None:
    with database.transaction() as s:
        first = add_job(s, model)
        claim = leases.claim(s, "edit", "w", 30)
        assert claim is not None
        brought = jobs.edits_of(s, first.id)
        version = publish(s, claim, [edit.id for edit in brought])
        again = add_job(s, model)
        kept, superseded = versions.next_ledger(s, version.id, jobs.edits_of(s, again.id))
    assert kept == [] and [edit.id for edit in superseded] == [edit.id for edit in brought]
