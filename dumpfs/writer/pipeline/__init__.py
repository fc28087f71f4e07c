"""Putting the writer to work: the engine of worker processes, and the whole of a `dumpfs write`."""
