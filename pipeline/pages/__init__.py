"""The audit pages: how facts of a run become HTML, scripts of data, and sheets of faces. `pipeline/audit.py` is the stage that calls them."""
