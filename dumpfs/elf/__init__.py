"""ELF core files: records, and the plan of a core to present or to write."""
