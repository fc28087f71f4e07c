"""The mount: the only importers of pyfuse3. Nothing in here knows what a dump is."""
