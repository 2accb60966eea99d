"""An alias is where its newest move says, and at that generation, whoever writes to either table."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# At the commit, since of the two rows one has to be written first.
KEPT = """
create function check_alias(model varchar, name varchar) returns void language plpgsql as $$
declare
    at record;
    told record;
begin
    select a.version_id, a.generation into at
      from aliases a where a.model_id = check_alias.model and a.name = check_alias.name;
    select m.to_version_id, m.generation into told
      from alias_moves m where m.model_id = check_alias.model and m.alias = check_alias.name
     order by m.id desc limit 1;
    -- a deleted alias has no row, and its last move leads nowhere
    if at.version_id is distinct from told.to_version_id
       or (at.version_id is not null and at.generation is distinct from told.generation) then
        raise exception 'the alias % is not where its history says', name;
    end if;
end $$;
create function alias_was_written() returns trigger language plpgsql as $$
begin
    perform check_alias(old.model_id, old.name);
    perform check_alias(new.model_id, new.name);
    return null;
end $$;
create function alias_move_was_written() returns trigger language plpgsql as $$
begin
    perform check_alias(new.model_id, new.alias);
    return null;
end $$;
create constraint trigger aliases_keep_their_history after insert or update or delete on aliases
    deferrable initially deferred for each row execute function alias_was_written();
create constraint trigger alias_moves_are_made after insert on alias_moves
    deferrable initially deferred for each row execute function alias_move_was_written();
"""


def upgrade() -> None:
    op.execute(KEPT)


def downgrade() -> None:
    op.execute("drop trigger aliases_keep_their_history on aliases")
    op.execute("drop trigger alias_moves_are_made on alias_moves")
    op.execute("drop function alias_was_written(), alias_move_was_written(), check_alias(varchar, varchar)")
