"""The structure of JPEG, PNG and TIFF files, checked before they are decoded."""
