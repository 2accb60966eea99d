"""The body of POST /edits, and what a dry run answers."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from factedit.facts import ERASED, EditKind
from factedit.presets import misfit
from factedit.specs import Blocks, ConstraintSpec, GateSpec, MethodSpec
from service.api.schemas.common import Body, Json, in_parts
from service.api.text import PromptText, Reference, Words, clean, printable
from service.planning import ASKED
from service.settings import MOST_EDITS

MAX_WORDINGS = 50

EXAMPLE: Json = {
    "model": "smollm2",
    "edits": [
        {"subject": "Burundi", "relation": "capital", "old_object": "Bujumbura", "new_object": "Gitega"},
        {
            "subject": "Eiffel Tower",
            "prompt": "The Eiffel Tower stands in the city of",
            "new_object": "Rome",
            "paraphrases": ["You can visit the Eiffel Tower in"],
        },
        {"subject": "Nauru", "relation": "capital", "old_object": "Yaren", "erase": True},
    ],
}

Key = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(clean)]
Value = Annotated[str, Field(max_length=512), AfterValidator(printable)]
Metadata = Annotated[dict[Key, Value], Field(max_length=16)]
Promotion = Literal["automatic", "manual"]


class EditIn(Body):
    """A fact whose object is to become `new_object`, or, with `erase`, is to be forgotten.

    It needs a `relation`, a `prompt`, or both.
    """

    subject: Words
    new_object: Words | None = Field(
        default=None, description="What the model is to answer. Either this, or `erase`."
    )
    erase: bool = Field(
        default=False,
        description=f"The model is no longer to give `old_object`; `{ERASED}` is trained in its place.",
    )
    relation: Words | None = Field(
        default=None, description="One of GET /relations; its templates supply the words to train on."
    )
    old_object: Words | None = Field(
        default=None,
        description="What it answers today; for the record, but `erase` needs it and is judged by it.",
    )
    prompt: PromptText | None = Field(
        default=None,
        description="Your own words, which the new object completes. `{subject}` in it is replaced.",
    )
    paraphrases: list[PromptText] = Field(
        default=[],
        max_length=MAX_WORDINGS,
        fail_fast=True,
        description="More of your words, trained on as well; `auto` adds its own.",
    )
    neighbors: list[PromptText] = Field(
        default=[],
        max_length=MAX_WORDINGS,
        fail_fast=True,
        description="Prompts whose answers must stay as they are.",
    )


class EditsIn(Body):
    """A batch of edits: one job, one candidate version."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    model: Reference = Field(description="A model's name. Edits build on its production version.")
    edits: Annotated[list[EditIn], Field(min_length=1, max_length=MOST_EDITS), in_parts(MOST_EDITS)]
    base_version: Reference | None = Field(
        default=None, description="Build on this version instead (`ver_…`)."
    )
    method: MethodSpec = MethodSpec()
    blocks: Blocks = Field(
        default="auto",
        description="Which transformer blocks may change. `auto`: for `constrained_ftm`, `ftm` and `fta`, "
        "and for `auto` where it only fine-tunes, found for this model and batch by a trial, and with them "
        "`constrained_ftm`'s l_inf radius if you name none; else the method's usual depth. The version's "
        "`chosen` tells which, and what was tried.",
    )
    constraint: ConstraintSpec = ConstraintSpec()
    gate: GateSpec = GateSpec()
    promotion: Promotion = Field(
        default="automatic",
        description="`manual`: a candidate that passes waits for PUT /models/{model}/aliases/production.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31)
    metadata: Metadata = Field(default={})

    @field_validator("constraint", mode="after")
    @classmethod
    def _method_takes_the_constraint(cls, constraint: ConstraintSpec, info: ValidationInfo) -> ConstraintSpec:
        method = info.data.get("method")
        if method is not None and (problem := misfit(method, constraint)) is not None:
            raise ValueError(problem)
        return constraint


class Superseded(BaseModel):
    """An earlier edit in force that a new one replaces."""

    edit_id: str
    job_id: str = Field(description="The job that brought it.")
    subject: str
    relation: str | None
    prompt: str | None
    old: str = Field(description="Its new object, which was in force.")
    new: str = Field(description="What the fact is to become now.")


class Rival(BaseModel):
    """Another edit that seems to ask the same of the same subject, and wants another object."""

    edit_id: str | None = Field(description="If it is in force already.")
    place: int | None = Field(description="If it is one of this batch: its place there, from 0.")
    prompt: str
    new_object: str


class PlannedEdit(BaseModel):
    """What would be done for one edit."""

    kind: EditKind
    subject: str
    relation: str | None
    new_object: str = Field(description="What would be trained.")
    old_object: str | None
    prompt: str = Field(description="What the edit is scored on.")
    training_prompts: list[str] = Field(description="What it would be trained in: your words first.")
    evaluation_prompts: list[str] = Field(description="Scored, never trained on.")
    current_answer: str | None = Field(
        description="What the base answers today; null if nobody could say in time, and after the first "
        f"{ASKED} edits, of which alone it is asked."
    )
    already_right: bool | None = Field(
        description="Whether that is the new object, or, for `erase`, does not mention the old one; null: "
        "not asked."
    )
    supersedes: list[str] = Field(description="Earlier edits in force that this one would replace.")
    rivals: list[Rival] = Field(
        description="Edits that would be in force beside this one and seem to want another object for the "
        "same fact, asked in other words: each is to hold in its own. If only one is true, leave the other "
        "out of the batch, or revert its job."
    )


class DryRun(BaseModel):
    """What POST /edits would do; nothing was stored."""

    object: Literal["dry_run"] = "dry_run"
    model: str
    base_version: str
    edits: list[PlannedEdit]
    supersedes: list[Superseded]
    training_examples: int
    max_steps: int
