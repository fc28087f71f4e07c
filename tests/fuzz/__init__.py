"""Damaged dumps by the thousand, over every format, view, command and form of output.

    python -m tests.fuzz --seconds 3600            # an hour on every processor; findings go to a folder
    python -m tests.fuzz --replay real-memory:42   # one input again, with its traceback
    python -m tests.fuzz --shrink real-memory:42   # the same, as little damage as will do, as a test

A case is a name and a number, from which alone its input follows (`bases`, `mutate`); what is done with it follows
from the number as well (`drive`). `worker` does many in one process and measures each, `campaign` runs workers and
notes what they find, `shrink` makes a finding small.
"""
