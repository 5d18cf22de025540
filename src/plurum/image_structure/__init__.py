"""Image formats and their structure, read without decoding.

Export copies this folder beside the preprocess model, as a package whose imports are relative.
"""
