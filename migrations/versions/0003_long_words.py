"""Words of any length: probes are unique by digests of theirs, and no index holds a subject."""

from alembic import op
from sqlalchemy import text

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

LONGEST = 2600
"""Bytes that surely fit in an entry of a B-tree."""


def upgrade() -> None:
    op.drop_constraint("probes_model_id_prompt_object_key", "probes", type_="unique")
    op.create_index(
        "one_probe_of_its_words",
        "probes",
        ["model_id", text("md5(prompt)"), text("md5(object)")],
        unique=True,
    )
    op.drop_index("edits_by_subject", table_name="edits")


def downgrade() -> None:
    """Probes whose words are too long for the older schema are lost, with what was answered to them."""
    # A hash takes subjects of any length.
    op.create_index("edits_by_subject", "edits", ["subject"], unique=False, postgresql_using="hash")
    op.drop_index("one_probe_of_its_words", table_name="probes")
    too_long = f"select id from probes where octet_length(prompt) + octet_length(object) > {LONGEST}"
    op.execute(f"delete from probe_outcomes where probe_id in ({too_long})")
    op.execute(f"delete from probes where id in ({too_long})")
    # Written anew, or the index would be built over what was deleted a moment ago.
    op.execute("alter table probes alter column prompt type varchar using prompt || ''")
    op.create_unique_constraint(
        "probes_model_id_prompt_object_key", "probes", ["model_id", "prompt", "object"]
    )
