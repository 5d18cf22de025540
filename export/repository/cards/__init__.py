"""Model card of a repository: what a clinic has to know before it uses the ensemble, in Markdown and JSON."""
