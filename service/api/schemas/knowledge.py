"""Relations and probes, as the API shows and takes them."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from factedit.relations import Relation, template_problem
from service.api.schemas.common import Body, in_parts
from service.api.text import FreePrompt, Name, PromptText, Reference, Words
from service.tables import ProbeRow


def _template(text: str) -> str:
    problem = template_problem(text)
    if problem is not None:
        raise ValueError(problem)
    return text


Template = Annotated[FreePrompt, AfterValidator(_template)]
MAX_PROBES = 1000


class RelationIn(Body):
    """A relation of your own. Training and evaluation templates must not share any."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "mascot",
                    "description": "The animal a club shows on its badge.",
                    "training_templates": ["The mascot of {subject} is a", "{subject} has as its mascot a"],
                    "evaluation_templates": ["On the badge of {subject} there is a"],
                }
            ]
        }
    )

    name: Name
    description: Words = ""
    aliases: list[Name] = Field(default=[], max_length=20, fail_fast=True)
    training_templates: list[Template] = Field(
        min_length=1, max_length=50, description="Each has {subject} once; the object follows it."
    )
    evaluation_templates: list[Template] = Field(
        default=[], max_length=50, description="Only ever used to score: other words for the same."
    )


class RelationOut(BaseModel):
    """A relation and its templates."""

    name: str
    object: Literal["relation"] = "relation"
    description: str
    aliases: list[str]
    training_templates: list[str]
    evaluation_templates: list[str]
    builtin: bool


def relation_out(relation: Relation, *, builtin: bool) -> RelationOut:
    return RelationOut(
        name=relation.name,
        description=relation.description,
        aliases=list(relation.aliases),
        training_templates=list(relation.training_templates),
        evaluation_templates=list(relation.evaluation_templates),
        builtin=builtin,
    )


class ProbeIn(Body):
    """A fact nobody is to change. Its words are yours, or the relation's first evaluation template."""

    object: Words = Field(description="The true answer.")
    prompt: PromptText | None = None
    subject: Words | None = None
    relation: Words | None = None
    aliases: list[Words] = Field(
        default=[], max_length=50, fail_fast=True, description="Other spellings that are right."
    )
    candidates: list[Words] = Field(
        default=[],
        max_length=1000,
        fail_fast=True,
        description="Objects among which the true one is to come first.",
    )


class ProbesIn(Body):
    """Held-out facts of your own; every later job is judged by them, whichever edits it brings."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2",
                    "probes": [
                        {"prompt": "Water boils at a temperature of 100 degrees", "object": "Celsius"},
                        {"subject": "Canada", "relation": "capital", "object": "Ottawa"},
                    ],
                }
            ]
        }
    )

    model: Reference
    probes: Annotated[list[ProbeIn], Field(min_length=1, max_length=MAX_PROBES), in_parts(MAX_PROBES)]


class ProbeOut(BaseModel):
    """A held-out fact of a model."""

    id: str
    object: str
    model: str
    source: Literal["catalogue", "user"]
    subject: str | None
    relation: str | None
    prompt: str
    aliases: list[str]
    candidates: list[str]


def probe_out(row: ProbeRow, model: str) -> ProbeOut:
    return ProbeOut(
        id=row.id,
        object=row.object,
        model=model,
        source="user" if row.source == "user" else "catalogue",
        subject=row.subject,
        relation=row.relation,
        prompt=row.prompt,
        aliases=row.aliases,
        candidates=row.candidates,
    )


class ProbesOut(BaseModel):
    """The probes that were added."""

    data: list[ProbeOut]
