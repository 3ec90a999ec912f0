"""The stages: paths in, paths out. A stage is one plain function in one file; it knows no scheduler."""
