"""What tells what is asked: the direction by hand, mending, and wordings that it was not told."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from factedit.facts import Edit
from factedit.methods.detectors import Keys, detectors
from factedit.methods.relation_detectors import ELSEWHERE, OTHERS, OWN, SHRUNK, Asked, told_apart
from factedit.questions import QUESTIONS, elsewhere, families, questions
from factedit.recognition import load_wordings
from factedit.relations import Relation, builtin_catalogue


def keys_of(rows: Tensor, owner: int = 0) -> Keys:
    return Keys(rows, torch.full((len(rows),), owner), torch.full((len(rows),), 1 / max(1, len(rows))))


def nobody(width: int) -> Keys:
    return keys_of(torch.empty(0, width))


def test_the_direction_of_a_plain_case_is_the_one_by_hand() -> None:
    # Asked: mean (4, 0), variance 1 and 3 on the diagonal, of mean 2, so that SHRUNK * 2 is added.
    nothing, covariance = torch.empty(0, 2).double(), torch.diag(torch.tensor([1.0, 3.0])).double()
    asked = Asked(nothing, torch.tensor([4.0, 0.0]).double(), covariance)
    own = keys_of(torch.tensor([[4.0, 3.0], [4.0, 3.0]]))
    (found,) = told_apart(asked, torch.eye(2).double(), own, nobody(2), 1)
    # The first coordinate is all of the mean's, which is to say nothing: the second alone is left.
    torch.testing.assert_close(found, torch.tensor([0.0, 1 / 3]).double())
    tilted = Asked(nothing, torch.tensor([4.0, 1.0]).double(), covariance)
    (found,) = told_apart(tilted, torch.eye(2).double(), own, nobody(2), 1)
    first, second = 1 / (1 + 2 * SHRUNK), 1 / (3 + 2 * SHRUNK)
    away = torch.tensor([4 * first, 1 * second])
    share = (4 * 4 * first + 3 * 1 * second) / (4 * 4 * first + 1 * second)
    row = torch.tensor([4 * first, 3 * second]) - share * away
    torch.testing.assert_close(found.float(), row / (row @ torch.tensor([4.0, 3.0])))


def test_it_says_1_of_its_own_and_nothing_of_what_is_asked_in_the_mean() -> None:
    torch.manual_seed(0)
    rows = torch.randn(300, 12) + 5
    asked, own = Asked.of(rows), torch.randn(4, 12) * 0.1 + torch.linspace(4, 7, 12)
    (found,) = told_apart(asked, torch.eye(12).double(), keys_of(own), nobody(12), 1)
    assert float(own.double().mean(0) @ found) == pytest.approx(1, abs=1e-6)
    assert float(rows.double().mean(0) @ found) == pytest.approx(0, abs=1e-6)


def test_what_is_told_of_is_mended() -> None:
    torch.manual_seed(1)
    rows, centre = torch.randn(900, 256), 3 * torch.randn(256)
    stray, other = 0.2 * centre + torch.randn(1, 256), 0.9 * centre + torch.randn(2, 256)
    own = torch.cat([centre + torch.randn(6, 256), stray])
    asked, used = Asked.of(rows), torch.eye(256).double()
    (unmended,) = told_apart(asked, used, keys_of(own[:-1]), nobody(256), 1)
    assert float((other.double() @ unmended).min()) > OTHERS + 0.5
    assert float((stray.double() @ unmended).min()) < OWN - 0.5
    (mended,) = told_apart(asked, used, keys_of(own), keys_of(other), 1)
    assert float((other.double() @ mended).max()) < OTHERS + 0.25
    assert float((own.double() @ mended).min()) > OWN - 0.25
    assert float(asked.mean @ mended) == pytest.approx(0, abs=0.05)


def test_questions_that_ask_for_something_else_are_told_of() -> None:
    torch.manual_seed(4)
    rows, own = torch.randn(300, 64), 3 + torch.randn(2, 4, 64)
    rows[:2] += 2.5  # much like one's own
    asked, used = Asked.of(rows), torch.eye(64).double()
    both = Keys(own.flatten(0, 1), torch.tensor([0] * 4 + [1] * 4), torch.full((8,), 0.25))
    elsewhere = torch.zeros(2, 300, dtype=torch.bool)
    elsewhere[0, :2] = True
    plain = told_apart(asked, used, both, nobody(64), 2)
    first, second = told_apart(asked, used, both, nobody(64), 2, elsewhere)
    assert float((asked.rows[:2] @ plain[0]).min()) > ELSEWHERE + 0.2
    assert float((asked.rows[:2] @ first).max()) < ELSEWHERE + 0.15
    torch.testing.assert_close(second, plain[1])


def test_each_neuron_has_its_own_and_none_may_have_no_others() -> None:
    torch.manual_seed(2)
    asked, used = Asked.of(torch.randn(200, 16)), torch.eye(16).double()
    first, second = torch.randn(3, 16) + 2, torch.randn(3, 16) - 2
    both = Keys(torch.cat([first, second]), torch.tensor([0, 0, 0, 1, 1, 1]), torch.full((6,), 1 / 3))
    found = told_apart(asked, used, both, nobody(16), 2)
    torch.testing.assert_close(found[:1], told_apart(asked, used, keys_of(first), nobody(16), 1))
    torch.testing.assert_close(found[1:], told_apart(asked, used, keys_of(second), nobody(16), 1))
    assert told_apart(asked, used, nobody(16), nobody(16), 0).shape == (0, 16)


def test_it_knows_wordings_that_it_was_not_told_where_one_by_heart_does_not() -> None:
    """Relations are directions, wordings vary about them, and a few names and words vary much more."""
    torch.manual_seed(3)
    width, relations = 256, 40
    meant, loud = torch.randn(relations, width), torch.randn(10, width)

    def asking(which: int, count: int) -> Tensor:
        return meant[which] + torch.randn(count, width) + torch.randn(count, 10) @ loud

    asked = torch.cat([asking(which, 5) for which in range(relations)])
    told, own, unseen = asking(1, 6), asking(0, 6), asking(0, 200)
    others = torch.cat([asking(which, 10) for which in range(2, relations)])
    used = (asked.double().T @ asked.double()) / len(asked)
    (row,) = told_apart(Asked.of(asked), used, keys_of(own), keys_of(told), 1).float()
    (heart,) = detectors(used, keys_of(own), keys_of(told), torch.empty(0, width), 1).float()

    def right(detector: Tensor) -> float:
        """How often an unseen wording says more than another relation's, whatever the threshold."""
        return float((unseen @ detector > (others @ detector)[:, None]).float().mean())

    assert right(row) > 0.95
    assert right(row) > right(heart) + 0.1


def test_questions_are_of_every_relation_in_training_words() -> None:
    found = questions()
    assert len(found) == len(set(found)) == QUESTIONS and found == questions()
    assert not any("{" in text for text in found)
    assert len(load_wordings()) * 2 == QUESTIONS
    assert sorted(families().values()) == sorted([*load_wordings()] * 2)


def test_questions_ask_for_something_else_than_an_edit_that_is_recognised() -> None:
    relations, asked = builtin_catalogue().relations, [*questions(), "The wumpus of France is"]

    def same(edit: Edit) -> set[str | None]:
        apart = elsewhere(asked, edit, relations)
        return {families().get(text) for text, other in zip(asked, apart, strict=True) if not other}

    by_prompt = Edit("1", "Skype", "Oracle", prompt="The developer of Skype is")
    assert same(by_prompt) == same(Edit("2", "Skype", "Oracle", relation="developer")) == {"developer", None}
    maker = "The creator of Skype is"
    assert same(replace(by_prompt, paraphrases=(maker,))) == {"developer", "creator", None}
    # Of what is not recognised, and of a relation that is no family, nothing is known to be something else.
    unknown = Edit("3", "Skype", "Oracle", prompt="Skype wumpuses")
    named = Edit("4", "Skype", "Oracle", relation="wumpus")
    own = {**relations, "wumpus": Relation("wumpus", ("{subject} wumpuses",))}
    assert not any(elsewhere(asked, unknown, relations)) and not any(elsewhere(asked, named, own))
