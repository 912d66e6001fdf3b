"""The pipeline's steps, a script each: python -m stages.<stage>; dvc.yaml says in which order and what each needs."""
