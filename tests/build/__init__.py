"""Dumps from descriptions: a mapping of pages in, the bytes of a dump file out.

Nothing here imports dumpfs, and no layout table is shared with it: offsets are literal, taken from the documentation
of the formats. What a test then reads back must equal the description.
"""
