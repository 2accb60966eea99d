"""Every way to edit, by name: one registry, one protocol (factedit.task.Editor)."""

from collections.abc import Mapping

from factedit.methods.alphaedit import edit_by_alphaedit
from factedit.methods.auto import edit_by_auto
from factedit.methods.fine_tuning import fine_tune
from factedit.methods.in_context import note_down
from factedit.methods.kv_memory import remember
from factedit.methods.memit import edit_by_memit
from factedit.methods.rome import edit_by_rome
from factedit.methods.ultraedit import edit_by_ultraedit
from factedit.specs import MethodName
from factedit.task import Editor

EDITORS: Mapping[MethodName, Editor] = {
    "auto": edit_by_auto,
    "crisp": fine_tune,
    "constrained_ftm": fine_tune,
    "ftm": fine_tune,
    "fta": fine_tune,
    "retrain": fine_tune,
    "ft_l": fine_tune,
    "ft_m": fine_tune,
    "loc_ft": fine_tune,
    "rome": edit_by_rome,
    "memit": edit_by_memit,
    "alphaedit": edit_by_alphaedit,
    "ultraedit": edit_by_ultraedit,
    "kv_memory": remember,
    "in_context": note_down,
}
