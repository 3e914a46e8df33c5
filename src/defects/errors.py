"""The one exception that means "the input or the set-up is wrong, not the program"."""


class UserError(Exception):
    """Its message is one line: which file or setting, what is wrong with it, what to do."""
