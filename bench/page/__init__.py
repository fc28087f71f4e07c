"""Makes bench/RESULTS.md: measures dumpfs beside its peers, keeps the raw numbers, and writes the page and its plot.

`bench/run` is the way in. A section (`sections`) is a function that measures and gives rows; `store` keeps them between
runs, so that a run can be made in pieces; `render` and `plot` know nothing but what was kept.
"""
