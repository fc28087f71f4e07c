"""Writing dumps: what makedumpfile does, from anything dumpfs reads."""
