"""What whoever writes to the disk may meet. No torch here."""


class StorageFull(Exception):
    """The disk has no room for what was to be written; nothing of it remains."""
