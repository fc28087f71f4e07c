"""The dead kernel's own structures, found and read through physical memory."""
