"""The dump as files. Nothing in here knows of FUSE: `dumpfs cat` reads the same nodes without a mount."""
