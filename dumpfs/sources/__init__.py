"""Where bytes come from: positional, thread-safe readers of files, flattened streams and windows."""
