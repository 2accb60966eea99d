"""Every way to edit, by name: one registry, one protocol (factedit.task.Editor)."""

from collections.abc import Mapping

from factedit.methods.fine_tuning import fine_tune
from factedit.specs import MethodName
from factedit.task import Editor

EDITORS: Mapping[MethodName, Editor] = {
    "auto": fine_tune,
    "constrained_ftm": fine_tune,
    "ftm": fine_tune,
}
