"""What can keep a stack from coming up; the text is for the person who started it."""


class StackError(Exception):
    """Said on the terminal as it is, without a traceback."""
