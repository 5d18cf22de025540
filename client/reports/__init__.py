"""Results as DICOM objects: structured reports, and pictures of heat maps."""
