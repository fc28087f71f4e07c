"""One file per view of the tree."""
