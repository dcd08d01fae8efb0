"""A folder for PYTHONPATH: its ``sitecustomize`` activates the patcher in a launched process."""
