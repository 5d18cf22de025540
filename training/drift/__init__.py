"""Test whether predictions have drifted: two-sample tests on what a vote returns, without labels."""
