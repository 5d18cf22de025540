"""Measure what cross-validation members, averaged weights and mirrored images gain, and what they cost."""
