"""params.yaml: what it may hold (schema), how it is read (compose), judged (check) and resolved (load)."""
