"""The schema's history. `versions/` holds one file per step; `deployments/records/schema.py` applies them."""
