"""How far a replica goes down in precision while its KV cache is under pressure, and when it comes back up."""
