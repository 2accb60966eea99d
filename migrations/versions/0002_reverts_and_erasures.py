"""Jobs that revert others and say what they supersede; edits that erase."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("edits", sa.Column("erase", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("jobs", sa.Column("kind", sa.String(), server_default=sa.text("'edit'"), nullable=False))
    op.add_column("jobs", sa.Column("reverts_job_id", sa.String(), nullable=True))
    op.add_column(
        "jobs",
        sa.Column(
            "supersedes",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
    )
    op.create_foreign_key("jobs_reverts_job_fkey", "jobs", "jobs", ["reverts_job_id"], ["id"])
    op.create_check_constraint("kind_word", "jobs", "kind in ('edit', 'revert')")
    op.create_check_constraint("revert_of_a_job", "jobs", "(kind = 'revert') = (reverts_job_id is not null)")
    op.create_index(
        "jobs_by_reverted",
        "jobs",
        ["reverts_job_id"],
        unique=False,
        postgresql_where=sa.text("reverts_job_id is not null"),
    )


def downgrade() -> None:
    """What the older schema can't say is lost: an erasure becomes an update to the word it trained."""
    op.drop_index(
        "jobs_by_reverted", table_name="jobs", postgresql_where=sa.text("reverts_job_id is not null")
    )
    op.drop_constraint("revert_of_a_job", "jobs", type_="check")
    op.drop_constraint("kind_word", "jobs", type_="check")
    op.drop_constraint("jobs_reverts_job_fkey", "jobs", type_="foreignkey")
    op.drop_column("jobs", "supersedes")
    op.drop_column("jobs", "reverts_job_id")
    op.drop_column("jobs", "kind")
    op.drop_column("edits", "erase")
