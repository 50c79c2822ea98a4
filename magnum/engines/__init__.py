"""What runs workloads: one folder an engine, one file a kind of object. Imported by the backend alone."""
