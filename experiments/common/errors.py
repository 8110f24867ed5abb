"""The one exception that stands for a mistake of the user's."""


class UserError(Exception):
    """Something the user asked for cannot be done; the message is one line that says what is legal.

    The command line prints the message on stderr and exits with `code`. Anything else that is
    raised is a bug of ours and keeps its traceback.
    """

    code = 2  # of the exit
