"""Students: small networks that imitate the vote of a run."""
